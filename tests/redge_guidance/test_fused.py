"""The kernels of `redge` and `reindge`, on CUDA or in Triton's interpreter (`TRITON_INTERPRET=1`)."""

import os
from importlib.util import find_spec

import pytest
import torch
from torch.autograd import grad as gradient

from redge_guidance import redge
from redge_guidance.estimators import ReDGE, ReDGECov, ReinDGE, StraightThrough, fused

pytestmark = [
    pytest.mark.skipif(
        find_spec("triton") is None or not (torch.cuda.is_available() or os.environ.get("TRITON_INTERPRET") == "1"),
        reason="needs Triton, and a CUDA device or TRITON_INTERPRET=1",
    ),
    # The interpreter counts with numpy, which warns of what is meant: Philox wraps around, exp2(-inf) is 0.
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
DEFAULT = fused.Settings(4, 0.7, hard=True, reinmax=False)
SETTINGS = [
    DEFAULT,
    fused.Settings(4, 0.7, hard=False, reinmax=False),
    fused.Settings(4, 0.7, hard=True, reinmax=True),
    fused.Settings(2, 0.5, hard=True, reinmax=True),
    fused.Settings(3, 0.2, hard=True, reinmax=False),
    fused.Settings(6, 0.35, hard=False, reinmax=False),
]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """So that a short row takes several; lanes that no column falls on among them."""
    for name, size in (("BLOCK", 32), ("GRADIENT_BLOCK", 16), ("WARPS", 1), ("GRADIENT_WARPS", 1)):
        monkeypatch.setattr(fused, name, size)


def seeded(seed=0):
    return torch.Generator(DEVICE).manual_seed(seed)


def rows_of(rows=3, categories=71, dtype=torch.float32):
    """Logits, with two of -inf, and a slope."""
    generator = torch.Generator().manual_seed(5)
    logits = 2 * torch.randn(rows, categories, generator=generator)
    logits[:, 3] = logits[-1, -1] = -torch.inf
    slope = torch.randn(rows, categories, generator=generator)
    return logits.to(DEVICE, dtype), slope.to(DEVICE, dtype)


def drawn_from(logits, settings, seed=0, stored=False):
    return fused.draw(logits, settings, *fused.randomness(logits, seeded(seed), stored))


def noise_of(kept, categories):
    """z of what is kept; of a seed, read off two steps from equal logits: `log(D_2 S_2) = v_2 (z + v_2 / K)`."""
    if kept.noise.numel():
        return kept.noise.double()
    flat = torch.zeros(len(kept.state), categories, device=DEVICE)
    soft, again = fused.draw(flat, fused.Settings(2, 0.5, hard=False, reinmax=False), kept.seed, kept.noise)
    return (soft.double() * again.state[:, -1:].double()).log() - 1 / categories


def estimator_of(settings):
    kind = ReinDGE if settings.reinmax else ReDGE
    return kind(settings.steps, settings.t1, hard=settings.hard)


@pytest.mark.parametrize("stored", [False, True], ids=["seed", "stored"])
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_draw_and_gradient_are_those_of_the_chain(settings, stored):
    logits, slope = rows_of()
    soft, kept = drawn_from(logits, settings, 0, stored)
    z = noise_of(kept, logits.shape[1])
    reference = estimator_of(settings)
    expected = reference.soft(logits.double(), z)
    tolerance = 1e-5 * max(1.0, 1 / settings.t1 - 1)  # exponents are v_n times as large as z
    if not settings.hard:
        torch.testing.assert_close(soft.double(), expected, rtol=tolerance, atol=1e-7)
    drawn = kept.drawn[:, None] if settings.hard else None
    ours = fused.differentiate(logits, kept, slope, settings).double()
    gradient64 = reference.vjp(logits.double(), z, drawn, slope.double())
    assert (ours - gradient64).norm() <= tolerance * gradient64.norm()
    assert (ours[:, 3] == 0).all()
    # The state is the highest logit and the masses: that of the last step is the last softmax's.
    log_mass = (logits.double() - kept.state[:, :1].double()).logsumexp(-1)
    torch.testing.assert_close(kept.state[:, 1].double().log(), log_mass, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_rounded_at_the_end_only(dtype):
    logits, slope = rows_of(dtype=dtype)
    settings = DEFAULT._replace(hard=False)
    soft, kept = drawn_from(logits, settings)
    single, kept32 = drawn_from(logits.float(), settings)
    torch.testing.assert_close(soft, single.to(dtype))
    ours = fused.differentiate(logits, kept, slope, settings)
    assert ours.dtype == dtype
    torch.testing.assert_close(ours, fused.differentiate(logits.float(), kept32, slope.float(), settings).to(dtype))


@pytest.mark.parametrize("categories", [1, 5, 16, 32, 33, 64])
@pytest.mark.parametrize("rows", [1, 4])
def test_any_shape(rows, categories):
    logits, slope = torch.zeros(rows, categories, device=DEVICE), torch.ones(rows, categories, device=DEVICE)
    _, kept = drawn_from(logits, DEFAULT)
    assert ((kept.drawn >= 0) & (kept.drawn < categories)).all()
    ours = fused.differentiate(logits, kept, slope, DEFAULT)
    torch.testing.assert_close(ours, torch.zeros_like(ours), rtol=0, atol=1e-6)  # a constant has no slope


def test_the_only_category_is_drawn_wherever_it_is():
    columns = torch.tensor([0, 31, 32, 69, 70])
    logits = torch.full((5, 71), -torch.inf).scatter(1, columns[:, None], -1e4).to(DEVICE)
    _, kept = drawn_from(logits, DEFAULT)
    assert kept.drawn.tolist() == columns.tolist()
    assert fused.has_mass(kept.state)


def test_logits_as_far_apart_as_they_can_be():
    least = torch.finfo(torch.float32).min
    logits = torch.tensor([[least, 3e38, least, 3e38], [least] * 4, [1e4, -1e4, 0.0, 1e4]], device=DEVICE)
    soft, kept = drawn_from(logits, DEFAULT._replace(hard=False))
    assert fused.has_mass(kept.state)
    torch.testing.assert_close(soft.sum(-1), torch.ones(3, device=DEVICE))
    z = noise_of(kept, 4)
    below = logits.double() - logits.double().amax(-1, keepdim=True)  # z + 3e38 would be 3e38
    torch.testing.assert_close(soft.double(), ReDGE(hard=False).soft(below, z), rtol=1e-5, atol=1e-7)


def test_draws_follow_the_soft_sample():
    rows, categories = (200, 40) if INTERPRETED else (20_000, 40)
    logits = (1.5 * torch.randn(categories, generator=torch.Generator().manual_seed(2))).expand(rows, -1).to(DEVICE)
    settings = fused.Settings(2, 0.5, hard=True, reinmax=False)
    _, kept = drawn_from(logits.contiguous(), settings, 7)
    soft = ReDGE(2, 0.5).soft(logits.double(), noise_of(kept, categories))
    # Rows have soft samples of their own: the sum over rows of one_hot - D has this covariance.
    excess = torch.nn.functional.one_hot(kept.drawn, categories).double().sum(0) - soft.sum(0)
    covariance = torch.diag(soft.sum(0)) - soft.T @ soft
    chi_squared = excess @ torch.linalg.pinv(covariance, rtol=1e-10) @ excess
    freedom = categories - 1
    assert abs(chi_squared.item() - freedom) < 4 * (2 * freedom) ** 0.5


def test_noise_is_standard_normal_and_independent():
    rows, categories = (8, 4096) if INTERPRETED else (64, 16384)
    fused.BLOCK = 1024
    _, kept = drawn_from(torch.zeros(rows, categories, device=DEVICE), fused.Settings(2, 0.5, False, False), 1)
    z = noise_of(kept, categories)
    error = z.numel() ** -0.5
    assert abs(z.mean()) < 4 * error
    assert abs(z.var() - 1) < 4 * 2**0.5 * error
    assert abs((z**3).mean()) < 4 * 15**0.5 * error
    assert abs((z**4).mean() - 3) < 4 * 96**0.5 * error
    normal = torch.distributions.Normal(0.0, 1.0)
    sorted_z = z.flatten().sort().values
    steps = torch.arange(1, z.numel() + 1, device=DEVICE).double() / z.numel()
    assert (normal.cdf(sorted_z) - steps).abs().max() < 2 * error  # Kolmogorov and Smirnov
    flat = z.flatten()
    for lag in (1, 2, 3, 4, 8, categories):
        assert abs((flat[lag:] * flat[:-lag]).mean()) < 4 * error
        assert abs((flat[lag:] ** 2 * flat[:-lag] ** 2).mean() - 1) < 4 * 8**0.5 * error


def test_a_seed_decides():
    logits, _ = rows_of()
    settings = DEFAULT._replace(hard=False)
    one, again, other = (drawn_from(logits, settings, seed) for seed in (1, 1, 2))
    assert torch.equal(one[0], again[0])
    assert not torch.allclose(one[0], other[0])
    rows = drawn_from(logits[:1].expand(2, -1).contiguous(), settings)[0]
    assert not torch.allclose(rows[0], rows[1])


# ---- where they are used ----


@pytest.fixture
def by_kernels(monkeypatch):
    """As if these logits were large, and on a CUDA device."""
    monkeypatch.setattr(fused, "SMALLEST", 1)
    monkeypatch.setattr(fused, "SHORTEST_ROW", 1)
    if INTERPRETED:

        def settings_of(estimator, logits, generator):
            jacobian = vars(type(estimator)).get("fused")
            grid = estimator.grid if jacobian else (1.0,)
            return jacobian and fused.Settings(len(grid), grid[0], estimator.hard, jacobian == "reinmax")

        monkeypatch.setattr(fused, "settings_of", settings_of)


@pytest.mark.parametrize("estimator", [ReDGE(), ReinDGE(), ReDGE(3, 0.5, hard=False)], ids=str)
def test_estimators_draw_by_them(by_kernels, estimator):
    logits, slope = rows_of(6)
    logits, slope = logits.view(2, 3, -1).requires_grad_(), slope.view(2, 3, -1)
    sample = estimator(logits, seeded())
    settings = fused.settings_of(estimator, logits, seeded())
    soft, kept = drawn_from(logits.detach().view(6, -1), settings)
    expected = fused.one_hot(kept.drawn, logits.detach().view(6, -1)) if estimator.hard else soft
    assert torch.equal(sample, expected.view_as(sample))
    (ours,) = gradient((sample * slope).sum(), logits)
    reference = fused.differentiate(logits.detach().view(6, -1), kept, slope.view(6, -1), settings)
    assert torch.equal(ours, reference.view_as(ours))


def test_gradient_has_no_derivative(by_kernels):
    logits, slope = rows_of()
    logits.requires_grad_()
    (first,) = gradient((redge(logits, generator=seeded()) * slope.requires_grad_()).sum(), logits, create_graph=True)
    with pytest.raises(RuntimeError, match="has no derivative"):
        first.sum().backward()


@pytest.mark.parametrize(
    ("value", "message"), [(torch.nan, "contain nan"), (torch.inf, "contain inf"), (-torch.inf, "-inf everywhere")]
)
def test_errors_are_those_of_the_cpu(by_kernels, value, message):
    logits, _ = rows_of()
    logits[1, :] = value
    if value > 0 or value != value:
        logits[1, 1:] = 0.0
    with pytest.raises(ValueError, match=message):
        redge(logits, generator=seeded())


@pytest.mark.skipif(not torch.cuda.is_available() or INTERPRETED, reason="needs a CUDA device")
def test_what_they_are_used_for():
    large = torch.zeros(64, 1024, device="cuda")
    assert fused.settings_of(ReDGE(), large, None) == fused.Settings(4, 0.7, True, False)
    assert fused.settings_of(ReinDGE(hard=False), large, torch.Generator("cuda")) is not None

    class Own(ReDGE):
        pass

    for estimator in (ReDGECov(), StraightThrough(), ReDGE(1), ReDGE(7), ReDGE(4, 0.1), ReDGE(4, 1.0), Own()):
        assert fused.settings_of(estimator, large, None) is None
    for logits in (large[:32], large.double(), torch.zeros(1024, 64, device="cuda"), large.cpu()):
        assert fused.settings_of(ReDGE(), logits, None) is None
    assert fused.settings_of(ReDGE(), large, torch.Generator()) is None
    mapped = torch.func.vmap(redge, randomness="different")(torch.zeros(4, 64, 1024, device="cuda"))
    assert (mapped.sum(-1) == 1).all()
