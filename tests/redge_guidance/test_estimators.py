import dataclasses
import itertools
import math

import pytest
import scipy.stats
import torch
from torch.autograd import grad as gradient

from redge_guidance import ReDGE, StraightThrough, redge, straight_through
from redge_guidance.estimators import (
    ESTIMATORS,
    EntropyMix,
    Estimator,
    GumbelSoftmax,
    OneHotCategoricalReDGE,
    ReDGECov,
    ReinDGE,
    ReinforceLOO,
    ReinMax,
    ScoreFunction,
    Soft,
    entropy_mix,
    gumbel_softmax,
    redge_cov,
    reindge,
    reinforce_loo,
    reinmax,
    sampling,
    soft,
)

SETTINGS = [(1, 1.0), (2, 0.6), (4, 0.7), (5, 0.35)]
DRAWN = {  # one-hot samples with a gradient
    "redge": ReDGE(),
    "redge_cov": ReDGECov(),
    "reindge": ReinDGE(),
    "straight_through": StraightThrough(),
    "reinmax": ReinMax(),
    "gumbel_softmax": GumbelSoftmax(0.8),
}
ALL = DRAWN | {"entropy_mix": EntropyMix(), "soft": Soft()}
SOFT = {name: dataclasses.replace(estimator, hard=False) for name, estimator in ALL.items()}
REGISTERED = {name: kind() for name, kind in ESTIMATORS.items()}
FUNCTIONS = {  # the function, and its estimator with settings
    redge: ReDGE(3, 0.6),
    redge_cov: ReDGECov(3, 0.6),
    reindge: ReinDGE(3, 0.6),
    gumbel_softmax: GumbelSoftmax(0.5),
    entropy_mix: EntropyMix(0.5),
    straight_through: StraightThrough(),
    reinmax: ReinMax(),
    soft: Soft(),
}
every_drawn = pytest.mark.parametrize("estimator", DRAWN.values(), ids=DRAWN)
every = pytest.mark.parametrize("estimator", ALL.values(), ids=ALL)
hard_and_soft = pytest.mark.parametrize(
    "estimator", [*ALL.values(), *SOFT.values()], ids=[*ALL, *(f"{name}-soft" for name in SOFT)]
)
registered = pytest.mark.parametrize("estimator", REGISTERED.values(), ids=REGISTERED)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def rows_of(rows=6, categories=7, seed=0):
    """Logits that ask for a gradient, and a slope to multiply it with, both float64."""
    generator = seeded(seed)
    logits = 1.5 * torch.randn(rows, categories, dtype=torch.float64, generator=generator)
    return logits.requires_grad_(), torch.randn(rows, categories, dtype=torch.float64, generator=generator)


# ---- every gradient against autograd, or explicit matrices, for the same draw ----


def chain(logits, num_steps, t1, noise, matched=False):
    """The last denoiser output of the paper's chain and the x it saw, step by step, for autograd."""
    grid = torch.linspace(t1, 1, num_steps, dtype=torch.float64).tolist() if num_steps > 1 else [1.0]
    pi = logits.softmax(-1)
    v = (pi * (1 - pi)).clamp(min=0.1) if matched else torch.ones_like(pi)
    mean = pi if matched else torch.zeros_like(pi)
    x = mean + v.sqrt() * noise
    for i in reversed(range(num_steps)):
        a, s = 1 - grid[i], grid[i]
        # log N(x; a e_k + s mean, s^2 v) as a function of k; without matching the square of e_k is the same for all k
        likelihood = (a * x - a * s * mean - (a**2 / 2 if matched else 0)) / (v * s**2)
        denoised = torch.softmax(logits + likelihood, -1)
        if i > 0:
            before = x
            x = (1 - grid[i - 1]) * denoised + grid[i - 1] / s * (x - a * denoised)
    return denoised, before if num_steps > 1 and i > 0 else x


def reinmax_matrix(p, d):
    u = d - p
    return (torch.diag_embed(p) - p[..., :, None] * p[..., None, :] + u[..., :, None] * u[..., None, :]) / 2


def reference_gradient(name, estimator, logits, sample, slope):
    noise = torch.empty_like(logits)
    pi = logits.softmax(-1)
    matched = name == "redge_cov"
    if name == "gumbel_softmax":
        noise.exponential_(generator=seeded())
        return gradient((((logits - noise.log()) / estimator.tau).softmax(-1) * slope).sum(), logits)[0]
    if name in ("redge", "redge_cov", "reindge"):
        noise.normal_(generator=seeded())
        d, x = chain(logits, estimator.num_steps, estimator.t1, noise, matched)
        whole = gradient((d * slope).sum(), logits, retain_graph=True)[0]
        if name != "reindge":
            return whole
        t1, direct = estimator.t1, logits.detach().requires_grad_()
        again = torch.softmax(direct + (1 - t1) / t1**2 * x.detach(), -1)
        torch.testing.assert_close(again, d)
        through_x = whole - gradient((again * slope).sum(), direct)[0]
        return through_x + torch.einsum("rjk,rk->rj", reinmax_matrix(d.detach(), sample), slope)
    if name == "reinmax":
        return torch.einsum("rjk,rk->rj", reinmax_matrix(pi.detach(), sample), slope)
    return gradient((pi * slope).sum(), logits)[0]


