"""Which ids a tokenizer has, which of them are special, and which end a text."""

import itertools

import pytest
import torch
from diffusers import DiscreteDDIMScheduler
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertForMaskedLM, ByT5Tokenizer, GenerationConfig, PreTrainedTokenizerFast

from redge_guidance import GuidanceConfig, guide
from redge_guidance.pipelines import MaskedDiffusionScheduler, MaskedTextPipeline, UniformTextPipeline
from redge_guidance.pipelines.text.families import ModelFamily, set_mask_token
from redge_guidance.pipelines.text.loading import check_model
from redge_guidance.rewards import LengthReward
from redge_guidance.samples.tokens import RelaxedTokens
from redge_guidance.text import (
    before_text,
    end_token_ids,
    reserved_token_ids,
    special_token_ids,
    text_mask,
)
from tests.helpers.hosts import seeded
from tests.helpers.tiny import tiny_pipeline, tiny_uniform, word_tokenizer
from tests.helpers.tokenizers import with_holes
from tests.helpers.watching import linear

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
    for ends in ((1,), (1, 8), (1,)):  # each has a list of its own
        assert (8 in reserved_token_ids(tokenizer, 9, ends)) == (8 not in ends)
    ids = torch.tensor([[3, 8, 4, 1]])
    assert text_mask(ids, tokenizer, ends=(1, 8)).int().tolist() == [[1, 1, 0, 0]]


@pytest.mark.parametrize(("role", "taken"), [("mask", False), ("unk", False), ("bos", True), ("sep", True)])
def test_what_a_config_calls_an_end_is_none_where_it_is_a_mask_or_unknown(role, taken):
    tokenizer = word_tokenizer()
    setattr(tokenizer, f"{role}_token", "c")
    assert end_token_ids(tokenizer, Model([1, tokenizer.convert_tokens_to_ids("c")])) == ((1, 5) if taken else (1,))


def test_a_mask_says_what_is_padding_and_not_the_id():
    ids = torch.tensor([[PAD, PAD, 3, PAD, 4]])
    valid = torch.tensor([[0, 1, 1, 1, 1]]).bool()
    assert text_mask(ids, word_tokenizer(), valid).int().tolist() == [[0, 1, 1, 1, 1]]


@pytest.mark.parametrize("role", ["mask_token", "unk_token", "bos_token", "cls_token"])
def test_what_stands_for_something_else_is_not_guessed_to_be_padding(role):
    tokenizer = word_tokenizer()
    setattr(tokenizer, role, "[PAD]")
    assert text_mask(torch.tensor([[PAD, 3, PAD, 4]]), tokenizer).all()


def test_one_token_for_beginning_end_and_padding_pads():
    """As GPT-2 has it where its end is told to be its padding."""
    tokenizer = word_tokenizer()
    tokenizer.bos_token = tokenizer.pad_token = tokenizer.eos_token
    assert text_mask(torch.tensor([[1, 1, 3, 4]]), tokenizer).int().tolist() == [[0, 0, 1, 1]]


def test_padding_that_was_given_ends_nothing():
    given = torch.tensor([[1, 1, 0, 0]]).bool()
    assert text_mask(torch.tensor([[3, PAD, 4, PAD]]), word_tokenizer(), given=given).int().tolist() == [[1, 1, 1, 0]]


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


@pytest.mark.filterwarnings("ignore:.*moved nothing in this call")  # what is wanted may not be drawn
@pytest.mark.parametrize("make", [tiny_pipeline, tiny_uniform])
def test_what_the_backend_calls_special_is_refused_and_never_drawn(make):
    pipe = make()
    pipe.tokenizer.add_tokens(["d", "e"], special_tokens=True)  # words of the model that are no named special tokens
    with pytest.raises(ValueError, match="`prompt` must not contain reserved tokens, got 'd'"):
        pipe("a d")
    with guide(pipe, linear(torch.tensor([0.0, 0, 0, 0, 0, 0, 9, 9])), GuidanceConfig(5.0, support=None)):
        drawn = pipe(["a", "b"] * 4, generator=seeded(), num_inference_steps=3).sequences
    assert set(drawn.unique().tolist()) <= {0, 1, 3, 4, 5}


