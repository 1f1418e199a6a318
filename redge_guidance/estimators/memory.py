"""Zeros as large as the logits that are not written before anybody asks for them."""

import mmap

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

_LARGE = 2**22  # bytes
_PRIVATE = getattr(mmap, "MAP_PRIVATE", 0) | getattr(mmap, "MAP_ANONYMOUS", 0)  # 0: a system that has no such memory


def zeros(shape: torch.Size, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Contiguous zeros.

    Large ones on a CPU are pages that the system has promised and hands out when they are first touched: of a one-hot
    one page in a row. To have them written costs as much as a softmax, three quarters of it the system's own work.
    """
    size = shape.numel() * dtype.itemsize
    traced = torch.compiler.is_compiling() or is_in_torch_dispatch_mode()
    if device.type != "cpu" or size < _LARGE or not _PRIVATE or traced:
        return torch.zeros(shape, dtype=dtype, device=device)
    return torch.frombuffer(mmap.mmap(-1, size, flags=_PRIVATE), dtype=dtype).view(shape)
