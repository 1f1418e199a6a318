import pickle

import pytest
import torch

from redge_guidance import GuidanceConfig, guide
from redge_guidance.hosts import DenoisingStep
from redge_guidance.reward import Reward, RewardSum, Term
from redge_guidance.rewards import BlackBoxReward, LengthReward, LexicalReward
from redge_guidance.terms import split
from redge_guidance.tilting import guided_logits
from redge_guidance.updates import Adam, Natural
from tests.helpers.settings import plain_config
from tests.helpers.tiny import WORDS, tiny_reward, word_tokenizer


def count_a(tokens):
    """A plain callable: how much of the text is an a."""
    return tokens.weights_of(torch.tensor([3]))[..., 0].sum(-1)


def test_arithmetic_is_that_of_numbers():
    a, b, c = LexicalReward("a"), LexicalReward("b"), LengthReward(2)
    texts = ["a b", "b", "a", ""]
    values = [reward.score(texts) for reward in (a, b, c)]
    total = 0.7 * a + 0.3 * b - c * 2
    torch.testing.assert_close(total.score(texts), 0.7 * values[0] + 0.3 * values[1] - 2 * values[2])
    torch.testing.assert_close((-(a - 2 * b) * 3).score(texts), -3 * values[0] + 6 * values[1])
    torch.testing.assert_close(sum([a, b, c]).score(texts), sum(values))
    assert repr(total) == "0.7 * LexicalReward + 0.3 * LexicalReward_2 + -2 * LengthReward"
    torch.testing.assert_close(pickle.loads(pickle.dumps(total)).score(texts), total.score(texts))


def test_a_plain_callable_joins_from_either_side(pipe):
    for reward, signs in ((LexicalReward("b") + count_a, (1, 1)), (count_a - LexicalReward("b"), (1, -1))):
        assert [term.weight for term in reward.terms] in (list(signs), list(reversed(signs)))
        with guide(pipe, reward, GuidanceConfig(scale=2.0)) as handle:
            pipe([""] * 4, generator=torch.Generator().manual_seed(0))
        assert set(handle.trace[0].notes) == {"LexicalReward", "count_a", "log P('b')"}
        with pytest.raises(ValueError, match="the term count_a has no `score`"):
            reward.score(["a"])


def test_the_trace_keeps_the_terms_apart(pipe):
    classifier, words = tiny_reward(), LexicalReward("e")
    with guide(pipe, 2 * classifier + 0.5 * words, GuidanceConfig(scale=1.0)) as handle:
        pipe([""] * 8, generator=torch.Generator().manual_seed(0))
    asked = [step for step in handle.trace if all(one.asked for one in step.sequences)]
    assert 1 < len(asked) < len(handle.trace)
    for step in asked:
        total = 2 * step.notes["TextClassifierReward"] + 0.5 * step.notes["LexicalReward"]
        assert step.reward == pytest.approx(total, rel=1e-4, abs=1e-5)


def test_unit_scale():
    texts = ["a b", "b", "a", "", "a a a a"]
    total = (3 * LexicalReward("a") + LengthReward(9)).normalized(texts)
    for term, weight in zip(total.terms, (3, 1), strict=True):
        assert (term.weight * term.reward.score(texts)).std().item() == pytest.approx(weight, rel=1e-5)
    with pytest.raises(ValueError, match="how much the term LexicalReward varies, got 2 on which it does not"):
        (LexicalReward("a") + LengthReward(9)).normalized(["b", "c c"])


def test_an_error_names_its_term(pipe):
    def poisoned(tokens):
        return count_a(tokens) * float("nan")

    with (
        guide(pipe, LexicalReward("a") + poisoned),
        pytest.raises(ValueError, match="`poisoned` returned NaN or infinity"),
    ):
        pipe([""])
    with (
        guide(pipe, LexicalReward("a") + (lambda tokens: count_a(tokens).sum())),
        pytest.raises(ValueError, match=r"`<lambda>` must return shape \(1,\), got \(\); do not sum"),
    ):
        pipe([""])
    assert pipe([""], generator=torch.Generator().manual_seed(0)).texts  # usable afterwards


