"""Texts that must have a form: automata over characters, over tokens, and what a model's prediction becomes of them."""

from typing import TYPE_CHECKING

from redge_guidance.lazy import lazily

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

__getattr__, __dir__ = lazily(__name__, _HOMES)
