"""Classifier-free guidance that a sampler does itself: its mix is guided once, whatever the calls it is mixed from."""

import warnings

import pytest
import torch

from redge_guidance import LogitsGuidance, guide
from redge_guidance.updates import Natural
from tests.helpers.hosts import JUMP, MASK, all_of_a
from tests.helpers.settings import plain_config
from tests.helpers.tiny import WORDS, tiny_pipeline, word_tokenizer

TOKENS = word_tokenizer()
IDS = torch.tensor([[3, 4, MASK, MASK], [5, 6, MASK, MASK]])
WITHOUT = IDS.where(torch.arange(4) >= 2, MASK)
SCALE = 2.5
# the gradient at a deterministic relaxed sample, of a reward that is not linear: what it is depends on the prediction
BENT = plain_config(scale=8.0, estimator="soft", update=Natural(num_updates=2), num_draws=1, support=None)


def pair_of_a(tokens):
    """How likely both are `a`, and how likely the other is `b` then."""
    table = torch.eye(len(WORDS))
    q = tokens.embed(table)[:, -2:]
    return q[:, 0, 3] * q[:, 1, 3] + 2 * q[:, 0, 4] * q[:, 1, 5]


@pytest.fixture
def model():
    return tiny_pipeline().model


def mix(conditional, unconditional, form):
    if form == "difference":
        return unconditional + SCALE * (conditional - unconditional)
    return SCALE * conditional - (SCALE - 1) * unconditional


def logits_of(model, calls, form):
    """The mix of a sampler that calls the model so."""
    if calls == "doubled":
        c, u = model(input_ids=torch.cat([IDS, WITHOUT])).logits.chunk(2)
    elif calls == "doubled, without first":
        u, c = model(input_ids=torch.cat([WITHOUT, IDS])).logits.chunk(2)
    elif calls == "two_calls":
        c, u = model(input_ids=IDS).logits, model(input_ids=WITHOUT).logits
    else:
        u, c = model(input_ids=WITHOUT).logits, model(input_ids=IDS).logits
    return mix(c, u, form)


def check(found, model, reward, config, form):
    """Against the mix of the model's own predictions, guided."""
    own = logits_of(model, "two_calls", form)
    expected = LogitsGuidance(reward, config, tokenizer=TOKENS)(own, IDS)
    torch.testing.assert_close(found[:, 2:].softmax(-1), expected[:, 2:].softmax(-1), atol=2e-6, rtol=1e-4)
    torch.testing.assert_close(found[:, :2], own[:, :2])
    assert not found.isnan().any()
    assert (own[:, 2:].softmax(-1) - expected[:, 2:].softmax(-1)).abs().max() > 0.05


@torch.no_grad()
@pytest.mark.parametrize("form", ["difference", "sum"])
@pytest.mark.parametrize("calls", ["doubled", "doubled, without first", "two_calls", "two_calls, without first"])
@pytest.mark.parametrize(("reward", "config"), [(all_of_a, JUMP), (pair_of_a, BENT)])
def test_a_mix_of_known_scale_is_guided(model, calls, form, reward, config):
    how = {"classifier_free": calls.split(",")[0], "guidance_scale": SCALE, "conditional_first": "without" not in calls}
    with guide(model, reward, config, tokenizer=TOKENS, **how) as handle:
        found = logits_of(model, calls, form)
    assert len(handle.trace) == 1
    check(found, model, reward, config, form)


@torch.no_grad()
@pytest.mark.parametrize("form", ["difference", "sum"])
@pytest.mark.parametrize("calls", ["doubled", "doubled, without first", "two_calls"])
def test_of_a_linear_reward_whatever_the_scale(model, calls, form):
    with guide(model, all_of_a, JUMP, tokenizer=TOKENS, classifier_free=calls.split(",")[0]) as handle:
        found = logits_of(model, calls, form)
    assert len(handle.trace) == 1
    check(found, model, all_of_a, JUMP, form)


