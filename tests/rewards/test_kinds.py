"""A reward of the other kind of samples is refused with a word on which kind it is."""

import re

import pytest
import torch

from redge_guidance.evaluation import checked
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


@pytest.mark.parametrize(
    "reward",
    [
        lambda text: text.count("a"),
        lambda text: len(text.split()),
        lambda text: float("a" in text),
        lambda text: float(bool(re.search("a", text))),
        lambda text: text.lower(),
    ],
)
def test_a_function_of_strings_is_told_what_makes_it_a_reward(reward):
    with pytest.raises(ValueError, match=r"Is it .*a function of strings, which `BlackBoxReward\(function\)` makes"):
        texts().evaluate(reward)


@pytest.mark.parametrize(
    "reward",
    [
        lambda tokens: tokens.prompts,
        lambda tokens: tokens.log_probs_of(torch.tensor([3])),
        lambda text: text.count("a"),
        lambda text: text.lower(),
        lambda text: float("a" in text),
        lambda text: float(bool(re.search("a", text))),
    ],
)
def test_a_function_of_texts_that_is_shown_images_is_not_asked_whether_it_is_of_images(reward):
    with pytest.raises(ValueError, match=r"the pipeline makes images, and failed: .*\. Is it a reward of texts\?"):
        images().evaluate(reward)


def test_a_number_where_a_tensor_was_to_be():
    with pytest.raises(ValueError, match=r"`reward` must return a floating point tensor, got int; .*`BlackBoxReward"):
        checked(texts().evaluate(lambda text: len(text)), 2, "reward")


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