@pytest.mark.parametrize("kind", [MaskedTextPipeline, UniformTextPipeline])
def test_a_vocabulary_with_holes_is_drawn_from_to_its_highest_id(kind):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = BertForMaskedLM(BertConfig(vocab_size=12, max_position_embeddings=16, **sizes))
    scheduler = MaskedDiffusionScheduler() if kind is MaskedTextPipeline else DiscreteDDIMScheduler()
    pipe = kind(model.eval(), with_holes(), scheduler, length=8)
    pipe.set_progress_bar_config(disable=True)
    drawn = pipe([""] * 16, generator=seeded(), num_inference_steps=4).sequences
    assert set(drawn.unique().tolist()) == {1, 3, 6, 9}
    check_model(model, ModelFamily(), with_holes())


def test_a_mask_in_a_hole_of_the_vocabulary_is_one_clear_error():
    for wanted in (4, 10):
        tokenizer = with_holes()
        tokenizer.mask_token = None
        with pytest.raises(ValueError, match="mask_token_id"):
            set_mask_token(tokenizer, ModelFamily(), wanted)


def test_a_length_ends_where_the_sample_does():
    reward, ids = LengthReward(0, 1), torch.tensor([[3, 4, 5, 7]])
    weights = torch.nn.functional.one_hot(ids[0], 8).float().requires_grad_()
    free = torch.ones_like(ids).bool()
    tokenizer = word_tokenizer()
    tokenizer.add_tokens(["d", "e"], special_tokens=True)
    tokens = RelaxedTokens(ids, free, weights, tokenizer=tokenizer, ends=(1, 6, 7))
    assert tokens.texts() == ["a b c"]
    (slope,) = torch.autograd.grad(reward(tokens).sum(), weights)
    assert torch.equal(slope[:, 1], slope[:, 6])
    assert slope[1, 6] > 0


def test_a_length_that_was_asked_of_another_sample_ends_where_this_one_does():
    ids, tokenizer = torch.tensor([[3, 4, 5, 7]]), word_tokenizer()
    slopes = {}
    for ends, reward in itertools.product([(1,), (1, 6)], [used := LengthReward(0, 1), None]):
        weights = torch.nn.functional.one_hot(ids[0], 8).float().requires_grad_()
        tokens = RelaxedTokens(ids, torch.ones_like(ids).bool(), weights, tokenizer=tokenizer, ends=ends)
        asked = (reward or LengthReward(0, 1))(tokens)
        slopes[ends, reward is used] = torch.autograd.grad(asked.sum(), weights)[0]
    for ends in ((1,), (1, 6)):
        assert torch.equal(slopes[ends, True], slopes[ends, False])
    assert not torch.equal(slopes[(1,), True], slopes[(1, 6), True])


def text_of_row(ids, valid, given, ends):
    """As one reads it: from the first token on, up to the first end that was not given."""
    found = []
    for there in valid:
        over = any(found[k] and ids[k] in ends and not given[k] for k in range(len(found)))
        found.append(there and not over)
    return found


@settings(max_examples=50)
@given(
    data=st.data(), pad=st.sampled_from([None, "[PAD]", "[EOS]", "[MASK]"]), ends=st.sampled_from([(), (1,), (1, 5)])
)
def test_a_text_is_what_one_reads(data, pad, ends):
    tokenizer = word_tokenizer()
    tokenizer.pad_token = pad
    rows = st.lists(st.tuples(st.integers(0, 7), st.booleans()), min_size=5, max_size=5)
    row, padding = data.draw(rows), data.draw(st.integers(0, 5))
    ids, fixed = [i for i, _ in row], [given for _, given in row]
    valid = [k >= padding for k in range(5)]
    found = text_mask(torch.tensor([ids]), tokenizer, torch.tensor([valid]), torch.tensor([fixed]), ends)
    assert found[0].tolist() == text_of_row(ids, valid, fixed, ends)


@settings(max_examples=20)
@given(ids=st.sets(st.integers(3, 20), min_size=1), special=st.sets(st.integers(3, 20)), vocabulary=st.integers(1, 24))
def test_what_may_be_drawn_is_what_the_tokenizer_has_and_is_not_special(ids, special, vocabulary):
    words = {"[PAD]": 0, "[EOS]": 1, "[MASK]": 2} | {f"w{i}": i for i in ids}
    base = Tokenizer(models.WordLevel(words, unk_token="[PAD]"))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=base, pad_token="[PAD]", eos_token="[EOS]", mask_token="[MASK]"
    )
    tokenizer.add_tokens([f"w{i}" for i in ids & special], special_tokens=True)
    drawable = set(range(vocabulary)) - set(reserved_token_ids(tokenizer, vocabulary))
    assert drawable == {i for i in {1} | (ids - special) if i < vocabulary}
