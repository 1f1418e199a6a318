import pickle

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, ModernBertForSequenceClassification

from redge_guidance import RelaxedTokens, straight_through
from redge_guidance.rewards import TextClassifierReward
from tests.helpers.tiny import WORDS, tiny_config, tiny_reward, word_tokenizer

PAD, EOS = 0, 1


def tokens_of(rows, free=None):
    ids = torch.tensor(rows)
    free = torch.zeros_like(ids).bool() if free is None else free
    weights = torch.nn.functional.one_hot(ids[free], len(WORDS)).float().requires_grad_()
    return RelaxedTokens(ids, free, weights, tokenizer=word_tokenizer())


def test_value_for_hard_tokens_is_the_score_of_their_text():
    reward = tiny_reward()
    tokens = tokens_of([[3, 4, EOS, EOS], [PAD, 5, 6, EOS], [PAD, PAD, 7, EOS]])
    assert tokens.texts() == ["a b", "c d", "e"]
    torch.testing.assert_close(reward(tokens), reward.score(["a b", "c d", "e"]))


def test_value_is_the_log_probability_of_the_label():
    reward = tiny_reward("bad")
    logits = reward.model(input_ids=torch.tensor([[3, 4]])).logits  # this tokenizer adds nothing
    torch.testing.assert_close(reward.score(["a b"]), logits.log_softmax(-1)[:, 0])
    assert reward.score([]).shape == (0,)
    total = reward.score(["a b", "e"]).exp() + tiny_reward("good").score(["a b", "e"]).exp()
    torch.testing.assert_close(total, torch.ones(2))


def test_left_padding_does_not_count_with_absolute_positions():
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=8, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, num_labels=1
    )
    reward = TextClassifierReward(BertForSequenceClassification(config), word_tokenizer())
    padded, alone = tokens_of([[PAD, PAD, 3, 4, EOS]]), tokens_of([[3, 4, EOS]])
    # BERT pools its first position; a left-padded row has to be read from its own first token.
    torch.testing.assert_close(reward(padded), reward(alone))


def test_gradient_reaches_the_logits_and_the_model_is_frozen():
    reward = tiny_reward()
    logits = torch.zeros(2, len(WORDS))
    logits[:, :3] = -torch.inf  # words only
    logits.requires_grad_()
    free = torch.tensor([[False, True, True, False]])
    weights = straight_through(logits, generator=torch.Generator().manual_seed(3))
    ids = torch.tensor([[3, 0, 0, EOS]]).masked_scatter(free, weights.argmax(-1))
    reward(RelaxedTokens(ids, free, weights, tokenizer=word_tokenizer())).sum().backward()
    assert logits.grad.abs().sum() > 0
    assert not reward.model.training
    assert all(not p.requires_grad and p.grad is None for p in reward.model.parameters())


def test_regression_model_gives_its_output():
    torch.manual_seed(0)
    model = ModernBertForSequenceClassification(tiny_config(num_labels=1, classifier_pooling="mean"))
    reward = TextClassifierReward(model, word_tokenizer())
    torch.testing.assert_close(reward.score(["a b"]), model(input_ids=torch.tensor([[3, 4]])).logits[:, 0])
    with pytest.raises(ValueError, match="`label` must be None for a model with one output, got 'good'"):
        TextClassifierReward(model, word_tokenizer(), "good")


@pytest.mark.parametrize("label", ["good", "GOOD", 1, "1"])
def test_labels_by_name_and_index(label):
    assert torch.equal(tiny_reward(label).score(["a b"]), tiny_reward("good").score(["a b"]))


@pytest.mark.parametrize("label", ["great", 2, -1, None, True])
def test_unknown_labels(label):
    with pytest.raises(ValueError, match=r"`label` must be one of bad \(0\), good \(1\), got"):
        tiny_reward(label)


def test_predict_names_the_likeliest_label():
    reward = tiny_reward()
    texts = ["a a", "b b", "c a"]
    assert reward.predict(texts) == ["good", "bad", "good"]


def test_save_and_load(tmp_path):
    reward = tiny_reward()
    reward.model.save_pretrained(tmp_path)
    reward.tokenizer.save_pretrained(tmp_path)
    loaded = TextClassifierReward.from_pretrained(tmp_path, label="good")
    torch.testing.assert_close(loaded.score(["a b"]), reward.score(["a b"]))
    torch.testing.assert_close(pickle.loads(pickle.dumps(loaded)).score(["a b"]), loaded.score(["a b"]))


def test_unknown_names():
    with pytest.raises(ValueError, match="`builtin:nope` is not an embedded checkpoint"):
        TextClassifierReward.from_pretrained("builtin:nope", label=0)
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        TextClassifierReward.from_pretrained("./nope", label=0)


def test_embedded_classifier_knows_good_from_bad():
    reward = TextClassifierReward.from_pretrained("builtin:sentiment", label="positive")
    texts = ["I love this wonderful book.", "He is a horrible liar.", "The train leaves at six."]
    assert reward.predict(texts) == ["positive", "negative", "neutral"]
    assert reward.score(texts).argmax() == 0
