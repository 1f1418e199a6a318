"""Calling a model as its family wants it: shifted logits, masks of attention, time, finished blocks from a cache."""

import inspect
import warnings
import weakref
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any

import torch
from torch import Tensor

from redge_guidance.pipelines.text.block_cache import Finished
from redge_guidance.pipelines.text.families import ModelFamily
from redge_guidance.positions import bare, find_padding, positions_of

# how a model takes padding by the `attention` of its family, as far as it was found out
_PADDING: MutableMapping[Any, dict[str, str]] = weakref.WeakKeyDictionary()
_SMALLEST_ALPHA = 1e-3  # sigma = -log alpha is infinite when nothing is left


def clean_logits(
    model: Any,
    family: ModelFamily,
    ids: Tensor,
    attention_mask: Tensor,
    alpha: Tensor,
    inputs: Mapping[str, Tensor] | None = None,
) -> Tensor:
    """Logits `(batch, length, vocabulary)` of the clean tokens, each at its own position.

    Padding does not change what a row gets. How a model takes it is found out when padding comes first: with its own
    positions, with positions that are passed, or not at all, so that rows of one length are read at a time.

    Args:
        model: called by the arguments that its `forward` takes.
        family: how.
        ids: `(batch, length)` int64, padding on the left.
        attention_mask: `(batch, length)` bool, False on padding.
        alpha: `(batch,)`, share of tokens that the corruption has left at the time of the row.
        inputs: further arguments of `forward`, `(batch, ...)`.
    """
    more = dict(inputs or {})
    reads_mask = family.attention in ("2d", "4d") and "attention_mask" in _accepted(model)
    padded, found = not attention_mask.all(), _PADDING.setdefault(model, {})
    if reads_mask and padded and family.attention not in found:
        found[family.attention] = _find_padding(model, family, ids, attention_mask, alpha, more)
    if not padded or (reads_mask and found[family.attention] != "apart"):
        return _call(model, family, ids, attention_mask, alpha, more)

    def whole(rows: Tensor, part: Tensor) -> Tensor:
        own = {name: value[rows] for name, value in more.items()}
        return _call(model, family, part, torch.ones_like(part, dtype=torch.bool), alpha[rows], own)

    return _by_padding(ids, attention_mask, whole)


class BlockReader:
    """Logits of one block of a text after the other, from a model with block-causal attention.

    What comes before a block is read once: its keys and values stay in a cache, where the model's `forward` takes one.
    With or without, the logits are the same up to rounding.

    Args:
        model: as in `clean_logits`.
        family: one with `is_block`.
        use_cache: False reads the text again in every call.
    """

    def __init__(self, model: Any, family: ModelFamily, use_cache: bool = True):
        assert family.block_size is not None
        self._model, self._family, self._size = model, family, family.block_size
        self._caches: dict[int, Finished] = {}
        self._uses_cache = use_cache and "past_key_values" in _accepted(model)

    def __call__(self, ids: Tensor, attention_mask: Tensor, alpha: Tensor, block: Tensor) -> Tensor:
        """Logits `(batch, length, vocabulary)` at the positions of a block, 0 elsewhere.

        Args:
            ids, attention_mask, alpha: as in `clean_logits`; whatever stands before the block is finished.
            block: `(batch, length)` bool, positions of a row that lie in one block of attention; a row may have none.
        """

        def within(rows: Tensor, part: Tensor) -> Tensor | None:
            where = block[rows, -part.shape[1] :].any(0).nonzero()
            if not len(where):
                return None
            start = int(where[0]) // self._size * self._size
            end = min(start + self._size, part.shape[1])
            logits = self._block(part, alpha[rows], start, end)
            return torch.nn.functional.pad(logits, (0, 0, start, part.shape[1] - end))

        return _by_padding(ids, attention_mask, within)

    def _block(self, ids: Tensor, alpha: Tensor, start: int, end: int) -> Tensor:
        """Logits `(batch, end - start, vocabulary)` of the tokens there."""
        read = None
        if self._uses_cache and start:
            read = self._caches.setdefault(ids.shape[1], Finished())
            self._catch_up(read, ids[:, :start], alpha)
            read = read if self._uses_cache else None
        first = 0 if read is None else start
        logits = _call_block(self._model, self._family, ids[:, first:end], alpha, first, read)
        if self._family.shift_logits:
            before = logits[:, :1] if read is None or read.last is None else read.last
            logits = torch.cat([before, logits[:, :-1]], 1)
        return logits[:, start - first :]

    def _catch_up(self, read: Finished, ids: Tensor, alpha: Tensor) -> None:
        if read.ids is not None and not torch.equal(read.ids, ids[:, : read.ids.shape[1]]):
            read.clear()  # somebody changed what was finished
        done = 0 if read.ids is None else read.ids.shape[1]
        if done < ids.shape[1]:
            read.cache.storing = True
            logits = _call_block(self._model, self._family, ids[:, done:], alpha, done, read)
            read.cache.storing = False
            read.ids, read.last = ids, logits[:, -1:]
            if read.cache.get_seq_length() != ids.shape[1]:
                self._uses_cache = False
                warnings.warn(
                    f"{type(self._model).__name__} takes `past_key_values` and stores nothing there; the text is read "
                    "again in every step. Pass `use_cache=False`.",
                    stacklevel=2,
                )


