import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from redge_guidance import updates
from redge_guidance.divergence import kl, kl_gradient, path
from redge_guidance.estimators import EntropyMix, ReDGE
from redge_guidance.step import DenoisingStep
from redge_guidance.tilting import guided_logits
from redge_guidance.updates import Adam, Gradient, Natural, project_to_budget, row_chunks
from tests.helpers.settings import plain_config


class LinearReward:
    """E_q[r] for a reward that is a sum of one table entry a token, with its exact gradients."""

    def __init__(self, table, scale):
        self.table, self.scale = table, scale

    def gradients(self, log_q):
        return [Gradient(self.table, "sample")]

    start, limit = None, None

    def strengths(self, log_q, grad, mean, shares):
        return torch.full_like(grad[:, :1], self.scale)

    def used(self, grad):
        pass


def problem(rows=6, categories=5):
    torch.manual_seed(0)
    log_p = torch.randn(rows, categories, dtype=torch.float64).log_softmax(-1)
    return log_p, LinearReward(torch.randn(rows, categories, dtype=torch.float64), scale=1.7)


def identity(log_q):
    return log_q


def tilted(log_p, ascent):
    return (log_p + ascent.scale * ascent.table).log_softmax(-1)


def test_kl_and_its_gradient_equal_autograd():
    log_p, _ = problem()
    logits = torch.randn_like(log_p).requires_grad_()
    log_q = logits.log_softmax(-1)
    divergence = torch.distributions.kl_divergence(
        torch.distributions.Categorical(logits=log_q), torch.distributions.Categorical(logits=log_p)
    )
    torch.testing.assert_close(kl(log_q, log_p), divergence)
    (expected,) = torch.autograd.grad(divergence.sum(), logits)
    torch.testing.assert_close(kl_gradient(log_q.detach(), log_p), expected)


@pytest.mark.parametrize("limit", [0.3, 1.0, 50.0])
def test_a_limit_cuts_tilts_above_the_mean_of_their_position(limit):
    """Written out token by token; the one that is impossible stays so."""
    log_p, ascent = problem()
    log_p = log_p.masked_fill(torch.arange(5) == 2, -torch.inf).log_softmax(-1)
    expected = torch.zeros_like(log_p)
    for row in range(len(log_p)):
        p, tilts = log_p[row].exp(), ascent.scale * ascent.table[row]
        mean = sum(float(p[v] * tilts[v]) for v in range(5))
        expected[row] = torch.stack([p[v] * torch.exp(torch.clamp(tilts[v] - mean, max=limit)) for v in range(5)])
    expected /= expected.sum(-1, keepdim=True)
    ascent.limit = limit
    log_q = Natural(1, 1.0)(log_p, ascent, identity)
    torch.testing.assert_close(log_q.exp(), expected)
    assert bool((log_q[:, 2] == -torch.inf).all())
    if limit == 50.0:
        torch.testing.assert_close(log_q, tilted(log_p, ascent))


def test_adam_keeps_within_a_limit():
    log_p, ascent = problem()
    ascent.limit = 0.3
    log_q = Adam(num_updates=200, learning_rate=0.1)(log_p, ascent, identity)
    ratio = log_q - log_p
    spread = ratio.amax(-1) - (log_p.exp() * ratio).sum(-1)
    assert float(spread.amax()) <= 0.3 + 0.1  # by the mean, which moves when tilts are cut
    free = Adam(num_updates=200, learning_rate=0.1)(*problem(), identity) - log_p
    assert float((free.amax(-1) - (log_p.exp() * free).sum(-1)).amin()) > 0.3


