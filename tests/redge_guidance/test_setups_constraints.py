"""Constraints in files: what is written loads again as the same, and what is wrong in a file is named with its line."""

import re

import pytest

from redge_guidance import load, save
from redge_guidance.constraints import (
    ChoiceConstraint,
    Constrained,
    Constraint,
    Intersection,
    JsonSchemaConstraint,
    LengthConstraint,
    PrefixConstraint,
    RegexConstraint,
    SuffixConstraint,
    WordConstraint,
)
from redge_guidance.constraints.named import KINDS, named
from redge_guidance.pipelines import TextPipeline
from redge_guidance.rewards import LengthReward, LexicalReward, RegexReward
from tests.helpers.tiny import tiny_pipeline

TEXTS = [
    "",
    "a",
    "a b",
    "Tom likes music.",
    "tom likes music, MUSIC!",
    "2026-11-27",
    '"a"',
    '{"a b": "no"}',
    "7",
    str(2**70),
    "[true]",
    "a\n",
    "no",
    "é",
]

MADE = {
    "regex": [
        RegexConstraint(r"\d{4}-\d{2}-\d{2}"),
        RegexConstraint("tom.*", re.IGNORECASE | re.DOTALL, answer_only=True, most_states=100),
        RegexConstraint(re.compile("tom.*", re.IGNORECASE)),
        RegexConstraint("no"),
        RegexConstraint(" 'a\\\\: #\n\t\u2028é😀\""),
    ],
    "json_schema": [
        JsonSchemaConstraint({"type": "object", "properties": {"a b": {"enum": ["no", 1, None]}}, "required": ["a b"]}),
        JsonSchemaConstraint('{"type": "integer", "maximum": 1e3, "minimum": -2}', whitespace="any", depth=2),
        JsonSchemaConstraint({"enum": [2**70, 0.1, "\u2028"]}, answer_only=True),
        JsonSchemaConstraint({"type": "array", "items": {"$ref": "#/$defs/~"}, "$defs": {"~": {"type": "boolean"}}}),
    ],
    "choices": [ChoiceConstraint(["no", "yes", "2e-3", "a\n"]), ChoiceConstraint(("a b", "~"), answer_only=False)],
    "words": [
        WordConstraint("music"),
        WordConstraint(["likes"], {"no"}, at_least=1, at_most=2, case_sensitive=True),
        WordConstraint(banned=["no", "é"]),
    ],
    "length": [
        LengthConstraint(2),
        LengthConstraint(0, 3, "characters"),
        LengthConstraint(1, maximum=2, unit="tokens"),
    ],
    "prefix": [PrefixConstraint("Tom "), PrefixConstraint("2026", most_states=50)],
    "suffix": [SuffixConstraint("."), SuffixConstraint("\n", answer_only=True)],
}
EVERY = [one for many in MADE.values() for one in many]
TOGETHER = [
    RegexConstraint("[A-Za-z ,.!]*") & LengthConstraint(1, 4) & ChoiceConstraint(["a b", "b"]),
    Intersection([Intersection([PrefixConstraint("a"), SuffixConstraint("b")]), LengthConstraint(1, 9, "tokens")]),
]


@pytest.fixture(scope="module")
def pipe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "pipe"
    tiny_pipeline().save_pretrained(folder)
    return TextPipeline.from_pretrained(folder)


def test_every_kind_is_tried_here():
    assert set(MADE) == set(KINDS)


@pytest.mark.parametrize("constraint", [*EVERY, *TOGETHER], ids=lambda one: one.name)
def test_a_constraint_comes_back_as_the_same(constraint, pipe, tmp_path):
    file = tmp_path / "setup.yaml"
    save(file, pipe, constraint)
    setup = load(file)
    assert setup.reward is setup.constraint
    assert type(setup.reward) is type(constraint)
    assert setup.reward.accepts(TEXTS) == constraint.accepts(TEXTS)
    assert (setup.reward.answer_only, setup.reward.most_states) == (constraint.answer_only, constraint.most_states)
    assert named(setup.reward) == named(constraint) == setup.resolved["constraints"]
    save(tmp_path / "again.yaml", pipe, setup.reward)
    assert (tmp_path / "again.yaml").read_text() == file.read_text()


