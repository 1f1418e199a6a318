"""The autograd function of all pathwise estimators: draws and differentiates row by row in closed form."""

from collections.abc import Callable
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from redge_guidance.estimators import fused
from redge_guidance.estimators.inputs import Generators, RowGenerators, check_finite, check_logits
from redge_guidance.estimators.memory import unwritten_zeros
from redge_guidance.estimators.threads import in_threads

CHUNK_ELEMENTS = 2**17  # on a CPU, rows are worked through in chunks of about this many numbers, to stay in the cache
# glibc gives free memory at the end of its heap back to the kernel when it is more than twice the largest block freed
# so far. Freeing one untouched block of this many bytes raises that limit above a chunk's intermediate results; without
# it every chunk would fault its pages anew, which took two thirds of the time of a backward.
_RESERVE = 2**24
_SMALL = 2**11  # numbers that torch does not share among threads either, whatever the operation
NOISE_BLOCK = 2**17  # numbers that one thread draws at a time, in two passes over them, so that they stay in the cache


class RowMathematics(Protocol):
    """What `Pathwise` declares of an estimator, on rows `(rows, K)`."""

    @property
    def hard(self) -> bool: ...

    @property
    def one_hot(self) -> bool: ...

    @property
    def noise(self) -> Literal["normal", "exponential"] | None: ...

    def soft(self, logits: Tensor, noise: Tensor | None) -> Tensor: ...

    def category(self, logits: Tensor, noise: Tensor | None, soft: Tensor, uniform: Tensor) -> Tensor: ...

    def value(self, soft: Tensor, drawn: Tensor) -> Tensor | None: ...

    def vjp(self, logits: Tensor, noise: Tensor | None, drawn: Tensor | None, grad: Tensor) -> Tensor: ...


def sample(estimator: RowMathematics, logits: Tensor, generator: Generators | None) -> Tensor:
    """Draw from `logits` `(..., K)` by `estimator`; the differentiable sample has the shape and dtype of the logits."""
    check_logits(logits, generator)
    settings = fused.settings_of(estimator, logits, generator)
    if settings is not None:
        by_kernels: Tensor = _Fused.apply(logits, settings, generator)
        return by_kernels
    drawn: Tensor = _Sample.apply(logits, _where_mapped(estimator, logits), estimator, generator)[0]
    return drawn


def _where_mapped(estimator: RowMathematics, logits: Tensor) -> Tensor | None:
    """Nothing, `(0,)`, which inside `vmap(..., randomness="different")` is mapped, as all that is drawn there.

    So logits that are not mapped themselves are drawn from for every index. None where nothing is drawn.
    """
    return torch.rand(0, device=logits.device) if estimator.hard or estimator.noise is not None else None


