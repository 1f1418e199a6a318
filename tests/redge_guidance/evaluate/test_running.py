"""What is drawn is judged and written down once, whatever interrupts it."""

import json
import math
import os
import statistics

import pytest
import torch

from redge_guidance.evaluate import Goal, Plan, Task, cells, methods_of, run
from redge_guidance.evaluate import running as module
from redge_guidance.evaluate.methods import Method
from redge_guidance.generation.journal import Journal
from redge_guidance.reward import Reward
from tests.helpers.images import tiny_image_pipeline
from tests.helpers.tiny import tiny_pipeline, tiny_reward

METHODS = methods_of(["unguided", "guided[scale: 4]", "fk-2"])
PLAN, TWO = Plan(samples=5, seeds=(0, 7), batch_size=4), Plan(samples=2)


def has_a(texts):
    return [float("a" in text.split()) for text in texts]


@pytest.fixture
def task():
    pipe = tiny_pipeline()
    goals = [
        Goal(tiny_reward(), has_a, ("", "a")),
        Goal(-1 * tiny_reward(), lambda texts: [1 - x for x in has_a(texts)]),
    ]
    return Task("tiny", "there is an a", pipe, goals, 0.5, {"num_inference_steps": 3}, other=tiny_pipeline())


@pytest.fixture(autouse=True)
def no_parser(monkeypatch):
    """The grammar judge, a program, has tests of its own."""

    class AllGood:
        def __call__(self, texts):
            return [True] * len(texts)

    monkeypatch.setattr(module, "Grammar", AllGood)


def without_costs(cell):
    left_out = ("seconds", "process_seconds", "peak_memory")
    return {name: value for name, value in cell.items() if name not in left_out}


def test_columns_are_of_the_samples(task):
    found = list(run(task, METHODS, PLAN))
    assert [(cell["seed"], cell["method"]) for cell in found] == [(s, m.name) for s in (0, 7) for m in METHODS]
    for cell in found:
        first, second = cell["texts"][:3], cell["texts"][3:]
        assert cell["gold"] == has_a(first) + [1 - x for x in has_a(second)]
        reward = tiny_reward()
        expected = torch.cat([reward.score(first), -reward.score(second)]).tolist()
        assert cell["reward"] == pytest.approx(expected, rel=1e-3, abs=1e-4)
        assert cell["tokens"] == [len(text.split()) + 1 for text in cell["texts"]]
        assert cell["nats"] == pytest.approx(task.pipe.nll(cell["texts"], num_corruptions=8).tolist(), rel=1e-4)
        assert [text.split()[0] for text in first[1:2]] == ["a"]  # the second prompt
        assert cell["distinct"] == len(set(cell["texts"])) / 5
    assert found[0]["texts"] != found[3]["texts"]


def test_costs_are_what_was_done(task):
    found = {(cell["method"], cell["seed"]): cell for cell in run(task, METHODS, PLAN)}
    bare, guided, particles = (found[name, 0] for name in ("unguided", "guided[scale: 4]", "fk-2"))
    assert bare["model_sequences"] == guided["model_sequences"] == 5 * 3
    assert particles["model_sequences"] == 2 * 5 * 3
    assert (bare["reward_forwards"], bare["reward_backwards"]) == (0, 0)
    assert 0 < guided["reward_backwards"] < guided["reward_forwards"]
    assert particles["reward_forwards"] == 2 * 5 * 3
    assert particles["reward_backwards"] == 0
    assert all(cell["process_seconds"] > 0 and 0 < cell["seconds"] < 60 for cell in found.values())


def test_a_run_goes_on_where_it_was_stopped(task, tmp_path):
    whole = list(run(task, METHODS, PLAN, tmp_path / "whole.jsonl"))
    output = tmp_path / "part.jsonl"
    going = run(task, METHODS, PLAN, output)
    first = [next(going) for _ in range(2)]
    going.close()  # as an exception between two cells does
    with open(output, "ab") as file:
        file.write(b'{"task": "tiny", "meth')  # as a kill in the middle of a line
    again = list(run(task, METHODS, PLAN, output))
    assert again[:2] == first  # with the times of then
    assert list(map(without_costs, again)) == list(map(without_costs, whole))
    lines = output.read_text().splitlines()
    assert [json.loads(line) for line in lines] == again
    assert list(run(task, METHODS, PLAN, output)) == again
    assert output.read_text().splitlines() == lines
    assert list(cells(output).values()) == again


