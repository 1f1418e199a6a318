"""An image classifier as a reward."""

from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import AutoModelForImageClassification

from redge_guidance.rewards.image.model_reward import ImageModelReward
from redge_guidance.rewards.labels import Label


class ImageClassifierReward(ImageModelReward):
    """Log-probability of a class, in nats, or what else `Label` says.

    Args:
        model: any `AutoModelForImageClassification`.
        processor: its image processor.
        label, against, temperature: as for `Label`.

    Raises:
        ValueError: as `Label`, or a processor that cannot be redone with gradients.
    """

    auto_class: ClassVar[Any] = AutoModelForImageClassification

    def __init__(
        self,
        model: Any,
        processor: Any,
        label: str | int | None = None,
        *,
        against: str | int | None = None,
        temperature: float = 1.0,
    ):
        super().__init__(model, processor)
        self._label = Label(model.config, label, against, temperature)

    @property
    def label_name(self) -> str:
        """The label as the classifier's config spells it."""
        return self._label.name

    @torch.no_grad()
    def predict(self, pixels: Tensor) -> list[str]:
        """Names of the likeliest labels of images `(batch, 3, height, width)` in [0, 1]."""
        logits = self.model(pixel_values=self._pixel_values(pixels)).logits
        return [self.model.config.id2label[int(i)] for i in logits.argmax(-1)]

    def value(self, pixel_values: Tensor, prompts: list[str] | None) -> Tensor:
        return self._label(self.model(pixel_values=pixel_values).logits.float())