def test_bad_terms():
    with pytest.raises(TypeError, match="can be added to a callable, got float"):
        LexicalReward("a") + 1.0
    with pytest.raises(TypeError, match="can be multiplied by a number, got str"):
        LexicalReward("a") * "b"
    for weight in (float("nan"), float("inf"), -(10**400)):
        with pytest.raises(ValueError, match="a reward can be multiplied by a finite number, got "):
            weight * LexicalReward("a")
    with pytest.raises(ValueError, match="`terms` must name at least one reward, got none"):
        RewardSum([])


def test_what_has_no_gradient_is_told_apart():
    smooth, black = LexicalReward("a"), BlackBoxReward(len)
    assert split(smooth) == (smooth, None)
    assert split(black) == (None, black)
    assert split(count_a) == (count_a, None)
    left, right = split(0.7 * smooth + 0.3 * black)
    assert [(t.weight, t.reward) for t in left.terms] == [(0.7, smooth)]
    assert [(t.weight, t.reward) for t in right.terms] == [(0.3, black)]


class Points(Reward):
    """Linear: each word is worth something, with a gradient."""

    points = torch.linspace(-1, 1, len(WORDS))

    def __call__(self, tokens):
        return tokens.embed(self.points[:, None])[..., 0].sum(-1)


def points_of_text(text):
    return 0.3 * sum(WORDS.index(word) == 4 for word in text.split())


def step_of(logits):
    """All of two texts of three words; `logits` `(6, vocabulary)`."""
    ids = torch.full((2, 3), 2)
    free = torch.ones_like(ids).bool()
    return DenoisingStep(logits.view(2, 3, -1), ids, free, free, 1.0, 0.0, word_tokenizer(), reserved=[0, 1, 2])


@pytest.mark.parametrize(
    ("update", "draws"), [(Natural(1, 1.0, damping=0.0), 4000), (Adam(num_updates=60, learning_rate=0.1), 400)]
)
def test_a_sum_with_a_black_box_reaches_the_tilted_optimum(update, draws):
    """Both parts linear in every token, so that q = p exp(scale * (their sum)) is exact."""
    logits = torch.randn(6, len(WORDS), generator=torch.Generator().manual_seed(0))
    config = plain_config(scale=1.5, estimator="straight_through", update=update, num_draws=draws, support=None)
    reward = Points() + BlackBoxReward(points_of_text)
    new, figures = guided_logits(step_of(logits), reward, config, torch.Generator().manual_seed(0))
    worth = Points.points.clone()
    worth[4] += 0.3
    exact = (logits[:, 3:] + 1.5 * worth[3:]).softmax(-1)
    assert total_variation(logits, exact) > 0.1  # there is a way to go
    assert total_variation(new, exact) < 0.03
    notes = figures.notes
    assert figures.reward == pytest.approx(notes["Points"] + notes["points_of_text"], abs=1e-4)


def total_variation(logits, exact):
    return (logits[:, 3:].softmax(-1) - exact).abs().sum(-1).max().item() / 2


def test_reached_of_a_negative_term_is_the_opposite():
    assert (-1 * LexicalReward("a")).reached(["a b", "b"]) == [False, True]
    assert (LexicalReward("a") - LexicalReward("b")).reached(["a b", "a", "b"]) == [False, True, False]
    assert (LexicalReward("a") + 0 * LexicalReward("b")).reached(["a", "b"]) == [True, False]
    assert RewardSum([Term(1.0, count_a, "count_a")]).reached(["a"]) is None


def test_a_class_without_score_says_what_to_write():
    with pytest.raises(NotImplementedError, match="Points does not score finished samples; write `score"):
        (Points() + LexicalReward("a")).score(["a"])


def test_a_mistake_in_a_reward_is_not_taken_for_the_other_kind(pipe):
    with guide(pipe, lambda tokens: tokens.weights_of()), pytest.raises(TypeError, match="missing 1 required"):
        pipe("a")
