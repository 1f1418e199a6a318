"""Any function of finished texts as a reward."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from redge_guidance.relaxed import RelaxedTokens
from redge_guidance.reward import Reward


class BlackBoxReward(Reward):
    """`r(x) = function(text of x)`: a regular expression, a unit test, an API.

    It has no gradient and pretends none: guidance draws `num_samples` texts, compares each with the mean of the others
    (`reinforce_loo`) and moves towards the tokens of the better ones. Take many samples, 32 or more. Texts that were
    drawn more than once in a call are judged once.

    Args:
        function: from a text to a number, higher is better; or, `batched`, from a list of texts to as many numbers.
        batched: which of the two.
        answer_only: leave the prompt in front out of the texts.
        name: in the trace of a sum; None: the function's.

    Raises:
        ValueError: a function that is not callable. When called: what is no finite number, or not as many.
        RuntimeError: when called, with the text, where the function raises.

    >>> BlackBoxReward(lambda text: text.count("e")).score(["e", "feed"])
    tensor([1., 2.])
    """

    differentiable = False

    def __init__(
        self,
        function: Callable[[Any], Any],
        *,
        batched: bool = False,
        answer_only: bool = False,
        name: str | None = None,
    ):
        if not callable(function):
            raise ValueError(f"`function` must be callable, from a text to a number, got {type(function).__name__}.")
        self.function, self.batched, self.answer_only = function, batched, answer_only
        self._name = str(name or getattr(function, "__name__", type(function).__name__))

    @property
    def name(self) -> str:
        return self._name

    def __call__(self, tokens: RelaxedTokens) -> Tensor:
        texts = tokens.answers() if self.answer_only else tokens.texts()
        return self.score(texts).to(tokens.weights)

    def score(self, texts: list[str], batch_size: int = 32) -> Tensor:
        distinct = list(dict.fromkeys(texts))
        values: list[float] = []
        for first in range(0, len(distinct), batch_size if self.batched else 1):
            part = distinct[first : first + (batch_size if self.batched else 1)]
            values += self._judge(part)
        by_text = dict(zip(distinct, values, strict=True))
        return torch.tensor([by_text[text] for text in texts])

    def _judge(self, texts: list[str]) -> list[float]:
        shown = repr(texts[0]) if len(texts) == 1 else f"{len(texts)} texts, the first {texts[0]!r}"
        try:
            result = self.function(texts) if self.batched else [self.function(texts[0])]
        except Exception as error:
            raise RuntimeError(f"`{self.name}` raised {type(error).__name__}: {error}; on {shown}.") from error
        if isinstance(result, Tensor):
            result = result.tolist()
        if not isinstance(result, Sequence) and not hasattr(result, "__len__"):
            raise ValueError(f"`{self.name}` must return a list of numbers, got {type(result).__name__}, on {shown}.")
        if len(result) != len(texts):
            raise ValueError(f"`{self.name}` must return {len(texts)} numbers, got {len(result)}, on {shown}.")
        return [self._number(value, text) for value, text in zip(result, texts, strict=True)]

    def _number(self, value: Any, text: str) -> float:
        try:
            number = float(value)
        except (TypeError, ValueError, RuntimeError):
            number = math.nan
        if isinstance(value, str) or not math.isfinite(number):
            raise ValueError(f"`{self.name}` must return a finite number, got {value!r}, on {text!r}.")
        return number
