"""The arithmetic of `eight_rewards.py`, without a model."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from eight_rewards import Said, best_scale, mean_of, scales_of, table, told_and_true
from reward_cases import Goal, has_length, has_word

from redge_guidance.rewards import BlackBoxReward, LengthReward


@pytest.mark.parametrize(
    ("outcomes", "best"),
    [
        ({0: 0.1, 1: 0.5, 2: 0.89, 4: 0.9, 8: 0.7}, 2),
        ({0: 0.1, 1: 0.5, 2: 0.88, 4: 0.9, 8: 0.9}, 4),
        ({0: -10.0, 1: -5.0, 2: -4.95, 4: -4.9}, 1),  # what is negative, as rewards are
        ({0: 0.5, 1: 0.2, 2: 0.3}, 2),  # nothing helps: the best there is
    ],
)
def test_the_best_scale_is_the_smallest_near_the_best_outcome(outcomes, best):
    assert best_scale({float(scale): value for scale, value in outcomes.items()}) == best


def test_what_the_handle_reports_is_held_against_what_the_pipeline_returned():
    plain = Goal(BlackBoxReward(len), lambda texts: [0.0] * len(texts))
    said = [Said(3.0, True, False), Said(4.0, True, True), Said(4.0, False, True), Said(4.0, None, None)]
    found = told_and_true([(plain, ["one", "one", "one", "one"])], [said])
    assert found == {"said": 3, "told": 2, "true": 1, "judged": 2, "guessed": 2}
    assert told_and_true([(plain, ["one"])], [[Said(3.0, None, None)]]) == {}
    assert told_and_true([(plain, ["one"])], [[]]) == {}


def test_terms_that_are_automata_have_no_target():
    both = Goal(BlackBoxReward(len) + 8 * LengthReward(2, 2), lambda texts: [0.0] * len(texts))
    assert told_and_true([(both, ["one", "two words"])], [[Said(3.0, True, None)] * 2])["true"] == 2


def test_means_add_counts_up_and_leave_out_lists():
    rows = [{"outcome": 0.0, "told": 1, "outcomes": [0.0]}, {"outcome": 1.0, "told": 3, "outcomes": [1.0]}]
    assert mean_of(rows) == {"outcome": 0.5, "told": 4}


def test_patterns_of_words_and_lengths():
    assert has_word("car", ["My car.", "Cars.", "CAR!", "scar", "care"]) == [True, False, True, False, False]
    assert has_length(2, 3, ["a", "a b", "a b c.", "a b c d"]) == [False, True, True, False]


def test_a_scale_that_was_not_tuned_is_said():
    with pytest.raises(SystemExit, match="has no scale of digits"):
        scales_of({"words": {"best": 2.0}}, ["words", "digits"], "tune.json")


def test_the_table_has_as_many_cells_in_every_line():
    one = {"outcome": 0.5, "nats_a_token": 2.0, "process_seconds": 1.0, "seconds": 1.0, "grammar": 0.9}
    told = one | {"said": 4, "told": 2, "true": 1, "judged": 2}
    means = {"unguided": one, "default": told, "best scale": one}
    row = {"scale": 2.0, "ratio": 0.9, "ratio_interval": (0.8, 1.0), "nats_ratio": 1.0, "means": means}
    lines = table({"words": row, "digits": row | {"ratio": None}}, {"words": "x", "digits": "y"}).splitlines()
    assert {line.count("|") for line in lines} == {13}
    assert "50.0% | 50.0% |" in lines[2]