class WindowReader:
    """Logits of one stretch of a text after the other, of which the model is shown the last `window` positions.

    So texts may be longer than the model (MDLM's semi-autoregressive sampling, arXiv 2406.07524, section 3.4).

    Args:
        model, family: as in `clean_logits`.
        window: positions that the model sees, up to the end of the stretch.
    """

    def __init__(self, model: Any, family: ModelFamily, window: int):
        self._model, self._family, self._window = model, family, window

    def __call__(self, ids: Tensor, attention_mask: Tensor, alpha: Tensor, block: Tensor) -> Tensor:
        """Logits `(batch, length, vocabulary)` in the window, 0 elsewhere; arguments as in `BlockReader`."""

        def within(rows: Tensor, part: Tensor) -> Tensor | None:
            where = block[rows, -part.shape[1] :].any(0).nonzero()
            if not len(where):
                return None
            end = int(where[-1]) + 1
            first = max(0, end - self._window)
            seen = part[:, first:end]
            logits = _call(self._model, self._family, seen, torch.ones_like(seen, dtype=torch.bool), alpha[rows])
            return torch.nn.functional.pad(logits, (0, 0, first, part.shape[1] - end))

        return _by_padding(ids, attention_mask, within)


def _by_padding(ids: Tensor, attention_mask: Tensor, call: Callable[[Tensor, Tensor], Tensor | None]) -> Tensor:
    """`call(rows, ids)` for all rows of equal padding, without it; 0 where nothing was called."""
    padding = (~attention_mask).sum(-1)
    parts: list[tuple[Tensor, int, Tensor]] = []
    for amount in padding.unique().tolist():
        rows = padding == amount
        part = call(rows, ids[rows, amount:])
        if part is not None:
            parts.append((rows, amount, part))
    logits = parts[0][2].new_zeros(*ids.shape, parts[0][2].shape[-1])
    for rows, amount, part in parts:
        logits[rows, amount:] = part
    return logits


def _accepted(model: Any) -> set[str]:
    """Names of the arguments of `forward`, and of those of the decoder that it hands the others on to."""
    model = bare(model)
    parameters = inspect.signature(model.forward).parameters
    names, inner = set(parameters), getattr(model, "model", None)
    if inner is not None and any(one.kind is one.VAR_KEYWORD for one in parameters.values()):
        names |= set(inspect.signature(inner.forward).parameters)
    return names


def _call(
    model: Any,
    family: ModelFamily,
    ids: Tensor,
    attention_mask: Tensor,
    alpha: Tensor,
    more: Mapping[str, Tensor] | None = None,
) -> Tensor:
    if family.is_block:
        logits = _call_block(model, family, ids, alpha, 0, None)
        return _shifted(logits, attention_mask) if family.shift_logits else logits
    with_positions = _PADDING.get(model, {}).get(family.attention) == "positions"
    logits = _call_padded(model, family, ids, attention_mask, alpha, more, with_positions)
    return _shifted(logits, attention_mask) if family.shift_logits else logits


def _call_padded(
    model: Any,
    family: ModelFamily,
    ids: Tensor,
    attention_mask: Tensor,
    alpha: Tensor,
    more: Mapping[str, Tensor] | None,
    with_positions: bool,
) -> Tensor:
    """Unshifted logits; what is called padding is what the model takes for it, whatever stands there in `ids`."""
    inputs: dict[str, Any] = dict(more or {})
    padding, accepted = getattr(getattr(model, "config", None), "pad_token_id", None), _accepted(model)
    if isinstance(padding, int) and padding >= 0 and not attention_mask.all():
        ids = ids.where(attention_mask, padding)
    if family.attention != "none" and "attention_mask" in accepted:
        inputs["attention_mask"] = attention_mask.long() if family.attention == "2d" else _square(model, attention_mask)
    if with_positions and not attention_mask.all():
        inputs["position_ids"] = positions_of(attention_mask)
    return _forward(model, family, ids, alpha, inputs)


