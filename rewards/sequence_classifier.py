"""A text classifier as a reward."""

import os
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from redge_guidance.checkpoints import loading, resolve
from redge_guidance.relaxed import RelaxedTokens
from redge_guidance.text import end_token_id, text_mask


class SequenceClassifierReward:
    """Log-probability of a label, or the output of a regression model, for a relaxed text.

    `r(x) = log softmax(classifier(x))[label]`, in nats; with one output, `r(x)` is that output. The classifier reads
    the embeddings of the relaxed tokens, so its tokenizer has to be the generator's.

    Args:
        model: any `AutoModelForSequenceClassification`; it is put into eval mode and its parameters are frozen.
        tokenizer: the tokenizer it was trained with.
        label: name or index; None only for a model with one output.

    Raises:
        ValueError: an unknown label, or none where the model has several.
    """

    def __init__(self, model: Any, tokenizer: Any, label: str | int | None = None):
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.label = label
        self._index = _label_index(model.config, label)
        self._accepted: Any = None  # a tokenizer that was found equal to self.tokenizer

    @classmethod
    def from_pretrained(
        cls,
        name: str | os.PathLike[str],
        label: str | int | None = None,
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        **kwargs: Any,
    ) -> "SequenceClassifierReward":
        """Load a classifier and its tokenizer from a folder, a hub id, or `"builtin:sentiment"`.

        Args:
            name: embedded checkpoint, folder, or hub id.
            label: as in the constructor.
            device, dtype: of the classifier.
            **kwargs: for the `from_pretrained` of transformers' auto classes, such as `trust_remote_code`.

        Raises:
            ValueError, FileNotFoundError: `name` or `label` is unknown.
            OSError: `name` is a hub id that cannot be loaded.
        """
        path = resolve(name)
        remote = {key: kwargs[key] for key in ("trust_remote_code", "revision", "token") if key in kwargs}
        with loading(name):
            model = AutoModelForSequenceClassification.from_pretrained(path, dtype=dtype, **kwargs)
            tokenizer = AutoTokenizer.from_pretrained(path, **remote)
        return cls(model.to(device), tokenizer, label)

    def __call__(self, tokens: RelaxedTokens) -> Tensor:
        """Rewards `(batch,)` of a batch of relaxed texts, differentiable in `tokens.weights`.

        Raises:
            ValueError: the generator's tokenizer is another one.
        """
        self._check_tokenizer(tokens.tokenizer)
        assert tokens.attention_mask is not None
        embeddings = tokens.embed(self.model.get_input_embeddings().weight)
        embeddings, mask = _left_aligned(embeddings, tokens.attention_mask)
        return self._pick(self._classify(mask, inputs_embeds=embeddings))

    @torch.no_grad()
    def score(self, texts: list[str], batch_size: int = 256) -> Tensor:
        """Rewards `(len(texts),)` of finished texts, on the CPU: what `__call__` gives for the same hard tokens."""
        return self._pick(self._logits_of_texts(texts, batch_size)).cpu()

    @property
    def label_name(self) -> str:
        """The label as the classifier's config spells it."""
        return str(self.model.config.id2label[self._index])

    @torch.no_grad()
    def predict(self, texts: list[str], batch_size: int = 256) -> list[str]:
        """Names of the likeliest labels of finished texts."""
        return [self.model.config.id2label[int(i)] for i in self._logits_of_texts(texts, batch_size).argmax(-1)]

    def _logits_of_texts(self, texts: list[str], batch_size: int) -> Tensor:
        end = end_token_id(self.tokenizer)
        outputs = [torch.empty(0, self.model.config.num_labels, device=self.model.device)]
        for first in range(0, len(texts), batch_size):
            rows = [list(ids) for ids in self.tokenizer(texts[first : first + batch_size]).input_ids]
            if end is not None:
                rows = [ids if ids and ids[-1] == end else [*ids, end] for ids in rows]
            length = max(map(len, rows))
            filler = end if end is not None else 0
            ids = torch.tensor([row + [filler] * (length - len(row)) for row in rows], device=self.model.device)
            valid = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows], device=ids.device).bool()
            outputs.append(self._classify(text_mask(ids, self.tokenizer, valid), input_ids=ids).float())
        return torch.cat(outputs)

    def _classify(self, attention_mask: Tensor, **inputs: Tensor) -> Tensor:
        logits: Tensor = self.model(attention_mask=attention_mask.long(), **inputs).logits
        return logits

    def _pick(self, logits: Tensor) -> Tensor:
        if logits.shape[-1] == 1:
            return logits[:, 0].float()
        return logits.float().log_softmax(-1)[:, self._index]

    def _check_tokenizer(self, tokenizer: Any) -> None:
        if tokenizer is self.tokenizer or tokenizer is self._accepted:
            return
        if tokenizer is None or tokenizer.get_vocab() != self.tokenizer.get_vocab():
            raise ValueError(
                "the tokenizer of the reward must be the generator's, got "
                f"{_describe(self.tokenizer)} for the reward and {_describe(tokenizer)} for the generator; "
                "use a classifier trained with the generator's tokenizer."
            )
        self._accepted = tokenizer


def _left_aligned(embeddings: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Every row moved left to begin with its first token that counts, as the classifier saw texts in training."""
    start = mask.int().argmax(-1, keepdim=True)
    if not start.any():
        return embeddings, mask
    source = torch.arange(mask.shape[1], device=mask.device) + start
    inside = source < mask.shape[1]
    source = source.clamp(max=mask.shape[1] - 1)
    moved = embeddings.gather(1, source[..., None].expand_as(embeddings))
    return moved, mask.gather(1, source) & inside


def _label_index(config: Any, label: str | int | None) -> int:
    names = {int(i): str(name) for i, name in config.id2label.items()}
    if config.num_labels == 1:
        if label not in (None, 0, names.get(0)):
            raise ValueError(f"`label` must be None for a model with one output, got {label!r}.")
        return 0
    choices = ", ".join(f"{name} ({i})" for i, name in sorted(names.items()))
    if isinstance(label, int) and not isinstance(label, bool) and label in names:
        return label
    for i, name in names.items():
        if isinstance(label, str) and label.lower() in (name.lower(), str(i)):
            return i
    raise ValueError(f"`label` must be one of {choices}, got {label!r}.")


def _describe(tokenizer: Any) -> str:
    return "none" if tokenizer is None else f"{type(tokenizer).__name__} of {len(tokenizer)} tokens"
