"""On accelerators: no float64, and generators on the CPU. The meta device stands in for one."""

from types import SimpleNamespace

import pytest
import torch
from diffusers.schedulers.scheduling_discrete_ddim import DiscreteDDIMSchedulerOutput
from torch.utils._python_dispatch import TorchDispatchMode

from redge_guidance.estimators.inputs import check_logits
from redge_guidance.estimators.sampling import noise_like
from redge_guidance.pipelines import MaskedDiffusionScheduler
from redge_guidance.pipelines.sampling import random_tokens, uniform
from redge_guidance.pipelines.uniform_scheduler import UniformDiffusionScheduler, where_drawn
from tests.helpers.hosts import seeded


class RefusesFloat64(TorchDispatchMode):
    """As MPS does it."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.dtype == torch.float64 and result.device.type != "cpu":
            raise TypeError(f"{function} makes float64 on {result.device}")
        return result


@pytest.mark.parametrize("make", [MaskedDiffusionScheduler, UniformDiffusionScheduler])
def test_timesteps_need_no_float64(make):
    scheduler = make()
    with RefusesFloat64():
        scheduler.set_timesteps(7, device="meta")
    assert scheduler.timesteps.device.type == "meta"
    scheduler.set_timesteps(7)
    assert scheduler.timesteps.device.type == "cpu"
    with pytest.raises(TypeError, match="float64"), RefusesFloat64():
        torch.zeros(1, dtype=torch.float64, device="meta")


@pytest.mark.parametrize("schedule", ["linear", "cosine", "arccos"])
@pytest.mark.parametrize("counting", ["share", "share_down", "floor"])
@pytest.mark.parametrize("eps", [0.0, 1e-3])
def test_rounded_timesteps_draw_what_exact_ones_draw(schedule, counting, eps):
    """Steps are told by their timestep, whatever its dtype: 60 positions in 3 to 200 steps."""
    for steps in (3, 7, 60, 200):
        results = []
        for dtype in (torch.float64, torch.float32):
            scheduler = MaskedDiffusionScheduler("left_to_right", schedule=schedule, counting=counting, eps=eps)
            scheduler.set_timesteps(steps)
            scheduler.timesteps = scheduler.timesteps.to(dtype)  # as on an accelerator
            sample, left = torch.full((1, 60), 3), []
            for t in scheduler.timesteps:
                sample, _ = scheduler.step(torch.zeros(1, 60, 3), t, sample, mask_token_id=3, temperature=0.0)[:2]
                left.append(int((sample == 3).sum()))
            results.append(left)
        assert results[0] == results[1]
        assert results[0][-1] == 0


@pytest.mark.parametrize("generators", [seeded, lambda: [seeded(1), seeded(2)]])
def test_positions_are_drawn_where_the_generator_is(generators):
    free = torch.tensor([[True, False, True], [True, True, True]])
    for draw in (uniform, lambda free, generator: random_tokens(free, 11, generator)):
        here = draw(free, generators())
        assert here.device.type == "cpu"
        if not isinstance(generators(), list):  # which has to look where it is free
            assert draw(free.to("meta"), generators()).device.type == "meta"


@pytest.mark.parametrize("kind", ["normal", "exponential"])
def test_noise_of_estimators_is_drawn_where_the_generator_is(kind):
    like = torch.zeros(3, 4, device="meta")
    check_logits(like, seeded())
    generator = seeded()
    noise = noise_like(like, kind, generator)
    assert (noise.device.type, noise.shape, noise.dtype) == ("meta", (3, 4), torch.float32)
    assert not torch.equal(generator.get_state(), seeded().get_state())


def test_steps_of_uniform_diffusion_are_drawn_where_the_generator_is():
    logits, sample, seen = torch.zeros(1, 2, 3), torch.zeros(1, 2, dtype=torch.long), []

    def draw(logits, tokens, source):
        seen.append((logits.device.type, tokens.device.type))
        drawn = torch.ones(1, 2, dtype=torch.long)
        return DiscreteDDIMSchedulerOutput(drawn, drawn, drawn.float(), logits)

    output = where_drawn(draw, logits, sample, SimpleNamespace(device=torch.device("meta")))
    assert seen == [("meta", "meta")]
    assert output.pred_logits is logits
    assert output.prev_sample.device.type == "cpu"
    where_drawn(draw, logits, sample, None)
    where_drawn(draw, logits, sample, seeded())
    assert seen[1:] == [("cpu", "cpu")] * 2
