"""Gradient estimators: logits in, differentiable one-hot sample out.

Every estimator has the call shape of `torch.nn.functional.gumbel_softmax` without the temperature,
`(logits, ..., hard=True, generator=None) -> sample`, and treats the last dimension as the categories. The function and
the frozen dataclass of the same name do the same; the dataclass carries its settings, `ESTIMATORS` finds it by name.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_CHUNK_ELEMENTS = 2**20  # rows are worked through in chunks of about this many numbers, which stay in the cache


class Estimator(Protocol):
    """Anything that draws a differentiable one-hot sample from logits `(..., K)`."""

    def __call__(self, logits: Tensor, *, hard: bool = True, generator: torch.Generator | None = None) -> Tensor: ...


def redge(
    logits: Tensor,
    num_steps: int = 4,
    t1: float | None = None,
    hard: bool = True,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Sample `x_0 ~ Cat(softmax(logits))` as the end of a Gaussian diffusion that is differentiable in the logits.

    With `x_t = (1 - t) x_0 + t z`, `z ~ N(0, I)`, the denoiser is known in closed form,

        D(x, t) = E[x_0 | x_t = x] = softmax(logits + (1 - t) / t^2 * x),

    and deterministic DDIM steps `x_s = (1 - s) D + (s / t) (x_t - (1 - t) D)` lead from `x_1 = z` along the evenly
    spaced grid `1 = t_n > ... > t_1` to the soft sample `D(x_{t_1}, t_1)`. The hard sample is a one-hot drawn from the
    soft one, with the gradient of the soft one (straight-through).

    Args:
        logits: `(..., K)`, unnormalised log-probabilities in nats; -inf is a category of probability zero.
        num_steps: n, the number of denoiser evaluations. 1 is `straight_through` exactly.
        t1: the last noise level, in (0, 1); small is less biased in the gradient and noisier, and needs more steps for
            the samples to follow softmax(logits). Default 0.7; with `num_steps=1` it is 1, and nothing else.
        hard: return one-hot samples instead of soft ones.
        generator: source of all randomness; the global one when None.

    Returns:
        `(..., K)`, rows on the simplex, of the dtype of `logits` (computed in float32, float64 for float64 logits).

    Raises:
        ValueError: integer logits, no categories, or settings out of range.

    Source: arXiv 2601.00781, section 3.

    >>> _ = torch.manual_seed(0)
    >>> redge(torch.tensor([[0.0, float("-inf"), 9.0]])).shape
    torch.Size([1, 3])
    """
    grid = _time_grid(num_steps, t1)
    _check_logits(logits)
    sample: Tensor = _DiffusionSample.apply(logits, grid, hard, generator)
    return sample


def straight_through(logits: Tensor, hard: bool = True, generator: torch.Generator | None = None) -> Tensor:
    """Draw `x_0 ~ Cat(pi)`, `pi = softmax(logits)`, with the gradient of `pi`.

    The cheapest estimator, biased by the curvature of the reward between one-hot vectors. `hard=False` returns `pi`.

    Args:
        logits: `(..., K)`, unnormalised log-probabilities in nats; -inf is a category of probability zero.
        hard: return one-hot samples instead of `pi`.
        generator: source of all randomness; the global one when None.

    Returns:
        `(..., K)` of the dtype of `logits`.

    Raises:
        ValueError: integer logits or no categories.

    Source: Bengio et al., arXiv 1308.3432; equal to `redge(logits, num_steps=1)`.

    >>> _ = torch.manual_seed(0)
    >>> straight_through(torch.tensor([[0.0, float("-inf"), 9.0]]))
    tensor([[0., 0., 1.]])
    """
    return redge(logits, num_steps=1, hard=hard, generator=generator)


@dataclass(frozen=True)
class ReDGE:
    """`redge` with its settings. `t1=None` becomes 0.7, or 1 when `num_steps=1`."""

    num_steps: int = 4
    t1: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "t1", _time_grid(self.num_steps, self.t1)[0])

    def __call__(self, logits: Tensor, *, hard: bool = True, generator: torch.Generator | None = None) -> Tensor:
        return redge(logits, self.num_steps, self.t1, hard, generator)


@dataclass(frozen=True)
class StraightThrough:
    """`straight_through`, which has no settings."""

    # Its gradient is the softmax Jacobian times the reward's gradient at the drawn sample, so that the latter can be
    # used without the former.
    differentiates_sample: ClassVar[bool] = True

    def __call__(self, logits: Tensor, *, hard: bool = True, generator: torch.Generator | None = None) -> Tensor:
        return straight_through(logits, hard, generator)


ESTIMATORS: dict[str, Any] = {"redge": ReDGE, "straight_through": StraightThrough}


def _time_grid(num_steps: int, t1: float | None) -> tuple[float, ...]:
    """`(t_1, ..., t_n)`, ascending, `t_n = 1`."""
    if not isinstance(num_steps, int) or isinstance(num_steps, bool) or num_steps < 1:
        raise ValueError(f"`num_steps` must be an integer >= 1, got {num_steps!r}; 4 is the default.")
    if num_steps == 1:
        if t1 not in (None, 1):
            raise ValueError(f"`t1` must be 1 when `num_steps=1`, got {t1!r}; leave it out, or take more steps.")
        return (1.0,)
    t1 = 0.7 if t1 is None else t1
    if not isinstance(t1, float | int) or not 0 < t1 < 1:
        raise ValueError(f"`t1` must lie in (0, 1) when `num_steps` > 1, got {t1!r}; 0.7 is the default.")
    return (*(float(t1 + (1 - t1) * i / (num_steps - 1)) for i in range(num_steps - 1)), 1.0)


