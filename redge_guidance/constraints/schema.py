"""JSON Schemas as regular expressions: each text that matches is JSON, and valid.

`outlines_core.json_schema` has such a translation as well; it passes over `minimum`, `multipleOf`, `uniqueItems`, `not`
and others in silence, writes the patterns of `allOf` one after the other, and property names without their escapes, so
that this one is our own.
"""

import json
from typing import Any

from jsonschema import Draft202012Validator

from redge_guidance.constraints.schema_keywords import (
    KINDS,
    Schema,
    UnsatisfiableSchemaError,
    UnsupportedSchemaError,
    check,
    step,
)
from redge_guidance.constraints.schema_parts import Alternatives, Conjunction, Parts
from redge_guidance.constraints.schema_scalars import (
    WHITESPACES,
    Whitespace,
    number_expression,
    string_expression,
    text_of,
)
from redge_guidance.constraints.schema_strings import string_of

MOST_CHARACTERS = 1_000_000
MOST_VALUES = 10_000


def expression_of(schema: dict[str, Any] | bool | str, *, whitespace: str = "spaced", depth: int = 3) -> str:
    r"""A regular expression of JSON texts that are valid under a schema of Draft 2020-12, formats checked.

    Every text that `re.fullmatch` finds is valid. Of the valid ones those are left out that have: properties that
    `properties` does not name, or in another order (objects are closed whether `additionalProperties` is false or not;
    one without `properties` has any names, with values of `additionalProperties`); values of another kind than the
    keywords speak of, where `type` is not said; `1.0` for an integer, an exponent where a number has bounds; control
    characters and characters by their number (`\u00e9`) in strings; arrays and objects without `items` or `properties`
    nested deeper than `depth`.

    Args:
        schema: as a dict or bool, or as JSON text.
        whitespace: `"spaced"`, as `json.dumps` writes it; `"compact"`, none; `"any"`, a space or a line's end or none
            wherever JSON may have it.
        depth: how often a `$ref` may be followed on the way to a value, so that recursive ones come to an end.

    Raises:
        ValueError: not a schema, one that has what is not supported (its path, `$.properties.age.multipleOf`), or one
            that no text meets.

    >>> expression_of({"type": "object", "properties": {"age": {"type": "integer", "minimum": 0}}, "required": ["age"]})
    '\\{"age": (?:0|[1-9][0-9]*)\\}'
    """
    if whitespace not in WHITESPACES:
        raise ValueError(f"`whitespace` must be one of {', '.join(map(repr, WHITESPACES))}; got {whitespace!r}.")
    if isinstance(depth, bool) or not isinstance(depth, int) or depth < 1:
        raise ValueError(f"`depth` must be an int of at least 1; got {depth!r}.")
    root = read_schema(schema)
    return _Translation(root, WHITESPACES[whitespace], depth).value([(root, "$")], {})


def read_schema(schema: dict[str, Any] | bool | str) -> Schema:
    """A schema out of a dict, a bool or JSON text.

    Raises:
        ValueError: not JSON, or not a schema; where.
    """
    if not isinstance(schema, (dict, bool, str)):
        raise ValueError(f"`schema` must be a dict, a bool or JSON text; got {type(schema).__name__}.")
    try:
        read = json.loads(schema if isinstance(schema, str) else json.dumps(schema), parse_constant=_no_constant)
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"`schema` is not JSON: {error}.") from None
    if not isinstance(read, (dict, bool)):
        raise ValueError(f"`schema` must be a JSON object, true or false; got {json.dumps(read)[:80]}.")
    check(read, "$")
    return read


def accepts_json(schema: dict[str, Any] | bool | str, text: str) -> bool:
    """Whether `text` is JSON that `jsonschema` finds valid under Draft 2020-12, formats checked."""
    return is_valid_json(validator_of(read_schema(schema)), text)


def validator_of(schema: Schema) -> Any:
    """What `jsonschema` checks values by."""
    return Draft202012Validator(schema, format_checker=Draft202012Validator.FORMAT_CHECKER)


def is_valid_json(validator: Any, text: str) -> bool:
    """Whether `text` is JSON, of a value that is valid; what nests too deeply to be read is not."""
    try:
        return bool(validator.is_valid(json.loads(text, parse_constant=_no_constant)))
    except (ValueError, RecursionError):
        return False


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


