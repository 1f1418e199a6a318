"""A JSON Schema as alternatives, each of keywords that hold together: references followed, `allOf` merged."""

from dataclasses import dataclass, field
from typing import Any

from jsonschema import Draft202012Validator

from redge_guidance.constraints.schema_keywords import (
    KIND_OF,
    KINDS,
    Schema,
    UnsatisfiableSchemaError,
    UnsupportedSchemaError,
    check_keywords,
    kinds_of,
    look_up,
    step,
)

Parts = list[tuple[Schema, str]]  # schemas that hold together, each with its path

MOST_ALTERNATIVES = 500

_LARGER = {"minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties"}
_SMALLER = {"maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties"}
_COUNTS = {"minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"}
_ONE_BY_ONE = {"items", "prefixItems", "properties", "required", "additionalProperties"}


@dataclass
class Conjunction:
    """Keywords that hold together, of one schema or of several.

    Attributes:
        path: of the first of these schemas.
        parts: these schemas, as they are written.
        plain: keywords with one value; of several schemas the stricter one.
        where: the path of each keyword.
        kinds: of `KINDS`, those allowed; None: not said.
        values: what `enum` or `const` of one of these schemas enumerates; the others are not asked yet.
        properties, prefix: what is said of each property, and of the first items.
        required: the names, each with the path at which it is asked for.
        extra, items: what is said of other properties, and of other items; None: nothing.
        unrolled: how often each reference was followed on the way here.
    """

    path: str
    parts: Parts = field(default_factory=list)
    plain: dict[str, Any] = field(default_factory=dict)
    where: dict[str, str] = field(default_factory=dict)
    kinds: frozenset[str] | None = None
    values: list[Any] | None = None
    properties: dict[str, Parts] = field(default_factory=dict)
    required: dict[str, str] = field(default_factory=dict)
    extra: Parts | None = None
    prefix: list[Parts] = field(default_factory=list)
    items: Parts | None = None
    unrolled: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, schema: Schema, path: str, unrolled: dict[str, int]) -> "Conjunction":
        """What one schema says itself."""
        made = cls(path, [(schema, path)], unrolled=unrolled)
        if isinstance(schema, bool):
            return made
        made.where = {name: f"{path}.{name}" for name in schema if name in KIND_OF}
        made.plain = {name: schema[name] for name in made.where if name not in _ONE_BY_ONE}
        made.plain |= {name: int(made.plain[name]) for name in _COUNTS & made.plain.keys()}  # 3.0 is one as well
        made.kinds = kinds_of(schema["type"]) if "type" in schema else None
        made.values = [schema["const"]] if "const" in schema else schema.get("enum")
        made.properties = {
            name: [(inner, f"{path}.properties{step(name)}")] for name, inner in schema.get("properties", {}).items()
        }
        made.required = dict.fromkeys(schema.get("required", []), f"{path}.required")
        if schema.get("additionalProperties", True) not in (True, {}):
            made.extra = [(schema["additionalProperties"], f"{path}.additionalProperties")]
        made.prefix = [[(one, f"{path}.prefixItems[{i}]")] for i, one in enumerate(schema.get("prefixItems", []))]
        if "items" in schema:
            made.items = [(schema["items"], f"{path}.items")]
        return made

    def joined(self, other: "Conjunction") -> "Conjunction":
        """What both say."""
        both = Conjunction(self.path, self.parts + other.parts, dict(self.plain), {**other.where, **self.where})
        for name, value in other.plain.items():
            both.plain[name] = _stricter(name, self.plain[name], value, both.where) if name in self.plain else value
        both.kinds = _meet(self.kinds, other.kinds)
        both.values = other.values if self.values is None else self.values
        for name in [*self.properties, *(name for name in other.properties if name not in self.properties)]:
            both.properties[name] = self.of_property(name) + other.of_property(name)
        both.required = {**other.required, **self.required}
        both.extra = _both(self.extra, other.extra)
        length = max(len(self.prefix), len(other.prefix))
        both.prefix = [self.of_item(i) + other.of_item(i) for i in range(length)]
        both.items = _both(self.items, other.items)
        both.unrolled = {
            name: max(self.unrolled.get(name, 0), other.unrolled.get(name, 0))
            for name in self.unrolled | other.unrolled
        }
        return both

    def of_property(self, name: str) -> Parts:
        """What is said of a property."""
        return self.properties.get(name, self.extra or [])

    @property
    def possible_kinds(self) -> frozenset[str]:
        """Those that `type` names, else those that the keywords speak of, else all."""
        if self.kinds is not None:
            return self.kinds
        return kinds_of({KIND_OF[name] for name in self.where}) or frozenset(KINDS)

    def of_item(self, index: int) -> Parts:
        """What is said of an item."""
        return self.prefix[index] if index < len(self.prefix) else self.items or []


