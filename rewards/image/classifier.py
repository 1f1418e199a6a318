"""An image classifier as a reward."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import AutoModelForImageClassification

from redge_guidance.chats import Prompt
from redge_guidance.finished import to_judge
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
        self.highest = self._label.highest

    @property
    def label_name(self) -> str:
        """The label as the classifier's config spells it."""
        return self._label.name

    @property
    def usual_target(self) -> float | None:
        return self._label.usual_target

    def predict(self, pixels: Tensor, batch_size: int = 32) -> list[str]:
        """Names of the likeliest labels of images `(n, 3, height, width)` in [0, 1]."""
        pixels, _, batch_size = to_judge(pixels, batch_size=batch_size)
        return self._label.names(self._logits(pixels, batch_size))

    def reached(self, samples: Tensor, prompts: Sequence[Prompt] | None = None) -> list[bool] | None:
        samples, prompts, _ = to_judge(samples, prompts)
        return self._label.predicted(self._logits(samples))

    def value(self, pixel_values: Tensor, prompts: Sequence[Prompt] | None) -> Tensor:
        return self._label(self.model(pixel_values=pixel_values).logits.float())

    @torch.no_grad()
    def _logits(self, pixels: Tensor, batch_size: int = 32) -> Tensor:
        """`(n, labels)`, on the CPU."""
        parts = [pixels[first : first + batch_size] for first in range(0, len(pixels), batch_size)]
        found = [self.model(pixel_values=self.pixel_values(part)).logits.cpu() for part in parts]
        return torch.cat(found) if found else torch.zeros(0, self.model.config.num_labels)