@pytest.mark.parametrize("reward", [LexicalReward("music"), 2 * LengthReward(2) + RegexReward("a.*", re.DOTALL)])
def test_a_reward_under_a_constraint_comes_back_as_both(reward, pipe, tmp_path):
    whole = reward & PrefixConstraint("a") & LengthConstraint(1, 3)
    save(tmp_path / "setup.yaml", pipe, whole)
    found = load(tmp_path / "setup.yaml")
    assert isinstance(found.reward, Constrained)
    assert found.reward.reward.score(TEXTS).tolist() == reward.score(TEXTS).tolist()
    assert named(found.constraint) == named(whole.constraint)
    assert list(found.resolved)[:3] == ["model", "reward", "constraints"]


def test_what_options_say_and_what_constraints_say_hold_together(pipe, tmp_path):
    (tmp_path / "setup.yaml").write_text(
        "answer_only: true\nmost_states: 5000\nregex: '[a-z ]+'\nwant: a\nmin_words: 2\nprefix: a\nchoices: [a b, b]\n"
        "constraints:\n- {kind: length, maximum: 40, unit: characters}\n"
        "- {kind: suffix, suffix: b, answer_only: true}\n"
    )
    found = load(tmp_path / "setup.yaml").constraint
    kinds = [told["kind"] for told in named(found)]
    assert kinds == ["regex", "choices", "words", "length", "prefix", "length", "suffix"]
    assert all(told["answer_only"] and told["most_states"] == 5000 for told in named(found))
    assert found.accepts(["a b", "b", "a a b"]) == [True, False, False]


def test_soft_ones_are_rewards(tmp_path):
    (tmp_path / "setup.yaml").write_text("soft: true\nregex: a.*\nwant: a\nmax_words: 3\nchoices: [a, b]\n")
    setup = load(tmp_path / "setup.yaml")
    assert repr(setup.reward.reward) == "15 * LexicalReward + 8 * LengthReward + 15 * RegexReward"
    assert named(setup.constraint) == [{"kind": "choices", "choices": ["a", "b"]}]
    (tmp_path / "setup.yaml").write_text("answer_only: true\nsoft: true\nban: a\nlabel: positive\n")
    setup = load(tmp_path / "setup.yaml")
    assert [term.reward.answer_only for term in setup.reward.terms] == [True, True]
    assert setup.constraint is None


# ---- what cannot be written ----


class Mine(Constraint):
    def build(self):
        return RegexConstraint("a").machine


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (Mine, "has a constraint Mine, and only those of the library can be written"),
        (lambda: RegexConstraint("a") & Mine(), "has a constraint Mine, and only those"),
        (lambda: WordConstraint(iter(["a"])), "`wanted` of the constraint WordConstraint is a list_iterator, which no"),
        (lambda: LengthReward(1) & ChoiceConstraint(iter("ab")), "`choices` of the constraint ChoiceConstraint is a"),
    ],
)
def test_what_no_file_holds_is_named(make, message, pipe, tmp_path):
    with pytest.raises(ValueError, match=message):
        save(tmp_path / "setup.yaml", pipe, make())
    assert not (tmp_path / "setup.yaml").exists()


# ---- what is wrong in a file ----

