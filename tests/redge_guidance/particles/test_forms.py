"""Weights of texts that guidance gives a form, against every text that there is."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import DiscreteDDIMScheduler

from redge_guidance import GuidanceConfig
from redge_guidance.constraints import RegexConstraint
from redge_guidance.constraints.constraint import parted
from redge_guidance.form import formed
from redge_guidance.formed import FormOfStep
from redge_guidance.particles import ParticleConfig, particles, search
from redge_guidance.rewards import LexicalReward, RegexReward
from redge_guidance.updates import Natural
from tests.helpers.enumeration import GROUPS, agrees, compare, hard, interacting, law, run
from tests.helpers.hosts import seeded
from tests.helpers.tiny import tiny_gemma, tiny_pipeline, tiny_uniform
from tests.helpers.watching import watched

pytestmark = pytest.mark.filterwarnings("ignore:.*cannot be reached by:UserWarning")  # of some of very many
PROMPT = "c [MASK] [MASK] d"
STEPS = 2
GUIDED = GuidanceConfig(scale=0.2, estimator="straight_through", update=Natural(2, 1 / 2), num_draws=1, support=None)
WORDS = LexicalReward({"c d": 1.0, "e": -0.5})  # of which a push is of a nat or two
PATTERN = RegexReward("c [ab].*")
WITHOUT = RegexConstraint("[^b]*")


@pytest.fixture(scope="module")
def exact():
    pipe = tiny_pipeline(unmasking_order="ancestral")
    ids, p = law(pipe, PROMPT, STEPS)
    texts = pipe.tokenizer.batch_decode(ids, skip_special_tokens=True)
    smooth = interacting(pipe)
    values = {
        "words": (WORDS, WORDS.score(texts)),
        "expression": (PATTERN, PATTERN.score(texts)),
        "words and a smooth one": (smooth + WORDS, hard(smooth, pipe, ids) + WORDS.score(texts).numpy()),
        "words & constraint": (WORDS & WITHOUT, WORDS.score(texts)),
        "a smooth one & constraint": (smooth & WITHOUT, hard(smooth, pipe, ids)),
        "constraint": (WITHOUT, torch.zeros(len(ids))),
    }
    accepted = np.array(WITHOUT.accepts(texts))
    everything = np.ones(len(ids), dtype=bool)
    return (
        pipe,
        ids,
        p,
        {
            name: (reward, np.asarray(r, dtype=float), accepted if "constraint" in name else everything)
            for name, (reward, r) in values.items()
        },
    )


def _agree(exact, name, guidance, temperature=1.0, **settings):
    pipe, ids, p, rewards = exact
    reward, r, accepted = rewards[name]
    config = ParticleConfig(num_particles=4, temperature=temperature, **settings)
    weight = p * np.exp(r / temperature) * accepted
    drawn, handle = run(pipe, reward, config, guidance, PROMPT, num_inference_steps=STEPS)
    estimates = handle.outcome.log_z.exp().numpy()
    assert agrees(estimates, weight.sum())
    assert estimates.std() / weight.sum() < 2
    weights = handle.outcome.log_weights.exp().numpy()
    drawn = drawn.view(GROUPS, 4, -1)
    common = weight > 0.01 * weight.sum()
    assert common.sum() >= 8
    for canvas, share in zip(ids[common], weight[common], strict=True):
        mine = (drawn == canvas).all(-1).double().numpy()
        assert agrees(estimates * (weights * mine).sum(-1), share, 4.5)
    return pipe.tokenizer.batch_decode(drawn.flatten(0, 1), skip_special_tokens=True), handle


@pytest.mark.parametrize("resample_below", [0.0, 0.7])
@pytest.mark.parametrize(
    "name", ["words", "expression", "words and a smooth one", "words & constraint", "a smooth one & constraint"]
)
def test_guided_by_an_automaton_the_estimate_of_z_has_the_mean_z(exact, name, resample_below):
    texts, handle = _agree(exact, name, GUIDED, resample_below=resample_below)
    assert len(handle.trace) == STEPS
    if "constraint" in name:
        assert all(WITHOUT.accepts(texts))


@pytest.mark.parametrize("name", ["words & constraint", "constraint"])
def test_a_constraint_holds_and_is_weighed_without_guidance_too(exact, name):
    texts, _ = _agree(exact, name, None, resample_below=0.7)
    assert all(WITHOUT.accepts(texts))


def test_of_a_constraint_alone_z_is_the_probability_that_it_is_kept(exact):
    pipe, _, p, rewards = exact
    _, handle = run(pipe, WITHOUT, ParticleConfig(num_particles=64), None, PROMPT, 20, num_inference_steps=STEPS)
    expected = math.log(p[rewards["constraint"][2]].sum())
    assert handle.outcome.log_z.mean().item() == pytest.approx(expected, abs=0.05)
    assert handle.outcome.rewards.eq(0).all()


@pytest.mark.parametrize("name", ["words", "words & constraint"])
def test_what_is_settled_is_weighed_as_it_was_settled(exact, name):
    """By confidence, in one step: all positions are drawn at once, and then made a joint draw."""
    pipe, (reward, *_) = tiny_pipeline(unmasking_order="confidence"), exact[3][name]
    ids, p = law(pipe, PROMPT, 1)
    texts = pipe.tokenizer.batch_decode(ids, skip_special_tokens=True)
    accepted = np.array(WITHOUT.accepts(texts)) if "constraint" in name else True
    expected = (p * np.exp(WORDS.score(texts).numpy()) * accepted).sum()
    drawn, handle = run(pipe, reward, ParticleConfig(num_particles=2), GUIDED, PROMPT, num_inference_steps=1)
    assert agrees(handle.outcome.log_z.exp().numpy(), expected)
    if "constraint" in name:
        assert all(WITHOUT.accepts(pipe.tokenizer.batch_decode(drawn, skip_special_tokens=True)))


@pytest.mark.parametrize("settles", [False, True])
@pytest.mark.parametrize("scale", [0.0, 0.2])
def test_the_log_probability_of_some_tokens_is_that_of_all_texts_with_them(scale, settles):
    pipe = tiny_pipeline()
    step = replace(watched(pipe, lambda: pipe(["c [MASK] [MASK] [MASK] d"], generator=seeded()))[0][0], settles=settles)
    wanted, constraint = parted(WORDS & WITHOUT)
    at_work = FormOfStep(formed(wanted, constraint)[0], step, weighed=True)
    log_q = torch.randn(3, step.logits.shape[-1], generator=seeded(1))
    log_q[:, :3] = -torch.inf
    guided, _ = at_work.condition(log_q.clone(), seeded(2), scale)
    middles = torch.tensor(list(itertools.product(range(3, 8), repeat=3)))
    texts = step.ids.expand(len(middles), -1).masked_scatter(step.free.expand(len(middles), -1), middles)

    def log_prob(text, *places):
        positions = torch.zeros_like(step.free)
        positions[0, list(places)] = True
        return at_work.log_prob(text[None].where(positions, step.ids), positions)[0]

    joint = torch.stack([log_prob(text, 1, 2, 3) for text in texts])
    assert joint.logsumexp(0).item() == pytest.approx(0.0, abs=1e-6)
    accepted = torch.tensor(WITHOUT.accepts(pipe.tokenizer.batch_decode(texts, skip_special_tokens=True)))
    assert torch.equal(joint > -torch.inf, accepted)
    if scale == 0:
        independent = log_q.double().log_softmax(-1)[range(3), middles].sum(-1).masked_fill(~accepted, -torch.inf)
        torch.testing.assert_close(joint, independent.log_softmax(0), atol=1e-6, rtol=1e-6)
    for places in [(1,), (2, 3), (1, 3)]:
        for text in texts[accepted][::17]:
            alike = (texts[:, list(places)] == text[list(places)]).all(-1)
            assert log_prob(text, *places).item() == pytest.approx(joint[alike].logsumexp(0).item(), abs=1e-6)
    if settles:  # each position is then given its own law
        alone = torch.stack([log_prob(text, 2) for text in texts[accepted]])
        found = guided.double().log_softmax(-1)[1][middles[accepted][:, 1]]
        torch.testing.assert_close(alone, found, atol=1e-5, rtol=1e-5)


def test_of_uniform_diffusion_the_reference_is_the_bare_sampler():
    pipe = tiny_uniform()

    def score(ids):
        return WORDS.score(pipe.tokenizer.batch_decode(ids, skip_special_tokens=True)).numpy()

    compare(pipe, WORDS, score, GuidanceConfig(scale=1.0, kl_budget=0.03), num_inference_steps=3)


@pytest.mark.parametrize("make", [tiny_uniform, lambda: tiny_pipeline(unmasking_order="remasking")])
def test_a_constraint_on_tokens_that_are_drawn_anew_is_refused(make):
    pipe = make()
    with particles(pipe, WITHOUT, ParticleConfig(num_particles=2)), pytest.raises(ValueError, match="drawn anew"):
        pipe(["a"] * 2, generator=seeded(), num_inference_steps=3)


def test_a_sampler_whose_draws_have_no_known_law_is_refused():
    pipe = tiny_gemma(DiscreteDDIMScheduler())
    settings = {"gen_length": 8, "temperature": 1.0, "num_inference_steps": 4, "eos_early_stop": False}
    with (
        particles(pipe, WORDS, ParticleConfig(num_particles=2), GUIDED),
        pytest.raises(ValueError, match="can be sett"),
    ):
        pipe(["a b"] * 2, generator=seeded(1), confidence_threshold=None, **settings)


def test_search_takes_constraints():
    pipe = tiny_pipeline(unmasking_order="ancestral")
    for found in search(pipe, ["a", "c d"], WORDS & WITHOUT, ParticleConfig(num_particles=4), GUIDED):
        assert all(WITHOUT.accepts(found.samples))
        np.testing.assert_allclose(found.rewards, WORDS.score(found.samples), atol=1e-6)


def test_what_no_text_can_become_is_said_before_the_first_step():
    pipe = tiny_pipeline()
    with particles(pipe, WITHOUT, ParticleConfig(num_particles=2)), pytest.raises(ValueError, match="accept"):
        pipe(["b"] * 2, generator=seeded())
