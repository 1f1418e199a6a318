"""A user's callbacks, which are no part of the pipeline that calls them."""

import functools
from collections.abc import Callable
from typing import Any

from redge_guidance.hosts.base import drawing


def elsewhere(callback: Callable[..., Any]) -> Callable[..., Any]:
    """`callback`, while which runs nobody's calls, of another pipeline or of the model, are taken for the pipeline's.

    One of diffusers' classes stays one, as its pipelines ask, and shares its attributes with `callback`.
    """
    if hasattr(callback, "tensor_inputs"):
        return _same_kind(callback)

    @functools.wraps(callback)
    def method(*args: Any, **kwargs: Any) -> Any:
        with drawing(None):
            return callback(*args, **kwargs)

    return method


def _same_kind(callback: Any) -> Callable[..., Any]:
    kind = type(callback)

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        with drawing(None):
            return callback(*args, **kwargs)

    try:
        derived: Any = type(kind.__name__, (kind,), {"__call__": call, "__module__": kind.__module__})
        other: Callable[..., Any] = object.__new__(derived)
        other.__dict__ = vars(callback)
    except (AttributeError, TypeError):  # slots, or a class that cannot be derived from
        other = callback
    return other
