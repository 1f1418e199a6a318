"""Estimators that draw from the categorical distribution itself: straight-through, ReinMax, Gumbel, mixtures."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from redge_guidance.estimators.base import Transport, check_logits, reinmax_vjp, sample, softmax_vjp


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
            another device.

    Source: Bengio et al., arXiv 1308.3432; equal to `redge(logits, num_steps=1)`.

    >>> _ = torch.manual_seed(0)
    >>> straight_through(torch.tensor([[0.0, float("-inf"), 9.0]]))
    tensor([[0., 0., 1.]])
    """
    return sample(Transport(), logits, hard, generator)


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
    return sample(_ReinMax(), logits, hard, generator)


def gumbel_softmax(
    logits: Tensor, tau: float = 1.0, hard: bool = True, generator: torch.Generator | None = None
) -> Tensor:
    """Draw `argmax(logits + g)`, g standard Gumbel, with the gradient of `softmax((logits + g) / tau)`.

    The draw is exact whatever tau. A low tau is less biased and noisier. `torch.nn.functional.gumbel_softmax` with a
    generator, hard by default, and with half its memory. Costs two softmaxes and the slowest noise, and keeps one
    number a logit.

    Args:
        tau: temperature, > 0. The others as in `straight_through`; `hard=False` is the relaxed sample.

    Returns:
        `(..., K)` of the dtype of `logits`.

    Raises:
        ValueError: as `straight_through`, and a `tau` out of range.

    Source: Jang et al., arXiv 1611.01144; Maddison et al., arXiv 1611.00712.

    >>> _ = torch.manual_seed(0)
    >>> gumbel_softmax(torch.tensor([[0.0, float("-inf"), 9.0]]))
    tensor([[0., 0., 1.]])
    """
    return sample(_Gumbel(tau), logits, hard, generator)


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
    return sample(_EntropyMix(weight), logits, hard, generator)


def soft(logits: Tensor, hard: bool = True, generator: torch.Generator | None = None) -> Tensor:
    """The expectation `pi = softmax(logits)` itself, with its gradient; nothing is drawn.

    Without noise, and exact for rewards linear in each sample; a reward model that never saw mixed embeddings may
    answer them with anything. `hard` and `generator` are there for the common call shape and change nothing.

    Args, raises: as `straight_through`. Returns `(..., K)` of the dtype of `logits`.

    >>> soft(torch.zeros(2))
    tensor([0.5000, 0.5000])
    """
    return sample(Transport(), logits, False, generator)


def reinforce_loo(logits: Tensor, rewards: Tensor, samples: Tensor) -> Tensor:
    """Gradient of `E_pi[r]` with respect to the logits, from rewards alone: score function, leave-one-out baseline.

        g = 1/n sum_k (r_k - mean of the other rewards) * (x_k - pi),    pi = softmax(logits)

    Unbiased, for rewards without gradient; its variance grows with the number of positions that share a reward, so
    that it needs many draws. It needs no backward pass: draw with `straight_through(logits.expand(n, *logits.shape))`.

    Args:
        logits: `(..., K)`, unnormalised log-probabilities in nats.
        rewards: `(n, ...)`, the reward of every draw, broadcast against the leading shape of the logits; n >= 2.
        samples: `(n, ..., K)`, one-hot draws from `softmax(logits)`.

    Returns:
        `(..., K)`, of the dtype of `logits`. Rows sum to 0.

    Raises:
        ValueError: fewer than two draws, or shapes that do not fit.

    Source: Kool et al., "Buy 4 REINFORCE samples, get a baseline for free!" (2019).

    >>> draws = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    >>> reinforce_loo(torch.zeros(2), torch.tensor([1.0, 0.0]), draws)
    tensor([ 0.5000, -0.5000])
    """
    check_logits(logits, None)
    if samples.shape[1:] != logits.shape or len(samples) < 2:
        raise ValueError(
            f"`samples` must be (n, {', '.join(map(str, logits.shape))}) with n >= 2 draws, got {tuple(samples.shape)}."
        )
    n = len(samples)
    fits = rewards.ndim >= 1 and len(rewards) == n and rewards.ndim < samples.ndim
    if not fits or any(r not in (1, s) for r, s in zip(rewards.shape[1:], samples.shape[1:-1], strict=False)):
        raise ValueError(
            f"`rewards` must be (n, ...) with n = {n} and broadcast to {tuple(samples.shape[:-1])}, "
            f"got {tuple(rewards.shape)}."
        )
    advantage = (rewards - rewards.mean(0, keepdim=True)) * (n / (n - 1))
    advantage = advantage.reshape(*rewards.shape, *[1] * (samples.ndim - rewards.ndim))
    return (advantage * (samples - logits.softmax(-1))).mean(0).to(logits.dtype)


