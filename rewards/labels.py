"""What a classifier's logits are worth."""

import math
from typing import Any

import torch
from torch import Tensor

from redge_guidance.checks import as_real, as_whole

_SURE = 19.0  # odds of a label that is taken for reached, a probability of 0.95


class Label:
    """Log-probability of a label, the margin between two, or the output of a regression model.

    In nats, z being the logits and T the temperature: `log softmax(z / T)[label]`; for a classifier of several labels
    at once (`problem_type` `"multi_label_classification"`) `log sigmoid(z[label] / T)`; with `against`,
    `(z[label] - z[against]) / T`. With one output, `z / T`.

    Args:
        config: the classifier's, with `num_labels`, `id2label` and `problem_type`.
        label: name, in any case, or index; None only for a model with one output. Where a name is a number it comes
            before the index: of labels called "0" and "-1", 0 and "0" are the first, 1 is the second.
        against: name or index of another label; None: all others.
        temperature: > 0. Above 1 the gradient lasts where the classifier is sure, below 1 it fades sooner.

    Raises:
        ValueError: an unknown label, a name that several have, a bool, none where the model has several, or a
            temperature that is not positive.

    Attributes:
        name: the label as the config spells it.
        temperature: as given.
    """

    def __init__(self, config: Any, label: str | int | None, against: str | int | None, temperature: float):
        self._index = _label_index(config, label, "label")
        self._against = None if against is None else _label_index(config, against, "against")
        if self._against == self._index:
            raise ValueError(f"`against` must be another label than `label`, got {against!r} for both.")
        number = as_real(temperature)
        if number is None or not 0 < number < float("inf"):
            raise ValueError(f"`temperature` must be > 0, got {temperature!r}.")
        self.temperature = number
        self._several = getattr(config, "problem_type", None) == "multi_label_classification"
        self._names = {int(i): str(name) for i, name in config.id2label.items()}
        self.name = self._names[self._index]

    def __call__(self, logits: Tensor) -> Tensor:
        """`(batch, labels)` to `(batch,)`."""
        logits = logits / self.temperature
        if self._against is not None:
            return logits[:, self._index] - logits[:, self._against]
        if logits.shape[-1] == 1:
            return logits[:, 0]
        if self._several:
            return torch.nn.functional.logsigmoid(logits[:, self._index])
        return logits.log_softmax(-1)[:, self._index]

    @property
    def usual_target(self) -> float | None:
        """The value where the label has a probability of 0.95 (at T = 1), all others being alike; None: one output.

        With a temperature T, of K labels: `-log(1 + (K - 1) (19 (K - 1))^(-1 / T))`.
        """
        others = 1 if self._several or self._against is not None else len(self._names) - 1
        if others == 0:
            return None
        odds = (_SURE * others) ** (1 / self.temperature) / others
        return math.log(odds) if self._against is not None else -math.log1p(1 / odds)

    @property
    def highest(self) -> float | None:
        """0 of a log-probability; None of a margin, and of one output."""
        return None if self._against is not None or self.usual_target is None else 0.0

    def names(self, logits: Tensor) -> list[str]:
        """Of the likeliest labels, `(batch, labels)` to `batch` names."""
        return [self._names[i] for i in logits.argmax(-1).tolist()]

    def predicted(self, logits: Tensor) -> list[bool] | None:
        """Whether the label is the likeliest, or, of several at once, likelier than not; None with one output."""
        if logits.shape[-1] == 1:
            return None
        found = logits[:, self._index] > 0 if self._several else logits.argmax(-1) == self._index
        return [bool(one) for one in found]


def _label_index(config: Any, label: Any, argument: str) -> int:
    """A name comes before an index, whatever its kind: of labels called "-1", "0" and "1", 1 is the last."""
    names = {int(i): str(name) for i, name in config.id2label.items()}
    choices = ", ".join(f"{name} ({i})" for i, name in sorted(names.items()))
    number = as_whole(label)
    if not (label is None or isinstance(label, str) or number is not None):
        raise ValueError(f"`{argument}` must be one of {choices}, got {label!r}; pass a name or an index.")
    text = None if label is None else label if isinstance(label, str) else str(number)
    if config.num_labels == 1:
        if text is not None and text.casefold() not in ("0", names.get(0, "0").casefold()):
            raise ValueError(f"`{argument}` must be None for a model with one output, got {label!r}.")
        return 0
    if text is not None:
        exactly = [i for i in names if names[i] == text]
        by_name = exactly or [i for i in names if names[i].casefold() == text.casefold()]
        if len(by_name) > 1:
            alike = ", ".join(f"{names[i]} ({i})" for i in sorted(by_name))
            raise ValueError(f"`{argument}` {label!r} is the name of several labels: {alike}; pass an index.")
        found = by_name or [i for i in names if str(i) == text]
        if found:
            return found[0]
    raise ValueError(f"`{argument}` must be one of {choices}, got {label!r}.")
