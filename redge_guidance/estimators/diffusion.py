"""Estimators that write a categorical sample as the end of a Gaussian diffusion (arXiv 2601.00781)."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from redge_guidance.checks import as_real, whole_number
from redge_guidance.estimators.base import Pathwise, reinmax_vjp, softmax_vjp

_LOWEST_VARIANCE = 0.1  # of the matched noise of redge_cov


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

    Use it where the reward is far from linear in the sample: its gradient is taken at a sample that has nearly
    decided, not at the mean. It costs `2 num_steps` softmaxes and keeps one number a logit, however many the steps.
    The samples follow softmax(logits) up to a total variation of 0.001 at the defaults, 0.006 at `t1 = 0.5`, 0.041 at
    0.3 and 0.18 at 0.1. With 16 steps it is 0.011 at 0.1; with 2 steps 0.001 at 0.7, 0.016 at 0.5, 0.12 at 0.3 and
    0.54 at 0.1 (the worst that `benchmarks/estimators_distance.py` finds over flat, peaked and random logits, K from
    2 to 300).

    Args:
        logits: `(..., K)`, unnormalised log-probabilities in nats; -inf is a category of probability zero.
        num_steps: n, the number of denoiser evaluations. 1 is `straight_through` exactly.
        t1: the last noise level, in (0, 1]; small is less biased in the gradient and noisier, and needs more steps for
            the samples to follow softmax(logits). Default 0.7; 1 is `straight_through`, the only choice for one step.
        hard: return one-hot samples instead of soft ones.
        generator: source of all randomness; the global one when None.

    Returns:
        `(..., K)`, rows on the simplex, of the dtype of `logits` (computed in float32, float64 for float64 logits).

    Raises:
        ValueError: logits that are integers, NaN, +inf, without categories or with a row of -inf only; settings out of
            range; a generator on another device than theirs and the CPU.

    Source: arXiv 2601.00781, section 3.

    >>> _ = torch.manual_seed(0)
    >>> redge(torch.tensor([[0.0, float("-inf"), 9.0]])).shape
    torch.Size([1, 3])
    """
    return ReDGE(num_steps, t1, hard=hard)(logits, generator)


def reindge(
    logits: Tensor,
    num_steps: int = 4,
    t1: float | None = None,
    hard: bool = True,
    generator: torch.Generator | None = None,
) -> Tensor:
    """`redge` with ReinMax's second-order gradient for the last draw `x_0 ~ Cat(D(x_{t_1}, t_1))`.

    The samples are those of `redge`. Of the gradient, the dependence of D on the logits at fixed `x_{t_1}` gets
    ReinMax's Jacobian `1/2 [diag(D) - D D^T + (d - D)(d - D)^T]`, d the drawn one-hot; the dependence through `x_{t_1}`
    gets that of the softmax, as in `redge`. With `num_steps=1` it is `reinmax` exactly. Costs as much as `redge`.

    Args, returns, raises: as `redge`; `hard=False` is `redge(hard=False)`, there being no draw.

    Source: arXiv 2601.00781, section 3; Liu et al., arXiv 2304.08612, for the Jacobian.

    >>> _ = torch.manual_seed(0)
    >>> reindge(torch.tensor([[0.0, float("-inf"), 9.0]])).sum()
    tensor(1.)
    """
    return ReinDGE(num_steps, t1, hard=hard)(logits, generator)


def redge_cov(
    logits: Tensor,
    num_steps: int = 4,
    t1: float | None = None,
    hard: bool = True,
    generator: torch.Generator | None = None,
) -> Tensor:
    """`redge` with noise matched to `pi = softmax(logits)` in mean and, elementwise, in variance.

    The diffusion starts from `x_1 = pi + sqrt(v) z`, `v = max(pi (1 - pi), 0.1)`, and its denoiser is

        D(x, t) = softmax(logits + (a x - a s pi - a^2 / 2) / (v s^2)),    a = 1 - t, s = t,

    with the DDIM steps of `redge`. The gradient includes that of pi and v.

    Its samples follow softmax(logits) less closely than those of `redge`: up to a total variation of 0.009 at the
    defaults, 0.062 at `t1 = 0.5`, 0.17 at 0.3, 0.23 at 0.1; with 16 steps it is 0.033 at 0.1, and with 2 steps 0.025 at
    0.7, 0.19 at 0.5, 0.6 at 0.3 and 0.86 at 0.1, found as for `redge`. It keeps as little as `redge` and costs more.

    Args, returns, raises: as `redge`.

    Source: arXiv 2601.00781, section 3 (ReDGE-COV).

    >>> _ = torch.manual_seed(0)
    >>> redge_cov(torch.tensor([[0.0, float("-inf"), 9.0]])).shape
    torch.Size([1, 3])
    """
    return ReDGECov(num_steps, t1, hard=hard)(logits, generator)


