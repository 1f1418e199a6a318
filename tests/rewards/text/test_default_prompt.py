"""A prompt that a checkpoint of sentence-transformers puts in front of every text by default."""

import json

import pytest
import torch

from redge_guidance.rewards import SentenceSimilarityReward
from tests.helpers.reward_models import encoder
from tests.helpers.tokenizers import tokenizer

TEXTS = ["the old doctor", "tom bought books near the river"]


@pytest.mark.parametrize("default", ["query", None])
def test_the_default_prompt_of_a_checkpoint_is_its_prefix(default, tmp_path):
    words = tokenizer("wordpiece")
    model = encoder(words)
    model.save_pretrained(tmp_path)
    words.save_pretrained(tmp_path)
    kind = "sentence_transformers.models.Transformer"
    (tmp_path / "modules.json").write_text(json.dumps([{"idx": 0, "name": "0", "path": "", "type": kind}]))
    prompts = {"prompts": {"query": "garden: ", "document": ""}, "default_prompt_name": default}
    (tmp_path / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    found = SentenceSimilarityReward.from_pretrained(tmp_path, "the river").score(TEXTS)
    expected = SentenceSimilarityReward(model, words, "the river", prefix="garden: " if default else "").score(TEXTS)
    torch.testing.assert_close(found, expected)
    bare = SentenceSimilarityReward.from_pretrained(tmp_path, "the river", prefix="").score(TEXTS)
    assert torch.equal(bare, found) == (default is None)
