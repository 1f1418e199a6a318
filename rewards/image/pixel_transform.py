"""The transforms of a Hugging Face image processor, with gradients."""

from typing import Any

import torch
from torch import Tensor

from redge_guidance.logging import get_logger

_MODES = {1: "lanczos", 2: "bilinear", 3: "bicubic"}  # by PIL's numbers of its filters
_PROBE_SIZE = (61, 83)
# A processor works on bytes, and resizing rounds once in each direction. Where a filter overshoots the bounds, at edges
# between black and white, PIL clips between the two and may differ by more.
TOLERANCE = 1.5 / 255

logger = get_logger(__name__)


class PixelTransform:
    """From pixels in [0, 1] to a model's `pixel_values`: resize with antialiasing, crop the centre, normalise.

    The settings are those of an image processor of transformers, whose own code works on PIL images and has no
    gradient. Both are compared on a random image when the transform is made.

    Args:
        processor: an image processor, as `AutoImageProcessor.from_pretrained` gives.

    Raises:
        ValueError: a processor that does something else, so that the results differ by more than 1.5 / 255 in the
            units of the pixels.

    Attributes:
        mean, deviation: `(3, 1, 1)`; what is subtracted and divided by.
        unit: what white is before that.
    """

    def __init__(self, processor: Any):
        self._settings = settings = processor.to_dict()
        unit = settings.get("rescale_factor", 1 / 255) if settings.get("do_rescale", True) else 1.0
        self.unit = 255 * float(unit)
        normalize = settings.get("do_normalize", True)
        mean, deviation = (settings.get(name) if normalize else None for name in ("image_mean", "image_std"))
        self.mean = torch.tensor([0.0] * 3 if mean is None else list(mean)).view(3, 1, 1)
        self.deviation = torch.tensor([1.0] * 3 if deviation is None else list(deviation)).view(3, 1, 1)
        self._mode = _MODES.get(int(settings.get("resample", 2)), "")
        if settings.get("do_resize", True) and not self._mode:
            raise ValueError(
                f"`processor` must resize by a bilinear, bicubic or Lanczos filter, got {settings['resample']!r}."
            )
        self._said = False
        self._compare(processor)

    def __call__(self, pixels: Tensor) -> Tensor:
        """`(batch, 3, height, width)` in [0, 1] to `(batch, 3, height, width)` as the model takes them.

        Raises:
            ValueError: another shape, or integers.
        """
        if pixels.ndim != 4 or pixels.shape[1] != 3 or not torch.is_floating_point(pixels):
            raise ValueError(
                "`pixels` must be floating point (batch, 3, height, width) in [0, 1], got "
                f"{tuple(pixels.shape)} of {pixels.dtype}."
            )
        size = (int(pixels.shape[2]), int(pixels.shape[3]))
        target = self._target(*size)
        if target != size and not self._said:
            logger.warning("images of %d x %d are resized to %d x %d for a reward", *size, *target)
            self._said = True
        return self._apply(pixels, target)

    def _apply(self, pixels: Tensor, target: tuple[int, int]) -> Tensor:
        if target != pixels.shape[2:]:
            pixels = torch.nn.functional.interpolate(pixels.float(), size=target, mode=self._mode, antialias=True)
            pixels = pixels.clamp(0, 1)  # a bicubic filter overshoots
        pixels = self._cropped(pixels)
        mean, deviation = self.mean.to(pixels), self.deviation.to(pixels)
        return (self.unit * pixels - mean) / deviation

    def _target(self, height: int, width: int) -> tuple[int, int]:
        size = self._settings.get("size") if self._settings.get("do_resize", True) else None
        if not size:
            return height, width
        if "shortest_edge" not in size:
            return int(size["height"]), int(size["width"])
        edge, crop_pct = int(size["shortest_edge"]), self._settings.get("crop_pct")
        if crop_pct is not None:  # ConvNeXT: larger than the crop, or without a crop
            if edge >= 384:
                return edge, edge
            edge = int(edge / crop_pct)
        short, long = min(height, width), max(height, width)
        other = int(edge * long / short)
        return (edge, other) if height <= width else (other, edge)

    def _cropped(self, pixels: Tensor) -> Tensor:
        size = self._settings.get("crop_size") if self._settings.get("do_center_crop") else None
        if self._settings.get("crop_pct") is not None and self._settings["size"].get("shortest_edge", 384) < 384:
            size = {"height": self._settings["size"]["shortest_edge"], "width": self._settings["size"]["shortest_edge"]}
        if not size:
            return pixels
        height, width = int(size["height"]), int(size["width"])
        missing = [max(0, size - found) for size, found in zip((height, width), pixels.shape[2:], strict=True)]
        if any(missing):
            top, left = (-(-n // 2) for n in missing)
            pixels = torch.nn.functional.pad(pixels, (left, missing[1] - left, top, missing[0] - top))
        top, left = (pixels.shape[2] - height) // 2, (pixels.shape[3] - width) // 2
        return pixels[:, :, top : top + height, left : left + width]

    def _compare(self, processor: Any) -> None:
        generator = torch.Generator().manual_seed(0)
        coarse = torch.rand(1, 3, 9, 9, generator=generator)
        smooth = 0.2 + 0.6 * torch.nn.functional.interpolate(coarse, size=_PROBE_SIZE, mode="bilinear")
        image = (255 * smooth).round().to(torch.uint8)
        theirs = processor(image[0].permute(1, 2, 0).numpy(), return_tensors="pt")["pixel_values"].float()
        with torch.no_grad():
            ours = self._apply(image.float() / 255, self._target(*_PROBE_SIZE))
        if ours.shape != theirs.shape:
            found = f"shape {tuple(theirs.shape)} instead of {tuple(ours.shape)}"
        else:
            error = ((ours - theirs) * self.deviation / self.unit).abs().max().item()
            if error <= TOLERANCE:
                return
            found = f"values that differ by {error:.3f}"
        raise ValueError(
            f"`processor` {type(processor).__name__} does more than resize, crop and normalise, got {found}; pass a "
            "reward of your own that prepares the pixels, `lambda pixels: ...`."
        )
