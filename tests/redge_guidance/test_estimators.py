import itertools

import pytest
import torch

from redge_guidance import ReDGE, StraightThrough, estimators, redge, straight_through

SETTINGS = [(1, 1.0), (2, 0.6), (4, 0.7), (5, 0.35)]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def reference_soft(logits, num_steps, t1, noise):
    """The chain of the paper, step by step, for autograd."""
    grid = torch.linspace(t1, 1, num_steps, dtype=torch.float64).tolist() if num_steps > 1 else [1.0]
    x = noise
    for i in reversed(range(num_steps)):
        t = grid[i]
        denoised = torch.softmax(logits + (1 - t) / t**2 * x, -1)
        if i > 0:
            s = grid[i - 1]
            x = (1 - s) * denoised + s / t * (x - (1 - t) * denoised)
    return denoised


@pytest.mark.parametrize(("num_steps", "t1"), SETTINGS)
def test_soft_sample_and_gradient_equal_autograd_through_the_chain(num_steps, t1):
    torch.manual_seed(0)
    logits = torch.randn(3, 5, 7, dtype=torch.float64, requires_grad=True)
    target = torch.randn(3, 5, 7, dtype=torch.float64)
    noise = torch.randn(15, 7, generator=seeded(), dtype=torch.float64).view(3, 5, 7)
    ours = redge(logits, num_steps, t1, hard=False, generator=seeded())
    reference = reference_soft(logits, num_steps, t1, noise)
    torch.testing.assert_close(ours, reference)
    (grad,) = torch.autograd.grad((ours * target).sum(), logits)
    (expected,) = torch.autograd.grad((reference * target).sum(), logits)
    torch.testing.assert_close(grad, expected)


@pytest.mark.parametrize(("num_steps", "t1"), SETTINGS)
def test_hard_sample_is_one_hot_with_the_gradient_of_the_soft_one(num_steps, t1):
    torch.manual_seed(0)
    logits = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(4, 6, dtype=torch.float64)
    hard = redge(logits, num_steps, t1, generator=seeded(3))
    assert ((hard == 0) | (hard == 1)).all()
    torch.testing.assert_close(hard.sum(-1), torch.ones(4, dtype=torch.float64))
    # A function that is not linear: its slope is taken at the hard sample, its direction is the soft sample's.
    (grad,) = torch.autograd.grad((weights * (hard + 0.5) ** 3).sum(), logits)
    slope = 3 * weights * (hard.detach() + 0.5) ** 2
    soft = redge(logits, num_steps, t1, hard=False, generator=seeded(3))
    (expected,) = torch.autograd.grad((soft * slope).sum(), logits)
    torch.testing.assert_close(grad, expected)


def test_one_step_is_straight_through_exactly():
    torch.manual_seed(0)
    logits = torch.randn(50, 9, requires_grad=True)
    slope = torch.randn(50, 9)
    one, other = redge(logits, num_steps=1, generator=seeded()), straight_through(logits, generator=seeded())
    assert torch.equal(one, other)
    grads = [torch.autograd.grad((sample * slope).sum(), logits)[0] for sample in (one, other)]
    assert torch.equal(*grads)
    pi = logits.softmax(-1)
    expected = torch.einsum("rk,rkj->rj", slope, torch.diag_embed(pi) - pi[:, :, None] * pi[:, None, :])
    torch.testing.assert_close(grads[0], expected)


@pytest.mark.parametrize("categories", [2, 10, 50])
@pytest.mark.parametrize("estimator", [ReDGE(), StraightThrough()], ids=["redge", "straight_through"])
def test_samples_follow_softmax(estimator, categories):
    torch.manual_seed(categories)
    logits = torch.randn(categories)
    draws = 400_000
    # A mean of `draws` one-hots has an expected total variation of at most sqrt(K / draws) / 2 = 0.0056 at K = 50.
    frequency = estimator(logits.expand(draws, -1), generator=seeded(1)).mean(0)
    assert (frequency - logits.softmax(-1)).abs().sum() / 2 < 0.01


