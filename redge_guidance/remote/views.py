"""What the code of a checkpoint sees of transformers, flash-attn and triton."""

import importlib
from types import ModuleType
from typing import Any, TypedDict

import transformers
from transformers.cache_utils import DynamicCache, StaticCache
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.utils import auto_docstring

from redge_guidance.remote import flash_attention
from redge_guidance.remote.legacy import LegacyCache, LegacyConfig, LegacyModel, default_rope


class _NoKwargs(TypedDict, total=False):
    """A type of keyword arguments that transformers no longer names."""


def _not_available() -> bool:
    return False


def _as_it_is(function: Any = None, **kwargs: Any) -> Any:
    """In the place of a decorator that writes docstrings, and prints what it misses in them."""
    return (lambda inner: inner) if function is None else function


_REPLACED: dict[str, Any] = {
    "PreTrainedModel": LegacyModel,
    "PretrainedConfig": LegacyConfig,
    "PreTrainedConfig": LegacyConfig,
    "ROPE_INIT_FUNCTIONS": {"default": default_rope} | ROPE_INIT_FUNCTIONS,
    "DynamicCache": LegacyCache,
    "auto_docstring": _as_it_is,
}
_ORIGINALS = [transformers.PreTrainedModel, transformers.PretrainedConfig, ROPE_INIT_FUNCTIONS, DynamicCache]
_ORIGINALS += [auto_docstring]
_GONE: dict[str, Any] = {
    "LossKwargs": _NoKwargs,
    "SlidingWindowCache": StaticCache,
    "is_torch_fx_available": _not_available,
}


class _View(ModuleType):
    """A module of transformers, some of whose names are those of version 4."""

    def __init__(self, real: ModuleType):
        super().__init__(real.__name__, real.__doc__)
        self.__dict__["__path__"] = list(getattr(real, "__path__", []))
        self.__dict__["real"] = real

    def __getattr__(self, name: str) -> Any:
        try:
            value = getattr(self.real, name)
        except AttributeError:
            if name in _GONE:
                return _GONE[name]
            raise
        if isinstance(value, ModuleType) and value.__name__.partition(".")[0] == "transformers":
            return _View(value)
        replaced = _REPLACED.get(name)
        return value if replaced is None or not any(value is one for one in _ORIGINALS) else replaced


class _Unavailable(ModuleType):
    """Stands for a package that is not installed until something of it is really called for."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Unavailable(f"{self.__name__}.{name}")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self  # as a decorator, or an argument of one

    def __getitem__(self, key: Any) -> Any:
        raise ImportError(f"this model needs {self.__name__}, which is not installed; pip install it on a GPU machine.")


def view_of(name: str) -> ModuleType | None:
    """What `import name` shall give to the code of a checkpoint; None: what it gives to everybody."""
    top = name.partition(".")[0]
    if top == "transformers":
        return _View(importlib.import_module(name))
    if top in ("flash_attn", "triton") and not _installed(top):
        return flash_attention.module(name) if top == "flash_attn" else _Unavailable(name)
    return None


def _installed(name: str) -> bool:
    try:
        importlib.import_module(name)
    except ImportError:
        return False
    return True
