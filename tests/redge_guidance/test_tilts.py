"""What is kept from step to step: judged by averages and tilts computed again from what the host had."""

import pytest
import torch

from redge_guidance import GuidanceConfig
from redge_guidance.divergence import kl
from redge_guidance.step import DenoisingStep
from redge_guidance.tilts import Kept, Tilts, carried
from redge_guidance.updates import Natural
from tests.helpers.hosts import TEXTS, masked, seeded, uniform
from tests.helpers.tiny import tiny_pipeline
from tests.helpers.watching import guided, linear, log_p

TABLE = torch.randn(8, generator=seeded(3))
JUMP = Natural(1, 1.0, 0.0)
HOSTS = {
    "masked": lambda: masked(num_inference_steps=6, temperature=2.0),
    "random order": lambda: masked(pipe=tiny_pipeline(unmasking_order="random"), num_inference_steps=6),
    "remasking": lambda: masked(pipe=tiny_pipeline(unmasking_order="remasking"), num_inference_steps=6),
    "blocks": lambda: masked(("a b", "c d"), block_length=2, num_inference_steps=4),  # of both at the same steps
    "uniform": lambda: uniform(("a b", "")),
    "llada2": TEXTS["llada2"],
}


def curved(tokens):
    """Not linear: its gradient differs from step to step."""
    value = linear(TABLE)(tokens)
    return value - 0.1 * value.square()


def tilts_of(step, logits):
    """`log q - log p`, of mean 0, on the canvas: `(batch, length, V)`, 0 where nothing is free or can be drawn."""
    p, q = log_p(step), (logits / step.temperature).log_softmax(-1)
    ratio = (q - p).masked_fill(p == -torch.inf, torch.nan)
    canvas = torch.zeros(*step.free.shape, p.shape[-1])
    canvas[step.free] = (ratio - ratio.nanmean(-1, keepdim=True)).nan_to_num()
    return canvas


def kl_of(step, logits):
    """KL(q || p) of every sequence, nats per free token."""
    rows = kl((logits / step.temperature).log_softmax(-1), log_p(step))
    total = torch.zeros(len(step.ids)).index_add_(0, step.free.nonzero()[:, 0], rows)
    return total / step.free.sum(-1).clamp(min=1)


def spied(grads, *settings):
    class Spy(Natural):
        def __call__(self, log_p, ascent, project):
            tell = ascent.used
            ascent.used = lambda grad: (grads.append(grad.clone()), tell(grad))
            return super().__call__(log_p, ascent, project)

    return Spy(*settings)


@pytest.mark.parametrize("every", [1, 2, 3])
@pytest.mark.parametrize("name", HOSTS)
def test_between_two_asks_the_model_is_tilted_as_before(name, every):
    """And the reward is asked at steps 0, n, 2n, ..., or where the first token of a position is to be drawn."""
    pipe, run = HOSTS[name]()
    calls = []

    def reward(tokens):
        calls.append(len(tokens))
        return curved(tokens)

    config = GuidanceConfig(1.0, "soft", JUMP, every=every, warm_start=0.0, support=None)
    pairs, trace = guided(pipe, run, reward, config)
    pairs = [(step, logits) for step, logits in pairs if step.free.any()]
    assert len(pairs) > every
    count = len(pairs[0][0].ids)
    seen, kept, since, asked = torch.zeros(count, 0).bool(), torch.zeros(count, 0, 8), 0, 0
    for (step, logits), figures in zip(pairs, trace, strict=True):
        longer = step.free.shape[1] - seen.shape[1]
        seen = torch.nn.functional.pad(seen, (0, longer))
        kept = torch.nn.functional.pad(kept, (0, 0, 0, longer))
        new = (step.free & ~seen).any()
        seen = seen | step.free
        since = 0 if new else since
        free = step.free.any(-1)
        assert all(one.asked == (since % every == 0) for one, here in zip(figures.sequences, free, strict=True) if here)
        if since % every == 0:
            kept, asked = tilts_of(step, logits), asked + 1
        else:
            torch.testing.assert_close(tilts_of(step, logits), kept * step.free[..., None], atol=2e-4, rtol=1e-4)
        since += 1
    assert len(calls) == asked


@pytest.mark.parametrize("support", [None, 4])
def test_the_budget_holds_at_all_steps_along_the_same_tilt(support):
    pipe, run = masked(("", "a b"), num_inference_steps=6, temperature=3.0)
    config = GuidanceConfig(50.0, "soft", JUMP, every=3, kl_budget=0.1, support=support)
    pairs, trace = guided(pipe, run, curved, config)
    for (step, logits), figures in zip(pairs, trace, strict=True):
        spent = kl_of(step, logits)
        assert (spent <= 0.1 * (1 + 1e-3)).all()
        torch.testing.assert_close(spent, torch.tensor([one.kl for one in figures.sequences]), atol=1e-5, rtol=1e-3)
    if support is None:
        first, second = (tilts_of(*pair)[pairs[1][0].free].flatten(1) for pair in pairs[:2])
        parallel = torch.nn.functional.cosine_similarity(first, second, dim=-1)
        torch.testing.assert_close(parallel, torch.ones_like(parallel), atol=1e-4, rtol=0)


