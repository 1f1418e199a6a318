"""A goal that no step could move is a warning that names it; one that is moved, or reached, is none."""

import itertools
import warnings

import pytest
import torch

from redge_guidance import GuidanceConfig, guide
from redge_guidance.guidance import Guidance
from redge_guidance.rewards import BlackBoxReward, LengthReward, LexicalReward
from redge_guidance.step import DenoisingStep
from tests.helpers.hosts import any_reward, masked_image
from tests.helpers.tiny import WORDS, tiny_pipeline, tiny_reward

EOS, A, B = 1, 3, 4


def write(pipe, reward, config=None, prompt="", **kwargs):
    with guide(pipe, reward, config, **kwargs):
        return pipe([prompt] * 3, generator=torch.Generator().manual_seed(0)).texts


def count_of_b(tokens):
    return tokens.weights_of(torch.tensor([B]))[..., 0].sum(-1)


def rare(pipe):
    """A pipeline that never finds "b" likely."""
    bias = torch.zeros(len(WORDS))
    bias[B] = -30.0
    pipe.model.decoder.bias.data += bias
    return pipe


def test_a_function_that_wants_a_token_outside_the_support(pipe):
    pipe, config = rare(pipe), GuidanceConfig(support=2)
    with pytest.warns(
        UserWarning, match=r"`reward` count_of_b moved nothing in this call: its gradient was 0 .*`support=None`"
    ):
        write(pipe, count_of_b, config)
    write(pipe, count_of_b, GuidanceConfig(support=None))


class Climbed(LexicalReward):
    """By its gradient, as long lists of words are."""

    def valued(self):
        return []


@pytest.mark.parametrize("reward", [LengthReward(minimum=9), LengthReward(maximum=1), LengthReward(9) + tiny_reward()])
def test_a_length_that_gaps_leave_as_it_is(reward):
    """No end may be drawn there, so that no text is any longer or shorter."""
    with pytest.warns(UserWarning, match="a length of .* cannot be reached by 3 of 3 texts: .* room"):
        write(tiny_pipeline(), reward, prompt="a [MASK] [MASK] b")


def test_a_sum_names_the_term_and_no_other(pipe):
    reward = tiny_reward() + count_of_b + LexicalReward("a")
    with pytest.warns(UserWarning, match="moved nothing in this call") as caught:
        write(rare(pipe), reward, GuidanceConfig(support=2))
    assert [str(w.message).split()[1] for w in caught] == ["count_of_b"]


def test_a_term_without_a_gradient_in_a_sum_that_has_one(pipe):
    def detached(tokens):
        return tokens.weights.detach().new_full((len(tokens),), 0.5)

    with pytest.warns(UserWarning, match="`reward` detached moved nothing in this call: .* with the value 0.5"):
        write(pipe, tiny_reward() + detached)


@pytest.mark.parametrize("estimator", ["entropy_mix", "reinforce_loo"])
def test_a_black_box_whose_draws_never_differ(pipe, estimator):
    never = BlackBoxReward(lambda text: float("xyz" in text), name="xyz")
    with pytest.warns(
        UserWarning, match="`reward` xyz moved nothing in this call: the draws .* never differed, with the"
    ):
        write(pipe, never, GuidanceConfig(estimator=estimator))
    with pytest.warns(UserWarning, match="moved nothing in this call") as caught:
        write(pipe, never + LexicalReward("a"), GuidanceConfig(estimator=estimator))
    assert [str(w.message).split()[1] for w in caught] == ["xyz"]
    write(pipe, BlackBoxReward(lambda text: text.count("a")), GuidanceConfig(estimator=estimator))


@pytest.mark.parametrize(
    "reward",
    [
        LexicalReward("a"),
        LexicalReward(banned="b"),
        LengthReward(0, 50),
        -1 * LexicalReward("b"),
        BlackBoxReward(lambda text: "b" not in text),
        -1 * BlackBoxReward(lambda text: "b" in text),
        tiny_reward() + LengthReward(0, 50),
        tiny_reward() + 0 * BlackBoxReward(lambda text: 3.0),
    ],
    ids=lambda reward: repr(reward) if "+" in repr(reward) else type(reward).__name__,
)
def test_a_goal_that_every_draw_reaches_is_no_warning(pipe, reward):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write(rare(pipe), reward, GuidanceConfig(support=2), prompt="a a")


