"""Weighted particles against every text that there is, and its probability under the bare sampler, written out."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from redge_guidance import GuidanceConfig, guide
from redge_guidance.particles import ParticleConfig
from redge_guidance.updates import Natural
from tests.helpers.enumeration import GROUPS, PROMPT, STEPS, agrees, compare, hard, interacting, law, run
from tests.helpers.hosts import seeded
from tests.helpers.tiny import tiny_pipeline, tiny_uniform

GUIDED = GuidanceConfig(scale=0.7, estimator="straight_through", update=Natural(2, 1 / 2), num_draws=1, support=None)
GUIDANCES = {"not guided": None, "guided": GUIDED}
POTENTIALS = ("difference", "max", "sum")


@pytest.fixture(scope="module")
def exact():
    pipe = tiny_pipeline(unmasking_order="ancestral")
    reward = interacting(pipe)
    ids, p = law(pipe)
    return pipe, reward, ids, p, hard(reward, pipe, ids)


def test_the_law_that_was_written_out_is_that_of_the_sampler(exact):
    pipe, _, ids, p, _ = exact
    assert p.sum() == pytest.approx(1.0)
    drawn = pipe([PROMPT] * 20_000, num_inference_steps=STEPS, generator=seeded(3)).sequences
    for canvas, chance in zip(ids, p, strict=True):
        found = (drawn == canvas).all(-1).double().mean().item()
        assert abs(found - chance) <= 4.5 * math.sqrt(chance * (1 - chance) / 20_000) + 1e-4


@pytest.mark.parametrize("resample_below", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("potential", POTENTIALS)
@pytest.mark.parametrize("guidance", GUIDANCES.values(), ids=list(GUIDANCES))
def test_the_estimate_of_z_has_the_mean_z_and_weighted_texts_have_the_target(
    exact, guidance, potential, resample_below
):
    pipe, reward, ids, p, r = exact
    config = ParticleConfig(
        num_particles=4, temperature=1.5, potential=potential, resample_below=resample_below, start=0.2
    )
    z = float((p * np.exp(r / 1.5)).sum())
    drawn, handle = run(pipe, reward, config, guidance)
    outcome = handle.outcome
    resampled = any(bool(step.resampled.any()) for step in handle.steps)
    assert resampled == (resample_below > 0)
    estimates = outcome.log_z.exp().numpy()
    assert agrees(estimates, z)
    assert estimates.std() / z < 2  # else agreement says little
    weights = outcome.log_weights.exp().numpy()
    drawn = drawn.view(GROUPS, 4, -1)
    common = p * np.exp(r / 1.5) > 0.01 * z  # of others too few are drawn for an error to be known
    assert common.sum() >= 8
    for canvas, chance, reward_of in zip(ids[common], p[common], r[common], strict=True):
        mine = (drawn == canvas).all(-1).double().numpy()
        assert agrees(estimates * (weights * mine).sum(-1), chance * math.exp(reward_of / 1.5), 4.5)
    scores = hard(reward, pipe, drawn.flatten(0, 1)).reshape(GROUPS, 4)
    np.testing.assert_allclose(outcome.rewards, scores, rtol=1e-4, atol=1e-4)
    assert (outcome.best.numpy() == scores.argmax(-1)).mean() > 0.99


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("potential", POTENTIALS)
def test_with_the_rewards_that_guidance_has_asked_for_none_are_asked_for_but_at_the_end(exact, potential, every):
    pipe, reward, _, p, r = exact
    guidance, calls = replace(GUIDED, every=every), []

    def counted(tokens):
        calls.append(len(tokens))
        return reward(tokens)

    config = ParticleConfig(num_particles=4, temperature=1.5, potential=potential, intermediate="guidance")
    _, handle = run(pipe, counted, config, guidance)
    asked, calls[:] = len(calls), []
    with guide(pipe, counted, guidance):
        pipe([PROMPT] * 8, num_inference_steps=STEPS, generator=seeded())
    assert asked == len(calls) + 1
    assert [step.rewards is not None for step in handle.steps] == [True, every == 1, True]
    assert any(bool(step.resampled.any()) for step in handle.steps)
    assert agrees(handle.outcome.log_z.exp().numpy(), float((p * np.exp(r / 1.5)).sum()))


@pytest.mark.parametrize("intermediate", ["completions", "guidance"])
@pytest.mark.parametrize("potential", POTENTIALS)
@pytest.mark.parametrize("guidance", GUIDANCES.values(), ids=list(GUIDANCES))
def test_groups_that_have_their_target_are_left_alone_and_weighed_right(exact, guidance, potential, intermediate):
    pipe, reward, _, p, r = exact
    if guidance is None and intermediate == "guidance":
        pytest.skip("nothing guides")
    shown, order = [], r.argsort()
    target = float(r[order][np.searchsorted(p[order].cumsum(), 0.9)])  # which one of ten texts has

    def counted(tokens):
        shown.append(len(tokens))
        return reward(tokens)

    settings = {"num_particles": 4, "temperature": 1.5, "potential": potential, "resample_below": 0.8}
    config = ParticleConfig(**settings, intermediate=intermediate, target=target)
    _, handle = run(pipe, counted, config, guidance and replace(guidance, every=1))
    assert agrees(handle.outcome.log_z.exp().numpy(), float((p * np.exp(r / 1.5)).sum()))
    reached = torch.stack([step.reached for step in handle.steps])
    shares = reached.double().mean(-1).tolist()
    assert 0 < shares[-2] < 1
    assert (reached[1:] >= reached[:-1]).all()  # for good
    resampled = torch.stack([step.resampled for step in handle.steps])
    assert resampled.any()
    assert not (reached & resampled).any()
    if guidance is None:
        left = 4 * (~reached).sum(-1)
        assert shown == [1600, int(left[0]), int(left[1]), 1600 - int(left[1])]
    else:
        for step, before in zip(handle.trace[1:], reached, strict=False):
            stopped = torch.tensor([one.stopped or not one.free for one in step.sequences]).view(-1, 4)
            assert stopped[before].all()


@pytest.mark.parametrize("guidance", GUIDANCES.values(), ids=list(GUIDANCES))
def test_the_error_falls_with_the_root_of_the_number(exact, guidance):
    pipe, reward, _, p, r = exact
    z, errors = float((p * np.exp(r)).sum()), []
    for n in (4, 16, 64):
        config = ParticleConfig(num_particles=n)
        _, handle = run(pipe, reward, config, guidance, groups=150)
        errors.append(float(np.sqrt(np.mean((handle.outcome.log_z.exp().numpy() / z - 1) ** 2))))
    for less, more in itertools.pairwise(errors):
        assert 1.5 < less / more < 2.7


@pytest.mark.parametrize("order", ["confidence", "remasking"])
def test_on_other_samplers_the_reference_is_the_bare_sampler(order):
    """Not guided where positions are chosen by the logits, guided where they are not."""
    pipe = tiny_pipeline(unmasking_order=order)
    guidance = GUIDED if order == "remasking" else None
    reward = interacting(pipe)
    compare(pipe, reward, lambda ids: hard(reward, pipe, ids), guidance)


@pytest.mark.parametrize("guidance", GUIDANCES.values(), ids=list(GUIDANCES))
@pytest.mark.parametrize("prediction", ["denoiser", "leave_one_out"])
def test_on_uniform_diffusion_the_reference_is_the_bare_sampler(prediction, guidance):
    pipe = tiny_uniform(prediction_type=prediction)
    reward = interacting(pipe)
    compare(pipe, reward, lambda ids: hard(reward, pipe, ids), guidance, num_inference_steps=4)
