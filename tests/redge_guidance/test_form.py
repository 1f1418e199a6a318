"""Constraints, and rewards that are automata, in one guided step: against sums over all texts of a small canvas."""

import itertools
import math
import warnings

import numpy as np
import pytest
import torch

from redge_guidance import GuidanceConfig, guide
from redge_guidance.constraints import LengthConstraint, RegexConstraint, WordConstraint
from redge_guidance.form import formed
from redge_guidance.formed import FormOfStep
from redge_guidance.guidance import Guidance
from redge_guidance.reward import Reward
from redge_guidance.rewards import LengthReward, LexicalReward, RegexReward
from redge_guidance.step import DenoisingStep
from tests.helpers.hosts import EOS, MASK, seeded
from tests.helpers.tiny import tiny_pipeline, tiny_reward, word_tokenizer

TOKENIZER = word_tokenizer()
WORDS_AND_END = (EOS, 3, 4, 5, 6, 7)
LENGTH = 4


def step_of(seed=0, batch=1, **settings):
    logits = 2 * torch.randn(batch, LENGTH, len(TOKENIZER), generator=seeded(seed))
    ids = torch.full((batch, LENGTH), MASK)
    free = torch.ones_like(ids, dtype=torch.bool)
    defaults = {"temperature": 1.0, "progress": 0.0, "reserved": [0, MASK], "generator": seeded(seed)}
    return DenoisingStep(logits, ids, free, free, tokenizer=TOKENIZER, **defaults | settings)


def texts_of(step):
    """Every canvas that ends once and for all, its text, and its log q."""
    log_q = step.logits[0].index_fill(-1, torch.tensor([0, MASK]), -torch.inf).log_softmax(-1).double()
    for row in itertools.product(WORDS_AND_END, repeat=LENGTH):
        end = row.index(EOS) if EOS in row else LENGTH
        if all(token == EOS for token in row[end:]):
            yield row, TOKENIZER.decode(row[:end]), float(log_q[range(LENGTH), list(row)].sum())


def marginals(weights):
    """Of the tokens at each position, from `[(row, weight)]`."""
    found = torch.zeros(LENGTH, len(TOKENIZER), dtype=torch.float64)
    total = sum(weight for _, weight in weights)
    for row, weight in weights:
        found[range(LENGTH), list(row)] += weight / total
    return found


REWARDS = {
    "a word": LexicalReward("c"),
    "a word that is not to be": LexicalReward(banned="c"),
    "a phrase": LexicalReward("d e"),
    "a length": LengthReward(2, 2),
    "characters": LengthReward(3, 3, unit="characters"),
    "an expression": RegexReward(r"(a|b)( c)+"),
    "less of a word": -0.5 * LexicalReward("c"),
}


@pytest.mark.parametrize("name", REWARDS)
@pytest.mark.parametrize("scale", [0.1, 2.0])
def test_texts_of_the_best_value_become_exp_of_three_scale_over_p_times_as_likely(name, scale):
    reward, step = REWARDS[name], step_of()
    form, left = formed(reward, None)
    assert left is None
    scored = [(row, float(reward.score([text])[0]), log_q) for row, text, log_q in texts_of(step)]
    best = max(value for _, value, _ in scored)
    z = sum(math.exp(log_q) for _, _, log_q in scored)
    p = sum(math.exp(log_q) for _, value, log_q in scored if value == best) / z
    weight = 0.5 if name == "less of a word" else 1.0
    push = min(3 * scale * weight / p, 40 - math.log(p))
    weights = [(row, math.exp(log_q + push * (value == best))) for row, value, log_q in scored]
    found = FormOfStep(form, step).marginals(step.logits[0].index_fill(-1, torch.tensor([0, MASK]), -torch.inf), scale)
    torch.testing.assert_close(found.softmax(-1).double(), marginals(weights), atol=1e-5, rtol=1e-4)


def test_counted_occurrences_are_worth_their_weight_each():
    """And that there is one, as of a word that is not counted."""
    reward, step = LexicalReward({"c": 0.7}, count=True), step_of(1)
    form, _ = formed(reward, None)
    scored = [(row, float(reward.score([text])[0]), log_q) for row, text, log_q in texts_of(step)]
    z = sum(math.exp(log_q) for _, _, log_q in scored)
    p = sum(math.exp(log_q) for _, value, log_q in scored if value > 0) / z
    push = min(3 * 1.5 * 0.7 / p, 40 - math.log(p))
    weights = [(row, math.exp(log_q + 1.5 * value + push * (value > 0))) for row, value, log_q in scored]
    found = FormOfStep(form, step).marginals(step.logits[0].index_fill(-1, torch.tensor([0, MASK]), -torch.inf), 1.5)
    torch.testing.assert_close(found.softmax(-1).double(), marginals(weights), atol=1e-5, rtol=1e-4)


