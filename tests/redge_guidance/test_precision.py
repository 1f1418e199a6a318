"""What is handed to a scheduler is float32, whatever the model computes in: half precision swallows small tilts."""

from types import SimpleNamespace

import pytest
import torch
from diffusers import DiscreteDDIMScheduler
from hypothesis import given
from hypothesis import strategies as st
from transformers import GenerationConfig

from redge_guidance.divergence import kl
from redge_guidance.guidance import Guidance
from redge_guidance.hosts.attachment import Attachment
from redge_guidance.hosts.callables import DreamLogitsHook, GuidanceLogitsProcessor
from redge_guidance.precision import keeping_the_first
from tests.helpers.hosts import MASK, RESERVED, WORDS, amused, gemma, llada2, masked, masked_image, seeded, unified
from tests.helpers.settings import plain_config
from tests.helpers.tiny import word_tokenizer
from tests.helpers.unified import UnifiedPipeline
from tests.helpers.watching import guided, log_p, outputs_of

TABLE = torch.linspace(0, 0.01, 12)  # less than bfloat16 can tell apart near 2
HALF = {"masked": masked, "llada2": llada2, "gemma": lambda: gemma(DiscreteDDIMScheduler()), "images": masked_image}
HALF |= {"amused": lambda: amused(height=8, width=8)}


@pytest.mark.parametrize("make", HALF.values(), ids=HALF)
def test_small_tilts_of_half_precision_logits_reach_the_scheduler(make):
    pipe, run = make()
    pipe.to(torch.bfloat16)
    calls = outputs_of(pipe)

    class Nearly:  # an update to the tilted p, whatever the reward
        def __call__(self, log_p, ascent, project):
            return (log_p[:] + TABLE[: log_p.shape[1]]).log_softmax(-1)

    class Spy(Nearly):
        def __call__(self, log_p, ascent, project):
            parts = ascent.gradients(log_p[:])
            ascent.used(parts[0].value)
            return super().__call__(log_p, ascent, project)

    def reward(sample):
        return sample.mean((1, 2, 3)) if isinstance(sample, torch.Tensor) else sample.embed(JUMP_TABLE).sum((1, 2))

    config = plain_config(estimator="straight_through", update=Spy(), num_draws=1, support=None)
    pairs, _ = guided(pipe, run, reward, config)
    for (step, logits), (_, arguments, _) in zip(pairs, calls, strict=True):
        if logits is None:
            continue
        given = arguments["model_output"]
        assert given.dtype == torch.float32
        given = given.permute(0, 2, 3, 1).flatten(1, 2) if given.ndim == 4 else given
        q = (given[step.free[:, -given.shape[1] :]] / step.temperature).log_softmax(-1)
        expected = (log_p(step) + TABLE[: q.shape[1]]).log_softmax(-1)
        torch.testing.assert_close(q.exp(), expected.exp(), atol=1e-5, rtol=1e-4)


JUMP_TABLE = torch.ones(8, 1)


def jump(table):
    """An update to `softmax(log p + table)`, whatever the reward."""

    class Jump:
        def __call__(self, log_p, ascent, project):
            log_q = log_p[:]
            ascent.used(ascent.gradients(log_q)[0].value)
            return project((log_q + table[: log_q.shape[1]]).log_softmax(-1))

    return Jump()


def constant(sample):
    return sample.embed(torch.ones(len(WORDS), 1)).sum((1, 2))


def high_logits(dtype, scale=1.0):
    """`(2, 4, V)` near 24, where bfloat16 is 0.125 apart."""
    return (24 + scale * torch.randn(2, 4, len(WORDS), generator=seeded(1))).to(dtype)


def handed_over(kind, logits, config, temperature=1.0):
    """By the logits processor of transformers, and by Dream's hook, for a canvas that is free as a whole."""
    if kind == "processor":
        settings = {"max_denoising_steps": 2, "t_min": temperature, "t_max": temperature}
        model = SimpleNamespace(generation_config=GenerationConfig())
        guidance = GuidanceLogitsProcessor(model, word_tokenizer(), constant, config, **settings)
        return guidance(torch.zeros(2, 0, dtype=torch.long), logits, cur_step=2)
    hook = DreamLogitsHook(word_tokenizer(), constant, config, steps=2, temperature=temperature)
    return hook(0, torch.full((2, 4), MASK), logits)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["processor", "hook"])
def test_callables_hand_on_small_tilts(kind, dtype):
    logits = high_logits(dtype)
    config = plain_config(update=jump(TABLE), estimator="straight_through", num_draws=1, support=None)
    found = handed_over(kind, logits, config)
    assert found.dtype == torch.float32
    expected = logits.float() + TABLE[: len(WORDS)]
    expected[..., RESERVED] = -torch.inf
    torch.testing.assert_close(found.softmax(-1), expected.softmax(-1), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["processor", "hook"])
def test_the_budget_holds_for_what_is_handed_over(kind, dtype):
    logits = high_logits(dtype, scale=3.0)
    tilt = 4 * torch.randn(len(WORDS), generator=seeded(2))
    config = plain_config(update=jump(tilt), estimator="straight_through", num_draws=1, support=4, kl_budget=0.05)
    q = handed_over(kind, logits, config).double().log_softmax(-1)
    p = logits.double()
    p[..., RESERVED] = -torch.inf
    spent = kl(q, p.log_softmax(-1)).mean(-1)
    assert (spent <= 0.05 * (1 + 1e-4)).all()
    assert (spent > 0.04).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("temperature", [1e3, 1e6])
@pytest.mark.parametrize("kind", ["processor", "hook"])
def test_high_temperatures_stay_finite(kind, temperature, dtype):
    config = plain_config(update=jump(100 * TABLE), estimator="straight_through", num_draws=1, support=None)
    logits = high_logits(dtype)
    found = handed_over(kind, logits, config, temperature)
    allowed = [i for i in range(len(WORDS)) if i not in RESERVED]
    assert found[..., allowed].isfinite().all()
    expected = (logits.float() / temperature + 100 * TABLE[: len(WORDS)])[..., allowed].softmax(-1)
    torch.testing.assert_close((found / temperature)[..., allowed].softmax(-1), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@given(seed=st.integers(0, 10**6), level=st.sampled_from([0.0, 24.0, -300.0, 6e4]))
def test_rounding_keeps_the_likeliest_token(dtype, seed, level):
    logits = level + 0.01 * torch.randn(20, 9, generator=seeded(seed))
    narrow = keeping_the_first(logits, dtype)
    assert narrow.dtype == dtype
    assert torch.equal(narrow.argmax(-1), logits.argmax(-1))
    changed = narrow != logits.to(dtype)
    assert (changed.sum(-1) <= 1).all()


def test_texts_that_are_read_off_half_precision_logits_have_the_tokens_of_q():
    """Of Muddit, in the last step, by `argmax`."""
    pipe, run = unified(UnifiedPipeline, image=torch.rand(2, 3, 8, 8, generator=seeded()).bfloat16())
    pipe.to(torch.bfloat16)
    pipe.transformer.register_forward_hook(lambda module, args, output: (output[0], 24 + 0.01 * output[1]))
    config = plain_config(update=jump(TABLE), estimator="straight_through", num_draws=1, support=None)
    guidance, read = Guidance(constant, config), []

    def move(step):
        read.append((step, guidance(step)))
        return read[-1][1]

    attachment = Attachment(pipe, move=move)
    try:
        run()
    finally:
        attachment.remove()
    step, logits = read[-1]
    assert step.images is None
    assert step.logits.dtype == torch.bfloat16
    assert torch.equal(step.logits[step.free].argmax(-1), logits.argmax(-1))
