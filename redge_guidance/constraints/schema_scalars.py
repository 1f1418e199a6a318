"""Regular expressions of strings, numbers and values that are written out, and the space around them."""

import json
import math
import re
from dataclasses import dataclass
from typing import Any

from redge_guidance.constraints.schema_keywords import UnsatisfiableSchemaError, UnsupportedSchemaError
from redge_guidance.constraints.schema_numbers import decimals_between, integers_between, multiples_between
from redge_guidance.constraints.schema_parts import Conjunction
from redge_guidance.constraints.schema_strings import FORMATS, string_matching, string_of, string_of_format

MOST_MULTIPLES = 1_000


@dataclass(frozen=True)
class Whitespace:
    """Expressions of what stands inside brackets, and of comma and colon with what is around them."""

    inside: str
    comma: str
    colon: str


_ANY = r"[ \n]?"
WHITESPACES = {
    "spaced": Whitespace("", ", ", ": "),  # as `json.dumps` writes it
    "compact": Whitespace("", ",", ":"),
    "any": Whitespace(_ANY, f"{_ANY},{_ANY}", f"{_ANY}:{_ANY}"),
}


def text_of(value: Any) -> str:
    """An expression of a string, number, boolean or null as `json.dumps` writes it."""
    text = json.dumps(value, ensure_ascii=False)
    if any("\ud800" <= sign <= "\udfff" for sign in text):
        text = json.dumps(value)
    return re.escape(text)


def string_expression(one: Conjunction) -> str:
    low, high = one.plain.get("minLength", 0), one.plain.get("maxLength")
    if high is not None and low > high:
        raise UnsatisfiableSchemaError(
            one.where["minLength"], f"minLength is {low}, maxLength {high}", one.kinds is not None
        )
    pattern, name = one.plain.get("pattern"), one.plain.get("format")
    if name is not None and name not in FORMATS:
        raise UnsupportedSchemaError(
            one.where["format"], f"{name!r} is not one of {', '.join(FORMATS)}", "Use `pattern`."
        )
    if pattern is not None and name is not None:
        raise UnsupportedSchemaError(one.where["format"], "there is a `pattern` as well", "Say one of the two.")
    try:
        if pattern is not None:
            return string_matching(pattern, low, high)
        return string_of(low, high) if name is None else string_of_format(name, low, high)
    except ValueError as error:
        raise UnsupportedSchemaError(one.where["pattern" if name is None else "format"], str(error), "") from None


def number_expression(one: Conjunction) -> str:
    plain = one.plain
    lows = [(plain[name], name == "exclusiveMinimum") for name in ("minimum", "exclusiveMinimum") if name in plain]
    highs = [(plain[name], name == "exclusiveMaximum") for name in ("maximum", "exclusiveMaximum") if name in plain]
    low, above = max(lows, default=(None, False))
    high, below = min(((value, not strict) for value, strict in highs), default=(None, True))
    below = not below
    proven = (
        one.kinds is not None
        and low is not None
        and high is not None
        and (low > high or (low == high and (above or below)))
    )
    if "fraction" not in one.possible_kinds:
        least = None if low is None else math.floor(low) + 1 if above else math.ceil(low)
        most = None if high is None else math.ceil(high) - 1 if below else math.floor(high)
        text = _integer(one, least, most)
        proven = one.kinds is not None
    elif "multipleOf" in plain:
        raise UnsupportedSchemaError(one.where["multipleOf"], "of numbers that are no integers", "Use type integer.")
    else:
        try:
            text = decimals_between(low, high, above, below)
        except OverflowError:
            name = next(
                name for name in ("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum") if name in plain
            )
            problem = "bounds of 15 digits are beyond what floats tell apart"
            raise UnsupportedSchemaError(one.where[name], problem, "Use type integer, or remove it.") from None
    if text is None:
        between = f"no {'number' if 'fraction' in one.possible_kinds else 'integer'} is between its bounds"
        raise UnsatisfiableSchemaError(one.path, between, proven)
    return text


def _integer(one: Conjunction, low: int | None, high: int | None) -> str | None:
    step_size = one.plain.get("multipleOf", 1)
    if step_size == 1:
        return integers_between(low, high)
    if (
        step_size == int(step_size)
        and low is not None
        and high is not None
        and high - low <= MOST_MULTIPLES * step_size
    ):
        return multiples_between(low, high, int(step_size))
    problem = f"multiples are written one by one, up to {MOST_MULTIPLES:,} of a whole number"
    raise UnsupportedSchemaError(one.where["multipleOf"], problem, "Say `minimum` and `maximum`, or remove it.")
