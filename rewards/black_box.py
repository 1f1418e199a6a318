"""Any function of finished texts or images as a reward."""

from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any

import torch
from torch import Tensor

from redge_guidance.chats import Prompt, key_of
from redge_guidance.evaluation import is_allowed
from redge_guidance.finished import to_judge
from redge_guidance.reward import Reward
from redge_guidance.sample import Sample


class BlackBoxReward(Reward):
    """`r(x) = function(text of x)`: a regular expression, a unit test, an API. Or of an image.

    It has no gradient and pretends none: guidance draws `num_draws` texts, compares each with the mean of the others
    (`reinforce_loo`) and moves towards the tokens of the better ones. Take many samples, 32 or more. Texts that were
    drawn more than once in a call, with the same prompt where the function takes it, are judged once.

    Args:
        function: from a text, or the pixels `(3, height, width)` in [0, 1] of an image, to a number, higher is better;
            or, `batched`, from a list of these to as many numbers.
        batched: which of the two.
        takes_prompt: the function is told what each sample was asked for, `function(text, prompt)`; or, `batched`, a
            list of texts and one of their prompts.
        answer_only: leave the prompt in front out of the texts; None: in a chat it is, elsewhere it is not.
        name: in the trace of a sum; None: the function's.

    Raises:
        ValueError: a function that is not callable. When called: what is no finite number (among particles, and in
            `best_of_n`, -inf or NaN is a sample that is out), or not as many; no prompts for a function that takes
            them.
        RuntimeError: when called, with the text, where the function raises.

    >>> BlackBoxReward(lambda text: text.count("e")).score(["e", "feed"])
    tensor([1., 2.])
    """

    differentiable = False

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        batched: bool = False,
        takes_prompt: bool = False,
        answer_only: bool | None = None,
        name: str | None = None,
    ):
        if not callable(function):
            raise ValueError(f"`function` must be callable, from a text to a number, got {type(function).__name__}.")
        self.function, self.batched = function, batched
        self.takes_prompt, self.answer_only = takes_prompt, answer_only
        self._name = str(name or getattr(function, "__name__", type(function).__name__))

    @property
    def name(self) -> str:
        return self._name

    def __call__(self, sample: Sample) -> Tensor:
        return self.score(sample.finished(self.answer_only), sample.prompts).to(sample.weights)

    def score(self, samples: Any, prompts: Sequence[Prompt] | None = None, batch_size: int = 32) -> Tensor:
        samples, prompts, batch_size = to_judge(samples, prompts, batch_size)
        if self.takes_prompt and prompts is None:
            raise ValueError(
                f"`{self.name}` takes prompts, and there are none; let `score` or the pipeline know the `prompts`, or "
                "leave out `takes_prompt`."
            )
        told: Sequence[Prompt | None] = [None] * len(samples)
        if self.takes_prompt and prompts is not None:
            told = prompts
        if isinstance(samples, Tensor):
            return torch.tensor(self._judge_all(list(zip(samples.detach(), told, strict=True)), batch_size))
        pairs = list(zip(samples, told, strict=True))
        keys = [(text, key_of(prompt)) for text, prompt in pairs]
        distinct = dict(zip(keys, pairs, strict=True))
        values = dict(zip(distinct, self._judge_all(list(distinct.values()), batch_size), strict=True))
        return torch.tensor([values[key] for key in keys])

    def _judge_all(self, pairs: list[tuple[Any, Prompt | None]], batch_size: int) -> list[float]:
        together = batch_size if self.batched else 1
        parts = [pairs[first : first + together] for first in range(0, len(pairs), together)]
        return [value for part in parts for value in self._judge(part)]

    def _judge(self, pairs: list[tuple[Any, Prompt | None]]) -> list[float]:
        """Values of samples with their prompts, by one call of the function."""
        samples, prompts = [sample for sample, _ in pairs], [prompt for _, prompt in pairs]
        first = _shown(samples[0])
        shown = first if len(samples) == 1 else f"{len(samples)} samples, the first {first}"
        told = (list(samples), list(prompts)) if self.takes_prompt else (list(samples),)  # it may change them
        try:
            result = self.function(*told) if self.batched else [self.function(*(one[0] for one in told))]
        except Exception as error:
            raise RuntimeError(f"`{self.name}` raised {type(error).__name__}: {error}; on {shown}.") from error
        return numbers_of(result, samples, self.name)


def numbers_of(result: Any, samples: Sequence[Any], name: str, missing: float | None = None) -> list[float]:
    """What a function has returned for some samples, as plain numbers.

    Args:
        result: a list, an array or a tensor.
        samples: as many.
        name: of the function.
        missing: what None is worth; None: it is an error.

    Raises:
        ValueError: something else, not as many, or not finite, with the sample.
    """
    first = _shown(samples[0])
    shown = first if len(samples) == 1 else f"{len(samples)} samples, the first {first}"
    if isinstance(result, Tensor):
        result = result.tolist()
    unordered = isinstance(result, str | bytes | Mapping | Set)
    if unordered or not (isinstance(result, Sequence) or hasattr(result, "__len__")):
        raise ValueError(f"`{name}` must return a list of numbers, got {type(result).__name__}, on {shown}.")
    if len(result) != len(samples):
        raise ValueError(f"`{name}` must return {len(samples)} numbers, got {len(result)}, on {shown}.")
    pairs = zip(result, samples, strict=True)
    return [missing if value is None and missing is not None else _number(value, one, name) for value, one in pairs]


def _number(value: Any, sample: Any, name: str) -> float:
    number: float | None
    try:
        number = float(value)
    except (TypeError, ValueError, RuntimeError):
        number = None
    if isinstance(value, str) or number is None or not is_allowed(number):
        raise ValueError(f"`{name}` must return a finite number, got {value!r}, on {_shown(sample)}.")
    return number


def _shown(sample: Any) -> str:
    return f"an image of {sample.shape[2]} x {sample.shape[1]}" if isinstance(sample, Tensor) else repr(sample)