WRONG = [
    ("constraints: a\n", "line 1: `constraints` must be a list of constraints, got 'a'"),
    (
        "constraints:\n- regex: a\n",
        "line 2: a constraint must be `{kind: NAME, argument: value}`, with a kind of regex",
    ),
    ("constraints: {pattern: a}\n", "line 1: a constraint must be `{kind: NAME"),
    ("constraints:\n- 3\n", "line 2: a constraint must be `{kind: NAME"),
    ("constraints: {kind: rgex}\n", r"line 1: there is no constraint of the kind `rgex`; did you mean `regex`\?"),
    ("constraints: {kind: [regex]}\n", "line 1: there is no constraint of the kind"),
    (
        "seed: 1\nconstraints:\n- {kind: regex, patern: a}\n",
        r"line 3: a constraint `regex` has no argument `patern`; did",
    ),
    ("constraints: {kind: regex}\n", "line 1: a constraint `regex` needs the argument `pattern`"),
    ("constraints: {kind: regex, pattern: 2026}\n", "line 1: "),
    ("constraints: {kind: regex, pattern: '[a'}\n", "line 1: .*position 0"),
    (
        "constraints: {kind: regex, pattern: 'a(?=b)'}\n",
        "line 1: `pattern` has a lookahead or lookbehind .* at position 1",
    ),
    ("constraints: {kind: regex, pattern: a, flags: x}\n", "line 1: "),
    (
        "constraints: {kind: regex, pattern: a, most_states: x}\n",
        "line 1: `most_states` must be an integer >= 1, got 'x'",
    ),
    (
        "constraints: {kind: regex, pattern: 'a{99}', most_states: 9}\n",
        "line 1: .*at least 100 states, and the limit is 9",
    ),
    (
        "constraints: {kind: choices, choices: [a, 3]}\n",
        "line 1: `choices` must be text, at least one character, got 3",
    ),
    ("constraints: {kind: words}\n", "line 1: `wanted` or `banned` must name a word, got none"),
    ("constraints: {kind: words, wanted: [1984]}\n", "line 1: `wanted` must be words or phrases, got 1984"),
    ("constraints: {kind: length, minimum: 5, maximum: 4}\n", "line 1: `maximum` must be >= `minimum`, 5, got 4"),
    ("constraints: {kind: prefix, prefix: 3}\n", "line 1: `prefix` must be text"),
    ("regex: '[a'\n", "line 1: .*position 0"),
    ("seed: 1\nchoices: ['']\n", "line 2: `choices` must be text, at least one character, got ''"),
    ("want: a\nban: a\n", "line 1: `banned` has 'a', which `wanted` has"),
    ("choices: [a, b]\nmin_words: 2\n", "line 1 and .*line 2: `ChoiceConstraint & LengthConstraint` accepts no text"),
    (
        "want: a\nconstraints: {kind: regex, pattern: .*a.*, answer_only: true}\n",
        "line 1 and .*line 2: `answer_only` must be the same for all constraints",
    ),
    ("soft: true\nchoices: [a]\n", "line 1: `soft` needs `want`, `ban`, `min_words`, `max_words` or `regex`, got none"),
    ("min_words: 0\n", "line 1: `min_words` must be an integer >= 1, got 0"),
    ("model: builtin:mnist-masked\nlabel: 3\nprefix: a\n", "line 3: `prefix` cannot be used with .*which makes images"),
    ("constraints: {kind: json_schema, schema: {type: text}}\n", "line 1: `schema`"),
    ("constraints: {kind: json_schema, schema: [1]}\n", "line 1: `schema` must be a dict"),
    ("json_schema: no/such.json\n", "line 1: `json_schema` no/such.json cannot be read: No such file"),
]


@pytest.mark.parametrize(("text", "message"), WRONG, ids=range(len(WRONG)))
def test_what_is_wrong_is_named_with_its_place(text, message, tmp_path):
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(FileNotFoundError if "cannot be read" in message else ValueError, match=message) as error:
        load(tmp_path / "run.yaml")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "must be a file of JSON, got .*: Expecting value, line 1, column 1"),
        (b'{"type":\n "string"', "Expecting ',' delimiter, line 2, column 10"),
        (b'{"maximum": NaN}', "NaN is no JSON"),
        (b"\xff\xfe", "must be a file of JSON in UTF-8"),
        (b"[" * 100_000, "which is nested too deeply"),
    ],
)
def test_a_file_that_is_no_schema(content, message, tmp_path):
    (tmp_path / "schema.json").write_bytes(content)
    (tmp_path / "run.yaml").write_text(f"json_schema: {tmp_path / 'schema.json'}\n")
    with pytest.raises(ValueError, match=message) as error:
        load(tmp_path / "run.yaml")
    assert "line 1: `json_schema` must be a file of JSON" in str(error.value)
