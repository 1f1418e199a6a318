"""Tensors and numbers that somebody's loop hands to guidance, checked and brought into form."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from redge_guidance.checks import as_real, as_whole
from redge_guidance.precision import keeping_the_first
from redge_guidance.samples.images import ImageDecoder

Images = ImageDecoder | tuple[Tensor, Callable[[Tensor], Tensor]]


def put(logits: Tensor, where: Tensor, guided: Tensor | None) -> Tensor:
    """`logits` `(batch, block, vocabulary)` with `guided` `(n, vocabulary)` at `where`; None: themselves."""
    if guided is None:
        return logits
    with torch.no_grad():
        result = logits.detach().clone()
        half = torch.finfo(logits.dtype).bits < 32
        result[where] = keeping_the_first(guided, logits.dtype) if half else guided.to(logits.dtype)
    return result


def check_shapes(
    logits: Tensor,
    ids: Tensor,
    free: Tensor | None,
    attention_mask: Tensor | None,
    given: Tensor | None,
    offset: int | None,
) -> int:
    """Position of the first of the logits.

    Raises:
        ValueError: shapes that do not fit one another, or ids that are no integers.
    """
    if ids.ndim != 2 or ids.is_floating_point() or ids.dtype == torch.bool:
        raise ValueError(f"`ids` must be integers `(batch, length)`, got {tuple(ids.shape)} of {ids.dtype}.")
    batch, length = ids.shape
    fits = logits.ndim == 3 and len(logits) == batch and logits.shape[1] <= length and logits.is_floating_point()
    if not fits or logits.device != ids.device:
        raise ValueError(
            f"`logits` must be numbers `({batch}, up to {length}, vocabulary)` on {ids.device}, for these ids, got "
            f"{tuple(logits.shape)} of {logits.dtype} on {logits.device}."
        )
    for name, one in (("free", free), ("attention_mask", attention_mask), ("given", given)):
        if one is not None and (one.shape != ids.shape or one.is_floating_point()):
            raise ValueError(f"`{name}` must be bool {tuple(ids.shape)}, as `ids`, got {tuple(one.shape)} {one.dtype}.")
    last = length - logits.shape[1]
    first = last if offset is None else as_whole(offset)
    if first is None or not 0 <= first <= last:
        raise ValueError(f"`offset` must be an integer from 0 to {last}, where the logits still fit, got {offset!r}.")
    return first


def at_the_end(logits: Tensor, first: int, length: int) -> Tensor:
    """Logits of the last positions, as a step has them: zeros follow where there are none."""
    behind = length - first - logits.shape[1]
    return logits.detach() if not behind else torch.nn.functional.pad(logits.detach(), (0, 0, 0, behind))


def read_progress(said: Any) -> float | None:
    number = None if said is None else as_real(said)
    if said is not None and (number is None or not 0 <= number < 1):
        raise ValueError(
            f"`progress` must be a number in [0, 1), the share of the steps done before this one, got {said!r}."
        )
    return number


def read_prompts(prompts: Sequence[str] | None, batch: int) -> list[str] | None:
    if prompts is None:
        return None
    found = [prompts] if isinstance(prompts, str) else list(prompts)
    if len(found) != batch:
        raise ValueError(f"`prompts` must be one for each of the batch of {batch}, got {len(found)}.")
    return found


def check_generators(generator: Any, batch: int) -> None:
    if isinstance(generator, Sequence) and len(generator) != batch:
        raise ValueError(
            f"`generator` must be one, or one for each of the batch of {batch}, got a list of {len(generator)}; of a "
            "sampler that leaves out rows on its way pass one."
        )


def read_images(images: Images | None) -> ImageDecoder | None:
    if images is None or isinstance(images, ImageDecoder):
        return images
    if isinstance(images, tuple) and len(images) == 2 and isinstance(images[0], Tensor) and callable(images[1]):
        return ImageDecoder(*images)
    raise ValueError(
        f"`images` must be an ImageDecoder or `(codebook, decode)`, a tensor `(codes, dim)` and a function from "
        f"`(batch, length, dim)` to pixels, got {type(images).__name__}."
    )


def hidden_id(vocabulary: slice | None, codebook: Tensor) -> int:
    """Id of a hidden token among ids of image tokens that are counted from 0.

    Raises:
        ValueError: a part of the vocabulary that is not as large as the codebook.
    """
    codes = len(codebook)
    if vocabulary is not None and (
        vocabulary.start is None
        or vocabulary.stop is None
        or vocabulary.stop - vocabulary.start != codes
        or vocabulary.step not in (None, 1)
    ):
        raise ValueError(f"`vocabulary` must be a slice of the {codes} codes of the codebook, got {vocabulary}.")
    return codes