def test_nothing_is_drawn_again(task, tmp_path, monkeypatch):
    output = tmp_path / "out.jsonl"
    list(run(task, METHODS, PLAN, output))
    monkeypatch.setattr(module, "_draw", lambda *args: pytest.fail("drawn again"))
    assert len(list(run(task, METHODS, PLAN, output))) == 6


def test_goals_have_seeds_of_their_own(task):
    goal = task.goals[0]
    twice = Task("tiny", "", task.pipe, [goal, goal], settings={"num_inference_steps": 3})
    (cell,) = run(twice, METHODS[:1], Plan(16, (0,), 16))
    assert cell["texts"][:8] != cell["texts"][8:]


def test_first_calls_are_not_measured_and_batches_are_as_large_as_asked_for(task, monkeypatch):
    drawn = []
    inner = type(METHODS[0]).draw

    def draw(self, pipe, reward, prompts, **how):
        drawn.append((len(prompts), how["seed"]))
        return inner(self, pipe, reward, prompts, **how)

    monkeypatch.setattr(type(METHODS[0]), "draw", draw)
    cells = list(run(task, METHODS[:1], PLAN))
    assert drawn == [(1, 1000 * 2**40), (3, 0), (2, 1), (3, 7000), (2, 7001)]
    assert [cell["model_sequences"] for cell in cells] == [15, 15]  # 5 samples of 3 steps
    assert [cell["model_calls"] for cell in cells] == [6, 6]  # a batch a goal
    (small,) = run(task, METHODS[:1], Plan(5, (0,), 1))
    assert small["model_calls"] == 15


def test_more_seeds_and_methods_are_added(task, tmp_path):
    output = tmp_path / "out.jsonl"
    list(run(task, METHODS[:1], Plan(5, (0,), 4), output))
    assert len(list(run(task, METHODS, PLAN, output))) == len(output.read_text().splitlines()) == 6


def test_cells_say_the_update_that_is_usual_for_the_reward_of_the_task(task):
    found = []
    for modality in ("text", "image"):
        task.goals[0].reward.modality = modality
        found.append(module._told(task, METHODS[1], PLAN, 0)["settings"]["guidance"]["update"]["num_updates"])
    digits = Task("digits", "bright", tiny_image_pipeline(), [Goal(lambda pixels: pixels.mean((1, 2, 3)), has_a)])
    found.append(module._told(digits, METHODS[1], PLAN, 0)["settings"]["guidance"]["update"]["num_updates"])
    assert found == [2, 3, 3]


@pytest.mark.parametrize(("plan", "name"), [(Plan(4, (0,), 4), "samples"), (Plan(5, (0,), 2), "batch_size")])
def test_other_settings_under_one_name_are_an_error(task, tmp_path, plan, name):
    output = tmp_path / "out.jsonl"
    list(run(task, METHODS, Plan(5, (0,), 4), output))
    before = output.read_bytes()
    with pytest.raises(
        ValueError, match=f"has unguided of tiny, seed 0, with another `{name}` \\(\\d+, now \\d+\\); take another name"
    ):
        list(run(task, METHODS, plan, output))
    assert output.read_bytes() == before


def test_what_differs_is_told_by_its_place(task, tmp_path):
    output = tmp_path / "out.jsonl"
    list(run(task, ["unguided"], Plan(2), output))
    other = Task(**{**vars(task), "settings": {"num_inference_steps": 4}})
    with pytest.raises(
        ValueError, match=r"another `settings` \(pipeline.num_inference_steps: 3, now 4\); take another"
    ):
        list(run(other, ["unguided"], Plan(2), output))


