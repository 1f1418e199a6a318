"""The adapter between one kind of pipeline and guidance."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from redge_guidance.positions import bare
from redge_guidance.precision import in_float32
from redge_guidance.step import DenoisingStep

_ELSEWHERE = "elsewhere"
# Whose pipeline is drawing in this thread; `_ELSEWHERE` while rewards and callbacks of the user run.
_CURRENT: ContextVar[Any] = ContextVar("current_host", default=None)


@dataclass(frozen=True, eq=False)
class Drawn:
    """What a scheduler's method has just drawn from the logits, and kept.

    Attributes:
        tokens: `(batch, length)` int64; what is not at `positions` is the context as it was.
        positions: `(batch, length)` bool.
    """

    tokens: Tensor
    positions: Tensor


class Host(ABC):
    """Adapter between one kind of pipeline and guidance; an instance serves one call of the pipeline.

    Subclasses say which pipelines they are for and read a `DenoisingStep` out of the arguments of a scheduler's method
    and the public state of the pipeline. What a pipeline does not pass to its scheduler is in the arguments of its call
    (`begin`), or heard on the way into its model (`listen`).

    Attributes:
        description: what is guided, for `supports` and for errors.
        seams: names of the scheduler's methods that take `model_output` and are guided.
        entries: names of the pipeline's methods that draw samples. Guidance acts while one of them runs; for a pipeline
            that has none of them, whenever its scheduler is called, by whomever.
        makes_images: whether what is drawn are images, where nothing that the reward says tells.
        tested_with: versions of libraries, by name, with which `read` was tested: what it cannot read is then reported
            as another version. Leave it empty for errors as they are.
        pipe: the pipeline.
        everywhere: whether guidance acts outside the entries too.
    """

    description: ClassVar[str]
    seams: ClassVar[tuple[str, ...]] = ("step",)
    entries: ClassVar[tuple[str, ...]] = ("__call__",)
    makes_images: ClassVar[bool] = False
    tested_with: ClassVar[Mapping[str, str]] = {}

    def __init__(self, pipe: Any, everywhere: bool = False):
        self.pipe, self.everywhere = pipe, everywhere
        self._hooks: list[Any] = []

    @classmethod
    @abstractmethod
    def matches(cls, pipe: Any) -> bool:
        """Whether this adapter is for `pipe`."""

    @classmethod  # noqa: B027 - most need nothing of it
    def check(cls, pipe: Any) -> None:
        """Called by `guide` on what `matches`: raise where `pipe` cannot draw, guided or not, and say what can."""

    def begin(self, arguments: Mapping[str, Any]) -> None:  # noqa: B027 - many need nothing of it
        """A call of the pipeline begins; `arguments` are the call's by name, with defaults, where they are known."""

    @abstractmethod
    def read(self, seam: str, arguments: Mapping[str, Any]) -> DenoisingStep:
        """The step that is about to be taken; `arguments` are those of the scheduler's method `seam`, by name."""

    def before(self) -> tuple[Any, Callable[[dict[str, Any]], DenoisingStep]] | None:
        """How to look ahead, before anything is drawn: a model, and what makes a step of its first call.

        The arguments of that call are given by name. The step has no logits, but as many as there will be:
        `(batch, 0, vocabulary)`; free is all that will be drawn. None: not known before the first step.
        """
        return None

    def foresee(self, check: Callable[[DenoisingStep], None]) -> None:
        """Have `check` called with what `before` says, when the model is first called."""
        found = self.before()
        if found is None or not isinstance(found[0], torch.nn.Module):
            return
        module, ahead = found
        waiting = [True]

        def heard(arguments: dict[str, Any]) -> None:
            if waiting and waiting.pop():
                with drawing(None):
                    check(ahead(arguments))

        self.listen(module, heard)

    def write(self, arguments: dict[str, Any], step: DenoisingStep, logits: Tensor) -> None:
        """Put guided logits `(free positions, vocabulary)` into the arguments.

        In float32 at least: a half precision logit near 24 swallows a small tilt whole. The host's own tensors stay,
        but for logits that are `spent`.
        """
        output = in_float32(arguments["model_output"], copy=not step.spent)
        output[step.free[:, -output.shape[1] :]] = logits.to(output.dtype)
        arguments["model_output"] = output

    def after(self, seam: str, step: DenoisingStep, output: Any) -> Drawn:
        """What the scheduler's method has drawn, `output` being what it returned.

        Here, for schedulers that leave a token as it is until it is drawn: the free tokens that are others now.
        """
        block = field_of(output, "prev_sample").flatten(1)
        ids = torch.cat([step.ids[:, : step.ids.shape[1] - block.shape[1]], block], -1)
        changed = step.free & (ids != step.ids)
        return Drawn(ids.where(changed, step.ids), changed)

    def finished(self, result: Any) -> Tensor | None:
        """The whole context that a call has come to, `(batch, length)` int64, read off what it returned.

        None: it is what `after` has said of the last step, here and where something else was returned.
        """
        return None

    def settle(self, step: DenoisingStep, output: Any, positions: Tensor, tokens: Tensor) -> Any:
        """Have other tokens drawn than the scheduler's method has.

        Here, for schedulers that say what they have drawn in tensors of tokens alone.

        Args:
            step: the step that was taken, whose host `settles`.
            output: what the scheduler's method returned.
            positions, tokens: `(batch, length)` bool and int64, where and what.

        Returns:
            What the pipeline is to be given instead of `output`.
        """
        block = field_of(output, "prev_sample").shape[-1]
        return _mapped(
            output,
            lambda part: (
                tokens[:, -block:].where(positions[:, -block:], part)
                if part.dtype == torch.long and part.shape == (len(tokens), block)
                else part
            ),
        )

    def reorder(self, step: DenoisingStep, output: Any, rows: Tensor) -> Any:
        """Let sequence i go on as a copy of sequence `rows[i]`, of the same prompt.

        Args:
            step: the step that was taken.
            output: what the scheduler's method returned.
            rows: `(batch,)` int64.

        Returns:
            What the pipeline is to be given instead of `output`.

        Raises:
            ValueError: `rows` are not as many, or of another prompt.
            RuntimeError: the pipeline keeps something of a sequence where it cannot be exchanged.
        """
        self._check_rows(step, rows)
        return _mapped(output, lambda part: part[rows] if part.ndim and len(part) == len(rows) else part)

    def close(self) -> None:
        """The call ends: leave nothing behind in the pipeline."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def listen(self, module: Any, heard: Callable[[dict[str, Any]], None]) -> None:
        """Call `heard` with the arguments, by name, of every call that the pipeline makes of `module`, until `close`.

        Calls by others, such as a reward that uses the same model, are not heard.
        """
        signature = inspect.signature(getattr(module, "_orig_mod", module).forward)  # beneath a compiled module

        # Another thread, in the middle of the same module, may call a hook that is just being removed without kwargs.
        def hook(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> None:
            if self.is_drawing():
                heard(dict(signature.bind(*args, **(kwargs or {})).arguments))

        self._hooks.append(module.register_forward_pre_hook(hook, with_kwargs=True))

    def is_drawing(self) -> bool:
        """Whether what happens in this thread now is done by the pipeline itself."""
        found = _CURRENT.get()
        return found is self or (self.everywhere and found is None)

    def _check_rows(self, step: DenoisingStep, rows: Tensor) -> None:
        batch = len(step.ids)
        if rows.shape != (batch,) or rows.is_floating_point() or not ((rows >= 0) & (rows < batch)).all():
            raise ValueError(f"`rows` must be {batch} indices below {batch}, got {rows.tolist()}.")
        prompts = step.prompts
        alike = prompts is None or all(prompts[i] == prompts[k] for i, k in enumerate(rows.tolist()))
        fixed = torch.zeros_like(step.free) if step.given is None else step.given
        given = step.ids.where(fixed, 0)
        if not (alike and torch.equal(given[rows], given) and torch.equal(fixed[rows], fixed)):
            raise ValueError(
                f"`rows` must exchange sequences of one prompt, got {rows.tolist()}; prompts stay in place."
            )


def no_logits(model: Any, ids: Tensor) -> Tensor:
    """`(batch, 0, vocabulary)` where logits will be, as many as the config of the model says."""
    config: Any = getattr(bare(model), "config", None)
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    return torch.empty(len(ids), 0, int(getattr(text, "vocab_size", 0)), device=ids.device)


@contextmanager
def drawing(host: Host | None) -> Iterator[None]:
    """In this block the pipeline of `host` draws, in this thread; None: something that is not the pipeline's does."""
    token = _CURRENT.set(_ELSEWHERE if host is None else host)
    try:
        yield
    finally:
        _CURRENT.reset(token)


