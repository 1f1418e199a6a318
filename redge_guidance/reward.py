"""What a reward is: a callable from a relaxed sample to one number a sequence or image. Rewards add up."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from redge_guidance import usual
from redge_guidance.accepting import as_reward
from redge_guidance.chats import Prompt
from redge_guidance.checks import as_real
from redge_guidance.constraints.constraint import Constrained, Constraint
from redge_guidance.constraints.valued import Valued
from redge_guidance.evaluation import checked, name_of, of_pixels
from redge_guidance.finished import to_judge
from redge_guidance.recipe import Noted
from redge_guidance.sample import Sample

AnyReward = Callable[[Any], Tensor]
Wanted = AnyReward | Constraint | Constrained  # what `guide` takes


class Reward(Noted):
    """Base of rewards that can be added, scaled, and used outside guidance. A plain callable is a reward too.

    `0.7 * a + 0.3 * b - c` is the `RewardSum` of its terms, c being any callable.

    Attributes:
        differentiable: False for a reward without gradient, which guidance then climbs by the score function.
        name: what the trace calls it in a sum.
        highest: the most that it can be, as 0 of a log-probability, which no target may be above; None: not known.
        modality: `"text"`, `"image"`, or None for a reward that takes either: what it is asked about.
        answer_only: whether the prompt in front is left out of what is judged; None: in a chat it is, elsewhere not.
        whole_batch: True for a reward that knows the sequences of a batch by their place, as one with a target for each
            of them; it is asked about all of them then, also where guidance of some has stopped.
    """

    differentiable: bool = True
    highest: float | None = None
    modality: str | None = None
    answer_only: bool | None = None
    whole_batch: bool = False

    def __call__(self, sample: Any) -> Tensor:
        """Rewards `(batch,)` of relaxed samples, higher is better."""
        raise NotImplementedError

    def score(self, samples: Any, prompts: Sequence[Prompt] | None = None, batch_size: int = 32) -> Tensor:
        """Rewards `(n,)` of n finished samples, on the CPU: what `__call__` gives for the same hard tokens.

        Args:
            samples: n strings, or pixels `(n, 3, height, width)` in [0, 1]; a single string, or pixels
                `(3, height, width)`, is one sample. In a chat they are the answers, without the conversation.
            prompts: what each of them was asked for, a text or a list of messages; None: not known.
            batch_size: samples that are judged together, >= 1.

        Raises:
            NotImplementedError: a reward that has only `__call__`, which needs the generator's tokens.
        """
        raise NotImplementedError(
            f"{self.name} does not score finished samples; write `score(self, samples, prompts=None, batch_size=32)` "
            "in the class, which gives the reward of strings, or of pixels."
        )

    def reached(self, samples: Any, prompts: Sequence[Prompt] | None = None) -> list[bool] | None:
        """Which finished samples are as they should be; None where there is no yes or no to it."""
        return None

    def token_ids(self, tokenizer: Any) -> list[int]:
        """Tokens of the generator that guidance has to consider everywhere, however unlikely they are."""
        return []

    @property
    def usual_target(self) -> float | None:
        """What a good sample is worth, which guidance aims at unless told otherwise; None: not known.

        A class says it by a number, `usual_target = 0.9`.
        """
        return None

    @property
    def usual_scale(self) -> float | None:
        """The most nats that a unit of it is worth where neither scale nor budget is set; None: what a budget buys.

        A reward says it that is itself in nats.
        """
        return None

    def valued(self) -> list[Valued]:
        """The same reward as automata, which guidance follows exactly, without a gradient; none: it is not one."""
        return []

    @property
    def name(self) -> str:
        return type(self).__name__

    def __and__(self, other: Any) -> Constrained:
        if not isinstance(other, Constraint):
            raise TypeError(f"`&` joins a reward and a constraint, got {type(other).__name__}; add rewards up by `+`.")
        return Constrained(self, other)

    def __add__(self, other: Any) -> "RewardSum":
        return RewardSum([*_terms(self), *_terms(other)])

    def __radd__(self, other: Any) -> "RewardSum":
        if isinstance(other, int) and other == 0:  # sum([a, b])
            return RewardSum(_terms(self))
        return RewardSum([*_terms(other), *_terms(self)])

    def __sub__(self, other: Any) -> "RewardSum":
        return self + RewardSum(_terms(other)) * -1

    def __rsub__(self, other: Any) -> "RewardSum":
        return RewardSum(_terms(other)) + self * -1

    def __neg__(self) -> "RewardSum":
        return self * -1

    def __mul__(self, weight: float) -> "RewardSum":
        factor = as_real(weight)
        if factor is None:
            raise TypeError(f"a reward can be multiplied by a number, got {type(weight).__name__}.")
        if not abs(factor) < float("inf"):
            raise ValueError(f"a reward can be multiplied by a finite number, got {factor}.")
        return RewardSum([replace(term, weight=factor * term.weight) for term in _terms(self)])

    __rmul__ = __mul__
    __array_ufunc__ = None  # so that a number of NumPy's leaves its product to `__rmul__`


class ImageReward(Reward):
    """Base of rewards of images: one has to write `of_pixels`, which guidance differentiates."""

    modality = "image"

    def of_pixels(self, pixels: Tensor, prompts: Sequence[Prompt] | None = None) -> Tensor:
        """Rewards `(batch,)`, higher is better, differentiable in the pixels.

        Args:
            pixels: `(batch, 3, height, width)` in [0, 1].
            prompts: what the images are to show, one string each.
        """
        raise NotImplementedError

    def __call__(self, sample: Any) -> Tensor:
        return self.of_pixels(sample.pixels, sample.prompts)

    @torch.no_grad()
    def score(self, samples: Tensor, prompts: Sequence[Prompt] | None = None, batch_size: int = 32) -> Tensor:
        samples, prompts, batch_size = to_judge(samples, prompts, batch_size)
        values = []
        for first in range(0, len(samples), batch_size):
            rows = slice(first, first + batch_size)
            values.append(self.of_pixels(samples[rows], None if prompts is None else prompts[rows]).float().cpu())
        return torch.cat(values) if values else torch.zeros(0)


@dataclass(frozen=True)
class Term:
    """One term of a sum: `weight * reward`, called `name` in the trace."""

    weight: float
    reward: AnyReward
    name: str


class RewardSum(Reward):
    """`r(x) = sum_k weight_k * r_k(x)`, as made by adding rewards up.

    The unweighted mean of every term is kept in the trace, `handle.trace[i].notes`, under the name of the term; so is,
    for a model with another tokenizer than the generator's, `"coverage of NAME"`.

    Args:
        terms: `Term`s; where two have one name, the later ones get a number, as in `"fluency_2"`.

    Raises:
        ValueError: no terms. When called: a term whose value has the wrong shape, or is NaN or infinite.
    """

    def __init__(self, terms: Iterable[Term]):
        self.terms: list[Term] = []
        for term in terms:
            taken = {t.name for t in self.terms}
            names = (term.name, *(f"{term.name}_{k}" for k in range(2, len(taken) + 2)))
            self.terms.append(replace(term, name=next(name for name in names if name not in taken)))
        if not self.terms:
            raise ValueError("`terms` must name at least one reward, got none.")

    def __call__(self, sample: Sample) -> Tensor:
        return self.total(self.values(sample))

    def values(self, sample: Sample) -> list[Tensor]:
        """Of every term, without its weight, `(batch,)` each."""
        values = []
        for term in self.terms:
            value = checked(sample.evaluate(term.reward), len(sample), term.name).to(sample.weights.device)
            sample.notes[term.name] = value.detach().mean()
            if "coverage" in sample.notes:
                sample.notes[f"coverage of {term.name}"] = sample.notes.pop("coverage")
            values.append(value)
        return values

    def total(self, values: Sequence[Tensor]) -> Tensor:
        """`sum_k weight_k values_k`, `(batch,)`."""
        total = torch.zeros_like(values[0], dtype=torch.float32)
        for term, value in zip(self.terms, values, strict=True):
            total = total + term.weight * value
        return total

    @torch.no_grad()
    def score(self, samples: Any, prompts: Sequence[Prompt] | None = None, batch_size: int = 32) -> Tensor:
        samples, prompts, batch_size = to_judge(samples, prompts, batch_size)
        total = torch.zeros(len(samples))
        for term in self.terms:
            total += term.weight * self._score(term, samples, prompts, batch_size)
        return total

    def reached(self, samples: Any, prompts: Sequence[Prompt] | None = None) -> list[bool] | None:
        """Which samples are as every term with a yes or no wants them; a negative weight wants the opposite."""
        known = []
        for term in self.terms:
            found = term.reward.reached(samples, prompts) if isinstance(term.reward, Reward) else None
            if found is not None and term.weight != 0:
                known.append([yes == (term.weight > 0) for yes in found])
        return [all(answers) for answers in zip(*known, strict=True)] if known else None

    def normalized(self, samples: Any, prompts: Sequence[Prompt] | None = None, batch_size: int = 32) -> "RewardSum":
        """The same sum with every term divided by its standard deviation over `samples`, such as unguided ones.

        Raises:
            ValueError: fewer than two samples, or a term that is the same for all of them.
        """
        terms = []
        for term in self.terms:
            values = self._score(term, samples, prompts, batch_size)
            deviation = float(values.double().std()) if len(values) > 1 else 0.0
            if not deviation > 0:
                raise ValueError(
                    f"`samples` must show how much the term {term.name} varies, got {len(values)} on which it does "
                    "not; pass varied samples, or leave this term out."
                )
            terms.append(replace(term, weight=term.weight / deviation))
        return RewardSum(terms)

    @property
    def usual_target(self) -> float | None:
        """`sum_k weight_k target_k`; None where a term names none, or is to be low."""
        return usual.target_of(self.terms)

    @property
    def usual_scale(self) -> float | None:
        """That of its terms, each divided by its weight, where all name one: the least."""
        return usual.scale_of(self.terms)

    def token_ids(self, tokenizer: Any) -> list[int]:
        return sorted({i for term in self.terms for i in named_tokens(term.reward, tokenizer)})

    def __repr__(self) -> str:
        return " + ".join(f"{term.weight:g} * {term.name}" for term in self.terms)

    @torch.no_grad()
    def _score(self, term: Term, samples: Any, prompts: Sequence[Prompt] | None, batch_size: int) -> Tensor:
        if isinstance(term.reward, Reward):
            value = term.reward.score(samples, prompts, batch_size)
        elif not isinstance(samples, Tensor) and callable(asked := getattr(term.reward, "score", None)):
            value = torch.as_tensor(asked(samples, prompts), dtype=torch.float)
        elif not isinstance(samples, Tensor):  # a plain callable needs the tokens
            raise ValueError(
                f"the term {term.name} has no `score`, so texts cannot be scored; make it a class derived from "
                "`Reward`, or a `BlackBoxReward`."
            )
        else:
            value = of_pixels(term.reward, samples, prompts)
        return checked(value, len(samples), term.name).cpu()


def named_tokens(reward: AnyReward, tokenizer: Any) -> list[int]:
    """`reward.token_ids(tokenizer)` of a reward that has the method; none otherwise."""
    ids = getattr(reward, "token_ids", None)
    return [] if ids is None or tokenizer is None else list(ids(tokenizer))


def _terms(reward: Any) -> list[Term]:
    if isinstance(reward, RewardSum):
        return reward.terms
    if not callable(reward) and not hasattr(reward, "score"):
        hint = (
            "; constraints come last, as `(reward + other) & constraint`"
            if isinstance(reward, Constraint | Constrained)
            else ""
        )
        raise TypeError(f"a reward can be added to a callable, got {type(reward).__name__}{hint}.")
    found = as_reward(reward)
    return [Term(1.0, found, name_of(found))]
