"""What is said of schemas that are not schemas, that are not supported, and that nothing meets."""

import re

import pytest

from redge_guidance.constraints.schema import accepts_json, expression_of

AGE = "$.properties.age"


def of_age(schema, required=True):
    return {"type": "object", "properties": {"age": schema}, "required": ["age"] if required else []}


UNSUPPORTED = [
    ({"type": "integer", "multipleOf": 3}, f"{AGE}.multipleOf is not supported: multiples are written one by one"),
    ({"type": "number", "multipleOf": 0.5}, f"{AGE}.multipleOf is not supported: of numbers that are no integers"),
    ({"type": "number", "maximum": 1e15}, f"{AGE}.maximum is not supported: bounds of 15 digits"),
    ({"not": {"const": 1}}, f"{AGE}.not is not supported: complements"),
    ({"if": True, "then": True}, f"{AGE}.if is not supported: complements"),
    ({"type": "array", "uniqueItems": True}, f"{AGE}.uniqueItems is not supported: that items differ"),
    ({"type": "array", "contains": True}, f"{AGE}.contains is not supported"),
    ({"type": "array", "unevaluatedItems": False}, f"{AGE}.unevaluatedItems is not supported"),
    ({"patternProperties": {"^a": True}}, f"{AGE}.patternProperties is not supported"),
    ({"propertyNames": {"maxLength": 3}}, f"{AGE}.propertyNames is not supported"),
    ({"dependentRequired": {"a": ["b"]}}, f"{AGE}.dependentRequired is not supported"),
    ({"type": "string", "nullable": True}, f"{AGE}.nullable is not supported: JSON Schema has no such keyword"),
    ({"type": "string", "maxlength": 3}, f"{AGE}.maxlength is not supported: the keyword is not one that is known"),
    ({"type": "string", "format": "hostname"}, f"{AGE}.format is not supported: 'hostname' is not one of date, time"),
    ({"type": "string", "format": "date", "pattern": "1"}, f"{AGE}.format is not supported: there is a `pattern`"),
    (
        {"type": "string", "format": "date", "maxLength": 9},
        f"{AGE}.format is not supported: the format allows 10 to 10",
    ),
    ({"type": "string", "pattern": "a", "maxLength": 9}, f"{AGE}.pattern is not supported: without `^` and `$`"),
    ({"type": "string", "pattern": "^(ab)*$", "maxLength": 9}, "the pattern allows 0 to any number of characters"),
    ({"type": "string", "pattern": r"(a)\1"}, f"{AGE}.pattern is not supported: a backreference"),
    ({"type": "string", "pattern": "(?=a)"}, f"{AGE}.pattern is not supported: a lookaround"),
    ({"type": "string", "pattern": r"\ba"}, f"{AGE}.pattern is not supported: anchors"),
    ({"type": "string", "pattern": "(?i)a"}, f"{AGE}.pattern is not supported: flags"),
    ({"type": "string", "pattern": "(?i:a)"}, f"{AGE}.pattern is not supported: flags"),
    ({"type": "string", "pattern": "a\x01"}, f"{AGE}.pattern is not supported: no string here has"),
    ({"allOf": [{"pattern": "a"}, {"pattern": "b"}]}, f"{AGE}.allOf[0].pattern is not supported: another schema"),
    (
        {"oneOf": [{"type": "integer"}, {"minimum": 3}]},
        f"{AGE}.oneOf[1] is not supported: a value may meet it and {AGE}.oneOf[0]",
    ),
    (
        {"oneOf": [{"pattern": "a"}, {"pattern": "b"}]},
        f"{AGE}.oneOf[1] is not supported: whether it excludes {AGE}.oneOf[0]",
    ),
    (
        {"oneOf": [{"items": False}, {"required": ["b"], "additionalProperties": False}]},
        f"{AGE}.oneOf[1] is not supported",
    ),
    ({"$ref": "other.json"}, f"{AGE}.$ref is not supported: `other.json`"),
    ({"$id": "a", "type": "null"}, f"{AGE}.$id is not supported"),
    (
        {"properties": {"a": True}, "additionalProperties": {"type": "null"}},
        f"{AGE}.additionalProperties is not supported",
    ),
    ({"type": "object", "minProperties": 2}, f"{AGE}.minProperties is not supported"),
    (
        {"properties": {"a": True, "b": True}, "maxProperties": 1},
        f"{AGE}.maxProperties is not supported: of the properties 0 to 2",
    ),
    ({"allOf": [{"anyOf": [{"const": i} for i in range(30)]}] * 2}, "has more than 500 alternatives"),
]
UNMET = [
    (False, f"{AGE}: it is false"),
    ({"type": "integer", "minimum": 4, "maximum": 3}, f"{AGE}: no integer is between its bounds"),
    ({"type": "integer", "minimum": 3.1, "maximum": 3.9}, f"{AGE}: no integer is between its bounds"),
    ({"type": "number", "minimum": 3, "exclusiveMaximum": 3}, f"{AGE}: no number is between its bounds"),
    ({"type": "string", "minLength": 4, "maxLength": 3}, f"{AGE}.minLength: minLength is 4, maxLength 3"),
    ({"enum": []}, f"{AGE}: it enumerates no values"),
    ({"enum": ["a", 1], "type": "null"}, f"{AGE}: no enumerated value meets the rest of it"),
    ({"type": "object", "properties": {}, "required": ["b"]}, f"{AGE}.required: it asks for the property 'b'"),
    ({"type": "array", "minItems": 4, "maxItems": 3}, f"{AGE}: it asks for 4 items, and has at most 3"),
    ({"type": "array", "items": False, "minItems": 1}, f"{AGE}: it asks for 1 items, and has at most 0"),
    ({"allOf": [{"type": "string"}, {"type": "null"}]}, f"{AGE}: its types exclude one another"),
    ({"anyOf": [False, False]}, f"{AGE}.anyOf[0]: it is false"),
    (of_age({"$ref": "#"}), "`#` was followed 3 times on the way there, and `depth` is 3"),
]
NO_SCHEMA = [
    ({"type": "strng"}, f"{AGE}.type is not what Draft 2020-12 of JSON Schema allows"),
    ({"minimum": "3"}, f"{AGE}.minimum is not what Draft 2020-12 of JSON Schema allows"),
    ({"anyOf": [1]}, f"{AGE}.anyOf[0] is not what Draft 2020-12"),
    ({"pattern": "("}, "is not"),
    ({"$ref": "#/$defs/x"}, f"{AGE}.$ref refers to `#/$defs/x`, which the schema does not have"),
    ({"$ref": "#/required"}, f"{AGE}.$ref refers to `#/required`, which is not a schema"),
    ({"const": float("nan")}, " is not JSON: NaN is not JSON"),
    ({"const": {1, 2}}, " is not JSON: "),
]


