"""The length of a text as a reward."""

import functools
from collections.abc import Sequence
from typing import Any

import regex
import torch
from torch import Tensor

from redge_guidance.chats import Prompt
from redge_guidance.checks import as_real
from redge_guidance.constraints.lengths import UNITS, distance_to_length, length_of
from redge_guidance.constraints.machine import TooManyStatesError
from redge_guidance.constraints.valued import Valued
from redge_guidance.finished import as_samples, to_judge
from redge_guidance.reward import Reward
from redge_guidance.rewards.reading.alignment import token_texts
from redge_guidance.samples.tokens import RelaxedTokens
from redge_guidance.text import end_token_id, end_token_ids

_MOST_STATES = 4000  # of an automaton
_FARTHEST = 20  # beyond the maximum, from where on all lengths are as bad


class LengthReward(Reward):
    """`r(x) = -(how far the length of x is from the range [minimum, maximum])`, in words or characters.

    The value is that of the decoded text. The gradient is that of the mean over where the text ends,
    `sum_i a_i e_i r(L_i)`, `e_i` the relaxed weight of the end of the text at position i (1 after the last),
    `a_i = prod_{j < i} (1 - e_j)`, `L_i` the length of what the tokens before i have written. It lengthens only within
    the generator's canvas.

    Args:
        minimum: >= 0.
        maximum: >= minimum; None: no limit.
        unit: `"words"`, which are what white space separates, or `"characters"`, as a reader counts them: grapheme
            clusters of Unicode (UAX 29), a letter with its marks being one, in NFC and NFD alike. For scripts without
            spaces (Chinese, Japanese, Thai) take characters.
        answer_only: leave the prompt in front out of what is judged; None: in a chat it is, elsewhere it is not.

    Raises:
        ValueError: no limit, an impossible range or an unknown unit.
    """

    modality = "text"

    def __init__(
        self,
        minimum: int = 0,
        maximum: int | None = None,
        *,
        unit: str = "words",
        answer_only: bool | None = None,
    ):
        self.answer_only = answer_only
        low, high = as_real(minimum), as_real(maximum)
        if low is None or not low >= 0 or (maximum is not None and (high is None or not high >= low)):
            raise ValueError(f"`minimum` and `maximum` must satisfy 0 <= minimum <= maximum, got {minimum}, {maximum}.")
        if not low < float("inf"):
            raise ValueError(f"`minimum` must be finite, got {minimum}.")
        if low == 0 and maximum is None:
            raise ValueError("`minimum` or `maximum` must be given, got 0 and None, which any text satisfies.")
        if unit not in UNITS:
            raise ValueError(f"`unit` must be one of {', '.join(UNITS)}, got {unit!r}.")
        self.minimum, self.maximum, self.unit = low, high, unit
        self._tokenizer: Any = None  # the last one, and what its tokens add to the length
        self._ends: tuple[int, ...] = ()
        self._table = torch.zeros(0, 2)

    def __call__(self, sample: RelaxedTokens) -> Tensor:
        sample = sample.judged(self.answer_only)
        exact = self.score(sample.texts()).to(sample.weights)
        relaxed = self.relaxed(sample)
        return exact + (relaxed - relaxed.detach())

    def score(self, samples: list[str], prompts: Sequence[Prompt] | None = None, batch_size: int = 32) -> Tensor:
        samples, prompts, batch_size = to_judge(samples, prompts, batch_size)
        return self._reward(self.lengths(samples))

    def reached(self, samples: list[str], prompts: Sequence[Prompt] | None = None) -> list[bool]:
        """Which texts have a length in the range."""
        return [value == 0 for value in self.score(samples, prompts).tolist()]

    def valued(self) -> list[Valued]:
        """The distance as an automaton; none for limits that are no whole numbers, and very long texts."""
        return self._valued

    @functools.cached_property
    def _valued(self) -> list[Valued]:
        low, high = int(self.minimum), None if self.maximum in (None, float("inf")) else int(self.maximum)
        if low != self.minimum or (high is not None and high != self.maximum):
            return []
        try:
            machine = distance_to_length(
                low, high, self.unit, longest=None if high is None else high + _FARTHEST, most=_MOST_STATES
            )
        except TooManyStatesError:
            return []
        limit = f"{low} or more" if high is None else f"{low} to {high}"
        return [Valued(machine, (1.0,), (f"a length of {limit} {self.unit}",))]

    def lengths(self, texts: list[str]) -> Tensor:
        """Lengths of finished texts in the unit, `(len(texts),)`."""
        texts = as_samples(texts, "texts")
        return torch.tensor([length_of(text, self.unit) for text in texts], dtype=torch.float)

    def token_ids(self, tokenizer: Any) -> list[int]:
        end = end_token_id(tokenizer)
        return [] if end is None else [end]

    def _reward(self, lengths: Tensor) -> Tensor:
        short = (float(self.minimum) - lengths).clamp(min=0)  # integers of Python may be larger than torch's
        return -short if self.maximum is None else -short - (lengths - float(self.maximum)).clamp(min=0)

    def relaxed(self, sample: RelaxedTokens) -> Tensor:
        """The mean reward over where the text ends, `(batch,)`."""
        named = tuple(end_token_ids(sample.tokenizer) if sample.ends is None else sample.ends)
        if sample.tokenizer is not self._tokenizer or named != self._ends:
            self._table, self._tokenizer, self._ends = self._columns(sample.tokenizer, named), sample.tokenizer, named
        assert sample.attention_mask is not None
        adds, end, goes_on = sample.embed(self._table.to(sample.weights)).unbind(-1)
        given = torch.zeros_like(sample.free) if sample.given is None else sample.given
        padding = sample.attention_mask.cumsum(-1) == 0
        end = end.masked_fill(given | padding, 0)
        usual = self._table[:, 0].sum() / self._table[:, 2].sum()  # what a token adds, where the sample has an end
        with torch.no_grad():
            added = torch.where(goes_on > 1e-6, adds / goes_on.clamp(min=1e-6), usual)
        change = (adds - added * goes_on) / goes_on.detach().clamp(min=1e-6).where(goes_on > 1e-6, 1.0)
        added = (added + change).masked_fill(padding | (given & (goes_on == 0)), 0)
        lengths = torch.nn.functional.pad(added.cumsum(-1), (1, 0))
        ends = torch.nn.functional.pad(end, (0, 1), value=1.0)
        alive = torch.nn.functional.pad((1 - end).cumprod(-1), (1, 0), value=1.0)
        return (alive * ends * self._reward(lengths)).sum(-1)

    def _columns(self, tokenizer: Any, ends: tuple[int, ...]) -> Tensor:
        """`(vocabulary, 3)`: what a token adds to the length, whether it ends the text, whether it does not."""
        texts = token_texts(tokenizer)
        if self.unit == "words":  # that the token separates from what is before, itself or what comes behind it
            adds = [len(regex.findall(r"\s+", text)) for text in texts]
        else:
            adds = [length_of("a" + text, self.unit) - 1 for text in texts]  # a mark adds none
        return torch.tensor([[n, i in ends, i not in ends] for i, n in enumerate(adds)], dtype=torch.float)
