"""Tokens drawn one by one seldom are those that a tokenizer makes: the value is that of the text they decode to."""

import functools
import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import ByT5Tokenizer, EsmTokenizer, PreTrainedTokenizerFast

from redge_guidance import RelaxedTokens
from redge_guidance.rewards import FluencyReward, TextClassifierReward
from redge_guidance.rewards.reading.alignment import same_tokens
from tests.helpers.kinds import model
from tests.helpers.reward_models import causal_lm, relaxed
from tests.helpers.tokenizers import TEXTS, tokenizer

KINDS = ("byte", "wordpiece", "unigram", "fallback")
pytestmark = pytest.mark.filterwarnings("ignore:.*of the generated tokens get a gradient")


@functools.cache
def rewards(kind):
    words = tokenizer(kind)
    classifier = model("Llama", "SequenceClassification", words, num_labels=2)
    return TextClassifierReward(classifier, words, 1, against=0), FluencyReward(causal_lm(words), words)


def drawn(words, rows):
    """Texts of these tokens, with an end and free everywhere."""
    end = words.eos_token_id if words.eos_token_id is not None else words.sep_token_id
    width = max(map(len, rows)) + 1
    ids = torch.tensor([[*row, *[end] * (width - len(row))] for row in rows])
    weights = torch.nn.functional.one_hot(ids.flatten(), len(words)).float().requires_grad_()
    return RelaxedTokens(ids, torch.ones_like(ids, dtype=torch.bool), weights, tokenizer=words)


def ordinary(words):
    return sorted(set(words.get_vocab().values()) - set(words.all_special_ids))


@given(st.sampled_from(KINDS), st.sampled_from(KINDS), st.data())
@settings(max_examples=30)
def test_value_in_guidance_is_the_score_of_what_was_drawn(generator, judge, data):
    words = tokenizer(generator)
    tokens = st.lists(st.sampled_from(ordinary(words)), max_size=6)
    relaxed_tokens = drawn(words, data.draw(st.lists(tokens, min_size=1, max_size=3)))
    for reward in rewards(judge):
        value = reward(relaxed_tokens)
        torch.testing.assert_close(value, reward.score(relaxed_tokens.texts()), atol=1e-5, rtol=1e-5)
        alone = [reward(drawn(words, [row.tolist()])) for row in relaxed_tokens.ids]
        torch.testing.assert_close(value, torch.cat(alone), atol=1e-5, rtol=1e-5)


def test_a_row_that_is_cut_otherwise_leaves_the_others_as_they_are():
    words, (reward, _) = tokenizer("byte"), rewards("byte")
    usual = words(" the doctor", add_special_tokens=False).input_ids
    letters = [words.convert_tokens_to_ids(letter) for letter in "doctor"]
    tokens = drawn(words, [usual, letters, usual])
    torch.testing.assert_close(reward(tokens), reward.score(tokens.texts()))
    assert words(tokens.texts()[1]).input_ids != letters
    (together,) = torch.autograd.grad(reward(tokens).sum(), tokens.weights)
    alone = [drawn(words, [row.tolist()]) for row in tokens.ids]
    each = [torch.autograd.grad(reward(one).sum(), one.weights)[0][: tokens.ids.shape[1]] for one in alone]
    torch.testing.assert_close(together, torch.cat(each))
    assert [rows.tolist() for rows, _ in reward.reader(tokens, reward.frames(3))] == [[0, 2], [1]]


def changed(words, change):
    """A tokenizer like `words` with its stored state changed by a function."""
    state = json.loads(words.backend_tokenizer.to_str())
    change(state)
    names = {role: getattr(words, role) for role in ("eos_token", "pad_token", "unk_token", "mask_token", "sep_token")}
    made = Tokenizer.from_str(json.dumps(state))
    return PreTrainedTokenizerFast(tokenizer_object=made, **{k: v for k, v in names.items() if v is not None})


def _other_scores(state):
    state["model"]["vocab"] = [[token, -float(k % 7) - 1] for k, (token, _) in enumerate(state["model"]["vocab"])]


def _other_merges(state):
    state["model"]["merges"] = state["model"]["merges"][:20]


def _longer_words(state):
    state["model"]["vocab"]["thedoctor"] = len(state["model"]["vocab"])


def _lower_case(state):
    state["normalizer"] = {"type": "Lowercase"}


@pytest.mark.parametrize(
    ("kind", "change"),
    [("unigram", _other_scores), ("byte", _other_merges), ("wordpiece", _longer_words), ("byte", _lower_case)],
)
def test_tokenizers_of_one_kind_that_cut_otherwise(kind, change):
    words = tokenizer(kind)
    other = changed(words, change)
    assert same_tokens(words, other) is None
    assert same_tokens(words, changed(words, lambda state: None)) is not None
    reward = TextClassifierReward(model("Llama", "SequenceClassification", other, num_labels=2), other, 1)
    tokens = relaxed(words, TEXTS[:4])
    torch.testing.assert_close(reward(tokens), reward.score(tokens.texts()), atol=1e-5, rtol=1e-5)


def test_a_model_with_more_words_added_reads_the_rest_directly():
    words = tokenizer("byte")
    more = changed(words, lambda state: None)
    more.add_tokens(["doctor"])
    assert same_tokens(words, more) is not None
    reward = TextClassifierReward(model("Llama", "SequenceClassification", more, num_labels=2), more, 1)
    tokens = relaxed(words, ["The old doctor", "the river"])
    torch.testing.assert_close(reward(tokens), reward.score(tokens.texts()))
    assert [rows.tolist() for rows, _ in reward.reader(tokens, reward.frames(2))] == [[1], [0]]


@pytest.fixture
def residues(tmp_path):
    names = ["<cls>", "<pad>", "<eos>", "<unk>", *"LAGVSERTIDPKQNFYMHWCXBUZO", ".", "-", "<null_1>", "<mask>"]
    (tmp_path / "vocab.txt").write_text("\n".join(names), encoding="utf-8")
    return EsmTokenizer(str(tmp_path / "vocab.txt"))


def test_residues_by_a_tokenizer_that_tells_no_characters(residues):
    assert not residues.is_fast
    classifier = model("Esm", "SequenceClassification", residues, num_labels=2)
    reward = TextClassifierReward(classifier, residues, 1, against=0)
    texts = ["M K T A", "M A L W M R", "G"]
    with torch.no_grad():
        own = [classifier(**residues(text, return_tensors="pt")).logits[0] for text in texts]
    expected = torch.stack([one[1] - one[0] for one in own])
    torch.testing.assert_close(reward.score(texts), expected, atol=1e-5, rtol=1e-5)
    for generator in (residues, tokenizer("byte")):
        tokens = relaxed(generator, texts)
        torch.testing.assert_close(reward(tokens), expected, atol=1e-5, rtol=1e-5)
        (grad,) = torch.autograd.grad(reward(tokens).sum(), tokens.weights)
        assert grad.abs().sum() > 0
    assert same_tokens(residues, residues) is not None


@pytest.mark.parametrize("generator", ["byte", "unigram"])
def test_bytes_by_a_tokenizer_that_tells_no_characters(generator):
    words = ByT5Tokenizer()
    reward = TextClassifierReward(model("Llama", "SequenceClassification", words, num_labels=2), words, 1)
    tokens = relaxed(tokenizer(generator), TEXTS[:3])
    torch.testing.assert_close(reward(tokens), reward.score(tokens.texts()), atol=1e-5, rtol=1e-5)
    own = relaxed(words, ["the river", "café"])
    torch.testing.assert_close(reward(own), reward.score(own.texts()), atol=1e-5, rtol=1e-5)