def is_a(thing: Any, *names: str) -> bool:
    """Whether the class of `thing`, or one that it derives from, has one of these names; nothing is imported."""
    return any(kind.__name__ in names for kind in type(thing).__mro__)


def in_block(block: Tensor, length: int) -> Tensor:
    """`(batch, block length)` bool at the end of `(batch, length)`, False before."""
    return torch.nn.functional.pad(block, (length - block.shape[1], 0))


def share_done(timesteps: Tensor, timestep: Any) -> float:
    """Share of the steps that come before `timestep`, by its position among the scheduler's `timesteps`."""
    found = (timesteps == timestep).nonzero()
    if not len(found):
        raise KeyError(f"timestep {timestep} is none of the scheduler's {len(timesteps)}")
    return int(found[0]) / len(timesteps)


def steps_left(timesteps: Tensor, timestep: Any) -> int:
    """Number of the scheduler's `timesteps` that come after `timestep`."""
    return len(timesteps) - 1 - round(share_done(timesteps, timestep) * len(timesteps))


def field_of(output: Any, name: str, index: int = 0) -> Tensor:
    """A field of what a scheduler returned: an output object, a tuple, or a sample alone."""
    if isinstance(output, Tensor):
        return output
    found: Tensor = output[index] if isinstance(output, tuple) else getattr(output, name)
    return found


def ids_in(result: Any, name: str, index: int = 0) -> Tensor | None:
    """Tokens `(batch, length)` in what a pipeline returned, an output object or a tuple; None: there are none."""
    found = getattr(result, name, None)
    if isinstance(result, tuple) and index < len(result):
        found = result[index]
    return found if isinstance(found, Tensor) and found.ndim == 2 and found.dtype == torch.long else None


def _mapped(output: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """`output`, an output object, a tuple or a sample alone, with `change` of every tensor."""
    if isinstance(output, Tensor):
        return change(output)
    if isinstance(output, tuple):
        return tuple(_mapped(part, change) for part in output)
    return type(output)(**{name: _mapped(part, change) for name, part in output.items()})
