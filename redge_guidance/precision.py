"""Guidance computes in the precision that it says, also inside `torch.autocast`; models and rewards in the user's."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Autocast:
    """What `torch.autocast` does to the operations on one kind of device.

    In `with Autocast.off(device):` operations are computed in the dtypes of their arguments, and in
    `with found.in_force():`, where `found = Autocast.here(device)`, as they were at that place.

    Attributes:
        device_type: as in `torch.device("cuda").type`; one without autocast is left alone.
        enabled: whether operations are cast.
        dtype: to what; None: the default of the device.
    """

    device_type: str
    enabled: bool
    dtype: torch.dtype | None = None

    @classmethod
    def here(cls, device: torch.device) -> "Autocast":
        """What is in force now."""
        kind = device.type
        if not torch.amp.is_autocast_available(kind):
            return cls(kind, False)
        return cls(kind, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind))

    @classmethod
    def off(cls, device: torch.device) -> AbstractContextManager[Any]:
        return cls(device.type, False).in_force()

    def in_force(self) -> AbstractContextManager[Any]:
        """A block in which it is so."""
        if not torch.amp.is_autocast_available(self.device_type):
            return nullcontext()
        return torch.autocast(self.device_type, dtype=self.dtype, enabled=self.enabled)


def in_float32(logits: Tensor, copy: bool = True) -> Tensor:
    """A copy in float32, or in float64 where it was that; `copy=False`: only where it was neither."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32), copy=copy)


def keeping_the_first(logits: Tensor, dtype: torch.dtype) -> Tensor:
    """Logits `(..., vocabulary)` in a narrower `dtype`, in which the likeliest token is still the likeliest.

    Where rounding makes another token as likely, it is raised above it by a step of the dtype.

    >>> keeping_the_first(torch.tensor([24.0, 24.01]), torch.bfloat16).argmax()
    tensor(1)
    """
    narrow = logits.to(dtype)
    first, highest = logits.argmax(-1, keepdim=True), narrow.amax(-1, keepdim=True)
    tied = narrow.argmax(-1, keepdim=True) != first
    above = highest + (2 * torch.finfo(dtype).eps * highest.abs()).clamp(min=torch.finfo(dtype).tiny)
    return narrow.scatter(-1, first, torch.where(tied, above, narrow.gather(-1, first)))
