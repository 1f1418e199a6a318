"""JSON Schemas as regular expressions: the texts are JSON and valid, `json` and `jsonschema` being the judges."""

import json
import random
import re
import time

import pytest
from jsonschema import Draft202012Validator

from redge_guidance.constraints.schema import accepts_json, expression_of
from tests.helpers.languages import drawn

PERSON = {
    "type": "object",
    "title": "a person",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 5},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "mood": {"enum": ["good", 'bad "very"', None]},
    },
    "required": ["name", "mood"],
    "additionalProperties": False,
}
TREE = {
    "$defs": {
        "node": {
            "type": "object",
            "properties": {
                "v": {"type": "integer"},
                "left": {"$ref": "#/$defs/node"},
                "right": {"$ref": "#/$defs/node"},
            },
            "required": ["v"],
        }
    },
    "$ref": "#/$defs/node",
}
SHAPES = {
    "oneOf": [
        {
            "type": "object",
            "properties": {"kind": {"const": kind}, "size": {"type": "number", "exclusiveMinimum": 0}},
            "required": ["kind", "size"],
        }
        for kind in ("circle", "square")
    ]
}
OPTIONAL = {"type": "object", "properties": {name: {"type": "boolean"} for name in "abcde"}}

# a schema, valid values that are written, and values that are not valid
CASES = [
    (
        PERSON,
        [{"name": 'a"\n', "mood": None}, {"name": "é😀", "age": 120, "mood": "good"}],
        [
            {"name": "a"},
            {"name": "", "mood": None},
            {"name": "sixsix", "mood": None},
            {"name": "a", "age": 121, "mood": None},
            {"name": "a", "age": "3", "mood": None},
            {"name": "a", "mood": "Good"},
            {"name": "a", "mood": None, "x": 1},
            [],
        ],
    ),
    ({"type": "integer"}, [0, -1, 10, 123456], [1.5, "1", True, None]),
    ({"type": "integer", "exclusiveMinimum": 2.5, "exclusiveMaximum": 11}, [3, 9, 10], [2, 11, 100]),
    ({"type": "integer", "minimum": -5, "maximum": 200, "multipleOf": 25}, [0, 25, 200], [-25, 26, 225]),
    ({"type": "number"}, [0, -0.5, 1e-07, 1e16, 12.25], ["1", None, False]),
    ({"type": "number", "minimum": -1.5, "maximum": 0.25}, [-1.5, -1, 0, 0.25, -0.001], [-1.51, 0.2501, 1, 2]),
    ({"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1}, [0.5, 0.001, 0.999], [0, 1, 1.5, -0.5]),
    ({"type": "number", "minimum": 17.5}, [17.5, 18, 100.25], [17.4, 17, 1, -18]),
    ({"type": ["string", "null"]}, ["", "a\\b", None], [0, [], {}]),
    ({"type": "string", "minLength": 2, "maxLength": 2}, ["ab", '\n"', "😀é"], ["a", "abc", 22]),
    ({"type": "string", "pattern": "a.c"}, ["abc", "xxabcx\n", 'a"c'], ["ac", "a\nc", ""]),
    ({"type": "string", "pattern": "^[^\\W_]+$", "maxLength": 4}, ["ab", "é9"], ["a_", "", "abcde"]),
    (
        {"type": "string", "pattern": "^(?:ab|c\\d{2})$|^[\\s\\D]$"},
        ["ab", "c12", " ", "\n", '"', "x"],
        ["abx", "c1", "5"],
    ),
    ({"type": "string", "pattern": '^"[\\\\/]$'}, ['"\\', '"/'], ["\\", '"a']),
    (
        {"type": "string", "format": "date"},
        ["2024-02-29", "2000-02-29", "0001-12-31"],
        ["2023-02-29", "1900-02-29", "2024-04-31", "0000-01-01", "2024-1-01"],
    ),
    ({"type": "string", "format": "time"}, ["23:59:59Z", "00:00:00.25+05:30"], ["24:00:00Z", "12:00", "12:60:00Z"]),
    ({"type": "string", "format": "date-time"}, ["2024-02-29T00:00:00Z"], ["2023-02-29T00:00:00Z", "2024-02-28"]),
    (
        {"type": "string", "format": "uuid"},
        ["123e4567-e89b-12d3-a456-426614174000"],
        ["123e4567e89b12d3a456426614174000"],
    ),
    ({"type": "string", "format": "email"}, ["a.b@c.org"], ["a.b", ""]),
    ({"type": "string", "format": "ipv4"}, ["0.10.255.99"], ["256.0.0.1", "1.2.3", "01.2.3.4"]),
    (
        {"enum": [1.5, "a", None, {"a": [1, {}]}, [], True]},
        [1.5, "a", None, {"a": [1, {}]}, [], True],
        [1, "b", False, {}],
    ),
    ({"type": "integer", "enum": [1, "a", 7], "minimum": 2}, [7], [1, "a"]),
    ({"const": "é\x7f\ud800"}, ["é\x7f\ud800"], ["é"]),
    (
        {"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 3},
        [[True], [True, False, True]],
        [[], [1], [True] * 4],
    ),
    (
        {"type": "array", "prefixItems": [{"type": "null"}, {"type": "integer"}], "items": {"const": 1}, "minItems": 1},
        [[None], [None, 3], [None, 3, 1, 1]],
        [[], [3], [None, None], [None, 3, 2]],
    ),
    (
        {"type": "array", "prefixItems": [{"const": 1}, {"const": 2}], "items": False, "minItems": 2},
        [[1, 2]],
        [[1], [1, 2, 3]],
    ),
    (OPTIONAL, [{}, {"c": True}, {"a": True, "e": False}, dict.fromkeys("abcde", True)], [{"a": 1}, []]),
    ({**OPTIONAL, "minProperties": 1}, [{"c": True}, dict.fromkeys("abcde", True)], [{}]),
    (
        {"type": "object", "additionalProperties": {"type": "integer"}, "maxProperties": 2},
        [{}, {"x": 1, "": 2}],
        [{"x": "1"}, {"x": 1, "y": 2, "z": 3}],
    ),
    ({"type": "object", "properties": {'a"\\ b': {"type": "null"}}, "required": ['a"\\ b']}, [{'a"\\ b': None}], [{}]),
    (
        {"anyOf": [{"type": "integer", "maximum": 3}, {"type": "array", "items": {"type": "null"}}]},
        [3, -7, [], [None]],
        [4, "a"],
    ),
    (
        SHAPES,
        [{"kind": "circle", "size": 1.5}],
        [{"kind": "circle", "size": 0}, {"kind": "line", "size": 1}, {"kind": "circle"}],
    ),
    (
        {"oneOf": [{"type": "integer", "maximum": 3}, {"type": "integer", "minimum": 4}, {"type": "string"}]},
        [3, 4, "a"],
        [None],
    ),
    (
        {"allOf": [{"type": "number", "minimum": 0}, {"type": "integer", "maximum": 20}, {"maximum": 9}]},
        [0, 9],
        [-1, 10, 0.5],
    ),
    (
        {
            "allOf": [
                {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
                {"properties": {"a": {"minimum": 3}, "b": {"type": "null"}}},
            ]
        },
        [{"a": 3}, {"a": 4, "b": None}],
        [{"a": 2}, {"b": None}],
    ),
    (
        {
            "type": "object",
            "properties": {"a": {"type": "null"}, "b": {"type": "null"}},
            "anyOf": [{"required": ["a"]}, {"required": ["b"]}],
        },
        [{"a": None}, {"b": None}, {"a": None, "b": None}],
        [{}],
    ),
    ({"type": "object", "properties": {"a": False, "b": True}}, [{}, {"b": [{"x": [1.5]}]}], [{"a": 1}]),
    (TREE, [{"v": 1}, {"v": 1, "left": {"v": 2, "right": {"v": 3}}}], [{"left": {"v": 2}}, {"v": 1, "left": {}}]),
    ({"$ref": "#/definitions/a~1b%20c", "definitions": {"a/b c": {"type": "boolean"}}}, [True], [0]),
    ({"minimum": 3}, [3, 4.5], [2]),
    (True, [None, [1, {"a": []}], {"x": {"y": "z"}}], []),
]
SEPARATORS = {"spaced": (", ", ": "), "compact": (",", ":"), "any": (",", ": ")}


@pytest.mark.parametrize("whitespace", SEPARATORS)
@pytest.mark.parametrize(("schema", "valid", "invalid"), CASES)
def test_every_text_is_valid_and_values_are_written(schema, valid, invalid, whitespace):
    pattern = re.compile(expression_of(schema, whitespace=whitespace))
    validator = Draft202012Validator(schema, format_checker=Draft202012Validator.FORMAT_CHECKER)
    generator = random.Random(0)
    for _ in range(60):
        text = drawn(pattern.pattern, generator)
        assert pattern.fullmatch(text)
        assert validator.is_valid(json.loads(text)), text

    def is_written(value):
        written = json.dumps(value, ensure_ascii="\ud800" in str(value), separators=SEPARATORS[whitespace])
        return pattern.fullmatch(written) is not None

    assert [value for value in valid if not (validator.is_valid(value) and is_written(value))] == []
    assert [value for value in invalid if validator.is_valid(value) or is_written(value)] == []


def test_a_recursive_reference_is_followed_depth_times():
    value = {"v": 1}
    for depth in (1, 2, 3, 4):
        assert re.fullmatch(expression_of(TREE, depth=depth), json.dumps(value))
        value = {"v": 1, "left": value}
        assert not re.fullmatch(expression_of(TREE, depth=depth), json.dumps(value))


def test_any_value_is_nested_depth_times():
    for depth in (1, 2, 3):
        pattern = expression_of({"type": "array"}, depth=depth)
        assert re.fullmatch(pattern, "[" * depth + '["a", 1]'[1:-1] + "]" * depth)
        assert not re.fullmatch(pattern, "[" * (depth + 1) + "1" + "]" * (depth + 1))


def test_branches_of_one_of_may_be_recursive():
    schema = {
        "$defs": {
            "term": {
                "oneOf": [
                    {"type": "integer"},
                    {"type": "object", "properties": {"not": {"$ref": "#/$defs/term"}}, "required": ["not"]},
                    {"type": "array", "items": {"$ref": "#/$defs/term"}},
                ]
            }
        },
        "$ref": "#/$defs/term",
    }
    pattern = expression_of(schema)
    assert re.fullmatch(pattern, '{"not": [1, 2]}')
    assert not re.fullmatch(pattern, '{"not": [1, null]}')


def test_a_json_text_is_a_schema_too():
    assert expression_of(json.dumps(PERSON)) == expression_of(PERSON)


def test_properties_are_in_the_order_of_the_schema():
    pattern = expression_of(OPTIONAL)
    for chosen in range(32):
        names = [name for i, name in enumerate("abcde") if chosen >> i & 1]
        assert re.fullmatch(pattern, json.dumps(dict.fromkeys(names, True)))
        assert len(names) < 2 or not re.fullmatch(pattern, json.dumps(dict.fromkeys(names[::-1], True)))


def test_twenty_fields_take_no_time():
    kinds = [
        {"type": "string", "maxLength": 20},
        {"type": "number", "minimum": 0},
        {"enum": ["a", "b"]},
        {"type": "null"},
    ]
    properties = {f"field {i}": kinds[i % 4] for i in range(20)}
    for required in (list(properties), []):
        started = time.process_time()
        pattern = expression_of({"type": "object", "properties": properties, "required": required})
        assert time.process_time() - started < 1  # 0.03
        assert len(pattern) < 30_000


def test_texts_are_judged():
    assert accepts_json(PERSON, '{"name": "a", "mood": null}')
    assert not accepts_json(PERSON, '{"name": "a", "mood": null')
    assert not accepts_json(PERSON, '{"name": "a"}')
    assert not accepts_json({"type": "number"}, "NaN")
    assert not accepts_json({"format": "date"}, '"2023-02-29"')