class _Translation:
    """Expressions of the parts of one schema."""

    def __init__(self, root: Schema, whitespace: Whitespace, depth: int):
        self.depth, self.whitespace = depth, whitespace
        self.count = 0  # of values described so far
        self.alternatives = Alternatives(root, depth, self.value)

    def value(self, parts: Parts, unrolled: dict[str, int]) -> str:
        """Of values that meet all parts."""
        found, refused = [], []
        self.count += 1
        if self.count > MOST_VALUES:
            problem = f"with all references followed, it describes more than {MOST_VALUES:,} values"
            raise UnsupportedSchemaError("$", problem, "Ask for a smaller `depth`, or for less.")
        for one in self.alternatives.of(parts, unrolled):
            possible = one.possible_kinds - ({"integer"} if "fraction" in one.possible_kinds else set())
            kinds = [kind for kind in KINDS if kind in possible] if one.values is None else [""]
            if not kinds:
                refused.append(UnsatisfiableSchemaError(one.path, "its types exclude one another"))
            for kind in kinds:
                try:
                    found.append(self._of_kind(one, kind))
                except UnsatisfiableSchemaError as error:
                    error.proven &= bool(not one.where or one.kinds is not None or one.values)  # or other kinds do
                    refused.append(error)
        if not found:
            refused[0].proven = all(error.proven for error in refused)
            raise refused[0]
        text = _either(list(dict.fromkeys(found)))
        if len(text) > MOST_CHARACTERS:
            problem = f"its expression has more than {MOST_CHARACTERS:,} characters"
            raise UnsupportedSchemaError(parts[0][1], problem, "Ask for a smaller `depth`, or for less.")
        return text

    def _of_kind(self, one: Conjunction, kind: str) -> str:
        if not kind:
            return self._enumerated(one)
        if kind == "object":
            return self._object(one)
        if kind == "array":
            return self._array(one)
        if kind == "string":
            return string_expression(one)
        if kind in ("integer", "fraction"):
            return number_expression(one)
        return "(?:true|false)" if kind == "boolean" else "null"

    def _enumerated(self, one: Conjunction) -> str:
        valid = [
            value
            for value in one.values or []
            if all(self.alternatives.is_valid(schema, value) for schema, _ in one.parts)
        ]
        if not valid:
            reason = "it enumerates no values" if not one.values else "no enumerated value meets the rest of it"
            raise UnsatisfiableSchemaError(one.path, reason)
        return _either(list(dict.fromkeys(self._literal(value) for value in valid)))

    def _literal(self, value: Any) -> str:
        """A value as `json.dumps` writes it."""
        space = self.whitespace
        if isinstance(value, list):
            items = space.comma.join(self._literal(item) for item in value)
            return rf"\[{space.inside}{items}{space.inside}\]" if value else rf"\[{space.inside}\]"
        if isinstance(value, dict):
            pairs = [text_of(name) + space.colon + self._literal(item) for name, item in value.items()]
            return rf"\{{{space.inside}{space.comma.join(pairs)}{space.inside * bool(pairs)}\}}"
        return text_of(value)

    def _any(self, one: Conjunction) -> tuple[Parts, dict[str, int]]:
        """What an item or a property is of which nothing is said: any value, nested `depth` times at most."""
        times = one.unrolled.get("", 0) + 1
        parts: Parts = [(times <= self.depth, f"{one.path}: what is nested there")]
        return parts, {**one.unrolled, "": times}

    def _object(self, one: Conjunction) -> str:
        space = self.whitespace
        least, most = one.plain.get("minProperties", 0), one.plain.get("maxProperties")
        if not one.properties and not one.required:
            return self._map(one, least, most)
        if one.extra is not None and any(schema is not False for schema, _ in one.extra):
            problem = "next to `properties`, only true and false are"
            raise UnsupportedSchemaError(one.where["additionalProperties"], problem, "Name the properties.")
        fields = []
        for name, parts in one.properties.items():
            try:
                text = text_of(name) + space.colon + self.value(parts or [(True, one.path + step(name))], one.unrolled)
                fields.append((text, name in one.required))
            except UnsatisfiableSchemaError:
                if name in one.required:
                    raise
        for name in one.required:
            if name not in one.properties:
                reason = f"it asks for the property {name!r}, which `properties` does not have"
                raise UnsatisfiableSchemaError(one.required[name], reason, proven=one.extra is not None)
        needed = sum(must for _, must in fields)
        for name, met in (("minProperties", max(needed, 1) >= least), ("maxProperties", len(fields) <= (most or 0))):
            if name in one.where and not met:
                problem = f"of the properties {needed} to {len(fields)} may be written"
                raise UnsupportedSchemaError(one.where[name], problem, "Say which in `required`.")
        if least and not fields:
            raise UnsatisfiableSchemaError(one.path, f"minProperties is {least}, and it has none", proven=False)
        inner = _fields(fields, space.comma, empty=not least) + space.inside * bool(fields)
        return rf"\{{{space.inside}{inner}\}}"

    def _map(self, one: Conjunction, least: int, most: int | None) -> str:
        """Objects of any names. One that is written twice is one property, so that only one can be asked for."""
        if least > 1:
            remedy = "Name the properties, and say which in `required`."
            raise UnsupportedSchemaError(one.where["minProperties"], "without `properties`, more than 1 is", remedy)
        try:
            inner = self.value(one.extra, one.unrolled) if one.extra is not None else self.value(*self._any(one))
        except UnsatisfiableSchemaError:
            if least:
                raise
            inner, most = "", 0
        if most is not None and least > most:
            raise UnsatisfiableSchemaError(one.path, f"minProperties is {least}, maxProperties {most}")
        return self._bracketed("{", string_of(0, None) + self.whitespace.colon + inner, least, most)

    def _array(self, one: Conjunction) -> str:
        least, most = one.plain.get("minItems", 0), one.plain.get("maxItems")
        proven, first = True, []
        for i in range(len(one.prefix) if most is None else min(len(one.prefix), most)):
            try:
                first.append(self.value(one.prefix[i] or [(True, one.path)], one.unrolled))
            except UnsatisfiableSchemaError as error:
                most, proven = i, error.proven
                break
        inner = ""
        if most is None or most > len(first):
            try:
                inner = self.value(one.items, one.unrolled) if one.items is not None else self.value(*self._any(one))
            except UnsatisfiableSchemaError as error:
                most, proven = len(first), error.proven
        if most is not None and least > most:
            raise UnsatisfiableSchemaError(one.path, f"it asks for {least} items, and has at most {most}", proven)
        if one.plain.get("uniqueItems") and (most is None or most > 1):
            problem = "that items differ is not translated"
            raise UnsupportedSchemaError(one.where["uniqueItems"], problem, "Remove it, or set `maxItems` to 1.")
        if not first:
            return self._bracketed("[", inner, least, most)
        space = self.whitespace
        behind = _times(
            f"{space.comma}{inner}", max(0, least - len(first)), None if most is None else most - len(first)
        )
        for i in reversed(range(len(first))):
            behind = (space.comma if i else "") + first[i] + behind
            behind = behind if i < least else f"(?:{behind})?"
        return rf"\[{space.inside}{behind}{space.inside}\]"

    def _bracketed(self, bracket: str, inner: str, least: int, most: int | None) -> str:
        """`least` to `most` times the same, with commas, in brackets."""
        space = self.whitespace
        first, last = (r"\[", r"\]") if bracket == "[" else (r"\{", r"\}")
        if most == 0:
            return first + space.inside + last
        text = inner + _times(space.comma + inner, max(0, least - 1), None if most is None else most - 1) + space.inside
        return first + space.inside + (text if least else f"(?:{text})?") + last