@dataclass(frozen=True)
class ReDGE(Pathwise):
    """`redge` with its settings. `t1=None` becomes 0.7, or 1 when `num_steps=1`; alpha_t = 1 - t, sigma_t = t."""

    num_steps: int = 4
    t1: float | None = None
    fused: ClassVar[Literal["softmax", "reinmax"] | None] = "softmax"

    def __post_init__(self) -> None:
        super().__post_init__()
        n = whole_number("num_steps", self.num_steps, 1, "4 is the default")
        t1 = (1.0 if n == 1 else 0.7) if self.t1 is None else as_real(self.t1)
        if t1 is None or not 0 < t1 <= 1:
            raise ValueError(f"`t1` must lie in (0, 1], got {self.t1!r}; 0.7 is the default, 1 is straight-through.")
        if n == 1 and t1 < 1:
            raise ValueError(f"`t1` must be 1 when `num_steps=1`, got {t1!r}; leave it out, or take more steps.")
        object.__setattr__(self, "num_steps", n)
        object.__setattr__(self, "t1", float(t1))

    @property
    def grid(self) -> tuple[float, ...]:
        """`(t_1, ..., t_n)`, ascending, `t_n = 1`; `t_1 = 1` needs one denoiser evaluation, whatever `num_steps`."""
        n, t1 = self.num_steps, self.t1
        assert t1 is not None
        return (1.0,) if t1 == 1 else (*(t1 + (1 - t1) * i / (n - 1) for i in range(n - 1)), 1.0)

    @property
    def noise(self) -> Literal["normal"] | None:
        return "normal" if len(self.grid) > 1 else None

    def soft(self, logits: Tensor, noise: Tensor | None) -> Tensor:
        return self._chain(logits, noise, keep=1)[0]

    def vjp(self, logits: Tensor, noise: Tensor | None, drawn: Tensor | None, grad: Tensor) -> Tensor:
        return self._chain_vjp(self._chain(logits, noise, keep=len(self.grid)), grad)

    def _chain(self, logits: Tensor, noise: Tensor | None, keep: int) -> Tensor:
        """The last `keep` (1 or all) of the outputs `D(x_{t_n}, t_n), ..., D(x_{t_1}, t_1)`, and a room to work in.

        In `X_t = x_t / t` and `v_t = (1 - t) / t` a DDIM step is `X_s = X_t + (v_s - v_t) D(x_t, t)`, and the denoiser
        is `softmax(logits + v_t X_t)`. `(keep + 1, rows, K)`, one block: the allocator then hands the same pages to
        every chunk of rows. A chunk is worth its time while it is in the cache: what can be written where something
        was that is not needed any more is.
        """
        block = logits.new_empty(keep + 1, *logits.shape)
        x = block[keep]
        torch.softmax(logits, -1, out=block[0])  # at t = 1 alpha is 0: no noise enters
        x_t, v_t = noise, 0.0
        for k, s in enumerate(reversed(self.grid[:-1])):
            assert x_t is not None
            v_s = (1 - s) / s
            torch.add(x_t, block[k % keep], alpha=v_s - v_t, out=x)
            _softmax_in_place(torch.add(logits, x, alpha=v_s, out=block[(k + 1) % keep]))
            x_t, v_t = x, v_s
        return block

    def _chain_vjp(self, block: Tensor, grad: Tensor, direct: Tensor | None = None) -> Tensor:
        """Gradient of `<grad, D(x_{t_1}, t_1)>` with respect to the logits, walking the DDIM chain backwards.

        `block` is the whole chain as `_chain` gives it, and is used up. `direct`, which is written into, replaces what
        the last softmax sends straight to the logits.
        """
        denoised, grad_x = list(block[:-1]), block[-1]
        v = [(1 - t) / t for t in self.grid]  # t_1 first
        u = _softmax_vjp_in_place(denoised.pop(), grad)
        grad_logits = u if direct is None else direct
        torch.mul(u, v[0], out=grad_x)
        for k in range(1, len(v)):
            u = _softmax_vjp_in_place(denoised.pop(), grad_x)  # of a gradient at D that is v_{k-1} - v_k times as large
            grad_logits.add_(u, alpha=v[k - 1] - v[k])
            if k + 1 < len(v):
                grad_x.add_(u, alpha=v[k] * (v[k - 1] - v[k]))
        return grad_logits