@every
def test_gradient_for_a_fixed_draw(estimator):
    name = next(key for key, value in ALL.items() if value is estimator)
    logits, slope = rows_of()
    sample = estimator(logits, generator=seeded())
    (ours,) = gradient((sample * slope).sum(), logits)
    torch.testing.assert_close(ours, reference_gradient(name, estimator, logits, sample.detach(), slope))


@pytest.mark.parametrize(("num_steps", "t1"), SETTINGS)
@pytest.mark.parametrize("function", [redge, redge_cov, reindge])
def test_soft_sample_and_gradient_equal_autograd_through_the_chain(function, num_steps, t1):
    logits, slope = rows_of(15, 7)
    noise = torch.randn(15, 7, generator=seeded(), dtype=torch.float64)
    ours = function(logits.view(3, 5, 7), num_steps, t1, hard=False, generator=seeded()).view(15, 7)
    reference, _ = chain(logits, num_steps, t1, noise, matched=function is redge_cov)
    torch.testing.assert_close(ours, reference)
    torch.testing.assert_close(gradient((ours * slope).sum(), logits), gradient((reference * slope).sum(), logits))


@pytest.mark.parametrize(("num_steps", "t1"), SETTINGS)
@pytest.mark.parametrize("function", [redge, redge_cov])
def test_hard_sample_is_one_hot_with_the_gradient_of_the_soft_one(function, num_steps, t1):
    logits, weights = rows_of(4, 6)
    hard = function(logits, num_steps, t1, generator=seeded(3))
    assert ((hard == 0) | (hard == 1)).all()
    torch.testing.assert_close(hard.sum(-1), torch.ones(4, dtype=torch.float64))
    # A function that is not linear: its slope is taken at the hard sample, its direction is the soft sample's.
    ours = gradient((weights * (hard + 0.5) ** 3).sum(), logits)
    slope = 3 * weights * (hard.detach() + 0.5) ** 2
    soft_sample = function(logits, num_steps, t1, hard=False, generator=seeded(3))
    torch.testing.assert_close(ours, gradient((soft_sample * slope).sum(), logits))


# ---- special cases ----


@pytest.mark.parametrize(
    ("special", "general"),
    [
        (redge, straight_through),
        (reindge, reinmax),
        (lambda *args, **kwargs: entropy_mix(*args[:1], 1.0, **kwargs), straight_through),
        (lambda *args, **kwargs: entropy_mix(*args[:1], 0.0, **kwargs), soft),
    ],
    ids=["redge-straight_through", "reindge-reinmax", "aps-straight_through", "entropy_mix-soft"],
)
def test_special_cases_are_exact(special, general):
    logits, slope = rows_of(50, 9)
    one, other = special(logits, 1, generator=seeded()), general(logits, generator=seeded())
    assert torch.equal(one, other)
    assert torch.equal(*(gradient((sample * slope).sum(), logits)[0] for sample in (one, other)))


@pytest.mark.parametrize(
    ("function", "limit"), [(redge, straight_through), (redge_cov, straight_through), (reindge, reinmax)]
)
def test_t1_of_one_is_the_limit(function, limit):
    logits, slope = rows_of(200, 5)
    results = [function(logits, 4, t1, generator=seeded()) for t1 in (1 - 1e-7, 1.0)]
    close, exact = (gradient((sample * slope).sum(), logits)[0] for sample in results)
    assert torch.equal(results[1], limit(logits, generator=seeded()))
    assert torch.equal(exact, gradient((limit(logits, generator=seeded()) * slope).sum(), logits)[0])
    soft_close = function(logits, 4, 1 - 1e-7, hard=False, generator=seeded())
    torch.testing.assert_close(soft_close, logits.softmax(-1), atol=1e-5, rtol=0)
    if function is not reindge:  # whose gradient depends on the draw, which another amount of noise changes
        torch.testing.assert_close(close, exact, atol=1e-5, rtol=0)


def test_straight_through_gradient_is_the_softmax_jacobian():
    logits, slope = rows_of()
    pi = logits.detach().softmax(-1)
    (ours,) = gradient((straight_through(logits) * slope).sum(), logits)
    jacobian = torch.diag_embed(pi) - pi[:, :, None] * pi[:, None, :]
    torch.testing.assert_close(ours, torch.einsum("rjk,rk->rj", jacobian, slope))


def test_entropy_mix_weighs_by_the_relative_entropy():
    logits = torch.tensor([[0.0, 0, 0, 0], [0, 0, -torch.inf, -torch.inf], [0, -torch.inf, -torch.inf, -torch.inf]])
    sample = entropy_mix(logits, generator=seeded())
    assert sample[0].sort().values.tolist() == [0, 0, 0, 1]  # w = 1: the draw
    assert sample[1].sort().values.tolist() == [0, 0, 0.25, 0.75]  # w = log 2 / log 4
    assert sample[2].tolist() == [1, 0, 0, 0]


