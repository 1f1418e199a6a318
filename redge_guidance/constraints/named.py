"""Constraints by name and plain arguments, as files and records of runs say them."""

import hashlib
import inspect
import re
from importlib import import_module
from typing import Any

import numpy as np

from redge_guidance.constraints.constraint import Constraint, parts_of
from redge_guidance.recipe import Unwritable, recipe_of

CLASSES = {
    "regex": "RegexConstraint",
    "json_schema": "JsonSchemaConstraint",
    "choices": "ChoiceConstraint",
    "words": "WordConstraint",
    "length": "LengthConstraint",
    "prefix": "PrefixConstraint",
    "suffix": "SuffixConstraint",
}
KINDS = tuple(CLASSES)


def class_of(kind: str) -> Any:
    """The class of one of `KINDS`."""
    return getattr(import_module("redge_guidance.constraints"), CLASSES[kind])


def named(constraint: Constraint) -> list[dict[str, Any]]:
    """`[{"kind": "regex", "pattern": ...}, ...]`, of each part of an intersection what it was made with.

    Arguments at their defaults are left out; one that is no plain value is an `Unwritable`. The kind of a class that is
    none of `KINDS` is its name.
    """
    parts = parts_of(constraint)
    if parts != [constraint]:
        return [told for part in parts for told in named(part)]
    name = type(constraint).__name__
    kind = next((kind for kind in CLASSES if CLASSES[kind] == name and class_of(kind) is type(constraint)), name)
    return [{"kind": kind} | _arguments(constraint)]


def fingerprint(constraint: Constraint) -> list[dict[str, Any]]:
    """As `named`, in plain values alone; what cannot be said in these is told by a digest of the automaton."""
    found, whole = [], True
    for told in named(constraint):
        plain = {name: lost_in(value) or value for name, value in told.items()}
        whole = whole and plain == told and told["kind"] in KINDS
        found.append(plain)
    return found if whole else [*found, {"automaton": _digest(constraint)}]


def lost_in(value: Any) -> str | None:
    """What there is in an argument of a recipe that no file holds, in words; None: nothing."""
    if isinstance(value, Unwritable):
        return value.what
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return next((lost for one in inner if (lost := lost_in(one)) is not None), None)


def _arguments(constraint: Constraint) -> dict[str, Any]:
    recipe, kind = recipe_of(constraint), type(constraint)
    if recipe is None:
        return {"made": Unwritable(f"a {kind.__name__}")}
    arguments = dict(recipe.arguments)
    pattern = getattr(constraint, "pattern", None)
    if isinstance(pattern, re.Pattern) and isinstance(pattern.pattern, str):
        flags = pattern.flags & ~int(re.UNICODE)
        arguments |= {"pattern": pattern.pattern} | ({"flags": flags} if flags else {})
    if "schema" in arguments and hasattr(constraint, "schema"):
        arguments["schema"] = constraint.schema  # as it was read, large numbers too
    defaults = {p.name: p.default for p in inspect.signature(kind.__init__).parameters.values()}

    def usual(name: str, value: Any) -> bool:
        return name in defaults and type(value) is type(defaults[name]) and value == defaults[name]

    return {name: value for name, value in arguments.items() if not usual(name, value)}


def _digest(constraint: Constraint) -> str:
    machine = constraint.machine
    digest = hashlib.blake2b(digest_size=12)
    for array in (machine.alphabet.starts, machine.alphabet.labels, machine.table, machine.accepting):
        digest.update(repr((array.shape, array.dtype.str)).encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
