"""Guidance of images: what a reward sees, and every host on the real pipeline class around tiny models."""

import pytest
import torch

from redge_guidance import GuidanceConfig, LogitsGuidance, RelaxedTokens, guide
from redge_guidance.guidance import Guidance
from redge_guidance.hosts import DenoisingStep, supports
from redge_guidance.hosts.attachment import Attachment
from redge_guidance.particles import ParticleConfig, particles
from redge_guidance.pipelines.image.vq_tokens import codebook_of, to_pixels
from redge_guidance.reward import ImageReward, Reward, RewardSum
from redge_guidance.rewards import BlackBoxReward
from redge_guidance.samples.images import ImageDecoder, RelaxedImages
from redge_guidance.strength import strength_of, update_of
from redge_guidance.tilting import guided_logits
from redge_guidance.updates import Natural
from tests.helpers.hosts import IMAGES, amused_inpaint, brightness, inpainting, masked_image, seeded, spied, state_of
from tests.helpers.images import CODES, SIDE, tiny_amused, tiny_vqvae
from tests.helpers.settings import plain_config

# ---- what a reward sees ----


def relaxed(draws=1, images=2, prompts=None):
    torch.manual_seed(0)
    count = draws * images * SIDE**2
    free = torch.ones(draws * images, SIDE**2, dtype=torch.bool)
    weights = torch.randn(count, CODES).softmax(-1).requires_grad_()
    ids = torch.randint(CODES, free.shape)
    prompts = None if prompts is None else prompts * draws
    return RelaxedTokens(ids, free, weights, hard=False, draws=draws, prompts=prompts)


def decoder(vqvae=None):
    vqvae = tiny_vqvae() if vqvae is None else vqvae
    return ImageDecoder(codebook_of(vqvae), lambda x: to_pixels(vqvae, x, True))


