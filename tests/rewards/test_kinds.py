"""A reward of the other kind of samples is refused with a word on which kind it is."""

import pytest
import torch

from redge_guidance.rewards import BlackBoxReward, LexicalReward
from redge_guidance.samples.images import ImageDecoder, RelaxedImages
from tests.helpers.image_rewards import classifier, clip
from tests.helpers.reward_models import relaxed
from tests.helpers.tiny import tiny_reward, word_tokenizer


def texts(prompts=None):
    return relaxed(word_tokenizer(), ["a b", "c d"], prompts=prompts)


def decode(embeddings):
    """`(batch, length, 3)` to stripes, one a token."""
    stripes = embeddings.transpose(1, 2).repeat_interleave(3, -1)
    return stripes[..., None].expand(*stripes.shape, 9)


def images():
    codebook = torch.rand(8, 3, generator=torch.Generator().manual_seed(0))
    return RelaxedImages(texts(), ImageDecoder(codebook, decode))


class OnlyScore:
    """As the preference models of the field have it."""

    def score(self, pixels, prompts):
        return pixels.mean((1, 2, 3))


@pytest.mark.parametrize("reward", [LexicalReward("a"), tiny_reward()], ids=["words", "model"])
def test_a_reward_of_texts_is_not_shown_images(reward):
    with pytest.raises(ValueError, match=f"`reward` {reward.name} is for texts, and the pipeline makes images"):
        images().evaluate(reward)


def test_a_reward_of_images_is_not_shown_texts():
    for reward in (classifier(), clip(target="a")):
        with pytest.raises(ValueError, match=f"`reward` {reward.name} is for images, and the pipeline makes texts"):
            texts().evaluate(reward)
    with pytest.raises(ValueError, match="`reward` must be a callable from RelaxedTokens, got OnlyScore"):
        texts().evaluate(OnlyScore())


def test_a_lambda_of_the_other_kind():
    with pytest.raises(ValueError, match="shown RelaxedTokens, since the pipeline makes texts, .* a reward of images"):
        texts().evaluate(lambda pixels: pixels.mean((1, 2, 3)))
    with pytest.raises(ValueError, match="shown RelaxedTokens, since the pipeline makes texts, .* a reward of images"):
        texts().evaluate(lambda pixels: torch.ones(3) @ pixels)
    with pytest.raises(ValueError, match="shown Tensor, since the pipeline makes images, .* a reward of texts"):
        images().evaluate(lambda tokens: tokens.embed(torch.ones(8, 1)).sum((1, 2)))


def test_an_error_of_the_reward_itself_stays():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        texts().evaluate(lambda tokens: tokens.weights.nothing)


def test_what_each_kind_is_shown():
    sample = images()
    expected = sample.pixels.mean((1, 2, 3))
    torch.testing.assert_close(sample.evaluate(lambda pixels: pixels.mean((1, 2, 3))), expected)
    torch.testing.assert_close(sample.evaluate(OnlyScore()), expected)
    reward = classifier()
    torch.testing.assert_close(sample.evaluate(reward), reward.of_pixels(sample.pixels))
    torch.testing.assert_close(sample.evaluate(reward).detach(), reward.score(sample.finished()))
    black_box = BlackBoxReward(lambda image: image.mean())
    torch.testing.assert_close(sample.evaluate(black_box), expected.detach())
    words = LexicalReward("a")
    torch.testing.assert_close(texts().evaluate(words), torch.tensor([1.0, 0.0]))