def test_the_figures_are_those_of_the_joint_distribution():
    """log P of acceptance, the expected reward, and KL, of a constraint and a reward together."""
    step, constraint, reward = step_of(2), RegexConstraint(r"a.*|b.*"), LexicalReward("d")
    form, _ = formed(reward, constraint)
    rows = list(texts_of(step))
    accepted = [(text, log_q) for _, text, log_q in rows if constraint.accepts([text])[0]]
    log_accept = math.log(sum(math.exp(log_q) for _, log_q in accepted))
    p = sum(math.exp(log_q) for text, log_q in accepted if "d" in text.split()) / math.exp(log_accept)
    tilted = [math.exp(log_q + 3 * 0.2 / p * ("d" in text.split())) for text, log_q in accepted]
    q = [weight / sum(tilted) for weight in tilted]
    expected = sum(share for share, (text, _) in zip(q, accepted, strict=True) if "d" in text.split())
    kl = sum(share * (math.log(share) - log_q) for share, (_, log_q) in zip(q, accepted, strict=True))
    _, figures = FormOfStep(form, step).condition(_drawable(step), seeded(), 0.2)
    assert figures.log_accept[0] == pytest.approx(log_accept, abs=1e-4)
    assert figures.reward[0] == pytest.approx(expected, abs=1e-4)
    assert figures.kl[0] == pytest.approx(kl, abs=1e-4)
    assert figures.notes["log P('d')"] == pytest.approx(math.log(p), abs=1e-4)


def test_a_budget_bounds_what_rewards_cost_and_leaves_the_constraint_alone():
    step, constraint = step_of(3), RegexConstraint(r"[a-e](?: [a-e])*")
    form, _ = formed(LexicalReward("b"), constraint)
    form_of_step = FormOfStep(form, step)
    hard, free = form_of_step.condition(_drawable(step), seeded(), 0.0)[1], 0.05 * LENGTH
    full = form_of_step.condition(_drawable(step), seeded(), 2.0)[1]
    kept = form_of_step.condition(_drawable(step), seeded(), 2.0, kl_budget=0.05)[1]
    assert full.reward[0] > kept.reward[0] > hard.reward[0]
    assert full.kl[0] - hard.kl[0] > free  # there was something to hold back
    assert kept.kl[0] - hard.kl[0] == pytest.approx(free, rel=0.02)


def _drawable(step):
    return step.logits[0].index_fill(-1, torch.tensor([0, MASK]), -torch.inf)


def test_a_term_that_is_no_automaton_stays_with_gradients():
    smooth = tiny_reward()
    form, left = formed(smooth + LexicalReward("a") + 0.5 * LengthReward(2, 3), None)
    assert left.terms[0].reward is smooth
    assert len(left.terms) == 1
    assert form.weights.tolist() == [1.0, 0.5]
    assert not form.is_hard
    assert formed(smooth, None) == (None, smooth)


def test_what_judges_the_answer_is_not_mixed_with_what_judges_the_text():
    reward = LexicalReward("a", answer_only=True) + LexicalReward("b")
    form, left = formed(reward, None)
    assert left is None
    assert form.names == ["'a'"]
    assert [one.names for one in form.further] == [["'b'"]]


def test_long_lists_of_words_stay_with_gradients():
    reward = LexicalReward({f"word{k}": 1.0 for k in range(100)})
    assert reward.valued() == []
    assert formed(reward, None) == (None, reward)


def test_a_word_that_has_no_room_any_more_is_said_once_by_its_name():
    pipe = tiny_pipeline(length=4)
    with (
        guide(pipe, LexicalReward(["a", "b c d e a"])) as handle,
        pytest.warns(UserWarning, match="'b c d e a' cannot be reached"),
    ):
        pipe([""], generator=seeded())
    assert handle.trace[0].notes["log P('b c d e a')"] < -100  # and not 0, which is certainty
    with guide(pipe, LexicalReward(["a", "b"])), warnings.catch_warnings():
        warnings.simplefilter("error")
        assert {"a", "b"} <= set(pipe([""], generator=seeded()).texts[0].split())


def test_a_reward_of_a_sum_keeps_its_trace():
    pipe = tiny_pipeline(length=6)
    with guide(pipe, tiny_reward() + LexicalReward("c")) as handle:
        pipe(["", ""], generator=seeded())
    notes = handle.trace[0].notes
    assert any(name.startswith("log P('c')") for name in notes)
    assert all(math.isfinite(one.reward) and one.kl >= 0 for step in handle.trace for one in step.sequences)


