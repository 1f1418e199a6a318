"""Zeros as large as the logits that are not written before anybody asks for them."""

import mmap

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

_LARGE = 2**22  # bytes
_PRIVATE = getattr(mmap, "MAP_PRIVATE", 0) | getattr(mmap, "MAP_ANONYMOUS", 0)  # 0: a system that has no such memory


def unwritten_zeros(shape: torch.Size, dtype: torch.dtype, device: torch.device) -> Tensor | None:
    """Contiguous zeros that nobody writes; None: they are small, or not on a CPU, and whoever fills them writes them.

    They are pages that the system has promised and hands out when they are first touched: of a one-hot one page in a
    row. To have them written costs as much as a softmax, three quarters of it the system's own work. `torch.zeros`
    would have several threads of torch's write them, for which the child of a fork waits for ever.
    """
    size = shape.numel() * dtype.itemsize
    traced = torch.compiler.is_compiling() or is_in_torch_dispatch_mode()
    if device.type != "cpu" or size < _LARGE or not _PRIVATE or traced:
        return None
    return torch.frombuffer(mmap.mmap(-1, size, flags=_PRIVATE), dtype=dtype).view(shape)
