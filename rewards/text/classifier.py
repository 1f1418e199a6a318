"""A text classifier as a reward."""

from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification

from redge_guidance.rewards.labels import Label
from redge_guidance.rewards.reading.framing import Frame
from redge_guidance.rewards.reading.reader import Reading
from redge_guidance.rewards.text.model_reward import ModelReward, outputs_of


class TextClassifierReward(ModelReward):
    """Log-probability of a label, in nats, or what else `Label` says.

    Args:
        model: any `AutoModelForSequenceClassification`; it is put into eval mode and its parameters are frozen.
        tokenizer: the tokenizer it was trained with; it need not be the generator's.
        label, against, temperature: as for `Label`.
        padding_side, max_length: as for `ModelReward`.

    Raises:
        ValueError: as `Label`.
    """

    auto_class: ClassVar[Any] = AutoModelForSequenceClassification

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        label: str | int | None = None,
        *,
        against: str | int | None = None,
        temperature: float = 1.0,
        padding_side: str | None = None,
        max_length: int | None = None,
    ):
        super().__init__(model, tokenizer, padding_side, max_length)
        self._label = Label(model.config, label, against, temperature)

    @property
    def label_name(self) -> str:
        """The label as the classifier's config spells it."""
        return self._label.name

    @torch.no_grad()
    def predict(self, texts: list[str], batch_size: int = 32) -> list[str]:
        """Names of the likeliest labels of finished texts."""
        names: list[str] = []
        for first in range(0, len(texts), batch_size):
            part = texts[first : first + batch_size]
            logits = outputs_of(self.forward(self._reader.read_texts(part, [Frame()] * len(part))))
            names += [self.model.config.id2label[int(i)] for i in logits.argmax(-1)]
        return names

    def value(self, reading: Reading) -> Tensor:
        return self._label(outputs_of(self.forward(reading)))
