"""A call of a model, read off its arguments: which tokens, where they stand, which of them are padding."""

import copy
import inspect
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from redge_guidance.positions import bare
from redge_guidance.step import Generators

_IDS = ("input_ids", "indices", "ids", "tokens", "x")
_EMBEDDED = ("inputs_embeds", "input_embeddings")
_CACHES = ("past_key_values", "cache", "past_key_value")


@dataclass(frozen=True, eq=False)
class ForwardSettings:
    """How a sampler calls its model, as `guide` has it."""

    classifier_free: str | None = "auto"
    guidance_scale: float | None = None
    conditional_first: bool | None = None
    shift_logits: bool = False
    vocabulary: slice | None = None
    temperature: float = 1.0
    free: Callable[[Tensor], Tensor] | None = None
    start: Callable[[dict[str, Any]], int] | None = None
    generator: Generators = None


@dataclass(frozen=True, eq=False)
class ModelCall:
    """What a model was given and what it gave.

    Attributes:
        ids: `(batch, length)` int64, the whole text so far.
        text: `(batch, length)` bool, False on padding.
        logits: `(batch, block, vocabulary)`.
        offset: position of the first of the logits.
    """

    ids: Tensor
    text: Tensor
    logits: Tensor
    offset: int

    def rows(self, rows: slice) -> "ModelCall":
        """Some of the batch."""
        return replace(self, ids=self.ids[rows], text=self.text[rows], logits=self.logits[rows])