@pytest.mark.parametrize(("schema", "message"), UNSUPPORTED + UNMET + NO_SCHEMA)
def test_the_path_and_the_problem_are_named(schema, message):
    with pytest.raises(ValueError, match="^`schema`.*" + re.escape(message)):
        expression_of(of_age(schema))


@pytest.mark.parametrize("schema", [schema for schema, _ in UNMET])
def test_an_optional_property_that_nothing_meets_is_left_out(schema):
    assert re.fullmatch(expression_of(of_age(schema, required=False)), "{}")
    assert expression_of({"anyOf": [schema, {"type": "null"}], "$defs": {}}) == "null" or "#" in str(schema)


@pytest.mark.parametrize("schema", ["{", "3", 3, None, [], "[]"])
def test_a_schema_is_a_dict_a_bool_or_json(schema):
    for function in (expression_of, lambda schema: accepts_json(schema, "1")):
        with pytest.raises(ValueError, match="`schema` (is not JSON|must be a)"):
            function(schema)


@pytest.mark.parametrize(("name", "value"), [("depth", 0), ("depth", 1.5), ("depth", True), ("whitespace", "some")])
def test_settings_are_checked(name, value):
    with pytest.raises(ValueError, match=f"`{name}` must be"):
        expression_of(True, **{name: value})


def test_what_would_unroll_to_too_much_is_an_error():
    tree = {"type": "object", "properties": {name: {"$ref": "#"} for name in "abcdefgh"}}
    with pytest.raises(ValueError, match=r"more than 10,000 values. Ask for a smaller `depth`"):
        expression_of(tree, depth=5)
    long = {"type": "object", "properties": {"a" * 2000 + str(i): {"type": "null"} for i in range(200)}}
    with pytest.raises(ValueError, match=r"more than 1,000,000 characters. Ask for a smaller `depth`"):
        expression_of(long)


def test_a_reference_without_end_is_an_error():
    with pytest.raises(ValueError, match="a `\\$ref` is not supported: it leads back to itself"):
        expression_of({"anyOf": [{"$ref": "#", "const": 1}, {"type": "string"}]})
