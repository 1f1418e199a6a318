"""Soft samples, `hard=False`: what a reward is shown, and what guidance makes of its gradient there."""

from dataclasses import replace

import pytest
import torch

import redge_guidance
from redge_guidance import GuidanceConfig, guide
from redge_guidance.estimators import ESTIMATORS, ReDGE, ReinforceLOO, StraightThrough
from redge_guidance.reward import ImageReward
from redge_guidance.step import DenoisingStep
from redge_guidance.tilting import guided_logits
from redge_guidance.updates import Natural
from tests.helpers.hosts import count_of_a, seeded
from tests.helpers.images import SIDE, tiny_image_pipeline
from tests.helpers.settings import PLAIN
from tests.helpers.tiny import WORDS, tiny_pipeline, tiny_uniform, word_tokenizer

SOFT = {name: kind(hard=False) for name, kind in ESTIMATORS.items() if kind is not ReinforceLOO}
DRAWN = ("gumbel_softmax", "redge", "redge_cov", "reindge")  # whose soft samples differ from draw to draw
each = pytest.mark.parametrize("name", SOFT)


def seen_of_texts(pipe, estimator):
    """All that a reward is shown in one call, and with it embeddings by the table that is the identity."""
    seen, table = [], torch.eye(len(WORDS))

    def reward(tokens):
        embedded = tokens.embed(table)
        seen.append((tokens, embedded.detach()))
        return embedded[..., 3].sum(-1)

    with guide(pipe, reward, GuidanceConfig(**(PLAIN | {"estimator": estimator, "support": None, "num_draws": 2}))):
        pipe(["", "a [MASK]"], num_inference_steps=2, generator=seeded())
    return seen


@each
@pytest.mark.parametrize("make", [tiny_pipeline, tiny_uniform])
def test_a_reward_of_texts_is_shown_points_inside_the_simplex(make, name):
    for tokens, embedded in seen_of_texts(make(), SOFT[name]):
        weights = tokens.weights.detach()
        assert not tokens.hard
        torch.testing.assert_close(weights.sum(-1), torch.ones(len(weights)))
        assert weights.min() >= 0
        assert (weights.max(-1).values < 0.99).float().mean() > 0.2
        assert torch.equal(tokens.ids[tokens.free], weights.argmax(-1))
        torch.testing.assert_close(embedded[tokens.free], weights)
        first, second = weights.chunk(2)
        assert torch.equal(first, second) == (name not in DRAWN)


@pytest.mark.parametrize("name", sorted(set(SOFT) - {"soft", "entropy_mix"}))  # these are no corners, or not always
def test_hard_ones_are_corners(name):
    tokens, _ = seen_of_texts(tiny_pipeline(), replace(SOFT[name], hard=True))[0]
    assert tokens.hard
    assert torch.equal(
        tokens.weights.detach(), torch.nn.functional.one_hot(tokens.ids[tokens.free], len(WORDS)).float()
    )


def test_without_noise_they_are_what_the_model_says():
    """The prediction of the model, called by itself, without the tokens that may not be drawn."""
    pipe = tiny_pipeline()
    tokens, _ = seen_of_texts(pipe, StraightThrough(hard=False))[0]
    ids = torch.where(tokens.free, pipe.tokenizer.mask_token_id, tokens.ids)[:2]
    with torch.no_grad():
        logits = pipe.model(input_ids=ids, attention_mask=ids != pipe.tokenizer.pad_token_id).logits
    found = tokens.weights.detach()[: int(tokens.free[:2].sum())]
    expected = logits[tokens.free[:2]].masked_fill(found == 0, -torch.inf).softmax(-1)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["straight_through", "soft"])
def test_the_gradient_is_taken_at_the_soft_sample(name):
    """Of a reward that is not linear: with r = <w, a>^2 it is 2 <p, a> a at w = p, and q = p exp(s G) / Z."""
    torch.manual_seed(0)
    logits, a = torch.randn(1, 3, len(WORDS)), torch.randn(len(WORDS))
    free = torch.ones(1, 3, dtype=torch.bool)
    step = DenoisingStep(logits, torch.full((1, 3), 2), free, torch.ones_like(free), 1.0, 0.0, word_tokenizer())
    chosen = {"scale": 1.5, "update": Natural(1, 1.0), "support": None, "estimator": SOFT[name]}
    config = GuidanceConfig(**(PLAIN | chosen))
    new, _ = guided_logits(step, lambda tokens: tokens.embed(a[:, None]).square().sum((1, 2)), config, seeded())
    p = logits[0].masked_fill(new == -torch.inf, -torch.inf).softmax(-1)
    g = 2 * (p @ a)[:, None] * a
    torch.testing.assert_close(new.softmax(-1), (p.log() + 1.5 * g).softmax(-1), atol=1e-3, rtol=1e-2)


class Watched(ImageReward):
    """The brightness; notes what it was shown."""

    def __init__(self):
        self.seen = []

    def __call__(self, images):
        self.seen.append((images.tokens, images.pixels.detach()))
        return images.pixels.mean((1, 2, 3))


@each
def test_a_reward_of_images_is_shown_decoded_mixtures_of_codes(name):
    """As diffusers' `VQModel` decodes the same mixtures."""
    pipe, reward = tiny_image_pipeline(), Watched()
    with guide(pipe, reward, GuidanceConfig(**(PLAIN | {"estimator": SOFT[name], "num_draws": 1, "support": None}))):
        pipe(0, num_images_per_prompt=2, num_inference_steps=2, generator=seeded())
    codes = pipe.vqvae.quantize.embedding.weight.detach()
    for tokens, pixels in reward.seen:
        mixed = codes[tokens.ids.clamp(max=len(codes) - 1)]
        mixed[tokens.free] = tokens.weights.detach()[:, : len(codes)] @ codes
        latents = mixed.transpose(1, 2).unflatten(2, (SIDE, SIDE))
        with torch.no_grad():
            expected = pipe.vqvae.decode(latents, force_not_quantize=True).sample / 2 + 0.5
        torch.testing.assert_close(pixels, expected.clamp(0, 1), atol=1e-5, rtol=1e-4)
        assert (tokens.weights.max(-1).values < 0.99).float().mean() > 0.2


@each
def test_they_guide(name):
    """More a's than without, by the default strength and by a fixed one."""
    pipe = tiny_pipeline()
    bare = pipe([""] * 24, num_inference_steps=3, generator=seeded()).texts
    for config in (GuidanceConfig(estimator=SOFT[name]), GuidanceConfig(scale=4.0, estimator=SOFT[name])):
        with guide(pipe, count_of_a, config) as handle:
            texts = pipe([""] * 24, num_inference_steps=3, generator=seeded()).texts
        assert sum(text.count("a") for text in texts) > 1.2 * sum(text.count("a") for text in bare) + 5
        assert all(step.kl > 0 for step in handle.trace)


def test_a_set_up_says_so(tmp_path):
    """A file of settings, as the command line reads it, and what is saved."""
    file = tmp_path / "setup.yaml"
    file.write_text("reward: [LengthReward: {maximum: 4}]\nestimator: {redge: {hard: false, num_steps: 2}}\n")
    setup = redge_guidance.load(file)
    assert setup.config.estimator == ReDGE(2, hard=False)
    assert GuidanceConfig.from_json(setup.config.to_json()) == setup.config
    other = tmp_path / "other.yaml"
    redge_guidance.save(other, setup.pipe, setup.reward, setup.config)
    assert redge_guidance.load(other).config == setup.config