def _softmax_in_place(logits: Tensor) -> Tensor:
    """On a CPU, whose kernel reads each number of a row before it writes it."""
    if logits.device.type == "cpu":
        return torch.softmax(logits, -1, out=logits)
    return logits.copy_(logits.softmax(-1))


def _softmax_vjp_in_place(probs: Tensor, grad: Tensor) -> Tensor:
    """In the place of `probs`, as `_softmax_in_place`."""
    return softmax_vjp(probs, grad, out=probs if probs.device.type == "cpu" else None)


@dataclass(frozen=True)
class ReinDGE(ReDGE):
    """`reindge` with its settings, which are those of `ReDGE`: its chain with ReinMax's Jacobian for the last draw."""

    fused = "reinmax"

    def vjp(self, logits: Tensor, noise: Tensor | None, drawn: Tensor | None, grad: Tensor) -> Tensor:
        block = self._chain(logits, noise, keep=len(self.grid))
        direct = None if drawn is None else reinmax_vjp(block[-2], drawn, grad)
        return self._chain_vjp(block, grad, direct)


@dataclass(frozen=True)
class ReDGECov(ReDGE):
    """`redge_cov` with its settings, which are those of `ReDGE`."""

    def soft(self, logits: Tensor, noise: Tensor | None) -> Tensor:
        return self._matched_chain(logits, noise)[0][-1]

    def _matched_chain(self, logits: Tensor, noise: Tensor | None) -> tuple[list[Tensor], list[Tensor], Tensor]:
        """Denoiser outputs, likelihood terms `(a x - a s pi - a^2 / 2) / (v s^2)` of all steps but the first, and v."""
        pi = logits.softmax(-1)
        variance = (pi * (1 - pi)).clamp(min=_LOWEST_VARIANCE)
        denoised, likelihoods = [pi], []
        x, t = pi if noise is None else torch.addcmul(pi, variance.sqrt(), noise), 1.0
        for s in reversed(self.grid[:-1]):
            x = (x * (s / t)).add_(denoised[-1], alpha=1 - s - s / t * (1 - t))
            a = 1 - s
            likelihoods.append(torch.add(x, pi, alpha=-s).sub_(a / 2).mul_(a / s**2).div_(variance))
            denoised.append((logits + likelihoods[-1]).softmax(-1))
            t = s
        return denoised, likelihoods, variance

    def vjp(self, logits: Tensor, noise: Tensor | None, drawn: Tensor | None, grad: Tensor) -> Tensor:
        denoised, likelihoods, variance = self._matched_chain(logits, noise)
        pi = denoised[0]
        if noise is None:
            return softmax_vjp(pi, grad)
        grad_logits, grad_pi, grad_variance, grad_x = (torch.zeros_like(pi) for _ in range(4))
        for k, t in enumerate(self.grid):  # t_1 first
            if t == 1:  # where D = pi
                grad_pi += grad
                break
            u = softmax_vjp(denoised[-1 - k], grad)
            grad_logits += u
            grad_variance -= u * likelihoods[-1 - k] / variance
            u /= variance
            grad_x.add_(u, alpha=(1 - t) / t**2)
            grad_pi.sub_(u, alpha=(1 - t) / t)
            ratio = t / self.grid[k + 1]
            grad = grad_x * (1 - t - ratio * (1 - self.grid[k + 1]))
            grad_x *= ratio
        grad_pi += grad_x  # x_1 = pi + sqrt(v) noise
        grad_variance += grad_x * noise / (2 * variance.sqrt())
        grad_pi += grad_variance * (1 - 2 * pi) * (variance > _LOWEST_VARIANCE)
        return grad_logits + softmax_vjp(pi, grad_pi)
