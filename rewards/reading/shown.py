"""A model that is called by ids, and shown other embeddings than theirs."""

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from redge_guidance.rewards.reading.reading import Reading


@contextlib.contextmanager
def showing(model: Any, embedding: Any, reading: Reading) -> Iterator[None]:
    """In this block, and in this thread, `model` looks `reading.ids` up and finds `reading.embeddings`.

    So whatever else it does with ids, counting positions, masking, scaling, is done as in every other call. A model may
    look them up in several modules of one table, transposed, shifted by a decoder's start token, with padding behind,
    or without padding in one row.

    Args:
        model: a `torch.nn.Module`.
        embedding: its table of input embeddings.
        reading: with `embeddings` of None nothing is replaced.

    Raises:
        ValueError: the model looked up other ids, or none.
    """
    if reading.embeddings is None:
        yield
        return
    thread, seen = threading.get_ident(), []

    def replaced(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor:
        if threading.get_ident() != thread:
            return output
        seen.append(True)
        called = args[0] if args else next(iter(kwargs.values()))
        return _placed(called, output, reading)

    tables = [module for module in model.modules() if getattr(module, "weight", None) is embedding.weight]
    inside = set(embedding.modules())  # an adapter adds to what the layer in it looks up
    tables = [module for module in tables if isinstance(module, torch.nn.Embedding) and module not in inside]
    tables.append(embedding)
    handles = [table.register_forward_hook(replaced, with_kwargs=True) for table in tables]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
    if not seen:
        raise ValueError(f"{type(model).__name__} does not look its ids up in its input embeddings.")


def _placed(called: Tensor, output: Tensor, reading: Reading) -> Tensor:
    """The embeddings of a reading in the place of `output`, those of the ids in `called`."""
    ids, relaxed = reading.ids, reading.embeddings
    assert relaxed is not None
    relaxed, length = relaxed.to(output), ids.shape[1]
    if called.dim() == 2 and len(called) == len(ids):
        if torch.equal(called[:, :length], ids):
            return torch.cat([relaxed, output[:, length:]], 1) if called.shape[1] > length else relaxed
        if called.shape == ids.shape and torch.equal(called[:, 1:], ids[:, :-1]):
            return torch.cat([output[:, :1], relaxed[:, :-1]], 1)
    if called.shape == ids.T.shape and torch.equal(called, ids.T):
        return relaxed.transpose(0, 1)
    if called.numel() == int(reading.mask.sum()) and torch.equal(called.flatten(), ids[reading.mask]):
        return relaxed[reading.mask].view_as(output)
    raise ValueError("the model looks up other ids than it is given, and cannot be differentiated through them.")
