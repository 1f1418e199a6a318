"""Samplers of image tokens in a vocabulary of text and images, as Lumina-DiMOO and MMaDA have them."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from redge_guidance import GuidanceConfig, LogitsGuidance, guide
from tests.helpers.hosts import brightness, seeded

FIRST, CODES, MASK, BREAK = 10, 8, 18, 19  # text, image tokens, the mask, the end of a line
VOCABULARY = slice(FIRST, FIRST + CODES)
PROMPT, OTHER = 3, 5
CONFIG = GuidanceConfig(scale=30.0, num_draws=4)
ROW = [1, 2, PROMPT, MASK, MASK, BREAK, MASK, MASK, BREAK, 4]
PLACES = [3, 4, 6, 7]


class Model(nn.Module):
    """Logits of all tokens, which depend on all of them."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.table, self.mix, self.head = nn.Embedding(20, 16), nn.Linear(16, 16), nn.Linear(16, 20)

    def forward(self, input_ids, attention_mask=None):
        states = self.table(input_ids)
        return SimpleNamespace(logits=self.head(states + self.mix(states.mean(1, keepdim=True)).tanh()))


def decode(embeddings):
    return embeddings[..., 0].view(-1, 1, 2, 2).expand(-1, 3, 2, 2)


IMAGES = {"images": (torch.linspace(0, 1, CODES)[:, None], decode), "vocabulary": VOCABULARY, "mask_token_id": MASK}


@torch.no_grad()
def sampled(model, calls, batch=16, weight=1.5):
    """Image tokens `(batch, 4)`; `calls`: alone, one after the other as Lumina-DiMOO, or in one batch as MMaDA."""
    generator, ids = seeded(), torch.tensor([ROW] * batch)
    while (ids == MASK).any():
        other = ids.masked_fill(ids == PROMPT, OTHER)
        if calls == "alone":
            logits = model(ids).logits
        else:
            doubled = calls == "doubled"
            c, u = (
                model(torch.cat([ids, other])).logits.chunk(2) if doubled else (model(x).logits for x in (ids, other))
            )
            logits = (1 + weight) * c - weight * u
        at = (ids[0] == MASK).nonzero()[0, 0]
        drawn = torch.multinomial(logits[:, at, VOCABULARY].softmax(-1), 1, generator=generator)
        ids[:, at] = FIRST + drawn[:, 0]
    return ids[:, PLACES] - FIRST


@pytest.mark.parametrize("calls", ["alone", "two_calls", "doubled"])
def test_images_become_bright_and_only_their_tokens_are_moved(calls):
    model, seen = Model().eval(), []

    def reward(pixels):
        seen.append(pixels.shape)
        return brightness(pixels)

    told = {} if calls == "alone" else {"classifier_free": calls, "guidance_scale": 2.5}
    bare = sampled(model, calls)
    with guide(model, reward, CONFIG, **IMAGES, **told) as handle:
        guided = sampled(model, calls)
        with torch.no_grad():
            ids = torch.tensor([ROW] * 2)
            moved = model(ids).logits
    assert guided.float().mean() > bare.float().mean() + 1.5
    assert seen[0] == (64, 3, 2, 2)
    assert [step.progress for step in handle.trace][:4] == [0.0, 0.25, 0.5, 0.75]
    if calls == "alone":
        own = model(ids).logits
        function = LogitsGuidance(brightness, CONFIG, images=IMAGES["images"], mask_token_id=CODES)
        assert (own != moved)[..., VOCABULARY][:, PLACES].any()
        rest = torch.ones_like(own, dtype=torch.bool)
        rest[:, PLACES, VOCABULARY] = False
        assert torch.equal(own[rest], moved[rest])
        assert function(own[:, PLACES, VOCABULARY], torch.full((2, 4), CODES)).shape == (2, 4, CODES)


def test_a_second_call_with_another_prompt_is_told():
    model = Model().eval()
    with (
        guide(model, brightness, CONFIG, **IMAGES),
        pytest.raises(ValueError, match="a second call with another prompt"),
    ):
        sampled(model, "two_calls")


def test_what_does_not_fit_a_codebook():
    model, plain = Model().eval(), {name: value for name, value in IMAGES.items() if name != "vocabulary"}
    for wrong in (slice(FIRST, FIRST + CODES + 1), slice(FIRST, FIRST + CODES, 2), slice(None, CODES)):
        with pytest.raises(ValueError, match="`vocabulary` must be a slice of the 8 codes"):
            guide(model, brightness, **plain, vocabulary=wrong)
    for wrong in ({}, {"vocabulary": slice(15, 15 + CODES)}):
        with (
            guide(model, brightness, **plain, **wrong),
            pytest.raises(ValueError, match="of the 8 codes, got .* 20 log"),
        ):
            sampled(model, "alone")
    with pytest.raises(ValueError, match="`block_length` is for texts, got 2"):
        guide(model, brightness, **IMAGES, block_length=2)
    guidance = LogitsGuidance(brightness, images=IMAGES["images"], mask_token_id=CODES)
    with pytest.raises(ValueError, match="`free` must be all that is hidden"):
        guidance(torch.zeros(4, CODES), torch.full((4,), CODES), torch.arange(4) < 2)
