"""Blocks of a canvas that are drawn one after the other, and the steps that they get."""

from collections.abc import Sequence

import torch
from torch import Tensor

from redge_guidance.pipelines.sampling import Generators


def split_into_blocks(free: Tensor, block_length: int | None) -> list[Tensor]:
    """Positions `(batch, length)` of every block: the first `block_length` free ones of a row, the next, ..."""
    if block_length is None or not free.any():
        return [free]
    number = (free.cumsum(-1) - 1).div(block_length, rounding_mode="floor")
    return [free & (number == i) for i in range(int(number.max()) + 1)]


def aligned_blocks(
    free: Tensor, attention_mask: Tensor, block_length: int, block_size: int, leading_token: bool
) -> list[Tensor]:
    """Free positions `(batch, length)` of every block, for a model whose blocks of attention have `block_size`.

    Blocks are counted from the first token of a row, prompt included, so that none crosses a block of attention.

    Args:
        free, attention_mask: `(batch, length)` bool.
        block_length: positions that are drawn together; divides `block_size`.
        block_size: positions of a block of attention.
        leading_token: the first token of a block of attention is a block of its own.

    Raises:
        ValueError: `block_length` does not divide `block_size`.
    """
    if block_size % block_length:
        raise ValueError(
            f"`block_length` must divide the {block_size} positions of the model's blocks, got {block_length}."
        )
    position = attention_mask.cumsum(-1) - 1
    number = 2 * position.div(block_length, rounding_mode="floor") + 1
    if leading_token:
        number = number - (position % block_size == 0).long()
    return [free & (number == i) for i in number[free].unique().tolist()] or [free]


def strides(free: Tensor, attention_mask: Tensor, window: int, stride_length: int) -> list[Tensor]:
    """Free positions of the first `window` positions of a row, of the next `stride_length`, and so on."""
    position = attention_mask.cumsum(-1) - 1
    number = (position - window).div(stride_length, rounding_mode="floor").clamp(min=-1)
    return [free & (number == i) for i in number[free].unique().tolist()] or [free]


def check_stride(stride_length: int, block_length: int | None, window: int) -> None:
    """A ValueError if strides are longer than what the model sees, or blocks are asked for as well."""
    if block_length is not None:
        raise ValueError(f"`stride_length` must be None beside `block_length`, got {stride_length}.")
    if stride_length > window:
        raise ValueError(f"`stride_length` must be <= {window}, the positions of the model, got {stride_length}.")


def stretches(start: int, length: int, block_size: int | None) -> list[tuple[int, int]]:
    """First and last position (excluded) of what is hidden together behind `start`: blocks of attention, or all."""
    size = block_size or length
    cuts = [(max(start, first), min(first + size, length)) for first in range(0, length, size)]
    return [(first, end) for first, end in cuts if first < end]


def steps_of_blocks(blocks: Sequence[Tensor], num_inference_steps: int | None) -> list[int]:
    """Denoising steps of every block: equal shares, or one for every token."""
    if num_inference_steps is None:
        return [max(1, int(block.sum(-1).max())) for block in blocks]
    number = len(blocks)
    if num_inference_steps < number:
        raise ValueError(
            f"`num_inference_steps` must be >= {number}, the number of blocks, got {num_inference_steps}; raise "
            "it, or `block_length`."
        )
    return [num_inference_steps * (i + 1) // number - num_inference_steps * i // number for i in range(number)]


def check_independent(blocks: Sequence[Tensor], num_inference_steps: int | None, generator: Generators) -> None:
    """With a generator for every row, a ValueError where the steps of a row would depend on the rows beside it."""
    if generator is None or isinstance(generator, torch.Generator):
        return
    tokens = torch.stack([block.sum(-1) for block in blocks])  # (blocks, batch)
    if num_inference_steps is None and (tokens != tokens[:, :1]).any():
        raise ValueError(
            "`num_inference_steps` must be given with a list of generators for texts of several lengths, got None: by "
            "default it is that of the longest text of the batch, and a text would depend on its batch."
        )
    if ((tokens > 0) != (tokens[:, :1] > 0)).any():
        raise ValueError(
            "`generator` must be one generator where texts have different numbers of blocks: their steps would depend "
            "on their batch; draw texts of alike lengths together, or leave `block_length` out."
        )
