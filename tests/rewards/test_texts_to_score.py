"""Finished texts are a list of strings: one string is not read letter by letter, by no reward."""

import pytest
import torch

from redge_guidance.rewards import BlackBoxReward, LengthReward, LexicalReward
from redge_guidance.samples.tokens import RelaxedTokens
from tests.helpers.tiny import tiny_reward

REWARDS = {
    "length": lambda: LengthReward(1, 2),
    "lexical": lambda: LexicalReward("a"),
    "classifier": tiny_reward,
    "black box": lambda: BlackBoxReward(len),
    "sum": lambda: LengthReward(1, 2) + LexicalReward("a"),
}


@pytest.mark.parametrize("make", REWARDS.values(), ids=REWARDS)
def test_texts_and_prompts_are_lists_of_strings(make):
    reward = make()
    for wrong in ("a b", None, 3, [1], [None], {"a": 1}, (text for text in ["a"])):
        with pytest.raises(ValueError, match="`samples` must be "):
            reward.score(wrong)
    with pytest.raises(ValueError, match="`samples` must be a list of strings, got the string 'a b'; put it into a"):
        reward.score("a b")
    for wrong in ("a", [None]):
        with pytest.raises(ValueError, match="`prompts` must be "):
            reward.score(["a"], prompts=wrong)
    torch.testing.assert_close(reward.score(["a b"]), reward.score(("a b",)))
    assert len(reward.score([])) == 0


OTHERS = [
    lambda: LengthReward(1, 2).reached("a b"),
    lambda: LengthReward(1, 2).lengths("a b"),
    lambda: LexicalReward("a").reached("a b"),
    lambda: LexicalReward("a").report("a b"),
    lambda: tiny_reward().reached("a b"),
    lambda: tiny_reward().predict("a b"),
    lambda: (LengthReward(1, 2) + LexicalReward("a")).reached("a b"),
]


@pytest.mark.parametrize("ask", OTHERS)
def test_whatever_is_asked_of_texts(ask):
    with pytest.raises(ValueError, match="must be a list of strings, got the string 'a b'"):
        ask()


def test_the_prompts_of_relaxed_texts_are_a_list_of_strings():
    ids = torch.tensor([[3], [4]])
    with pytest.raises(ValueError, match="`prompts` must be a list of strings, got the string 'ab'"):
        RelaxedTokens(ids, ids > 9, torch.zeros(0, 8), prompts="ab")
