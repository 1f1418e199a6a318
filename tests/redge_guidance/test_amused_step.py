"""Pipelines that are recognised by aMUSEd's step, and not by a name: images of any size, texts about images."""

import pytest
import torch
from diffusers import (
    AmusedScheduler,
    AutoencoderKL,
    DDIMScheduler,
    LDMSuperResolutionPipeline,
    UNet2DModel,
    VQDiffusionScheduler,
)

from redge_guidance import GuidanceConfig, guide
from redge_guidance.hosts import supports
from redge_guidance.hosts.attachment import Attachment
from redge_guidance.rewards import BlackBoxReward
from tests.helpers.hosts import JUMP, brightness, masked_image, seeded, spied, state_of
from tests.helpers.images import CODES, tiny_amused, tiny_vqvae
from tests.helpers.settings import plain_config
from tests.helpers.tiny import tiny_pipeline
from tests.helpers.unified import LENGTH, WORDS, UnifiedPipeline, UnifiedScheduler, tiny_unified

A, MASK = 3, WORDS  # ids of the word `a` and of the mask of a text


# ---- what is one, and what is not ----


def test_what_has_the_step_and_the_parts_is_recognised():
    for pipe in (tiny_unified(), tiny_unified(UnifiedPipeline), tiny_amused()):
        assert "Meissonic, Monetico and Muddit" in supports(pipe)
    assert "MaskedImagePipeline" in supports(masked_image()[0])  # which has a host of its own
    assert "MaskedDiffusionScheduler" in supports(tiny_pipeline())


def test_what_lacks_the_step_or_a_part_is_not():
    pipe = tiny_unified()
    for scheduler in (DDIMScheduler(), VQDiffusionScheduler(num_vec_classes=CODES + 1), None):
        pipe.scheduler = scheduler
        assert supports(pipe) is None
    pipe.scheduler = UnifiedScheduler(mask_token_id=CODES)
    pipe.scheduler.step = lambda model_output, timestep, sample, generator=None: None  # log-probabilities, say
    assert supports(pipe) is None
    unet = UNet2DModel(8, block_out_channels=(8,) * 4, norm_num_groups=2, layers_per_block=1)
    assert supports(LDMSuperResolutionPipeline(tiny_vqvae(), unet, DDIMScheduler())) is None
    pipe = tiny_unified()
    pipe.vqvae = AutoencoderKL(block_out_channels=(8,), norm_num_groups=2)  # no codebook
    assert supports(pipe) is None
    pipe.vqvae = None
    assert supports(pipe) is None
    assert supports(AmusedScheduler(mask_token_id=CODES)) is None


def test_a_step_that_was_wrapped_is_still_the_step():
    pipe = tiny_unified()
    original = pipe.scheduler.step
    pipe.scheduler.step = lambda *args, **kwargs: original(*args, **kwargs)
    assert supports(pipe)
    with guide(pipe, brightness, GuidanceConfig(scale=30.0)):
        assert pipe("a", generator=seeded()).shape == (1, 3, 8, 8)


# ---- images ----


@pytest.mark.parametrize("make", [tiny_unified, tiny_amused])
def test_images_need_not_be_square(make):
    """What a reward would see of the tokens that come out is the image that comes out."""
    pipe, steps, means = make(), [], []

    def run(output_type):
        settings = {"height": 8, "width": 12, "num_inference_steps": 4, "output_type": output_type}
        images = pipe(["a b", "c"], **settings, generator=seeded())
        return images if torch.is_tensor(images) else images.images

    attachment = Attachment(pipe, move=steps.append)
    tokens, images = run("latent"), run("pt")
    attachment.remove()
    decoder = steps[0].images
    assert images.shape == (2, 3, 8, 12)
    torch.testing.assert_close(decoder.decode(decoder.codebook[tokens.flatten(1)]), images)
    for scale in (0.0, 30.0, 300.0):
        with guide(pipe, lambda pixels: pixels[..., :4, :4].mean((1, 2, 3)), plain_config(scale=scale)):
            means.append(run("pt")[..., :4, :4].mean())
    assert means[0] < means[1] < means[2]


def test_pixels_are_normalised_where_the_pipeline_says_so():
    pipe, seen = tiny_unified(), []
    with guide(pipe, lambda pixels: (seen.append(pixels.detach()), brightness(pixels))[1], plain_config(num_draws=1)):
        pipe("a", generator=seeded(), num_inference_steps=1)
        pipe.image_processor.register_to_config(do_normalize=True)
        pipe("a", generator=seeded(), num_inference_steps=1)
    half = len(seen) // 2
    plain, normalised = seen[0], seen[half]
    inside = (normalised > 0.5) & (normalised < 1)
    torch.testing.assert_close(plain[inside], 2 * normalised[inside] - 1)