def _check_logits(logits: Tensor) -> None:
    if not torch.is_floating_point(logits):
        raise ValueError(f"`logits` must be a floating point tensor, got {logits.dtype}; convert it with `.float()`.")
    if logits.ndim == 0 or logits.shape[-1] == 0:
        raise ValueError(f"`logits` must be (..., K) with K >= 1 categories, got shape {tuple(logits.shape)}.")


class _DiffusionSample(torch.autograd.Function):
    """Forward: the DDIM chain of `redge`, then a draw. Backward: the chain's vector-Jacobian product in closed form.

    Only the logits and the starting noise are kept. The backward recomputes the denoiser outputs chunk by chunk, so
    that memory does not grow with the number of steps.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, grid: tuple[float, ...], hard: bool, generator: Any) -> Tensor:
        flat = logits.detach().reshape(-1, logits.shape[-1])
        random: dict[str, Any] = {"generator": generator, "device": flat.device, "dtype": _work_dtype(flat)}
        noise = torch.randn(flat.shape, **random) if len(grid) > 1 else None
        uniform = torch.rand(len(flat), 1, **random) if hard else None
        sample = torch.empty_like(flat)
        for rows in _chunks(flat):
            soft = _denoise(flat[rows].to(_work_dtype(flat)), None if noise is None else noise[rows], grid)[-1]
            sample[rows] = (soft if uniform is None else _one_hot_at(soft, uniform[rows])).to(flat.dtype)
        ctx.save_for_backward(logits, noise)
        ctx.grid = grid
        return sample.view(logits.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_sample: Tensor) -> tuple[Tensor, None, None, None]:
        logits, noise = ctx.saved_tensors
        flat, grad_flat = (x.detach().reshape(-1, logits.shape[-1]) for x in (logits, grad_sample))
        grad_logits = torch.empty_like(flat)
        for rows in _chunks(flat):
            work = flat[rows].to(_work_dtype(flat))
            denoised = _denoise(work, None if noise is None else noise[rows], ctx.grid)
            grad_logits[rows] = _chain_vjp(denoised, ctx.grid, grad_flat[rows].to(work.dtype)).to(flat.dtype)
        return grad_logits.view(logits.shape), None, None, None


def _work_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _chunks(flat: Tensor) -> Iterator[slice]:
    size = max(1, _CHUNK_ELEMENTS // flat.shape[1])
    return (slice(i, i + size) for i in range(0, len(flat), size))


def _denoise(logits: Tensor, noise: Tensor | None, grid: tuple[float, ...]) -> list[Tensor]:
    """Denoiser outputs `[D(x_{t_n}, t_n), ..., D(x_{t_1}, t_1)]`, each `(rows, K)`; alpha_t = 1 - t, sigma_t = t."""
    denoised = [logits.softmax(-1)]  # at t = 1 alpha is 0: no noise enters
    if noise is None:
        return denoised
    x, t = noise, 1.0
    for s in reversed(grid[:-1]):
        x = (1 - s) * denoised[-1] + (s / t) * (x - (1 - t) * denoised[-1])
        denoised.append((logits + (1 - s) / s**2 * x).softmax(-1))
        t = s
    return denoised


def _chain_vjp(denoised: list[Tensor], grid: tuple[float, ...], grad: Tensor) -> Tensor:
    """Gradient with respect to the logits of `<grad, denoised[-1]>`, walking the DDIM chain backwards.

    A softmax D has the VJP `v -> D * (v - <D, v>)`; at t its input is `logits + c_t x_t` with `c_t = (1 - t) / t^2`.
    """
    grad_logits = torch.zeros_like(grad)
    grad_x = torch.zeros_like(grad)
    for k, t in enumerate(grid):  # t_1 first
        d = denoised[len(grid) - 1 - k]
        u = d * (grad - (d * grad).sum(-1, keepdim=True))
        grad_logits += u
        if t == 1:
            break
        grad_x = grad_x + (1 - t) / t**2 * u
        ratio = t / grid[k + 1]  # x_t = (1 - t - ratio (1 - t')) D(x_t', t') + ratio x_t', t' the time before
        grad = (1 - t - ratio * (1 - grid[k + 1])) * grad_x
        grad_x = ratio * grad_x
    return grad_logits


def _one_hot_at(probs: Tensor, uniform: Tensor) -> Tensor:
    """One-hot draws `(rows, K)` by inverse cumulative sum at `uniform` `(rows, 1)`; probability 0 is never drawn."""
    cumulative = probs.cumsum(-1)
    total = cumulative[:, -1:]
    below_total = torch.nextafter(total, torch.zeros_like(total))
    index = torch.searchsorted(cumulative, torch.minimum(uniform * total, below_total), right=True)
    return torch.zeros_like(probs).scatter_(-1, index, 1.0)
