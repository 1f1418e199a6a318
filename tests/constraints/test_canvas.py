"""Logits given acceptance, and log P, against sums over all texts of a small vocabulary, in float64."""

import itertools

import numpy as np
import pytest
import torch

from redge_guidance.constraints import RegexConstraint
from redge_guidance.constraints.canvas import Conditioning, Reading
from redge_guidance.constraints.classes import TokenClasses
from redge_guidance.constraints.messages import Transitions
from redge_guidance.constraints.token_automaton import TokenAutomaton
from tests.helpers.tokenizers import with_holes

K, T = 5, 5


def automaton_of(seed, states=4, classes=3):
    random = np.random.default_rng(seed)
    table = random.integers(0, states, (states, classes)).astype(np.int32)
    table[random.random((states, classes)) < 0.25] = -1
    class_of = np.array([0, 1, 2, 1, -1], dtype=np.int32)
    accepting = random.random(states) < 0.5
    accepting[-1] = True
    return TokenAutomaton(table, class_of, accepting, np.zeros((states, 0)))


def batch_of(seed):
    """Left padding, a prompt that is skipped, one that is read, holes, and a committed token."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(K - 1, (3, T), generator=generator)
    free = torch.tensor([[0, 0, 1, 1, 1], [0, 1, 0, 1, 1], [1, 1, 1, 0, 1]]).bool()
    skipped = torch.tensor([[1, 1, 0, 0, 0], [0, 0, 0, 0, 0], [0, 0, 0, 0, 0]]).bool()
    none = torch.zeros_like(free)
    logits = torch.randn(int(free.sum()), K, generator=generator, dtype=torch.float64)
    return Reading(ids, free, skipped, none, none), logits


def enumerated(automaton, reading, log_q):
    """Of every sequence each accepted text and its log q, `[(text, log q)]`; a text is its tokens at free positions."""
    rows = log_q.split(reading.free.sum(-1).tolist())
    found = []
    for k, own in enumerate(rows):
        accepted = []
        for text in itertools.product(range(K), repeat=len(own)):
            tokens, drawn = reading.ids[k].clone(), iter(text)
            tokens[reading.free[k]] = torch.tensor(list(drawn))
            state = 0
            for token, skip in zip(tokens.tolist(), reading.skipped[k].tolist(), strict=True):
                state = state if skip else automaton.step(state, token)
            if state != -1 and automaton.accepting[state]:
                accepted.append((text, own[range(len(own)), list(text)].sum()))
        found.append(accepted)
    return found


SEEDS = [s for s in range(40) if all(enumerated(automaton_of(s), *batch_of(s)))][:8]


def test_there_are_cases():
    assert len(SEEDS) == 8


@pytest.mark.parametrize("seed", SEEDS)
def test_log_p_its_gradient_and_the_posterior_are_sums_over_all_texts(seed):
    automaton, (reading, logits) = automaton_of(seed), batch_of(seed)
    conditioning = Conditioning(Transitions(automaton), torch.device("cpu"))
    log_q = logits.log_softmax(-1).requires_grad_()
    texts = enumerated(automaton, reading, log_q)
    expected = torch.stack([torch.stack([log for _, log in accepted]).logsumexp(0) for accepted in texts])
    found = conditioning.log_accept(reading, log_q)
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=0)
    weights = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    (mine,) = torch.autograd.grad((found * weights).sum(), log_q)
    (reference,) = torch.autograd.grad((expected * weights).sum(), log_q)
    torch.testing.assert_close(mine, reference, atol=1e-10, rtol=0)

    messages = conditioning.messages(reading, conditioning.classes.log_probs(log_q.detach()))
    posterior = conditioning.posterior(reading, messages, log_q.detach()).exp()
    row = 0
    for accepted, total, n in zip(texts, expected, reading.free.sum(-1).tolist(), strict=True):
        for place in range(n):
            for v in range(K):
                mass = sum((log - total).exp().detach() for text, log in accepted if text[place] == v)
                assert float(posterior[row, v]) == pytest.approx(float(mass), abs=1e-10)
            row += 1


@pytest.mark.parametrize("seed", SEEDS[:4])
def test_whatever_is_drawn_along_the_states_of_a_joint_draw_is_accepted(seed):
    """Every combination of tokens that are left; and over the draws each text has its own share of the posterior."""
    automaton, (reading, logits) = automaton_of(seed), batch_of(seed)
    conditioning = Conditioning(Transitions(automaton), torch.device("cpu"))
    log_q = logits.log_softmax(-1)
    texts = enumerated(automaton, reading, log_q)
    messages = conditioning.messages(reading, conditioning.classes.log_probs(log_q))
    draws = 4000
    paths = messages.draw(np.random.default_rng(seed).random((draws, T, 3)))
    total = [dict.fromkeys([text for text, _ in accepted], 0.0) for accepted in texts]
    shares: dict[bytes, list] = {}
    for states in paths:
        key = states.tobytes()
        if key not in shares:
            along = conditioning.given_states(reading, states, log_q).softmax(-1)
            shares[key] = [own.tolist() for own in along.split(reading.free.sum(-1).tolist())]
        for k, own in enumerate(shares[key]):
            for text in itertools.product(*[[v for v in range(K) if row[v] > 0] for row in own]):
                total[k][text] += np.prod(
                    [row[v] for row, v in zip(own, text, strict=True)]
                )  # a KeyError: not accepted
    for k, accepted in enumerate(texts):
        z = torch.stack([log for _, log in accepted]).logsumexp(0)
        for text, log in accepted:
            p = float((log - z).exp())
            assert abs(total[k][text] / draws - p) < 5 * (p * (1 - p) / draws) ** 0.5 + 1e-9


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sharp", [1.0, 40.0])
def test_masses_of_classes_are_sums_over_their_tokens(dtype, sharp):
    """Also where the largest class has next to nothing, and where it has nothing at all."""
    generator = torch.Generator().manual_seed(0)
    class_of = torch.randint(-1, 4, (300,), generator=generator)
    class_of[60:] = 2
    automaton = TokenAutomaton(
        np.zeros((1, 4), np.int32), class_of.numpy().astype(np.int32), np.ones(1, bool), np.zeros((1, 0))
    )
    logits = sharp * torch.randn(20, 300, generator=generator, dtype=dtype)
    logits[3, 60:] -= 500
    logits[4, 60:] = -torch.inf
    logits[5] = -torch.inf
    logits[5, 70] = 0
    found = TokenClasses(automaton, logits.device).masses(logits)[:, :4]
    expected = torch.stack([logits[:, class_of == c].double().logsumexp(-1) for c in range(4)], 1)
    torch.testing.assert_close(
        found.double(), expected, atol=1e-5 * sharp if dtype == torch.float32 else 1e-11, rtol=1e-5
    )
    support = torch.stack([torch.randperm(300, generator=generator)[:50] for _ in range(20)])
    some = TokenClasses(automaton, logits.device).masses_of_some(logits.gather(1, support), support)
    inside = torch.zeros_like(logits, dtype=torch.bool).scatter(1, support, True)
    assert torch.allclose(
        some, TokenClasses(automaton, logits.device).masses(logits.masked_fill(~inside, -torch.inf))[:, :4], atol=1e-4
    )


def test_masses_that_float32_holds_in_part_are_exact_too():
    """From exp(-87) to exp(-104) its numbers lose digit after digit, until none is left."""
    automaton = TokenAutomaton(
        np.zeros((1, 2), np.int32), np.array([0, 1, 1, 1], np.int32), np.ones(1, bool), np.zeros((1, 0))
    )
    depth = torch.linspace(60, 120, 241)
    logits = torch.stack([torch.zeros_like(depth), -depth, -depth - 0.3, -depth - 5], 1)
    found = TokenClasses(automaton, logits.device).masses(logits)[:, 1]
    torch.testing.assert_close(found, logits[:, 1:].logsumexp(1), atol=1e-4, rtol=0)


@pytest.mark.parametrize("shape", [(0, 3, 10), (2, 0, 10)])
def test_no_text_and_no_position_have_a_probability_too(shape):
    log_probs = torch.zeros(shape, requires_grad=True)
    found = RegexConstraint("a?").log_probability(log_probs, with_holes(), ends=[1])
    assert found.tolist() == [0.0] * shape[0]
    found.sum().backward()
    assert log_probs.grad.shape == shape
