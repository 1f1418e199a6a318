"""Any function of finished texts or images as a reward."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from redge_guidance.reward import Reward
from redge_guidance.samples.tokens import RelaxedTokens


class BlackBoxReward(Reward):
    """`r(x) = function(text of x)`: a regular expression, a unit test, an API. Or of an image.

    It has no gradient and pretends none: guidance draws `num_samples` texts, compares each with the mean of the others
    (`reinforce_loo`) and moves towards the tokens of the better ones. Take many samples, 32 or more. Texts that were
    drawn more than once in a call are judged once.

    Args:
        function: from a text, or the pixels `(3, height, width)` in [0, 1] of an image, to a number, higher is better;
            or, `batched`, from a list of these to as many numbers.
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

    def __call__(self, tokens: RelaxedTokens | Tensor) -> Tensor:
        """Rewards `(batch,)` of relaxed texts, or of pixels `(batch, 3, height, width)`."""
        if isinstance(tokens, Tensor):
            return self.score(tokens)
        texts = tokens.answers() if self.answer_only else tokens.texts()
        return self.score(texts).to(tokens.weights)

    def score(self, texts: list[str] | Tensor, prompts: list[str] | None = None, batch_size: int = 32) -> Tensor:
        if isinstance(texts, Tensor):
            values = self._judge_all(list(texts.detach()), batch_size)
            return torch.tensor(values).to(texts)
        distinct = list(dict.fromkeys(texts))
        by_text = dict(zip(distinct, self._judge_all(distinct, batch_size), strict=True))
        return torch.tensor([by_text[text] for text in texts])

    def _judge_all(self, samples: list[Any], batch_size: int) -> list[float]:
        together = batch_size if self.batched else 1
        parts = [samples[first : first + together] for first in range(0, len(samples), together)]
        return [value for part in parts for value in self._judge(part)]

    def _judge(self, texts: list[Any]) -> list[float]:
        first = _shown(texts[0])
        shown = first if len(texts) == 1 else f"{len(texts)} samples, the first {first}"
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

    def _number(self, value: Any, text: Any) -> float:
        try:
            number = float(value)
        except (TypeError, ValueError, RuntimeError):
            number = math.nan
        if isinstance(value, str) or not math.isfinite(number):
            raise ValueError(f"`{self.name}` must return a finite number, got {value!r}, on {_shown(text)}.")
        return number


def _shown(sample: Any) -> str:
    return f"an image of {sample.shape[2]} x {sample.shape[1]}" if isinstance(sample, Tensor) else repr(sample)