def test_pixels_of_one_hot_samples_are_those_of_the_tokens():
    vqvae, tokens = tiny_vqvae(), relaxed()
    weights = torch.nn.functional.one_hot(tokens.ids.flatten(), CODES).float()
    images = RelaxedImages(RelaxedTokens(tokens.ids, tokens.free, weights), decoder(vqvae))
    latents = codebook_of(vqvae)[tokens.ids].transpose(1, 2).unflatten(2, (SIDE, SIDE))
    expected = (vqvae.decode(latents, force_not_quantize=True).sample / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(images.pixels, expected)
    assert expected.std() > 0.1


def test_grey_images_have_three_equal_channels():
    pixels = RelaxedImages(relaxed(), decoder(tiny_vqvae(channels=1))).pixels
    assert pixels.shape == (2, 3, 8, 8)
    assert torch.equal(pixels[:, 0], pixels[:, 2])


@pytest.mark.parametrize("chunk_size", [1, 3, 100])
def test_chunks_give_the_same_pixels_and_gradients(chunk_size):
    tokens, results = relaxed(images=4), []
    for size in (None, chunk_size):
        sizes = []
        one = decoder()
        decode = one.decode
        counted = ImageDecoder(one.codebook, lambda x: sizes.append(len(x)) or decode(x), size)  # noqa: B023
        pixels = RelaxedImages(tokens, counted).pixels
        (grad,) = torch.autograd.grad(pixels.square().sum(), tokens.weights)
        results.append((pixels, grad))
        parts = [4] if size is None else {1: [1] * 4, 3: [3, 1], 100: [4]}[size]
        assert sorted(sizes) == sorted(parts if size is None else 2 * parts)  # once more in the backward
    torch.testing.assert_close(*results, atol=1e-4, rtol=1e-4)


def test_images_are_decoded_once_for_all_terms_and_prompts_are_repeated_by_draws():
    calls, seen = [], []

    class Scored:
        def score(self, pixels, prompts):
            seen.append(prompts)
            return brightness(pixels)

    one = decoder()
    counted = ImageDecoder(one.codebook, lambda x: calls.append(1) or one.decode(x))
    reward = ImageReward.__add__(Constant(), brightness) + Scored()
    images = RelaxedImages(relaxed(draws=3, prompts=["a", "b"]), counted)
    total = reward(images)
    assert len(calls) == 1
    assert seen == [["a", "b"] * 3]
    torch.testing.assert_close(total, 1 + 2 * brightness(images.pixels))
    assert set(images.notes) == {"Constant", "brightness", "Scored"}


class Constant(ImageReward):
    def of_pixels(self, pixels, prompts=None):
        return pixels.new_ones(len(pixels)) + 0 * pixels.sum((1, 2, 3))


def test_a_linear_decoder_gives_the_exact_tilt():
    """Pixels linear in the codebook's entries: q = p exp(scale * <entry, direction>) / Z at every position."""
    torch.manual_seed(0)
    logits, codebook, direction = torch.randn(2, 4, 5), torch.randn(5, 3), torch.randn(3)
    ids, free = torch.full((2, 4), 5), torch.ones(2, 4, dtype=torch.bool)
    free[0, 0], ids[0, 0] = False, 1
    images = ImageDecoder(codebook, lambda x: x.transpose(1, 2)[..., None])  # (batch, 3, 4, 1)
    step = DenoisingStep(logits, ids, free, torch.ones_like(free), 0.7, 0.0, None, images=images)
    config = plain_config(1.5, update=Natural(1, 1.0), num_draws=2, support=None)

    def reward(pixels):
        return (pixels * direction.view(3, 1, 1)).sum((1, 2, 3))

    before = logits.clone()
    new, _ = guided_logits(step, reward, config, seeded())
    expected = (logits[free] / 0.7 + 1.5 * codebook @ direction).softmax(-1)
    torch.testing.assert_close((new / 0.7).softmax(-1), expected)
    assert torch.equal(logits, before)  # the host's


def test_sums_score_finished_images():
    class Scored:
        def score(self, pixels, prompts):
            return brightness(pixels) * torch.tensor([float(len(prompt)) for prompt in prompts])

    pixels = torch.rand(3, 3, 8, 8, generator=seeded())
    total = 2 * Constant() + brightness + Scored() + BlackBoxReward(lambda image: image[0, 0, 0].item())
    prompts = ["a", "bb", "ccc"]
    light = brightness(pixels)
    expected = 2 + light + light * torch.tensor([1.0, 2.0, 3.0]) + pixels[:, 0, 0, 0]
    torch.testing.assert_close(total.score(pixels, prompts), expected)
    scaled = (Constant() * 0 + brightness + Scored()).terms[1:]
    normalized = RewardSum(scaled).normalized(pixels, prompts)
    for term in normalized.terms:
        alone = RewardSum([term]).score(pixels, prompts)
        torch.testing.assert_close(alone.std(), torch.tensor(1.0))


# ---- hosts ----

every_case = pytest.mark.parametrize("make", IMAGES.values(), ids=IMAGES)


@every_case
def test_scale_zero_gives_the_tokens_of_the_bare_host(make):
    pipe, run = make()
    assert supports(pipe)
    bare = run()
    with guide(pipe, brightness, GuidanceConfig(scale=0.0)):
        assert torch.equal(run(), bare)
    with guide(pipe, brightness, GuidanceConfig(scale=300.0)):
        assert not torch.equal(run(), bare)


@every_case
def test_removal_and_exceptions_leave_the_host_as_it_was(make):
    pipe, run = make()
    bare, before = run(), state_of(pipe)

    def broken(pixels):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), guide(pipe, broken):
        run()
    assert state_of(pipe) == before
    assert torch.equal(run(), bare)


@every_case
def test_only_free_positions_are_guided(make):
    pipe, run = make()
    guidance, steps = Guidance(brightness, GuidanceConfig(scale=200.0)), []

    def move(step):
        steps.append((step, step.logits.clone()))
        return guidance(step)

    calls, attachment = spied(pipe), Attachment(pipe, move=move)
    run()
    attachment.remove()
    changed = 0
    for (_, arguments), (step, before) in zip(calls, steps, strict=True):
        assert torch.equal(step.logits, before)  # the host's own tensor
        after = arguments["model_output"]
        after = after.permute(0, 2, 3, 1).flatten(1, 2) if after.ndim == 4 else after
        moved = (after != before).any(-1)
        assert not (moved & ~step.free).any()
        changed += int(moved.sum())
    assert changed > 10


