"""A text classifier as a reward."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification

from redge_guidance.chats import Prompt
from redge_guidance.finished import to_judge
from redge_guidance.rewards.labels import Label
from redge_guidance.rewards.reading.reading import Reading
from redge_guidance.rewards.text.model_reward import TextModelReward, outputs_of


class TextClassifierReward(TextModelReward):
    """Log-probability of a label, in nats, or what else `Label` says.

    Args:
        model: any `AutoModelForSequenceClassification`; it is put into eval mode and its parameters are frozen.
        tokenizer: the tokenizer it was trained with; it need not be the generator's.
        label, against, temperature: as for `Label`.
        padding_side, max_length, answer_only: as for `TextModelReward`.

    Raises:
        ValueError: as `Label`.
    """

    auto_class: ClassVar[Any] = AutoModelForSequenceClassification
    of_tokens: ClassVar[bool | None] = False

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
        answer_only: bool | None = None,
    ):
        super().__init__(model, tokenizer, padding_side, max_length, answer_only)
        self._label = Label(model.config, label, against, temperature)
        self.highest = self._label.highest

    @classmethod
    def from_pipeline(cls, pipe: Any, label: str | int | None = None, **settings: Any) -> "TextClassifierReward":
        """Of a text-classification pipeline of transformers, with its model and tokenizer.

        Args:
            pipe: a `TextClassificationPipeline`.
            label, settings: as for the class.

        Raises:
            ValueError: another pipeline, or no label where the model has several.
        """
        if not all(hasattr(pipe, name) for name in ("model", "tokenizer", "task")) or pipe.tokenizer is None:
            raise ValueError(f"`pipe` must be a text-classification pipeline, got {type(pipe).__name__}.")
        if label is None and pipe.model.config.num_labels > 1:
            names = [str(name) for _, name in sorted(pipe.model.config.id2label.items())]
            raise ValueError(
                f"`label` must name one of {', '.join(names)}, of the model's {len(names)} labels; write "
                f"`TextClassifierReward.from_pipeline(pipe, label={names[-1]!r})`."
            )
        return cls(pipe.model, pipe.tokenizer, label, **settings)

    @property
    def label_name(self) -> str:
        """The label as the classifier's config spells it."""
        return self._label.name

    @property
    def usual_target(self) -> float | None:
        return self._label.usual_target

    @property
    def usual_scale(self) -> float | None:
        """5 nats a nat of log-probability, at T = 1; 1 would be Bayes' rule."""
        return None if self._label.usual_target is None else 5.0 * self._label.temperature

    def predict(self, texts: list[str], batch_size: int = 32) -> list[str]:
        """Names of the likeliest labels of finished texts."""
        texts, _, batch_size = to_judge(texts, batch_size=batch_size)
        return self._label.names(self._logits(texts, batch_size))

    def reached(self, samples: list[str], prompts: Sequence[Prompt] | None = None) -> list[bool] | None:
        samples, prompts, _ = to_judge(samples, prompts)
        return self._label.predicted(self._logits(samples))

    def value(self, reading: Reading) -> Tensor:
        return self._label(outputs_of(self.forward(reading)))

    @torch.no_grad()
    def _logits(self, texts: list[str], batch_size: int = 32) -> Tensor:
        """`(len(texts), labels)`, on the CPU."""
        parts = [texts[first : first + batch_size] for first in range(0, len(texts), batch_size)]
        readings = (self.reader.read_texts(part, self.frames(len(part))) for part in parts)
        found = [outputs_of(self.forward(reading)).cpu() for reading in readings]
        return torch.cat(found) if found else torch.zeros(0, self.model.config.num_labels)
