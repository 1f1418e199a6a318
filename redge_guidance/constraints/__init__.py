"""Texts that must have a form: automata over characters, over tokens, and what a model's prediction becomes of them."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from redge_guidance.constraints.constraint import Constrained, Constraint, Intersection
    from redge_guidance.constraints.json_schema import JsonSchemaConstraint
    from redge_guidance.constraints.kinds import (
        ChoiceConstraint,
        LengthConstraint,
        PrefixConstraint,
        SuffixConstraint,
        WordConstraint,
    )
    from redge_guidance.constraints.regex import RegexConstraint

__all__ = [
    "ChoiceConstraint",
    "Constrained",
    "Constraint",
    "Intersection",
    "JsonSchemaConstraint",
    "LengthConstraint",
    "PrefixConstraint",
    "RegexConstraint",
    "SuffixConstraint",
    "WordConstraint",
]

_HOMES = dict.fromkeys(__all__, "kinds") | {"JsonSchemaConstraint": "json_schema", "RegexConstraint": "regex"}
_HOMES |= dict.fromkeys(("Constrained", "Constraint", "Intersection"), "constraint")


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
