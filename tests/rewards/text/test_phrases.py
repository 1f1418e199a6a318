"""Wanted words of several tokens: a slope from the first step, toward one place."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from redge_guidance import GuidanceConfig, RelaxedTokens, guide
from redge_guidance.estimators import EntropyMix, StraightThrough
from redge_guidance.rewards import LexicalReward
from tests.helpers.tiny import WORDS, tiny_pipeline, word_tokenizer
from tests.helpers.tokenizers import tokenizer

EOS, MASK, A, B, C, D = range(1, 7)


def sample(log_probs, ids=None, free=None, hard=None, draws=1, **kwargs):
    """A relaxed text of one row; hard weights at token `hard`, the distribution itself where that is None."""
    length = len(log_probs)
    ids = torch.full((1, length), D) if ids is None else torch.tensor([ids])
    free = torch.ones_like(ids).bool() if free is None else torch.tensor([free])
    log_probs = log_probs[free[0]]
    if hard is None:
        weights = log_probs.exp()
    else:
        weights = torch.nn.functional.one_hot(torch.full((len(log_probs),), hard), len(WORDS)).float()
        ids = ids.masked_fill(free, hard)
    weights = weights.repeat(draws, 1).requires_grad_()
    return RelaxedTokens(
        ids.repeat(draws, 1),
        free.repeat(draws, 1),
        weights,
        hard=hard is not None,
        tokenizer=word_tokenizer(),
        log_probs=log_probs,
        draws=draws,
        **kwargs,
    )


def random_logs(length, seed, spread=3.0):
    generator = torch.Generator().manual_seed(seed)
    logits = spread * torch.randn(length, len(WORDS), generator=generator)
    logits[:, :3] = -torch.inf
    return logits.log_softmax(-1)


def slope(reward, tokens):
    (grad,) = torch.autograd.grad(reward(tokens).sum(), tokens.weights)
    return grad


def posterior_of_places(logs, phrase):
    """Over where the phrase is, by enumeration of the places."""
    places = range(len(logs) - len(phrase) + 1)
    likely = torch.stack([torch.stack([logs[i + k, t] for k, t in enumerate(phrase)]).sum() for i in places]).exp()
    return likely / likely.sum()


@given(st.integers(3, 6), st.integers(2, 3), st.integers(0, 10_000))
def test_hard_draws_without_the_phrase_are_pulled_to_the_posterior_of_its_places(length, n, seed):
    logs, phrase = random_logs(length, seed), [A, B, C][:n]
    grad = slope(LexicalReward(" ".join(WORDS[i] for i in phrase)), sample(logs, hard=D))
    expected = torch.zeros_like(grad)
    for i, weight in enumerate(posterior_of_places(logs, phrase)):
        for k, token in enumerate(phrase):
            expected[i + k, token] += weight
    torch.testing.assert_close(grad, expected, atol=1e-5, rtol=1e-4)


@given(st.integers(1, 3), st.booleans(), st.integers(0, 10_000), st.floats(0.1, 20))
def test_the_slope_is_bounded_by_the_weight_of_the_word(n, count, seed, weight):
    phrase = " ".join(["a", "b", "c"][:n])
    grad = slope(LexicalReward({phrase: weight}, count=count), sample(random_logs(5, seed)))
    assert grad.isfinite().all()
    assert (grad >= 0).all()
    assert grad.max() <= weight * (1 + 1e-5)


def test_the_value_is_the_exact_one():
    for ids, expected in (([A, B, D], 1.0), ([B, A, D], 0.0)):
        tokens = sample(random_logs(3, 0), ids=ids, free=[False] * 3)
        assert LexicalReward("a b")(tokens).item() == expected


def test_a_place_that_is_begun_is_gone_on_with():
    logs = random_logs(5, 0)
    grad = slope(LexicalReward("a b"), sample(logs, ids=[D, D, A, D, D], free=[True, True, False, True, True], hard=D))
    likely = posterior_of_places(logs.index_put((torch.tensor([2]),), torch.full((8,), -50.0)), [A, B])
    assert grad[2, B] > 0.9  # the third free position, beside the "a" that is there
    assert grad[0, A] < 0.1
    assert likely.isfinite().all()


def test_nothing_pulls_where_the_phrase_is_already_unless_it_is_counted():
    tokens = lambda: sample(  # noqa: E731
        random_logs(5, 0), ids=[A, B, D, D, D], free=[False, False, True, True, True], hard=D
    )
    assert slope(LexicalReward("a b"), tokens()).abs().max() == 0
    assert slope(LexicalReward("a b", count=True), tokens()).max() > 0.3


def test_no_place_after_a_fixed_end_or_in_the_padding():
    fixed = [True, False, False, True, True]
    grad = slope(LexicalReward("a b"), sample(random_logs(5, 0), ids=[D, D, EOS, D, D], free=fixed, hard=D))
    assert grad.abs().max() == 0  # one place before the end, none after it
    padding = torch.tensor([[False, False, True, True, True]])
    grad = slope(LexicalReward("a b"), sample(random_logs(5, 0), hard=D, attention_mask=padding))
    assert grad[:2].abs().max() == 0
    assert grad[2:].max() > 0.1


def test_a_banned_phrase_is_not_pulled_apart():
    """Of "a b" only what follows an "a" that is there is pushed away, also where the reward is subtracted."""
    logs = random_logs(4, 0)
    for reward in (LexicalReward(banned="a b"), -1 * LexicalReward("a b")):
        tokens = sample(logs, hard=D)
        assert slope(reward, tokens).abs().max() == 0
        grad = slope(reward, sample(logs, ids=[A, D, D, D], free=[False, True, True, True], hard=D))
        assert grad[0, B] == -1
        assert grad.abs().sum() == 1


@pytest.mark.parametrize("draws", [1, 3])
def test_probabilities_that_no_float_holds_are_told_apart(draws):
    logs = torch.full((4, len(WORDS)), -400.0)
    logs[:, D] = 0.0
    logs[2, A] = -390.0
    grad = slope(LexicalReward("a b"), sample(logs, hard=D, draws=draws))
    assert grad.view(draws, 4, -1)[:, 2, A].min() > 0.99


def test_log_probs_are_those_of_the_support():
    logs = torch.tensor([[-0.5, -1.0], [-0.1, -3.0]])
    support = torch.tensor([[B, A], [C, D]])
    ids = torch.tensor([[A, B, C]])
    free = torch.tensor([[False, True, True]])
    tokens = RelaxedTokens(ids, free, logs.exp(), support, hard=False, tokenizer=word_tokenizer(), log_probs=logs)
    none = -torch.inf
    expected = torch.tensor([[[0.0, none], [-1.0, -0.5], [none, none]]])
    torch.testing.assert_close(tokens.log_probs_of(torch.tensor([A, B])), expected)
    unknown = RelaxedTokens(ids, free, logs.exp(), support, hard=False, tokenizer=word_tokenizer())
    torch.testing.assert_close(unknown.log_probs_of(torch.tensor([A, B])), expected)
    with pytest.raises(ValueError, match=r"`log_probs` must be those of one sample, \(2, 2\), got \(1, 2\)"):
        RelaxedTokens(ids, free, logs.exp(), support, tokenizer=word_tokenizer(), log_probs=logs[:1])


def test_rows_do_not_depend_on_one_another():
    words = LexicalReward("a b c")
    rows = [random_logs(5, seed) for seed in range(3)]
    alone = [slope(words, sample(row)) for row in rows]
    ids = torch.full((3, 5), D)
    weights = torch.cat(rows).exp().requires_grad_()
    together = RelaxedTokens(
        ids, torch.ones_like(ids).bool(), weights, hard=False, tokenizer=word_tokenizer(), log_probs=torch.cat(rows)
    )
    torch.testing.assert_close(slope(words, together), torch.cat(alone))


def test_every_draw_is_pulled_to_the_places_of_its_own_text():
    """The rows are a draw of every text, then another of every text."""
    words, logs = LexicalReward("a b"), [random_logs(4, seed) for seed in (1, 2)]
    alone = torch.cat([slope(words, sample(row, hard=D)) for row in logs])
    ids = torch.full((4, 4), D)
    weights = torch.nn.functional.one_hot(ids.flatten(), len(WORDS)).float().requires_grad_()
    together = RelaxedTokens(
        ids, torch.ones_like(ids).bool(), weights, tokenizer=word_tokenizer(), log_probs=torch.cat(logs), draws=2
    )
    torch.testing.assert_close(slope(words, together), alone.repeat(2, 1))


def test_an_end_that_was_given_ends_nothing():
    words, logs = LexicalReward("a b"), random_logs(4, 0)
    fixed = {"ids": [EOS, D, D, D], "free": [False, True, True, True], "hard": D}
    given = torch.tensor([[True, False, False, False]])
    assert slope(words, sample(logs, **fixed, given=given)).max() > 0.1
    assert slope(words, sample(logs, **fixed)).abs().max() == 0


def test_places_are_those_of_all_draws_whichever_comes_first():
    """Where one draw of a text goes on with a letter, and another with a space."""
    made = tokenizer("byte")
    words = LexicalReward("Unhappy", case_sensitive=True)
    un, happy = made("Unhappy", add_special_tokens=False).input_ids
    letter, space = (made(text, add_special_tokens=False).input_ids[0] for text in ("s", " "))
    logs = torch.randn(4, len(made), generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    slopes = []
    for rows in (
        [[letter, un, letter, letter], [space, un, letter, space]],
        [[space, un, letter, space], [letter, un, letter, letter]],
    ):
        ids = torch.tensor(rows)
        weights = torch.nn.functional.one_hot(ids.flatten(), len(made)).float().requires_grad_()
        tokens = RelaxedTokens(ids, torch.ones_like(ids).bool(), weights, tokenizer=made, log_probs=logs, draws=2)
        slopes.append(slope(words, tokens).view(2, 4, -1))
    assert slopes[0][:, :, happy].max() > 0.1
    torch.testing.assert_close(slopes[0], slopes[1].flip(0))


@pytest.mark.parametrize("estimator", [EntropyMix(), StraightThrough()])
def test_phrases_that_the_bare_sampler_never_writes(estimator):
    pipe = tiny_pipeline()
    write = lambda: pipe([""] * 24, generator=torch.Generator().manual_seed(0)).texts  # noqa: E731
    bare = write()
    pairs = [" ".join(pair) for pair in itertools.product(WORDS[3:], repeat=3)]
    phrase = next(pair for pair in pairs if not any(pair in text for text in bare))
    reward = LexicalReward(phrase)
    with guide(pipe, reward, GuidanceConfig(scale=40.0, estimator=estimator)):
        assert reward.score(write()).mean() > 0.9


def test_phrases_on_the_embedded_model(embedded):
    write = lambda: embedded([""] * 6, generator=torch.Generator().manual_seed(0)).texts  # noqa: E731
    reward = LexicalReward("New York")
    with guide(embedded, reward, GuidanceConfig(scale=30.0)):
        texts = write()
    assert reward.score(texts).mean() >= 0.75
    assert len(set(texts)) > 1


@pytest.mark.parametrize("words", [{"wanted": "a b c d"}, {"banned": "a b c d"}, {"banned": "zebra"}])
def test_what_no_text_of_this_length_can_have_has_the_slope_0(words):
    reward = LexicalReward(**words)
    assert slope(reward, sample(random_logs(2, seed=0), hard=A, draws=2)).eq(0).all()


def test_a_ban_that_nothing_can_break_is_no_error(recwarn):
    pipe = tiny_pipeline(length=3)
    with guide(pipe, LexicalReward(banned=["a b c d", "zebra"])):
        pipe([""])
    assert not recwarn
