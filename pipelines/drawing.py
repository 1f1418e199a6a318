"""The public state of one call of a pipeline: what is being drawn, and where."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from redge_guidance.chats import Prompt
from redge_guidance.checks import plain
from redge_guidance.logging import get_logger, is_progress_bar_enabled
from redge_guidance.text import before_text, fixed_before


@dataclass(frozen=True, eq=False)
class Canvas:
    """The token positions of a batch before anything is drawn. All `(batch, length)`.

    Attributes:
        ids: int64; where a token is to be drawn the mask token, or some token where there is none.
        attention_mask: bool, False on padding.
        prompt: bool, tokens that the caller wrote; what a tokenizer puts in front of a text is none of them.
        free: bool, positions that the call draws. All others stay as they are.
    """

    ids: Tensor
    attention_mask: Tensor
    prompt: Tensor
    free: Tensor

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def given(self) -> Tensor:
        """Positions in front of or among those that are drawn: prompt, what stands before it, and padding."""
        return fixed_before(self.free)

    @property
    def unending(self) -> Tensor:
        """Positions that are drawn with tokens of the caller behind them, where no text may end."""
        return before_text(self.free, self.prompt)

    @property
    def lead(self) -> Tensor:
        """The prompt in front of an answer, and what stands before it; none in texts with gaps.

        Of those the end is not drawn, but filled up.
        """
        return self.given.cumprod(-1).bool() & self.free[:, -1:]

    def to(self, device: torch.device | str) -> "Canvas":
        """The same on a device."""
        return Canvas(*(tensor.to(device) for tensor in (self.ids, self.attention_mask, self.prompt, self.free)))

    @classmethod
    def all_text(cls, ids: Tensor, free: Tensor) -> "Canvas":
        """A canvas without padding, of which all that is not free was given."""
        return cls(ids, torch.ones_like(free), ~free, free)


@dataclass(frozen=True, eq=False)
class Drawing:
    """One call of a pipeline while it runs.

    Attributes:
        canvas: as it was before the first step.
        prompts: what each of the `batch` sequences was asked for, a text or a conversation; None where the pipeline
            takes no text.
        block, num_blocks: the block that is being drawn, from 0, and how many there are.
        steps_before, num_steps: denoising steps of the blocks before this one, and of all; None: there is one block.
        class_labels: `(batch,)` int64, of a model of classes; None elsewhere.
        ranks: `(batch, length)` int64, when every position is drawn in an order of grids; None elsewhere. The pipeline
            reads it in every step, so that it may be changed in place where sequences are exchanged.
        chat: whether the prompts are turns of a chat, in the chat template.
        spends_logits: whether the logits of a step are a tensor of its own, which nobody reads after the scheduler has:
            they may be written into.
    """

    canvas: Canvas
    prompts: Sequence[Prompt] | None = None
    block: int = 0
    num_blocks: int = 1
    steps_before: int = 0
    num_steps: int | None = None
    class_labels: Tensor | None = None
    ranks: Tensor | None = None
    chat: bool = False
    spends_logits: bool = False


logger = get_logger(__name__)

# Innermost last. A context variable, so that threads, and calls within calls, see their own.
_DRAWINGS: ContextVar[tuple[tuple[Any, Drawing], ...]] = ContextVar("drawings", default=())


class Drawer:
    """A pipeline that says what it is drawing, and that a callback can end, by `pipe._interrupt = True`."""

    def __init__(self) -> None:
        super().__init__()
        self._interrupt, self._num_timesteps = False, 0

    @property
    def interrupt(self) -> bool:
        """Whether the call in progress, or the last one, was told to take no further step; as in diffusers."""
        return self._interrupt

    @property
    def num_timesteps(self) -> int:
        """Denoising steps of the call in progress, or of the last one, those of all its blocks; as in diffusers."""
        return self._num_timesteps

    def progress_bar(self, iterable: Any = None, total: int | None = None) -> Any:
        """As in diffusers; none after `redge_guidance.logging.disable_progress_bar()`."""
        if not is_progress_bar_enabled():
            return tqdm(iterable, total=total, disable=True)
        return super().progress_bar(iterable, total)  # type: ignore[misc]  # of the class that it is mixed into

    @property
    def drawing(self) -> Drawing | None:
        """The call in progress, in this thread the innermost one; None between calls."""
        return next((drawing for pipe, drawing in reversed(_DRAWINGS.get()) if pipe is self), None)

    def register_to_config(self, **settings: Any) -> None:
        """As in diffusers; numbers are kept as plain ones, so that they can be written to a file."""
        super().register_to_config(**{name: plain(value) for name, value in settings.items()})  # type: ignore[misc]

    @contextmanager
    def _running(self, num_timesteps: int) -> Iterator[None]:
        """The steps of a call, all blocks of it; a call within it, by a callback, leaves this one as it was."""
        before, nested = (self._interrupt, self._num_timesteps), self.drawing is not None
        self._interrupt, self._num_timesteps = False, num_timesteps
        try:
            yield
        finally:
            if nested:
                self._interrupt, self._num_timesteps = before

    def _say_undrawn(self, undrawn: Tensor, what: str) -> None:
        """Say how many positions, `(batch, length)` bool, an interrupted call left, and what became of them."""
        count = int(undrawn.sum()) if self.interrupt else 0
        if count:
            logger.warning("the call was interrupted with %d positions not drawn to the end: %s", count, what)

    @contextmanager
    def _draw(self, drawing: Drawing) -> Iterator[None]:
        token = _DRAWINGS.set((*_DRAWINGS.get(), (self, drawing)))
        try:
            yield
        finally:
            _DRAWINGS.reset(token)