def test_prompts_are_those_of_the_call_and_none_where_it_has_embeddings():
    pipe, seen = tiny_unified(), []

    class Scored:
        def score(self, pixels, prompts):
            seen.append(prompts)
            return brightness(pixels)

    embeddings = dict(zip(("prompt_embeds", "encoder_hidden_states"), pipe.encode_text(["a", "b"]), strict=True))
    with guide(pipe, Scored(), plain_config(num_draws=1)):
        pipe(["a", "b"], num_images_per_prompt=2)
        assert all(prompts == ["a", "b", "a", "b"] for prompts in seen)
        seen.clear()
        pipe(**embeddings)
        assert set(seen) == {None}
        seen.clear()
        pipe(["c", "d"], **embeddings)  # this one takes both, and draws from the embeddings
        assert set(seen) == {None}


def test_an_amused_reward_is_never_told_a_stale_or_a_negative_prompt():
    pipe, seen = tiny_amused(), []

    def likes(image, prompt):
        seen.append(prompt)
        return float(image.mean())

    def told(*args, **kwargs):
        seen.clear()
        pipe(*args, num_inference_steps=2, height=8, width=8, generator=seeded(), **kwargs)
        return set(seen)

    ids = pipe.tokenizer(["a", "b"], padding="max_length", max_length=8, return_tensors="pt").input_ids
    outputs = pipe.text_encoder(ids, output_hidden_states=True)
    pair = {"prompt_embeds": outputs.text_embeds, "encoder_hidden_states": outputs.hidden_states[-2]}
    negative = {f"negative_{name}": value for name, value in pair.items()}
    reward = BlackBoxReward(likes, takes_prompt=True)
    with guide(pipe, reward, plain_config(num_draws=2)):
        assert told(["a", "b"], negative_prompt=["c", "c"]) == {"a", "b"}
        with pytest.raises(ValueError, match="`likes` takes prompts, and there are none"):
            told(**pair, **negative)
        with pytest.raises(ValueError, match="`likes` takes prompts, and there are none"):
            told(**pair, negative_prompt=["c", "c"])
        pipe.text_encoder(ids)  # somebody else's call of the same encoder, and of the tokenizer
        pipe.tokenizer(["d"])
        assert told("b", negative_prompt="c") == {"b"}
        assert told("b", guidance_scale=1.0, num_images_per_prompt=2) == {"b"}


# ---- texts ----


def asked(pipe, question="b c", count=2, seed=0, **settings):
    images = torch.rand(count, 3, 8, 8, generator=seeded(7))
    return pipe(question, image=images, generator=seeded(seed), **settings)[1]


def likes_a(tokens):
    table = torch.zeros(WORDS + 1, 1)
    table[A] = 1.0
    return tokens.embed(table)[..., 0].sum(-1)


@pytest.mark.parametrize("question", ["b c", ["b c", "d"], None])
def test_texts_about_images_are_guided(question):
    pipe = tiny_unified(UnifiedPipeline)
    bare, before = asked(pipe, question), state_of(pipe)
    with guide(pipe, likes_a, GuidanceConfig(scale=0.0)):
        assert asked(pipe, question) == bare
    with guide(pipe, likes_a, GuidanceConfig(scale=8.0)) as handle:
        guided = asked(pipe, question)
        assert asked(pipe, question) == guided
        assert [step.progress for step in handle.trace] == [0, 0.25, 0.5, 0.75] * 2
    assert " ".join(guided).count("a") > " ".join(bare).count("a") + 4
    assert state_of(pipe) == before
    assert asked(pipe, question) == bare


def test_every_step_of_a_text_gets_the_exact_optimum():
    """For a reward linear in the tokens; in the last step, off whose logits the text is read, all of the answer."""
    pipe, seen = tiny_unified(UnifiedPipeline), []
    asked(pipe)
    calls, reads = spied(pipe), []
    pipe.transformer.register_forward_hook(lambda module, args, output: reads.append(output[1].clone()))

    def watched(tokens):
        seen.append(tokens)
        return likes_a(tokens)

    with guide(pipe, watched, JUMP):
        texts = asked(pipe, ["b c", "d"])
    assert len(calls) == len(reads) == len(seen) == 4
    tilt = torch.zeros(WORDS + 1)
    tilt[A], tilt[MASK] = JUMP.scale, -torch.inf
    for step, ((_, arguments), logits, tokens) in enumerate(zip(calls, reads, seen, strict=True)):
        hidden, guided = arguments["sample"] == MASK, arguments["model_output"]
        expected = (logits.log_softmax(-1) + tilt).softmax(-1)
        answer = torch.tensor([[i >= 2 for i in range(LENGTH)], [i >= 1 for i in range(LENGTH)]])
        free = answer if step == 3 else hidden
        assert torch.equal(tokens.free, free)
        assert hidden.sum() < free.sum() or step < 3  # else this says nothing
        torch.testing.assert_close(guided.softmax(-1)[free], expected[free], atol=1e-5, rtol=1e-4)
        assert torch.equal(guided[~free], logits[~free])
    best = (reads[-1].log_softmax(-1) + tilt).argmax(-1)
    assert texts == [pipe.tokenizer.decode(best[i, n:], skip_special_tokens=True) for i, n in enumerate((2, 1))]


