"""A relaxed sample on another device."""

from dataclasses import fields

import pytest
import torch

from redge_guidance import RelaxedTokens
from tests.helpers.tiny import word_tokenizer


def sample(support=True):
    torch.manual_seed(0)
    ids = torch.randint(3, 8, (4, 5))
    free = torch.rand(4, 5) < 0.5
    free[2:] = free[:2]
    columns = torch.arange(3).expand(int(free.sum()), -1) + 3
    weights = torch.randn(columns.shape).softmax(-1).requires_grad_()
    given = torch.arange(5).expand(4, -1) < 1
    settings = {"hard": False, "attention_mask": torch.ones_like(free), "tokenizer": word_tokenizer(), "given": given}
    settings |= {"draws": 2, "prompts": list("xyxy"), "notes": {"found": 1.0}}
    return RelaxedTokens(ids, free, weights, columns if support else None, **settings)


@pytest.mark.parametrize("support", [True, False])
def test_every_tensor_moves_and_the_rest_stays(support):
    one = sample(support)
    other = one.to("meta")
    for name in (f.name for f in fields(one)):
        before, after = getattr(one, name), getattr(other, name)
        if isinstance(before, torch.Tensor):
            assert (after.device.type, after.shape, after.dtype) == ("meta", before.shape, before.dtype)
        else:
            assert after is before


def test_gradients_come_back():
    one = sample()
    other = one.to(torch.device("cpu"))
    table = torch.randn(8, 2, generator=torch.Generator().manual_seed(1))
    values = [tokens.embed(table).square().sum() for tokens in (one, other)]
    grads = [torch.autograd.grad(value, one.weights)[0] for value in values]
    assert torch.equal(*grads)
