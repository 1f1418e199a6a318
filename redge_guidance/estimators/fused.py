"""`redge` and `reindge` on a CUDA device: a draw and its gradient in one kernel each, without arrays in between.

Kept for the gradient are the logits, n + 1 numbers a row, the drawn ids and the seed of the noise, which is drawn anew
wherever it is needed. The kernels are used for float32, float16 and bfloat16 tensors of some size, with Triton, and
with the generator on the device; all else is `sampling`'s.
"""

import warnings
from functools import lru_cache
from importlib.util import find_spec
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

SMALLEST, SHORTEST_ROW = 2**16, 2**10  # numbers; below, a kernel is not worth its launch
MOST_STEPS = 6  # the gradient holds n (n + 1) / 2 sums
LEAST_T1 = 0.2  # exponentials stay within float32
BLOCK, WARPS = 1024, 8  # categories at a time, by 32 times as many threads: of a draw
GRADIENT_BLOCK, GRADIENT_WARPS = 512, 4  # of a gradient, which needs more registers
STORED = False  # noise as float16 numbers that are kept, instead of a seed: within 4 % of each other on an H200


class Settings(NamedTuple):
    """n, the last level, whether a category is drawn, and whether its Jacobian is ReinMax's."""

    steps: int
    t1: float
    hard: bool
    reinmax: bool


class Kept(NamedTuple):
    """What the gradient needs beside the logits: the seed `(1,)`, noise `(rows, K)` or `(0,)`, and of every row the
    state `(m, S_1, ..., S_n)` and the drawn id `(rows,)`, `(0,)` of soft samples."""

    seed: Tensor
    noise: Tensor
    state: Tensor
    drawn: Tensor


def settings_of(estimator: Any, logits: Tensor, generator: Any) -> Settings | None:
    """How the kernels do what this estimator does to these logits; None where they do not."""
    jacobian = vars(type(estimator)).get("fused")  # not inherited: a subclass may override the mathematics
    if (
        jacobian is None
        or not logits.is_cuda
        or type(logits) not in (Tensor, torch.nn.Parameter)
        or logits.dtype not in (torch.float32, torch.float16, torch.bfloat16)
        or logits.numel() < SMALLEST
        or logits.shape[-1] < SHORTEST_ROW
        or not 1 < len(estimator.grid) <= MOST_STEPS
        or estimator.grid[0] < LEAST_T1
        or not _on_device(generator, logits.device)
        or torch.compiler.is_compiling()
        or torch._C._are_functorch_transforms_active()
        or not _runs(logits.device)
    ):
        return None
    return Settings(len(estimator.grid), estimator.grid[0], estimator.hard, jacobian == "reinmax")


def _on_device(generator: Any, device: torch.device) -> bool:
    """Not where rows have generators of their own: a kernel has one seed for all."""
    if not isinstance(generator, torch.Generator):
        return generator is None
    return generator.device.type == "cuda" and generator.device.index in (None, device.index)


def randomness(flat: Tensor, generator: torch.Generator | None, stored: bool | None = None) -> tuple[Tensor, Tensor]:
    """A seed `(1,)` on the device of `flat`, where it stays, and noise `(rows, K)` if it is `stored`, else `(0,)`."""
    seed = torch.randint(2**62, (1,), generator=generator, device=flat.device)
    shape = flat.shape if (STORED if stored is None else stored) else (0,)
    return seed, torch.empty(shape, dtype=torch.half, device=flat.device).normal_(generator=generator)


def draw(flat: Tensor, settings: Settings, seed: Tensor, noise: Tensor) -> tuple[Tensor, Kept]:
    """The soft sample of contiguous logits `flat` `(rows, K)`, `(0,)` if a category is drawn, and what is kept.

    A row without a finite sum of exponentials has 0, NaN or infinity in `Kept.state`, and any id.
    """
    rows, categories = flat.shape
    device, n = flat.device, settings.steps
    state = torch.empty(rows, n + 1, dtype=torch.float32, device=device)
    drawn = torch.empty(rows if settings.hard else 0, dtype=torch.long, device=device)
    soft = torch.empty((0,) if settings.hard else flat.shape, dtype=flat.dtype, device=device)
    with torch.cuda.device_of(flat):
        _kernels().draw[(rows,)](
            flat, noise, seed, state, drawn, soft, settings.t1,
            K=categories, STEPS=n, HARD=settings.hard, STORED=noise.numel() > 0, BLOCK=BLOCK,
            TILES=_power_of_two(-(-categories // BLOCK)), num_warps=WARPS,
        )  # fmt: skip
    return soft, Kept(seed, noise, state, drawn)


def differentiate(flat: Tensor, kept: Kept, grad: Tensor, settings: Settings) -> Tensor:
    """The gradient `(rows, K)` at the logits for `grad` `(rows, K)` at the sample; both contiguous."""
    rows, categories = flat.shape
    result = torch.empty_like(flat)
    with torch.cuda.device_of(flat):
        _kernels().differentiate[(rows,)](
            flat, kept.noise, kept.seed, kept.state, kept.drawn, grad, result, settings.t1,
            K=categories, STEPS=settings.steps, REINMAX=settings.reinmax and settings.hard,
            STORED=kept.noise.numel() > 0, BLOCK=GRADIENT_BLOCK, num_warps=GRADIENT_WARPS,
        )  # fmt: skip
    return result


def has_mass(state: Tensor) -> bool:
    """Whether every row has a finite highest logit and a finite sum of exponentials above 0."""
    return bool(state[:, 1].log().isfinite().all())


def one_hot(drawn: Tensor, like: Tensor) -> Tensor:
    return torch.zeros_like(like).scatter_(-1, drawn[:, None], 1.0)


def _power_of_two(least: int) -> int:
    return 1 << (least - 1).bit_length()


def _kernels() -> ModuleType:
    from redge_guidance.estimators import kernels

    return kernels


@lru_cache
def _runs(device: torch.device) -> bool:
    """Whether Triton is there and compiles for this device; it needs a C compiler, and says so once where it lacks."""
    if torch.version.cuda is None or find_spec("triton") is None or torch.cuda.get_device_capability(device) < (8, 0):
        return False
    settings = Settings(2, 0.7, True, False)
    try:
        flat = torch.zeros(1, 8, dtype=torch.float32, device=device)
        _, kept = draw(flat, settings, *randomness(flat, torch.Generator(device)))
        return has_mass(kept.state)
    except Exception as error:
        warnings.warn(
            f"Triton does not run on {device} ({type(error).__name__}: {error}); `redge` and `reindge` are drawn by "
            "torch's own kernels, with the same distribution, slower.",
            stacklevel=2,
        )
        return False
