"""What a model takes: which arguments, how many tokens, and rows of unlike lengths."""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

# What a model is told of padding: its mask, and where each token stands; the mask alone; or nothing, so that rows of
# one length are read at a time. The first is nearest to what a row gets alone, in the last digits too.
PADDINGS = ("positions", "mask", "apart")

_LIMITS = ("max_position_embeddings", "max_sequence_length", "n_positions", "model_length")
_TABLES = ("position_embeddings", "position_embedding", "embed_positions", "wpe")

Call = Callable[[Tensor, Tensor, Tensor | None], Tensor]


def bare(model: Any) -> Any:
    """The model of which others are made that are called like it: by `torch.compile`, or by PEFT."""
    while True:
        compiled, adapted = getattr(model, "_orig_mod", None), getattr(model, "get_base_model", None)
        inner = adapted() if compiled is None and callable(adapted) else compiled
        if inner is None or inner is model:
            return model
        model = inner


def accepted(model: Any) -> set[str]:
    """Names of the arguments of `forward`."""
    return set(inspect.signature(bare(model).forward).parameters)


def longest(model: Any) -> int | None:
    """Most tokens that a model takes: as many as its config says, and as its table of positions has room for.

    A table with a row for padding (RoBERTa, MPNet) counts from the row after it, one with an offset (OPT) from there.
    None where neither is known.
    """
    config = getattr(model, "config", None)
    limits = [getattr(config, name, None) for name in _LIMITS]
    known = [limit for limit in limits if isinstance(limit, int) and not isinstance(limit, bool) and limit > 0][:1]
    modules = model.named_modules() if isinstance(model, torch.nn.Module) else ()
    for name, module in modules:
        if isinstance(module, torch.nn.Embedding) and name.rsplit(".", 1)[-1] in _TABLES:
            offset = getattr(module, "offset", 0) if module.padding_idx is None else module.padding_idx + 1
            known.append(module.num_embeddings - int(offset))
    return min(known, default=None)


def positions_of(mask: Tensor) -> Tensor:
    """Number of each token among those of its row, from 0; `(batch, length)` bool to int64, 0 on padding in front."""
    return (mask.long().cumsum(-1) - 1).clamp(min=0)


@torch.no_grad()
def find_padding(call: Call, ids: Tensor, mask: Tensor, takes_positions: bool) -> str:
    """Which of `PADDINGS` gives every row of a padded batch what the row gets alone.

    Args:
        call: from ids `(batch, length)`, a mask like them, True where there is text, and positions like them, or None
            for those that the model counts itself, to outputs `(batch, ...)` or `(batch, length, ...)`.
        ids, mask: rows of different lengths.
        takes_positions: whether `call` can do anything with positions.

    Raises:
        ValueError: the output of a row depends on other rows of the same length.
    """
    rows = [row[seen][None] for row, seen in zip(ids, mask, strict=True)]
    alone = [call(row, torch.ones_like(row, dtype=torch.bool), None) for row in rows]
    for padding in PADDINGS[not takes_positions : 2]:
        together = call(ids, mask, positions_of(mask) if padding == "positions" else None)
        at_tokens = together.shape[:2] == ids.shape and alone[0].shape[1] == rows[0].shape[1] and together.dim() > 2
        parts = [row[seen][None] if at_tokens else row[None] for row, seen in zip(together, mask, strict=True)]
        if all(close(part, own) for part, own in zip(parts, alone, strict=True)):
            return padding
    twice = rows[0].repeat(2, 1)
    twice[1] = twice[1].flip(0)
    everywhere = torch.ones_like(twice, dtype=torch.bool)
    if not close(call(twice, everywhere, None)[:1], alone[0]):
        raise ValueError("what the model makes of a text depends on the other texts of the batch.")
    return "apart"


def close(found: Tensor, expected: Tensor) -> bool:
    """Whether two outputs of a model are equal up to the rounding of their dtype."""
    if found.shape != expected.shape:
        return False
    half = torch.finfo(expected.dtype).bits < 32 if expected.is_floating_point() else False
    scale = float(expected.detach().abs().nan_to_num(0, 0, 0).max()) if expected.numel() else 0.0
    tolerance = (5e-2 if half else 1e-4) * max(scale, 1e-3)
    return torch.allclose(found.float(), expected.float(), rtol=0.0, atol=tolerance)
