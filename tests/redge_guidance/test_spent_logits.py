"""Logits that nobody but the scheduler reads are written into; all others stay as the model gave them."""

from dataclasses import replace

import pytest
import torch

from redge_guidance import GuidanceConfig, guide
from redge_guidance.guidance import Guidance
from redge_guidance.hosts.attachment import Attachment
from tests.helpers.hosts import masked, seeded, uniform
from tests.helpers.watching import frozen, linear

CONFIGS = {
    "some tokens": GuidanceConfig(scale=3.0, support=4),
    "all tokens": GuidanceConfig(scale=3.0, support=None),
    "a target that some have": GuidanceConfig(target=0.5, kl_budget=0.5, support=4),
    "half a window": GuidanceConfig(scale=3.0, support=4, stop=0.5),
}
each_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=list(CONFIGS))
hosts = pytest.mark.parametrize("make", [masked, uniform], ids=["masked", "uniform"])


def reward_for(pipe):
    return linear(torch.randn(pipe.model.config.vocab_size, generator=seeded(3)))


def steps_of(make, config, spent):
    """Of one call: the steps, and what the scheduler was given in each."""
    pipe, run = make()
    guidance, steps = Guidance(reward_for(pipe), config), []

    def move(step):
        before = frozen(step)
        logits = guidance(step if spent else replace(step, spent=False))
        given = step.logits.clone()
        if logits is not None:
            assert torch.equal(given, before.logits)
            given[step.free[:, -given.shape[1] :]] = logits
        steps.append((before, given))
        return logits

    attachment = Attachment(pipe, begin=guidance.begin, move=move)
    output = run()
    attachment.remove()
    return steps, output, guidance.trace


@hosts
@each_config
def test_what_is_written_is_what_others_are_given(make, config):
    written, output, trace = steps_of(make, config, spent=True)
    copied, other, expected = steps_of(make, config, spent=False)
    assert torch.equal(output, other)
    assert [step.sequences for step in trace] == [step.sequences for step in expected]
    assert any(not torch.equal(before.logits, given) for before, given in written)
    for (step, given), (_, copy) in zip(written, copied, strict=True):
        p, q = (one.clone() for one in (given, copy))
        if step.reserved:  # the scheduler itself draws none of these
            p[..., list(step.reserved)] = q[..., list(step.reserved)] = -torch.inf
        free = step.free[:, -p.shape[1] :]
        torch.testing.assert_close(p[free].softmax(-1), q[free].softmax(-1))


@hosts
def test_tokens_outside_the_support_keep_the_logits_of_the_model_bit_for_bit(make):
    steps, _, _ = steps_of(make, CONFIGS["some tokens"], spent=True)
    for step, given in steps:
        free = step.free[:, -given.shape[1] :]
        assert torch.equal(given[~free], step.logits[~free])
        assert ((given[free] != step.logits[free]).sum(-1) <= 4).all()


@hosts
def test_a_callback_that_asks_for_logits_is_given_those_of_the_model(make):
    """Guided or not, by the same pipeline: until the first token differs they are the same."""
    pipe, _ = make()
    first = {}
    for scale in (0.0, 30.0):
        seen = []

        def after(pipe, step, timestep, tensors, seen=seen):
            seen.append(tensors["logits"].clone())
            return {}

        with guide(pipe, reward_for(pipe), GuidanceConfig(scale=scale)) as handle:
            watching = {"callback_on_step_end": after, "callback_on_step_end_tensor_inputs": ["logits"]}
            pipe(["a b", ""], generator=seeded(), **watching)
        first[scale] = seen[0]
    assert handle.trace[0].kl > 0
    assert torch.equal(first[0.0], first[30.0])
