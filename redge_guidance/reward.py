"""What a reward is: a callable from relaxed tokens, or pixels, to one number a sequence or image. Rewards add up."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from redge_guidance.samples.images import RelaxedImages
from redge_guidance.samples.tokens import RelaxedTokens

AnyReward = Callable[[Any], Tensor]


class Reward:
    """Base of rewards that can be added, scaled, and used outside guidance. A plain callable is a reward too.

    `0.7 * a + 0.3 * b - c` is the `RewardSum` of its terms, c being any callable. What is said here of tokens and texts
    holds of pixels and images as well, for which `ImageReward` is the base.

    Attributes:
        differentiable: False for a reward without gradient, which guidance then climbs by the score function.
        name: what the trace calls it in a sum.
        modality: `"text"`, `"image"`, or None for a reward that takes either: what it is asked about.
    """

    differentiable: bool = True
    modality: str | None = None

    def __call__(self, tokens: Any) -> Tensor:
        """Rewards `(batch,)`, higher is better."""
        raise NotImplementedError

    def score(self, texts: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Rewards `(len(texts),)` of finished texts, on the CPU: what `__call__` gives for the same hard tokens."""
        raise NotImplementedError

    def token_ids(self, tokenizer: Any) -> list[int]:
        """Tokens of the generator that guidance has to consider everywhere, however unlikely they are."""
        return []

    @property
    def name(self) -> str:
        return type(self).__name__

    def __add__(self, other: Any) -> "RewardSum":
        return RewardSum([*_terms(self), *_terms(other)])

    def __radd__(self, other: Any) -> "RewardSum":
        if isinstance(other, int) and other == 0:  # sum([a, b])
            return RewardSum(_terms(self))
        return RewardSum([*_terms(other), *_terms(self)])

    def __sub__(self, other: Any) -> "RewardSum":
        return self + RewardSum(_terms(other)) * -1

    def __rsub__(self, other: Any) -> "RewardSum":
        return other + self * -1  # type: ignore[no-any-return]

    def __neg__(self) -> "RewardSum":
        return self * -1

    def __mul__(self, weight: float) -> "RewardSum":
        if not isinstance(weight, int | float) or isinstance(weight, bool):
            raise TypeError(f"a reward can be multiplied by a number, got {type(weight).__name__}.")
        return RewardSum([replace(term, weight=weight * term.weight) for term in _terms(self)])

    __rmul__ = __mul__


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

    def __call__(self, sample: RelaxedTokens | RelaxedImages) -> Tensor:
        total = torch.zeros(len(sample), device=sample.weights.device)
        for term in self.terms:
            value = checked(evaluate(term.reward, sample), len(sample), term.name).to(total.device)
            sample.notes[term.name] = value.detach().mean()
            if "coverage" in sample.notes:
                sample.notes[f"coverage of {term.name}"] = sample.notes.pop("coverage")
            total = total + term.weight * value
        return total

    @torch.no_grad()
    def score(self, samples: list[str] | Tensor, prompts: list[str] | None = None, batch_size: int = 32) -> Tensor:
        """Rewards `(n,)` of n finished texts, or of pixels `(n, 3, height, width)` and what they are to show."""
        return sum(
            (
                term.weight * value
                for term, value in zip(self.terms, self._scores(samples, prompts, batch_size), strict=True)
            ),
            torch.zeros(len(samples)),
        )

    def normalized(
        self, samples: Sequence[str] | Tensor, prompts: list[str] | None = None, batch_size: int = 32
    ) -> "RewardSum":
        """The same sum with every term divided by its standard deviation over `samples`, such as unguided ones.

        Raises:
            ValueError: fewer than two samples, or a term that is the same for all of them.
        """
        samples = samples if isinstance(samples, Tensor) else list(samples)
        terms = []
        for term, values in zip(self.terms, self._scores(samples, prompts, batch_size), strict=True):
            deviation = float(values.double().std()) if len(values) > 1 else 0.0
            if not deviation > 0:
                raise ValueError(
                    f"`samples` must show how much the term {term.name} varies, got {len(values)} on which it does "
                    "not; pass varied samples, or leave this term out."
                )
            terms.append(replace(term, weight=term.weight / deviation))
        return RewardSum(terms)

    def token_ids(self, tokenizer: Any) -> list[int]:
        return sorted({i for term in self.terms for i in named_tokens(term.reward, tokenizer)})

    def __repr__(self) -> str:
        return " + ".join(f"{term.weight:g} * {term.name}" for term in self.terms)

    @torch.no_grad()
    def _scores(self, samples: list[str] | Tensor, prompts: list[str] | None, batch_size: int) -> list[Tensor]:
        values = []
        for term in self.terms:
            reward: Any = term.reward
            if isinstance(samples, Tensor):
                value = reward.score(samples, prompts) if hasattr(reward, "score") else reward(samples)
                values.append(value.cpu())
            elif hasattr(reward, "score"):
                values.append(reward.score(samples, batch_size=batch_size))
            else:
                raise ValueError(
                    f"the term {term.name} has no `score`, so texts cannot be scored; make it a class derived from "
                    "`Reward`, or a `BlackBoxReward`."
                )
        return values