def test_a_reward_may_be_a_function_of_texts(task):
    goal = Goal(lambda text: -float(len(text)), has_a)
    made = Task("short", "there is an a", task.pipe, [goal], 0.5, {"num_inference_steps": 3})
    bare, best = run(made, ["unguided", "best-of-4"], Plan(3))
    assert statistics.mean(best["reward"]) > statistics.mean(bare["reward"])


def test_methods_may_be_named(task):
    assert [cell["method"] for cell in run(task, ["unguided", METHODS[1]], Plan(5, (0,), 4))] == [
        "unguided",
        "guided[scale: 4]",
    ]
    assert [cell["method"] for cell in run(task, "unguided", Plan(2))] == ["unguided"]
    with pytest.raises(ValueError, match="there is no method `guide`"):
        list(run(task, ["guide"], Plan(2)))


def test_a_judge_that_raises_is_named(task):
    task.goals[1].__dict__["gold"] = lambda texts: 1 / 0
    with pytest.raises(RuntimeError, match="`gold` of tiny raised ZeroDivisionError: division by zero; on a list of 2"):
        list(run(task, ["unguided"], Plan(4)))


@pytest.mark.parametrize(("value", "fits"), [(None, True), ({}, True), (0.5, False), ({"a": 1}, False)])
def test_settings_that_came_later_are_as_they_were_where_they_are_none(task, tmp_path, value, fits, monkeypatch):
    output, plan = tmp_path / "out.jsonl", Plan(2, (0,), 4)
    (cell,) = run(task, METHODS[:1], plan, output)
    older = Method.to_dict
    monkeypatch.setattr(Method, "to_dict", lambda *args: older(*args) | {"later": value, "sampler": {"later": value}})
    if fits:
        assert list(run(task, METHODS[:1], plan, output)) == [cell]
        return
    with pytest.raises(ValueError, match="with another `settings`"):
        list(run(task, METHODS[:1], plan, output))


def test_another_file_is_left_alone(task, tmp_path):
    output = tmp_path / "notes.txt"
    output.write_text("notes\n")
    with pytest.raises(ValueError, match="something else than a result of `evaluate` in line 1"):
        list(run(task, METHODS, PLAN, output))
    assert output.read_text() == "notes\n"


@pytest.mark.parametrize("content", ["notes", '{"task": "tiny", "method": "unguided", "seed": 0}\n'])
def test_what_is_no_whole_cell_is_left_alone(task, tmp_path, content):
    output = tmp_path / "notes.txt"
    output.write_text(content)
    with pytest.raises(ValueError, match="something else than a result of `evaluate` in line 1"):
        list(run(task, METHODS, PLAN, output))
    assert output.read_text() == content


def test_a_pipe_is_no_output(task, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="`output` must name a file, which a run can go on with"):
        list(run(task, METHODS, PLAN, tmp_path / "pipe"))


def test_what_another_process_wrote_meanwhile_is_not_drawn_again(task, tmp_path, monkeypatch):
    output = tmp_path / "out.jsonl"
    whole = list(run(task, METHODS[:1], PLAN, tmp_path / "whole.jsonl"))

    def opened(path):
        path.write_bytes((tmp_path / "whole.jsonl").read_bytes())
        return Journal(path)

    monkeypatch.setattr(module, "Journal", opened)
    assert list(run(task, METHODS[:1], PLAN, str(output))) == whole
    assert len(output.read_text().splitlines()) == 2


def test_an_error_while_drawing_leaves_what_is_done(task, tmp_path):
    output = tmp_path / "out.jsonl"
    greedy = Task(**{**vars(task), "settings": {"num_inference_steps": 3, "temperature": 0.0}})
    with pytest.raises(ValueError, match="`temperature` 0 draws the likeliest token"):
        list(run(greedy, METHODS, PLAN, output))
    assert [cell["method"] for cell in cells(output).values()] == ["unguided", "guided[scale: 4]"]