@every_case
def test_the_reward_rises_with_the_scale(make):
    pipe, run = make()
    reward = torch.randn(3, 8, 8, generator=seeded(5))

    def likeness(pixels):
        return (pixels * reward).sum((1, 2, 3))

    means = []
    for scale in (0.0, 30.0):
        with guide(pipe, likeness, GuidanceConfig(scale=scale)):
            tokens = torch.cat([run(seed).flatten(1) for seed in range(3)])
        normalize = getattr(pipe.config, "do_normalize", False)
        pixels = to_pixels(pipe.vqvae, codebook_of(pipe.vqvae)[tokens], normalize)
        means.append(likeness(pixels).mean().item())
    assert means[0] < means[1]


def test_inpainted_regions_stay():
    pipe, run = inpainting()
    image = torch.rand(1, 3, 8, 8, generator=seeded())
    given = pipe.encode(image).view(SIDE, SIDE)
    with guide(pipe, brightness, GuidanceConfig(scale=200.0)):
        tokens = run().view(-1, SIDE, SIDE)
    assert torch.equal(tokens[:, :, :2], given[:, :2].expand(2, -1, -1))
    pipe, run = amused_inpaint()
    bare = run()
    with guide(pipe, brightness, GuidanceConfig(scale=200.0)):
        assert torch.equal(run()[:, :, :2], bare[:, :, :2])


@pytest.mark.parametrize("case", ["text", "amused", "amused without cfg", "amused inpaint"])
def test_rewards_are_told_the_prompts(case):
    pipe, run = IMAGES[case]()
    seen = []

    class Scored:
        def score(self, pixels, prompts):
            seen.append(prompts)
            return brightness(pixels)

    with guide(pipe, Scored(), plain_config(num_draws=2)):
        run()
        run()
    assert all(prompts == ["a b", "c"] * 2 for prompts in seen)


def test_prompts_are_repeated_as_the_images_are():
    pipe, seen = tiny_amused(), []

    class Scored:
        def score(self, pixels, prompts):
            seen.append(prompts)
            return brightness(pixels)

    settings = {"height": 8, "width": 8, "num_inference_steps": 2, "output_type": "latent"}
    with guide(pipe, Scored(), plain_config(num_draws=1)):
        pipe(["a b", "c"], num_images_per_prompt=2, **settings)
    assert all(prompts == ["a b", "c"] * 2 for prompts in seen)


def test_a_class_or_nothing_has_no_prompts():
    pipe, run = masked_image()
    seen = []

    class Scored:
        def score(self, pixels, prompts):
            seen.append(prompts)
            return brightness(pixels)

    with guide(pipe, Scored()):
        run()
    assert set(seen) == {None}


def test_a_black_box_on_pixels_guides_by_the_score_function():
    pipe, run = masked_image(unmasking_order="random")
    template = torch.randn(3, 8, 8, generator=seeded(5))
    reward = BlackBoxReward(lambda image: (image * template).sum().item())
    means = []
    for scale in (0.0, 10.0):
        with guide(pipe, reward, GuidanceConfig(scale=scale, num_draws=64)):
            tokens = torch.cat([run(seed) for seed in range(4)])
        means.append(reward.score(pipe.decode(tokens)).mean().item())
    assert means[1] > means[0] + 1


class OnlyScore:
    def score(self, pixels, prompts):
        return brightness(pixels)


def test_rewards_of_the_other_kind_are_refused(pipe, reward):
    images, _ = masked_image()
    wrong = pytest.raises(ValueError, match="TextClassifierReward is for texts, and the pipeline makes images")
    with guide(images, reward), wrong:
        images()
    wrong = pytest.raises(ValueError, match="`reward` must be a callable from RelaxedTokens, got OnlyScore")
    with guide(pipe, OnlyScore()), wrong:
        pipe("a")
    wrong = pytest.raises(ValueError, match="Constant is for images, and the pipeline makes texts")
    with guide(pipe, Constant()), wrong:
        pipe("a")


