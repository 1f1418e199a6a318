"""A guided call is a function of its inputs, its generator and the seed of guidance; guidance advances no generator."""

import pytest
import torch

from redge_guidance import GuidanceConfig, guide
from redge_guidance.estimators import ESTIMATORS
from redge_guidance.guidance import Guidance
from redge_guidance.hosts.attachment import Attachment
from tests.helpers import hosts
from tests.helpers.hosts import JUMP, ONE_OF_EACH, any_reward, seeded
from tests.helpers.settings import plain_config
from tests.helpers.watching import guided

every_host = pytest.mark.parametrize("make", ONE_OF_EACH.values(), ids=ONE_OF_EACH)


def config_of(pipe, **settings):
    strong = {"scale": 300.0 if hasattr(pipe, "vqvae") else 1.0, "num_draws": 2, "update": JUMP.update}
    return GuidanceConfig(**strong | settings)


@every_host
def test_the_same_generator_gives_the_same_samples_whatever_was_drawn_in_between(make):
    pipe, run = make()
    with guide(pipe, any_reward(pipe), config_of(pipe)):
        first = run(0)
        torch.manual_seed(5)
        run(3)
        torch.rand(7)
        assert torch.equal(run(0), first)


@every_host
@pytest.mark.parametrize("estimator", ["entropy_mix", "reinforce_loo"])
def test_the_global_generator_likewise(make, estimator, monkeypatch):
    pipe, run = make()
    monkeypatch.setattr(hosts, "seeded", lambda seed=0: None)  # the calls are then made without a generator
    results = []
    with guide(pipe, any_reward(pipe), config_of(pipe, estimator=estimator)):
        for seed in (1, 2, 1):
            torch.manual_seed(seed)
            results.append((run(), torch.get_rng_state()))
    assert torch.equal(results[0][0], results[2][0])
    assert torch.equal(results[0][1], results[2][1])
    assert not torch.equal(results[0][0], results[1][0])


@every_host
@pytest.mark.parametrize(("estimator", "without"), [("redge", False), ("reinforce_loo", True)])
def test_guidance_advances_neither_the_generator_of_the_pipeline_nor_the_global_one(
    make, estimator, without, monkeypatch
):
    pipe, run = make()
    if without:
        monkeypatch.setattr(hosts, "seeded", lambda seed=0: None)
    guidance, moved = Guidance(any_reward(pipe), config_of(pipe, estimator=estimator)), []

    def states(step):
        return [torch.get_rng_state(), *([] if step.generator is None else [step.generator.get_state()])]

    def move(step):
        assert (step.generator is None) == without
        before = states(step)
        logits = guidance(step)
        moved.append(logits is not None or len(guidance.trace) > len(moved))
        assert all(torch.equal(*pair) for pair in zip(before, states(step), strict=True))
        return logits

    attachment = Attachment(pipe, begin=guidance.begin, move=move)
    run()
    attachment.remove()
    assert any(moved)


@every_host
def test_another_seed_of_guidance_or_another_generator_gives_other_noise(make):
    """In the first step, whose logits are the same as long as only the seed of guidance differs."""
    pipe, run = make()
    config = config_of(
        pipe, num_draws=1, estimator=ESTIMATORS["gumbel_softmax"](hard=False), update=JUMP.update, stop=0.01
    )

    def weights(seed, of_pipe=0):
        seen = []

        def reward(sample):
            seen.append(getattr(sample, "weights", sample).detach())
            return any_reward(pipe)(sample)

        guided(pipe, lambda: run(of_pipe), reward, config, seed)
        return seen[0]

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))
    assert not torch.equal(weights(1), weights(1, of_pipe=1))


def test_another_seed_gives_other_samples():
    pipe, run = hosts.masked([""] * 64)
    found = []
    for seed in (1, 2, 1):
        with guide(pipe, hosts.count_of_a, plain_config(8.0, num_draws=1), seed=seed):
            found.append(run())
    assert torch.equal(found[0], found[2])
    assert not torch.equal(found[0], found[1])


def test_the_noise_of_a_step_is_not_that_of_the_step_before():
    """A greedy sampler in the order of positions does not move its generator; the number of the step does."""
    pipe, seen = hosts.tiny_pipeline(unmasking_order="confidence"), []

    def reward(tokens):
        seen.append(tokens.weights[-1].detach())
        return hosts.count_of_a(tokens)

    config = plain_config(0.01, "gumbel_softmax", JUMP.update, num_draws=1, support=None)
    for _ in range(2):
        with guide(pipe, reward, config):
            pipe([""] * 4, generator=seeded(), temperature=0.0, num_inference_steps=3)
    assert all(torch.equal(seen[k], seen[k + 3]) for k in range(3))
