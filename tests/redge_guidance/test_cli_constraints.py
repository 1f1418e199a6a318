"""Constraints on the command line: texts that have a form, always, whatever else is asked for."""

import itertools
import json
import re
import warnings

import jsonschema
import pytest

from redge_guidance.cli import main
from redge_guidance.cli.given import settings_of
from redge_guidance.cli.parser import build_parser
from redge_guidance.constraints.named import named
from redge_guidance.setups.documents import read
from redge_guidance.setups.forms import constraints_said
from redge_guidance.setups.schema import OPTIONS

FAST = ["generate", "--samples-per-prompt", "4", "--num-inference-steps", "6"]
PERSON = {
    "type": "object",
    "properties": {"ok": {"type": "boolean"}, "mood": {"enum": ["good", "bad"]}},
    "required": ["ok", "mood"],
    "additionalProperties": False,
}


def settings(*arguments):
    return settings_of(build_parser().parse_args(["generate", *arguments]))[0]


def records(tmp_path, *arguments):
    file = tmp_path / "out.jsonl"
    assert main([*FAST, *arguments, "--json", str(file)]) == 0
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.fixture
def schema(tmp_path):
    file = tmp_path / "schema.json"
    file.write_text(json.dumps(PERSON))
    return str(file)


# ---- what is read ----

FORMS = {
    "regex": (["--regex", "[a-z ]+"], [{"kind": "regex", "pattern": "[a-z ]+"}]),
    "choices": (["--choices", "a b", "-1", "c"], [{"kind": "choices", "choices": ["a b", "-1", "c"]}]),
    "want": (["--want", "a", "b c", "--want", "d"], [{"kind": "words", "wanted": ["a", "b c", "d"]}]),
    "ban": (["--ban", "e", "f"], [{"kind": "words", "banned": ["e", "f"]}]),
    "length": (["--min-words", "2", "--max-words", "9"], [{"kind": "length", "minimum": 2, "maximum": 9}]),
    "prefix": (["--prefix", "a "], [{"kind": "prefix", "prefix": "a "}]),
    "suffix": (["--suffix", "."], [{"kind": "suffix", "suffix": "."}]),
    "any": (
        ["--constraint", "{kind: length, maximum: 40, unit: characters}", "--constraints", "{kind: prefix, prefix: x}"],
        [{"kind": "length", "maximum": 40, "unit": "characters"}, {"kind": "prefix", "prefix": "x"}],
    ),
}
MORE = [[], ["--label", "positive"], ["--reward", "LengthReward: {maximum: 3}", "--scale", "3"], ["--scale", "0"]]
SOFT = {"regex", "want", "ban", "length"}


@pytest.mark.parametrize(
    "names", [names for k in (1, 2, 8) for names in itertools.combinations(FORMS, k)], ids=" ".join
)
def test_every_combination_is_read(names, schema):
    asked = [argument for name in names for argument in FORMS[name][0]]
    for more in MORE:
        found = [entry.to_dict() for entry in constraints_said(settings(*asked, *more, "--json-schema", schema))]
        assert {"kind": "json_schema", "schema": PERSON} in found
        assert [one for one in found if one["kind"] != "json_schema"] == expected(names)
        if SOFT & set(names):
            found = [entry.to_dict() for entry in constraints_said(settings(*asked, *more, "--soft"))]
            assert found == expected([name for name in names if name not in SOFT])


def expected(names):
    told = [dict(one) for name in names for one in FORMS[name][1]]
    words = [one for one in told if one["kind"] == "words"]
    if len(words) == 2:  # which are one constraint
        told[told.index(words[0])] = words[0] | words[1]
        told.remove(words[1])
    return told


def test_modifiers_are_of_all():
    given = ["--regex", "a", "--constraint", "{kind: prefix, prefix: a, answer_only: false}"]
    found = [entry.to_dict() for entry in constraints_said(settings(*given, "--answer-only", "--most-states", "50"))]
    assert found == [
        {"kind": "regex", "answer_only": True, "most_states": 50, "pattern": "a"},
        {"kind": "prefix", "answer_only": False, "most_states": 50, "prefix": "a"},
    ]


FILE = "reward: [LengthReward: {maximum: 3}]\nregex: a\nconstraints: {kind: prefix, prefix: a}\nanswer_only: true\n"


