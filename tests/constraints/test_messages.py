"""Messages against sums over all texts of a small vocabulary."""

import itertools

import numpy as np
import pytest

from redge_guidance.constraints import messages as module
from redge_guidance.constraints.messages import Messages, Transitions
from redge_guidance.constraints.token_automaton import TokenAutomaton

K, L = 4, 5


def random_automaton(seed, states=5, classes=4, dead=0.35, terms=0):
    """Trimmed by nothing: messages must not need it."""
    random = np.random.default_rng(seed)
    table = random.integers(0, states, (states, classes)).astype(np.int32)
    table[random.random((states, classes)) < dead] = -1
    class_of = random.integers(0, classes, K).astype(np.int32)
    class_of[0] = -1
    accepting = random.random(states) < 0.5
    accepting[-1] = True
    return TokenAutomaton(table, class_of, accepting, random.normal(size=(states, terms)))


def class_masses(automaton, log_q):
    """`(positions, K)` to `(positions, classes, 1)`."""
    masses = np.full((len(log_q), automaton.table.shape[1]), -np.inf)
    for v, label in enumerate(automaton.class_of):
        if label >= 0:
            masses[:, label] = np.logaddexp(masses[:, label], log_q[:, v])
    return masses[..., None]


def enumerated(automaton, log_q, skipped, theta=()):
    """Log weight of every text: log q + value where it is accepted; positions that are skipped change no state."""
    texts = np.array(list(itertools.product(range(K), repeat=len(log_q))))
    weights = np.full(len(texts), -np.inf)
    for n, text in enumerate(texts):
        state = 0
        for t, v in enumerate(text):
            state = state if skipped[t] or state == -1 else automaton.step(state, v)
        if state != -1 and automaton.accepting[state]:
            weights[n] = log_q[np.arange(len(log_q)), text].sum() + automaton.values[state] @ np.array(theta)
    return texts, weights


def end_of(automaton, theta=()):
    return np.where(automaton.accepting, automaton.values @ np.array(theta), -np.inf)[:, None]


@pytest.fixture(params=["linear", "log"])
def arithmetic(request, monkeypatch):
    if request.param == "log":
        monkeypatch.setattr(module, "_SPREAD", -1.0)
    return request.param


@pytest.mark.parametrize("seed", range(12))
def test_z_and_the_posterior_are_sums_over_all_texts(seed, arithmetic):
    random = np.random.default_rng(100 + seed)
    automaton = random_automaton(seed, terms=2)
    log_q = np.log(random.dirichlet(np.ones(K), size=L))
    log_q[1] = np.where(np.arange(K) == 2, 0.0, -np.inf)  # committed
    skipped = np.array([seed % 2 == 0, False, False, seed % 3 == 0, False])
    theta = (0.7, -2.0)
    found = Messages(
        Transitions(automaton),
        class_masses(automaton, log_q),
        skipped[:, None],
        np.zeros((L, 1), bool),
        end_of(automaton, theta),
    )
    texts, weights = enumerated(automaton, log_q, skipped, theta)
    total = np.logaddexp.reduce(weights)
    np.testing.assert_allclose(found.log_z[0], total, atol=1e-10)
    if np.isneginf(total):
        return
    change = found.log_weights[..., 0]
    for t in range(L):
        for v in range(K):
            if not skipped[t]:
                expected = np.exp(weights[texts[:, t] == v] - total).sum()
                label = automaton.class_of[v]
                posterior = 0.0 if label < 0 else np.exp(log_q[t, v] + change[t, label])
                np.testing.assert_allclose(posterior, expected, atol=1e-10)


@pytest.mark.parametrize("seed", range(3))
def test_joint_draws_follow_the_conditional_distribution(seed, arithmetic):
    """Chi-square of the states that are gone through, over all paths."""
    random = np.random.default_rng(seed)
    automaton = random_automaton(seed + 20, states=4, dead=0.1)
    log_q = np.log(random.dirichlet(np.ones(K), size=4))
    masses, draws = class_masses(automaton, log_q), 20_000
    found = Messages(Transitions(automaton), masses, np.zeros((4, 1), bool), np.zeros((4, 1), bool), end_of(automaton))
    paths = found.draw(random.random((draws, 4, 1)))[..., 0]
    expected: dict[tuple, float] = {}
    for text, weight in zip(*enumerated(automaton, log_q, [False] * 4), strict=True):
        if weight > -np.inf:
            path = tuple(itertools.accumulate(text, automaton.step, initial=0))
            expected[path] = expected.get(path, 0.0) + np.exp(weight - found.log_z[0])
    counts = dict.fromkeys(expected, 0)
    for path in map(tuple, paths.tolist()):
        counts[path] += 1
    chi_square = sum((counts[path] - draws * p) ** 2 / (draws * p) for path, p in expected.items())
    degrees = len(expected) - 1
    assert degrees >= 2
    assert chi_square < degrees + 5 * np.sqrt(2 * degrees)


