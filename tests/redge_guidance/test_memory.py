"""Large one-hot samples lie in pages that nobody has written to: they are tensors as any other."""

import copy
import pickle

import pytest
import torch

from redge_guidance.estimators import ESTIMATORS, memory
from tests.helpers.hosts import seeded

CPU = torch.device("cpu")
SHAPE = (3, 2**19)  # of 6 MB in float32


@pytest.fixture
def logits():
    return torch.randn(SHAPE, generator=seeded()) * 3


def test_zeros_are_zeros_of_their_own():
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        one, other = (memory.unwritten_zeros(torch.Size((3, 2**20)), dtype, CPU) for _ in range(2))
        assert one.dtype == dtype
        assert one.is_contiguous()
        one += 1
        assert not bool(other.any())
        assert bool((one == 1).all())
    assert memory.unwritten_zeros(torch.Size((0, 3)), torch.float32, CPU) is None


@pytest.mark.parametrize("name", sorted(name for name, kind in ESTIMATORS.items() if kind().one_hot))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_large_samples_are_those_of_written_zeros(name, dtype, logits, monkeypatch):
    found = []
    for large in (memory._LARGE, 2**40):
        monkeypatch.setattr(memory, "_LARGE", large)
        x = logits.to(dtype).requires_grad_()
        sample = ESTIMATORS[name]()(x, seeded(1))
        gradient = torch.autograd.grad((sample * logits).sum(), x)[0] if sample.requires_grad else None
        found.append((sample.detach(), gradient))
    (one, gradient), (other, expected) = found
    assert torch.equal(one, other)
    assert torch.equal(one.sum(-1), torch.ones(3, dtype=dtype))
    assert gradient is None or torch.equal(gradient, expected)


def test_a_large_sample_can_be_copied_pickled_and_written_to(logits):
    sample = ESTIMATORS["redge"]()(logits, seeded(1))
    assert torch.equal(pickle.loads(pickle.dumps(sample)), sample)
    assert torch.equal(copy.deepcopy(sample), sample)
    before = sample.clone()
    sample.mul_(2).add_(1)
    assert torch.equal(sample, 2 * before + 1)


def test_large_samples_in_torchs_transformations(logits):
    draw = ESTIMATORS["redge"]()
    torch.manual_seed(0)
    many = torch.func.vmap(draw, randomness="different")(logits.expand(2, *SHAPE))
    assert torch.equal(many.sum(-1), torch.ones(2, 3))
    slope = torch.func.grad(lambda x: (draw(x) * logits).sum())(logits)
    assert slope.shape == SHAPE
    assert bool(slope.isfinite().all())
    with torch.inference_mode():
        assert torch.equal(draw(logits).sum(-1), torch.ones(3))
