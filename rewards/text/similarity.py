"""Likeness of meaning as a reward."""

import json
import os
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import MODEL_FOR_TEXT_ENCODING_MAPPING, AutoConfig, AutoModel, AutoModelForTextEncoding
from transformers.utils import cached_file

from redge_guidance.chats import Prompt, as_messages
from redge_guidance.finished import to_judge
from redge_guidance.hub import loading, resolve
from redge_guidance.rewards.reading.framing import Frame
from redge_guidance.rewards.reading.reading import Reading
from redge_guidance.rewards.text.model_reward import TextModelReward

_POOLINGS = ("mean", "cls", "last")


class SentenceSimilarityReward(TextModelReward):
    """`r(x) = mean_k cos(e(x), e(y_k))`, in [-1, 1], e the sentence embedding of a model, y_k the target texts.

    Without targets the likeness to the prompt, of a conversation to its last turn, the answer alone being judged.
    `-reward` repels. The usual target is a cosine of 0.5: texts about the same. Differences between texts are small, so
    that a fixed `scale` has to be large, 20 to 250.

    Args:
        model: an encoder, such as those of sentence-transformers, or a `SentenceTransformer` itself.
        tokenizer: the model's; None: that of the `SentenceTransformer`, which also says pooling, prefix and length.
        targets: one or several texts; None: the prompts of the pipeline, or those that `score` is told.
        pooling: how a text's embedding comes from its tokens': their `"mean"`, that of the first (`"cls"`) or of the
            `"last"`. `from_pretrained` reads it from the checkpoint's config, and takes the mean where that says
            nothing.
        prefix: what the model wants in front of every text, such as `"query: "`; `from_pretrained` takes the default
            prompt of the checkpoint.
        padding_side, max_length, answer_only: as for `TextModelReward`.

    Raises:
        ValueError: no target, a pooling that is not known, or a `SentenceTransformer` that has layers after the pooling
            or another similarity than the cosine. When called: neither targets nor prompts.
    """

    auto_class: ClassVar[Any] = AutoModel
    of_tokens: ClassVar[bool | None] = True
    usual_target, highest = 0.5, 1.0
    unread_weights: ClassVar[tuple[str, ...]] = ("pooler.",)  # embeddings are made of the tokens' states

    def __init__(
        self,
        model: Any,
        tokenizer: Any = None,
        targets: str | Sequence[str] | None = None,
        *,
        pooling: str = "mean",
        prefix: str = "",
        padding_side: str | None = None,
        max_length: int | None = None,
        answer_only: bool | None = None,
    ):
        if tokenizer is None and _is_sentence_transformer(model):
            model, tokenizer, told = _parts_of(model)
            pooling, prefix = told["pooling"], prefix or told["prefix"]
            max_length = told["max_length"] if max_length is None else max_length
        answer_only = True if answer_only is None and targets is None else answer_only
        super().__init__(model, tokenizer, padding_side, max_length, answer_only)
        if pooling not in _POOLINGS:
            raise ValueError(f"`pooling` must be one of {', '.join(_POOLINGS)}, got {pooling!r}.")
        self.targets = [targets] if isinstance(targets, str) else list(targets or [])
        if not self.targets and targets is not None:
            raise ValueError("`targets` must be a text or several, got none.")
        self.pooling, self._frame = pooling, Frame(prefix)
        self._directions = self.embed(self.targets) if self.targets else None  # (targets, dim)

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

    def value_for(self, reading: Reading, prompts: Sequence[Prompt] | None) -> Tensor:
        found = self._embed(reading)
        if self._directions is not None:
            return (found @ self._directions.T).mean(-1)
        if prompts is None:
            raise ValueError(
                "`targets` is None and there are no prompts to the texts; make the reward with `targets=`, or let "
                "`score` or the pipeline know the `prompts`."
            )
        texts = [str(as_messages(prompt)[-1]["content"]) for prompt in prompts]
        distinct = list(dict.fromkeys(texts))
        rows = torch.tensor([distinct.index(text) for text in texts], device=found.device)
        return (found * self.embed(distinct)[rows]).sum(-1)

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


def _is_sentence_transformer(model: Any) -> bool:
    return any(kind.__name__ == "SentenceTransformer" for kind in type(model).__mro__)


def _parts_of(encoder: Any) -> tuple[Any, Any, dict[str, Any]]:
    """Model, tokenizer and settings of a `SentenceTransformer`."""
    kinds = [type(module).__name__ for module in encoder]
    unknown = [kind for kind in kinds[2:] if kind not in ("Normalize", "Dropout")]
    if kinds[:2] != ["Transformer", "Pooling"] or unknown:
        raise ValueError(f"`model` must be made of Transformer, Pooling and Normalize, got {' and '.join(kinds)}.")
    if encoder.similarity_fn_name != "cosine":
        raise ValueError(f"`model` must be compared by the cosine, got {encoder.similarity_fn_name}.")
    pooling = {"lasttoken": "last"}.get(encoder[1].pooling_mode, encoder[1].pooling_mode)
    prefix = encoder.prompts.get(encoder.default_prompt_name) or ""
    if getattr(encoder, "truncate_dim", None) is not None or (prefix and not encoder[1].include_prompt):
        raise ValueError("`model` must embed by all of its dimensions and tokens, got one that leaves some out.")
    return (
        encoder.transformers_model,
        encoder.tokenizer,
        {
            "pooling": pooling,
            "prefix": prefix,
            "max_length": encoder.max_seq_length,
        },
    )


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
