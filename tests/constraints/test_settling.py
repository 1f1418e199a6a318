"""Tokens drawn independently from the marginals, made a joint draw: against sums over all texts."""

import itertools

import numpy as np
import pytest

from redge_guidance.constraints import messages as module
from redge_guidance.constraints.messages import Messages, Transitions
from redge_guidance.constraints.settling import Committed, settled
from redge_guidance.constraints.token_automaton import TokenAutomaton

CLASSES, LENGTH, COUNT = 3, 4, 20_000


def automaton_of(seed, states=4):
    """One token a class."""
    random = np.random.default_rng(seed)
    table = random.integers(0, states, (states, CLASSES)).astype(np.int32)
    table[random.random((states, CLASSES)) < 0.3] = -1
    accepting = random.random(states) < 0.5
    accepting[-1] = True
    return TokenAutomaton(table, np.arange(CLASSES, dtype=np.int32), accepting, np.zeros((states, 0)))


def joint_of(automaton, log_q):
    """`{text: probability given acceptance}`."""
    found = {}
    for text in itertools.product(range(CLASSES), repeat=LENGTH):
        state = 0
        for v in text:
            state = automaton.step(state, v)
        if state != -1 and automaton.accepting[state]:
            found[text] = np.exp(log_q[range(LENGTH), list(text)].sum())
    total = sum(found.values())
    return {text: weight / total for text, weight in found.items()}


def case(seed):
    random = np.random.default_rng(seed)
    return automaton_of(seed), np.log(random.dirichlet(np.ones(CLASSES), size=LENGTH))


SEEDS = [seed for seed in range(60) if len(joint_of(*case(seed))) >= 8][:4]


@pytest.fixture(params=["linear", "log"])
def arithmetic(request, monkeypatch):
    if request.param == "log":
        monkeypatch.setattr(module, "_SPREAD", -1.0)


def drawn_and_settled(automaton, log_q, chosen, greedy=False):
    random = np.random.default_rng(0)
    masses = np.tile(log_q[..., None], (1, 1, COUNT))
    end = np.tile(np.where(automaton.accepting, 0.0, -np.inf)[:, None], (1, COUNT))
    none = np.zeros((LENGTH, COUNT), bool)
    messages = Messages(Transitions(automaton), masses, none, none, end)
    marginals = np.exp(masses + messages.log_weights)[..., 0]
    labels = np.stack([random.choice(CLASSES, COUNT, p=row / row.sum()) for row in marginals])
    where = np.tile(np.array(chosen)[:, None], (1, COUNT))
    anew = settled(messages, masses, Committed(labels, where, random.random((2, LENGTH, COUNT)), greedy))
    return labels, np.where(anew == -1, labels, anew)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("chosen", [[1, 1, 1, 1], [1, 0, 1, 0], [0, 1, 1, 1]])
def test_they_follow_the_joint_distribution(seed, chosen, arithmetic):
    automaton, log_q = case(seed)
    chosen = [bool(one) for one in chosen]
    _, found = drawn_and_settled(automaton, log_q, chosen)
    expected: dict[tuple, float] = {}
    for text, p in joint_of(automaton, log_q).items():
        key = tuple(itertools.compress(text, chosen))
        expected[key] = expected.get(key, 0.0) + p
    counts = dict.fromkeys(expected, 0)
    for row in found[chosen].T.tolist():
        counts[tuple(row)] += 1  # a KeyError: what nothing accepted has
    chi_square = sum((counts[key] - COUNT * p) ** 2 / (COUNT * p) for key, p in expected.items() if p > 1e-6)
    degrees = len(expected) - 1
    assert chi_square < degrees + 5 * np.sqrt(2 * degrees)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_single_token_is_kept(seed):
    automaton, log_q = case(seed)
    labels, found = drawn_and_settled(automaton, log_q, [False, True, False, False])
    assert (labels[1] == found[1]).all()


@pytest.mark.parametrize("seed", SEEDS)
def test_of_a_greedy_host_all_is_kept_that_can_be(seed):
    automaton, log_q = case(seed)
    labels, found = drawn_and_settled(automaton, log_q, [True] * LENGTH, greedy=True)
    accepted = set(joint_of(automaton, log_q))
    for before, after in zip(labels.T.tolist(), found.T.tolist(), strict=True):
        assert tuple(after) in accepted
        assert tuple(before) not in accepted or before == after


def test_independent_positions_are_all_kept():
    """An automaton that allows some tokens everywhere: the posterior is independent, and nothing is to be mended."""
    table = np.array([[0, -1, 0]], dtype=np.int32)
    automaton = TokenAutomaton(table, np.arange(3, dtype=np.int32), np.ones(1, bool), np.zeros((1, 0)))
    log_q = np.log(np.random.default_rng(1).dirichlet(np.ones(3), size=LENGTH))
    labels, found = drawn_and_settled(automaton, log_q, [True] * LENGTH)
    assert (labels == found).all()
