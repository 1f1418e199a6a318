"""Which calls of somebody's loop are one sampling, what its prompt is, how far it has come: from the tokens alone."""

import warnings
from typing import Any

import torch
from torch import Tensor

from redge_guidance.text import before_text, end_token_ids, fixed_before, is_in, special_token_ids

_HIDDEN_AGAIN = (
    "tokens that were drawn stay while others are hidden again: this is read as a new sampling that was given those; "
    "pass `remasking=True` for a sampler that hides again what it has drawn, or call `reset()` between samplings."
)


class Following:
    """Follows the canvas of a sampler from call to call.

    A call belongs to the sampling of the call before if its canvas is as long, or longer by what was put behind it, if
    what was not free in the first call is as it was, and if no position is free that was not then. Even so it begins a
    new one where more is free than in the call before, or where everything is free again and progress goes back, or as
    many calls were made as a sampling has. Not to be told from another step is a second sampling of the same prompt in
    one step, or by a sampler that says no progress and in which everything stays free: call `reset`.

    Args:
        tokenizer: whose special tokens are no text; None: no token is special.
        ends: token ids that end a text; None: the tokenizer's.
        num_steps: calls of a sampling; None: not known.
        remasking: whether the sampler hides again what it has drawn; more that is free then begins nothing new, unless
            it is everything.

    Attributes:
        count: calls of this sampling.
        grown: whether its canvas has become longer.
    """

    def __init__(
        self, tokenizer: Any, ends: tuple[int, ...] | None = None, num_steps: int | None = None, remasking: bool = False
    ):
        own = end_token_ids(tokenizer) if ends is None else ends
        self._no_text = {*special_token_ids(tokenizer), *own}
        self._num_steps, self._remasking = num_steps, remasking
        self.reset()

    def reset(self) -> None:
        """The next call begins a sampling."""
        self.count, self.grown, self._progress = 0, False, 0.0
        none = torch.empty(0, 0)
        self._ids, self._free, self._text = none, none, none  # of the first call, and what was put behind later
        self._last_ids, self._last_free = none, none

    def see(self, ids: Tensor, free: Tensor, text: Tensor, progress: float | None = None) -> bool:
        """A call, all `(batch, length)`; True where it begins a sampling.

        Args:
            ids: int64.
            free: bool, every position that may still be drawn, in later blocks too.
            text: bool, False on padding.
            progress: as the sampler says it; None: it says nothing.
        """
        new = self._begins(ids, free, progress)
        if new:
            self.reset()
            self._ids, self._free, self._text = ids.clone(), free.clone(), text.clone()
        elif (known := self._ids.shape[1]) < ids.shape[1]:
            self.grown = True
            self._ids = torch.cat([self._ids, ids[:, known:]], 1)
            self._free = torch.cat([self._free, free[:, known:]], 1)
            self._text = torch.cat([self._text, text[:, known:]], 1)
        self.count += 1
        self._last_ids, self._last_free = ids.clone(), free.clone()
        self._progress = self._progress if progress is None else progress
        return new

    @property
    def given(self) -> Tensor:
        """What was not free in the first call and has free positions after it: the prompt; `(batch, length)` bool."""
        return fixed_before(self._free)

    @property
    def unending(self) -> Tensor:
        """Free positions with given text behind them, where no text may end; `(batch, length)` bool."""
        return before_text(self._free, ~self._free & self._text & ~is_in(self._ids, self._no_text))

    def progress(self) -> float:
        """Share of the sampling that was done before the last call, in [0, 1).

        The share of the calls where their number is known, else the share of the positions first free that are not free
        any more.
        """
        if self._num_steps is not None:
            return min(self.count - 1, self._num_steps - 1) / self._num_steps
        return min(1 - int(self._last_free.sum()) / max(int(self._free.sum()), 1), 1 - 1e-6)

    def block(self, free: Tensor, block_length: int) -> Tensor:
        """Free positions of the first unfinished block of every row, counted from the first position that was free."""
        number = (self._free.cumsum(-1) - 1).div(block_length, rounding_mode="floor")
        first = number.where(free, number.max() + 1).amin(-1, keepdim=True)
        return free & (number == first)

    def _begins(self, ids: Tensor, free: Tensor, progress: float | None) -> bool:
        known = self._ids.shape[1]
        if not self.count or len(ids) != len(self._ids) or ids.shape[1] < known or ids.device != self._ids.device:
            return True
        fixed, was_free = ids[:, :known] != self._ids, self._free.bool()
        if (fixed & ~was_free).any() or (free[:, :known] & ~was_free).any():
            return True
        if ids.shape[1] > self._last_ids.shape[1]:
            return False
        if torch.equal(free, was_free):
            back = progress is not None and progress < self._progress
            over = self._num_steps is not None and self.count >= self._num_steps
            return back or over or not torch.equal(self._last_free, free)
        if self._num_steps is not None and self.count == self._num_steps:
            warnings.warn(
                f"a sampling goes on after {self._num_steps} calls; pass its number of calls as `num_steps`, of all "
                "blocks, or `progress`.",
                stacklevel=5,
            )
        if self._remasking or int(free.sum()) <= int(self._last_free.sum()):
            return False
        drawn = was_free & ~free
        if (drawn & ~self._last_free & (ids == self._last_ids)).any():
            warnings.warn(_HIDDEN_AGAIN, stacklevel=5)
        return True
