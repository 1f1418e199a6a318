"""The keywords of JSON Schema: what they speak of, which are supported, what references refer to."""

from collections.abc import Iterable
from typing import Any
from urllib.parse import unquote

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError

Schema = dict[str, Any] | bool

ANNOTATIONS = {"title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly", "discriminator"}
ANNOTATIONS |= {"$schema", "$comment", "$defs", "definitions"}
STRUCTURE = {"$ref", "allOf", "anyOf", "oneOf", "type", "enum", "const"}
KIND_OF = {  # the kind of value that a keyword speaks of
    **dict.fromkeys(("minLength", "maxLength", "pattern", "format"), "string"),
    **dict.fromkeys(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"), "number"),
    **dict.fromkeys(("items", "prefixItems", "minItems", "maxItems", "uniqueItems"), "array"),
    **dict.fromkeys(("properties", "required", "additionalProperties", "minProperties", "maxProperties"), "object"),
}
KINDS = ("object", "array", "string", "integer", "fraction", "boolean", "null")


class UnsupportedSchemaError(ValueError):
    """A schema says something that no expression is made of here."""

    def __init__(self, path: str, problem: str, remedy: str):
        super().__init__(f"`schema`: {path} is not supported: {problem}. {remedy}")


class UnsatisfiableSchemaError(ValueError):
    """No text meets a schema; `proven`: nor does any value, however it is written."""

    def __init__(self, path: str, reason: str, proven: bool = True):
        self.path, self.reason, self.proven = path, reason, proven
        super().__init__(f"`schema`: no text meets {path}: {reason}.")


def check(schema: Schema, path: str) -> None:
    """That it is a schema of Draft 2020-12.

    Raises:
        ValueError: where it is not, and why.
    """
    try:
        Draft202012Validator.check_schema(schema)
    except SchemaError as error:
        place = path + "".join(f"[{one}]" if isinstance(one, int) else step(one) for one in error.absolute_path)
        message = f"`schema`: {place} is not what Draft 2020-12 of JSON Schema allows: {error.message}."
        raise ValueError(message) from None


def step(name: str) -> str:
    """A property's name at the end of a path."""
    return f".{name}" if name.removeprefix("$").isidentifier() else f"[{name!r}]"


def kinds_of(types: str | Iterable[str]) -> frozenset[str]:
    """Of `KINDS`, what is meant by names of JSON Schema: a number is an integer or a fraction."""
    found = {types} if isinstance(types, str) else set(types)
    return frozenset(found - {"number"} | ({"integer", "fraction"} if "number" in found else set()))


def check_keywords(schema: dict[str, Any], path: str) -> None:
    for name in schema:
        if name in ANNOTATIONS or name in STRUCTURE or name in KIND_OF:
            continue
        if (name == "$id" and path == "$") or (name == "nullable" and not schema[name]):
            continue
        problem, remedy = UNSUPPORTED.get(name, ("the keyword is not one that is known here", "Remove it."))
        raise UnsupportedSchemaError(path + step(name), problem, remedy)


_ENUMERATE = "Write the values that are meant as an `enum` or as branches of `anyOf`, or remove it."


def _all(names: Iterable[str], problem: str, remedy: str) -> dict[str, tuple[str, str]]:
    return dict.fromkeys(names, (problem, remedy))


UNSUPPORTED = {
    **_all(("not", "if", "then", "else"), "complements and conditions are not translated", _ENUMERATE),
    **_all(("contains", "minContains", "maxContains"), "items are described by `items` only", _ENUMERATE),
    **_all(("dependentRequired", "dependentSchemas", "dependencies"), "properties are independent", _ENUMERATE),
    **_all(
        ("patternProperties", "propertyNames", "unevaluatedProperties"),
        "objects have the properties that `properties` names, in its order",
        "Name the properties; no others are written.",
    ),
    **_all(("unevaluatedItems",), "items are described by `prefixItems` and `items`", "Write `items`: false."),
    **_all(("$dynamicRef", "$dynamicAnchor", "$anchor", "$vocabulary", "$id"), "references are local", "Use `$defs`."),
    **_all(("contentEncoding", "contentMediaType", "contentSchema"), "contents are not read", "Use a `pattern`."),
    "nullable": ("JSON Schema has no such keyword", 'Write `"type": ["string", "null"]`, or `anyOf` with null.'),
}


def look_up(root: Schema, reference: str, path: str) -> tuple[Schema, str]:
    """What a reference such as `#/$defs/name` refers to, and its path."""
    if reference != "#" and not reference.startswith("#/"):
        raise UnsupportedSchemaError(path, f"`{reference}` is not a path in this schema", "Use `#/$defs/...`.")
    found: Any = root
    place = "$"
    for piece in reference.split("/")[1:]:
        name = unquote(piece).replace("~1", "/").replace("~0", "~")
        try:
            found = found[int(name)] if isinstance(found, list) else found[name]
        except (KeyError, IndexError, ValueError, TypeError):
            raise ValueError(f"`schema`: {path} refers to `{reference}`, which the schema does not have.") from None
        place += f"[{name}]" if name.isdecimal() else step(name)
    if not isinstance(found, (dict, bool)):
        raise ValueError(f"`schema`: {path} refers to `{reference}`, which is not a schema.")
    check(found, place)
    return found, place