@pytest.mark.parametrize(
    ("text", "arguments", "forms", "rewards"),
    [
        (FILE, [], ["regex", "prefix"], True),
        (FILE, ["--label", "a"], ["regex", "prefix"], False),
        (FILE, ["--want", "a"], ["words"], True),
        (FILE, ["--want", "a", "--soft"], [], False),
        ("want: a\nsoft: true\n", ["--label", "a"], [], False),
        ("want: a\nsoft: true\n", ["--regex", "a"], ["regex"], False),
        ("want: a\n", ["--soft"], [], False),
        ("want: a\nsoft: true\n", ["--no-soft"], ["words"], False),
    ],
)
def test_of_a_file_what_is_said_again_is_replaced(text, arguments, forms, rewards, tmp_path):
    (tmp_path / "run.yaml").write_text(text)
    found = settings("--config", str(tmp_path / "run.yaml"), *arguments)
    assert [entry.kind for entry in constraints_said(found)] == forms
    assert ("reward" in found) == rewards
    assert found.get("answer_only") is (True if text == FILE else None)


def test_help_names_every_option():
    told = build_parser().parse_args
    with pytest.raises(SystemExit):
        told(["generate", "--choices"])
    assert [name for name, option in OPTIONS.items() if option.several] == ["choices", "want", "ban"]


# ---- texts ----


@pytest.mark.parametrize("model", ["builtin:tatoeba-masked", "builtin:tatoeba-uniform"])
def test_a_pattern_under_a_label(model, tmp_path, capsys):
    pattern = r"[A-Z][a-z]+ (is|was) [a-z ]+\."
    found = records(tmp_path, "--regex", pattern, "--label", "negative", "--model", model)
    assert all(re.fullmatch(pattern, record["text"]) for record in found)
    assert [record["accepted"] for record in found] == [True] * 4
    assert all("TextClassifierReward" in record["rewards"] for record in found)
    captured = capsys.readouterr()
    assert captured.err == ""
    assert "accepted" not in captured.out


def test_records_of_a_schema(schema, tmp_path):
    found = records(tmp_path, "--json-schema", schema)
    for record in found:
        jsonschema.validate(json.loads(record["text"]), PERSON)
    assert all(record["accepted"] for record in found)
    assert all(record["strength"] == 0 and "reward" not in record for record in found)


def test_choices_and_prefixes_together(tmp_path):
    choices = ["I like music.", "I like it.", "She was tired."]
    found = records(tmp_path, "--choices", *choices, "--prefix", "I ", "--constraint", "{kind: suffix, suffix: it.}")
    assert {record["text"] for record in found} == {"I like it."}


@pytest.mark.parametrize("goals", [["--label", "positive"], ["--ban", "Tom", "--max-words", "6"]])
def test_wanted_words(goals, tmp_path):
    for record in records(tmp_path, "--want", "music", *goals, "--prompt", "I [MASK] it.", "--samples-per-prompt", "2"):
        text = record["text"]
        assert record["accepted"]
        assert re.search(r"\bmusic\b", text, re.I)
        assert "--ban" not in goals or not re.search(r"\bTom\b", text, re.I)
        assert "--max-words" not in goals or len(text.split()) <= 6


def test_what_one_prompt_leaves_no_room_for_is_said_of_it_alone(capsys):
    asked = ["--choices", "I like it.", "I love it.", "--prompt", "She", "--prompt", "I [MASK] it."]
    assert main([*FAST, *asked]) == 3
    captured = capsys.readouterr()
    assert set(captured.out.splitlines()) <= {"I like it.", "I love it."}
    assert captured.err.startswith("redge-guidance: entry 0: `constraint` contradicts text 0")
    assert captured.err.endswith("(`--answer-only`).\n")
    assert captured.err.count("\n") == 1


def test_an_answer_alone(tmp_path):
    for record in records(tmp_path, "--regex", r"\s*[a-z ]+!", "--prompt", "Tom", "--answer-only"):
        assert record["accepted"]
        assert re.fullmatch(r"\s*[a-z ]+!", record["answer"])
        assert record["text"].startswith("Tom")


def test_a_comparison_says_how_many_were_accepted_by_themselves(tmp_path, capsys):
    found = records(tmp_path, "--suffix", "!", "--baseline")
    assert [record["accepted"] for record in found] == [record["text"].endswith("!") for record in found]
    lines = capsys.readouterr().out.splitlines()
    assert lines[-3].split()[3] == "accepted"
    assert [line.split()[3] for line in lines[-2:]] == ["0%", "100%"]


