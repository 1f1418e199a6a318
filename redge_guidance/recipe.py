"""How a reward or a pipeline was made, in names and plain values, so that a file can say it again."""

import inspect
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch

from redge_guidance.checks import as_real

_P = ParamSpec("_P")
_R = TypeVar("_R")
_KEY = "_recipe"
_PARTS = ("self", "cls", "model", "processor", "tokenizer")  # what `from_pretrained` itself hands to a constructor


@dataclass(frozen=True)
class Unwritable:
    """An argument that no file can hold; nothing of it is kept but what it was, in words."""

    what: str


@dataclass(frozen=True)
class Recipe:
    """How an object was made.

    Attributes:
        kind: name of its class.
        arguments: by name, as they were when the object was made: text, numbers, True, False, None, lists and dicts of
            these, and `Unwritable` for anything else.
        loaded: by `from_pretrained`, with the checkpoint's name as the argument `name`, rather than by its constructor.
    """

    kind: str
    arguments: Mapping[str, Any]
    loaded: bool = False


class Noted:
    """Base of classes whose objects know by which arguments they were made, for `redge_guidance.save`."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        made = super().__new__(cls)
        note_arguments(made, args, kwargs)
        return made


def recipe_of(made: Any) -> Recipe | None:
    """How `made` was made; None where nobody took note."""
    found = getattr(made, "__dict__", {}).get(_KEY)
    return found if isinstance(found, Recipe) else None


def note_arguments(made: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Take note of the arguments of the constructor of `made`, which is about to run."""
    try:
        bound = inspect.signature(type(made).__init__).bind(made, *args, **kwargs)
    except (TypeError, ValueError):  # the constructor is about to complain itself
        return
    arguments = _flat(inspect.signature(type(made).__init__), bound, ())
    made.__dict__[_KEY] = Recipe(type(made).__name__, {key: _plain(value) for key, value in arguments.items()})


def remembered(make: Callable[_P, _R]) -> Callable[_P, _R]:
    """Decorator of a function `from_pretrained(cls, name, ...)`: what it returns knows the arguments.

    Positional arguments beyond those that it names are the constructor's, after the model and what goes with it.
    """

    @wraps(make)
    def noting(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        made = make(*args, **kwargs)
        signature = inspect.signature(make)
        arguments = _flat(signature, signature.bind(*args, **kwargs), own_arguments(type(made)))
        plain = {key: _plain(value) for key, value in arguments.items()}
        made.__dict__[_KEY] = Recipe(type(made).__name__, plain, loaded=True)
        return made

    return noting


def own_arguments(kind: type) -> tuple[str, ...]:
    """Names of what a constructor takes beside the parts that `from_pretrained` loads."""
    named = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY
    constructor: Any = kind
    parameters = inspect.signature(constructor.__init__).parameters.values()
    return tuple(p.name for p in parameters if p.kind in named and p.name not in _PARTS)


def _flat(signature: inspect.Signature, bound: inspect.BoundArguments, more: tuple[str, ...]) -> dict[str, Any]:
    """Arguments by name, without the first, which is the object or its class."""
    found: dict[str, Any] = {}
    first = next(iter(signature.parameters))
    for name, value in bound.arguments.items():
        kind = signature.parameters[name].kind
        if name == first:
            continue
        if kind is inspect.Parameter.VAR_KEYWORD:
            found |= value
        elif kind is inspect.Parameter.VAR_POSITIONAL:
            found |= dict(zip(more, value, strict=False))
        else:
            found[name] = value
    return found


def _plain(value: Any) -> Any:
    """A copy that holds nothing but what a file can hold; numbers of NumPy and 0-d tensors are numbers."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str | os.PathLike):
        name = os.fspath(value)
        return str(name) if isinstance(name, str) else Unwritable("a path in bytes")
    number = as_real(value)
    if number is not None:
        return number
    if isinstance(value, torch.dtype | torch.device):
        return str(value).removeprefix("torch.")
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, set | frozenset):
        return [_plain(one) for one in sorted(value, key=str)]
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: _plain(one) for key, one in value.items()}
    name = getattr(value, "__qualname__", None)
    kind = type(value).__name__
    return Unwritable(f"the {kind} {name}" if isinstance(name, str) else f"a {kind}")