SETTINGS = [
    {"scale": 1.5},
    {"scale": 1.5, "warm_start": 0.0},
    {"scale": 1.5, "warm_start": 0.6},
    {"target": 5.0, "kl_budget": 40.0},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("eta", [0.5, 0.3])
@pytest.mark.parametrize("name", ["masked", "remasking", "blocks", "uniform"])
def test_q_is_tilted_by_the_average_of_the_gradients_of_all_steps(name, eta, settings):
    pipe, run = HOSTS[name]()
    grads = []
    config = GuidanceConfig(estimator="soft", update=spied(grads, 1, eta), every=1, support=None, **settings)
    pairs, trace = guided(pipe, run, curved, config)
    mean = torch.zeros(*pairs[0][0].free.shape, 8)
    for k, ((step, logits), figures) in enumerate(zip(pairs, trace, strict=True)):
        if any(one.free and not one.strength for one in figures.sequences):  # at rest: an average begins anew
            assert k > 0
            break
        now = (1 - eta) * config.warm_start * mean[step.free] + eta * grads[k]
        mean = torch.zeros_like(mean)
        mean[step.free] = now
        s = torch.tensor([one.strength for one in figures.sequences])[step.free.nonzero()[:, 0], None]
        expected = (log_p(step) + s * now).softmax(-1)
        torch.testing.assert_close((logits / step.temperature).softmax(-1), expected, atol=2e-5, rtol=1e-3)


def test_tilts_on_another_support_are_those_of_the_dense_computation():
    generator = seeded(1)
    supports = [torch.stack([torch.randperm(9, generator=generator)[:4] for _ in range(5)]) for _ in range(2)]
    values = torch.randn(5, 4, generator=generator)
    dense = torch.zeros(5, 9).scatter(-1, supports[0], values)
    kept = Kept(values, torch.ones(5, 1), torch.ones(5, 1), supports[0])
    assert torch.equal(kept.on(supports[1]), dense.gather(-1, supports[1]))
    assert torch.equal(kept.on(supports[0]), values)
    assert torch.equal(
        Kept(dense, torch.ones(5, 1), torch.ones(5, 1), None).on(supports[1]), dense.gather(-1, supports[1])
    )
    assert Kept(dense, torch.ones(5, 1), torch.ones(5, 1), None).on(None) is dense
    with pytest.raises(ValueError, match="begin anew with another `support`"):
        kept.on(None)


def step_of(logits, free):
    return DenoisingStep(logits, torch.full(free.shape, 3), free, torch.ones_like(free), 0.7, 0.0, None, reserved=[2])


def test_carried_logits_keep_the_tokens_outside_the_support():
    generator = seeded(2)
    free = torch.tensor([[1, 1, 0, 1], [0, 1, 1, 0]]).bool()
    step = step_of(torch.randn(2, 4, 9, generator=generator), free)
    found = torch.tensor([True, False, True, True, True])
    support = torch.stack([torch.randperm(9, generator=generator)[:4] for _ in range(4)])
    kept = Kept(torch.randn(4, 4, generator=generator), torch.ones(4, 1), torch.ones(4, 1), support)
    moved, divergence, _ = carried(step, found, kept, None)
    p, q = log_p(step).exp(), moved.logits().softmax(-1)
    expected = p.clone()
    for row, ids, tilt in zip(found.nonzero()[:, 0], support, kept.values, strict=True):
        within = p[row, ids] * tilt.exp()
        expected[row, ids] = within * p[row, ids].sum() / within.sum()
    torch.testing.assert_close(q, expected)
    torch.testing.assert_close(divergence, kl(q.log(), p.log()), atol=1e-6, rtol=1e-4)
    spent = carried(step, found, kept, 0.02)[1]
    assert spent[:3].sum() <= 3 * 0.02 * (1 + 1e-4)
    assert spent[3:].sum() <= 2 * 0.02 * (1 + 1e-4)


def test_tilts_are_those_of_a_sequence_and_a_position():
    """Kept by parts of a batch, at other positions each time, on a canvas that grows: as a table of them has it."""
    generator, tilts = seeded(5), Tilts()
    table = {}
    for length in (4, 4, 6, 6):
        free = torch.rand(3, length, generator=generator) < 0.6
        going = torch.rand(3, generator=generator) < 0.7
        mine = free & going[:, None]
        kept = Kept(torch.randn(int(mine.sum()), 2, generator=generator), *[torch.ones(int(mine.sum()), 1)] * 2, None)
        tilts.keep(free, kept, going)
        table = {place: value for place, value in table.items() if not going[place[0]]}
        table |= {tuple(place): value for place, value in zip(mine.nonzero().tolist(), kept.values, strict=True)}
        asked = torch.rand(3, length, generator=generator) < 0.8
        places = [tuple(place) for place in asked.nonzero().tolist()]
        found, at = tilts.at(asked)
        assert found.tolist() == [place in table for place in places]
        assert torch.equal(at.values, torch.stack([table[place] for place in places if place in table]))
    assert tilts.at(torch.ones(2, 6).bool()) is None  # another batch
