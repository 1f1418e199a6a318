"""What rewards made of a Hugging Face model of images have in common."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from transformers import AutoImageProcessor

from redge_guidance.chats import Prompt
from redge_guidance.finished import in_words, to_judge
from redge_guidance.reward import ImageReward
from redge_guidance.rewards.image.pixel_transform import PixelTransform
from redge_guidance.rewards.loading import LoadedReward


class ImageModelReward(LoadedReward, ImageReward):
    """Reward of a model that looks at pixels, prepared as its processor does it, see `PixelTransform`.

    Subclasses say what `pixel_values` are worth (`value`).

    Args:
        model: put into eval mode; its parameters are frozen.
        processor: its image processor.

    Attributes:
        transform: from pixels to what the model takes.
    """

    def __init__(self, model: Any, processor: Any):
        self.model = model.eval().requires_grad_(False)
        self.processor = processor
        self.transform = PixelTransform(processor)

    @classmethod
    def processors(cls, path: str, hub: dict[str, Any]) -> list[Any]:
        return [AutoImageProcessor.from_pretrained(path, **hub)]

    def value(self, pixel_values: Tensor, prompts: Sequence[str] | None) -> Tensor:
        """Rewards `(batch,)` of what the model is shown."""
        raise NotImplementedError

    def of_pixels(self, pixels: Tensor, prompts: Sequence[Prompt] | None = None) -> Tensor:
        _, prompts, _ = to_judge(pixels, prompts)
        return self.value(self.pixel_values(pixels), in_words(prompts)).float().to(pixels.device)

    def pixel_values(self, pixels: Tensor) -> Tensor:
        """Pixels `(batch, 3, height, width)` in [0, 1] as the model takes them, on its device."""
        parameter = next(self.model.parameters())
        return self.transform(pixels.to(parameter.device)).to(parameter.dtype)
