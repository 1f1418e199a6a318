"""Weighted particles against every text that there is, and its probability under the bare sampler, written out."""

import itertools
import math

import numpy as np
import pytest
import torch

from redge_guidance import GuidanceConfig
from redge_guidance.particles import ParticleConfig, particles
from redge_guidance.updates import Natural
from tests.helpers.hosts import seeded
from tests.helpers.tiny import tiny_pipeline, tiny_uniform
from tests.helpers.watching import log_p, watched

PROMPT = "c [MASK] [MASK] d"
STEPS = 3
GUIDED = GuidanceConfig(scale=0.7, estimator="straight_through", update=Natural(2, 1 / 2), num_draws=1, support=None)
GUIDANCES = {"not guided": None, "guided": GUIDED}
POTENTIALS = ("difference", "max", "sum")
GROUPS = 400


def interacting(pipe):
    """A reward that is no sum over positions: what is in one free position changes what the other is worth."""
    table = torch.randn(pipe.model.config.vocab_size, 2, generator=seeded(7))

    def reward(tokens):
        worth = tokens.embed(table)
        return worth[..., 0].sum(-1) + 1.5 * worth[..., 1].prod(-1)

    return reward


def hard(reward, pipe, ids):
    """Of finished canvases `(n, length)`, by the one-hots of their tokens."""

    class Finished:
        def embed(self, table):
            return table[ids]

    return reward(Finished()).double().numpy()


def law(pipe, prompt=PROMPT, steps=STEPS):
    """Canvases `(n, length)` that ancestral sampling may end in, and their probabilities, by all of its paths."""
    canvas = pipe.canvas([prompt])
    mask, free = pipe.tokenizer.mask_token_id, canvas.free[0].nonzero()[:, 0].tolist()
    seen, _ = watched(pipe, lambda: pipe([prompt] * 3000, num_inference_steps=steps, generator=seeded(5)))
    predictions = {}  # of every canvas that there is on the way, as the sampler itself is given them
    for step in seen:
        rows = iter(log_p(step).double().exp().numpy())
        for canvas_now, hidden_now in zip(step.ids.tolist(), step.free.tolist(), strict=True):
            predictions[tuple(canvas_now)] = {i: next(rows) for i, yes in enumerate(hidden_now) if yes}

    states = {tuple(canvas.ids[0].tolist()): 1.0}
    for step in range(steps):
        reveal, after = 1 / (steps - step), {}
        for ids, chance in states.items():
            hidden = [i for i in free if ids[i] == mask]
            for shown in itertools.product([False, True], repeat=len(hidden)):
                known = [i for i, yes in zip(hidden, shown, strict=True) if yes]
                way = chance * math.prod(reveal if yes else 1 - reveal for yes in shown)
                if way == 0:
                    continue
                tables = [predictions[ids][i] for i in known]
                for tokens in itertools.product(*[np.flatnonzero(table) for table in tables]):
                    new = list(ids)
                    for i, token in zip(known, tokens, strict=True):
                        new[i] = int(token)
                    share = math.prod(table[token] for table, token in zip(tables, tokens, strict=True))
                    after[tuple(new)] = after.get(tuple(new), 0.0) + way * share
        states = after
    return torch.tensor(list(states)), np.array(list(states.values()))


@pytest.fixture(scope="module")
def exact():
    pipe = tiny_pipeline(unmasking_order="ancestral")
    reward = interacting(pipe)
    ids, p = law(pipe)
    return pipe, reward, ids, p, hard(reward, pipe, ids)


def run(pipe, reward, config, guidance, prompt=PROMPT, groups=GROUPS, seed=0, **settings):
    with particles(pipe, reward, config, guidance, seed=seed) as handle:
        batch = [prompt] * (groups * config.num_particles)
        ids = pipe(batch, generator=seeded(seed), **{"num_inference_steps": STEPS} | settings).sequences
    return ids, handle


def agrees(values, expected, errors=4.0):
    """Whether the mean of independent values is the expected one, within so many standard errors."""
    values = np.asarray(values)
    error = values.std(ddof=1) / math.sqrt(len(values))
    return abs(values.mean() - expected) <= errors * error + 1e-9


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
    _compare(pipe, guidance)


@pytest.mark.parametrize("guidance", GUIDANCES.values(), ids=list(GUIDANCES))
@pytest.mark.parametrize("prediction", ["denoiser", "leave_one_out"])
def test_on_uniform_diffusion_the_reference_is_the_bare_sampler(prediction, guidance):
    _compare(tiny_uniform(prediction_type=prediction), guidance, num_inference_steps=4)


def _compare(pipe, guidance, **settings):
    reward = interacting(pipe)
    settings = {"num_inference_steps": STEPS} | settings
    bare = pipe([PROMPT] * 30_000, generator=seeded(11), **settings).sequences
    worth = np.exp(hard(reward, pipe, bare) / 2)
    config = ParticleConfig(num_particles=4, temperature=2.0, resample_below=0.8)
    drawn, handle = run(pipe, reward, config, guidance, **settings)
    assert any(bool(step.resampled.any()) for step in handle.steps)
    estimates, weights = handle.outcome.log_z.exp().numpy(), handle.outcome.log_weights.exp().numpy()
    drawn = drawn.view(GROUPS, 4, -1)
    a = pipe.tokenizer.convert_tokens_to_ids("a")
    for of in (lambda ids: torch.ones(ids.shape[:-1]), lambda ids: (ids == a).any(-1)):
        expected = worth * of(bare).double().numpy()
        found = estimates * (weights * of(drawn).double().numpy()).sum(-1)
        error = math.hypot(expected.std() / math.sqrt(len(expected)), found.std(ddof=1) / math.sqrt(len(found)))
        assert abs(found.mean() - expected.mean()) <= 4 * error
        assert error < 0.25 * expected.mean()
