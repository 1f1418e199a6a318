"""Which ids a tokenizer has, which of them are special, and which end a text."""

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import ByT5Tokenizer, GenerationConfig, PreTrainedTokenizerFast

from redge_guidance.samples.tokens import RelaxedTokens
from redge_guidance.text import (
    before_text,
    end_token_ids,
    reserved_token_ids,
    special_token_ids,
    text_mask,
)
from tests.helpers.tiny import word_tokenizer
from tests.helpers.tokenizers import with_holes

PAD, EOS, MASK = 0, 1, 2


class Model:
    """As `redge_guidance` sees one: what it was told of generation."""

    def __init__(self, eos_token_id):
        self.generation_config = GenerationConfig(eos_token_id=eos_token_id)


def test_ids_are_those_that_the_tokenizer_has():
    tokenizer = with_holes()  # ids 0 to 3, 6, 9
    assert reserved_token_ids(tokenizer, 12) == [0, 2, 4, 5, 7, 8, 10, 11]
    assert reserved_token_ids(tokenizer, 9) == [0, 2, 4, 5, 7, 8]
    tokenizer.add_tokens(["new"])
    (new,) = tokenizer.convert_tokens_to_ids(["new"])
    assert new not in reserved_token_ids(tokenizer, 12)


@pytest.mark.parametrize("added", ["<|user|>", AddedToken("<|user|>", special=True, normalized=False)])
def test_special_is_what_the_backend_calls_special(added):
    tokenizer = word_tokenizer()
    tokenizer.add_tokens([added], special_tokens=True)
    assert 8 in special_token_ids(tokenizer)
    assert reserved_token_ids(tokenizer, 9) == [0, 2, 8]
    ids = torch.tensor([[3, 8, 4]])
    tokens = RelaxedTokens(ids, torch.zeros(1, 3).bool(), torch.zeros(0, 9), tokenizer=tokenizer)
    assert tokens.text_positions().tolist() == [[True, False, True]]
    assert tokens.texts() == ["a b"]


def test_special_tokens_of_a_slow_tokenizer_are_left_out_of_texts():
    tokenizer = ByT5Tokenizer()
    tokenizer.add_tokens([AddedToken("<|user|>", special=True)])
    (user,) = tokenizer.convert_tokens_to_ids(["<|user|>"])
    assert user in special_token_ids(tokenizer)
    ids = torch.tensor([[*tokenizer("ab", add_special_tokens=False).input_ids, user]])
    tokens = RelaxedTokens(ids, torch.zeros_like(ids).bool(), torch.zeros(0, user + 1), tokenizer=tokenizer)
    assert tokens.texts() == ["ab"]


def test_ends_are_what_the_generation_config_names_too():
    tokenizer = word_tokenizer()
    tokenizer.add_tokens(["<|im_end|>"], special_tokens=True)
    assert end_token_ids(tokenizer) == (1,)
    assert end_token_ids(tokenizer, Model([8, 1])) == (1, 8)
    assert end_token_ids(tokenizer, Model(8)) == (1, 8)
    assert end_token_ids(tokenizer, Model(torch.tensor([8]))) == (1, 8)
    assert end_token_ids(tokenizer, Model(None)) == (1,)
    assert end_token_ids(tokenizer, Model([3, MASK])) == (1,)  # a word, and the mask
    assert end_token_ids(None, Model(3)) == ()
    assert 8 not in reserved_token_ids(tokenizer, 9, (1, 8))
    ids = torch.tensor([[3, 8, 4, 1]])
    assert text_mask(ids, tokenizer, ends=(1, 8)).int().tolist() == [[1, 1, 0, 0]]


def test_a_mask_says_what_is_padding_and_not_the_id():
    ids = torch.tensor([[PAD, PAD, 3, PAD, 4]])
    valid = torch.tensor([[0, 1, 1, 1, 1]]).bool()
    assert text_mask(ids, word_tokenizer(), valid).int().tolist() == [[0, 1, 1, 1, 1]]


@pytest.mark.parametrize("role", ["mask_token", "unk_token", "bos_token", "cls_token"])
def test_what_stands_for_something_else_is_not_guessed_to_be_padding(role):
    tokenizer = word_tokenizer()
    setattr(tokenizer, role, "[PAD]")
    assert text_mask(torch.tensor([[PAD, 3, PAD, 4]]), tokenizer).all()


def test_no_text_ends_before_what_is_written():
    free = torch.tensor([[1, 0, 1, 1], [0, 1, 1, 1], [0, 0, 0, 0]]).bool()
    assert before_text(free, ~free).int().tolist() == [[1, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]


def test_a_vocabulary_is_looked_at_once():
    calls = []

    class Counting(PreTrainedTokenizerFast):
        def get_vocab(self):
            calls.append(1)
            return super().get_vocab()

    base = Tokenizer(models.WordLevel({"[PAD]": 0, "a": 1}, unk_token="[PAD]"))
    base.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = Counting(tokenizer_object=base, pad_token="[PAD]")
    assert reserved_token_ids(tokenizer, 3) == [0, 2]
    before = len(calls)
    assert reserved_token_ids(tokenizer, 3) == [0, 2]
    assert len(calls) == before
    tokenizer.unk_token = "a"
    assert reserved_token_ids(tokenizer, 3) == [0, 1, 2]
