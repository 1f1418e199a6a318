"""One sample of rows that have generators of their own is, bit for bit, what each generator draws of its rows alone."""

from dataclasses import dataclass

import pytest
import torch

from redge_guidance.draws import Draws
from redge_guidance.estimators import ESTIMATORS, Estimator, Pathwise, ReinforceLOO
from redge_guidance.estimators.base import _possible
from redge_guidance.estimators.inputs import RowGenerators
from redge_guidance.step import DenoisingStep
from tests.helpers.hosts import seeded

COUNTS = [3, 1, 2]
FREE = torch.tensor([[1, 1, 0, 1], [0, 0, 0, 0], [0, 0, 1, 0], [1, 0, 0, 1]]).bool()  # 3, 0, 1, 2
KINDS = [kind() for kind in ESTIMATORS.values()]
KINDS += [kind(hard=False) for kind in ESTIMATORS.values() if kind is not ReinforceLOO]


@dataclass(frozen=True)
class Own(Estimator):
    def __call__(self, logits, generator=None):
        assert isinstance(generator, torch.Generator)
        return logits.softmax(-1) + torch.rand(logits.shape, generator=generator)


@dataclass(frozen=True)
class OwnCall(Pathwise):
    def __call__(self, logits, generator=None):
        assert isinstance(generator, torch.Generator)
        return super().__call__(logits, generator) * torch.rand((), generator=generator)


def logits_of(rows, dtype=torch.float32):
    return torch.randn(rows, 7, generator=seeded(5)).to(dtype)


def alone(estimator, logits, generators):
    """A group of rows after the other, each with its generator."""
    return torch.cat([estimator(rows, generator=g) for rows, g in zip(logits.split(COUNTS), generators, strict=True)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("estimator", KINDS, ids=str)
def test_a_group_of_rows_is_drawn_as_if_alone(estimator, dtype):
    logits = logits_of(6, dtype)
    one, other = ([seeded(k) for k in range(3)] for _ in range(2))
    together = estimator(logits, generator=RowGenerators(one, COUNTS))
    assert torch.equal(together, alone(estimator, logits, other))
    assert all(torch.equal(a.get_state(), b.get_state()) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("estimator", [*KINDS, Own(), OwnCall()], ids=str)
def test_draws_give_each_sequence_its_generator(estimator):
    """The one of a sequence without free positions is not asked; own estimators get plain generators."""
    ids = torch.zeros(4, 4, dtype=torch.long)
    step = DenoisingStep(torch.randn(4, 4, 7), ids, FREE, torch.ones_like(FREE), 1.0, 0.0, None)
    one, other = ([seeded(k) for k in range(4)] for _ in range(2))
    drawn = Draws(step, None, one).draw(estimator, logits_of(6), 2)
    having = [other[k] for k in (0, 2, 3)]
    assert torch.equal(drawn, torch.stack([alone(estimator, logits_of(6), having) for _ in range(2)]))
    assert torch.equal(one[1].get_state(), seeded(1).get_state())


@pytest.mark.parametrize("estimator", [kind for kind in KINDS if kind.hard and getattr(kind, "noise", None)], ids=str)
def test_noise_is_drawn_before_what_picks_a_category(estimator):
    logits, generator = logits_of(6), seeded(2)
    noise = {"normal": torch.Tensor.normal_, "exponential": torch.Tensor.exponential_}[estimator.noise](
        torch.empty(6, 7), generator=generator
    )
    uniform = torch.rand(6, 1, generator=generator)
    category = estimator.category(logits, noise, estimator.soft(logits, noise), uniform)
    assert torch.equal(estimator(logits, generator=seeded(2)).argmax(-1, keepdim=True), category)


def test_a_category_of_probability_0_gives_way_to_the_likeliest():
    soft = torch.tensor([[0.2, 0.0, 0.8], [0.5, 0.5, 0.0], [0.3, 0.7, 0.0]])
    found = torch.tensor([[1], [0], [2]])
    assert _possible(found, soft).tolist() == [[2], [0], [1]]
    assert _possible(found[1:2], soft[1:2]).tolist() == [[0]]
