"""Estimators that draw from the categorical distribution itself: straight-through, ReinMax, Gumbel, mixtures."""

import math
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from redge_guidance.checks import as_real
from redge_guidance.estimators.base import Pathwise, reinmax_vjp, softmax_vjp


def straight_through(logits: Tensor, hard: bool = True, generator: torch.Generator | None = None) -> Tensor:
    """Draw `x_0 ~ Cat(pi)`, `pi = softmax(logits)`, with the gradient of `pi`.

    The cheapest estimator, biased by the curvature of the reward between one-hot vectors: exact for a reward that is
    linear in each sample. Costs two softmaxes.

    Args:
        logits: `(..., K)`, unnormalised log-probabilities in nats; -inf is a category of probability zero.
        hard: return one-hot samples instead of `pi`.
        generator: source of all randomness; the global one when None.

    Returns:
        `(..., K)` of the dtype of `logits`.

    Raises:
        ValueError: logits that are integers, NaN, +inf, without categories or with a row of -inf only; a generator on
            another device than theirs and the CPU.

    Source: Bengio et al., arXiv 1308.3432; equal to `redge(logits, num_steps=1)`.

    >>> _ = torch.manual_seed(0)
    >>> straight_through(torch.tensor([[0.0, float("-inf"), 9.0]]))
    tensor([[0., 0., 1.]])
    """
    return StraightThrough(hard=hard)(logits, generator)


def reinmax(logits: Tensor, hard: bool = True, generator: torch.Generator | None = None) -> Tensor:
    """Draw `x_0 ~ Cat(pi)` with a gradient that is exact for rewards quadratic in the sample.

    Its Jacobian is `1/2 [diag(pi) - pi pi^T + (d - pi)(d - pi)^T]`, d the drawn one-hot: the trapezoidal rule between
    pi and d, where straight-through uses Euler's. Less biased than straight-through on curved rewards and noisier, the
    more so the more categories. Costs two softmaxes.

    Args, returns, raises: as `straight_through`; `hard=False` is `pi` with its own gradient.

    Source: Liu et al., arXiv 2304.08612, equation 7.

    >>> _ = torch.manual_seed(0)
    >>> reinmax(torch.tensor([[0.0, float("-inf"), 9.0]]))
    tensor([[0., 0., 1.]])
    """
    return ReinMax(hard=hard)(logits, generator)


def gumbel_softmax(
    logits: Tensor, tau: float = 1.0, hard: bool = True, generator: torch.Generator | None = None
) -> Tensor:
    """Draw `argmax(logits + g)`, g standard Gumbel, with the gradient of `softmax((logits + g) / tau)`.

    The draw is exact whatever tau, since it is made before the division. A low tau is less biased and noisier; one
    beyond the normal numbers of the dtype counts as the nearest of them. `torch.nn.functional.gumbel_softmax` with a
    generator, hard by default, and with half its memory. Costs two softmaxes and the slowest noise, and keeps one
    number a logit.

    Args:
        tau: temperature, > 0 and finite. The others as in `straight_through`; `hard=False` is the relaxed sample.

    Returns:
        `(..., K)` of the dtype of `logits`.

    Raises:
        ValueError: as `straight_through`, and a `tau` out of range.

    Source: Jang et al., arXiv 1611.01144; Maddison et al., arXiv 1611.00712.

    >>> _ = torch.manual_seed(0)
    >>> gumbel_softmax(torch.tensor([[0.0, float("-inf"), 9.0]]))
    tensor([[0., 0., 1.]])
    """
    return GumbelSoftmax(tau, hard=hard)(logits, generator)


def entropy_mix(
    logits: Tensor, weight: float | None = None, hard: bool = True, generator: torch.Generator | None = None
) -> Tensor:
    """`pi + w (d - pi)`, d a one-hot drawn from `pi = softmax(logits)`, with the gradient of `pi`.

    `w = H(pi) / log K`, the entropy of the position relative to its maximum (EntRGi): where the model is sure its
    expectation is used, where it is not the reward sees a token. A fixed `weight=1` is straight-through (APS), 0 the
    expectation (`soft`). The sample lies inside the simplex unless w is 0 or 1, so that rewards see mixed embeddings.
    Costs two softmaxes and an entropy.

    Args:
        weight: w in [0, 1]; None for the entropy. The others as in `straight_through`; `hard=False` is `pi`.

    Returns:
        `(..., K)`, rows on the simplex, of the dtype of `logits`.

    Raises:
        ValueError: as `straight_through`, and a `weight` out of range.

    Source: arXiv 2602.05000 (EntRGi).

    >>> entropy_mix(torch.zeros(3), weight=0.0)
    tensor([0.3333, 0.3333, 0.3333])
    """
    return EntropyMix(weight, hard=hard)(logits, generator)


