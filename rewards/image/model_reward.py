"""What rewards made of a Hugging Face model of images have in common."""

import os
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import AutoImageProcessor

from redge_guidance.hub import loading, resolve
from redge_guidance.reward import ImageReward
from redge_guidance.rewards.image.pixel_transform import PixelTransform
from redge_guidance.rewards.text.model_reward import HUB_ARGUMENTS


class ImageModelReward(ImageReward):
    """Reward of a model that looks at pixels, prepared as its processor does it, see `PixelTransform`.

    Subclasses say what `pixel_values` are worth (`value`).

    Args:
        model: put into eval mode; its parameters are frozen.
        processor: its image processor.
    """

    auto_class: ClassVar[Any]

    def __init__(self, model: Any, processor: Any):
        self.model = model.eval().requires_grad_(False)
        self.processor = processor
        self._transform = PixelTransform(processor)

    @classmethod
    def from_pretrained(
        cls,
        name: str | os.PathLike[str],
        *args: Any,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        model_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Load a model and its processor from a folder or a hub id, or an embedded checkpoint, `"builtin:..."`.

        Args:
            name: embedded checkpoint, folder, or hub id.
            *args, **kwargs: what the constructor takes after model and processors; `trust_remote_code`, `revision`,
                `token` and `cache_dir` go to the hub.
            device, dtype: of the model.
            model_kwargs: for the `from_pretrained` of the model alone, such as `quantization_config`.

        Raises:
            ValueError, FileNotFoundError: `name` is unknown, or what the constructor raises.
            OSError: `name` is a hub id that cannot be loaded.
        """
        path = resolve(name)
        hub = {key: kwargs.pop(key) for key in HUB_ARGUMENTS if key in kwargs}
        with loading(name):
            model = cls.auto_class.from_pretrained(path, dtype=dtype, **hub, **(model_kwargs or {}))
            processors = cls._processors(path, hub)
        return cls(model.to(device), *processors, *args, **kwargs)

    @classmethod
    def _processors(cls, path: str, hub: dict[str, Any]) -> list[Any]:
        return [AutoImageProcessor.from_pretrained(path, **hub)]

    def value(self, pixel_values: Tensor, prompts: list[str] | None) -> Tensor:
        """Rewards `(batch,)` of what the model is shown."""
        raise NotImplementedError

    def score(self, pixels: Tensor, prompts: list[str] | None = None) -> Tensor:
        if prompts is not None and len(prompts) != len(pixels):
            raise ValueError(f"`prompts` must be one an image, {len(pixels)}, got {len(prompts)}.")
        return self.value(self._pixel_values(pixels), prompts).float().to(pixels.device)

    def _pixel_values(self, pixels: Tensor) -> Tensor:
        parameter = next(self.model.parameters())
        return self._transform(pixels.to(parameter.device)).to(parameter.dtype)
