"""Calling a model on what it is to read, as its own tokenizer would have it called."""

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from redge_guidance.positions import accepted, close, find_padding, positions_of
from redge_guidance.rewards.reading.framing import Frame, Row
from redge_guidance.rewards.reading.reading import ModelInput, Reading
from redge_guidance.rewards.reading.shown import showing
from redge_guidance.text import special_token_ids

_SIDES = {"left": ("left", "right"), "right": ("right", "left")}


class ModelCall:
    """The outputs of a model for a `Reading`: logits, scores or hidden states.

    How the model takes padding is found out once, on texts of two lengths, of which it has to give in one batch what it
    gives alone: on the right or on the left, with its own positions or with some that are passed. One that does neither
    (FNet, which has no mask) is called with texts of one length at a time. Then what it gives for embeddings, as
    guidance shows them, is compared with what it gives for ids.

    Args:
        model: of transformers, or called alike.
        read: how it reads; its `padding_side` becomes the one that the model takes.

    Attributes:
        of_tokens: whether there is an output for each token rather than for each text; None: not known, on "meta".

    Raises:
        ValueError: the model cannot be called by ids, a text's output depends on other texts, or on the embeddings
            otherwise than by the look-up.
    """

    def __init__(self, model: Any, read: ModelInput):
        self._model, self._read = model, read
        self._takes = accepted(model)
        self._padding = "mask"
        self.of_tokens: bool | None = None
        if read.device.type != "meta":
            try:
                self._find_out()
            except Exception as error:  # whatever the model raises
                pad = getattr(getattr(model, "config", None), "pad_token_id", 0)
                hint = " Its config names no `pad_token_id`, which some models need." if pad is None else ""
                what = str(error).partition("\n")[0]
                raise ValueError(f"`model` {type(model).__name__} cannot be read as a reward: {what}{hint}") from error

    def __call__(self, reading: Reading) -> Tensor:
        """`(batch, ...)`, or `(batch, length, ...)` where the model has an output for each token."""
        positions = positions_of(reading.mask) if self._padding == "positions" and not reading.mask.all() else None
        if self._padding != "apart" or reading.mask.all():
            return self._call(reading, positions)
        lengths, result = reading.mask.sum(-1), None
        for length in lengths.unique().tolist():
            rows = lengths == length
            columns = slice(-length, None) if self._read.padding_side == "left" else slice(length)
            part = self._call(_part(reading, rows, columns), None)
            if result is None:
                whole = reading.ids.shape if part.dim() == 3 else part.shape[:1]
                result = part.new_zeros(len(reading.ids), *whole[1:], *part.shape[len(whole) :])
            if part.dim() == 3:
                result[rows, columns] = part
            else:
                result[rows] = part
        assert result is not None
        return result

    def _call(self, reading: Reading, positions: Tensor | None) -> Tensor:
        inputs: dict[str, Any] = {"input_ids": reading.ids}
        if "attention_mask" in self._takes:
            inputs["attention_mask"] = reading.mask.long()
        if positions is not None:
            inputs["position_ids"] = positions
        eager = _eagerly() if _is_compiled(self._model) else contextlib.nullcontext()
        with eager, _without_padding_token(self._model), showing(self._model, self._read.embedding, reading):
            return _main(self._model(**inputs))

    @torch.no_grad()
    def _find_out(self) -> None:
        rows, read = _examples(self._read), self._read
        found: dict[str, str] = {}
        for side in _SIDES[read.padding_side]:
            read.padding_side = side
            padded = read.padded(rows)
            found[side] = find_padding(
                lambda ids, mask, positions: self._call(Reading(ids, mask, mask, ~mask), positions),
                padded.ids,
                padded.mask,
                "position_ids" in self._takes,
            )
            if found[side] != "apart":
                break
        read.padding_side, self._padding = side, found[side]
        self._check_types()
        self._check(read.padded(rows))
        self.of_tokens = self(read.padded(rows)).dim() == 3
        for row in rows:
            self._check(read.padded([row]))

    def _check_types(self) -> None:
        """An error if the model's tokenizer tells it of types of tokens, which nobody does here."""
        types = self._read.framer.tokenizer("a").get("token_type_ids", []) if "token_type_ids" in self._takes else []
        if any(types):
            raise ValueError(
                f"its tokenizer tells it `token_type_ids` other than 0, {list(types)}, which nobody does here."
            )

    def _check(self, finished: Reading) -> None:
        """An error if embeddings give something else than the ids that they are of."""
        relaxed = self._read.table[finished.ids] * self._read.scale
        if not close(self(replace(finished, embeddings=relaxed)), self(finished)):
            raise ValueError("its outputs are not those of its ids when their embeddings are put in their place.")


