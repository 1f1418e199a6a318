"""Guidance as one call in a loop: the same tokens as by our pipelines, and how samplings are told apart."""

import pytest
import torch

from redge_guidance import GuidanceConfig, LogitsGuidance, guide
from redge_guidance.following import Following
from redge_guidance.pipelines import MaskedDiffusionScheduler
from redge_guidance.pipelines.sampling import multinomial, uniform
from tests.helpers.hosts import JUMP, MASK, RESERVED, all_of_a, brightness, count_of_a, seeded
from tests.helpers.images import tiny_image_pipeline
from tests.helpers.settings import plain_config
from tests.helpers.tiny import WORDS, tiny_pipeline, tiny_reward, tiny_uniform, word_tokenizer

TOKENS = word_tokenizer()
CONFIG = plain_config(scale=4.0, num_draws=2)


def reward_of_a():
    with torch.enable_grad():  # it is trained on the spot
        return tiny_reward()


def one_by_one(model, ids, mask, guided, generator, steps, temperature=1.0):
    """Anywhere, an equal share a step: what `MaskedDiffusionScheduler` does, written down once more."""
    for left in range(steps, 0, -1):
        logits = guided(model(ids), ids)
        hidden = ids == mask
        rows = logits[hidden].float()
        rows[:, mask : mask + 1] = -torch.inf
        drawn = multinomial((rows / temperature).softmax(-1), hidden.nonzero()[:, 0], generator)
        number = uniform(torch.ones_like(hidden), generator).clamp(min=1e-20)
        counts = -(-hidden.sum(-1) // left)
        if left == 1:
            return ids.masked_scatter(hidden, drawn)
        rank = number.masked_fill(~hidden, torch.inf).flip(-1).argsort(dim=-1, stable=True).argsort(-1).flip(-1)
        again = hidden & (rank < (hidden.sum(-1) - counts)[:, None])
        ids = ids.masked_scatter(hidden, drawn).masked_fill(again, mask)
    return ids


@torch.no_grad()
@pytest.mark.parametrize("block_length", [None, 2])
@pytest.mark.parametrize("known", ["num_steps", "estimated"])
def test_a_masked_loop_is_the_pipeline(known, block_length):
    pipe, reward = tiny_pipeline(), reward_of_a()
    steps = 4 if known == "num_steps" else 2
    if block_length:
        steps = 4
    settings = {"num_inference_steps": steps, "block_length": block_length, "temperature": 0.0}
    pipe.scheduler = MaskedDiffusionScheduler("confidence")
    with guide(pipe, reward, CONFIG) as handle:
        expected = pipe(["a b", "c d"], generator=seeded(), **settings).sequences
    seen = []
    how = {"num_steps": steps} if known == "num_steps" else {}
    guidance = LogitsGuidance(reward, CONFIG, tokenizer=TOKENS, block_length=block_length, **how)
    for _ in range(2):  # the next sampling is known by its masks
        generator = seeded()
        ids = torch.tensor([[3, 4, 2, 2, 2, 2], [5, 6, 2, 2, 2, 2]])
        for _ in range(steps):
            block = ids == MASK
            if block_length:
                first = block.int().argmax(-1)[0] // 2 * 2
                block &= (torch.arange(6) >= first) & (torch.arange(6) < first + 2)
            logits = guidance(pipe.model(input_ids=ids).logits, ids, generator=generator, temperature=0)
            drawn, now = logits.argmax(-1), block.sum(-1)[0].item()
            sure = logits.softmax(-1).amax(-1).masked_fill(~block, -1)
            count = 4 // steps
            best = sure.topk(min(count, now), -1).indices
            ids = ids.scatter(1, best, drawn.gather(1, best))
            uniform(torch.ones_like(block), generator)
        seen.append(ids)
    assert all(torch.equal(ids, expected) for ids in seen)
    assert [s.progress for s in guidance.trace] == pytest.approx([s.progress for s in handle.trace] * 2)
    assert guidance.trace[-1].kl == pytest.approx(handle.trace[-1].kl, rel=1e-4, abs=1e-6)


@torch.no_grad()
def test_an_image_loop_is_the_pipeline():
    pipe = tiny_image_pipeline(unmasking_order="random")
    config = GuidanceConfig(scale=50.0, num_draws=2)
    with guide(pipe, brightness, config) as handle:
        expected = pipe(
            class_labels=[0, 2], generator=seeded(), output_type="latent", num_inference_steps=4, guidance_scale=1.0
        ).tokens
    generator = seeded()
    images = (pipe.codebook, pipe.decode_embeddings)
    guidance = LogitsGuidance(brightness, config, images=images, mask_token_id=pipe.mask_token_id, num_steps=4)
    ids = torch.full_like(expected, pipe.mask_token_id)
    labels = torch.tensor([0, 2])
    found = one_by_one(
        lambda x: pipe.transformer(x, class_labels=labels),
        ids,
        pipe.mask_token_id,
        lambda logits, x: guidance(logits, x, generator=generator),
        generator,
        4,
    )
    assert torch.equal(found, expected)
    assert [step.kl for step in guidance.trace] == pytest.approx([step.kl for step in handle.trace])


@torch.no_grad()
def test_a_uniform_loop_is_the_pipeline():
    pipe, reward = tiny_uniform(), reward_of_a()
    with guide(pipe, reward, CONFIG) as handle:
        expected = pipe(["a", ""], generator=seeded()).sequences
    guidance, generator, seen = LogitsGuidance(reward, CONFIG, tokenizer=TOKENS, num_steps=4), seeded(), []

    class Loop:  # our function in the place of the scheduler's own seam
        def __init__(self, scheduler):
            self._step = scheduler.step

        def __call__(self, logits, t, sample, **settings):
            free = pipe.drawing.canvas.free
            guided = guidance(
                logits, sample, free, generator=generator, attention_mask=pipe.drawing.canvas.attention_mask
            )
            seen.append(free)
            return self._step(guided, t, sample, **settings)

    pipe.scheduler.step = Loop(pipe.scheduler)
    assert torch.equal(pipe(["a", ""], generator=generator).sequences, expected)
    assert (
        [step.progress for step in guidance.trace] == [step.progress for step in handle.trace] == [0, 0.25, 0.5, 0.75]
    )


def test_one_text_without_a_batch_and_the_last_logits():
    guidance = LogitsGuidance(all_of_a, JUMP, tokenizer=TOKENS)
    logits, ids = torch.randn(5, len(WORDS), generator=seeded()), torch.tensor([3, 4, MASK, MASK, MASK])
    whole = guidance(logits, ids)
    assert whole.shape == logits.shape
    assert torch.equal(whole[:2], logits[:2])
    assert whole[2:, RESERVED].isneginf().all()
    guidance.reset()
    torch.testing.assert_close(guidance(logits[3:], ids), whole[3:])
    guidance.reset()
    torch.testing.assert_close(guidance(logits[2:4], ids, offset=2), whole[2:4])
    guidance.reset()
    half = guidance(logits.bfloat16(), ids)
    assert half.dtype == torch.bfloat16
    with torch.inference_mode():
        torch.testing.assert_close(guidance(logits.clone(), ids.clone()), whole)


def follow(*canvases, **settings):
    following = Following(TOKENS, **settings)
    found = []
    for ids in canvases:
        ids = torch.tensor([ids])
        found.append(following.see(ids, ids == MASK, torch.ones_like(ids, dtype=torch.bool)))
    return found, following


def test_samplings_are_told_apart():
    assert follow([3, 2, 2], [3, 4, 2], [3, 2, 2], [5, 2, 2], [5, 2, 2])[0] == [True, False, True, True, False]
    assert follow([3, 2], [3, 4, 2, 2], [3, 4, 5, 2])[0] == [True, False, False]
    assert follow([2, 2, 2], [4, 2, 2], [2, 5, 2], remasking=True)[0] == [True, False, False]
    assert follow([2, 2, 2], [4, 5, 2], [4, 2, 2], remasking=True)[0] == [True, False, False]
    with pytest.warns(UserWarning, match="pass `remasking=True`"):
        assert follow([2, 2, 2], [4, 5, 2], [4, 2, 2])[0] == [True, False, True]
    assert follow([2, 2], [2, 2], [2, 2], num_steps=2)[0] == [True, False, True]
    with pytest.warns(UserWarning, match="goes on after 1 calls"):
        follow([2, 2], [3, 2], num_steps=1)
    following = follow([2, 3, 2, 2], [4, 3, 2, 2])[1]
    assert following.given.tolist() == [[False, True, False, False]]
    assert following.unending.tolist() == [[True, False, False, False]]
    assert following.progress() == pytest.approx(1 / 3)


def test_bad_input():
    with pytest.raises(ValueError, match="`tokenizer` must be given"):
        LogitsGuidance(count_of_a)
    with pytest.raises(ValueError, match="`images` must be an ImageDecoder"):
        LogitsGuidance(count_of_a, images=3)
    guidance = LogitsGuidance(count_of_a, tokenizer=TOKENS)
    logits, ids = torch.zeros(2, 4, 8), torch.full((2, 4), MASK)
    wrong = {
        "`ids` must be integers": (logits, ids.float()),
        "`logits` must be numbers": (logits[:1], ids),
        "`free` must be bool": (logits, ids, ids[:, 1:] == MASK),
    }
    for message, arguments in wrong.items():
        with pytest.raises(ValueError, match=message):
            guidance(*arguments)
    for name, value in {
        "progress": 1.0,
        "temperature": -1,
        "offset": 1,
        "prompts": ["a"],
        "given": ids[0] == 1,
    }.items():
        with pytest.raises(ValueError, match=f"`{name}` must be"):
            guidance(logits, ids, **{name: value})
    no_mask = word_tokenizer()
    no_mask.mask_token = None
    guidance = LogitsGuidance(count_of_a, tokenizer=no_mask)
    with pytest.raises(ValueError, match="`free` must be given"):
        guidance(logits, ids)
    with pytest.raises(ValueError, match="`progress` must be given"):
        guidance(logits, ids, ids == MASK)
    assert guidance(logits, ids, ids == MASK, progress=0.5).shape == logits.shape
