"""`guide`: attach a reward to a pipeline, by its scheduler's `step`, while the pipeline draws."""

from dataclasses import replace
from types import TracebackType
from typing import Any

from torch import Tensor

from redge_guidance.config import GuidanceConfig
from redge_guidance.guidance import Guidance
from redge_guidance.hosts.attachment import Attachment
from redge_guidance.reward import AnyReward
from redge_guidance.step import DenoisingStep
from redge_guidance.stopping import StopRule
from redge_guidance.trace import Trace


class GuidanceHandle:
    """A reward attached to a pipeline, as returned by `guide`. A context manager that removes itself on exit.

    Attributes:
        config: the settings in force.
        trace: a `Trace`, one `StepTrace` a guided step since the handle was made.
    """

    def __init__(self, pipe: Any, guidance: Guidance, decode_chunk_size: int | None = None):
        self._pipe, self._guidance, self._chunk_size = pipe, guidance, decode_chunk_size
        off = guidance.config.scale == 0
        self._attachment = Attachment(pipe, begin=guidance.begin, move=None if off else self._move, end=guidance.end)

    def _move(self, step: DenoisingStep) -> Tensor | None:
        if self._chunk_size is not None:
            if step.images is None:
                raise ValueError(
                    "`decode_chunk_size` is for pipelines of images, and this one makes texts; leave it out."
                )
            step = replace(step, images=replace(step.images, chunk_size=self._chunk_size))
        return self._guidance(step)

    @property
    def config(self) -> GuidanceConfig:
        return self._guidance.config

    @property
    def trace(self) -> Trace:
        return self._guidance.trace

    def remove(self) -> None:
        """Give the pipeline back as it was. Does nothing the second time."""
        self._attachment.remove()

    def __enter__(self) -> "GuidanceHandle":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.remove()

    def __repr__(self) -> str:
        where = "on" if self._attachment.attached else "removed from"
        return f"<GuidanceHandle {where} {type(self._pipe).__name__}, {self.config}>"


def guide(
    pipe: Any,
    reward: AnyReward,
    config: GuidanceConfig | None = None,
    *,
    seed: int = 0,
    decode_chunk_size: int | None = None,
    stop_when: StopRule | None = None,
) -> GuidanceHandle:
    """Steer every sample that `pipe` draws toward `reward`, until the handle is removed.

    `pipe` is used exactly as before. While it draws, each call of its `scheduler.step` first has its logits moved by
    `config.update`; the scheduler then samples from them with its own settings and its own randomness. The schedule,
    the positions that are fixed already and the pipeline's generator are left alone.

    The same generator gives the same samples, whatever was drawn before: guidance's noise is a function of the state of
    the pipeline's generator and of `seed`. A list of generators makes every sample independent of its batch.

    Guidance belongs to the calls of this pipeline object. Another pipeline that shares its scheduler or its model is
    not guided, and a copy of it, by `copy` or `pickle`, comes out unguided. The scheduler may be exchanged between
    calls. Two calls at the same time are refused.

    Args:
        pipe: a pipeline with a discrete scheduler.
        reward: any callable from `RelaxedTokens`, or from pixels `(batch, 3, height, width)` in [0, 1] where the
            pipeline makes images, to a differentiable tensor `(batch,)`, higher is better; on images also anything
            with `score(pixels, prompts)`. It need not be differentiable for the estimator `reinforce_loo`, nor where
            it, or a term of a sum, says so.
        config: `GuidanceConfig()` when None.
        seed: of guidance's own noise.
        decode_chunk_size: of images, this many are decoded to pixels at a time, and once more in the backward pass,
            which bounds the memory; None: all at once, and only once.
        stop_when: asked after every guided step about every sequence, with the list of its `SequenceFigures` so far in
            this call; True ends its guidance, not its sampling, see `redge_guidance.stopping`. `Settled()` is one.

    Returns:
        A `GuidanceHandle`; `handle.remove()`, or leaving a `with guide(...)` block, restores the pipeline.

    Raises:
        ValueError: an unsupported or an already guided pipeline, a model instead of a pipeline, a reward that is not
            callable, or a seed that torch does not take. While sampling: a reward of the wrong kind or shape, not
            finite, or without gradient.
        RuntimeError: a pipeline that cannot draw with the versions that are installed, guided or not. While sampling:
            under `torch.inference_mode()`, in two calls at the same time, or with a version of the pipeline's library
            whose scheduler is called in a way that is not known.

    Example:
        >>> from redge_guidance.pipelines import MaskedTextPipeline
        >>> from redge_guidance.rewards import TextClassifierReward
        >>> pipe = MaskedTextPipeline.from_pretrained("builtin:tatoeba-masked")
        >>> pipe.set_progress_bar_config(disable=True)
        >>> reward = TextClassifierReward.from_pretrained("builtin:sentiment", label="positive")
        >>> with guide(pipe, reward) as handle:
        ...     output = pipe(prompt=["", "Tom"], generator=torch.Generator().manual_seed(0))
        >>> len(output.texts), len(handle.trace) > 0
        (2, True)
    """
    return GuidanceHandle(pipe, Guidance(reward, config, seed, stop_when), decode_chunk_size)