def _examples(read: ModelInput) -> list[Row]:
    """Two texts of different lengths, of tokens from all over the vocabulary."""
    framer = read.framer
    special = special_token_ids(framer.tokenizer)
    known, rows = sorted(set(framer.tokenizer.get_vocab().values()) - special), len(read.table)
    if not known:
        raise ValueError("`tokenizer` has no tokens but special ones; take the model's own.")
    if known[-1] >= rows:
        raise ValueError(f"`tokenizer` has ids up to {known[-1]}, and the model {rows} tokens; take the model's own.")
    before, after = framer.around(Frame())
    room = 8 if framer.max_length is None else max(min(8, framer.max_length - len(before) - len(after)), 1)
    ids = [known[k * len(known) // room] for k in range(room)]
    texts = [[*before, *ids, *after], [*before, *ids[: max(room // 2, 1)], *after]]
    return [Row(row, len(before), len(row) - len(after), [(0, 0)] * len(row)) for row in texts]


def _part(reading: Reading, rows: Tensor, columns: slice) -> Reading:
    fields = ("ids", "mask", "text", "end", "embeddings")
    parts: dict[str, Any] = {}
    for name in fields:
        value = getattr(reading, name)
        parts[name] = None if value is None else value[rows][:, columns]
    return Reading(**parts)


def _main(output: Any) -> Tensor:
    """The logits of a model, the score of one that calls it so, or else its first output."""
    for name in ("logits", "score"):
        found = getattr(output, name, None)
        if isinstance(found, Tensor):
            return found
    first = output if isinstance(output, Tensor) else output[0]
    if not isinstance(first, Tensor):
        raise ValueError(f"it must return `logits` or `score`, got {type(output).__name__} without either.")
    return first


def _is_compiled(model: Any) -> bool:
    modules = model.modules() if isinstance(model, torch.nn.Module) else ()
    return any(hasattr(one, "_orig_mod") or getattr(one, "_compiled_call_impl", None) is not None for one in modules)


_EAGER = threading.RLock()


@contextlib.contextmanager
def _eagerly() -> Iterator[None]:
    """In this block nothing runs as `torch.compile` made it, which does not see what is shown to a model."""
    with _EAGER, torch.compiler.set_stance("force_eager"):  # which is of all threads
        yield


_WITHOUT: dict[int, int] = {}  # how many calls, of all threads, a config is without its padding token for
_LOCK = threading.Lock()


@contextlib.contextmanager
def _without_padding_token(model: Any) -> Iterator[None]:
    """In this block a model whose config names no padding token takes the last position of every row.

    Classifiers on decoders look for the last token that is no padding by its id, and refuse batches without one.
    """
    config: Any = getattr(model, "config", None)
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    with _LOCK:
        others = _WITHOUT.get(id(config), 0)
        named = config is None or getattr(config, "pad_token_id", 0) is not None
        if others or not named:
            config.pad_token_id = -1
            _WITHOUT[id(config)] = others + 1
    if named and not others:
        yield
        return
    try:
        yield
    finally:
        with _LOCK:
            left = _WITHOUT.pop(id(config)) - 1
            if left:
                _WITHOUT[id(config)] = left
            else:
                config.pad_token_id = None
