"""How hard guidance pushes: judged by root finding and constrained optimisation of SciPy, in float64."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.optimize import brentq, minimize
from scipy.special import logsumexp, softmax

from redge_guidance import GuidanceConfig, guide
from redge_guidance.particles import ParticleConfig, best_of_n, search
from redge_guidance.reward import Reward
from redge_guidance.rewards import (
    AllDifferentReward,
    BlackBoxReward,
    CLIPReward,
    ImageClassifierReward,
    SentenceSimilarityReward,
    TextClassifierReward,
)
from redge_guidance.strength import Slope, dearest, least_strengths, strength_of, update_of
from redge_guidance.updates import Adam, Natural
from redge_guidance.usual import highest_of
from tests.helpers.tiny import tiny_pipeline, tiny_reward

WITHIN = 4e-3  # relative: what the bisection of s leaves open
LENGTHS = (1, 3, 2, 5)


def slope_of(lengths=LENGTHS, categories=7, seed=0, size=1.0, dtype=torch.float32):
    """A random reward on sequences of these lengths, q away from p, whose kept tokens have masses below 1."""
    rng = torch.Generator().manual_seed(seed)
    rows = sum(lengths)
    draw = [torch.randn(rows, categories, generator=rng, dtype=torch.float64) for _ in range(3)]
    log_p, log_q = draw[0].log_softmax(-1), (draw[0] + 0.5 * draw[1]).log_softmax(-1)
    sequence = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    mass = 0.4 + 0.6 * torch.rand(rows, generator=rng, dtype=torch.float64)
    value = torch.randn(len(lengths), generator=rng, dtype=torch.float64)
    parts = [value, size * draw[2], log_p, log_q]
    return Slope(*(one.to(dtype) for one in parts), sequence, mass.to(dtype))


def exact(slope, k):
    """`kl(s)` and `reward(s)` of sequence k to first order, written out in float64."""
    rows = (slope.sequence == k).numpy()
    log_p, log_q, g, mass = (
        one.double().numpy()[rows] for one in (slope.log_p, slope.log_q, slope.gradient, slope.mass)
    )
    value = float(slope.value[k])

    def tilted(s):
        tilts = s * g
        if slope.limit is not None:
            tilts = np.minimum(tilts - (np.exp(log_p) * tilts).sum(-1, keepdims=True), slope.limit)
        return log_p + tilts - logsumexp(log_p + tilts, axis=-1, keepdims=True)

    def divergence(s):
        q = tilted(s)
        return float((mass * (np.exp(q) * (q - log_p)).sum(-1)).sum())

    def reward(s):
        return value + float((mass * ((np.exp(tilted(s)) - np.exp(log_q)) * g).sum(-1)).sum())

    return divergence, reward


@pytest.mark.parametrize("chunk", [2**18, 10])
@pytest.mark.parametrize("size", [1e-3, 1.0, 300.0])
def test_the_price_that_spends_the_budget(chunk, size, monkeypatch):
    monkeypatch.setattr("redge_guidance.updates._CHUNK_ELEMENTS", chunk)
    slope = slope_of(size=size)
    budget = 0.2 * torch.tensor(LENGTHS).float()
    found = dearest(slope, budget)
    for k, most in enumerate(budget.tolist()):
        divergence, _ = exact(slope, k)
        root = brentq(lambda s, kl=divergence, most=most: kl(s) - most, 1e-6 / size, 1e3 / size)
        assert root * (1 - WITHIN) <= found[k] <= root * (1 + 1e-4)
        assert divergence(float(found[k])) <= most * (1 + 1e-4)


@pytest.mark.parametrize("chunk", [2**18, 10])
@pytest.mark.parametrize("size", [1e-3, 1.0, 300.0])
def test_the_least_price_that_reaches_the_target(chunk, size, monkeypatch):
    monkeypatch.setattr("redge_guidance.updates._CHUNK_ELEMENTS", chunk)
    slope = slope_of(size=size)
    starts = [exact(slope, k)[1](0.0) for k in range(len(LENGTHS))]
    slope = replace(slope, value=slope.value - torch.tensor(starts) + torch.tensor([0.0, 0.1, -0.2, 0.05]) * size)
    target = 0.4 * size
    found = least_strengths(slope, target, torch.full((4,), 1e9))
    assert found.reaches.tolist() == [True] * 4
    assert found.at_rest.tolist() == [False] * 4
    for k in range(4):
        _, reward = exact(slope, k)
        root = brentq(lambda s, reward=reward: reward(s) - target, 0.0, 1e3 / size)
        assert float(found.strengths[k]) == pytest.approx(root, rel=WITHIN)


@pytest.mark.parametrize("limit", [0.1, 0.2, 4.0])
def test_the_least_price_along_tilts_that_are_limited(limit):
    """It is higher than without a limit: tokens below it have to do what those above it no longer do."""
    slope = replace(slope_of(), limit=limit)
    starts = torch.tensor([exact(slope, k)[1](0.0) for k in range(4)])
    target = 0.3
    slope = replace(slope, value=slope.value - starts + torch.tensor([0.1, 0.2, 0.0, 0.1]))
    found = least_strengths(slope, target, torch.full((4,), 1e9))
    unlimited = least_strengths(replace(slope, limit=None), target, torch.full((4,), 1e9))
    assert found.reaches.tolist() == [True] * 4
    for k in range(4):
        root = brentq(lambda s, k=k: exact(slope, k)[1](s) - target, 0.0, 1e2)
        assert float(found.strengths[k]) == pytest.approx(root, rel=WITHIN)
        assert float(found.strengths[k]) >= float(unlimited.strengths[k]) * (1 - WITHIN)
    assert (limit < 4.0) == bool((found.strengths > 1.01 * unlimited.strengths).any())


def test_it_is_the_multiplier_of_the_least_divergence_by_another_optimiser():
    """Two positions of three tokens: SLSQP minimises KL(q || p) such that the mean reward is the target."""
    slope = replace(slope_of((2,), categories=3, seed=4), mass=torch.ones(2))
    slope = replace(slope, log_q=slope.log_p)  # the reward is linear, so that any q will do
    log_p, g = slope.log_p.double().numpy(), slope.gradient.double().numpy()
    slope = replace(slope, value=torch.tensor([(np.exp(log_p) * g).sum()]).float())

    def least(target):
        conditions = [
            {"type": "eq", "fun": lambda q: q.reshape(2, 3).sum(-1) - 1},
            {"type": "ineq", "fun": lambda q: (q.reshape(2, 3) * g).sum() - target},
        ]
        divergence = lambda q: (q * (np.log(q) - log_p.ravel())).sum()  # noqa: E731
        settings = {"bounds": [(1e-9, 1)] * 6, "constraints": conditions, "options": {"ftol": 1e-13, "maxiter": 500}}
        return minimize(divergence, np.exp(log_p).ravel(), method="SLSQP", **settings)

    target = slope.value.item() + 0.5
    s = least_strengths(slope, target, torch.tensor([1e9])).strengths.item()
    best = least(target)
    np.testing.assert_allclose(softmax(log_p + s * g, axis=-1).ravel(), best.x, atol=1e-3)
    price = (least(target + 0.01).fun - least(target - 0.01).fun) / 0.02
    assert s == pytest.approx(price, rel=1e-2)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("nats", [1e-3, 0.1, 1.0, 30.0])
def test_the_budget_is_never_exceeded(seed, nats):
    slope = slope_of(seed=seed)
    budget = nats * torch.tensor(LENGTHS).float()
    for target in (None, 3.0, 1e6):
        found = least_strengths(slope, target, dearest(slope, budget))
        for k, most in enumerate(budget.tolist()):
            assert exact(slope, k)[0](float(found.strengths[k])) <= most * (1 + 1e-4)


def test_what_has_its_target_is_at_rest_and_what_cannot_reach_it_pays_the_ceiling():
    slope = slope_of()
    ceilings = dearest(slope, 0.2 * torch.tensor(LENGTHS).float())
    values = [exact(slope, k)[1] for k in range(4)]
    below = min(reward(0.0) for reward in values) - 1e-3
    found = least_strengths(slope, below, ceilings)
    assert found.strengths.tolist() == [0.0] * 4
    assert found.reaches.all()
    assert found.at_rest.all()
    above = max(reward(float(s)) for reward, s in zip(values, ceilings, strict=True)) + 1e-3
    found = least_strengths(slope, above, ceilings)
    assert torch.equal(found.strengths, ceilings)
    assert not found.reaches.any()
    assert not found.at_rest.any()


def test_some_reach_it_and_some_do_not():
    slope = slope_of()
    ceilings = dearest(slope, 0.2 * torch.tensor(LENGTHS).float())
    for target in (-1.0, 0.0, 0.5, 1.0, 2.0):
        found = least_strengths(slope, target, ceilings)
        for k in range(4):
            reward, most = exact(slope, k)[1], float(ceilings[k])
            assert bool(found.at_rest[k]) == (reward(0.0) >= target)
            assert bool(found.reaches[k]) == (reward(most) >= target)


@pytest.mark.parametrize("ceiling", [1e3, 1e9])
def test_what_no_strength_reaches_is_not_reached_whatever_the_ceiling(ceiling):
    """A ceiling comes from an earlier step, where the gradient may have been smaller."""
    slope = slope_of(size=30.0)
    found = least_strengths(slope, 1e5, torch.full((4,), ceiling))
    assert not found.reaches.any()
    assert torch.equal(found.strengths, torch.full((4,), ceiling))


def test_a_budget_that_cannot_be_spent_gives_a_finite_price():
    found = dearest(slope_of(), torch.full((4,), 1e6))
    assert found.isfinite().all()
    assert (found > 100).all()


@pytest.mark.parametrize("target", [None, -5.0, 5.0])
def test_a_reward_that_does_not_vary_has_no_price_and_moves_nothing(target):
    slope = slope_of()
    gradient = slope.gradient.clone()
    gradient[slope.sequence == 1] = 0.75  # the same for all tokens
    slope = replace(slope, gradient=gradient)
    ceilings = dearest(slope, torch.ones(4))
    assert ceilings.isnan().tolist() == [False, True, False, False]
    found = least_strengths(slope, target, ceilings)
    assert found.strengths[1] == 0
    assert found.strengths.isfinite().all()
    value = slope.value[1].item()
    assert bool(found.reaches[1]) == (target is not None and value >= target)


def test_without_a_target_all_of_the_ceiling_is_used_and_nothing_counts_as_reached():
    ceilings = torch.tensor([0.5, 2.0, float("nan"), 7.0])
    found = least_strengths(slope_of(), None, ceilings)
    assert found.strengths.tolist() == [0.5, 2.0, 0.0, 7.0]
    assert not found.reaches.any()
    assert not found.at_rest.any()


def test_sequences_do_not_know_of_each_other():
    slope, budget = slope_of(), 0.3 * torch.tensor(LENGTHS).float()
    ceilings = dearest(slope, budget)
    found = least_strengths(slope, 0.5, ceilings)
    for k in range(4):
        rows = slope.sequence == k
        tensors = [one[rows] for one in (slope.gradient, slope.log_p, slope.log_q)]
        alone = Slope(slope.value[k : k + 1], *tensors, torch.zeros(int(rows.sum())).long(), slope.mass[rows])
        one = dearest(alone, budget[k : k + 1])
        assert torch.equal(one, ceilings[k : k + 1])
        assert torch.equal(least_strengths(alone, 0.5, one).strengths, found.strengths[k : k + 1])


def test_tokens_that_cannot_be_drawn_count_for_nothing():
    slope = slope_of()
    wider = [torch.nn.functional.pad(one, (0, 1), value=-torch.inf) for one in (slope.log_p, slope.log_q)]
    gradient = torch.nn.functional.pad(slope.gradient, (0, 1), value=50.0)
    other = replace(slope, gradient=gradient, log_p=wider[0], log_q=wider[1])
    budget = torch.ones(4)
    torch.testing.assert_close(dearest(other, budget), dearest(slope, budget))
    found, expected = (least_strengths(one, 0.5, torch.full((4,), 9.0)) for one in (other, slope))
    torch.testing.assert_close(found.strengths, expected.strengths)


class Of(Reward):
    """A reward of one kind of samples, without a usual target."""

    usual_scale = None

    def __init__(self, modality, usual_scale=None):
        self.modality, self.usual_scale = modality, usual_scale

    def score(self, sample):
        return sample.sum(-1)


@pytest.mark.parametrize(
    ("kinds", "budget"),
    [([None], 1.0), (["text"], 1.0), (["image"], 2.0), ([None, "image"], 2.0), ([None, "text"], 1.0)],
)
def test_usual_budgets_by_kind(kinds, budget):
    """A sum with a term of images has the budget of images."""
    reward = sum(Of(kind) for kind in kinds)
    assert strength_of(reward, GuidanceConfig()).budget == budget
    assert strength_of(reward + (lambda sample: sample.sum(-1)), GuidanceConfig()).budget == budget
    assert strength_of(reward, GuidanceConfig(kl_budget=0.3)).budget == 0.3


@pytest.mark.parametrize(("scales", "tilt"), [([None], None), ([2.0], 7.0), ([2.0, 3.0], 7.0), ([2.0, None], None)])
def test_usual_tilts_of_rewards_in_nats(scales, tilt):
    reward = sum(Of("text", scale) for scale in scales)
    assert strength_of(reward, GuidanceConfig()).tilt == tilt
    assert strength_of(reward, GuidanceConfig(kl_budget=0.3)).tilt == tilt
    assert strength_of(reward, GuidanceConfig(max_tilt=5.0)).tilt == 5.0
    assert strength_of(reward, GuidanceConfig(scale=1.0)).tilt is None


def test_a_kind_that_is_no_name_is_refused_where_the_samples_are_known(pipe):
    refused = pytest.raises(ValueError, match=r"`reward` Of is for \['text'\]s, and the pipeline makes texts")
    with guide(pipe, Of(["text"])), refused:
        pipe("a")


@pytest.mark.parametrize("limit", [None, 2.0])
def test_a_target_out_of_reach_of_some_is_paid_for_as_if_each_were_alone(limit):
    """Of a batch none of which reaches it nothing is searched for; of one where some do everything is."""
    slope = replace(slope_of(), limit=limit)
    slope = replace(slope, value=torch.tensor([-9.0, 0.2, -9.0, 0.1]))
    ceilings = torch.tensor([0.3, 40.0, 0.7, 40.0])
    together = least_strengths(slope, 0.5, ceilings)
    assert together.reaches.tolist() == [False, True, False, True]
    assert together.strengths[[0, 2]].tolist() == ceilings[[0, 2]].tolist()
    nobody = least_strengths(slope, 100.0, ceilings)
    assert nobody.strengths.tolist() == ceilings.tolist()
    assert not nobody.reaches.any()
    assert not nobody.at_rest.any()


def test_the_cost_of_a_way_is_that_of_its_end():
    """Told by the normaliser on the way, and by the ratio of the probabilities at its end, in float64."""
    for limit in (None, 0.4):
        slope = replace(slope_of(), limit=limit)
        s = torch.tensor([0.0, 0.4, 2.0, 9.0])
        linear, divergence = slope.along(s)
        start, _ = slope.along(torch.zeros(4))
        for k in range(4):
            kl, reward = exact(slope, k)
            assert float(divergence[k]) == pytest.approx(kl(float(s[k])), rel=1e-6, abs=2e-6)
            moved = reward(float(s[k])) - reward(0.0)
            assert float(linear[k] - start[k]) == pytest.approx(moved, rel=1e-6, abs=2e-6)


@pytest.mark.parametrize(
    ("reward", "highest"),
    [
        (tiny_reward(), 0),
        (-1 * tiny_reward(), None),
        (2 * tiny_reward() + AllDifferentReward("sudoku"), 0),
        (tiny_reward() + BlackBoxReward(len), None),
    ],
    ids=["label", "low", "sum", "unknown term"],
)
def test_a_target_above_all_that_a_reward_can_be_is_an_error(reward, highest):
    pipe, above = tiny_pipeline(), GuidanceConfig(target=0.5, kl_budget=1.0)
    if highest is None:
        assert strength_of(reward, above).target == 0.5
        return
    assert strength_of(reward, GuidanceConfig(target=highest)).target == highest
    asked = [
        lambda: guide(pipe, reward, above),
        lambda: search(pipe, "a", reward, ParticleConfig(2, target=0.5)),
        lambda: best_of_n(pipe, "a", reward, 2, target=0.5),
    ]
    for ask in asked:
        with pytest.raises(ValueError, match="`target` must be at most 0, the most that .* can be, got 0.5"):
            ask()
    assert len(pipe(["a"]).texts) == 1


def test_what_a_label_can_be():
    of = TextClassifierReward.from_pretrained
    assert of("builtin:sentiment", label="positive").highest == 0
    assert of("builtin:sentiment", label="positive", against="negative").highest is None
    assert ImageClassifierReward.from_pretrained("builtin:mnist-classifier", "7").highest == 0
    assert CLIPReward.highest == SentenceSimilarityReward.highest == 1


def test_the_most_of_a_sum_is_that_of_its_terms():
    cosine, unknown = Reward(), Reward()
    cosine.highest = 1
    assert highest_of((2 * cosine + 0.5 * cosine + 0 * unknown).terms) == 2.5
    assert highest_of((0 * cosine + 0 * unknown).terms) is None
    for strange in ("3", lambda: 1.0, 1j, float("nan"), None):
        unknown.highest = strange
        assert highest_of((cosine + unknown).terms) is None


def test_the_update_that_is_meant_where_none_is_set():
    texts, images = Reward(), Reward()
    images.modality = "image"
    of = lambda reward, **more: update_of(reward, GuidanceConfig(**more))  # noqa: E731
    assert of(texts) == of(lambda tokens: tokens.weights.sum((1, 2))) == Natural(2, 1 / 2)
    assert of(images) == of(images + 2 * Reward()) == Natural(3, 1 / 3)
    for chosen in (Natural(), Adam(5)):
        assert of(images, update=chosen) == of(texts, update=chosen) == chosen
    assert of(images, update="natural") == Natural(2, 1 / 2)
