"""A language model with its tokenizer from a folder or a hub, and the check that it is read as it was meant."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from torch import Tensor
from transformers import MODEL_FOR_MASKED_LM_MAPPING, AutoModelForMaskedLM, AutoTokenizer, PreTrainedTokenizerBase

from redge_guidance.hub import loading, resolve
from redge_guidance.pipelines.text.calling import clean_logits
from redge_guidance.pipelines.text.families import ModelFamily, family_of, prepare_config
from redge_guidance.positions import longest
from redge_guidance.remote import check_loaded, is_remote, load_config, load_model, weight_files
from redge_guidance.text import known_token_ids

_HUB = ("revision", "token", "cache_dir")
_REMOTE = ("device_map", "attn_implementation")
_TOKENIZERS = {
    50_257: "openai-community/gpt2",
    50_258: "openai-community/gpt2",
    30_522: "google-bert/bert-base-uncased",
    30_523: "google-bert/bert-base-uncased",
}


def read_config(
    path: str, family: str | None, trust_remote_code: bool, options: Mapping[str, Any]
) -> tuple[Any, ModelFamily]:
    """Config and calling convention of a checkpoint that is no pipeline.

    Args:
        path: a folder, or a hub id.
        family: a name of `FAMILIES`; None: as the config says.
        trust_remote_code: run Python code that comes with the checkpoint.
        options: `revision`, `token`, `cache_dir`, and others, which are not read.

    Raises:
        ValueError: the family is not known or does not fit, or code is not trusted or does not run.
        OSError: there is no config.
    """
    config = load_config(path, trust_remote_code, **{key: options[key] for key in _HUB if key in options})
    how = family_of(config, family)
    prepare_config(config)
    return config, how


def load_language_model(
    path: str,
    config: Any,
    dtype: torch.dtype,
    tokenizer: Any,
    trust_remote_code: bool,
    weights_only: bool,
    options: Mapping[str, Any],
) -> tuple[Any, Any]:
    """Model and tokenizer of a checkpoint that is no pipeline.

    Args:
        path: a folder, or a hub id.
        config: of `read_config`.
        dtype: of the model.
        tokenizer: the object, or the name of a checkpoint to take it from; None: that of `path`.
        trust_remote_code, weights_only: as in `TextPipeline.from_pretrained`.
        options: `revision`, `token`, `cache_dir`, and what the loader of the model takes.

    Raises:
        ValueError: the checkpoint cannot be read as the model that it says it is.
        OSError: files are missing.
    """
    hub = {key: options[key] for key in _HUB if key in options}
    words = _load_tokenizer(path, config, tokenizer, trust_remote_code, hub)
    if not (trust_remote_code and is_remote(config)):
        return _load_native(path, config, dtype, weights_only, options).eval(), words
    unknown = sorted(set(options) - {*_HUB, *_REMOTE})
    if unknown:
        raise ValueError(
            f"`{unknown[0]}` cannot be used with a model whose code comes with its checkpoint; "
            f"{', '.join(_REMOTE)}, dtype and weights_only can."
        )
    return load_model(path, config, dtype, weights_only=weights_only, **options), words


def _load_native(path: str, config: Any, dtype: torch.dtype, weights_only: bool, options: Mapping[str, Any]) -> Any:
    if type(config) not in MODEL_FOR_MASKED_LM_MAPPING:
        raise ValueError(
            f"a model of type {config.model_type!r} is no masked language model of transformers, and cannot be read as "
            "one: it may be autoregressive, or none of texts."
        )
    if os.path.isdir(path):
        weight_files(Path(path), weights_only)
    safe = {} if weights_only else {"use_safetensors": True}
    model, info = AutoModelForMaskedLM.from_pretrained(
        path, dtype=dtype, output_loading_info=True, trust_remote_code=False, **(safe | dict(options))
    )
    check_loaded(path, model, info)
    return model


def _load_tokenizer(path: str, config: Any, tokenizer: Any, trust_remote_code: bool, hub: Mapping[str, Any]) -> Any:
    if tokenizer is not None and not isinstance(tokenizer, str | os.PathLike):
        if not isinstance(tokenizer, PreTrainedTokenizerBase) and not hasattr(tokenizer, "convert_ids_to_tokens"):
            raise ValueError(f"`tokenizer` must be a tokenizer or the name of one, got {type(tokenizer).__name__}.")
        return tokenizer
    if tokenizer is None and os.path.isdir(path) and not _has_tokenizer(Path(path)):
        size = getattr(config, "vocab_size", None)
        likely = f", perhaps '{_TOKENIZERS[size]}', whose vocabulary is of that size" if size in _TOKENIZERS else ""
        raise ValueError(
            f"`tokenizer` must be given, since {path} has none; its card says which one the model was trained "
            f"with{likely}."
        )
    name = path if tokenizer is None else resolve(tokenizer)
    own: dict[str, Any] = {**hub, "config": config} if tokenizer is None else {}
    with loading(name):
        return AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code, **own)


def _has_tokenizer(folder: Path) -> bool:
    names = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "vocab.txt", "spiece.model", "tokenizer.model")
    return any((folder / name).is_file() for name in names)


@torch.no_grad()
def check_model(model: Any, how: ModelFamily, tokenizer: Any) -> None:
    """One call of the model, on three short texts, that shows whether it is what it was taken for.

    Raises:
        ValueError: its `forward` does not take what the family passes, its logits have not the width of the vocabulary,
            are not finite, or do not depend on the text on both sides, or the tokenizer is larger than the model.
    """
    config = getattr(model, "config", None)
    widths = [getattr(config, name, None) for name in ("vocab_size", "embedding_size")]
    sizes: list[int] = [width for width in widths if width is not None]
    tokens = max(known_token_ids(tokenizer), default=-1) + 1  # the vocabulary may have holes
    size = min(sizes, default=tokens)
    length = min(8, longest(model) or 8)
    device = getattr(model, "device", torch.device("cpu"))
    first, other = torch.arange(length), torch.arange(1, length + 1)
    ids = torch.stack([first, other, torch.cat([first[:-1], other[:1]])]).to(device) % min(size, tokens)
    everywhere, half = torch.ones_like(ids, dtype=torch.bool), torch.full((len(ids),), 0.5, device=device)
    try:
        logits = clean_logits(model, how, ids, everywhere, half)
    except (TypeError, AssertionError, AttributeError, LookupError, RuntimeError) as error:
        raise ValueError(
            f"{type(model).__name__} cannot be called as its family is: {type(error).__name__}: {error}; are `family` "
            "and `dtype` right?"
        ) from error
    fits = isinstance(logits, Tensor) and logits.dim() == 3 and (not sizes or logits.shape[-1] in sizes)
    if not fits:
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(
            f"{type(model).__name__} must return logits (batch, length, {size}), got {shape}; is it the model without "
            "its head? Its config should name the class with the head in `architectures` and `auto_map`."
        )
    if logits.isnan().any() or (logits == torch.inf).any() or not logits.isfinite().any(-1).all():
        raise ValueError(f"the logits of {type(model).__name__} are not finite; is `dtype` wide enough?")
    if tokens > max(logits.shape[-1], _embedded(model)):
        raise ValueError(f"`tokenizer` has {tokens} tokens, and the model {logits.shape[-1]}; take the model's own.")
    if torch.equal(logits[0], logits[1]):
        raise ValueError(
            f"{type(model).__name__} gives the same logits for different texts; its weights were not trained, or it "
            "does not read `input_ids`."
        )
    if length > 2 and how.block_size != 1 and torch.equal(logits[0, :-1], logits[2, :-1]):
        raise ValueError(
            f"{type(model).__name__} gives the same logits whatever comes behind; an autoregressive model cannot be "
            "read as one of masked or uniform diffusion."
        )


def _embedded(model: Any) -> int:
    """Number of tokens that a model has vectors for; 0 where it does not say."""
    try:
        return int(model.get_input_embeddings().num_embeddings)
    except (AttributeError, NotImplementedError):
        return 0


def pipeline_options(name: Any, tokenizer: Any, trust_remote_code: bool, fixed: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of `from_pretrained` that a pipeline folder can follow; a ValueError if one of `fixed` is set.

    A tokenizer takes the place of the pipeline's; the name of one is for models that have none.
    """
    named = tokenizer if isinstance(tokenizer, str | os.PathLike) else None
    for argument, value in {**fixed, "tokenizer": named}.items():
        if value is not None:
            raise ValueError(f"`{argument}` cannot be used with the pipeline `{name}`, which says it itself.")
    options = {"tokenizer": tokenizer, "trust_remote_code": trust_remote_code or None}
    return {option: value for option, value in options.items() if value is not None}


def is_pipeline(path: str, remote: dict[str, Any]) -> bool:
    """Whether a folder or a hub repository holds a pipeline rather than a single model."""
    if os.path.isdir(path):
        return (Path(path) / "model_index.json").is_file()
    try:
        hf_hub_download(path, "model_index.json", **remote)
    except EntryNotFoundError:  # not in the repository; or no network and not in the cache
        return False
    return True


def check_length(model: Any, length: int) -> None:
    """A ValueError if a text of `length` tokens is longer than the model."""
    most = longest(model)
    if most is not None and length > most:
        raise ValueError(
            f"the text needs {length} token positions and the model has {most}; shorten `prompt`, or lower `gen_length`"
            " (of `nll`: shorten `texts`)."
        )
