"""What a model with block-causal attention has read of a text."""

from typing import Any

import torch
from torch import Tensor

from redge_guidance.remote import LegacyCache


class BlockCache(LegacyCache):
    """Keys and values of finished blocks; those of a block in the making are seen and forgotten."""

    def __init__(self) -> None:
        super().__init__()
        self.storing = False

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        if self.storing:
            return super().update(key_states, value_states, layer_idx, *args, **kwargs)
        keys, values = self[layer_idx]
        return torch.cat([keys, key_states], -2), torch.cat([values, value_states], -2)


class Finished:
    """What a cache holds: the ids that were read, and the logits at the last of them."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self.cache = BlockCache()
        self.ids: Tensor | None = None
        self.last: Tensor | None = None
