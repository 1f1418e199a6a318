"""Finished texts are a list of strings, and a single string is one text, not read letter by letter, by any reward."""

import pytest
import torch

from redge_guidance.rewards import BlackBoxReward, LengthReward, LexicalReward
from redge_guidance.samples.tokens import RelaxedTokens
from tests.helpers.image_rewards import classifier
from tests.helpers.tiny import tiny_reward

REWARDS = {
    "length": lambda: LengthReward(1, 2),
    "lexical": lambda: LexicalReward("a"),
    "classifier": tiny_reward,
    "black box": lambda: BlackBoxReward(len),
    "sum": lambda: LengthReward(1, 2) + LexicalReward("a"),
}
CHAT = [{"role": "user", "content": "a"}]


@pytest.mark.parametrize("make", REWARDS.values(), ids=REWARDS)
def test_texts_and_prompts_are_lists_of_strings(make):
    reward = make()
    for wrong in (None, 3, [1], [None], {"a": 1}, (text for text in ["a"])):
        with pytest.raises(ValueError, match="`samples` must be "):
            reward.score(wrong)
    for wrong in ("a", [None], 3, {"a": 1}, CHAT, [[]], ["a", "b"], [CHAT, CHAT]):
        with pytest.raises(ValueError, match="`prompts` must be "):
            reward.score(["a"], prompts=wrong)
    torch.testing.assert_close(reward.score(["a b"]), reward.score(("a b",)))
    assert len(reward.score([])) == 0


@pytest.mark.parametrize("make", REWARDS.values(), ids=REWARDS)
def test_one_string_is_one_text(make):
    reward = make()
    for prompts in (None, "b", ["b"], CHAT, [CHAT]):
        one = reward.score("a a b", prompts)
        assert one.shape == (1,)
        torch.testing.assert_close(one, reward.score(["a a b"], None if prompts is None else ["b"]))
        assert reward.reached("a a b", prompts) == reward.reached(["a a b"])
    with pytest.raises(ValueError, match="`prompts` must be one a sample, 1, got 2"):
        reward.score("a b", ["a", "b"])


@pytest.mark.parametrize("make", REWARDS.values(), ids=REWARDS)
def test_the_batch_size_is_a_whole_number(make):
    for wrong in (0, -1, 1.5, None, "2", True):
        with pytest.raises(ValueError, match="`batch_size` must be an integer >= 1"):
            make().score(["a", "b"], batch_size=wrong)
    torch.testing.assert_close(make().score(["a", "b", "c"], batch_size=2), make().score(["a", "b", "c"]))


def test_whatever_else_is_asked_of_texts():
    assert LengthReward(1, 2).lengths("a b").tolist() == [2.0]
    assert LexicalReward("a").report("a b").satisfied == 1.0
    assert tiny_reward().predict("a a b") == tiny_reward().predict(["a a b"])
    with pytest.raises(ValueError, match="`batch_size` must be an integer >= 1"):
        tiny_reward().predict(["a"], batch_size=0)


def test_one_image_is_one_sample():
    reward, pixels = classifier(), torch.rand(2, 3, 8, 8)
    torch.testing.assert_close(reward.score(pixels[0]), reward.score(pixels)[:1])
    assert reward.predict(pixels[0]) == reward.predict(pixels)[:1]
    with pytest.raises(ValueError, match="`batch_size` must be an integer >= 1"):
        reward.score(pixels, batch_size=0)


def test_the_prompts_of_relaxed_texts_are_a_list():
    ids = torch.tensor([[3], [4]])
    for wrong, told in (("ab", "the string 'ab'"), (CHAT, "one conversation")):
        with pytest.raises(ValueError, match=f"`prompts` must be a list of strings or conversations, got {told}"):
            RelaxedTokens(ids, ids > 9, torch.zeros(0, 8), prompts=wrong)