def test_gradient_does_not_see_a_constant_shift():
    torch.manual_seed(0)
    logits = torch.randn(8, 5, dtype=torch.float64, requires_grad=True)
    slope = torch.randn(8, 5, dtype=torch.float64)
    (grad,) = torch.autograd.grad((redge(logits, generator=seeded()) * slope).sum(), logits)
    torch.testing.assert_close(grad.sum(-1), torch.zeros(8, dtype=torch.float64))
    (shifted,) = torch.autograd.grad((redge(logits + 7, generator=seeded()) * slope).sum(), logits)
    torch.testing.assert_close(grad, shifted)


@pytest.mark.parametrize("num_steps", [1, 4])
def test_minus_infinity_is_never_drawn_and_gets_no_gradient(num_steps):
    torch.manual_seed(0)
    logits = torch.randn(5000, 6)
    logits[:, [0, 3, 5]] = -torch.inf
    logits.requires_grad_()
    sample = redge(logits, num_steps, generator=seeded())
    assert sample[:, [0, 3, 5]].sum() == 0
    (grad,) = torch.autograd.grad((sample * torch.randn(5000, 6)).sum(), logits)
    assert grad.isfinite().all()
    assert grad[:, [0, 3, 5]].abs().sum() == 0
    assert grad[:, 1].abs().sum() > 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(7,), (2, 3, 7), (0, 7), (2, 0, 7)])
def test_any_dtype_and_leading_shape(dtype, shape):
    logits = torch.zeros(shape, dtype=dtype, requires_grad=True)
    sample = redge(logits, generator=seeded())
    assert sample.shape == shape
    assert sample.dtype == dtype
    sample.sum().backward()
    assert logits.grad.shape == shape
    assert logits.grad.dtype == dtype


def test_layout_and_chunks_do_not_matter(monkeypatch):
    torch.manual_seed(0)
    base = torch.randn(6, 40)
    results = []
    for logits, elements in itertools.product((base.T, base.T.contiguous()), (2**20, 12)):
        monkeypatch.setattr(estimators, "_CHUNK_ELEMENTS", elements)
        leaf = logits.detach().requires_grad_()
        sample = redge(leaf, generator=seeded())
        (grad,) = torch.autograd.grad((sample * torch.arange(6.0)).sum(), leaf)
        results.append((sample.detach(), grad))
    for sample, grad in results[1:]:
        assert torch.equal(sample, results[0][0])
        assert torch.equal(grad, results[0][1])


def test_generator_decides_everything_and_the_global_state_is_left_alone():
    logits = torch.randn(20, 9, generator=seeded())
    state = torch.get_rng_state()
    first, again, other = (redge(logits, generator=seeded(seed)) for seed in (5, 5, 6))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)


def test_second_derivative_is_a_clear_error():
    logits = torch.randn(3, 4, requires_grad=True)
    (grad,) = torch.autograd.grad((redge(logits) ** 2).sum(), logits, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_steps": 0}, "`num_steps` must be an integer >= 1, got 0"),
        ({"num_steps": 2.0}, "`num_steps` must be an integer"),
        ({"t1": 0.0}, r"`t1` must lie in \(0, 1\)"),
        ({"t1": 1.0}, r"`t1` must lie in \(0, 1\)"),
        ({"num_steps": 1, "t1": 0.5}, "`t1` must be 1 when `num_steps=1`, got 0.5"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        redge(torch.zeros(2, 3), **settings)
    with pytest.raises(ValueError, match=message):
        ReDGE(**settings)


def test_bad_logits():
    with pytest.raises(ValueError, match="`logits` must be a floating point tensor, got torch.int64"):
        straight_through(torch.zeros(2, 3, dtype=torch.long))
    with pytest.raises(ValueError, match=r"`logits` must be \(..., K\) with K >= 1"):
        straight_through(torch.zeros(2, 0))


def test_dataclasses_do_what_the_functions_do():
    logits = torch.randn(5, 8, generator=seeded())
    assert torch.equal(ReDGE(3, 0.6)(logits, generator=seeded()), redge(logits, 3, 0.6, generator=seeded()))
    assert torch.equal(StraightThrough()(logits, generator=seeded()), straight_through(logits, generator=seeded()))
    assert ReDGE() == ReDGE(num_steps=4, t1=0.7)
    assert ReDGE(num_steps=1).t1 == 1
