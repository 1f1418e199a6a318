from dataclasses import replace

import pytest
import torch

from redge_guidance import RelaxedTokens, straight_through
from redge_guidance.text import text_mask
from tests.helpers.tiny import word_tokenizer

PAD, EOS = 0, 1


def random_tokens(support=False, hard=True):
    """Three rows of five positions, seven of them free; vocabulary of eight."""
    torch.manual_seed(0)
    free = torch.tensor([[1, 1, 0, 0, 1], [0, 0, 0, 0, 0], [1, 0, 1, 1, 1]]).bool()
    columns = 4 if support else 8
    logits = torch.randn(7, columns, requires_grad=True)
    weights = straight_through(logits, hard=hard, generator=torch.Generator().manual_seed(0))
    candidates = torch.stack([torch.randperm(8)[:4] for _ in range(7)]) if support else None
    index = weights.argmax(-1, keepdim=True)
    drawn = index if candidates is None else candidates.gather(-1, index)
    ids = torch.randint(3, 8, (3, 5)).masked_scatter(free, drawn)
    return RelaxedTokens(ids, free, weights, candidates, hard, tokenizer=word_tokenizer()), logits


def dense_one_hot(tokens):
    """`(batch, length, 8)`: what the relaxed tokens stand for, written out."""
    rows = tokens.weights
    if tokens.support is not None:
        rows = torch.zeros(len(rows), 8).scatter(-1, tokens.support, rows)
    one_hot = torch.nn.functional.one_hot(tokens.ids, 8).float()
    return one_hot.masked_scatter(tokens.free[..., None], rows)


@pytest.mark.parametrize("hard", [True, False])
@pytest.mark.parametrize("support", [True, False])
def test_embed_equals_the_dense_product_forward_and_backward(support, hard):
    tokens, logits = random_tokens(support, hard)
    table = torch.randn(8, 3, requires_grad=True)
    slope = torch.randn(3, 5, 3)
    ours, reference = tokens.embed(table), dense_one_hot(tokens) @ table
    torch.testing.assert_close(ours, reference)
    grads = torch.autograd.grad((ours**2 * slope).sum(), (logits, table), retain_graph=True)
    expected = torch.autograd.grad((reference**2 * slope).sum(), (logits, table))
    torch.testing.assert_close(grads, expected)


def test_hard_embedding_is_a_look_up_bit_for_bit():
    tokens, _ = random_tokens()
    table = torch.randn(8, 3)
    assert torch.equal(tokens.embed(table), table[tokens.ids])


def test_hard_embedding_never_multiplies_with_the_vocabulary():
    tokens, _ = random_tokens()
    with torch.profiler.profile() as profile:
        tokens.embed(torch.randn(8, 3))
    assert not {event.key for event in profile.key_averages()} & {"aten::mm", "aten::bmm", "aten::matmul"}


@pytest.mark.parametrize("rows", [12, 8])
def test_table_may_have_more_rows_than_the_vocabulary(rows):
    tokens, logits = random_tokens()
    table = torch.randn(12, 3)[:rows]
    (grad,) = torch.autograd.grad(tokens.embed(table).sum(), logits, retain_graph=True)
    (expected,) = torch.autograd.grad((dense_one_hot(tokens) @ table[:8]).sum(), logits)
    torch.testing.assert_close(grad, expected)


def test_table_may_lack_rows_of_tokens_that_are_not_there():
    tokens, logits = random_tokens()
    table = torch.randn(int(tokens.ids.max()) + 1, 3)
    torch.testing.assert_close(tokens.embed(table), table[tokens.ids])
    torch.autograd.grad(tokens.embed(table).sum(), logits)
    with pytest.raises(ValueError, match="`table` must have a row for every token id, got 2 rows"):
        tokens.embed(table[:2])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_mixture_has_the_dtype_of_the_table(dtype):
    tokens, logits = random_tokens(support=True, hard=False)
    table = torch.randn(8, 3).to(dtype)
    ours = tokens.embed(table)
    assert ours.dtype == dtype
    torch.testing.assert_close(ours.float(), dense_one_hot(tokens) @ table.float(), rtol=2e-2, atol=2e-2)
    assert torch.autograd.grad(ours.sum(), logits)[0].dtype == torch.float32


@pytest.mark.parametrize("hard", [True, False])
def test_a_candidate_beyond_the_table_is_its_last_row(hard):
    """As if the table went on with that row; no sequence has such a token."""
    tokens, logits = random_tokens(support=True, hard=hard)
    tokens = replace(tokens, ids=torch.where(tokens.ids > 5, 5, tokens.ids))
    table = torch.randn(6, 3)
    longer = torch.cat([table, table[5:].expand(2, 3)])
    assert (tokens.support > 5).any()
    ours, reference = tokens.embed(table), tokens.embed(longer)
    torch.testing.assert_close(ours, reference)
    slope = torch.randn(3, 5, 3)
    grads = [torch.autograd.grad((one * slope).sum(), logits, retain_graph=True) for one in (ours, reference)]
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ([3, 4, EOS, EOS, EOS], [1, 1, 1, 0, 0]),
        ([PAD, PAD, 3, EOS, 4], [0, 0, 1, 1, 0]),
        ([PAD, 3, PAD, 4, 5], [0, 1, 0, 0, 0]),
        ([EOS, EOS, 3, 4, 5], [1, 0, 0, 0, 0]),
        ([3, 4, 5, 6, 7], [1, 1, 1, 1, 1]),
        ([PAD, PAD, PAD, PAD, PAD], [0, 0, 0, 0, 0]),
    ],
)
def test_text_mask_ends_at_the_first_end_or_padding(row, expected):
    assert text_mask(torch.tensor([row]), word_tokenizer()).int().tolist() == [expected]