@dataclass(frozen=True)
class StraightThrough:
    """`straight_through`, which has no settings."""

    # Its gradient is the softmax Jacobian times the reward's gradient at the drawn sample, so that the latter can be
    # used without the former.
    differentiates_sample: ClassVar[bool] = True

    def __call__(self, logits: Tensor, *, hard: bool = True, generator: torch.Generator | None = None) -> Tensor:
        return straight_through(logits, hard, generator)


@dataclass(frozen=True)
class ReinMax:
    """`reinmax`, which has no settings."""

    def __call__(self, logits: Tensor, *, hard: bool = True, generator: torch.Generator | None = None) -> Tensor:
        return reinmax(logits, hard, generator)


@dataclass(frozen=True)
class GumbelSoftmax:
    """`gumbel_softmax` with its temperature."""

    tau: float = 1.0

    def __post_init__(self) -> None:
        _Gumbel(self.tau)

    def __call__(self, logits: Tensor, *, hard: bool = True, generator: torch.Generator | None = None) -> Tensor:
        return gumbel_softmax(logits, self.tau, hard, generator)


@dataclass(frozen=True)
class EntropyMix:
    """`entropy_mix` with its weight; None for the entropy (EntRGi), 1 for APS."""

    weight: float | None = None
    differentiates_sample: ClassVar[bool] = True
    one_hot: ClassVar[bool] = False

    def __post_init__(self) -> None:
        _EntropyMix(self.weight)

    def __call__(self, logits: Tensor, *, hard: bool = True, generator: torch.Generator | None = None) -> Tensor:
        return entropy_mix(logits, self.weight, hard, generator)


@dataclass(frozen=True)
class Soft:
    """`soft`, which has no settings."""

    differentiates_sample: ClassVar[bool] = True
    one_hot: ClassVar[bool] = False

    def __call__(self, logits: Tensor, *, hard: bool = True, generator: torch.Generator | None = None) -> Tensor:
        return soft(logits, hard, generator)


@dataclass(frozen=True)
class ReinforceLOO:
    """Draws without a gradient, and `reinforce_loo` to make one from their rewards. For rewards without gradient."""

    def __call__(self, logits: Tensor, *, hard: bool = True, generator: torch.Generator | None = None) -> Tensor:
        return straight_through(logits, hard, generator).detach()

    def gradient(self, logits: Tensor, rewards: Tensor, samples: Tensor) -> Tensor:
        return reinforce_loo(logits, rewards, samples)


class _ReinMax(Transport):
    def vjp(self, logits: Tensor, noise: Tensor | None, drawn: Tensor | None, grad: Tensor) -> Tensor:
        probs = logits.softmax(-1)
        return softmax_vjp(probs, grad) if drawn is None else reinmax_vjp(probs, drawn, grad)


@dataclass(frozen=True)
class _Gumbel(Transport):
    tau: float

    @property
    def noise(self) -> str | None:
        return "exponential"  # g = -log E

    def __post_init__(self) -> None:
        if not isinstance(self.tau, float | int) or not 0 < self.tau < math.inf:
            raise ValueError(f"`tau` must be > 0, got {self.tau!r}; 1.0 is the default.")

    def soft(self, logits: Tensor, noise: Tensor | None) -> Tensor:
        assert noise is not None
        return ((logits - noise.log()) / self.tau).softmax(-1)

    def draw(self, soft: Tensor, uniform: Tensor) -> Tensor:
        return soft.argmax(-1, keepdim=True)

    def vjp(self, logits: Tensor, noise: Tensor | None, drawn: Tensor | None, grad: Tensor) -> Tensor:
        return softmax_vjp(self.soft(logits, noise), grad) / self.tau


@dataclass(frozen=True)
class _EntropyMix(Transport):
    weight: float | None

    def __post_init__(self) -> None:
        if self.weight is not None and not (isinstance(self.weight, float | int) and 0 <= self.weight <= 1):
            raise ValueError(f"`weight` must lie in [0, 1] or be None for the entropy, got {self.weight!r}.")

    def value(self, soft: Tensor, drawn: Tensor) -> Tensor:
        if self.weight is None:
            entropy = torch.special.entr(soft).sum(-1, keepdim=True)
            weight = (entropy / max(math.log(soft.shape[-1]), 1e-9)).clamp(max=1.0)
        else:
            weight = torch.full_like(soft[:, :1], self.weight)
        mixed: Tensor = soft * (1 - weight)
        return mixed.scatter_add_(-1, drawn, weight)
