"""The table of input embeddings of a model, whatever stands in the place of its layer."""

from typing import Any

import torch
from torch import Tensor


class Table:
    """What a model looks its ids up in.

    Of a plain `torch.nn.Embedding` it is the layer's weight, wherever that goes. A layer that does more than look up
    (LoRA on the embedding), or whose weight is elsewhere (offloaded) or packed (quantised), is asked once for all ids:
    the table is what it says then, and does not follow adapters that are switched or trained later.

    Args:
        embedding: the layer, of `get_input_embeddings()`.

    Raises:
        ValueError: it is no look-up.
    """

    def __init__(self, embedding: Any):
        self.embedding, self._own = embedding, None if _is_plain(embedding) else _asked(embedding)

    @property
    def weight(self) -> Tensor:
        """`(vocabulary, dim)`."""
        weight: Tensor = self.embedding.weight if self._own is None else self._own
        return weight


def _is_plain(embedding: Any) -> bool:
    weight = embedding.weight
    is_offloaded = weight.is_meta and hasattr(embedding, "_hf_hook")  # by accelerate
    return (
        isinstance(embedding, torch.nn.Embedding)
        and type(weight.data) is Tensor
        and weight.is_floating_point()
        and not is_offloaded
    )


@torch.no_grad()
def _asked(embedding: Any) -> Tensor:
    device = torch.device("cpu") if embedding.weight.is_meta else embedding.weight.device
    ids = torch.arange(len(embedding.weight), device=device)
    try:
        table, row = embedding(ids[None]), embedding(ids[-1:][None])
    except Exception as error:  # whatever such a layer raises
        raise ValueError(
            f"the input embeddings of `model`, {type(embedding).__name__}, cannot be asked for their table: "
            f"{type(error).__name__}: {error}; merge adapters into the model first (`merge_and_unload()`)."
        ) from error
    fits = isinstance(table, Tensor) and table.dim() == 3 and table.shape[1] == len(ids)
    if not fits or not torch.allclose(table[0, -1:], row[0], rtol=1e-3, atol=1e-6):
        raise ValueError(
            f"the input embeddings of `model` must be a look-up, one vector a token, got {type(embedding).__name__}."
        )
    found: Tensor = table[0].detach().clone()
    return found
