"""What is handed to a scheduler is float32, whatever the model computes in: half precision swallows small tilts."""

import pytest
import torch
from diffusers import DiscreteDDIMScheduler

from redge_guidance import GuidanceConfig
from tests.helpers.hosts import amused, gemma, llada2, masked, masked_image
from tests.helpers.watching import guided, log_p, outputs_of

TABLE = torch.linspace(0, 0.01, 12)  # less than bfloat16 can tell apart near 2
HALF = {"masked": masked, "llada2": llada2, "gemma": lambda: gemma(DiscreteDDIMScheduler()), "images": masked_image}
HALF |= {"amused": lambda: amused(height=8, width=8)}


@pytest.mark.parametrize("make", HALF.values(), ids=HALF)
def test_small_tilts_of_half_precision_logits_reach_the_scheduler(make):
    pipe, run = make()
    pipe.to(torch.bfloat16)
    calls = outputs_of(pipe)

    class Nearly:  # an update to the tilted p, whatever the reward
        def __call__(self, log_p, ascent, project):
            return (log_p[:] + TABLE[: log_p.shape[1]]).log_softmax(-1)

    class Spy(Nearly):
        def __call__(self, log_p, ascent, project):
            parts = ascent.gradients(log_p[:])
            ascent.used(parts[0].value)
            return super().__call__(log_p, ascent, project)

    def reward(sample):
        return sample.mean((1, 2, 3)) if isinstance(sample, torch.Tensor) else sample.embed(JUMP_TABLE).sum((1, 2))

    config = GuidanceConfig(estimator="straight_through", update=Spy(), num_draws=1, support=None)
    pairs, _ = guided(pipe, run, reward, config)
    for (step, logits), (_, arguments, _) in zip(pairs, calls, strict=True):
        if logits is None:
            continue
        given = arguments["model_output"]
        assert given.dtype == torch.float32
        given = given.permute(0, 2, 3, 1).flatten(1, 2) if given.ndim == 4 else given
        q = (given[step.free[:, -given.shape[1] :]] / step.temperature).log_softmax(-1)
        expected = (log_p(step) + TABLE[: q.shape[1]]).log_softmax(-1)
        torch.testing.assert_close(q.exp(), expected.exp(), atol=1e-5, rtol=1e-4)


JUMP_TABLE = torch.ones(8, 1)