def arguments_of(model: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of `forward` by name; those that have none, by their number."""
    try:
        bound = inspect.signature(_inner(model).forward).bind(*args, **kwargs)
    except TypeError:
        return {str(i): one for i, one in enumerate(args)} | dict(kwargs)
    found: dict[str, Any] = {}
    for name, value in bound.arguments.items():
        kind = bound.signature.parameters[name].kind
        if kind is inspect.Parameter.VAR_KEYWORD:
            found |= value
        elif kind is inspect.Parameter.VAR_POSITIONAL:
            found |= {str(i): one for i, one in enumerate(value)}
        else:
            found[name] = value
    return found


def _inner(model: Any) -> Any:
    """The model that a wrapper passes all of its arguments to, as `DataParallel` does: it is the one to name them."""
    model, kinds = bare(model), inspect.Parameter
    passed = [one.kind for one in inspect.signature(model.forward).parameters.values()]
    inner = getattr(model, "module", None)
    if inner is None and isinstance(model, torch.nn.Module) and len(few := list(model.children())) == 1:
        inner = few[0]
    all_passed = bool(passed) and set(passed) <= {kinds.VAR_POSITIONAL, kinds.VAR_KEYWORD}
    return _inner(inner) if all_passed and isinstance(inner, torch.nn.Module) else model


def ids_of(arguments: Mapping[str, Any], model: Any) -> Tensor:
    """The tokens of a call, `(batch, length)`.

    Raises:
        ValueError: a call with embeddings, or without tokens.
    """
    named = [arguments[name] for name in _IDS if name in arguments]
    for one in (*named, *arguments.values()):
        if isinstance(one, Tensor) and one.ndim in (1, 2) and one.dtype in (torch.int64, torch.int32):
            return one.long() if one.ndim == 2 else one.long()[None]
    embedded = next((name for name in _EMBEDDED if arguments.get(name) is not None), None)
    if embedded is not None:
        raise ValueError(
            f"`{embedded}` was passed to the guided {type(model).__name__}, and guidance has to know the tokens; "
            "call it with `input_ids`, or guide the logits by `LogitsGuidance`."
        )
    raise ValueError(
        f"the guided {type(model).__name__} was called without tokens, `(batch, length)` int64, among "
        f"{', '.join(arguments) or 'no arguments'}; guide the logits by `LogitsGuidance`."
    )


def cached(arguments: Mapping[str, Any]) -> int | None:
    """How many tokens the cache of a call holds; None: there is no cache, -1: its length is not known."""
    cache = next((arguments[name] for name in _CACHES if arguments.get(name) is not None), None)
    if cache is None:
        return None
    if hasattr(cache, "get_seq_length"):
        return int(cache.get_seq_length())
    try:
        return int(cache[0][0].shape[-2]) if len(cache) else 0
    except (TypeError, IndexError, KeyError, AttributeError):
        return -1


def start_of(arguments: Mapping[str, Any], length: int, in_cache: int | None) -> int:
    """Position of the first token of a call with a cache: by what the call says, or after what is in the cache.

    `replace_position` is Fast-dLLM's: `(batch, text)` bool, the positions of the cache that the call replaces.

    Raises:
        ValueError: neither says it.
    """
    replaced = arguments.get("replace_position")
    if isinstance(replaced, Tensor) and replaced.any():
        return int(replaced.reshape(-1, replaced.shape[-1])[0].int().argmax())
    if in_cache is None:
        return 0
    for name in ("cache_position", "position_ids"):
        positions = arguments.get(name)
        if isinstance(positions, Tensor) and positions.numel() and positions.shape[-1] == length:
            return int(positions.reshape(-1)[0])
    if in_cache < 0:
        raise ValueError(
            "a call of the guided model has a cache whose length is not known; say where its tokens begin by `start`, "
            "a function of the arguments of the call by name."
        )
    return in_cache


def padding_of(arguments: Mapping[str, Any], shape: torch.Size, start: int) -> Tensor | None:
    """Which of the tokens of a call are text, `(batch, length)` bool, from whatever mask it has; None: it has none.

    A mask `(batch, length)` says it itself, one of pairs of tokens by whether a token may look at itself.
    """
    mask = arguments.get("attention_mask")
    mask = arguments.get("attention_bias") if mask is None else mask
    if not isinstance(mask, Tensor):
        return None
    batch, length = shape
    if mask.ndim == 2 and len(mask) in (1, batch) and mask.shape[1] >= length:
        behind = start if mask.shape[1] >= start + length else mask.shape[1] - length
        return _as_text(mask[:, behind : behind + length]).expand(batch, -1)
    pairs = mask[:, 0] if mask.ndim == 4 else mask
    if pairs.ndim == 3 and len(pairs) in (1, batch) and pairs.shape[1] == length and pairs.shape[2] >= start + length:
        return _as_text(pairs[:, :, start : start + length].diagonal(dim1=1, dim2=2), pairs=True).expand(batch, -1)
    warnings.warn(
        f"an attention mask of shape {tuple(mask.shape)} says nothing of which of the {length} tokens are padding; "
        "all of them are read as text.",
        stacklevel=4,
    )
    return None


def _as_text(mask: Tensor, pairs: bool = False) -> Tensor:
    """Masks of numbers are 0 or 1, or, of pairs, what is added to the scores."""
    additive = pairs and mask.is_floating_point() and not bool(((mask == 0) | (mask == 1)).all() and mask.any())
    return mask > -1 if additive else mask.bool()


def logits_of(output: Any, model: Any) -> Tensor:
    """Logits `(batch, length, vocabulary)` of what a model gave: a tensor, `.logits`, or the first such of a tuple.

    Raises:
        ValueError: nothing of the kind.
    """
    found = output if isinstance(output, Tensor) else _field(output)
    if found is None and isinstance(output, tuple):
        found = next((one for one in output if _is_logits(one)), None)
    if not _is_logits(found):
        raise ValueError(
            f"the guided {type(model).__name__} must give logits `(batch, length, vocabulary)`, a tensor, in a "
            f"tuple, or as `.logits`, got {type(output).__name__}; guide the model with the head."
        )
    logits: Tensor = found
    return logits if logits.ndim == 3 else logits[None]


def with_logits(output: Any, logits: Tensor) -> Any:
    """A copy of `output` with other logits where `logits_of` finds them."""
    if isinstance(output, Tensor):
        return logits.view(output.shape)
    own = _field(output)
    if own is None:
        at = next(i for i, one in enumerate(output) if _is_logits(one))
        parts = [*output[:at], logits.view(output[at].shape), *output[at + 1 :]]
        return type(output)(*parts) if hasattr(output, "_fields") else tuple(parts)
    logits = logits.view(own.shape)
    if hasattr(output, "_replace"):
        return output._replace(logits=logits)
    if isinstance(output, Mapping):  # a ModelOutput is one
        return type(output)(**{**output, "logits": logits})
    other = copy.copy(output)
    other.logits = logits
    return other


def _field(output: Any) -> Any:
    return output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)


def _is_logits(one: Any) -> bool:
    return isinstance(one, Tensor) and one.is_floating_point() and one.ndim in (2, 3)
