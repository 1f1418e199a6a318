"""Every figure of the trace, of the step and of each sequence, against its formula."""

import copy
import logging
import pickle
import tracemalloc
from dataclasses import replace

import pytest
import torch

from redge_guidance.reward import RewardSum, Term
from redge_guidance.step import DenoisingStep
from redge_guidance.tilting import guided_logits
from redge_guidance.trace import SequenceFigures, StepTrace, Trace
from redge_guidance.updates import Natural
from tests.helpers.hosts import ONE_OF_EACH, seeded
from tests.helpers.settings import plain_config
from tests.helpers.watching import guided, linear, log_p

TABLE = torch.randn(9, generator=seeded(3))
FREE = torch.tensor([[1, 1, 1, 1], [0, 1, 0, 0], [0, 0, 0, 0], [0, 1, 1, 0]]).bool()
settings = pytest.mark.parametrize("support", [None, 3])
temperatures = pytest.mark.parametrize("temperature", [1.0, 0.6])


def step_of(temperature):
    logits = torch.randn(4, 4, 9, generator=seeded(1))
    ids = torch.full((4, 4), 3).masked_fill(FREE, 2)
    return DenoisingStep(logits, ids, FREE, torch.ones_like(FREE), temperature, 0.25, None, reserved=[0, 2])


def figures_of(temperature, support, reward, **config):
    step = step_of(temperature)
    config = {"estimator": "straight_through", "num_draws": 3, "scale": 1.5} | config
    logits, figures = guided_logits(step, reward, plain_config(**config, support=support), seeded())
    return step, (logits / temperature).log_softmax(-1), figures


def by_sequence(values):
    """Means over the free positions of each of the four sequences, 0 where there are none."""
    total = torch.zeros(4).index_add(0, FREE.nonzero()[:, 0], values)
    return total / FREE.sum(-1).clamp(min=1)


def column(figures, name):
    return torch.tensor([float(getattr(sequence, name)) for sequence in figures.sequences])


@settings
@temperatures
def test_reward_is_the_mean_over_draws_and_updates(support, temperature):
    seen = []

    def reward(tokens):
        seen.append(linear(TABLE)(tokens).square())
        return seen[-1]

    update = Natural(num_updates=2)
    _, _, figures = figures_of(temperature, support, reward, update=update)
    values = torch.stack([value.detach().view(3, 4) for value in seen])  # updates, draws, sequences
    assert len(values) == 2
    torch.testing.assert_close(column(figures, "reward"), values.mean((0, 1)))
    assert figures.reward == pytest.approx(values.mean().item(), rel=1e-5)


@settings
@temperatures
def test_kl_is_that_of_the_whole_vocabulary_per_free_token(support, temperature):
    step, log_q, figures = figures_of(temperature, support, linear(TABLE))
    rows = (log_q.exp() * (log_q - log_p(step)).masked_fill(log_q == -torch.inf, 0)).sum(-1)
    torch.testing.assert_close(column(figures, "kl"), by_sequence(rows), atol=1e-5, rtol=1e-3)
    assert figures.kl == pytest.approx(rows.mean().item(), rel=1e-3)
    assert figures.progress == 0.25
    assert column(figures, "free").tolist() == [4, 1, 0, 2]


@settings
@temperatures
def test_entropy_is_that_of_q_on_the_support(support, temperature):
    step, log_q, figures = figures_of(temperature, support, linear(TABLE))
    if support is not None:
        kept = log_p(step).topk(support).indices
        log_q = log_q.gather(-1, kept).log_softmax(-1)
    rows = torch.special.entr(log_q.exp()).sum(-1)
    torch.testing.assert_close(column(figures, "entropy"), by_sequence(rows), atol=1e-5, rtol=1e-3)
    assert figures.entropy == pytest.approx(rows.mean().item(), rel=1e-3)


@settings
@temperatures
def test_grad_norm_is_the_root_mean_square_per_unit_of_reward(support, temperature):
    """The gradient at the sample of twice a linear reward is twice its table, whatever the scale and the draws."""
    step, _, figures = figures_of(temperature, support, lambda tokens: 2 * linear(TABLE)(tokens))
    rows = (2 * TABLE).expand(7, -1)
    if support is not None:
        rows = rows.gather(-1, log_p(step).topk(support).indices)
    squares = rows.square().sum(-1)
    torch.testing.assert_close(column(figures, "grad_norm"), by_sequence(squares).sqrt())
    assert figures.grad_norm == pytest.approx(squares.mean().sqrt().item(), rel=1e-5)


def test_the_norm_is_a_mean_over_the_updates_of_what_the_rule_used():
    used = []

    class Spy(Natural):
        def __call__(self, log_p, ascent, project):
            tell = ascent.used
            ascent.used = lambda grad: (used.append(grad.clone()), tell(grad))
            return super().__call__(log_p, ascent, project)

    _, _, figures = figures_of(1.0, None, lambda t: linear(TABLE)(t) ** 2, update=Spy(num_updates=3))
    squares = torch.stack(used).square().sum(-1)
    assert len(squares) == 3
    assert figures.grad_norm == pytest.approx(squares.mean(-1).sqrt().mean().item(), rel=1e-5)
    expected = torch.stack([by_sequence(update).sqrt() for update in squares]).mean(0)
    torch.testing.assert_close(column(figures, "grad_norm"), expected)


