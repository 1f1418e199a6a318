"""Every kind of constraint on real tokenizers: what is drawn is what `re`, `jsonschema`, `regex` and `str` accept.

And what they accept, as a tokenizer writes it, can be drawn.
"""

import json
import re

import jsonschema
import numpy as np
import pytest
import regex

from redge_guidance.constraints import (
    ChoiceConstraint,
    JsonSchemaConstraint,
    LengthConstraint,
    PrefixConstraint,
    RegexConstraint,
    SuffixConstraint,
    WordConstraint,
)
from redge_guidance.recipe import recipe_of
from redge_guidance.rewards import LexicalReward
from tests.helpers.tokenizers import tokenizer
from tests.helpers.walks import text_of, walked

WALKS = 12


@pytest.fixture(autouse=True)
def _no_cache(monkeypatch):
    monkeypatch.setenv("REDGE_GUIDANCE_CACHE", "")


def tokenizers():
    return [tokenizer("embedded"), tokenizer("byte"), tokenizer("fallback")]


def check(constraint, judge, right=(), wrong=(), several=3):
    """That both agree, on texts that are drawn and on those that are given, of `several` tokenizers."""
    told = constraint.accepts(["", *right, *wrong])
    for text, is_right in [*((text, True) for text in right), *((text, False) for text in wrong)]:
        assert bool(judge(text)) == is_right, text
    assert told is None or told[1:] == [True] * len(right) + [False] * len(wrong)
    for tok in tokenizers()[:several]:
        rng, ends = np.random.default_rng(0), [tok.eos_token_id]
        automaton = constraint.compiled(tok, len(tok), ends)
        for _ in range(WALKS):
            ids = walked(automaton, rng, more=int(rng.integers(0, 20)))
            text = text_of(tok, ids, ends)
            assert judge(text), ascii(text)
            assert constraint.accepts([text]) in (None, [True]), ascii(text)
        for given, expected in ((right, True), (wrong, False)):
            for text in given:
                ids = tok(text, add_special_tokens=False).input_ids
                same = tok.decode(ids) == text  # some do not tell a space in front from none
                assert not same or automaton.accepts([*ids, ends[0]]) == expected, text
                assert not same or automaton.accepts(ids) == expected, text


# a pattern, texts that it matches, texts that it does not
PATTERNS = [
    (r"\d{4}-\d{2}-\d{2}", ["2026-11-27"], ["2026-11-7", "a 2026-11-27"]),
    (r"\+?[0-9]{1,3}( [0-9]{2,4}){2,3}", ["+49 30 1234", "1 555 0100 22"], ["555", "+ 49 30 1234"]),
    (r"[A-Z][a-z]+( [a-z]+){2,7}[.!?]", ["The old house is near the river."], ["the house is.", "The house"]),
    (r"(yes|no|maybe)( not)?", ["yes", "maybe not"], ["", "not", "yesno"]),
    (r"(?i)HELLO,? world", ["Hello, WORLD", "hello world"], ["hello,world"]),
    (r"[^aeiou]*", ["", "rhythm", "Zz 12"], ["a", "rhythme"]),
    (r".*\briver\b.*", ["the river is", "river"], ["rivers", "the\nriver"]),
    (r"(?s).*\briver\b.*", ["the\nriver", "a river"], ["rivers"]),
    (r"a{2,5}b?", ["aa", "aaaaab"], ["a", "ab", "aaaaaa"]),
    (r"(ab|ba)*", ["", "abba"], ["aba", "aa"]),
    (r"\w+@\w+\.(com|org)", ["tom@house.org"], ["tom@house", "@a.com"]),
    (r"#[0-9A-Fa-f]{6}", ["#00ffAA"], ["#00ffA", "00ffAA"]),
    (r"([01]\d|2[0-3]):[0-5]\d", ["23:59", "00:00"], ["24:00", "1:00"]),
    (r"[a-z]*é[a-z]*", ["café", "é"], ["cafe", "cafe\u0301"]),
    (r"\"[^\"\\]*\"", ['"she said"', '""'], ['"a" "b"', '"a']),
    (r"(?:(?:one|two|three)(?:, |$))+", ["one, two, three", "two"], ["one two", "four"]),
    (r"(?m)^a$\n^b$", ["a\nb"], ["a b", "ab"]),
    (r"[\w' ]+\?", ["isn't she?"], ["isn't she", "?"]),
    (r"\s*\S+\s*", ["house", "house\n"], ["old house", ""]),
    (r"-?(0|[1-9]\d*)(\.\d+)?(e[+-]?\d+)?", ["-12.50", "0", "1e-7"], ["01", ".5", "1."]),
]