def soft(logits: Tensor, hard: bool = True, generator: torch.Generator | None = None) -> Tensor:
    """The expectation `pi = softmax(logits)` itself, with its gradient; nothing is drawn.

    Without noise, and exact for rewards linear in each sample; a reward model that never saw mixed embeddings may
    answer them with anything. `hard` and `generator` are there for the common call shape and change nothing.

    Args, raises: as `straight_through`. Returns `(..., K)` of the dtype of `logits`.

    >>> soft(torch.zeros(2))
    tensor([0.5000, 0.5000])
    """
    return Soft()(logits, generator)


@dataclass(frozen=True)
class StraightThrough(Pathwise):
    """`straight_through`, which has no settings of its own."""

    gradient_at = "sample"


@dataclass(frozen=True)
class ReinMax(Pathwise):
    """`reinmax`, which has no settings of its own."""

    def vjp(self, logits: Tensor, noise: Tensor | None, drawn: Tensor | None, grad: Tensor) -> Tensor:
        probs = logits.softmax(-1)
        return softmax_vjp(probs, grad) if drawn is None else reinmax_vjp(probs, drawn, grad)


@dataclass(frozen=True)
class GumbelSoftmax(Pathwise):
    """`gumbel_softmax` with its temperature."""

    tau: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        tau = as_real(self.tau)
        if tau is None or not 0 < tau < math.inf:
            raise ValueError(f"`tau` must be > 0, got {self.tau!r}; 1.0 is the default.")
        object.__setattr__(self, "tau", tau)

    @property
    def noise(self) -> Literal["exponential"]:
        return "exponential"  # g = -log E

    def soft(self, logits: Tensor, noise: Tensor | None) -> Tensor:
        perturbed = _perturbed(logits, noise)
        # 0 for the largest, so that no temperature overflows there
        return perturbed.sub_(perturbed.amax(-1, keepdim=True)).div_(self._divisor(logits.dtype)).softmax(-1)

    def category(self, logits: Tensor, noise: Tensor | None, soft: Tensor, uniform: Tensor) -> Tensor:
        return _perturbed(logits, noise).argmax(-1, keepdim=True)  # division by a large tau would round it away

    def vjp(self, logits: Tensor, noise: Tensor | None, drawn: Tensor | None, grad: Tensor) -> Tensor:
        largest = torch.finfo(torch.bfloat16).max  # finite in float32 too
        return softmax_vjp(self.soft(logits, noise), grad).div_(self._divisor(logits.dtype)).clamp_(-largest, largest)

    def _divisor(self, dtype: torch.dtype) -> float:
        """tau within the normal numbers of `dtype`."""
        return min(max(self.tau, torch.finfo(dtype).tiny), torch.finfo(dtype).max)


def _perturbed(logits: Tensor, noise: Tensor | None) -> Tensor:
    """`logits + g`, g standard Gumbel, of exponential `noise`; a new tensor."""
    assert noise is not None
    return logits - noise.log()


@dataclass(frozen=True)
class EntropyMix(Pathwise):
    """`entropy_mix` with its weight; None for the entropy (EntRGi), 1 for APS."""

    weight: float | None = None
    gradient_at = "sample"

    def __post_init__(self) -> None:
        super().__post_init__()
        weight = as_real(self.weight)
        if self.weight is not None and (weight is None or not 0 <= weight <= 1):
            raise ValueError(f"`weight` must lie in [0, 1] or be None for the entropy, got {self.weight!r}.")
        object.__setattr__(self, "weight", weight)

    @property
    def one_hot(self) -> bool:
        return False

    def value(self, soft: Tensor, drawn: Tensor) -> Tensor:
        if self.weight is None:
            entropy = torch.special.entr(soft).sum(-1, keepdim=True)
            weight = (entropy / max(math.log(soft.shape[-1]), 1e-9)).clamp(max=1.0)
        else:
            weight = torch.full_like(soft[:, :1], self.weight)
        mixed: Tensor = soft * (1 - weight)
        return mixed.scatter_add_(-1, drawn, weight)


@dataclass(frozen=True)
class Soft(Pathwise):
    """`soft`, which has no settings: `hard` is False."""

    hard: bool = field(default=False, kw_only=True)
    gradient_at = "sample"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.hard:
            raise ValueError("`hard` must be False for Soft, which has no hard samples; use straight_through for them.")