def test_a_term_that_is_subtracted_is_a_goal_too(pipe):
    always = BlackBoxReward(lambda text: 1.0, name="always")
    with pytest.warns(UserWarning, match="`reward` always moved nothing in this call: .* with the value 1, where 0"):
        write(pipe, tiny_reward() - always)


def test_the_values_that_are_named_are_those_of_all_steps(pipe):
    values = itertools.chain([2.0, 3.0], itertools.repeat(1.5))

    def falls(tokens):
        return tokens.weights.detach().new_full((len(tokens),), next(values))

    with pytest.warns(
        UserWarning, match="`reward` falls moved nothing in this call: .* with values from 1.5 to 3, where 1"
    ):
        write(pipe, tiny_reward() + falls)


def test_draws_are_compared_with_those_of_the_same_text(pipe):
    by_prompt = BlackBoxReward(lambda text: text.startswith("a"), name="by_prompt")
    message = "`reward` by_prompt moved nothing in this call: the draws .* never differed, with values from 0 to 1"
    with guide(pipe, by_prompt), pytest.warns(UserWarning, match=message):
        pipe(["a", "b", "a"])


def test_what_is_not_guided_is_not_warned_of(pipe):
    never = BlackBoxReward(lambda text: 0.0)
    write(pipe, never, GuidanceConfig(scale=0.0))
    write(pipe, never, GuidanceConfig(start=0.99))


def test_once_a_handle(pipe):
    never = BlackBoxReward(lambda text: 0.0)
    with guide(pipe, never), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            pipe("")
    assert len(caught) == 1


def test_a_call_that_fails_says_nothing_more(pipe):
    calls = []

    def fails(text):
        calls.append(text)
        if len(calls) > 4:
            raise KeyError("enough")
        return 0.0

    with guide(pipe, BlackBoxReward(fails)), pytest.raises(RuntimeError, match="enough"):
        pipe("")


@pytest.mark.parametrize(
    ("reward", "verdict"),
    [
        (Climbed(banned="a"), "and it is not reached; "),
        (BlackBoxReward(lambda text: -float("b" in text)), "where 1 would be a yes; "),  # a penalty that nobody pays
        (-BlackBoxReward(lambda text: 1.0), "where 0 would be a yes; "),
    ],
)
def test_of_a_function_it_is_not_said_that_it_is_not_reached(pipe, reward, verdict):
    with pytest.warns(UserWarning, match=f"moved nothing in this call: .*, {verdict}"):
        write(rare(pipe), reward, GuidanceConfig(support=2, stop=0.1), prompt="a a")


def test_images_too():
    pipe, run = masked_image()
    flat = BlackBoxReward(lambda image: 0.0, name="flat")
    with guide(pipe, any_reward(pipe) + flat), pytest.warns(UserWarning, match="`reward` flat moved nothing"):
        run()
    with guide(pipe, any_reward(pipe)):
        run()


def test_guidance_is_the_same_whoever_asks_what_moves(pipe):
    """What is looked at in the first update changes nothing of it."""
    reward = tiny_reward() + 0.5 * Climbed("a") + count_of_b
    total = lambda tokens: reward(tokens)  # noqa: E731 - one term, of which nothing is asked apart
    assert write(pipe, reward) == write(tiny_pipeline(), total)


def test_what_has_no_tokenizer_is_asked_for_no_strings():
    ids = torch.full((1, 3), A)
    step = DenoisingStep(
        logits=torch.zeros(1, 3, len(WORDS)),
        ids=ids,
        free=torch.ones_like(ids).bool(),
        attention_mask=torch.ones_like(ids).bool(),
        temperature=1.0,
        progress=0.0,
        tokenizer=None,
    )
    guidance = Guidance(lambda tokens: 0.0 * tokens.weights.sum() + torch.zeros(len(tokens)))
    guidance(step)
    with pytest.warns(UserWarning, match="`reward` <lambda> moved nothing"):
        guidance.end()