def test_text_mask_where_padding_and_end_are_one_token():
    tokenizer = word_tokenizer()
    tokenizer.pad_token = "[EOS]"
    ids = torch.tensor([[EOS, EOS, 3, EOS, EOS], [EOS, EOS, 3, EOS, EOS]])
    assert text_mask(ids[:1], tokenizer).int().tolist() == [[0, 0, 1, 1, 0]]
    valid = torch.tensor([[0, 0, 1, 1, 1], [0, 1, 1, 1, 1]]).bool()
    assert text_mask(ids, tokenizer, valid).int().tolist() == [[0, 0, 1, 1, 0], [0, 1, 0, 0, 0]]


def test_texts_stop_at_the_end_and_leave_special_tokens_out():
    ids = torch.tensor([[PAD, 3, 4, EOS, 5], [3, 4, 5, 6, 7]])
    tokens = RelaxedTokens(ids, torch.zeros(2, 5).bool(), torch.zeros(0, 8), tokenizer=word_tokenizer())
    assert tokens.texts() == ["a b", "a b c d e"]
    with pytest.raises(ValueError, match="`tokenizer` is None"):
        RelaxedTokens(ids, torch.zeros(2, 5).bool(), torch.zeros(0, 8)).texts()


def test_bad_shapes():
    ids, free = torch.zeros(2, 3).long(), torch.ones(2, 3).bool()
    with pytest.raises(ValueError, match=r"`ids` and `free` must both be \(batch, length\)"):
        RelaxedTokens(ids[0], free, torch.zeros(6, 4))
    with pytest.raises(ValueError, match="with 6 rows"):
        RelaxedTokens(ids, free, torch.zeros(5, 4))
    with pytest.raises(ValueError, match="`support` must have the shape of `weights`"):
        RelaxedTokens(ids, free, torch.zeros(6, 4), torch.zeros(6, 3).long())


@pytest.mark.parametrize("hard", [True, False])
@pytest.mark.parametrize("vocabulary", [20, 100])  # one product with the table; rows gathered
def test_samples_of_one_text_share_their_support(vocabulary, hard):
    torch.manual_seed(0)
    draws, support = 3, torch.stack([torch.randperm(vocabulary)[:4] for _ in range(5)]).repeat(3, 1)
    weights = torch.rand(15, 4).softmax(-1).requires_grad_()
    if hard:
        weights = torch.nn.functional.one_hot(torch.randint(4, (15,)), 4).float().requires_grad_()
    free = torch.tensor([[1, 0, 1, 1], [0, 1, 1, 0]]).bool().repeat(draws, 1)
    drawn = support.gather(1, weights.argmax(-1, keepdim=True))
    ids = torch.randint(vocabulary, (6, 4)).masked_scatter(free, drawn)
    tokens = RelaxedTokens(ids, free, weights, support, hard, draws=draws)
    table, slope = torch.randn(vocabulary, 7), torch.randn(6, 4, 7)
    rows = torch.zeros(15, vocabulary).scatter(1, support, weights)
    dense = torch.nn.functional.one_hot(ids, vocabulary).float().masked_scatter(free[..., None], rows)
    ours, reference = tokens.embed(table), dense @ table
    torch.testing.assert_close(ours, reference)
    (grad,) = torch.autograd.grad((ours * slope).sum(), weights)
    (expected,) = torch.autograd.grad((reference * slope).sum(), weights)
    torch.testing.assert_close(grad, expected)
    assert torch.equal(tokens.to("cpu").ids, ids)
    with pytest.raises(ValueError, match="`draws` must divide the batch of 6, got 4"):
        RelaxedTokens(ids, free, weights, support, hard, draws=4)


@pytest.mark.parametrize("support", [True, False])
def test_weights_of_some_tokens(support):
    tokens, logits = random_tokens(support, hard=False)
    wanted = torch.tensor([6, 2, 5])
    slope = torch.randn(3, 5, 3)
    ours, reference = tokens.weights_of(wanted), dense_one_hot(tokens)[..., wanted]
    torch.testing.assert_close(ours, reference)
    torch.testing.assert_close(tokens.weights_of([6, 2, 5]), reference)
    torch.testing.assert_close(tokens.log_probs_of([6, 2, 5]), tokens.log_probs_of(wanted))
    (grad,) = torch.autograd.grad((ours * slope).sum(), logits, retain_graph=True)
    (expected,) = torch.autograd.grad((reference * slope).sum(), logits)
    torch.testing.assert_close(grad, expected)


def test_answers_are_texts_without_the_prompt_in_front():
    ids = torch.tensor([[PAD, 3, 4, 5, EOS, 6], [3, 4, 5, 6, EOS, EOS]])
    given = torch.tensor([[1, 1, 0, 0, 0, 0], [1, 1, 0, 1, 0, 0]]).bool()  # the d of the second is given too
    free = ~given
    weights = torch.nn.functional.one_hot(ids[free], 8).float()
    tokens = RelaxedTokens(ids, free, weights, tokenizer=word_tokenizer(), given=given)
    assert tokens.texts() == ["a b c", "a b c d"]
    assert tokens.answers() == ["b c", "c d"]
