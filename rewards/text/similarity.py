"""Likeness of meaning as a reward."""

import json
import os
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import MODEL_FOR_TEXT_ENCODING_MAPPING, AutoConfig, AutoModel, AutoModelForTextEncoding
from transformers.utils import cached_file

from redge_guidance.chats import Prompt
from redge_guidance.finished import to_judge
from redge_guidance.hub import loading, resolve
from redge_guidance.rewards.reading.framing import Frame
from redge_guidance.rewards.reading.reading import Reading
from redge_guidance.rewards.text.model_reward import TextModelReward

_POOLINGS = ("mean", "cls", "last")


class SentenceSimilarityReward(TextModelReward):
    """`r(x) = mean_k cos(e(x), e(y_k))`, in [-1, 1], e the sentence embedding of a model, y_k the target texts.

    `-reward` repels. Differences between texts are small, so that a `scale` of 20 to 60 is in place.

    Args:
        model: an encoder, such as those of sentence-transformers.
        tokenizer: the model's.
        targets: one or several texts.
        pooling: how a text's embedding comes from its tokens': their `"mean"`, that of the first (`"cls"`) or of the
            `"last"`. `from_pretrained` reads it from the checkpoint's config, and takes the mean where that says
            nothing.
        prefix: what the model wants in front of every text, such as `"query: "`; `from_pretrained` takes the default
            prompt of the checkpoint.
        padding_side, max_length, answer_only: as for `TextModelReward`.

    Raises:
        ValueError: no target, or a pooling that is not known.
    """

    auto_class: ClassVar[Any] = AutoModel
    of_tokens: ClassVar[bool | None] = True
    unread_weights: ClassVar[tuple[str, ...]] = ("pooler.",)  # embeddings are made of the tokens' states

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        targets: str | Sequence[str],
        *,
        pooling: str = "mean",
        prefix: str = "",
        padding_side: str | None = None,
        max_length: int | None = None,
        answer_only: bool | None = None,
    ):
        super().__init__(model, tokenizer, padding_side, max_length, answer_only)
        if pooling not in _POOLINGS:
            raise ValueError(f"`pooling` must be one of {', '.join(_POOLINGS)}, got {pooling!r}.")
        self.targets = [targets] if isinstance(targets, str) else list(targets)
        if not self.targets:
            raise ValueError("`targets` must be a text or several, got none.")
        self.pooling, self._frame = pooling, Frame(prefix)
        self._directions = self.embed(self.targets)  # (targets, dim)

    @classmethod
    def from_pretrained(cls, name: str | os.PathLike[str], *args: Any, **kwargs: Any) -> Any:
        """As `TextModelReward.from_pretrained`, with pooling, length and prefix of sentence-transformers.

        Raises:
            ValueError: a checkpoint with layers after the pooling, which are not supported, in addition.
        """
        path = resolve(name, kwargs.get("revision"), kwargs.get("cache_dir"))
        with loading(name):
            settings = _sentence_settings(path)
        return super().from_pretrained(name, *args, **{**settings, **kwargs})

    @classmethod
    def model_class(cls, path: str, hub: dict[str, Any]) -> Any:
        """The encoder alone of a model that has a decoder too (T5)."""
        config = AutoConfig.from_pretrained(path, **hub)
        return AutoModelForTextEncoding if type(config) in MODEL_FOR_TEXT_ENCODING_MAPPING else AutoModel

    @torch.no_grad()
    def embed(self, texts: list[str], batch_size: int = 32) -> Tensor:
        """Sentence embeddings of length 1, `(len(texts), dim)`."""
        texts, _, batch_size = to_judge(texts, batch_size=batch_size)
        parts = [texts[first : first + batch_size] for first in range(0, len(texts), batch_size)]
        return torch.cat([self._embed(self.reader.read_texts(part, self.frames(len(part)))) for part in parts])

    def value(self, reading: Reading) -> Tensor:
        return (self._embed(reading) @ self._directions.T).mean(-1)

    def frames(self, count: int, draws: int = 1, prompts: Sequence[Prompt] | None = None) -> Sequence[Frame]:
        return [self._frame] * count

    def _embed(self, reading: Reading) -> Tensor:
        states, mask = self.forward(reading).float(), reading.mask
        if self.pooling == "mean":
            pooled = (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        else:
            slot = torch.arange(mask.shape[1], device=mask.device)
            where = torch.where(mask, slot, -1).argmax(1) if self.pooling == "last" else mask.int().argmax(1)
            pooled = states[torch.arange(len(states), device=mask.device), where]
        return torch.nn.functional.normalize(pooled, dim=-1)


def _sentence_settings(path: str) -> dict[str, Any]:
    """Pooling, length and default prompt of a checkpoint of sentence-transformers; nothing for others."""
    modules = _config(path, "modules.json") or []
    kinds = [module["type"].rsplit(".", 1)[-1] for module in modules]
    unknown = [kind for kind in kinds if kind not in ("Transformer", "Pooling", "Normalize")]
    if unknown:
        raise ValueError(f"`{path}` has a layer {unknown[0]} after its pooling, which is not supported.")
    settings: dict[str, Any] = {}
    folder = next((module["path"] for module, kind in zip(modules, kinds, strict=True) if kind == "Pooling"), None)
    pooling = None if folder is None else _config(path, f"{folder}/config.json")
    if pooling is not None:
        settings["pooling"] = _pooling_name(pooling, path)
    told = _config(path, "config_sentence_transformers.json") or {} if modules else {}
    prompt = (told.get("prompts") or {}).get(told.get("default_prompt_name"))
    if prompt:
        settings["prefix"] = prompt
    length = (_config(path, "sentence_bert_config.json") or {}).get("max_seq_length")
    return settings if length is None else settings | {"max_length": length}


def _pooling_name(config: dict[str, Any], path: str) -> str:
    keys = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls", "pooling_mode_lasttoken": "last"}
    chosen = [name for key, name in config.items() if key == "pooling_mode"]
    chosen += [keys.get(key, key) for key, on in config.items() if key.startswith("pooling_mode_") and on is True]
    chosen = [{"lasttoken": "last"}.get(name, name) for name in chosen]
    if len(chosen) != 1 or chosen[0] not in _POOLINGS:
        raise ValueError(f"`{path}` pools by {' and '.join(chosen) or 'nothing'}, which is not supported.")
    return str(chosen[0])


def _config(path: str, name: str) -> Any:
    file = cached_file(
        path, name, _raise_exceptions_for_missing_entries=False, _raise_exceptions_for_connection_errors=False
    )
    if file is None:
        return None
    with open(file, encoding="utf-8") as stream:
        return json.load(stream)
