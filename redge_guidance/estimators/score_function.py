"""Estimators for rewards that have no gradient."""

from dataclasses import dataclass

from torch import Tensor

from redge_guidance.estimators.base import ScoreFunction
from redge_guidance.estimators.inputs import check_logits


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
class ReinforceLOO(ScoreFunction):
    """Draws without a gradient, and `reinforce_loo` to make one from their rewards."""

    def gradient(self, logits: Tensor, rewards: Tensor, samples: Tensor) -> Tensor:
        return reinforce_loo(logits, rewards, samples)
