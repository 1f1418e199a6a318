"""What the host draws from, and its likeliest tokens, against plain ways to find them."""

import pytest
import torch

from redge_guidance.hosts import DenoisingStep
from redge_guidance.prediction import HostLogits, likeliest
from tests.helpers.hosts import seeded


@pytest.mark.parametrize("vocabulary", [50, 1024, 2048, 4099])
@pytest.mark.parametrize("count", [1, 7, 32, 40])
def test_the_likeliest_are_those_of_topk(vocabulary, count):
    logits = torch.randn(5, vocabulary, generator=seeded())
    logits[1, : vocabulary // 2], logits[2, [0, 9]] = -torch.inf, torch.inf
    found = likeliest(logits, count)
    assert all(len(set(row)) == count for row in found.tolist())
    torch.testing.assert_close(
        logits.gather(-1, found).sort(descending=True).values, logits.topk(count).values, atol=0, rtol=0
    )


@pytest.mark.parametrize("contiguous", [True, False])
def test_rows_are_those_of_the_free_positions(contiguous):
    logits = torch.randn(3, 4, 20, generator=seeded())
    logits = logits if contiguous else logits.transpose(1, 2).contiguous().transpose(1, 2)
    free = torch.rand(3, 6, generator=seeded(1)) < 0.6
    free[:, :2] = False
    unending = torch.zeros_like(free)
    unending[0] = free[0]
    step = DenoisingStep(
        logits, torch.zeros(3, 6).long(), free, torch.ones_like(free), 0.5, 0.0, None, reserved=[3], ends=[5]
    )
    expected = logits.clone() / 0.5
    expected[..., 3] = -torch.inf
    assert torch.equal(HostLogits(step).logits(), expected[free[:, 2:]])
    expected[0, :, 5] = -torch.inf
    for given, wanted in ((unending, expected[free[:, 2:]]), (torch.zeros_like(free), None)):
        found = HostLogits(DenoisingStep(**(vars(step) | {"unending": given}))).logits(slice(1, 4))
        assert torch.equal(found, HostLogits(step).logits(slice(1, 4)) if wanted is None else wanted[1:4])
