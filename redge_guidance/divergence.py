"""How far q is from p, and the path from p along a slope; row by row, in nats."""

import torch
from torch import Tensor


def path(log_p: Tensor, slope: Tensor, s: Tensor, limit: float | None) -> Tensor:
    """`log p + s * slope`, not normalised, a new tensor; with a limit `log p + min(s * (slope - <p, slope>), limit)`.

    To first order a token is worth what it adds to the reward, however much that is. A reward that has an upper end is
    not raised without end, and the more a token promises, the further it is from where the slope was taken: a limit
    makes all tokens alike that promise enough.

    Args:
        log_p: `(rows, S)`, normalised, in nats.
        slope: `(rows, S)`, units of reward.
        s: `(rows, 1)`, nats a unit of reward.
        limit: nats, > 0.
    """
    if limit is None:
        return torch.addcmul(log_p, slope, s)
    mean = (log_p.exp() * slope).sum(-1, keepdim=True)
    return tilt_along(slope - mean, s, limit).add_(log_p)


def tilt_along(centred: Tensor, s: Tensor, limit: float | None) -> Tensor:
    """`min(s * centred, limit)`, a new tensor, `(rows, S)` as the slope, whose mean under p is 0; s is `(rows, 1)`."""
    tilt = centred * s
    if limit is not None:
        tilt.clamp_(max=min(limit, torch.finfo(tilt.dtype).max))  # clamp takes no number beyond it
    return tilt


def log_ratio(log_q: Tensor, log_p: Tensor) -> Tensor:
    """`log q - log p`, 0 where both are -inf."""
    return (log_q - log_p).masked_fill(log_q == -torch.inf, 0.0)


def kl(log_q: Tensor, log_p: Tensor) -> Tensor:
    """`KL(q || p) = sum_v q(v) (log q(v) - log p(v))` in nats; `(..., S)` to `(...)`. Where q is 0 the term is 0.

    >>> kl(torch.tensor([0.0, float("-inf")]), torch.tensor([0.5, 0.5]).log())
    tensor(0.6931)
    """
    return (log_q.exp() * log_ratio(log_q, log_p)).sum(-1)


def kl_gradient(log_q: Tensor, log_p: Tensor) -> Tensor:
    """Gradient of KL(q || p) with respect to the logits of q: `q (log q - log p - KL)`; `(..., S)` to `(..., S)`."""
    return log_q.exp() * (log_ratio(log_q, log_p) - kl(log_q, log_p)[..., None])
