"""Constraints by kind and arguments: read from a file, made, and written again."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from redge_guidance.constraints.constraint import Constraint, Intersection, parts_of
from redge_guidance.constraints.named import CLASSES, KINDS, class_of, lost_in, named
from redge_guidance.recipe import own_arguments
from redge_guidance.setups.schema import nearest


@dataclass(frozen=True)
class Entry:
    """A constraint as a file or an option names it.

    Attributes:
        kind: one of `KINDS`.
        arguments: of its constructor.
        place: where it was said, for errors.
    """

    kind: str
    arguments: Mapping[str, Any]
    place: str = ""

    def to_dict(self) -> dict[str, Any]:
        return {"kind": self.kind, **self.arguments}


def read_entries(value: Any, place: Callable[..., str]) -> list[Entry]:
    """Constraints as they stand in a file: mappings `{kind: regex, pattern: ...}`.

    Args:
        value: one, or a list.
        place: says of the path to a value where it stands.

    Raises:
        ValueError: no mapping, an unknown kind or argument, with the nearest one that is known.
    """
    found = []
    for i, one in enumerate(value if isinstance(value, list) else [value]):
        where = place(*((i,) if isinstance(value, list) else ()))
        if not isinstance(one, dict) or "kind" not in one:
            raise ValueError(
                f"{where}: a constraint must be `{{kind: NAME, argument: value}}`, with a kind of {', '.join(KINDS)}, "
                f"got {one!r:.80}."
            )
        kind = one["kind"]
        if kind not in KINDS:
            raise ValueError(f"{where}: there is no constraint of the kind `{kind}`; {nearest(kind, KINDS)}")
        arguments = {name: argument for name, argument in one.items() if name != "kind"}
        known = own_arguments(class_of(kind))
        for name in arguments:
            if name not in known:
                raise ValueError(f"{where}: a constraint `{kind}` has no argument `{name}`; {nearest(name, known)}")
        found.append(Entry(kind, arguments, where))
    return found


def make(entries: Sequence[Entry]) -> Constraint:
    """The constraint, or the intersection of several.

    Raises:
        ValueError: with the place of the entry, as the constraint raises it; several that no text meets together.
    """
    made = [_made(entry) for entry in entries]
    places = " and ".join(dict.fromkeys(entry.place for entry in entries if entry.place))
    if len(made) == 1:
        return made[0]
    try:
        whole = Intersection(made)
    except ValueError as error:
        raise ValueError(f"{places}: {error}" if places else f"{error}") from error
    _check(whole, places)
    return whole


def constraints_of(constraint: Constraint) -> list[dict[str, Any]]:
    """What `read_entries` reads as a constraint of the same texts.

    Raises:
        ValueError: one of a class of one's own, or with an argument that no file holds, with what to do.
    """
    found = named(constraint)
    for told in found:
        kind = told["kind"]
        if kind not in KINDS:
            raise ValueError(
                f"`reward` has a constraint {kind}, and only those of the library can be written to a file "
                f"({', '.join(CLASSES.values())}); leave it out, and add it after loading."
            )
        for name, value in told.items():
            lost = lost_in(value)
            if lost is not None:
                raise ValueError(
                    f"`{name}` of the constraint {CLASSES[kind]} is {lost}, which no file holds; make it "
                    "with texts, numbers, and lists or dicts of these."
                )
    return found


def _made(entry: Entry) -> Constraint:
    kind = class_of(entry.kind)
    told = f"{entry.place}: " if entry.place else ""
    parameters = inspect.signature(kind.__init__).parameters.values()
    for parameter in parameters:
        if parameter.name != "self" and parameter.default is parameter.empty and parameter.name not in entry.arguments:
            raise ValueError(f"{told}a constraint `{entry.kind}` needs the argument `{parameter.name}`.")
    try:
        made: Constraint = kind(**entry.arguments)
    except MemoryError:
        raise
    except Exception as error:  # whatever an argument of a wrong type leads to
        known = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        raise ValueError(f"{told}{known}{error}") from error
    _check(made, entry.place)
    return made


def _check(constraint: Constraint, place: str) -> None:
    """What is wrong with it, as soon as it is made."""
    parts = parts_of(constraint)
    if all(one.over_tokens for one in parts):
        return
    try:
        _ = constraint.machine
    except ValueError as error:
        raise ValueError(f"{place}: {error}" if place else f"{error}") from error
