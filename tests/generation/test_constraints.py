"""Records of texts that have a form: judged by their text alone, and into files that know what form it was."""

import csv
import json
import os
import re

import datasets
import pytest

from redge_guidance import GuidanceConfig
from redge_guidance.constraints import LengthConstraint, RegexConstraint, WordConstraint
from redge_guidance.constraints.named import fingerprint
from redge_guidance.generation import generate, generate_to
from redge_guidance.generation.differences import differences
from redge_guidance.rewards import LexicalReward
from tests.helpers.images import tiny_image_pipeline
from tests.helpers.settings import PLAIN
from tests.helpers.tiny import CHAT_TEMPLATE, tiny_llada2, tiny_pipeline, tiny_reward, tiny_uniform

FORM = RegexConstraint("a( [bc]){1,4}")
WORD = LexicalReward("c")
PROMPTS = ["", "a", "a b", "a [MASK] c"]
FEW = {"num_inference_steps": 2, "samples_per_prompt": 2}

pytestmark = pytest.mark.filterwarnings("ignore:.*moved nothing in this call")


def drawn(reward, prompts=PROMPTS, pipe=None, **given):
    return list(generate(pipe or tiny_pipeline(), prompts, reward, **(FEW | given)))


@pytest.mark.parametrize("make", [tiny_pipeline, tiny_uniform])
@pytest.mark.parametrize("reward", [FORM, tiny_reward() & FORM, WORD & FORM])
def test_records_are_of_the_form(make, reward):
    found = drawn(reward, pipe=make(), config=GuidanceConfig(**PLAIN))
    assert len(found) == 8
    assert all(re.fullmatch(FORM.pattern, record.text) and record.accepted is True for record in found)
    followed = reward is FORM or getattr(reward, "reward", None) is WORD  # exactly, without a gradient
    assert all(record.strength == (0.0 if followed else 2.0) for record in found)
    assert all((record.reward is None) == (reward is FORM) for record in found)
    assert all(record.to_dict()["accepted"] is True for record in found)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_batches_change_nothing(batch_size):
    reward = tiny_reward() & FORM
    together = [(record.seed, record.text) for record in drawn(reward)]
    assert [(record.seed, record.text) for record in drawn(reward, batch_size=batch_size)] == together


def test_a_constraint_holds_without_the_strength_of_a_reward():
    found = drawn(tiny_reward() & FORM, config=GuidanceConfig(scale=0))
    assert all(record.accepted and record.strength == 0 and record.reward is not None for record in found)
    assert [record.text for record in found] == [record.text for record in drawn(FORM)]


def test_a_constraint_that_only_judges_changes_nothing():
    free = drawn(None)
    found = drawn(FORM, enforced=False)
    assert [record.text for record in found] == [record.text for record in free]
    assert [record.accepted for record in found] == [bool(re.fullmatch(FORM.pattern, r.text)) for r in free]
    loose = RegexConstraint(".*e.*")
    assert {record.accepted for record in drawn(loose, enforced=False)} == {True, False}
    under = drawn(tiny_reward() & FORM, enforced=False)
    assert [record.text for record in under] == [record.text for record in drawn(tiny_reward())]


def test_what_texts_do_not_tell_is_not_said():
    record = drawn(LengthConstraint(2, 3, "tokens"), [""])[0]
    assert record.accepted is None
    assert "accepted" not in record.to_dict()
    assert drawn(LengthConstraint(2, 3, "tokens") & FORM, [""])[0].accepted is True
    assert drawn(None, [""])[0].accepted is None


def test_answers_are_judged_in_chats_and_where_it_is_asked():
    pipe = tiny_pipeline(length=12)
    pipe.tokenizer.chat_template = CHAT_TEMPLATE
    chat = [{"role": "user", "content": "d e"}]
    given = {"gen_length": 5, "pipe": pipe}
    for record in drawn(FORM, [chat], **given):
        assert record.accepted
        assert re.fullmatch(FORM.pattern, record.answer)
    for record in drawn(FORM, ["d e"], use_chat_template=True, **given):
        assert record.accepted
        assert re.fullmatch(FORM.pattern, record.answer)
    alone = RegexConstraint(r"\s*a( [bc]){1,4}", answer_only=True)
    for record in drawn(alone, ["d e"], **given):
        assert record.accepted
        assert re.fullmatch(alone.pattern, record.answer)
        assert not re.fullmatch(alone.pattern, record.text)


def test_a_prompt_that_contradicts_fails_alone_and_all_of_them_together():
    found = drawn(FORM, ["a", "d", "a b"])
    assert [record.error is None for record in found] == [True, True, False, False, True, True]
    assert "contradicts text 0: with its token 'd'" in found[2].error
    with pytest.raises(ValueError, match="contradicts text 0"):
        drawn(FORM, ["d"])
    with pytest.raises(ValueError, match="a canvas of 6 tokens: the shortest accepted text .* takes 9"):
        drawn(RegexConstraint("a( b){8,}"), [""])


def test_images_have_no_form():
    with pytest.raises(ValueError, match="`constraint` needs a tokenizer, got a pipeline of images"):
        drawn(FORM, [1], tiny_image_pipeline())


# ---- files ----


def write(output, reward=FORM, prompts=PROMPTS, **given):
    given = {"num_inference_steps": 2, "batch_size": 2, "progress": False} | given
    return generate_to(output, tiny_pipeline(), prompts, reward, **given)