def _find_padding(
    model: Any,
    family: ModelFamily,
    ids: Tensor,
    attention_mask: Tensor,
    alpha: Tensor,
    more: Mapping[str, Tensor],
) -> str:
    """As `find_padding`, by the rows with the most and the least padding.

    Raises:
        ValueError: the output of a row depends on other rows.
    """
    amount = (~attention_mask).sum(-1)
    rows = torch.stack([amount.argmax(), amount.argmin()])

    def call(ids: Tensor, mask: Tensor, positions: Tensor | None) -> Tensor:
        own = rows[:1].expand(len(ids))  # the same time and class for all
        few = {name: value[own] for name, value in more.items()}
        return _call_padded(model, family, ids, mask, alpha[own], few, positions is not None)

    takes_positions = "position_ids" in _accepted(model)
    return find_padding(call, ids[rows], attention_mask[rows], takes_positions)


def _call_block(
    model: Any, family: ModelFamily, ids: Tensor, alpha: Tensor, start: int, read: Finished | None
) -> Tensor:
    """Logits of `ids`, the tokens from `start` on, unshifted; those before are in the cache of `read`."""
    accepted, size = _accepted(model), family.block_size
    assert size is not None
    positions = torch.arange(start + ids.shape[1], device=ids.device)
    inputs: dict[str, Any] = {}
    if "attention_mask" in accepted:
        seen = positions[start:, None] // size >= positions // size
        seen = seen.expand(len(ids), 1, -1, -1)
        inputs["attention_mask"] = seen if family.attention == "block" else _bias(seen, getattr(model, "dtype", None))
    if "position_ids" in accepted:
        inputs["position_ids"] = positions[start:].expand(len(ids), -1)
    if "sample_mode" in accepted:  # BD3-LM: a text rather than a noisy one beside a clean one
        inputs["sample_mode"] = True
    if "block_size" in accepted:  # Fast-dLLM makes its own mask
        inputs["block_size"] = size
    if read is not None:
        inputs |= {"past_key_values": read.cache, "use_cache": True}
        inputs |= {name: read.cache.storing for name in ("store_kv", "update_past_key_values") if name in accepted}
    return _forward(model, family, ids, alpha, inputs)


def _bias(seen: Tensor, dtype: torch.dtype | None) -> Tensor:
    """What is added to the scores of attention: 0 where a token is seen, the least number elsewhere."""
    bias = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
    return bias.masked_fill(~seen, torch.finfo(bias.dtype).min)


def _forward(model: Any, family: ModelFamily, ids: Tensor, alpha: Tensor, inputs: dict[str, Any]) -> Tensor:
    if family.time_input is not None:
        conditioned = getattr(getattr(model, "config", None), "time_conditioning", True)
        inputs[family.time_input] = -alpha.clamp(min=_SMALLEST_ALPHA).log() * float(conditioned)
    output = model(input_ids=ids, **inputs) if "input_ids" in _accepted(model) else model(ids, **inputs)
    logits: Tensor = output.logits if hasattr(output, "logits") else output
    return logits if isinstance(logits, Tensor) else logits[0]


def _square(model: Any, attention_mask: Tensor) -> Tensor:
    """`(batch, 1, length, length)`: text sees text; padding sees itself, so that no row is empty.

    Boolean; as numbers to be added where the model's attention is transformers' eager one, which adds what it is given.
    """
    both = attention_mask[:, None, :, None] & attention_mask[:, None, None, :]
    seen = both | torch.eye(attention_mask.shape[1], dtype=torch.bool, device=attention_mask.device)
    is_eager = getattr(getattr(model, "config", None), "_attn_implementation", None) == "eager"
    adds = is_eager and type(bare(model)).__module__.startswith("transformers.")
    return _bias(seen, getattr(model, "dtype", None)) if adds else seen


def _shifted(logits: Tensor, attention_mask: Tensor) -> Tensor:
    """Logits moved one position to the right; the first token of a text keeps its own."""
    first = attention_mask.int().argmax(-1, keepdim=True)
    source = (torch.arange(logits.shape[1], device=logits.device) - 1).maximum(first)
    return logits.gather(1, source[..., None].expand_as(logits))