@torch.no_grad()
def test_of_another_reward_the_mix_moves_as_far_as_the_prediction_with_the_prompt(model):
    own, c = logits_of(model, "two_calls", "difference"), model(input_ids=IDS).logits
    shift = (LogitsGuidance(pair_of_a, BENT, tokenizer=TOKENS)(c, IDS) - c)[:, 2:]
    with guide(model, pair_of_a, BENT, tokenizer=TOKENS, classifier_free="doubled"):
        found = logits_of(model, "doubled", "difference")
    expected = (own[:, 2:] + shift).softmax(-1)
    torch.testing.assert_close(found[:, 2:].softmax(-1), expected, atol=1e-6, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("calls", ["doubled", "doubled, without first", "two_calls"])
def test_it_is_recognised_and_said(model, calls):
    with guide(model, all_of_a, JUMP, tokenizer=TOKENS) as handle:
        with pytest.warns(UserWarning, match=rf'the prompt. Pass `classifier_free="{calls.split(",")[0]}"`') as told:
            found = logits_of(model, calls, "difference")
        with warnings.catch_warnings():  # once
            warnings.simplefilter("error")
            logits_of(model, calls, "difference")
    check(found, model, all_of_a, JUMP, "difference")
    assert len(handle.trace) == 2
    assert len(told) == 1


@torch.no_grad()
def test_what_is_guided_apart_is_told_so(model):
    """A short prompt beside a longer one that begins like it is no half of a batch."""
    ids = torch.tensor([[MASK, MASK, MASK], [3, MASK, MASK]])
    with guide(model, all_of_a, JUMP, tokenizer=TOKENS, classifier_free=None):
        apart = model(input_ids=ids).logits
    own = model(input_ids=ids).logits
    torch.testing.assert_close(apart[0], LogitsGuidance(all_of_a, JUMP, tokenizer=TOKENS)(own[0], ids[0]))
    with guide(model, all_of_a, JUMP, tokenizer=TOKENS):
        with pytest.warns(UserWarning, match="the batch of 2 is taken for 1 texts"):
            model(input_ids=ids)
        ids[0, 2] = 5
        with pytest.raises(ValueError, match="is something else now"):
            model(input_ids=ids)


@torch.no_grad()
def test_another_prompt_instead_of_none(model):
    ids, other = IDS.clone(), IDS.clone()
    other[:, :2] = 7
    with guide(model, all_of_a, JUMP, tokenizer=TOKENS, classifier_free="two_calls", guidance_scale=SCALE) as handle:
        c, u = model(input_ids=ids).logits, model(input_ids=other).logits
        own = [c, u]
        longer = torch.cat([torch.full((2, 1), 7), other], 1)
        model(input_ids=ids)
        model(input_ids=longer)
        model(input_ids=ids)
        with pytest.raises(ValueError, match="the same positions are hidden"):
            model(input_ids=ids.where(ids != MASK, 3).index_fill(1, torch.tensor([0]), MASK))
    assert len(handle.trace) == 2
    plain = [model(input_ids=one).logits for one in (ids, other)]
    expected = LogitsGuidance(all_of_a, JUMP, tokenizer=TOKENS)(mix(*plain, "difference"), ids)
    found = mix(*own, "difference")
    torch.testing.assert_close(found[:, 2:].softmax(-1), expected[:, 2:].softmax(-1), atol=1e-5, rtol=1e-4)
    ids[:, 2], other[:, 2] = 3, 3
    with guide(model, all_of_a, JUMP, tokenizer=TOKENS) as handle:
        model(input_ids=IDS)
        model(input_ids=ids)
        with pytest.raises(ValueError, match="a second call with another prompt"):
            model(input_ids=other)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(model, dtype):
    model.to(dtype)
    own = logits_of(model, "doubled", "difference")
    expected = LogitsGuidance(all_of_a, JUMP, tokenizer=TOKENS)(own.float(), IDS)
    for calls in ("doubled", "two_calls"):
        with guide(model, all_of_a, JUMP, tokenizer=TOKENS, classifier_free=calls, guidance_scale=SCALE):
            found = logits_of(model, calls, "difference")
        assert found.dtype == dtype
        assert not found.isnan().any()
        assert (found[:, 2:].float().softmax(-1) - expected[:, 2:].softmax(-1)).abs().max() < 0.1
        if calls == "doubled":
            assert torch.equal(found[:, 2:].argmax(-1), expected[:, 2:].argmax(-1))