def _fields(fields: list[tuple[str, bool]], comma: str, empty: bool) -> str:
    """Fields in their order, `(expression, whether it must be there)`, with commas between those that are there.

    At least one of them unless it may be `empty`.
    """
    needed = [i for i, (_, must) in enumerate(fields) if must]
    if not needed:
        text = _some(fields, comma) if fields else ""
        return f"(?:{text})?" if empty and fields else text
    first = needed[0]
    before = "".join(f"(?:{text}{comma})?" for text, _ in fields[:first])
    after = "".join(comma + text if must else f"(?:{comma}{text})?" for text, must in fields[first + 1 :])
    return before + fields[first][0] + after


def _some(fields: list[tuple[str, bool]], comma: str) -> str:
    """At least one of the fields: some of the first half and maybe some of the second, or some of the second."""
    if len(fields) == 1:
        return fields[0][0]
    middle = len(fields) // 2
    second = _some(fields[middle:], comma)
    return f"(?:{_some(fields[:middle], comma)}(?:{comma}{second})?|{second})"


def _times(text: str, least: int, most: int | None) -> str:
    if most == 0:
        return ""
    return f"(?:{text}){'*' if (least, most) == (0, None) else f'{{{least},{most if most is not None else str()}}}'}"


def _either(texts: list[str]) -> str:
    return texts[0] if len(texts) == 1 else f"(?:{'|'.join(texts)})"
