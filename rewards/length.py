"""The length of a text as a reward."""

import re
from typing import Any

import torch
from torch import Tensor

from redge_guidance.relaxed import RelaxedTokens
from redge_guidance.reward import Reward
from redge_guidance.rewards.alignment import token_texts
from redge_guidance.text import end_token_id

_UNITS = ("words", "characters")


class LengthReward(Reward):
    """`r(x) = -(how far the length of x is from the range [minimum, maximum])`, in words or characters.

    The value is that of the decoded text. The gradient is that of the length of the relaxed one,
    `sum_i a_i sum_v w_i(v) l(v)`, `a_i = prod_{j <= i} (1 - w_j(end of text))` being the weight of a text that has not
    ended at i, l(v) what token v adds to the length. It lengthens only within the generator's canvas.

    Args:
        minimum: >= 0.
        maximum: >= minimum; None: no limit.
        unit: `"words"`, which are what white space separates, or `"characters"`.

    Raises:
        ValueError: an impossible range or an unknown unit.
    """

    def __init__(self, minimum: int = 0, maximum: int | None = None, *, unit: str = "words"):
        if minimum < 0 or (maximum is not None and maximum < minimum):
            raise ValueError(f"`minimum` and `maximum` must satisfy 0 <= minimum <= maximum, got {minimum}, {maximum}.")
        if unit not in _UNITS:
            raise ValueError(f"`unit` must be one of {', '.join(_UNITS)}, got {unit!r}.")
        self.minimum, self.maximum, self.unit = minimum, maximum, unit
        self._tokenizer: Any = None  # the last one, and what its tokens add to the length
        self._table = torch.zeros(0, 2)

    def __call__(self, tokens: RelaxedTokens) -> Tensor:
        lengths = self.lengths(tokens.texts()).to(tokens.weights)
        relaxed = self._relaxed(tokens)
        return self._reward(lengths + (relaxed - relaxed.detach()))

    def score(self, texts: list[str], batch_size: int = 32) -> Tensor:
        return self._reward(self.lengths(texts))

    def lengths(self, texts: list[str]) -> Tensor:
        """Lengths of finished texts in the unit, `(len(texts),)`."""
        return torch.tensor([len(t.split() if self.unit == "words" else t) for t in texts], dtype=torch.float)

    def token_ids(self, tokenizer: Any) -> list[int]:
        end = end_token_id(tokenizer)
        return [] if end is None else [end]

    def _reward(self, lengths: Tensor) -> Tensor:
        short = (self.minimum - lengths).clamp(min=0)
        return -short if self.maximum is None else -short - (lengths - self.maximum).clamp(min=0)

    def _relaxed(self, tokens: RelaxedTokens) -> Tensor:
        if tokens.tokenizer is not self._tokenizer:
            self._table, self._tokenizer = self._lengths_and_end(tokens.tokenizer), tokens.tokenizer
        assert tokens.attention_mask is not None
        generated = tokens.embed(self._table.to(tokens.weights))
        own, end = generated[..., 0], generated[..., 1]
        given = torch.zeros_like(tokens.free) if tokens.given is None else tokens.given
        goes_on = (1 - end.masked_fill(given, 0)).cumprod(-1)
        padding = tokens.attention_mask.cumsum(-1) == 0
        return (goes_on * own.masked_fill(padding, 0)).sum(-1)

    def _lengths_and_end(self, tokenizer: Any) -> Tensor:
        """`(vocabulary, 2)`: what a token adds to the length, and whether it ends the text."""
        texts, end = token_texts(tokenizer), end_token_id(tokenizer)
        if self.unit == "words":  # that begin in the token
            own = [len(re.findall(r"(?<=\s)\S", text)) for text in texts]
        else:
            own = [len(text) for text in texts]
        return torch.tensor([[n, i == end] for i, n in enumerate(own)], dtype=torch.float)
