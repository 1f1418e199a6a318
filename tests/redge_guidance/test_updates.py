import pytest
import torch

from redge_guidance import updates
from redge_guidance.updates import Adam, Gradient, Natural, kl, kl_gradient, project_to_budget, row_chunks


class LinearReward:
    """E_q[r] for a reward that is a sum of one table entry a token, with its exact gradients."""

    def __init__(self, table, scale):
        self.table, self.scale = table, scale

    def gradients(self, log_q):
        return [Gradient(self.table, "sample")]

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
