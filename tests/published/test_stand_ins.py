"""What the code of a checkpoint gets in the place of flash-attn and of transformers 4, against formulas."""

import types

import pytest
import torch

from redge_guidance.remote.flash_attention import flash_attn_varlen_func
from redge_guidance.remote.legacy import default_rope
from redge_guidance.remote.views import view_of


def attention(q, k, v, scale, causal):
    """Of one text, `(length, heads, d)`, by einsum."""
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
    scores = torch.einsum("qhd,khd->hqk", q, k) * scale
    if causal:  # the last query sees all keys
        ahead = torch.arange(len(k)) > torch.arange(len(q))[:, None] + len(k) - len(q)
        scores = scores.masked_fill(ahead, -torch.inf)
    return torch.einsum("hqk,khd->qhd", scores.softmax(-1), v)


@pytest.mark.parametrize("causal", [False, True])
def test_attention_of_texts_one_behind_the_other(causal):
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(5, 4, 8, generator=generator)
    k, v = torch.randn(2, 9, 2, 8, generator=generator)
    cuts = torch.tensor([0, 2, 5]), torch.tensor([0, 4, 9])
    found = flash_attn_varlen_func(q, k, v, *cuts, 3, 5, softmax_scale=0.9, causal=causal)
    expected = [attention(q[:2], k[:4], v[:4], 0.9, causal), attention(q[2:], k[4:], v[4:], 0.9, causal)]
    torch.testing.assert_close(found, torch.cat(expected))


def test_the_size_of_a_head_may_be_said_and_only_a_part_of_it_be_turned():
    config = types.SimpleNamespace(rope_theta=100.0, head_dim=16, hidden_size=16, num_attention_heads=2)
    torch.testing.assert_close(default_rope(config)[0], 100.0 ** -(torch.arange(8) / 8))
    config.partial_rotary_factor = 0.25
    torch.testing.assert_close(default_rope(config)[0], torch.tensor([1.0, 0.1]))


@pytest.mark.parametrize("module", ["transformers", "transformers.cache_utils"])
def test_a_cache_is_read_by_index(module):
    cache = view_of(module).DynamicCache()
    assert len(cache) == 0
    keys, values = torch.randn(2, 1, 2, 3, 4)
    cache.update(keys, values, 0)
    assert len(cache) == 1
    assert torch.equal(cache[0][0], keys)
    assert torch.equal(cache[0][1], values)
