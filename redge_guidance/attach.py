"""`guide`: attach a reward to a pipeline by its scheduler's `step`."""

import functools
import inspect
from collections.abc import Callable
from types import TracebackType
from typing import Any

from redge_guidance.config import GuidanceConfig
from redge_guidance.guidance import Guidance, StepTrace
from redge_guidance.hosts import DenoisingStep, find_host, versions
from redge_guidance.reward import AnyReward

_MARK = "_redge_guidance_handle"


class GuidanceHandle:
    """A reward attached to a pipeline, as returned by `guide`. A context manager that removes itself on exit.

    Attributes:
        config: the settings in force.
        trace: a list of `StepTrace`, one entry a guided step since the handle was made.
    """

    def __init__(self, pipe: Any, guidance: Guidance):
        self._pipe, self._guidance = pipe, guidance
        kind = find_host(pipe)
        self._scheduler = pipe.scheduler
        self._seams = [name for name in kind.seams if hasattr(self._scheduler, name)]
        if any(hasattr(getattr(self._scheduler, name), _MARK) for name in self._seams):
            raise ValueError("`pipe` is guided already; call `remove()` on the first handle, or add up the rewards.")
        self._host = kind(pipe)
        self._previous = {name: vars(self._scheduler).get(name) for name in (*self._seams, "set_timesteps")}
        for name in self._seams:
            setattr(self._scheduler, name, self._guided(name, getattr(self._scheduler, name)))
        self._scheduler.set_timesteps = self._beginning(self._scheduler.set_timesteps)

    def _guided(self, seam: str, original: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(original)

        @functools.wraps(original)  # keeps the signature: some pipelines choose their arguments by it
        def method(*args: Any, **kwargs: Any) -> Any:
            bound = signature.bind(*args, **kwargs)
            if self.config.scale > 0:
                step = self._read(seam, bound.arguments)
                logits = self._guidance(step)
                if logits is not None:
                    self._host.write(bound.arguments, step, logits)
            return original(*bound.args, **bound.kwargs)

        setattr(method, _MARK, self)
        return method

    def _read(self, seam: str, arguments: dict[str, Any]) -> DenoisingStep:
        try:
            return self._host.read(seam, arguments)
        except (KeyError, AttributeError) as error:
            host, scheduler = type(self._host).__name__, type(self._scheduler).__name__
            raise RuntimeError(
                f"{host} cannot read a denoising step off {scheduler}.{seam}: {type(error).__name__} {error}; "
                f"{versions()}. Install a version that was."
            ) from error

    def _beginning(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def set_timesteps(*args: Any, **kwargs: Any) -> Any:
            self._host.begin()
            return original(*args, **kwargs)

        return set_timesteps

    @property
    def config(self) -> GuidanceConfig:
        return self._guidance.config

    @property
    def trace(self) -> list[StepTrace]:
        return self._guidance.trace

    @property
    def _attached(self) -> bool:
        return getattr(vars(self._scheduler).get("step"), _MARK, None) is self

    def remove(self) -> None:
        """Give the pipeline its own scheduler's methods back. Does nothing the second time."""
        if not self._attached:
            return
        self._host.close()
        for name, previous in self._previous.items():
            if previous is None:
                delattr(self._scheduler, name)
            else:
                setattr(self._scheduler, name, previous)

    def __enter__(self) -> "GuidanceHandle":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.remove()

    def __repr__(self) -> str:
        return (
            f"<GuidanceHandle {'on' if self._attached else 'removed from'} {type(self._pipe).__name__}, {self.config}>"
        )


def guide(pipe: Any, reward: AnyReward, config: GuidanceConfig | None = None, *, seed: int = 0) -> GuidanceHandle:
    """Steer every sample that `pipe` draws toward `reward`, until the handle is removed.

    `pipe` is used exactly as before. Each call of its `scheduler.step` first has its logits moved by `config.update`;
    the scheduler then samples from them with its own settings and its own randomness. The schedule, the positions
    that are fixed already and the pipeline's generator are left alone.

    Args:
        pipe: a pipeline with a discrete scheduler.
        reward: any callable from `RelaxedTokens`, or from pixels `(batch, 3, height, width)` in [0, 1] where the
            pipeline makes images, to a differentiable tensor `(batch,)`, higher is better; on images also anything
            with `score(pixels, prompts)`. It need not be differentiable for the estimator `reinforce_loo`, nor where
            it, or a term of a sum, says so.
        config: `GuidanceConfig()` when None.
        seed: of guidance's own generator, which runs on through all calls of the pipeline.

    Returns:
        A `GuidanceHandle`; `handle.remove()`, or leaving a `with guide(...)` block, restores the pipeline.

    Raises:
        ValueError: an unsupported or an already guided pipeline, or a reward that is not callable. While sampling: a
            reward of the wrong shape, not finite, or without gradient.
        RuntimeError: while sampling under `torch.inference_mode()`, or with a version of the pipeline's library whose
            scheduler is called in a way that is not known.

    Example:
        >>> from redge_guidance.pipelines import MaskedTextPipeline
        >>> from redge_guidance.rewards import TextClassifierReward
        >>> pipe = MaskedTextPipeline.from_pretrained("builtin:tatoeba-masked")
        >>> reward = TextClassifierReward.from_pretrained("builtin:sentiment", label="positive")
        >>> with guide(pipe, reward) as handle:
        ...     output = pipe(prompt=["", "Tom"], generator=torch.Generator().manual_seed(0))
        >>> len(output.texts), len(handle.trace) > 0
        (2, True)
    """
    return GuidanceHandle(pipe, Guidance(reward, config, seed))
