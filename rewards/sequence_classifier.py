"""A text classifier as a reward."""

from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification

from redge_guidance.rewards.framing import Frame
from redge_guidance.rewards.model_reward import ModelReward, outputs_of
from redge_guidance.rewards.reading import Reading


class SequenceClassifierReward(ModelReward):
    """Log-probability of a label, the margin between two, or the output of a regression model.

    In nats, z being the classifier's logits and T the temperature: `r(x) = log softmax(z / T)[label]`; for a classifier
    of several labels at once (`problem_type` `"multi_label_classification"`) `log sigmoid(z[label] / T)`; with
    `against`, `(z[label] - z[against]) / T`. With one output, `r(x) = z / T`.

    Args:
        model: any `AutoModelForSequenceClassification`; it is put into eval mode and its parameters are frozen.
        tokenizer: the tokenizer it was trained with; it need not be the generator's.
        label: name or index; None only for a model with one output.
        against: name or index of another label; None: all others.
        temperature: > 0.
        padding_side, max_length: as for `ModelReward`.

    Raises:
        ValueError: an unknown label, none where the model has several, or a temperature that is not positive.
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
        self.label, self.against, self.temperature = label, against, temperature
        self._index = _label_index(model.config, label, "label")
        self._against = None if against is None else _label_index(model.config, against, "against")
        if self._against == self._index:
            raise ValueError(f"`against` must be another label than `label`, got {against!r} for both.")
        if not temperature > 0:
            raise ValueError(f"`temperature` must be > 0, got {temperature!r}.")

    @property
    def label_name(self) -> str:
        """The label as the classifier's config spells it."""
        return str(self.model.config.id2label[self._index])

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
        logits = outputs_of(self.forward(reading)) / self.temperature
        if self._against is not None:
            return logits[:, self._index] - logits[:, self._against]
        if logits.shape[-1] == 1:
            return logits[:, 0]
        if getattr(self.model.config, "problem_type", None) == "multi_label_classification":
            return torch.nn.functional.logsigmoid(logits[:, self._index])
        return logits.log_softmax(-1)[:, self._index]


def _label_index(config: Any, label: str | int | None, argument: str) -> int:
    names = {int(i): str(name) for i, name in config.id2label.items()}
    if config.num_labels == 1:
        if label not in (None, 0, names.get(0)):
            raise ValueError(f"`{argument}` must be None for a model with one output, got {label!r}.")
        return 0
    choices = ", ".join(f"{name} ({i})" for i, name in sorted(names.items()))
    if isinstance(label, int) and not isinstance(label, bool) and label in names:
        return label
    for i, name in names.items():
        if isinstance(label, str) and label.lower() in (name.lower(), str(i)):
            return i
    raise ValueError(f"`{argument}` must be one of {choices}, got {label!r}.")
