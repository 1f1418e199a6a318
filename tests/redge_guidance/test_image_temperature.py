"""What a scheduler of images draws from after guidance is q at the temperature of the call."""

import pytest
import torch

from redge_guidance import guide
from redge_guidance.pipelines import scheduler as schedulers
from tests.helpers.hosts import JUMP, amused, seeded
from tests.helpers.images import tiny_image_pipeline
from tests.helpers.settings import plain_config
from tests.helpers.watching import guided, log_p, outputs_of

DIRECTION = torch.randn(3, generator=seeded(3))
CONFIG = plain_config(1.5, "straight_through", JUMP.update, num_draws=1, support=None)


def reward(pixels):
    return (pixels * DIRECTION.view(3, 1, 1)).sum((1, 2, 3))


def first_three(vqvae, embeddings, do_normalize, width=None):
    """A decoder that is linear: one pixel a token, three numbers of its codebook entry."""
    return embeddings[..., :3].transpose(1, 2)[..., None]


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_the_scheduler_draws_from_the_exact_tilt(monkeypatch, temperature):
    pipe, drawn_from = tiny_image_pipeline(), []
    original = schedulers.multinomial

    def spy(probs, row, generator):
        drawn_from.append(probs.clone())
        return original(probs, row, generator)

    monkeypatch.setattr(schedulers, "multinomial", spy)
    monkeypatch.setattr("redge_guidance.pipelines.image.masked.to_pixels", first_three)
    settings = {"temperature": temperature, "guidance_scale": 2.0, "output_type": "latent"}
    pairs, _ = guided(pipe, lambda: pipe([0, 2], generator=seeded(), **settings), reward, CONFIG)
    tilt = 1.5 * pipe.codebook[:, :3] @ DIRECTION
    for (step, _), probs in zip(pairs, drawn_from, strict=True):
        assert step.temperature == temperature
        expected = (step.logits[step.free] / temperature + tilt).softmax(-1)
        torch.testing.assert_close(probs, expected, atol=1e-5, rtol=1e-4)


def test_amused_draws_from_the_exact_tilt(monkeypatch):
    monkeypatch.setattr("redge_guidance.pipelines.image.vq_tokens.to_pixels", first_three)
    pipe, run = amused(height=8, width=8)
    calls = outputs_of(pipe)
    pairs, _ = guided(pipe, run, reward, CONFIG)
    tilt = 1.5 * pipe.vqvae.quantize.embedding.weight[:, :3] @ DIRECTION
    for (step, _), (_, arguments, _) in zip(pairs, calls, strict=True):
        given = arguments["model_output"].permute(0, 2, 3, 1).flatten(1, 2)[step.free]
        torch.testing.assert_close(given.softmax(-1), (log_p(step) + tilt).softmax(-1), atol=1e-5, rtol=1e-4)


def test_greedy_images_take_the_likeliest_of_q(monkeypatch):
    monkeypatch.setattr("redge_guidance.pipelines.image.masked.to_pixels", first_three)
    pipe = tiny_image_pipeline()
    settings = {"temperature": 0.0, "num_inference_steps": 1, "output_type": "latent"}
    bare = pipe([1], generator=seeded(), **settings).tokens
    with guide(pipe, reward, plain_config(30.0, "straight_through", JUMP.update, num_draws=1, support=None)):
        tokens = pipe([1], generator=seeded(), **settings).tokens
    logits = pipe.transformer(torch.full((1, 16), pipe.mask_token_id), class_labels=torch.tensor([1]))
    tilt = 30.0 * pipe.codebook[:, :3] @ DIRECTION
    assert torch.equal(tokens, (logits + tilt).argmax(-1))
    assert not torch.equal(tokens, bare)