def test_a_limit_leaves_what_is_below_it_bit_for_bit_but_for_the_mean():
    log_p, ascent = problem()
    s = torch.full((6, 1), 1.7, dtype=torch.float64)
    far = path(log_p, ascent.table, s, 1e6).log_softmax(-1)
    torch.testing.assert_close(far, path(log_p, ascent.table, s, None).log_softmax(-1), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("limit", [1e39, 1e300, float("inf")])
def test_a_limit_beyond_the_range_of_the_dtype_is_none(limit, dtype):
    log_p, ascent = problem()
    log_p, table, s = log_p.to(dtype), ascent.table.to(dtype), torch.full((6, 1), 1.7, dtype=dtype)
    far = path(log_p, table, s, limit).log_softmax(-1)
    torch.testing.assert_close(far, path(log_p, table, s, None).log_softmax(-1))


def test_one_natural_update_maximises_the_objective_of_a_linear_reward():
    log_p, ascent = problem()
    log_q = Natural(num_updates=1, step_size=1.0)(log_p, ascent, identity)
    torch.testing.assert_close(log_q, tilted(log_p, ascent))
    logits = log_q.clone().requires_grad_()
    q = logits.log_softmax(-1)
    objective = ascent.scale * (q.exp() * ascent.table).sum() - (q.exp() * (q - log_p)).sum()
    (slope,) = torch.autograd.grad(objective, logits)
    torch.testing.assert_close(slope, torch.zeros_like(slope), atol=1e-12, rtol=0)


@pytest.mark.parametrize("step_size", [0.1, 0.5])
def test_smaller_natural_steps_go_the_stated_share_of_the_way(step_size):
    log_p, ascent = problem()
    updates = 3
    log_q = Natural(num_updates=updates, step_size=step_size)(log_p, ascent, identity)
    share = 1 - (1 - step_size) ** updates
    torch.testing.assert_close(log_q, (log_p + share * ascent.scale * ascent.table).log_softmax(-1))


def test_adam_converges_to_the_same_optimum():
    log_p, ascent = problem()
    log_q = Adam(num_updates=3000, learning_rate=0.01)(log_p, ascent, identity)
    torch.testing.assert_close(log_q.softmax(-1), tilted(log_p, ascent).exp(), atol=1e-3, rtol=0)


@pytest.mark.parametrize("update", [Natural(num_updates=2, step_size=0.5), Adam(num_updates=3)])
def test_impossible_tokens_stay_impossible(update):
    log_p, ascent = problem()
    log_p[:, 2] = -torch.inf
    log_q = update(log_p.log_softmax(-1), ascent, identity)
    assert (log_q[:, 2] == -torch.inf).all()
    assert log_q[:, [0, 1, 3, 4]].isfinite().all()
    assert kl(log_q.log_softmax(-1), log_p.log_softmax(-1)).isfinite().all()


def test_projection_stops_at_the_budget_of_each_group():
    log_p, ascent = problem()
    log_q = tilted(log_p, ascent)
    groups = torch.tensor([0, 0, 1, 1, 1, 2])
    weights = torch.tensor([1, 0.5, 1, 1, 0.25, 1], dtype=torch.float64)

    def spent(candidate):
        return torch.zeros(3, dtype=torch.float64).index_add_(0, groups, weights * kl(candidate, log_p))

    budget = spent(log_q) * torch.tensor([0.3, 2.0, 0.01], dtype=torch.float64)
    projected = project_to_budget(log_q, log_p, budget, groups, weights)
    after = spent(projected)
    assert (after <= budget).all()
    torch.testing.assert_close(after[[0, 2]], budget[[0, 2]], rtol=1e-4, atol=0)
    assert torch.equal(projected[2:5], log_q[2:5])  # within its budget: untouched
    # On the geometric path: log q_s - log p is a multiple of log q - log p, up to a constant.
    moved, full = (x - x[..., :1] for x in ((projected - log_p)[:2], (log_q - log_p)[:2]))
    ratio = moved[:, 1:] / full[:, 1:]
    torch.testing.assert_close(ratio, ratio[0, 0].expand_as(ratio))


class OnDemand:
    """Rows of a tensor, computed when they are asked for."""

    def __init__(self, rows):
        self._rows, self.shape = rows, rows.shape

    def __getitem__(self, rows):
        return self._rows[rows].clone()


@pytest.mark.parametrize("update", [Natural(), Adam(num_updates=3)])
def test_rows_on_demand_and_in_chunks_give_what_a_tensor_gives(update, monkeypatch):
    log_p, ascent = problem()
    before = log_p.clone()
    groups, weights = torch.arange(6) // 2, torch.ones(6, dtype=torch.float64)
    budget = torch.full((3,), 0.05, dtype=torch.float64)

    def run(log_p):
        return update(log_p, ascent, lambda log_q: project_to_budget(log_q, log_p, budget, groups, weights))

    whole = run(log_p)
    assert torch.equal(log_p, before)  # p is the caller's
    monkeypatch.setattr(updates, "_CHUNK_ELEMENTS", 11)  # two rows of five
    assert len(list(row_chunks((6, 5)))) == 3
    torch.testing.assert_close(run(OnDemand(log_p)), whole)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Natural(step_size=0.0), r"`step_size` must lie in \(0, 1\], got 0.0"),
        (lambda: Natural(num_updates=0), "`num_updates` must be an integer >= 1, got 0"),
        (lambda: Natural(damping=-1.0), "`damping` must be >= 0"),
        (lambda: Adam(learning_rate=0.0), "`learning_rate` must be > 0, got 0.0"),
        (lambda: Adam(num_updates=1.5), "`num_updates` must be an integer"),
    ],
)
def test_bad_settings(make, message):
    with pytest.raises(ValueError, match=message):
        make()


