"""What all estimators share: one autograd function, which draws and differentiates row by row in closed form."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import torch
from torch import Tensor

_CHUNK_ELEMENTS = 2**18  # on a CPU, rows are worked through in chunks of about this many numbers, to stay in the cache
# glibc gives free memory at the end of its heap back to the kernel when it is more than twice the largest block freed
# so far. Freeing one untouched block of this many bytes raises that limit above a chunk's intermediate results; without
# it every chunk would fault its pages anew, which took two thirds of the time of a backward.
_RESERVE = 2**24
_NOISE_BLOCK = 2**20  # numbers that one thread draws at a time; torch draws them on one core


class Estimator(Protocol):
    """Anything that draws a differentiable one-hot sample from logits `(..., K)`."""

    def __call__(self, logits: Tensor, *, hard: bool = True, generator: torch.Generator | None = None) -> Tensor: ...


class Transport:
    """The mathematics of one estimator, on rows `(rows, K)` of float32 or float64.

    `soft` maps logits and noise to a point of the simplex, `draw` picks a category there, `value` is what a hard
    sample looks like, and `vjp` is the estimator's gradient. Subclasses override what differs.
    """

    @property
    def noise(self) -> str | None:
        """`"normal"`, `"exponential"` or None: one number for every logit."""
        return None

    def soft(self, logits: Tensor, noise: Tensor | None) -> Tensor:
        """`softmax(logits)`, `(rows, K)`."""
        return logits.softmax(-1)

    def draw(self, soft: Tensor, uniform: Tensor) -> Tensor:
        """`(rows, 1)` int64, a category drawn from `soft` by its inverse cumulative sum at `uniform` `(rows, 1)`.

        A category of probability 0 is never drawn.
        """
        cumulative = soft.cumsum(-1)
        total = cumulative[:, -1:]
        below_total = torch.nextafter(total, torch.zeros_like(total))
        return torch.searchsorted(cumulative, torch.minimum(uniform * total, below_total), right=True)

    def value(self, soft: Tensor, drawn: Tensor) -> Tensor | None:
        """The hard sample `(rows, K)`; None for the one-hot of `drawn`."""
        return None

    def vjp(self, logits: Tensor, noise: Tensor | None, drawn: Tensor | None, grad: Tensor) -> Tensor:
        """The estimator's gradient with respect to the logits, `grad` `(rows, K)` being that of the sample.

        `drawn` is None for a soft sample.
        """
        return softmax_vjp(logits.softmax(-1), grad)


def sample(transport: Transport, logits: Tensor, hard: bool, generator: torch.Generator | None) -> Tensor:
    """Draw from `logits` `(..., K)` by `transport`; the differentiable sample has the shape and dtype of the logits."""
    check_logits(logits, generator)
    drawn: Tensor = _Sample.apply(logits, transport, hard, generator)[0]
    return drawn


def softmax_vjp(probs: Tensor, grad: Tensor, out: Tensor | None = None) -> Tensor:
    """`probs * (grad - <probs, grad>)`: the vector-Jacobian product of a softmax; all `(rows, K)`."""
    out = torch.empty_like(probs) if out is None else out
    torch.ops.aten._softmax_backward_data.out(grad, probs, -1, probs.dtype, grad_input=out)  # one pass over the memory
    return out


def reinmax_vjp(probs: Tensor, drawn: Tensor, grad: Tensor) -> Tensor:
    """`1/2 [diag(p) - p p^T + (d - p)(d - p)^T] grad`, d the one-hot of `drawn` `(rows, 1)`; the others `(rows, K)`."""
    mean = (probs * grad).sum(-1, keepdim=True)
    surprise = grad.gather(-1, drawn) - mean  # <d - p, grad>
    result = probs * (grad - mean - surprise)
    return result.scatter_add_(-1, drawn, surprise) / 2


def check_logits(logits: Tensor, generator: torch.Generator | None) -> None:
    if not isinstance(logits, Tensor) or not torch.is_floating_point(logits):
        kind = logits.dtype if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(f"`logits` must be a floating point tensor, got {kind}; convert it with `.float()`.")
    if logits.ndim == 0 or logits.shape[-1] == 0:
        raise ValueError(f"`logits` must be (..., K) with K >= 1 categories, got shape {tuple(logits.shape)}.")
    if generator is not None and generator.device.type != logits.device.type:
        raise ValueError(
            f"`generator` must be on the device of the logits, {logits.device}, got {generator.device}; make it with "
            f"`torch.Generator({logits.device.type!r})`."
        )


def _check_finite(highest: Tensor) -> None:
    """`highest`: the largest logit of every row. NaN spreads to it. A compiled graph cannot raise, and goes on."""
    if torch.compiler.is_compiling() or highest.isfinite().all():
        return
    for found, remedy in (("nan", "look for a division by 0 upstream"), ("inf", "keep logits below the dtype's range")):
        if (highest.isnan() if found == "nan" else highest == torch.inf).any():
            raise ValueError(f"`logits` contain {found}; {remedy}.")
    raise ValueError("`logits` have a row that is -inf everywhere; leave every row at least one category.")


class _Sample(torch.autograd.Function):
    """Forward: a transport, then a draw. Backward: the transport's VJP in closed form, recomputed chunk by chunk.

    Kept for the backward: the logits, the noise (one number a logit) and the drawn ids; memory does not grow with the
    number of steps of a diffusion.
    """

    @staticmethod
    def forward(
        logits: Tensor, transport: Transport, hard: bool, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        flat = logits.reshape(-1, logits.shape[-1])
        work, device = _work_dtype(flat), flat.device
        noise = _noise(transport.noise, flat, generator)
        uniform = torch.rand(len(flat), 1, generator=generator, device=device, dtype=work) if hard else None
        drawn = torch.empty(len(flat), 1, dtype=torch.long, device=device) if hard else None
        result = torch.zeros_like(flat, memory_format=torch.contiguous_format)
        for rows in _chunks(flat):
            chunk = flat[rows].to(work)
            _check_finite(chunk.amax(-1))
            soft = transport.soft(chunk, None if noise is None else noise[rows])
            if drawn is None or uniform is None:
                result[rows] = soft
                continue
            drawn[rows] = transport.draw(soft, uniform[rows])
            value = transport.value(soft, drawn[rows])
            if value is None:
                result[rows].scatter_(-1, drawn[rows], 1.0)
            else:
                result[rows] = value
            del soft, value  # before the next chunk needs their memory
        return result.view(logits.shape), noise, drawn

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor | None, Tensor | None]) -> None:
        logits, ctx.transport, _, _ = inputs
        _, noise, drawn = output
        ctx.mark_non_differentiable(*(x for x in (noise, drawn) if x is not None))
        ctx.set_materialize_grads(False)  # else the noise gets a gradient of zeros, as large as the logits
        ctx.save_for_backward(logits, noise, drawn)

    @staticmethod
    def backward(ctx: Any, grad_sample: Tensor | None, *_: Any) -> tuple[Tensor | None, None, None, None]:
        if grad_sample is None:
            return None, None, None, None
        return _Gradient.apply(*ctx.saved_tensors, grad_sample, ctx.transport), None, None, None

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[Any, ...], logits: Tensor, transport: Transport, hard: bool, generator: Any
    ) -> tuple[Any, Any]:
        if info.randomness != "different":
            raise ValueError(f"`randomness` of vmap must be 'different' for a sample, got {info.randomness!r}.")
        drawn, *kept = _Sample.apply(logits.movedim(in_dims[0], 0), transport, hard, generator)
        kept = [None if x is None else x.unflatten(0, (info.batch_size, -1)) for x in kept]
        return (drawn, *kept), (0, *(None if x is None else 0 for x in kept))


class _Gradient(torch.autograd.Function):
    """The gradient of `_Sample` with respect to the logits; it has no derivative itself."""

    @staticmethod
    def forward(
        logits: Tensor, noise: Tensor | None, drawn: Tensor | None, grad_sample: Tensor, transport: Transport
    ) -> Tensor:
        flat, grad_flat = (x.reshape(-1, logits.shape[-1]) for x in (logits, grad_sample))
        work = _work_dtype(flat)
        grad_logits = torch.empty_like(flat, memory_format=torch.contiguous_format)
        for rows in _chunks(flat):
            chunk_noise, chunk_drawn = (None if x is None else x[rows] for x in (noise, drawn))
            grad_logits[rows] = transport.vjp(flat[rows].to(work), chunk_noise, chunk_drawn, grad_flat[rows].to(work))
        return grad_logits.view(logits.shape)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        raise RuntimeError(
            "the gradient of a sample has no derivative: an estimator defines a first derivative only; call "
            "`torch.autograd.grad` or `backward` without `create_graph=True`, or detach the gradient."
        )

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> tuple[Tensor, int]:
        *tensors, transport = inputs
        moved = [
            x if x is None else x.expand(info.batch_size, *x.shape) if dim is None else x.movedim(dim, 0)
            for x, dim in zip(tensors, in_dims, strict=False)
        ]
        logits, noise, drawn, grad_sample = moved
        noise, drawn = (None if x is None else x.flatten(0, 1) for x in (noise, drawn))
        return _Gradient.apply(logits, noise, drawn, grad_sample, transport), 0


def _work_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _chunks(flat: Tensor) -> list[slice]:
    if flat.device.type != "cpu" or torch.compiler.is_compiling():
        return [slice(None)]
    torch.empty(_RESERVE, dtype=torch.uint8)
    size = max(torch.get_num_threads(), _CHUNK_ELEMENTS // flat.shape[1])
    return [slice(i, i + size) for i in range(0, len(flat), size)]


def _noise(kind: str | None, like: Tensor, generator: torch.Generator | None) -> Tensor | None:
    """One number for every number of `like`. On a CPU large noise is drawn by several threads, block by block.

    Every block has a generator of its own, seeded from `generator`, so that the number of threads does not matter.
    """
    if kind is None:
        return None
    noise = torch.empty(like.shape, dtype=_work_dtype(like), device=like.device)
    draw = Tensor.normal_ if kind == "normal" else Tensor.exponential_
    if noise.device.type != "cpu" or torch.compiler.is_compiling() or noise.numel() <= _NOISE_BLOCK:
        return draw(noise, generator=generator)
    blocks = noise.view(-1).split(_NOISE_BLOCK)
    seeds = torch.randint(2**62, (len(blocks),), generator=generator).tolist()
    inference = torch.is_inference_mode_enabled()  # a thread does not inherit it

    def fill(block: Tensor, seed: int) -> None:
        with torch.inference_mode(inference):
            draw(block, generator=torch.Generator().manual_seed(seed))

    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        list(pool.map(fill, blocks, seeds))
    return noise
