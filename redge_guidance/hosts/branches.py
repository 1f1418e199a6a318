"""Which calls of a model belong to one step of a sampler, and what each of them is given back."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from redge_guidance.hosts.calls import ModelCall
from redge_guidance.hosts.classifier_free import (
    MODES,
    finite,
    halves,
    is_without_prompt,
    kept_forbidden,
    last_conditional,
    last_unconditional,
    mixed,
    shifted,
)
from redge_guidance.precision import keeping_the_first


@dataclass(frozen=True, eq=False)
class Reading:
    """A call with the prompt, as guidance reads it.

    Attributes:
        where: `(batch, block)` bool, where among the logits those of the free positions are.
        free: the same by the positions that they are for; another where logits are shifted.
        given: `(batch, length)` bool, the prompt.
        columns: the part of the vocabulary that is guided.
        move: from logits `(n, columns)` of the free positions to guided ones, float32; None to leave them. It may be
            given None, for those of the call.
    """

    where: Tensor
    free: Tensor
    given: Tensor
    columns: slice
    move: Callable[[Tensor | None], Tensor | None]

    def rows(self, logits: Tensor, where: Tensor | None = None) -> Tensor:
        """`(n, columns)` float32, of the free positions."""
        return logits[self.where if where is None else where][:, self.columns].float()

    def put(self, logits: Tensor, rows: Tensor, first: bool = True, where: Tensor | None = None) -> Tensor:
        """A copy of `logits` with `rows` at the free positions; `first`: the likeliest token has to stay so."""
        where, result = self.where if where is None else where, logits.detach().clone()
        if torch.finfo(logits.dtype).bits < 32:
            ends = torch.finfo(logits.dtype)
            rows = rows.clamp(ends.min, ends.max).where(~rows.isneginf(), rows)
            rows = keeping_the_first(rows, logits.dtype) if first else rows.to(logits.dtype)
        whole = result[where]
        whole[:, self.columns] = rows.to(logits.dtype)
        result[where] = whole
        return result


class Branches:
    """The calls that a sampler makes with and without its prompt, guided so that its mix is guided once.

    Args:
        read: a call with the prompt, as guidance reads it.
        mode: `"doubled"`, one call of both, one behind the other in the batch; `"two_calls"`, one after the other;
            `"auto"`, whichever is seen; None: every call is one of its own.
        scale: w of the sampler's mix `u + w (c - u)`; None: not known.
        conditional_first: whether the half, or the call, with the prompt comes first; None: as it is seen in a doubled
            batch, and first where that cannot be seen.
        mask: what a hidden token holds; None: nothing is hidden.

    Raises:
        ValueError: another mode, or a scale that is none, or missing where it is needed.
    """

    def __init__(
        self,
        read: Callable[[ModelCall], Reading],
        mode: str | None,
        scale: float | None,
        conditional_first: bool | None,
        mask: int | None,
    ):
        if mode is not None and mode not in MODES:
            raise ValueError(f"`classifier_free` must be one of {', '.join(MODES)}, or None, got {mode!r}.")
        if scale is not None and (mode is None or scale in (0, 1)):
            raise ValueError(
                "`guidance_scale` must be the w of `u + w * (c - u)` in a sampler that has two predictions, got "
                f"{scale!r} with classifier_free={mode!r}; where w is 0 or 1 there is one, and both are left out."
            )
        if conditional_first is False and mode == "two_calls" and scale is None:
            raise ValueError(
                "`guidance_scale` must be given where the call without the prompt comes first, got None: it is over "
                "before guidance knows where to."
            )
        self._read, self._mode, self._scale, self._first, self._mask = read, mode, scale, conditional_first, mask
        self.reset()

    def reset(self) -> None:
        """The next call begins a sampling."""
        self._seen: str | None = None
        self._pending: tuple[ModelCall, Reading | None, Tensor | None] | None = None
        self._before: tuple[ModelCall, Reading, Tensor | None] | None = None

    def __call__(self, call: ModelCall) -> Tensor | None:
        """Logits that the sampler is to be given instead of the call's; None: leave them."""
        mode = self._mode if self._mode != "auto" else self._recognised(call)
        if mode == "doubled":
            return self._doubled(call)
        return self._in_turn(call) if mode == "two_calls" else self._alone(call)

    def _alone(self, call: ModelCall) -> Tensor | None:
        reading = self._read(call)
        guided = reading.move(None)
        self._before = (call, reading, guided) if self._mode == "auto" else None
        return None if guided is None else reading.put(call.logits, guided)

    def _recognised(self, call: ModelCall) -> str | None:
        found = None if self._mask is None else halves(call.ids, self._mask)
        if self._seen == "doubled" and found is None:
            raise ValueError(
                "the batch was taken for one half with and one without its prompt, and is something else now; pass "
                '`classifier_free=None` where every row is a text of its own, or "doubled".'
            )
        if self._seen is None and found is not None:
            self._guess(
                "doubled", f"the batch of {len(call.ids)} is taken for {len(call.ids) // 2} texts, with and without"
            )
        elif self._seen is None and self._scale is not None:
            self._seen = "two_calls"
        elif self._seen is None and self._follows(call):
            self._guess("two_calls", "a second call of the model is taken for that of a step without")
            self._pending, self._before = self._before, None
        return self._seen

    def _guess(self, mode: str, taken: str) -> None:
        self._seen = mode
        exact = "" if self._scale is not None else (
            "; both predictions are moved alike, which is exact for a reward linear in the tokens; pass "
            "`guidance_scale`, the w of `u + w * (c - u)`, to guide the mix itself"
        )  # fmt: skip
        warnings.warn(
            f'{taken} the prompt. Pass `classifier_free="{mode}"` if it is so, or None if it is not{exact}.',
            stacklevel=7,
        )

    def _follows(self, call: ModelCall) -> bool:
        """Whether a call is that of the one before with its prompt hidden.

        Raises:
            ValueError: it has another prompt in the middle of a sampling.
        """
        if self._before is None or self._mask is None or call.ids.shape != self._before[0].ids.shape:
            return False
        other, given = self._before[0].ids, self._before[1].given
        if is_without_prompt(call.ids, other, self._mask, given):
            return True
        differ, drawn = call.ids != other, ~given & (other != self._mask) & self._before[0].text
        if differ.any() and not (differ & ~given).any() and drawn.any() and (other == self._mask).any():
            raise ValueError(
                "a step has a second call with another prompt, as of classifier-free guidance without the prompt; pass "
                '`classifier_free="two_calls"` if it is so, or None if it is not.'
            )
        return False

    def _doubled(self, call: ModelCall) -> Tensor | None:
        size = len(call.ids) // 2
        if len(call.ids) % 2:
            raise ValueError(
                f'`classifier_free="doubled"` needs a batch of two halves, got {len(call.ids)}; pass None for such '
                "calls."
            )
        first, last = call.rows(slice(size)), call.rows(slice(size, None))
        in_order = self._first if self._first is not None else self._fewer_hidden(first, last)
        with_prompt, without = (first, last) if in_order else (last, first)
        reading = self._read(with_prompt)
        c, u = reading.rows(with_prompt.logits), reading.rows(without.logits)
        guided = reading.move(None if self._scale is None else mixed(c, u, self._scale))
        if guided is None:
            return None
        c_moved = kept_forbidden(finite(guided), c)
        u_moved = shifted(u, c, guided) if self._scale is None else kept_forbidden(finite(guided), u)
        same = self._scale is not None
        moved = [reading.put(with_prompt.logits, c_moved), reading.put(without.logits, u_moved, first=same)]
        return torch.cat(moved if in_order else moved[::-1])

    def _fewer_hidden(self, first: ModelCall, last: ModelCall) -> bool:
        return self._mask is None or int((first.ids == self._mask).sum()) <= int((last.ids == self._mask).sum())

    def _in_turn(self, call: ModelCall) -> Tensor | None:
        pending, self._pending = self._pending, None
        if pending is not None:
            return self._second(call, *pending)
        if self._first is False:
            self._pending = (call, None, None)
            return None
        reading = self._read(call)
        guided = None if self._scale is not None else reading.move(None)
        self._pending = (call, reading, guided)
        if guided is None:
            return None
        return reading.put(call.logits, kept_forbidden(finite(guided), reading.rows(call.logits)))

    def _second(self, call: ModelCall, before: ModelCall, reading: Reading | None, guided: Any) -> Tensor | None:
        if reading is None:  # the call without the prompt came first
            reading = self._read(call)
            where = self._aligned(reading, before, call)
            c, u = reading.rows(call.logits), reading.rows(before.logits, where)
            guided = reading.move(mixed(c, u, self._scale or 0.0))
            return None if guided is None else reading.put(
                call.logits, last_conditional(guided, c, u, self._scale or 1.0), first=False
            )  # fmt: skip
        where = self._aligned(reading, call, before)
        c, u = reading.rows(before.logits), reading.rows(call.logits, where)
        if self._scale is None:
            moved = None if guided is None else shifted(u, c, guided)
        else:
            guided = reading.move(mixed(c, u, self._scale))
            moved = None if guided is None else last_unconditional(guided, c, u, self._scale)
        return None if moved is None else reading.put(call.logits, moved, first=False, where=where)

    def _aligned(self, reading: Reading, without: ModelCall, with_prompt: ModelCall) -> Tensor:
        """Where the free positions are in the call without the prompt, whose text may be shorter or longer in front.

        Raises:
            ValueError: they are not hidden there.
        """
        longer = without.logits.shape[1] - with_prompt.logits.shape[1]
        where, free = (torch.nn.functional.pad(one, (longer, 0)) for one in (reading.where, reading.free))
        block = without.ids[:, without.offset : without.offset + without.logits.shape[1]]
        fits = len(block) == len(free) and int(free.sum()) == int(reading.free.sum())
        if not fits or (self._mask is not None and not (block[free] == self._mask).all()):
            raise ValueError(
                '`classifier_free="two_calls"` needs two calls a step in which the same positions are hidden, and a '
                "call of "
                "the model has others; was it called in between, or in one order and then in another? `reset()` begins "
                "anew."
            )
        return where