def _terms(reward: Any) -> list[Term]:
    if isinstance(reward, RewardSum):
        return reward.terms
    if not callable(reward) and not hasattr(reward, "score"):
        raise TypeError(f"a reward can be added to a callable, got {type(reward).__name__}.")
    name = reward.name if isinstance(reward, Reward) else getattr(reward, "__name__", type(reward).__name__)
    return [Term(1.0, reward, name)]


def evaluate(reward: AnyReward, sample: RelaxedTokens | RelaxedImages) -> Tensor:
    """The reward of what it is made for: relaxed tokens, or of images pixels and prompts.

    Raises:
        ValueError: a reward of texts for images, or the other way round.
    """
    found = "image" if isinstance(sample, RelaxedImages) else "text"
    if getattr(reward, "modality", None) not in (None, found):
        raise ValueError(
            f"`reward` {type(reward).__name__} is for {reward.modality}s, and the pipeline makes {found}s."  # type: ignore[attr-defined]
        )
    if isinstance(reward, RewardSum) or not isinstance(sample, RelaxedImages):
        if not callable(reward):
            raise ValueError(f"`reward` must be a callable from RelaxedTokens, got {type(reward).__name__}.")
        return reward(sample)
    if hasattr(reward, "score"):
        score: Tensor = reward.score(sample.pixels, sample.prompts)
        return score
    return reward(sample.pixels)


class ImageReward(Reward):
    """Base of rewards of images: one has to write `score`, which guidance differentiates."""

    modality = "image"

    def score(self, pixels: Tensor, prompts: list[str] | None = None) -> Tensor:
        """Rewards `(batch,)`, higher is better.

        Args:
            pixels: `(batch, 3, height, width)` in [0, 1].
            prompts: what the images are to show, one string each.
        """
        raise NotImplementedError

    def __call__(self, pixels: Tensor) -> Tensor:
        return self.score(pixels)


def split(reward: AnyReward) -> tuple[AnyReward | None, AnyReward | None]:
    """What has a gradient and what has none: `reward = differentiable + black box`, None where there is no such part.

    >>> double = lambda tokens: 2 * tokens.weights.sum()
    >>> split(double) == (double, None)
    True
    """
    if not isinstance(reward, RewardSum):
        return (reward, None) if getattr(reward, "differentiable", True) else (None, reward)
    kinds: tuple[list[Term], list[Term]] = ([], [])
    for term in reward.terms:
        kinds[not getattr(term.reward, "differentiable", True)].append(term)
    smooth, black_box = (RewardSum(terms) if terms else None for terms in kinds)
    return smooth, black_box


def named_tokens(reward: AnyReward, tokenizer: Any) -> list[int]:
    """`reward.token_ids(tokenizer)` of a reward that has the method; none otherwise."""
    ids = getattr(reward, "token_ids", None)
    return [] if ids is None or tokenizer is None else list(ids(tokenizer))


def checked(rewards: Any, batch: int, name: str) -> Tensor:
    """`rewards` if they are `(batch,)`, floating point and finite.

    Raises:
        ValueError: they are not; `name` says whose they are.
    """
    if not isinstance(rewards, Tensor) or not torch.is_floating_point(rewards):
        kind = f"a tensor of {rewards.dtype}" if isinstance(rewards, Tensor) else type(rewards).__name__
        raise ValueError(f"`{name}` must return a floating point tensor, got {kind}.")
    if rewards.shape != (batch,):
        hint = "do not sum or average over the batch" if rewards.ndim == 0 else "return one number a sequence"
        raise ValueError(f"`{name}` must return shape ({batch},), got {tuple(rewards.shape)}; {hint}.")
    if not rewards.isfinite().all():
        raise ValueError(f"`{name}` returned NaN or infinity; make it finite for every sequence.")
    return rewards