@pytest.mark.parametrize("estimator", ["straight_through", "redge", "reinmax", "gumbel_softmax", "entropy_mix"])
def test_hard_estimators_show_finished_images(estimator, monkeypatch):
    pipe, run = masked_image()
    seen = []

    def spy(vqvae, embeddings, do_normalize):
        seen.append(embeddings.detach())
        return to_pixels(vqvae, embeddings, do_normalize)

    monkeypatch.setattr("redge_guidance.pipelines.image.masked.to_pixels", spy)
    with guide(pipe, brightness, plain_config(estimator=estimator, num_draws=1)):
        run()
    distance = torch.cdist(torch.cat(seen), codebook_of(pipe.vqvae)[None]).amin(-1)
    assert len(seen) == 4 * 3
    assert (distance.max() < 1e-3) == (estimator != "entropy_mix")  # which shows mixtures of tokens


def test_decode_chunk_size_of_guide_is_how_many_images_are_decoded_at_a_time(monkeypatch, pipe, reward):
    images, run = masked_image()
    sizes = []

    def counted(vqvae, embeddings, do_normalize):
        sizes.append(len(embeddings))
        return to_pixels(vqvae, embeddings, do_normalize)

    monkeypatch.setattr("redge_guidance.pipelines.image.masked.to_pixels", counted)
    with guide(images, brightness, plain_config(num_draws=2), decode_chunk_size=3):
        run()
    assert set(sizes) == {3, 1}  # of two images, twice each
    with (
        guide(pipe, reward, decode_chunk_size=1),
        pytest.raises(ValueError, match="`decode_chunk_size` is for pipelines of"),
    ):
        pipe("a")
    with guide(images, brightness, decode_chunk_size=0), pytest.raises(ValueError, match="must be an integer >= 1"):
        run()


@pytest.mark.parametrize(("config", "asks"), [({}, 3), ({"update": "natural"}, 2), ({"update": Natural(4, 1 / 4)}, 4)])
def test_a_step_asks_a_reward_of_images_once_an_update_of_which_there_are_three(config, asks):
    asked = []

    class Bright(ImageReward):
        def of_pixels(self, pixels, prompts=None):
            asked.append(len(pixels))
            return brightness(pixels)

    images, run = masked_image()
    with guide(images, Bright(), GuidanceConfig(every=1, **config)) as handle:
        run()
    assert len(asked) == len(handle.trace) * asks


@pytest.mark.parametrize("name", list(IMAGES))
def test_a_plain_function_of_pixels_has_the_defaults_of_rewards_of_images(name):
    asked = []

    def bright(pixels):
        asked.append(len(pixels))
        return brightness(pixels)

    pipe, run = IMAGES[name]()
    with guide(pipe, bright, GuidanceConfig(every=1)) as handle:
        run()
    assert "at most 2 nats" in handle.trace.aim
    assert len(asked) == 3 * len(handle.trace) > 0
    asked.clear()
    with guide(pipe, bright, GuidanceConfig(every=1, kl_budget=0.5, update="natural")) as handle:
        run()
    assert "at most 0.5 nats" in handle.trace.aim
    assert len(asked) == 2 * len(handle.trace)


def test_in_a_loop_and_among_particles_a_plain_function_of_pixels_is_one_of_images_too():
    config, asked = GuidanceConfig(every=1), []
    codes = (torch.rand(CODES, 3), lambda found: found.mean(1)[:, :, None, None].expand(-1, 3, 1, 1))
    loop = LogitsGuidance(brightness, config, images=codes, mask_token_id=CODES)
    assert "at most 2 nats" in loop.trace.aim
    assert "at most 1 nats" in Guidance(lambda tokens: tokens.weights.sum((1, 2))).trace.aim

    def bright(pixels):
        asked.append(len(pixels))
        return brightness(pixels)

    pipe = masked_image()[0]
    settings = {"num_images_per_prompt": 2, "num_inference_steps": 4, "output_type": "latent"}
    with particles(pipe, bright, ParticleConfig(2, intermediate="guidance"), config) as handle:
        pipe([1], **settings, generator=seeded())
    assert len(asked) >= 3 * len(handle.trace) > 0


def test_a_reward_of_texts_has_their_defaults_where_a_pipeline_makes_images_too():
    class OfTexts(Reward):
        modality = "text"

        def __call__(self, sample):
            return sample.weights.sum((1, 2))

    assert "at most 1 nats" in str(strength_of(OfTexts(), GuidanceConfig(), images=True))
    assert update_of(OfTexts(), GuidanceConfig(), images=True) == Natural(2, 1 / 2)