class _Sample(torch.autograd.Function):
    """Forward: a soft sample, then a draw. Backward: the estimator's VJP in closed form, recomputed chunk by chunk.

    Kept for the backward: the logits, the noise (one number a logit) and the drawn ids; memory does not grow with the
    number of steps of a diffusion.
    """

    @staticmethod
    def forward(
        logits: Tensor, mapped: Tensor | None, estimator: RowMathematics, generator: Generators | None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        flat = logits.reshape(-1, logits.shape[-1])
        work, device = _work_dtype(flat), flat.device
        noise = noise_like(flat, estimator.noise, generator)
        uniform = _uniform(len(flat), generator, device, work) if estimator.hard else None
        drawn = torch.empty(len(flat), 1, dtype=torch.long, device=device) if estimator.hard else None
        zeros = unwritten_zeros(flat.shape, flat.dtype, device) if estimator.hard and estimator.one_hot else None
        result = torch.empty(flat.shape, dtype=flat.dtype, device=device) if zeros is None else zeros

        def draw(rows: slice) -> None:
            chunk = flat[rows].to(work)
            check_finite(chunk.amax(-1))
            chunk_noise = None if noise is None else noise[rows]
            soft = estimator.soft(chunk, chunk_noise)
            if drawn is None or uniform is None:
                result[rows] = soft
                return
            drawn[rows] = estimator.category(chunk, chunk_noise, soft, uniform[rows])
            value = estimator.value(soft, drawn[rows])
            if value is None:
                (result[rows].zero_() if zeros is None else result[rows]).scatter_(-1, drawn[rows], 1.0)
            else:
                result[rows] = value

        _by_chunks(draw, flat)
        return result.view(logits.shape), noise, drawn

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor | None, Tensor | None]) -> None:
        logits, _, ctx.estimator, _ = inputs
        _, noise, drawn = output
        ctx.mark_non_differentiable(*(x for x in (noise, drawn) if x is not None))
        ctx.set_materialize_grads(False)  # else the noise gets a gradient of zeros, as large as the logits
        ctx.save_for_backward(logits, noise, drawn)

    @staticmethod
    def backward(ctx: Any, grad_sample: Tensor | None, *_: Any) -> tuple[Tensor | None, None, None, None]:
        if grad_sample is None:
            return None, None, None, None
        return _Gradient.apply(*ctx.saved_tensors, grad_sample, ctx.estimator), None, None, None

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[Any, ...],
        logits: Tensor,
        mapped: Tensor | None,
        estimator: RowMathematics,
        generator: Any,
    ) -> tuple[Any, Any]:
        if mapped is not None and info.randomness != "different":
            raise ValueError(f"`randomness` of vmap must be 'different' for a sample, got {info.randomness!r}.")
        every = logits.expand(info.batch_size, *logits.shape) if in_dims[0] is None else logits.movedim(in_dims[0], 0)
        outside = mapped if mapped is None or in_dims[1] is None else mapped.movedim(in_dims[1], 0)[0]
        drawn, *kept = _Sample.apply(every, outside, estimator, generator)
        kept = [None if x is None else x.unflatten(0, (info.batch_size, -1)) for x in kept]
        return (drawn, *kept), (0, *(None if x is None else 0 for x in kept))


class _Gradient(torch.autograd.Function):
    """The gradient of `_Sample` with respect to the logits; it has no derivative itself."""

    @staticmethod
    def forward(
        logits: Tensor, noise: Tensor | None, drawn: Tensor | None, grad_sample: Tensor, estimator: RowMathematics
    ) -> Tensor:
        flat, grad_flat = (x.reshape(-1, logits.shape[-1]) for x in (logits, grad_sample))
        work = _work_dtype(flat)
        grad_logits = torch.empty_like(flat, memory_format=torch.contiguous_format)

        def differentiate(rows: slice) -> None:
            chunk_noise, chunk_drawn = (None if x is None else x[rows] for x in (noise, drawn))
            grad_logits[rows] = estimator.vjp(flat[rows].to(work), chunk_noise, chunk_drawn, grad_flat[rows].to(work))

        _by_chunks(differentiate, flat)
        return grad_logits.view(logits.shape)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        raise _no_second_derivative()

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> tuple[Tensor, int]:
        *tensors, estimator = inputs
        moved = [
            x if x is None else x.expand(info.batch_size, *x.shape) if dim is None else x.movedim(dim, 0)
            for x, dim in zip(tensors, in_dims, strict=False)
        ]
        logits, noise, drawn, grad_sample = moved
        noise, drawn = (None if x is None else x.flatten(0, 1) for x in (noise, drawn))
        return _Gradient.apply(logits, noise, drawn, grad_sample, estimator), 0


