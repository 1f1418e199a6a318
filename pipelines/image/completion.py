"""What is drawn: a whole image, or a part of one that is given."""

from dataclasses import dataclass
from typing import Any

import torch
from diffusers.image_processor import VaeImageProcessor
from torch import Tensor

from redge_guidance.pipelines.drawing import Canvas


@dataclass(frozen=True, eq=False)
class ImageCompletion:
    """Pixels, and where they do not count.

    Attributes:
        pixels: `(images, 3, height, width)` in [0, 1].
        redrawn: `(1 or images, 1, height, width)` bool.
    """

    pixels: Tensor
    redrawn: Tensor

    @classmethod
    def read(cls, image: Any, mask_image: Any, size: int, device: torch.device) -> "ImageCompletion | None":
        """From PIL images or tensors; the mask is white where to draw. None where neither is given.

        Raises:
            ValueError: one without the other, another size than `size` x `size`, or values outside [0, 1].
        """
        if (image is None) != (mask_image is None):
            raise ValueError("`image` and `mask_image` must be given together; the mask is white where to draw.")
        if image is None:
            return None
        pixels, mask = _as_pixels(image, "image"), _as_pixels(mask_image, "mask_image")
        for name, found in (("image", pixels), ("mask_image", mask)):
            if found.shape[2:] != (size, size):
                raise ValueError(f"`{name}` must be {size} x {size} pixels, got {found.shape[3]} x {found.shape[2]}.")
        redrawn = mask.amax(1, keepdim=True) > 0.5
        if len(redrawn) not in (1, len(pixels)):
            raise ValueError(f"`mask_image` must be one, or one for each of {len(pixels)} images, got {len(redrawn)}.")
        return cls(pixels.expand(-1, 3, -1, -1).to(device), redrawn.to(device))

    def cells(self, side: int) -> Tensor:
        """Tokens that cover any of what is drawn anew, `(images, side**2)` bool."""
        return torch.nn.functional.adaptive_max_pool2d(self.redrawn.float(), side).flatten(1) > 0

    def pasted_into(self, images: Tensor) -> Tensor:
        """`images` where something was to be drawn, these pixels elsewhere; several images may be of one of these."""
        repeats = len(images) // len(self.pixels)
        redrawn = self.redrawn.expand(len(self.pixels), -1, -1, -1).repeat_interleave(repeats, 0)
        return torch.where(redrawn, images, self.pixels.repeat_interleave(repeats, 0))


def image_canvas(
    pipe: Any, batch: int, tokens: Tensor | None, completion: ImageCompletion | None, device: torch.device
) -> Canvas:
    """The tokens of `batch` images of `pipe`, a `MaskedImagePipeline`, hidden where one is to be drawn.

    Raises:
        ValueError: `tokens` of another shape, outside the codebook, or beside a `completion`.
    """
    length, codes, mask_token_id = pipe.side**2, len(pipe.codebook), pipe.mask_token_id
    if completion is not None:
        if tokens is not None:
            raise ValueError("`tokens` and `image` cannot be given together.")
        tokens = pipe.encode(completion.pixels).masked_fill(completion.cells(pipe.side), mask_token_id)
    if tokens is None:
        tokens = torch.full((batch, length), mask_token_id)
    tokens = torch.atleast_2d(tokens).to(device)
    if tokens.shape[1] != length or batch % len(tokens):
        raise ValueError(
            f"`tokens` must be (batch, {length}) for {batch} images or a part of them, got {tuple(tokens.shape)}."
        )
    if not (((tokens >= 0) & (tokens < codes)) | (tokens == mask_token_id)).all():
        raise ValueError(f"`tokens` must be ids of the {codes} codes, or {mask_token_id} where to draw one.")
    tokens = tokens.repeat_interleave(batch // len(tokens), 0)
    return Canvas.all_text(tokens, free=tokens == mask_token_id)


def _as_pixels(image: Any, name: str) -> Tensor:
    """`(images, channels, height, width)` in [0, 1]."""
    if isinstance(image, list | tuple):
        return torch.cat([_as_pixels(one, name) for one in image])
    if isinstance(image, Tensor):
        pixels = image.float()
        while pixels.ndim < 4:
            pixels = pixels[None]
    elif hasattr(image, "convert"):
        pixels = VaeImageProcessor(do_resize=False, do_normalize=False).preprocess(image.convert("RGB"))
    else:
        raise ValueError(f"`{name}` must be a PIL image or a tensor, got {type(image).__name__}.")
    if pixels.numel() and not (pixels.min() >= 0 and pixels.max() <= 1):
        low, high = pixels.min().item(), pixels.max().item()
        raise ValueError(f"`{name}` must have values in [0, 1], got {low:.3g} to {high:.3g}.")
    return pixels
