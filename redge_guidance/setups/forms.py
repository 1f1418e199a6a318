"""What `regex`, `json_schema`, `choices`, `want`, `max_words` and their like stand for: constraints, and files read."""

import json
from pathlib import Path
from typing import Any, NoReturn

from redge_guidance.setups.constraints import Entry
from redge_guidance.setups.options import Options
from redge_guidance.setups.schema import OPTIONS, names_of

SOFTENED = ("want", "ban", "min_words", "max_words", "regex")  # which `soft` makes rewards of
MODIFIERS = ("soft", "answer_only", "most_states")
_NAMES = tuple(name for name in names_of("constraint") if name not in MODIFIERS)


def soft_ones(options: Options) -> list[str]:
    """Names of the settings that stand for rewards instead of constraints."""
    return [name for name in SOFTENED if name in options] if options.get("soft") else []


def forms_given(options: Options) -> bool:
    """Whether anything says what form texts have, always."""
    soft = soft_ones(options)
    return any(name in options and name not in soft for name in _NAMES)


def check_forms(options: Options) -> None:
    """A ValueError for settings that do not go together."""
    low, high = options.get("min_words"), options.get("max_words")
    if high is not None and (low or 0) > high:
        raise ValueError(f"{options.spell('min_words')} must be <= {options.spell('max_words')}, got {low} and {high}.")
    if options.get("soft") and not soft_ones(options):
        names = [options.spell(name) for name in SOFTENED]
        raise ValueError(f"{options.spell('soft')} needs {', '.join(names[:-1])} or {names[-1]}, got none.")


def constraints_said(options: Options) -> list[Entry]:
    """The constraints that settings stand for, `constraints` among them; all of them hold together.

    Raises:
        ValueError, OSError: a file that holds no JSON, or cannot be read.
    """
    hard = [name for name in _NAMES if name in options and name not in soft_ones(options)]
    found = []
    if "regex" in hard:
        found.append(_entry(options, "regex", {"pattern": options.get("regex")}, "regex"))
    if "json_schema" in hard:
        found.append(_entry(options, "json_schema", {"schema": _schema(options)}, "json_schema"))
    if "choices" in hard:
        found.append(_entry(options, "choices", {"choices": list(options.get("choices"))}, "choices"))
    if "want" in hard or "ban" in hard:
        words = {"wanted": options.get("want"), "banned": options.get("ban")}
        given = {key: list(value) for key, value in words.items() if value is not None}
        found.append(_entry(options, "words", given, "want", "ban"))
    if "min_words" in hard or "max_words" in hard:
        limits = {"minimum": options.get("min_words"), "maximum": options.get("max_words")}
        given = {key: value for key, value in limits.items() if value is not None}
        found.append(_entry(options, "length", given, "min_words", "max_words"))
    found += [_entry(options, name, {name: options.get(name)}, name) for name in ("prefix", "suffix") if name in hard]
    return [_modified(options, entry) for entry in (*found, *options.get("constraints", []))]


def place_of(options: Options, *names: str) -> str:
    """Where one of some settings was said: `"run.yaml, line 3"` or `"--regex"`; nothing in Python."""
    said = [name for name in names if name in options]
    placed = next((options.places[name] for name in said if name in options.places), "")
    return placed or (" and ".join(OPTIONS[name].flag for name in said) if options.dashes else "")


def _entry(options: Options, kind: str, arguments: dict[str, Any], *names: str) -> Entry:
    return Entry(kind, arguments, place_of(options, *names))


def _modified(options: Options, entry: Entry) -> Entry:
    more = {name: options.get(name) for name in MODIFIERS if name != "soft" and name in options}
    return Entry(entry.kind, {**more, **entry.arguments}, entry.place)


def _schema(options: Options) -> Any:
    """What a file of JSON holds."""
    name, told = options.get("json_schema"), options.spell("json_schema")
    try:
        text = Path(name).read_text(encoding="utf-8-sig")
        return json.loads(text, parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        raise ValueError(f"{told} must be a file of JSON in UTF-8, got {name}: {error}.") from error
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{told} must be a file of JSON, got {name}: {error.msg}, line {error.lineno}, column {error.colno}."
        ) from error
    except RecursionError as error:
        raise ValueError(f"{told} must be a file of JSON, got {name}, which is nested too deeply.") from error
    except OSError as error:
        raise type(error)(f"{told} {name} cannot be read: {error.strerror or error}.") from error
    except ValueError as error:
        raise ValueError(f"{told} must be a file of JSON, got {name}: {error}") from error


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON.")