class Noisy:
    """A gradient in some rows, rounding noise in all; `seed` is the batch that a row is in."""

    scale = 2.0

    def __init__(self, table, noise, seed, at):
        self._table, self._noise, self._at, self.climbed = table, noise, at, []
        self._generator = torch.Generator().manual_seed(seed)

    def gradients(self, log_q):
        noise = self._noise * torch.randn(log_q.shape, generator=self._generator)
        if self._at == "sample":
            return [Gradient(self._table + noise, "sample")]
        q = log_q.exp()
        return [Gradient(q * (self._table - (q * self._table).sum(-1, keepdim=True)) + noise, "logits")]

    start, limit = None, None

    def strengths(self, log_q, grad, mean, shares):
        return torch.full_like(grad[:, :1], self.scale)

    def used(self, grad):
        self.climbed.append(grad)


@pytest.mark.parametrize("noise", [0.0, 1e-9, 1e-8])
@pytest.mark.parametrize("at", ["sample", "logits"])
@given(seed=st.integers(0, 1000), size=st.integers(2, 60))
def test_adam_leaves_alone_what_has_no_gradient_whatever_the_batch(noise, at, seed, size):
    generator = torch.Generator().manual_seed(seed)
    log_p = (4 * torch.randn(6, size, generator=generator)).log_softmax(-1)
    log_p[:, 0] = -torch.inf
    log_p = log_p.log_softmax(-1)
    table = torch.randn(6, size, generator=generator)
    table[::2] = 0  # rows without gradient
    one, other = (
        Adam(num_updates=5)(log_p, Noisy(table, noise, batch, at), identity).log_softmax(-1) for batch in (1, 2)
    )
    torch.testing.assert_close(one[::2], log_p[::2], atol=1e-5, rtol=1e-6)
    torch.testing.assert_close(one.exp(), other.exp(), atol=2e-3, rtol=1e-2)
    assert size < 10 or (one - log_p)[1::2, 1:].abs().max() > 0.1


@pytest.mark.parametrize("estimator", [EntropyMix(), ReDGE()])
def test_adam_in_guidance_moves_no_position_that_the_reward_does_not_see(estimator):
    """Nor does it depend on the batch: a reward of the first position through a float32 network."""
    torch.manual_seed(0)
    first, second = torch.randn(30, 16), torch.randn(16)

    def reward(tokens):
        hidden = (tokens.embed(first) @ torch.ones(16, 16)).tanh()
        return (hidden * torch.tensor([1.0, 1e-9, 0.0, 0.0])[:, None]) @ second @ torch.ones(4)

    config = plain_config(scale=2.0, update="adam", estimator=estimator, support=None, num_draws=2)
    logits = 3 * torch.randn(5, 4, 30)
    moved = []
    for rows in (slice(0, 1), slice(0, 5)):
        ids = torch.zeros(len(logits[rows]), 4, dtype=torch.long)
        everywhere = torch.ones_like(ids, dtype=torch.bool)
        generators = [torch.Generator().manual_seed(k) for k in range(len(ids))]
        step = DenoisingStep(logits[rows], ids, everywhere, everywhere, 1.0, 0.0, None)
        guided, _ = guided_logits(step, reward, config, generators)
        moved.append((guided.view(len(ids), 4, 30).log_softmax(-1) - logits[rows].log_softmax(-1))[0])
    torch.testing.assert_close(moved[0], moved[1], atol=1e-3, rtol=1e-3)
    assert moved[0][0].abs().max() > 0.1
    assert moved[0][1:].abs().max() < 1e-5