@settings
def test_the_figures_of_a_step_are_means_of_those_of_its_sequences(support):
    _, _, figures = figures_of(0.6, support, lambda t: linear(TABLE)(t) ** 2)
    free = column(figures, "free")
    assert figures.reward == pytest.approx(column(figures, "reward").mean().item(), rel=1e-5)
    for name in ("kl", "entropy"):
        weighted = (column(figures, name) * free).sum() / free.sum()
        assert getattr(figures, name) == pytest.approx(weighted.item(), rel=1e-5)


def test_notes_are_unweighted_means_of_the_terms_over_draws_and_updates():
    seen = {"one": [], "two": []}

    def term(name, power):
        def reward(tokens):
            seen[name].append(linear(TABLE)(tokens) ** power)
            return seen[name][-1]

        return Term(7.0, reward, name)

    _, _, figures = figures_of(1.0, None, RewardSum([term("one", 1), term("two", 2)]), update=Natural(2))
    assert set(figures.notes) == {"one", "two"}
    for name, values in seen.items():
        assert figures.notes[name] == pytest.approx(torch.stack(values).mean().item(), rel=1e-5)


def test_notes_do_not_depend_on_how_the_draws_are_split(monkeypatch):
    """Three draws that are held two and one at a time."""
    seen = []

    def reward(tokens):
        seen.append(linear(TABLE)(tokens) ** 2)
        return seen[-1]

    monkeypatch.setattr("redge_guidance.gradients._MOST_TOGETHER", 2 * 7 * 9)
    _, _, figures = figures_of(1.0, None, RewardSum([Term(1.0, reward, "one")]), update=Natural(1))
    assert [len(values) for values in seen] == [8, 4]
    assert figures.notes["one"] == pytest.approx(torch.cat(seen).mean().item(), rel=1e-5)


@pytest.mark.parametrize("name", ["masked", "llada2", "gemma entropy bound"])
def test_figures_of_hosts_are_those_of_their_own_logits_and_temperature(name):
    pipe, run = ONE_OF_EACH[name]()
    pairs, trace = guided(pipe, run, linear(TABLE[:8]), plain_config(num_draws=1, support=4))
    steps = [(step, logits) for step, logits in pairs if logits is not None]
    for (step, logits), figures in zip(steps, trace, strict=True):
        p, q = log_p(step), (logits / step.temperature).log_softmax(-1)
        rows = (q.exp() * (q - p).masked_fill(q == -torch.inf, 0)).sum(-1)
        assert figures.kl == pytest.approx(rows.mean().item(), rel=1e-2, abs=1e-5)
        assert figures.progress == step.progress
        assert [sequence.free for sequence in figures.sequences] == step.free.sum(-1).tolist()
        assert figures.seconds > 0


def test_the_trace_keeps_its_last_steps_counts_all_and_says_so_once(caplog):
    trace, one = Trace(limit=3), StepTrace(0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    with caplog.at_level(logging.WARNING):
        for k in range(5):
            trace.append(replace(one, progress=k / 5))
    assert ([step.progress for step in trace], trace.total) == ([0.4, 0.6, 0.8], 5)
    assert [record.getMessage().split(";")[0] for record in caplog.records] == [
        "the trace keeps the last 3 guided steps"
    ]


def test_the_trace_is_bounded_by_sequences_too_whatever_the_batch():
    trace, one = Trace(limit=1000, figures=10), StepTrace(0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    figures = SequenceFigures(0.0, 0.0, 0.0, 0.0, 1)
    for k in range(6):
        trace.append(replace(one, step=k, sequences=(figures,) * 4))
    assert [step.step for step in trace] == [4, 5]
    trace.append(replace(one, step=6, sequences=(figures,) * 50))  # the last one stays
    assert [step.step for step in trace] == [6]
    trace.append(replace(one, step=7, sequences=(figures,)))
    assert [step.step for step in trace] == [7]
    trace.clear()
    trace.extend(replace(one, step=k, sequences=(figures,) * 5) for k in range(2))
    assert [step.step for step in trace] == [0, 1]
    assert trace.total == 10


@pytest.mark.parametrize("twin", [copy.copy, copy.deepcopy, lambda trace: pickle.loads(pickle.dumps(trace))])
def test_a_copy_of_a_trace_is_one(twin):
    trace = Trace(limit=2, figures=7)
    for k in range(3):
        trace.append(StepTrace(k / 3, 0.0, 0.0, 0.0, 0.0, 0.0))
    other = twin(trace)
    assert (list(other), other.limit, other.figures, other.total) == (list(trace), 2, 7, 3)


def test_ten_thousand_calls_of_a_big_batch_take_the_memory_of_some():
    def add(count):
        for k in range(count):
            rows = tuple(SequenceFigures(k + 0.5, k + 0.25, k + 0.125, k + 0.1, 4) for _ in range(32))
            trace.append(StepTrace(k / 7, k / 3, 0.0, 0.0, 0.0, 0.0, sequences=rows))
        return tracemalloc.get_traced_memory()[0]

    trace = Trace(figures=3200)
    tracemalloc.start()
    try:
        first, last = add(200), add(10_000)
    finally:
        tracemalloc.stop()
    assert last < first + 50_000
    assert sum(len(step.sequences) for step in trace) == 3200
