"""Settings as they were given, each with the place where it was said, and the check that it is of its kind."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from redge_guidance.setups.documents import Document
from redge_guidance.setups.option import Option
from redge_guidance.setups.schema import MOST, OPTIONS, nearest

_SEED = (-(2**63), 2**64)  # which torch.Generator.manual_seed takes
_WORDS = {
    "text": "a text, in quotes where it could be a number",
    "texts": "a text or a list of texts, in quotes where they could be numbers",
    "label": "a name or an index",
    "integer": "an integer",
    "integers": "a list of integers",
    "number": "a number",
    "numbers": "a number, or a list with one for every step",
    "flag": "true or false",
    "rewards": "a list of rewards",
    "constraints": "a list of constraints",
    "value": "a value",
}


@dataclass(frozen=True)
class Options:
    """Settings by name; what was not given is not there.

    Attributes:
        values: what was given.
        places: by name, where: `"run.yaml, line 3"`; a name that is not here came from the command line or from Python.
        dashes: whether names are spelled as on the command line.
    """

    values: Mapping[str, Any] = field(default_factory=dict)
    places: Mapping[str, str] = field(default_factory=dict)
    dashes: bool = False

    def __contains__(self, name: str) -> bool:
        return name in self.values

    def __iter__(self) -> Iterator[str]:
        return iter(self.values)

    def get(self, name: str, default: Any = None) -> Any:
        return self.values.get(name, default)

    def spell(self, name: str) -> str:
        """How an error calls a setting, and where it was said."""
        if name in self.places:
            return f"{self.places[name]}: `{name}`"
        return f"`{OPTIONS[name].flag}`" if self.dashes else f"`{name}`"

    def over(self, below: "Options") -> "Options":
        """These, and of `below` what is not among them."""
        places = {name: place for name, place in below.places.items() if name not in self.values}
        return Options({**below.values, **self.values}, {**places, **self.places}, self.dashes)

    def without(self, *names: str) -> "Options":
        return Options({k: v for k, v in self.values.items() if k not in names}, self.places, self.dashes)

    def of(self, *groups: str) -> dict[str, Any]:
        """Those of some groups of the schema."""
        return {name: value for name, value in self.values.items() if OPTIONS[name].group in groups}


def of_document(document: Document) -> Options:
    """The settings of a file.

    Raises:
        ValueError: an unknown name, with the nearest one that is known, or a value of another kind; with the line.
    """
    for name in document.values:
        if name not in OPTIONS:
            known = sorted(OPTIONS)
            told = nearest(name.replace("-", "_"), known)
            raise ValueError(f"{document.place(name)}: there is no setting `{name}`; {told}")
    places = {name: document.place(name) for name in document.values}
    values = {name: checked(OPTIONS[name], value, places[name]) for name, value in document.values.items()}
    return Options(values, places)


def checked(option: Option, value: Any, place: str = "") -> Any:
    """The value of an option, a single text of `texts` as a list of it.

    Raises:
        ValueError: it is of another kind, or out of range.
    """
    if value is None and option.optional:
        return None
    if option.kind == "texts" and isinstance(value, str):
        value = [value]
    if not _fits(option, value):
        wanted = f"one of {', '.join(option.choices)}" if option.choices else _WORDS[option.kind]
        wanted += "" if option.lowest is None else f" >= {option.lowest}"
        wanted += " or null" if option.optional else ""
        got = "nothing; leave the line out" if value is None else f"{value!r:.80}"
        raise ValueError(f"{place}{': ' if place else ''}`{option.name}` must be {wanted}, got {got}.")
    return value


def _fits(option: Option, value: Any) -> bool:
    kind = option.kind
    if kind in ("integers", "numbers") and isinstance(value, list):
        return all(_is_number(one, kind == "integers") for one in value)
    if kind == "texts":
        return isinstance(value, list) and all(isinstance(one, str) for one in value)
    if kind == "text":
        return isinstance(value, str) and (not option.choices or value in option.choices)
    if kind == "label":
        return isinstance(value, str) or _is_number(value, True)
    if kind == "flag":
        return isinstance(value, bool)
    if kind in ("integer", "number"):
        fits = _is_number(value, kind == "integer") and (option.lowest is None or value >= option.lowest)
        low, high = _SEED if option.name == "seed" else (-(2**63), 2**63)
        counted = option.lowest is None or option.group not in ("run", "call") or value <= MOST
        return fits and (kind == "number" or low <= value < high) and counted
    if kind == "constraints":
        return isinstance(value, list | dict)
    return value is not None if kind != "rewards" else isinstance(value, str | list | dict)


def _is_number(value: Any, whole: bool) -> bool:
    return not isinstance(value, bool) and isinstance(value, int if whole else int | float)
