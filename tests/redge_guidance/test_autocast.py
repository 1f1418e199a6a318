"""In `torch.autocast` guidance computes as ever; models and rewards compute as autocast says."""

import pytest
import torch

from redge_guidance import GuidanceConfig, guide
from redge_guidance.estimators import ESTIMATORS
from redge_guidance.precision import Autocast
from redge_guidance.rewards import LengthReward, LexicalReward
from redge_guidance.samples.tokens import RelaxedTokens
from redge_guidance.tilting import guided_logits
from tests.helpers.hosts import ONE_OF_EACH, any_reward, count_of_a, masked, seeded, uniform
from tests.helpers.settings import plain_config
from tests.helpers.tiny import tiny_reward
from tests.helpers.watching import watched

every_host = pytest.mark.parametrize("make", ONE_OF_EACH.values(), ids=ONE_OF_EACH)
SETTINGS = {
    "whole vocabulary": {"support": None, "kl_budget": 0.1},
    "adam": {"update": "adam", "estimator": "straight_through"},
}


def half():
    return torch.autocast("cpu", torch.bfloat16)


@every_host
def test_unguided_steps_are_those_of_the_bare_pipeline(make):
    results = []
    for scale in (None, 0.0):
        pipe, run = make()
        handle = None if scale is None else guide(pipe, any_reward(pipe), GuidanceConfig(scale=scale))
        with half():
            results.append(run())
        assert handle is None or not handle.trace
    assert torch.equal(*results)


@every_host
def test_every_host_is_guided(make):
    pipe, run = make()
    with half(), guide(pipe, any_reward(pipe), GuidanceConfig(scale=50.0, num_draws=2, support=4)) as handle:
        run()
    assert handle.trace[0].kl > 0


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_every_setting_guides(settings):
    pipe, run = masked()
    with half(), guide(pipe, any_reward(pipe), GuidanceConfig(num_draws=2, **settings)) as handle:
        run()
    assert handle.trace[0].kl > 0


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("support", [None, 4])
def test_q_is_that_of_full_precision(estimator, support):
    """Of the same logits and a reward that is computed outside."""
    pipe, run = masked()
    steps, _ = watched(pipe, run)

    def outside(tokens):
        with torch.autocast("cpu", enabled=False):
            return count_of_a(tokens)

    config = plain_config(estimator=estimator, support=support, kl_budget=0.2)
    for step in steps:
        expected, figures = guided_logits(step, outside, config, seeded())
        with half():
            found, inside = guided_logits(step, outside, config, seeded())
        assert found.dtype == torch.float32
        assert torch.equal(found, expected)
        assert inside == figures


@pytest.mark.parametrize("hard", [True, False])
@pytest.mark.parametrize("columns", [None, 2, 8])
def test_embeddings_and_their_gradients_are_in_the_dtype_of_the_table(hard, columns):
    torch.manual_seed(0)
    free, table = torch.rand(3, 5) < 0.6, torch.randn(8 if columns is None else 300, 4)
    rows = int(free.sum())
    weights = torch.randn(rows, columns or 8).softmax(-1)
    support = None if columns is None else torch.stack([torch.randperm(300)[:columns] for _ in range(rows)])
    if hard:
        weights = torch.nn.functional.one_hot(weights.argmax(-1), weights.shape[1]).float()
    tokens = weights.argmax(-1, keepdim=True) if support is None else support.gather(1, weights.argmax(-1)[:, None])
    ids = torch.zeros(3, 5, dtype=torch.long).masked_scatter(free, tokens)
    results = []
    for enabled in (False, True):
        leaf, rows_of_table = weights.clone().requires_grad_(), table.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            sample = RelaxedTokens(ids, free, leaf, support, hard=hard)
            embedded = sample.embed(rows_of_table)
            chosen = sample.weights_of(torch.tensor([1, 0]))
            loss = embedded.sin().sum() + chosen.sum()
        grads = torch.autograd.grad(loss, (leaf, rows_of_table))
        assert embedded.dtype == torch.float32
        results.append((embedded, chosen, *grads))
    for found, expected in zip(*results, strict=True):
        assert torch.equal(found, expected)


def test_a_reward_is_computed_as_autocast_says():
    seen = []

    def reward(tokens):
        seen.append((torch.is_autocast_enabled("cpu"), (torch.ones(2, 2) @ torch.ones(2, 2)).dtype))
        return count_of_a(tokens)

    pipe, run = masked()
    with guide(pipe, reward, GuidanceConfig(num_draws=1)):
        run()
        with half():
            run()
            assert torch.is_autocast_enabled("cpu")
    assert set(seen) == {(False, torch.float32), (True, torch.bfloat16)}


@pytest.mark.parametrize("make", [masked, uniform])
@pytest.mark.parametrize("kind", ["classifier", "words", "length", "sum"])
def test_rewards_of_texts_steer(make, kind):
    rewards = {"classifier": tiny_reward(), "words": LexicalReward("a"), "length": LengthReward(3, 4)}
    reward = rewards.get(kind) or rewards["classifier"] + rewards["words"]
    pipe, run = make()
    with half(), guide(pipe, reward, GuidanceConfig(scale=4.0, num_draws=2)) as handle:
        run()
    assert sum(step.kl for step in handle.trace) > 0


def test_what_was_in_force_is_so_anywhere_else():
    device = torch.device("cpu")
    with torch.autocast("cpu", dtype=torch.float16):
        found = Autocast.here(device)
    square = torch.ones(2, 2)
    with found.in_force():
        assert (square @ square).dtype == torch.float16
        with Autocast.off(device):
            assert (square @ square).dtype == torch.float32