@pytest.mark.parametrize(("pattern", "right", "wrong"), PATTERNS)
def test_patterns(pattern, right, wrong):
    check(RegexConstraint(pattern), lambda text: re.fullmatch(pattern, text), right, wrong)


def test_flags_and_compiled_patterns():
    for constraint in (RegexConstraint("a.b", re.I | re.S), RegexConstraint(re.compile("a.b", re.I | re.S))):
        check(constraint, lambda text: re.fullmatch("(?is)a.b", text), ["A\nb", "axB"], ["a\nbc"])


def record(**properties):
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


TEXT, NUMBER = {"type": "string", "maxLength": 12}, {"type": "integer", "minimum": -5, "maximum": 130}
MOOD, DAY = {"enum": ["good", "bad", None]}, {"type": "string", "format": "date"}
TREE = record(value=NUMBER) | {"$defs": {}}
TREE["properties"] = TREE["properties"] | {"next": {"$ref": "#"}}

# a schema, values that are valid, values that are not
SCHEMAS = [
    (record(name=TEXT, age=NUMBER), [{"name": "Tom", "age": 7}], [{"name": "Tom"}, {"name": 1, "age": 7}]),
    (record(text=TEXT, mood=MOOD), [{"text": "", "mood": None}], [{"text": "a", "mood": "sad"}]),
    (record(day=DAY, ok={"type": "boolean"}), [{"day": "2026-11-27", "ok": True}], [{"day": "2026-11-31", "ok": True}]),
    ({"type": "array", "items": NUMBER, "minItems": 1, "maxItems": 4}, [[1], [0, 130, -5]], [[], [131]]),
    ({"type": "array", "prefixItems": [TEXT, NUMBER], "items": False, "minItems": 2}, [["a", 1]], [[1, "a"], ["a"]]),
    ({"type": "number", "minimum": 0, "maximum": 1}, [0, 0.25, 1], [1.5, -1]),
    ({"anyOf": [{"type": "null"}, record(a={"type": "boolean"})]}, [None, {"a": False}], [{}, 1]),
    ({"type": "string", "pattern": "^[A-Z]{2}\\d{3}$"}, ["AB123"], ["ab123", "AB1234"]),
    (TREE, [{"value": 1}, {"value": 1, "next": {"value": 2}}], [{"value": 1, "next": 3}]),
    ({"type": "object", "properties": {"a": NUMBER, "b": TEXT}}, [{}, {"b": "x"}], [{"a": "x"}]),
]


@pytest.mark.parametrize(("schema", "right", "wrong"), SCHEMAS)
def test_schemas(schema, right, wrong):
    kind = jsonschema.Draft202012Validator

    def judge(text):
        try:
            value = json.loads(text)
        except ValueError:
            return False
        return kind(schema, format_checker=kind.FORMAT_CHECKER).is_valid(value)

    texts, others = [json.dumps(value) for value in right], [json.dumps(value) for value in wrong]
    check(JsonSchemaConstraint(schema), judge, texts, [*others, texts[0][:-1], "", "None"])


def test_white_space_of_schemas():
    schema, value = record(name=TEXT, tags={"type": "array", "items": NUMBER}), {"name": "a", "tags": [1, 2]}
    styles = {"spaced": json.dumps(value), "compact": json.dumps(value, separators=(",", ":"))}
    for style, text in styles.items():
        assert JsonSchemaConstraint(json.dumps(schema), whitespace=style).machine.accepts(text)
        assert JsonSchemaConstraint(schema, whitespace="any").machine.accepts(text)
    assert not JsonSchemaConstraint(schema).machine.accepts(styles["compact"])


def test_a_schema_of_twenty_fields():
    kinds = [TEXT, NUMBER, MOOD, DAY, {"type": "number"}, {"type": "boolean"}, {"type": "array", "items": TEXT}]
    schema = record(**{f"field_{n}": kinds[n % len(kinds)] for n in range(20)})
    values = ["a b", 12, None, "2026-11-27", 1.5, True, ["c"]]
    value = {f"field_{n}": values[n % len(values)] for n in range(20)}
    check(JsonSchemaConstraint(schema), lambda text: is_json(schema, text), [json.dumps(value)], ["{}"])


def is_json(schema, text):
    try:
        jsonschema.validate(json.loads(text), schema)
    except (ValueError, jsonschema.ValidationError):
        return False
    return True


def test_choices():
    choices = ["yes", "yes, but", "no", "café", "東京 (Tokyo)", "a\nb", "("]
    check(ChoiceConstraint(choices), choices.__contains__, choices, ["", "yes,", "NO", "cafe", "y"])
    check(ChoiceConstraint("yes"), ["yes"].__contains__, ["yes"], ["y", "no"])