def rows_of(path):
    if path.suffix == ".csv":
        with open(path, encoding="utf-8", newline="") as file:
            return [row | {"accepted": row["accepted"] == "True"} for row in csv.DictReader(file)]
    if path.suffix == ".parquet":
        return list(datasets.Dataset.from_parquet(str(path), cache_dir=str(path.parent / "cache")))
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("name", ["out.jsonl", "out.csv", "out.parquet"])
def test_files_say_what_was_accepted(name, tmp_path):
    done = write(tmp_path / name)
    assert (done.made, done.rejected) == (4, 0)
    rows = rows_of(tmp_path / name)
    assert [row["accepted"] for row in rows] == [True] * 4
    assert all(re.fullmatch(FORM.pattern, row["text"]) for row in rows)
    write(tmp_path / f"plain-{name}", None)
    assert all("accepted" not in row for row in map(set, [csv_head(tmp_path / f"plain-{name}")]))


def csv_head(path):
    if path.suffix == ".csv":
        return path.read_text().splitlines()[0].split(",")
    return list(rows_of(path)[0])


def test_a_field_of_the_input_keeps_its_value(tmp_path):
    write(tmp_path / "out.jsonl", prompts=[{"prompt": "a", "accepted": "mine"}])
    (row,) = rows_of(tmp_path / "out.jsonl")
    assert (row["accepted"], row["input_accepted"]) == (True, "mine")


def test_a_run_goes_on_as_if_it_had_not_been_stopped(tmp_path):
    write(tmp_path / "whole.jsonl")
    write(tmp_path / "out.jsonl")
    lines = (tmp_path / "out.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "out.jsonl").write_bytes(lines[0] + lines[3] + lines[1][:20])
    done = write(tmp_path / "out.jsonl")
    assert (done.made, done.before) == (2, 2)
    assert (tmp_path / "out.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


OTHERS = [
    (RegexConstraint("a( [bd]){1,4}"), r"constraints\[0\].pattern: 'a\( \[bc\]\)\{1,4\}', now 'a\( \[bd\]\)\{1,4\}'"),
    (RegexConstraint(FORM.pattern, re.IGNORECASE), r"constraints\[0\].flags: None, now 2"),
    (RegexConstraint(re.compile("a( [bc])+")), r"constraints\[0\].pattern: .*, now 'a\( \[bc\]\)\+'"),
    (
        FORM & LengthConstraint(1, 3),
        r"constraints: .*'a\( .*\}\], now .*, \{'kind': 'length', 'minimum': 1, 'maximum': 3\}\]",
    ),
    (tiny_reward() & FORM, r"reward: None, now "),
    (None, r"constraints: \[\{'kind': 'regex', .*, now None"),
]


@pytest.mark.parametrize(("other", "message"), OTHERS)
def test_another_form_is_refused_with_what_differs(other, message, tmp_path):
    write(tmp_path / "out.jsonl")
    before = (tmp_path / "out.jsonl").read_bytes()
    with pytest.raises(ValueError, match=f"was begun with other settings .*{message}"):
        write(tmp_path / "out.jsonl", other)
    assert (tmp_path / "out.jsonl").read_bytes() == before


def test_the_same_form_is_known_however_it_is_written():
    assert fingerprint(RegexConstraint(re.compile("a", re.I))) == fingerprint(RegexConstraint("a", re.I))
    one, other = (fingerprint(WordConstraint(iter([word]))) for word in "ab")
    assert one[0] == {"kind": "words", "wanted": "a list_iterator"} == other[0]
    assert one != other
    assert one == fingerprint(WordConstraint(iter(["a"])))


def test_differences_are_shown_where_they_are():
    long = "x" * 200
    (told,) = differences({"a": {"b": [1, long + "1"]}}, {"a": {"b": [1, long + "2"]}})
    assert told.startswith("a.b[1]: ...xxx")
    assert told.endswith("x2'")
    assert "x1', now ..." in told
    assert len(told) < 200


@pytest.mark.parametrize("name", ["out.jsonl", "out.csv", "out"])
def test_nothing_is_left_of_a_run_that_could_not_begin(name, tmp_path):
    with pytest.raises(ValueError, match="contradicts text 0"):
        write(tmp_path / name, prompts=["d"])
    assert os.listdir(tmp_path) == []
    assert write(tmp_path / name, RegexConstraint("d( [bc])*"), prompts=["d"]).made == 1
    with pytest.raises(ValueError, match="was begun with other settings"):
        write(tmp_path / name, prompts=["d"])
    assert len(os.listdir(tmp_path)) == 2


def test_lines_to_standard_output(capfdbinary):
    assert write("-").rejected == 0
    assert [json.loads(line)["accepted"] for line in capfdbinary.readouterr().out.splitlines()] == [True] * 4


def test_of_pipelines_that_leave_the_prompt_out_it_is_said_where_it_is_known():
    """LLaDA2Pipeline gives the answer alone, and outside a chat a constraint judges the prompt too."""
    pipe, alone = tiny_llada2(), RegexConstraint("([bc] ?)+", answer_only=True)
    given = {"pipe": pipe, "gen_length": 4, "block_length": 4}
    assert [record.accepted for record in drawn(FORM, ["a"], **given)] == [None, None]
    assert [record.accepted for record in drawn(alone, ["a"], **given)] == [True, True]
    assert [record.accepted for record in drawn(FORM, ["a"], **given, enforced=False)] == [None, None]
    pipe.tokenizer.chat_template = CHAT_TEMPLATE
    assert [record.accepted for record in drawn(FORM, ["d"], **given)] == [True, True]
    assert [record.accepted for record in drawn(RegexConstraint("d .*", answer_only=False), ["d"], **given)] == [
        None
    ] * 2