def test_the_question_is_given_and_the_reward_is_told_it():
    pipe, seen = tiny_unified(UnifiedPipeline), []
    with guide(pipe, lambda tokens: (seen.append(tokens), likes_a(tokens))[1], JUMP):
        asked(pipe, ["b c", "d"])
        assert seen[0].prompts == ["b c", "d"]
        assert seen[-1].ids[0, :2].tolist() == [4, 5]
        assert not (seen[-1].ids == MASK).any()
        asked(pipe, "b c")
        assert seen[-1].prompts == ["b c", "b c"]
        asked(pipe, None)
        assert seen[-1].prompts is None


def test_rewards_of_the_other_kind_are_refused_in_the_call():
    pipe = tiny_unified(UnifiedPipeline)

    class Pixels:
        modality = "image"

        def score(self, pixels, prompts):
            return brightness(pixels)

    with guide(pipe, Pixels()), pytest.raises(ValueError, match="Pixels is for images, and the pipeline makes texts"):
        asked(pipe)
    with guide(pipe, brightness):
        assert pipe(["a"], generator=seeded())[0].shape == (1, 3, 8, 8)


def test_the_second_tokenizer_is_the_one_of_a_second_text_encoder():
    pipe, seen = tiny_unified(UnifiedPipeline), []
    pipe.register_modules(tokenizer_2=pipe.tokenizer, text_encoder_2=None)
    with guide(pipe, lambda tokens: (seen.append(tokens.tokenizer), likes_a(tokens))[1], JUMP):
        asked(pipe)
        first, pipe.tokenizer_2 = pipe.tokenizer, tiny_unified(UnifiedPipeline).tokenizer
        asked(pipe)
        pipe.text_encoder_2 = pipe.text_encoder
        asked(pipe)
    assert [seen[0], seen[4], seen[8]] == [first, first, pipe.tokenizer_2]


def exchanged(pipe, rows, **call):
    """`pipe` called with its sequences exchanged after the first step; what was drawn in each step."""
    drawn = []

    def follow(step, one):
        drawn.append((step, one))
        return torch.tensor(rows) if len(drawn) == 1 else None

    attachment = Attachment(pipe, move=None, follow=follow)
    try:
        pipe(generator=seeded(), **call)
    finally:
        attachment.remove()
    return drawn


def test_sequences_of_one_prompt_and_one_image_are_exchanged():
    pipe, images = tiny_unified(UnifiedPipeline), torch.rand(1, 3, 8, 8, generator=seeded()).repeat(2, 1, 1, 1)
    pipe.transformer.register_forward_hook(lambda module, args, out: (out[0], out[1] / 8))  # so that they differ
    drawn = exchanged(pipe, [1, 1], prompt="b", image=images, num_inference_steps=2)
    (_, first), (after, _) = drawn[:2]
    assert torch.equal(after.ids, first.tokens[[1, 1]])
    assert not torch.equal(first.tokens[0], first.tokens[1])
    for step, one in drawn:
        assert torch.equal(one.positions, (step.ids == MASK) & (one.tokens != MASK))
    with pytest.raises(ValueError, match="`rows` must be 2 indices below 2, got"):
        exchanged(pipe, [1, 2], prompt="b", image=images)
    images[1] += 0.1
    with pytest.raises(ValueError, match="`rows` must exchange texts about one image, got"):
        exchanged(pipe, [1, 1], prompt="b", image=images)
    pipe = tiny_unified()
    embeddings = dict(zip(("prompt_embeds", "encoder_hidden_states"), pipe.encode_text(["a", "b"]), strict=True))
    with pytest.raises(RuntimeError, match="ImagesPipeline was given `prompt_embeds`, of which nobody"):
        exchanged(pipe, [1, 0], **embeddings)


def test_texts_exchanged_after_the_last_step_come_out_exchanged():
    pipe, images = tiny_unified(UnifiedPipeline), torch.rand(1, 3, 8, 8, generator=seeded()).repeat(2, 1, 1, 1)
    call = {"prompt": "b", "image": images, "num_inference_steps": 1}
    pipe.transformer.register_forward_hook(
        lambda module, args, out: (out[0], out[1] + torch.tensor([[[0.0]], [[9.0]]]) * torch.eye(WORDS + 1)[A])
    )
    bare = pipe(generator=seeded(), **call)[1]
    assert bare[0] != bare[1]
    attachment = Attachment(pipe, follow=lambda step, one: torch.tensor([1, 0]))
    assert pipe(generator=seeded(), **call)[1] == bare[::-1]
    attachment.remove()
