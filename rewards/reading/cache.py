"""Tables on the disk that take long to make, which are as they were made or are made again."""

import contextlib
import hashlib
import os
import tempfile
from collections import OrderedDict
from pathlib import Path
from typing import TypeVar

import torch
from huggingface_hub.constants import HF_HOME
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

_SUM = "sha256"
_Key = TypeVar("_Key")
_Value = TypeVar("_Value")


class Recent(OrderedDict[_Key, _Value]):
    """A dict of the last `limit` keys that were put there: what is kept by prompt does not grow with the prompts.

    >>> recent = Recent(2)
    >>> for key in "abc":
    ...     recent[key] = key.upper()
    >>> list(recent)
    ['b', 'c']
    """

    def __init__(self, limit: int = 1024):
        super().__init__()
        self.limit = limit

    def __setitem__(self, key: _Key, value: _Value) -> None:
        super().__setitem__(key, value)
        while len(self) > self.limit:
            self.popitem(last=False)


def cache_folder() -> Path:
    """`$REDGE_GUIDANCE_CACHE`, with `~` for the home; by default `redge-guidance` in the cache of Hugging Face."""
    return Path(os.environ.get("REDGE_GUIDANCE_CACHE") or os.path.join(HF_HOME, "redge-guidance")).expanduser()


def read_ragged(file: Path, count: int, largest: int) -> tuple[Tensor, Tensor] | None:
    """Rows of different lengths, `values[offsets[i] : offsets[i + 1]]` the i-th; None where the file is not as written.

    Args:
        file: of `write_ragged`.
        count: of rows.
        largest: of the values, which are >= 0.

    Returns:
        Values and offsets, int64.
    """
    try:
        with safe_open(file, framework="pt") as found:
            values, offsets = found.get_tensor("pieces"), found.get_tensor("offsets")
            told = (found.metadata() or {}).get(_SUM)
    except (OSError, SafetensorError, ValueError, RuntimeError, TypeError):
        return None
    whole = all(one.dtype == torch.int32 and one.ndim == 1 for one in (values, offsets))
    if not whole or len(offsets) != count + 1 or told != _sum(values, offsets):
        return None
    ordered = offsets[0] == 0 and offsets[-1] == len(values) and (offsets.diff() >= 0).all()
    if not ordered or (len(values) and not 0 <= values.min() <= values.max() <= largest):
        return None
    return values.long(), offsets.long()


def write_ragged(file: Path, values: Tensor, offsets: Tensor) -> None:
    """Whole or not at all, whoever else writes the same file; not at all where it cannot be written."""
    values, offsets = values.int().contiguous(), offsets.int().contiguous()
    with contextlib.suppress(OSError, SafetensorError):
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=file.parent) as folder:
            part = Path(folder) / file.name
            save_file({"pieces": values, "offsets": offsets}, part, {_SUM: _sum(values, offsets)})
            os.replace(part, file)


def _sum(*tensors: Tensor) -> str:
    return hashlib.sha256(b"".join(one.contiguous().numpy().tobytes() for one in tensors)).hexdigest()
