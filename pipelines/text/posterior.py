r"""Uniform diffusion: the two predictions of a clean token, and the evidence bound.

With survival probability alpha, a token x_0 of K becomes `z ~ alpha 1[z = x_0] + (1 - alpha) / K`. A model may predict
x_0 from all positions (denoiser), or from all but the one in question (leave-one-out): what UDLM and Duo train when
they put their prediction into the posterior `q(z_s | z_t, x_0)` in the place of x_0. By Bayes' rule

    denoiser(x_0) ~ leave_one_out(x_0) (1 + K alpha / (1 - alpha) 1[z = x_0])

(arXiv 2605.22765, equation 13), and drawing x_0 from the denoiser and z_s from `q(z_s | z_t, x_0)` is exactly the step
of UDLM (arXiv 2412.10193).
"""

import math

import torch
from torch import Tensor


def denoiser_logits(leave_one_out: Tensor, seen: Tensor, alpha: Tensor | float) -> Tensor:
    """Logits of x_0 given all positions, from those given all but its own.

    Args:
        leave_one_out: `(..., K)` logits.
        seen: `(...)` int64, z, the tokens that are seen at the positions themselves.
        alpha: survival probability in [0, 1], a number or `(...)`; 0 leaves the logits as they are, 1 allows only z.
    """
    return leave_one_out.scatter_add(-1, seen[..., None], _evidence(leave_one_out, seen, alpha))


def leave_one_out_logits(denoiser: Tensor, seen: Tensor, alpha: Tensor | float) -> Tensor:
    """The inverse of `denoiser_logits`, for alpha < 1."""
    return denoiser.scatter_add(-1, seen[..., None], -_evidence(denoiser, seen, alpha))


def _evidence(logits: Tensor, seen: Tensor, alpha: Tensor | float) -> Tensor:
    """`log q(z | x_0 = z) - log q(z | x_0 != z)`, `(..., 1)`."""
    alpha = torch.as_tensor(alpha, dtype=logits.dtype, device=logits.device).expand(seen.shape)
    return torch.log1p(logits.shape[-1] * alpha / (1 - alpha))[..., None]


def elbo_rate(leave_one_out: Tensor, clean: Tensor, seen: Tensor, alpha: Tensor) -> Tensor:
    r"""Integrand of the negative ELBO in continuous time; its mean over t in (0, 1), alpha = 1 - t, is the bound.

    The jump process runs backwards from i to j at rate `x_j / (alpha K x_i)`, where `x = K alpha p + 1 - alpha` for the
    distribution p of x_0: one-hot for the true rate, the model's leave-one-out prediction (y for x) for the other. The
    rate of their Kullback-Leibler divergence (UDLM, arXiv 2412.10193) is, with i the token that is seen,

        1 / (alpha K) [ sum_j (x_j / x_i) log(x_j y_i / (x_i y_j)) - K / x_i + K / y_i ].

    Args:
        leave_one_out: `(..., K)` logits.
        clean: `(...)` int64, x_0.
        seen: `(...)` int64, z.
        alpha: `(...)` in (0, 1).

    Returns:
        `(...)` nats a position and unit of time.
    """
    size = leave_one_out.shape[-1]
    log_p = leave_one_out.log_softmax(-1)
    noise = (1 - alpha).log()
    log_y = torch.logaddexp(log_p + (size * alpha).log()[..., None], noise[..., None])
    log_y_seen, log_y_clean = (log_y.gather(-1, ids[..., None])[..., 0] for ids in (seen, clean))
    log_kept = (size * alpha + 1 - alpha).log()  # log x_j of the clean token; of all others it is `noise`
    log_x_seen = torch.where(seen == clean, log_kept, noise)
    others = (noise - log_x_seen).exp() * (
        (size - 1) * (noise + log_y_seen - log_x_seen) - (log_y.sum(-1) - log_y_clean)
    )
    kept = (log_kept - log_x_seen).exp() * (log_kept + log_y_seen - log_x_seen - log_y_clean)
    balance = math.log(size) - torch.stack([log_x_seen, log_y_seen])
    return (others + kept - balance[0].exp() + balance[1].exp()) / (alpha * size)
