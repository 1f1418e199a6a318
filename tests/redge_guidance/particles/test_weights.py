"""Weights, resampling and potentials, by arithmetic of their own."""

import math

import numpy as np
import pytest
import torch

from redge_guidance.particles import ParticleConfig
from redge_guidance.particles.potentials import Potential
from redge_guidance.particles.weights import Weights, in_place, systematic


@pytest.mark.parametrize("seed", range(4))
def test_expected_counts_are_n_times_the_weights_and_none_is_a_whole_one_away(seed):
    weights = torch.rand(7, generator=torch.Generator().manual_seed(seed)).double() ** 3
    weights /= weights.sum()
    places = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    counts = torch.stack([systematic(weights, float(u)) for u in places]).double()
    assert (counts.sum(-1) == 7).all()
    torch.testing.assert_close(counts.mean(0), 7 * weights, atol=2e-3, rtol=0)
    assert ((counts - 7 * weights).abs() < 1).all()


@pytest.mark.parametrize("uniform", [0.0, 0.5, 1 - 2**-24])
def test_a_particle_without_weight_is_never_taken(uniform):
    weights = torch.tensor([0.0, 0.5, 0.0, 0.5, 0.0], dtype=torch.float64)
    assert systematic(weights, uniform)[[0, 2, 4]].tolist() == [0, 0, 0]


def test_those_that_go_on_stay_where_they_are():
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        counts = systematic(torch.rand(6, generator=generator).double().softmax(-1) ** 8, 0.3)
        counts[0] += 6 - counts.sum()
        rows = in_place(counts)
        assert torch.equal(torch.bincount(rows, minlength=6), counts)
        assert (rows[counts > 0] == torch.arange(6)[counts > 0]).all()


def test_the_normaliser_is_the_product_of_the_means_and_groups_do_not_know_of_each_other():
    weights, rng = Weights(2, 3), np.random.default_rng(0)
    first, second = rng.normal(size=(2, 3)), rng.normal(size=(2, 3))
    weights.add(torch.tensor(first))
    effective = np.exp(first).sum(-1) ** 2 / np.exp(2 * first).sum(-1)
    np.testing.assert_allclose(weights.effective(), effective)
    rows = weights.resample(torch.tensor([True, False]), torch.tensor([0.4, 0.4]))
    assert rows[3:].tolist() == [3, 4, 5]
    assert set(rows[:3].tolist()) <= {0, 1, 2}
    weights.add(torch.tensor(second))
    expected = [
        np.log(np.exp(first[0]).mean()) + np.log(np.exp(second[0]).mean()),
        np.log(np.exp(first[1] + second[1]).mean()),
    ]
    np.testing.assert_allclose(weights.log_normaliser(), expected)
    np.testing.assert_allclose(weights.normalised().sum(-1), 1.0)


def test_the_dead_stay_dead_until_they_are_exchanged():
    weights = Weights(2, 2)
    weights.add(torch.tensor([[math.nan, 1.0], [-math.inf, math.nan]]))
    weights.add(torch.tensor([[5.0, 0.0], [1.0, 1.0]]))
    assert weights.log.tolist() == [[-math.inf, 1.0], [-math.inf, -math.inf]]
    assert weights.dead.tolist() == [False, True]
    assert weights.resample(torch.tensor([True, False]), torch.tensor([0.1, 0.1])).tolist() == [1, 1, 2, 3]
    assert float(weights.log_normaliser()[0]) == pytest.approx(1.0 - math.log(2))


@pytest.mark.parametrize("temperature", [1.0, 0.25])
@pytest.mark.parametrize("kind", ["difference", "max", "sum"])
def test_potentials_are_those_of_fk_steering_and_come_to_the_finished_reward(kind, temperature):
    """Written out G by G, as in its published code: the last is divided by the product of all before."""
    rewards = np.random.default_rng(1).normal(size=(5, 3))
    scaled, potential, total = rewards / temperature, Potential(kind, temperature, 3), np.zeros(3)
    for m in range(4):
        grown = potential.grow(torch.tensor(rewards[m]), torch.ones(3, dtype=torch.bool)).numpy()
        expected = {
            "difference": scaled[m] - (scaled[m - 1] if m else 0.0),
            "max": scaled[: m + 1].max(0),
            "sum": scaled[: m + 1].sum(0),
        }[kind]
        np.testing.assert_allclose(grown, expected)
        total += grown
    total += potential.finish(torch.tensor(rewards[4])).numpy()
    np.testing.assert_allclose(total, scaled[4])


def test_a_copy_has_the_rewards_of_the_one_it_copies():
    for kind in ("difference", "max", "sum"):
        one, other = (Potential(kind, 1.0, 2) for _ in range(2))
        both = torch.tensor([True, True])
        one.grow(torch.tensor([3.0, -1.0]), both)
        other.grow(torch.tensor([-1.0, -1.0]), both)
        one.reorder(torch.tensor([1, 1]))
        assert torch.equal(one.grow(torch.tensor([0.5, -2.0]), both), other.grow(torch.tensor([0.5, -2.0]), both))


@pytest.mark.parametrize("kind", ["difference", "max", "sum"])
def test_a_row_that_is_not_asked_is_as_if_the_step_had_not_been(kind):
    one, other = (Potential(kind, 1.0, 2) for _ in range(2))
    both = torch.tensor([True, True])
    for potential in (one, other):
        potential.grow(torch.tensor([3.0, -1.0]), both)
    grown = one.grow(torch.tensor([7.0, 2.0]), torch.tensor([False, True]))
    assert grown[0] == 0
    later = [potential.grow(torch.tensor([0.5, -2.0]), both) for potential in (one, other)]
    assert later[0][0] == later[1][0]
    assert one.finish(torch.tensor([1.0, 1.0]))[0] == other.finish(torch.tensor([1.0, 1.0]))[0]


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"num_particles": 0}, "`num_particles`"),
        ({"num_particles": 2.5}, "`num_particles`"),
        ({"temperature": 0}, "`temperature` must be a finite number > 0"),
        ({"temperature": float("nan")}, "`temperature`"),
        ({"resample_below": 1.5}, "`resample_below` must be a share"),
        ({"start": 1.0}, "`start`"),
        ({"every": 0}, "`every`"),
        ({"num_completions": 0}, "`num_completions`"),
        ({"potential": "product"}, "`potential` must be one of difference, max, sum"),
        ({"hard": 1}, "`hard`"),
    ],
)
def test_bad_settings(setting, words):
    with pytest.raises(ValueError, match=words):
        ParticleConfig(**setting)


def test_settings_are_kept_as_plain_numbers():
    config = ParticleConfig(num_particles=np.int64(4), temperature=torch.tensor(2.0), start=np.float32(0.5))
    assert [type(one) for one in (config.num_particles, config.temperature, config.start)] == [int, float, float]