def test_gumbel_softmax_is_torch_s():
    """At a temperature, hard and soft, from the same noise."""
    logits, slope = rows_of()
    for hard, tau in itertools.product((True, False), (0.5, 2.0)):
        torch.manual_seed(0)
        theirs = torch.nn.functional.gumbel_softmax(logits, tau=tau, hard=hard)
        ours = gumbel_softmax(logits, tau, hard, generator=seeded())
        torch.testing.assert_close(ours, theirs)
        torch.testing.assert_close(gradient((ours * slope).sum(), logits), gradient((theirs * slope).sum(), logits))


# ---- expectations, by enumeration of all sequences ----


def sequences(categories, length):
    """One-hot, `(K^L, L, K)`."""
    ids = torch.cartesian_prod(*[torch.arange(categories)] * length).view(-1, length)
    return torch.nn.functional.one_hot(ids, categories).double()


def probability(logits, x):
    return (x * logits.log_softmax(-1)).sum(-1).sum(-1).exp()


def exact_gradient(logits, reward):
    x = sequences(logits.shape[1], len(logits))
    return gradient((probability(logits, x) * reward(x)).sum(), logits)[0]


def quadratic(length, categories, seed=5):
    matrix = torch.randn(length * categories, length * categories, dtype=torch.float64, generator=seeded(seed))
    return lambda x: torch.einsum("ni,ij,nj->n", x.flatten(1), matrix, x.flatten(1))


def expected_gradient(vjp, logits, reward):
    """`sum_x p(x) vjp(x)` with the reward's gradient at every sequence x."""
    x = sequences(logits.shape[1], len(logits)).requires_grad_()
    (slopes,) = gradient(reward(x).sum(), x)
    weights = probability(logits.detach(), x.detach())
    return sum(w * vjp(d, g) for w, d, g in zip(weights, x.detach(), slopes, strict=True))


def test_reinmax_is_the_second_order_mean():
    logits, _ = rows_of(3, 4)
    reward = quadratic(3, 4)

    def vjp(x, slope):
        return ReinMax().vjp(logits.detach(), None, x.argmax(-1, keepdim=True), slope)

    exact = exact_gradient(logits, reward)
    torch.testing.assert_close(expected_gradient(vjp, logits, reward), exact)
    pi = logits.detach().softmax(-1)
    jacobian = torch.diag_embed(pi) - pi[:, :, None] * pi[:, None, :]
    euler = expected_gradient(lambda x, slope: torch.einsum("ljk,lk->lj", jacobian, slope), logits, reward)
    assert (euler - exact).abs().max() > 0.05  # straight-through is exact for linear rewards only


@pytest.mark.parametrize("function", [straight_through, reinmax, soft])
def test_multilinear_rewards_have_exact_gradients_on_average(function):
    """A product over positions is linear in each; 60,000 draws, five standard errors."""
    logits, _ = rows_of(2, 3)
    table = torch.randn(2, 3, dtype=torch.float64, generator=seeded(4))

    def reward(x):
        return (x * table).sum(-1).prod(-1)

    draws = logits.detach().expand(60000, -1, -1).clone().requires_grad_()
    (grads,) = gradient(reward(function(draws, generator=seeded())).sum(), draws)
    error = 5 * grads.std(0) / math.sqrt(len(grads)) + 1e-9
    assert ((grads.mean(0) - exact_gradient(logits, reward)).abs() < error).all()


def test_reinforce_loo_is_unbiased():
    """The mean over all pairs of sequences is the gradient of the expected reward."""
    logits, _ = rows_of(2, 3)
    x = sequences(3, 2)
    rewards, p = torch.randn(len(x), dtype=torch.float64, generator=seeded(1)), probability(logits, x)
    mean = torch.zeros(2, 3, dtype=torch.float64)
    for i, j in itertools.product(range(len(x)), repeat=2):
        mean += (p[i] * p[j]).detach() * reinforce_loo(logits.detach(), rewards[[i, j], None], x[[i, j]])
    torch.testing.assert_close(mean, gradient((p * rewards).sum(), logits)[0])


def test_reinforce_loo_uses_the_mean_of_the_others():
    logits, _ = rows_of(2, 3)
    x = straight_through(logits.detach().expand(4, -1, -1), generator=seeded())
    rewards = torch.tensor([[1.0, 2.0], [0.0, 5.0], [-3.0, 1.0], [4.0, 4.0]], dtype=torch.float64)
    others = torch.stack([(rewards.sum(0) - rewards[k]) / 3 for k in range(4)])
    expected = ((rewards - others)[..., None] * (x - logits.detach().softmax(-1))).mean(0)
    torch.testing.assert_close(reinforce_loo(logits.detach(), rewards, x), expected)


# ---- what holds for all ----


