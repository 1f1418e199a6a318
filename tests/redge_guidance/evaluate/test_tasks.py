"""The embedded tasks: rewards that guide, and judges that know what was asked for."""

import json
from pathlib import Path

import pytest
import torch

from redge_guidance import hub
from redge_guidance.evaluate import TASKS, task
from redge_guidance.evaluate.embedded import rouge_1

SUDOKUS = ("easy", "medium", "hard", "expert")
CASES = {  # of the first goal: what is as it should be, and what is not
    "sentiment": ("I hate this terrible place.", "The train leaves at noon."),
    "sentiment-fluent": ("I hate this terrible place.", "The train leaves at noon."),
    "rare": ("The horrible murder killed her and destroyed everybody.", "I don't like it."),
    "two": ("Why do you hate me?", "I hate you."),
    "words": ("I hate this book.", "I hate it."),
    "similarity": ("The surgeon washed her hands.", "I like tea."),
    "uniform": ("I hate this terrible place.", "The train leaves at noon."),
}


@pytest.mark.parametrize("name", CASES)
def test_judge_and_reward_agree_on_clear_cases(name):
    made = task(name)
    good, bad = CASES[name]
    values = made.goals[0].gold([good, bad])
    assert values[0] > values[1]
    assert values == made.goals[0].gold([good]) + made.goals[0].gold([bad])
    rewards = made.goals[0].reward.score([good, bad])
    assert rewards[0] > rewards[1]


def test_every_task_is_made_and_called_by_its_name():
    assert set(CASES) | {"digits", "digits-plain", *(f"sudoku-{kind}" for kind in SUDOKUS)} == set(TASKS)
    made = {name: task(name) for name in ("words", "digits")}
    assert {name: one.name for name, one in made.items()} == {name: name for name in made}
    assert len(made["digits"].goals) == 10
    assert len({id(one.reward.model) for one in made["digits"].goals}) == 1
    assert [one.gold(["I love my book", "I love my car"]) for one in made["words"].goals[:2]] == [[0, 0], [0, 1]]


def test_the_judge_of_digits_is_another_network_that_knows_them():
    made = task("digits")
    pixels = made.pipe(torch.arange(10).tolist(), output_type="pt", generator=torch.Generator().manual_seed(0)).images
    found = torch.tensor([goal.gold(list(pixels)) for goal in made.goals])
    assert found.sum(0).tolist() == [1.0] * 10  # one digit each
    assert found.diag().sum() >= 8  # of the class-conditional model nearly all
    assert "builtin:mnist-judge" in hub.builtin_names()
    swapped = task("digits-plain")
    assert swapped.goals[3].gold(list(pixels[2:5])) == [0.0, 1.0, 0.0]
    assert swapped.name == "digits-plain"
    nets = [[type(net.model) for net in (one.goals[0].reward, one.goals[0].gold.args[0])] for one in (made, swapped)]
    assert nets[0] == nets[1][::-1]
    assert nets[0] != nets[1]


@pytest.mark.parametrize("kind", SUDOKUS)
def test_puzzles_are_solved_by_their_solution_alone(kind):
    made = task(f"sudoku-{kind}")
    (goal,) = made.goals
    puzzles = json.loads((Path(hub.resolve("builtin:sudoku-masked")) / "puzzles.json").read_text())[kind]
    solutions = [solution for _, solution in puzzles]
    assert goal.gold(solutions) == [1.0] * len(solutions)
    assert goal.reward.score(solutions).tolist() == [0.0] * len(solutions)
    wrong = [board[:-1] + board[0] if board[0] != board[-1] else board[:-1] + board[1] for board in solutions]
    assert goal.gold(wrong) == [0.0] * len(solutions)
    given = [puzzle.replace("[MASK]", ".") for puzzle in goal.prompts]
    assert all(
        a in (".", b)
        for puzzle, board in zip(given, solutions, strict=True)
        for a, b in zip(puzzle, board, strict=True)
    )


def test_rouge_is_the_harmonic_mean_of_precision_and_recall():
    ours, theirs = "the the cat", "the cat sat on the mat"
    precision, recall = 3 / 3, 3 / 6
    assert rouge_1(ours, theirs) == pytest.approx(2 * precision * recall / (precision + recall))
    assert rouge_1("", theirs) == 0


@pytest.mark.parametrize("name", ["sentimnt", "no.txt", ""])
def test_an_unknown_task_names_what_is_known(name):
    with pytest.raises(ValueError, match=f"there is no task `{name}`, and it is no file in YAML; "):
        task(name)