@pytest.mark.parametrize("greedy", [False, True])
def test_the_logits_that_are_handed_on_are_those_of_the_host_along_the_states(greedy):
    """Finite ones are what they were, up to the normaliser that no host looks at."""
    step = step_of(4, greedy=greedy, temperature=0.7)
    guided = Guidance(WordConstraint("a"))(step)
    kept = guided > -torch.inf
    assert kept.any(-1).all()
    assert torch.allclose(guided[kept], step.logits[0][kept], atol=1e-5)


def test_a_decisive_step_hands_on_one_token_a_position():
    step = step_of(5, batch=2, decisive=True, generator=[seeded(0), seeded(1)])
    guided = Guidance(LengthConstraint(2, 3))(step)
    assert (guided > -torch.inf).sum(-1).tolist() == [1] * (2 * LENGTH)
    for row in guided.argmax(-1).view(2, LENGTH).tolist():
        end = row.index(EOS) if EOS in row else LENGTH
        assert 2 <= end <= 3
        assert row[end:] == [EOS] * (LENGTH - end)


def test_held_tokens_are_only_exchanged_for_what_does_the_same():
    """All positions hold an accepted text: any of them may be exchanged by itself."""
    constraint = RegexConstraint(r"(a|b) (c|d)( e)+")
    ids = torch.tensor([[3, 5, 7, 7]])
    everywhere = torch.ones_like(ids, dtype=torch.bool)
    step = step_of(6, held=everywhere)
    step.logits.scatter_(-1, ids[..., None], -30.0)  # what is held counts, not what the model would rather have
    for seed in range(20):
        other = DenoisingStep(**{**vars(step), "ids": ids, "generator": seeded(seed)})
        guided = Guidance(constraint)(other)
        assert bool((guided.gather(-1, ids[0, :, None]) > -torch.inf).all())
    for place in range(LENGTH):
        for token in (guided[place] > -torch.inf).nonzero()[:, 0].tolist():
            changed = ids[0].clone()
            changed[place] = token
            assert constraint.accepts([TOKENIZER.decode(changed[changed != EOS])]) == [True]


def test_of_what_comes_later_only_the_possibility_counts():
    """A canvas of two blocks, and one that the host puts behind: nothing is hurried, and nothing made impossible."""
    constraint = LengthConstraint(6, 6)
    for name in ("coming", "later"):
        step = step_of(7, coming=2) if name == "coming" else step_of(7)
        if name == "later":
            later = torch.tensor([[False, False, True, True]])
            text = ~later
            step = DenoisingStep(**{**vars(step), "free": text, "attention_mask": text, "later": later, "coming": 2})
        guided = Guidance(constraint)(step)
        assert (guided[:, EOS] == -torch.inf).all()
        assert (guided[:, 3:] > -torch.inf).all()


class Shout(Reward):
    """Wants a certain token, far too much."""

    def __call__(self, tokens):
        return 50 * tokens.weights_of(torch.tensor([6]))[..., 0].sum(-1)

    def score(self, samples, prompts=None, batch_size=32):
        return torch.tensor([50.0 * text.split().count("d") for text in samples])


@pytest.mark.parametrize("support", [None, 2])
def test_no_reward_is_strong_enough_to_break_the_form(support):
    pipe = tiny_pipeline(length=6)
    constraint = RegexConstraint(r"[abc]( [abce])*( d)?")
    with guide(pipe, Shout() & constraint, GuidanceConfig(scale=5.0, support=support)):
        texts = pipe([""] * 6, generator=seeded()).texts
    assert constraint.accepts(texts) == [True] * 6
    assert support or np.mean([text.endswith(" d") for text in texts]) > 0.8  # what is not in the support is not moved


def test_more_words_than_one_automaton_takes_are_pursued_one_after_the_other():
    """Each of eight, in a canvas that just holds them."""
    words = ["a", "b", "c", "d", "e", "a b", "b c", "d e"]
    form, left = formed(LexicalReward(words), None)
    assert left is None
    assert len(form.names) + sum(len(one.names) for one in form.further) == 8
    pipe = tiny_pipeline(length=10)
    with guide(pipe, LexicalReward(words)) as handle:
        texts = pipe([""] * 6, generator=seeded()).texts
    assert np.mean(LexicalReward(words).reached(texts)) >= 0.8
    assert {f"log P({word!r})" for word in words} <= set(handle.trace[0].notes)
    assert handle.trace[-1].notes["LexicalReward"] > 7