def test_without_the_parser_grammar_is_left_out_and_said(task, monkeypatch):
    def missing():
        raise RuntimeError("there is no parser")

    monkeypatch.setattr(module, "Grammar", missing)
    with pytest.warns(UserWarning, match="grammar is not judged: there is no parser"):
        found = list(run(task, METHODS[:1], Plan(2, (0,), 4)))
    assert "grammatical" not in found[0]


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda: Plan(samples=0), "`samples` must be"),
        (lambda: Plan(seeds=()), "`seeds` must be integers, at least one, each once"),
        (lambda: Plan(seeds=(1, 1)), "each once"),
        (lambda: Plan(seeds=3), r"`seeds` must be integers, .* got 3\."),
        (lambda: Plan(seeds=(2**60,)), r"`seeds` must be integers, .* below 9,223,372,036,854,775"),
        (lambda: Plan(samples=10**20), "`samples` must be at most 1,000,000"),
        (lambda: Plan(batch_size=10**20), "`batch_size` must be at most 1,000,000"),
        (lambda: Goal(tiny_reward(), has_a, ()), "`prompts` must be a list of prompts, at least one"),
        (lambda: Goal(tiny_reward(), has_a, "Tom"), "`prompts` must be a list of prompts, at least one, got 'Tom'"),
        (lambda: Goal(tiny_reward(), None), "`gold` must be a function of finished samples, got None"),
        (lambda: Task("tiny", "", tiny_pipeline(), []), "`goals` of tiny must be at least one, got none"),
        (lambda: Task("tiny", "", tiny_pipeline(), [Goal(lambda tokens: 0, has_a)]), "judges no finished texts"),
        (lambda: Task("tiny", "", tiny_pipeline(), [Goal(None, has_a)]), "`reward` must judge samples"),
        (lambda: Plan(batch_size=1.5), "`batch_size` must be"),
    ],
)
def test_bad_plans(made, message):
    with pytest.raises(ValueError, match=message):
        made()


def test_methods_and_settings_that_would_be_lost_are_errors(task):
    with pytest.raises(ValueError, match="`methods` must be different ones"):
        list(run(task, [METHODS[0], METHODS[0]], PLAN))
    wrong = Task(**{**vars(task), "settings": {"seed": 3}})
    with pytest.raises(ValueError, match="`settings` of tiny is for the pipeline's call, got `seed`"):
        list(run(wrong, METHODS, PLAN))


def test_a_judge_may_say_yes_and_no(task):
    (cell,) = run(Task(**{**vars(task), "goals": [Goal(tiny_reward(), lambda texts: [True, False])]}), METHODS[:1], TWO)
    assert cell["gold"] == [1, 0]


def test_fewer_samples_than_goals(task):
    with pytest.raises(ValueError, match="`samples` must be at least the 2 goals of tiny, got 1"):
        list(run(task, METHODS, Plan(1, (0,), 4)))


@pytest.mark.parametrize(
    "gold", [lambda texts: [math.nan] * len(texts), lambda texts: [2.0], lambda texts: [], lambda texts: 1]
)
def test_a_judge_that_gives_no_numbers_is_an_error(task, gold, tmp_path):
    wrong = Task(**{**vars(task), "goals": [Goal(tiny_reward(), gold)]})
    with pytest.raises(ValueError, match=r"`gold` of tiny must give a number in \[0, 1\] for every sample"):
        list(run(wrong, METHODS[:1], Plan(2, (0,), 4), tmp_path / "out.jsonl"))
    assert (tmp_path / "out.jsonl").read_text() == ""


class Begins(Reward):
    """Whether a text begins as its prompt does, which it has to be told."""

    differentiable = False

    def score(self, samples, prompts=None, batch_size=32):
        told = [""] * len(samples) if prompts is None else prompts
        return torch.tensor([float(a.split()[:1] == b.split()[:1]) for a, b in zip(samples, told, strict=True)])

    def reached(self, samples, prompts=None):
        return [value == 1 for value in self.score(samples, prompts).tolist()]


def test_rewards_are_told_the_prompts_of_the_samples(task):
    told = Task(**{**vars(task), "goals": [Goal(Begins(), has_a, ("a", "b"))]})
    (cell,) = run(told, METHODS[:1], Plan(4, (0,), 4))
    assert [text.split()[0] for text in cell["texts"]] == ["a", "b", "a", "b"]
    assert cell["reward"] == [1.0] * 4
    assert cell["optimised"] == [True] * 4