@pytest.mark.parametrize("categories", [2, 10, 50])
@every_drawn
def test_samples_follow_softmax(estimator, categories):
    torch.manual_seed(categories)
    logits = torch.randn(categories)
    draws = 400_000
    # A mean of `draws` one-hots has an expected total variation of at most sqrt(K / draws) / 2 = 0.0056 at K = 50,
    # where ReDGE-cov adds 0.005 of its own.
    frequency = sum(estimator(logits.expand(draws // 4, -1), generator=seeded(i)).mean(0) / 4 for i in range(4))
    assert (frequency - logits.softmax(-1)).abs().sum() / 2 < 0.01


STATED = [  # what the docstrings say, and probabilities that come close to it
    (ReDGE(4, 0.5), 0.006, [0.7, 0.15, 0.15]),
    (ReDGE(4, 0.3), 0.041, [0.7, *[0.075] * 4]),
    (ReDGE(2, 0.3), 0.12, [0.7, 0.15, 0.15]),
    (ReDGECov(4, 0.7), 0.009, [0.8, 0.1, 0.1]),
    (ReDGECov(4, 0.5), 0.062, [0.6, *[0.4 / 9] * 9]),
    (ReDGECov(2, 0.5), 0.19, [0.5, *[0.5 / 9] * 9]),
]


@pytest.mark.parametrize(("estimator", "stated", "pi"), STATED)
def test_distance_from_softmax_is_the_stated_one(estimator, stated, pi):
    logits = torch.tensor(pi).log()
    noise = torch.randn(2**18, len(pi), generator=seeded(7))
    q = estimator.soft(logits.expand(2**18, -1).contiguous(), noise).double().mean(0)
    distance = (q - logits.double().softmax(-1)).abs().sum() / 2
    assert 0.8 * stated < distance < stated + 0.001


@every
def test_gradient_does_not_see_a_constant_shift(estimator):
    logits, slope = rows_of(8, 5)
    sample, shifted = (estimator(x, generator=seeded()) for x in (logits, logits + 7))
    torch.testing.assert_close(sample, shifted)
    ours, other = (gradient((x * slope).sum(), logits)[0] for x in (sample, shifted))
    torch.testing.assert_close(ours.sum(-1), torch.zeros(8, dtype=torch.float64))
    torch.testing.assert_close(ours, other)


@hard_and_soft
def test_minus_infinity_is_never_drawn_and_gets_no_gradient(estimator):
    torch.manual_seed(0)
    logits = torch.randn(5000, 6)
    logits[:, [0, 3, 5]] = -torch.inf
    logits.requires_grad_()
    sample = estimator(logits, generator=seeded())
    assert sample[:, [0, 3, 5]].sum() == 0
    (grad,) = gradient((sample * torch.randn(5000, 6)).sum(), logits)
    assert grad.isfinite().all()
    assert grad[:, [0, 3, 5]].abs().sum() == 0
    assert grad[:, 1].abs().sum() > 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(7,), (2, 3, 7), (0, 7), (2, 0, 7), (3, 1)])
@every
def test_any_dtype_and_leading_shape(estimator, shape, dtype):
    logits = torch.zeros(shape, dtype=dtype, requires_grad=True)
    sample = estimator(logits, generator=seeded())
    assert sample.shape == shape
    assert sample.dtype == dtype
    sample.sum().backward()
    assert logits.grad.shape == shape
    assert logits.grad.dtype == dtype


@every
def test_half_precision_is_computed_in_float32(estimator):
    logits = torch.randn(50, 300, generator=seeded()).bfloat16().requires_grad_()
    wide = logits.detach().float().requires_grad_()
    slope = torch.randn(50, 300, generator=seeded(1)).bfloat16()
    low, high = estimator(logits, generator=seeded()), estimator(wide, generator=seeded())
    assert torch.equal(low, high.bfloat16())
    (ours,), (expected,) = gradient((low * slope).sum(), logits), gradient((high * slope).sum(), wide)
    assert torch.equal(ours, expected.bfloat16())


@every
def test_layout_and_chunks_do_not_matter(estimator, monkeypatch):
    torch.manual_seed(0)
    base = torch.randn(6, 40)
    results = []
    for logits, elements in itertools.product((base.T, base.T.contiguous()), (2**20, 12)):
        monkeypatch.setattr(sampling, "CHUNK_ELEMENTS", elements)
        leaf = logits.detach().requires_grad_()
        sample = estimator(leaf, generator=seeded())
        results.append((sample.detach(), gradient((sample * torch.arange(6.0)).sum(), leaf)[0]))
    for sample, grad in results[1:]:
        torch.testing.assert_close(sample, results[0][0])
        torch.testing.assert_close(grad, results[0][1])


@every
def test_generator_decides_everything_and_the_global_state_is_left_alone(estimator):
    logits = torch.randn(20, 9, generator=seeded())
    state = torch.get_rng_state()
    first, again, other = (estimator(logits, generator=seeded(seed)) for seed in (5, 5, 6))
    assert torch.equal(first, again)
    assert isinstance(estimator, Soft) or not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(5)
    assert torch.equal(estimator(logits), first)  # without one, it is the global state that decides


@pytest.mark.parametrize("kind", ["normal", "exponential"])
def test_noise_does_not_depend_on_the_number_of_threads(kind, monkeypatch):
    monkeypatch.setattr(sampling, "NOISE_BLOCK", 2**12)
    like, threads, state = torch.empty(200, 1000), torch.get_num_threads(), torch.get_rng_state()
    drawn = []
    for number in (1, 4, threads):
        torch.set_num_threads(number)
        drawn.append(sampling.noise_like(like, kind, seeded()))
    assert torch.equal(drawn[0], drawn[1])
    assert torch.equal(torch.get_rng_state(), state)
    noise = drawn[0].double().flatten()
    mean, variance = (0, 1) if kind == "normal" else (1, 1)
    assert (noise.mean() - mean).abs() < 0.01  # 4.5 standard errors
    assert (noise.var() - variance).abs() < 0.03
    blocks = noise[: 48 * 2**12].view(48, -1)
    assert torch.corrcoef(blocks).fill_diagonal_(0).abs().max() < 0.08  # 5 standard errors: no block repeats another
    with torch.inference_mode():
        assert torch.equal(sampling.noise_like(like, kind, seeded()), drawn[0])


@pytest.mark.parametrize("kind", [ReDGE, ReinDGE, ReDGECov])
def test_a_support_is_the_dense_estimator_on_the_restricted_distribution(kind):
    logits, slope = rows_of(6, 40)
    kept, support = logits.detach().topk(5)
    outside = torch.ones(6, 40).scatter(-1, support, 0).bool()
    noise = torch.randn(6, 40, dtype=torch.float64, generator=seeded())
    drawn = torch.arange(6)[:, None] % 5
    estimator = kind(3, 0.6)
    dense = (logits.detach().masked_fill(outside, -torch.inf), noise, support.gather(-1, drawn), slope)
    sparse = (kept, noise.gather(-1, support), drawn, slope.gather(-1, support))
    torch.testing.assert_close(estimator.soft(*dense[:2]).gather(-1, support), estimator.soft(*sparse[:2]))
    torch.testing.assert_close(estimator.vjp(*dense).gather(-1, support), estimator.vjp(*sparse))


# ---- torch's transformations ----


@every
def test_second_derivative_is_a_clear_error(estimator):
    logits = torch.randn(3, 4, requires_grad=True)
    (grad,) = gradient((estimator(logits) ** 2).sum(), logits, create_graph=True)
    with pytest.raises(RuntimeError, match="the gradient of a sample has no derivative"):
        grad.sum().backward()


@every
def test_vmap_draws_for_every_row(estimator):
    logits = torch.randn(6, 3, 5, generator=seeded())
    mapped = torch.func.vmap(lambda x: estimator(x, generator=None), in_dims=1, randomness="different")
    torch.manual_seed(3)
    sample = mapped(logits)
    torch.manual_seed(3)
    assert torch.equal(sample, estimator(logits.movedim(1, 0)))
    if isinstance(estimator, Soft):  # draws nothing
        assert torch.equal(torch.func.vmap(estimator)(logits), sample.movedim(0, 1))
        return
    with pytest.raises(ValueError, match="`randomness` of vmap must be 'different'"):
        torch.func.vmap(estimator, randomness="same")(logits)


@every
def test_per_row_gradients_with_vmap(estimator):
    logits, slope = rows_of(4, 5)
    logits = logits.detach()

    def loss(x, w):
        return (estimator(x) * w).sum()

    torch.manual_seed(3)
    grads = torch.func.vmap(torch.func.grad(loss), randomness="different")(logits, slope)
    torch.manual_seed(3)
    leaf = logits.clone().requires_grad_()
    torch.testing.assert_close(grads, gradient((estimator(leaf) * slope).sum(), leaf)[0])


@every
def test_autocast_changes_nothing(estimator):
    logits = torch.randn(4, 9, requires_grad=True)
    results = []
    for enabled in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            sample = estimator(logits, generator=seeded())
        results.append((sample, gradient(sample[:, 0].sum(), logits)[0]))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # dynamo does so itself
@pytest.mark.parametrize(
    "estimator",
    [*ALL.values(), *FUNCTIONS],
    ids=[*(type(e).__name__ for e in ALL.values()), *(f.__name__ for f in FUNCTIONS)],
)
def test_compiles_into_one_graph(estimator):
    logits, slope = torch.randn(4, 9, requires_grad=True), torch.randn(4, 9)

    def loss(x):
        return (estimator(x) * slope).sum()

    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")  # as compile traces it, without a C++ compiler
    grads = []
    for function in (compiled, loss):
        torch.manual_seed(0)
        grads.append(gradient(function(logits), logits)[0])
    torch.testing.assert_close(*grads)


# ---- torch.distributions ----


def test_distribution_has_the_shapes_of_torch_s():
    logits = torch.randn(2, 1, 5, generator=seeded())
    ours = OneHotCategoricalReDGE(logits=logits, num_steps=3, t1=0.6)
    theirs = torch.distributions.OneHotCategoricalStraightThrough(logits=logits)
    assert ours.has_rsample
    for q in (ours, ours.expand((4, 2, 3))):
        p = theirs.expand(q.batch_shape)
        assert q.batch_shape == p.batch_shape
        assert q.event_shape == (5,)
        for shape in ((), (7,), (2, 3)):
            sample = q.rsample(shape)
            assert sample.shape == p.rsample(shape).shape
            assert q.log_prob(sample).shape == shape + q.batch_shape
    assert ours.expand((4, 2, 3)).estimator == ReDGE(3, 0.6)


def test_distribution_draws_by_redge():
    logits = torch.randn(3, 5, generator=seeded(), requires_grad=True)
    slope = torch.randn(2, 3, 5, generator=seeded(1))
    q = OneHotCategoricalReDGE(logits=logits, num_steps=3, t1=0.6)
    torch.manual_seed(0)
    sample = q.rsample((2,))
    torch.manual_seed(0)
    same = redge(logits.log_softmax(-1).expand(2, 3, 5), 3, 0.6)
    assert torch.equal(sample, same)
    torch.testing.assert_close(gradient((sample * slope).sum(), logits), gradient((same * slope).sum(), logits))
    probs = torch.tensor([0.2, 0.0, 0.8], requires_grad=True)
    draws = OneHotCategoricalReDGE(probs).rsample((1000,))
    assert draws[:, 1].sum() == 0
    (grad,) = gradient((draws * torch.tensor([1.0, 0.0, 0.0])).sum(), probs)
    assert grad.isfinite().all()
    assert grad[0] > 0


def test_distribution_has_a_divergence():
    q = OneHotCategoricalReDGE(logits=torch.randn(3, 5, generator=seeded()))
    p = torch.distributions.OneHotCategorical(logits=torch.randn(3, 5, generator=seeded(1)))
    expected = (q.probs * (q.probs.log() - p.probs.log())).sum(-1)
    other = OneHotCategoricalReDGE(logits=p.logits)
    torch.testing.assert_close(torch.distributions.kl_divergence(q, p), expected)
    torch.testing.assert_close(torch.distributions.kl_divergence(q, other), expected)
    with pytest.raises(ValueError, match="`t1` must lie in"):
        OneHotCategoricalReDGE(logits=torch.zeros(3), t1=2.0)


# ---- bad input ----

SETTINGS_ERRORS = [
    ({"num_steps": 0}, "`num_steps` must be an integer >= 1, got 0"),
    ({"num_steps": 2.0}, "`num_steps` must be an integer"),
    ({"t1": 0.0}, r"`t1` must lie in \(0, 1\], got 0.0"),
    ({"t1": 1.1}, r"`t1` must lie in \(0, 1\], got 1.1"),
    ({"t1": float("nan")}, r"`t1` must lie in"),
    ({"num_steps": 1, "t1": 0.5}, "`t1` must be 1 when `num_steps=1`, got 0.5"),
]


@pytest.mark.parametrize(("settings", "message"), SETTINGS_ERRORS)
@pytest.mark.parametrize(("function", "kind"), [(redge, ReDGE), (redge_cov, ReDGECov), (reindge, ReinDGE)])
def test_bad_settings(function, kind, settings, message):
    with pytest.raises(ValueError, match=message):
        function(torch.zeros(2, 3), **settings)
    with pytest.raises(ValueError, match=message):
        kind(**settings)


@pytest.mark.parametrize("tau", [0, -1.0, float("inf"), float("nan"), "1"])
def test_bad_tau(tau):
    with pytest.raises(ValueError, match="`tau` must be > 0, got"):
        gumbel_softmax(torch.zeros(2, 3), tau)
    with pytest.raises(ValueError, match="`tau` must be > 0, got"):
        GumbelSoftmax(tau)


@pytest.mark.parametrize("weight", [-0.1, 1.5, "entropy"])
def test_bad_weight(weight):
    with pytest.raises(ValueError, match=r"`weight` must lie in \[0, 1\]"):
        EntropyMix(weight)


BAD_LOGITS = {
    "integers": (torch.zeros(2, 3, dtype=torch.long), "must be a floating point tensor, got torch.int64"),
    "a list": ([0.0, 1.0], "must be a floating point tensor, got list"),
    "no categories": (torch.zeros(2, 0), r"must be \(..., K\) with K >= 1"),
    "a scalar": (torch.tensor(0.0), r"must be \(..., K\) with K >= 1"),
    "nan": (torch.tensor([[0.0, 1.0], [float("nan"), 0.0]]), "contain nan; look for"),
    "inf": (torch.tensor([[0.0, torch.inf], [0.0, 0.0]]), "contain inf; keep logits"),
    "impossible": (torch.tensor([[0.0, 1.0], [-torch.inf, -torch.inf]]), "have a row that is -inf everywhere"),
}


@pytest.mark.parametrize("bad", BAD_LOGITS)
@every
def test_bad_logits(estimator, bad):
    logits, message = BAD_LOGITS[bad]
    with pytest.raises(ValueError, match="`logits` " + message):
        estimator(logits)


def test_generator_on_another_device():
    class Elsewhere:
        device = torch.device("cuda:0")

    with pytest.raises(ValueError, match="`generator` must be on the device of the logits, cpu, got cuda:0"):
        redge(torch.zeros(2, 3), generator=Elsewhere())


def test_bad_input_of_reinforce_loo():
    logits, samples = torch.zeros(2, 3), torch.zeros(4, 2, 3)
    for arguments, message in [
        ((logits, torch.zeros(1), samples[:1]), r"`samples` must be \(n, 2, 3\) with n >= 2 draws, got \(1, 2, 3\)"),
        ((logits, torch.zeros(4), samples[:, :1]), r"`samples` must be \(n, 2, 3\)"),
        ((logits, torch.zeros(3), samples), r"`rewards` must be \(n, ...\) with n = 4"),
        ((logits, torch.zeros(4, 5), samples), "`rewards` must be"),
        ((logits, torch.zeros(()), samples), "`rewards` must be"),
    ]:
        with pytest.raises(ValueError, match=message):
            reinforce_loo(*arguments)


@pytest.mark.parametrize("hard", [0, 1, None, "False"])
@registered
def test_bad_hard(estimator, hard):
    with pytest.raises(ValueError, match="`hard` must be True or False, got"):
        type(estimator)(hard=hard)


def test_hard_where_there_is_no_choice():
    with pytest.raises(
        ValueError, match="`hard` must be False for Soft, which has no hard samples; use straight_through"
    ):
        Soft(hard=True)
    with pytest.raises(ValueError, match="`hard` must be True for ReinforceLOO"):
        ReinforceLOO(hard=False)


# ---- the contract ----


@registered
def test_one_hot_is_true_by_behaviour(estimator):
    sample = estimator(rows_of(50, 7)[0], generator=seeded()).detach()
    ones, zeros = (sample == 1).sum(-1), (sample == 0).sum(-1)
    assert (((ones == 1) & (zeros == 6)).all() if estimator.one_hot else (ones == 0).any()).item()


@registered
def test_gradient_at_is_true_by_behaviour(estimator):
    """Straight-through declares the sample; what cannot take the reward's gradient there declares the logits."""
    logits, weights = rows_of(50, 7)
    if estimator.needs == "values":
        assert not estimator(logits, generator=seeded()).requires_grad
        return
    sample = estimator(logits, generator=seeded())
    at_logits, at_sample = gradient((weights * (sample + 0.5) ** 3).sum(), (logits, sample))
    (expected,) = gradient((logits.softmax(-1) * at_sample).sum(), logits)
    assert torch.allclose(at_logits, expected) == (estimator.gradient_at == "sample")


@registered
def test_needs_values_is_what_score_functions_do(estimator):
    assert isinstance(estimator, Estimator)
    assert isinstance(estimator, ScoreFunction) == (estimator.needs == "values")
    logits, _ = rows_of(50, 7)
    assert estimator(logits, generator=seeded()).requires_grad == (estimator.needs == "gradient")


@pytest.mark.parametrize("estimator", SOFT.values(), ids=SOFT)
def test_soft_samples_are_what_soft_says_and_so_is_their_gradient(estimator):
    logits, _ = rows_of()
    noise = sampling.noise_like(logits.detach(), estimator.noise, seeded())
    ours, reference = estimator(logits, generator=seeded()), estimator.soft(logits.detach(), noise)
    assert torch.equal(ours, reference)
    assert not estimator.one_hot
    assert torch.autograd.gradcheck(lambda x: estimator(x, generator=seeded()), logits)


# ---- names ----


@pytest.mark.parametrize("hard", [True, False])
@pytest.mark.parametrize(("function", "estimator"), FUNCTIONS.items(), ids=[f.__name__ for f in FUNCTIONS])
def test_functions_do_what_the_estimators_do(function, estimator, hard):
    logits, slope = rows_of(5, 8)
    settings = dataclasses.asdict(estimator) | {"hard": hard}
    if function is not soft:  # which ignores it
        estimator = dataclasses.replace(estimator, hard=hard)
    ours, theirs = estimator(logits, generator=seeded()), function(logits, generator=seeded(), **settings)
    assert torch.equal(ours, theirs)
    assert torch.equal(*(gradient((sample * slope).sum(), logits)[0] for sample in (ours, theirs)))


def test_settings_and_hard_make_the_identity_of_an_estimator():
    assert ReDGE() == ReDGE(num_steps=4, t1=0.7, hard=True)
    assert ReDGE(num_steps=1).t1 == 1
    assert ReDGE(5, 0.6, hard=False) != ReDGE(5, 0.6)
    assert ReDGE() != ReinDGE()
    assert "hard=False" in repr(ReDGE(5, 0.6, hard=False))
    assert eval(repr(GumbelSoftmax(0.5, hard=False))) == GumbelSoftmax(0.5, hard=False)
    with pytest.raises(TypeError):
        ReDGE(5, 0.6, False)


def test_names_are_those_of_the_functions():
    assert set(ESTIMATORS) == {*ALL, "reinforce_loo"} == {function.__name__ for function in [*FUNCTIONS, reinforce_loo]}


# ---- the temperature of gumbel_softmax ----

TAUS = [1e-320, 1e-45, 1e-39, 1e-30, 1e-8, 1e-3, 1.0, 1e3, 1e8, 1e30, 1e39, 1e308]


@pytest.mark.parametrize("tau", TAUS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_gumbel_softmax_draws_from_softmax_at_every_temperature(tau, dtype):
    logits = torch.tensor([0.0, -torch.inf, 1.5, -2.0, 0.0], dtype=dtype)
    draws = logits.expand(20000, -1).clone().requires_grad_()
    sample = gumbel_softmax(draws, tau, generator=seeded())
    assert torch.equal(sample, gumbel_softmax(draws, 1.0, generator=seeded()))  # of the same noise the same tokens
    counts = sample.detach().double().sum(0)
    pi = logits.double().softmax(-1)
    assert counts[1] == 0
    kept = [0, 2, 3, 4]
    assert scipy.stats.chisquare(counts[kept], 20000 * pi[kept]).pvalue > 1e-4
    (grad,) = gradient((sample * torch.tensor([1.0, -3.0, 2.0, 0.5, 0.0], dtype=dtype)).sum(), draws)
    assert grad.isfinite().all()
    assert (grad[:, 1] == 0).all()


@pytest.mark.parametrize("tau", TAUS)
def test_soft_gumbel_samples_lie_on_the_simplex_at_every_temperature(tau):
    logits = torch.tensor([[0.0, -torch.inf, 1.5], [-torch.inf, 4.0, -torch.inf]]).expand(50, 2, 3).clone()
    logits.requires_grad_()
    sample = gumbel_softmax(logits, tau, hard=False, generator=seeded())
    torch.testing.assert_close(sample.sum(-1), torch.ones(50, 2))
    assert (sample[:, 1] == torch.tensor([0.0, 1.0, 0.0])).all()
    (grad,) = gradient(sample[..., 2].sum(), logits)
    assert grad.isfinite().all()


# ---- logits that are not mapped ----


@pytest.mark.parametrize("hard", [True, False])
@every
def test_vmap_over_something_else_draws_for_every_index(estimator, hard):
    estimator = dataclasses.replace(estimator, hard=hard and not isinstance(estimator, Soft))
    draws_nothing = isinstance(estimator, Soft) or (not hard and estimator.noise is None)
    logits = torch.zeros(6, 20)

    def of(x, logits):
        return estimator(logits) + 0 * x

    x = torch.zeros(5)
    different = torch.func.vmap(of, (0, None), randomness="different")(x, logits)
    same = torch.func.vmap(of, (0, None), randomness="same")(x, logits)
    assert different.shape == same.shape == (5, 6, 20)
    assert all(torch.equal(same[0], one) for one in same)
    pairs = itertools.combinations(range(5), 2)
    assert all(torch.equal(different[i], different[k]) == draws_nothing for i, k in pairs)
    if not draws_nothing:
        with pytest.raises((RuntimeError, ValueError), match="randomness"):
            torch.func.vmap(of, (0, None))(x, logits)


@every
def test_gradients_of_unmapped_logits_add_up_over_the_indices(estimator):
    logits, slopes = rows_of(4, 5)[0].detach(), torch.randn(3, 4, 5, dtype=torch.float64, generator=seeded(2))

    def loss(logits):
        return torch.func.vmap(lambda w: (estimator(logits) * w).sum(), randomness="different")(slopes).sum()

    torch.manual_seed(3)
    found = torch.func.grad(loss)(logits)
    torch.manual_seed(3)
    leaf = logits.clone().requires_grad_()
    torch.testing.assert_close(found, gradient((estimator(leaf.expand(3, 4, 5)) * slopes).sum(), leaf)[0])
    leaf = logits.clone().requires_grad_()
    torch.manual_seed(3)
    torch.testing.assert_close(gradient(loss(leaf), leaf)[0], found)


def test_nested_vmap_draws_for_every_pair_of_indices():
    logits, x = torch.zeros(20), torch.zeros(3)
    two = torch.func.vmap(
        torch.func.vmap(lambda a, b: straight_through(logits) + a + b, (None, 0), randomness="different"),
        (0, None),
        randomness="different",
    )(x, x)
    assert len({tuple(one.tolist()) for one in two.view(9, 20)}) > 5
    torch.func.vmap(lambda a: redge(logits, hard=False) + a, randomness="different")(x)