class Alternatives:
    """The alternatives of parts of one schema.

    Args:
        root: the whole schema, which references are looked up in.
        depth: how often a reference may be followed on the way to a value.
        settles: raises UnsatisfiableSchemaError if no text meets some parts; asked of branches of `oneOf`.
    """

    def __init__(self, root: Schema, depth: int, settles: Any):
        self.root, self.depth, self.settles = root, depth, settles
        self.validator = Draft202012Validator(root, format_checker=Draft202012Validator.FORMAT_CHECKER)
        self._found: dict[str, tuple[Schema, str]] = {}
        self._apart: set[str] = set()  # paths at which branches of `oneOf` were compared, or are

    def of(self, parts: Parts, unrolled: dict[str, int]) -> list[Conjunction]:
        """Conjunctions of which a value must meet one."""
        found = [Conjunction(parts[0][1] if parts else "$", unrolled=unrolled)]
        for schema, path in parts:
            found = self._product(found, self._of_one(schema, path, unrolled), path)
        for one in found:
            one.path = parts[0][1] if parts else "$"
        return found

    def is_valid(self, schema: Schema, value: Any) -> bool:
        """Whether a value meets a part of the schema."""
        try:
            return bool(self.validator.evolve(schema=schema).is_valid(value))
        except RecursionError:
            problem = "it leads back to itself with no value in between"
            raise UnsupportedSchemaError("a `$ref`", problem, "Let it be in `properties` or `items`.") from None

    def _product(self, some: list[Conjunction], others: list[Conjunction], path: str) -> list[Conjunction]:
        if len(some) * len(others) > MOST_ALTERNATIVES:
            raise UnsupportedSchemaError(
                path, f"together with what is around it, it has more than {MOST_ALTERNATIVES} alternatives", "Say less."
            )
        return [one.joined(other) for one in some for other in others]

    def _of_one(self, schema: Schema, path: str, unrolled: dict[str, int]) -> list[Conjunction]:
        if schema is False:
            raise UnsatisfiableSchemaError(path, "it is false")
        found = [Conjunction.of(schema, path, unrolled)]
        if schema is True:
            return found
        check_keywords(schema, path)
        if "$ref" in schema:
            found = self._product(found, self._referred(schema["$ref"], path, unrolled), path)
        for i, inner in enumerate(schema.get("allOf", [])):
            found = self._product(found, self._of_one(inner, f"{path}.allOf[{i}]", unrolled), path)
        for name in ("anyOf", "oneOf"):
            if name in schema:
                parts = [(inner, f"{path}.{name}[{i}]") for i, inner in enumerate(schema[name])]
                if name == "oneOf":
                    self._check_apart(parts, unrolled)
                found = self._product(found, self._any_of(parts, unrolled), path)
        return found

    def _referred(self, reference: str, path: str, unrolled: dict[str, int]) -> list[Conjunction]:
        times = unrolled.get(reference, 0) + 1
        if times > self.depth:
            reason = f"`{reference}` was followed {self.depth} times on the way there, and `depth` is {self.depth}"
            raise UnsatisfiableSchemaError(f"{path}.$ref", reason, proven=False)
        if reference not in self._found:
            self._found[reference] = look_up(self.root, reference, f"{path}.$ref")
        schema, place = self._found[reference]
        return self._of_one(schema, place, {**unrolled, reference: times})

    def _any_of(self, parts: Parts, unrolled: dict[str, int]) -> list[Conjunction]:
        found: list[Conjunction] = []
        refused = []
        for part in parts:
            try:
                found += self._of_one(*part, unrolled)
            except UnsatisfiableSchemaError as error:
                refused.append(error)
        if not found:
            refused[0].proven = all(error.proven for error in refused)
            raise refused[0]
        return found

    def _check_apart(self, parts: Parts, unrolled: dict[str, int]) -> None:
        """That no value meets two of the branches of `oneOf`."""
        if parts[0][1] in self._apart:
            return
        self._apart.add(parts[0][1])
        remedy = "Write `anyOf`, or give the branches a required property with a `const` of its own."
        kept = [part for part in parts if self._may_be_met([part], unrolled, part[1], remedy)]
        for i, one in enumerate(kept):
            for other in kept[:i]:
                if self._may_be_met([other, one], unrolled, one[1], remedy):
                    raise UnsupportedSchemaError(one[1], f"a value may meet it and {other[1]}", remedy)

    def _may_be_met(self, parts: Parts, unrolled: dict[str, int], path: str, remedy: str) -> bool:
        try:
            self.settles(parts, unrolled)
        except UnsatisfiableSchemaError as error:
            return not error.proven
        except UnsupportedSchemaError as error:
            if len(parts) == 1:
                raise
            raise UnsupportedSchemaError(path, f"whether it excludes {parts[0][1]} is not known", remedy) from error
        return True


def _meet(some: frozenset[str] | None, others: frozenset[str] | None) -> frozenset[str] | None:
    if some is None or others is None:
        return others if some is None else some
    return some & others


def _both(some: Parts | None, others: Parts | None) -> Parts | None:
    return others if some is None else some + (others or [])


def _stricter(name: str, one: Any, other: Any, where: dict[str, str]) -> Any:
    if name in _LARGER:
        return max(one, other)
    if name in _SMALLER:
        return min(one, other)
    if name == "uniqueItems":
        return one or other
    if one != other:
        raise UnsupportedSchemaError(
            where[name], f"another schema that holds too says {other!r}", "Say one of the two."
        )
    return one