def test_both_arithmetics_agree_where_logarithms_are_needed():
    """The only accepted text has a probability of exp(-3000), and others of 1 lead nowhere."""
    table = np.array([[0, 1], [-1, 2], [-1, 3], [-1, -1]], dtype=np.int32)
    automaton = TokenAutomaton(
        table, np.array([0, 1], dtype=np.int32), np.array([False] * 3 + [True]), np.zeros((4, 0))
    )
    masses = np.tile(np.array([0.0, -1000.0])[None, :, None], (3, 1, 1))
    found = Messages(Transitions(automaton), masses, np.zeros((3, 1), bool), np.zeros((3, 1), bool), end_of(automaton))
    assert found.log_z[0] == pytest.approx(-3000)
    assert np.exp(masses + found.log_weights)[..., 0] == pytest.approx(np.array([[0, 1]] * 3))


def test_small_numbers_that_only_the_end_shows_are_found():
    """Every position is within what numbers can hold, and the product of the only way is not."""
    states = 6
    table = np.full((states + 1, 2), -1, dtype=np.int32)
    table[0] = [states, 1]  # away, or on
    table[states] = [states, -1]
    for i in range(1, states - 1):
        table[i, 1] = i + 1
    accepting = np.zeros(states + 1, dtype=bool)
    accepting[states - 1] = True
    automaton = TokenAutomaton(table, np.array([0, 1], dtype=np.int32), accepting, np.zeros((states + 1, 0)))
    masses = np.tile(np.array([0.0, -500.0])[None, :, None], (5, 1, 1))
    found = Messages(Transitions(automaton), masses, np.zeros((5, 1), bool), np.zeros((5, 1), bool), end_of(automaton))
    assert found.log_z[0] == pytest.approx(-2500)
    assert np.isfinite(found.log_weights[:, 1]).all()


def test_of_what_is_not_known_only_the_possibility_counts(arithmetic):
    """Two positions that are drawn later: a state is worth 1 if it can still be accepted, else 0."""
    automaton = random_automaton(7, terms=0)
    log_q = np.log(np.random.default_rng(0).dirichlet(np.ones(K), size=3))
    unknown = np.array([False, False, False, True, True])[:, None]
    masses = np.concatenate([class_masses(automaton, log_q), np.zeros((2, 4, 1))])
    found = Messages(Transitions(automaton), masses, np.zeros((5, 1), bool), unknown, end_of(automaton))
    total = 0.0
    for text in itertools.product(range(K), repeat=3):
        state = 0
        for v in text:
            state = automaton.step(state, v)
        later = [
            itertools.accumulate(rest, automaton.step, initial=state) for rest in itertools.product(range(K), repeat=2)
        ]
        ends = [list(states)[-1] for states in later]
        if state != -1 and any(end != -1 and automaton.accepting[end] for end in ends):
            total += np.exp(log_q[np.arange(3), text].sum())
    assert np.exp(found.log_z[0]) == pytest.approx(total)


def test_a_batch_is_its_rows():
    automaton = random_automaton(3)
    random = np.random.default_rng(1)
    rows = [class_masses(automaton, np.log(random.dirichlet(np.ones(K), size=L))) for _ in range(4)]
    skipped = random.random((L, 4)) < 0.3
    unknown = np.zeros((L, 4), bool)
    transitions, end = Transitions(automaton), end_of(automaton)
    uniform = random.random((3, L, 4))
    together = Messages(transitions, np.concatenate(rows, -1), skipped, unknown, np.tile(end, (1, 4)))
    for k, row in enumerate(rows):
        alone = Messages(transitions, row, skipped[:, [k]], unknown[:, [k]], end)
        np.testing.assert_allclose(alone.log_z[0], together.log_z[k])
        np.testing.assert_array_equal(alone.draw(uniform[..., [k]])[..., 0], together.draw(uniform)[..., k])