@pytest.mark.parametrize("text", ["Once upon", "a", "aab", "café ", "(*", "東"])
def test_beginnings_and_ends(text):
    check(PrefixConstraint(text), lambda other: other.startswith(text), [text, text + " b\nc"], ["b" + text, ""])
    end = text.strip()
    check(SuffixConstraint(end), lambda other: other.endswith(end), [end, "b\nc " + end], [end + "b", ""])


@pytest.mark.parametrize("word", ["river", "café", "New York", "東京", "ไทย", "हिन्दी", "don't"])
def test_words(word):
    texts = [f"the {word} is", word.upper(), f"{word}, {word}"]
    others = ["", "a house", "x" + word + "x" if word.isascii() else "old"]
    wanted, banned = LexicalReward(word), LexicalReward(banned=word)
    check(WordConstraint(word), lambda text: wanted.reached([text])[0], texts, others, several=2)
    check(WordConstraint(banned=word), lambda text: banned.reached([text])[0], others, texts, several=2)


def test_words_so_often():
    count = LexicalReward("old", count=True)
    for low, high in ((2, None), (0, 1), (2, 2)):
        constraint = WordConstraint("old", at_least=low, at_most=high)
        texts = [" ".join(["an old house"] * n) for n in range(5)]
        fits = [low <= n and (high is None or n <= high) for n in range(5)]
        right, wrong = (
            [text for text, fit in zip(texts, fits, strict=True) if fit is is_in] for is_in in (True, False)
        )
        check(constraint, lambda text, bounds=(low, high): within(count.score([text]).item(), *bounds), right, wrong)


def within(number, low, high):
    return low <= number and (high is None or number <= high)


def test_words_together_and_in_their_case():
    reward = LexicalReward(["old", "Tom"], banned="new", case_sensitive=True)
    constraint = WordConstraint(["old", "Tom"], banned=["new"], case_sensitive=True)
    check(
        constraint,
        lambda text: reward.reached([text])[0],
        ["Tom is old", "old Tom, New Tom"],
        ["tom is old", "old Tom is new"],
    )


@pytest.mark.parametrize(("low", "high"), [(0, 3), (2, 4), (3, 3), (2, None)])
def test_lengths(low, high):
    texts = [" ".join("abcdef"[:n]) for n in range(6)]
    for unit, count in (("words", str.split), ("characters", lambda text: regex.findall(r"\X", text))):
        right = [text for text in [*texts, "é\n"] if within(len(count(text)), low, high)]
        wrong = [text for text in texts if not within(len(count(text)), low, high)]
        constraint = LengthConstraint(low, high, unit)
        check(constraint, lambda text, count=count: within(len(count(text)), low, high), right, wrong)


@pytest.mark.parametrize(("low", "high"), [(0, 3), (2, 4), (3, None)])
def test_lengths_in_tokens(low, high):
    constraint = LengthConstraint(low, high, "tokens")
    assert constraint.accepts(["a"]) is None
    for tok in tokenizers():
        ends = [tok.eos_token_id]
        automaton = (constraint & RegexConstraint(r"[a-z ]*")).compiled(tok, len(tok), ends)
        rng = np.random.default_rng(0)
        for _ in range(WALKS):
            ids = [i for i in walked(automaton, rng, more=int(rng.integers(0, 6))) if i not in ends]
            assert within(len(ids), low, high)
            assert re.fullmatch("[a-z ]*", tok.decode(ids))
        for n in range(6):
            ids = tok("a b c d e f", add_special_tokens=False).input_ids[:n]
            assert automaton.accepts([*ids, *ends]) == within(n, low, high)


@pytest.mark.parametrize(
    "constraint",
    [
        RegexConstraint("a+", re.I, answer_only=True),
        JsonSchemaConstraint(SCHEMAS[0][0], whitespace="compact", depth=2),
        ChoiceConstraint(["a", "b"], most_states=9),
        WordConstraint(["a"], "b", at_most=3),
        LengthConstraint(1, 3, "characters"),
        PrefixConstraint("a"),
        SuffixConstraint("b", answer_only=False),
    ],
)
def test_it_knows_how_it_was_made(constraint):
    """Plain values, of which another one is made that accepts the same."""
    recipe = recipe_of(constraint)
    assert recipe.kind == type(constraint).__name__
    again = type(constraint)(**json.loads(json.dumps(recipe.arguments)))
    assert again.machine.equivalent(constraint.machine)
    assert again.answer_only is constraint.answer_only
    assert again.most_states == constraint.most_states