def test_soft_ones_are_rewards_and_say_nothing_of_acceptance(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = records(tmp_path, "--regex", r"[A-Z].*\.", "--want", "music", "--soft")
    assert all("accepted" not in record for record in found)
    assert all(set(record["rewards"]) == {"LexicalReward", "RegexReward"} for record in found)
    assert sum(record["reached"] for record in found) >= 3


def test_what_was_not_accepted_is_said(capsys, monkeypatch, tmp_path):
    from redge_guidance.constraints import SuffixConstraint

    monkeypatch.setattr(SuffixConstraint, "accepts", lambda self, texts: [False, *([True] * (len(texts) - 1))])
    found = records(tmp_path, "--suffix", ".")
    assert [record["accepted"] for record in found] == [False, True, True, True]
    assert capsys.readouterr().err.endswith(
        "1 of 4 texts are not as the constraint wants them; `accepted` says which\n"
    )
    assert main([*FAST, "--suffix", ".", "--output", str(tmp_path / "texts.jsonl")]) == 0
    assert "4 samples in" in (told := capsys.readouterr().err)
    assert told.endswith(", 1 not as the constraint wants them\n")


def test_what_was_saved_is_run_again(schema, tmp_path, capsys):
    file, again = tmp_path / "run.yaml", tmp_path / "again.yaml"
    first = records(tmp_path, "--json-schema", schema, "--save-config", str(file))
    values = read(file.read_text(), "file").values
    assert values["constraints"] == [{"kind": "json_schema", "schema": PERSON}]
    (tmp_path / "schema.json").unlink()  # which is in the file
    assert records(tmp_path, "--config", str(file), "--save-config", str(again)) == first
    assert again.read_text() == file.read_text()


def test_a_file_of_another_form_is_refused(tmp_path, capsys):
    asked = [*FAST, "--output", str(tmp_path / "out.jsonl"), "--want"]
    assert main([*asked, "music"]) == 0
    assert main([*asked, "music"]) == 0
    assert "0 samples in" in capsys.readouterr().err
    before = (tmp_path / "out.jsonl").read_bytes()
    assert main([*asked, "piano"]) == 2
    error = capsys.readouterr().err
    assert "constraints[0].wanted[0]: 'music', now 'piano'" in error
    assert error.count("\n") == 1
    assert (tmp_path / "out.jsonl").read_bytes() == before


# ---- bad input ----


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--regex", "(a"], "--regex: `pattern` is not a regular expression of Python: missing ), unterminated"),
        (["--regex", r"(a)\1"], "--regex: `pattern` has"),
        (["--regex", "a", "--constraint", "{kind: rgex}"], "--constraints: there is no constraint of the kind `rgex`"),
        (["--constraint", "regex"], "--constraints: a constraint must be `{kind: NAME, argument: value}`"),
        (["--constraint", "{kind: regex"], "--constraints, line 1: this is no YAML"),
        (["--json-schema", "no.json"], "`--json-schema` no.json cannot be read: No such file"),
        (["--json-schema", "."], "`--json-schema` . cannot be read: Is a directory"),
        (
            ["--json-schema", "bad.json"],
            "`--json-schema` must be a file of JSON, got bad.json: Expecting value, line 2",
        ),
        (["--json-schema", "wrong.json"], "--json-schema: `schema`"),
        (["--choices", ""], "--choices: `choices` must be text, at least one character, got ''"),
        (["--want", " "], "--want: `wanted` must be words or phrases, got ' '"),
        (["--want", "a", "--ban", "A"], "--want and --ban: `banned` has 'A', which `wanted` has as 'a'"),
        (
            ["--choices", "aa", "b", "--min-words", "2"],
            "--choices and --min-words: `ChoiceConstraint & LengthConstraint` a",
        ),
        (["--regex", "a{99}", "--most-states", "9"], "100 states, and the limit is 9: 'a{99}'. Make it simpler"),
        (["--soft", "--choices", "a"], "`--soft` needs `--want`, `--ban`, `--min-words`, `--max-words` or `--regex`"),
        (
            ["--regex", "a{200}"],
            "the shortest accepted text that it could become takes 200; make the canvas longer (`--gen",
        ),
        (["--regex", "[a-z]+", "--prompt", "Tom"], "or have the answer alone judged (`--answer-only`)"),
        (["--regex", "\ud800"], "`--regex` must be text in UTF-8"),
        (["--choices", "a", "b\0"], "`--choices` must be text without NUL"),
        (
            ["--regex", "a", "--model", "builtin:mnist-masked"],
            "`--regex` cannot be used with builtin:mnist-masked, which",
        ),
    ],
)
@pytest.mark.parametrize("into", [["--json", "out.jsonl"], ["--output", "out.jsonl"]])
def test_bad_input_is_one_line_and_exit_code_2(arguments, message, into, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.json").write_text('{"type":\n }')
    (tmp_path / "wrong.json").write_text('{"type": 3}')
    assert main([*FAST, *arguments, *into]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("redge-guidance: error: ")
    assert message in captured.err
    assert sorted(file.name for file in tmp_path.iterdir()) == ["bad.json", "wrong.json"]


def test_what_is_made_of_options_is_told_by_its_arguments():
    from redge_guidance.setups.constraints import make

    found = make(constraints_said(settings(*FORMS["regex"][0], *FORMS["length"][0])))
    assert named(found) == [*FORMS["regex"][1], *FORMS["length"][1]]