class _Fused(torch.autograd.Function):
    """`_Sample` and its gradient by the kernels of `fused`, on one CUDA device."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, settings: fused.Settings, generator: Any) -> Tensor:
        flat = logits.reshape(-1, logits.shape[-1]).contiguous()
        sample, kept = fused.draw(flat, settings, *fused.randomness(flat, generator))
        if not fused.has_mass(kept.state):
            check_finite(flat.amax(-1))
        if settings.hard:
            sample = fused.one_hot(kept.drawn, flat)
        ctx.settings = settings
        ctx.save_for_backward(logits, *kept)
        return sample.view(logits.shape)

    @staticmethod
    def backward(ctx: Any, grad_sample: Tensor) -> tuple[Tensor, None, None]:
        logits, *kept = ctx.saved_tensors
        return _FusedGradient.apply(logits, grad_sample, fused.Kept(*kept), ctx.settings), None, None


class _FusedGradient(torch.autograd.Function):
    """The gradient of `_Fused` with respect to the logits; it has no derivative itself."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, grad_sample: Tensor, kept: fused.Kept, settings: fused.Settings) -> Tensor:
        flat, grad = (x.reshape(-1, logits.shape[-1]).contiguous() for x in (logits, grad_sample))
        return fused.differentiate(flat, kept, grad, settings).view(logits.shape)

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        raise _no_second_derivative()


def _no_second_derivative() -> RuntimeError:
    return RuntimeError(
        "the gradient of a sample has no derivative: an estimator defines a first derivative only; call "
        "`torch.autograd.grad` or `backward` without `create_graph=True`, or detach the gradient."
    )


def _work_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _by_chunks(work: Callable[[slice], None], flat: Tensor) -> None:
    """`work(rows)` for all rows of `flat`: on a CPU by chunks, which do not depend on the number of threads."""
    if flat.device.type != "cpu" or torch.compiler.is_compiling():
        work(slice(None))
        return
    torch.empty(_RESERVE, dtype=torch.uint8)
    size = max(1, CHUNK_ELEMENTS // flat.shape[1])
    chunks = [slice(i, i + size) for i in range(0, len(flat), size)]
    if flat.numel() > _SMALL:
        in_threads(work, chunks)
        return
    for rows in chunks:
        work(rows)


def _uniform(rows: int, generator: Generators | None, device: torch.device, dtype: torch.dtype) -> Tensor:
    """`(rows, 1)` in [0, 1), drawn where the generator is."""
    if isinstance(generator, RowGenerators):
        groups = zip(generator.counts, generator.generators, strict=True)
        return torch.cat([_uniform(count, one, generator.device, dtype) for count, one in groups]).to(device)
    source = device if generator is None else generator.device
    return torch.rand(rows, 1, generator=generator, device=source, dtype=dtype).to(device)


def noise_like(like: Tensor, kind: str | None, generator: Generators | None) -> Tensor | None:
    """One number for every number of `like`, drawn where the generator is, as in diffusers, and moved there.

    On a CPU large noise is drawn by several threads, block by block. Every block has a generator of its own, seeded
    from `generator`, so that the number of threads does not matter.
    """
    if kind is None:
        return None
    source, dtype = like.device if generator is None else generator.device, _work_dtype(like)
    if isinstance(generator, RowGenerators):
        groups, size = zip(generator.counts, generator.generators, strict=True), like.shape[1]
        noise = [_noise(torch.Size((count, size)), dtype, source, kind, one) for count, one in groups]
        return torch.cat(noise).to(like.device)
    return _noise(like.shape, dtype, source, kind, generator).to(like.device)


def _noise(
    shape: torch.Size, dtype: torch.dtype, device: torch.device, kind: str, generator: torch.Generator | None
) -> Tensor:
    noise = torch.empty(shape, dtype=dtype, device=device)
    draw = Tensor.normal_ if kind == "normal" else Tensor.exponential_
    if noise.device.type != "cpu" or torch.compiler.is_compiling() or noise.numel() <= _SMALL:
        return draw(noise, generator=generator)
    if noise.numel() <= NOISE_BLOCK:
        in_threads(lambda whole: draw(whole, generator=generator), [noise])
        return noise
    blocks = noise.view(-1).split(NOISE_BLOCK)
    seeds = torch.randint(2**62, (len(blocks),), generator=generator).tolist()

    def fill(block: int) -> None:
        draw(blocks[block], generator=torch.Generator().manual_seed(seeds[block]))

    in_threads(fill, range(len(blocks)))
    return noise
