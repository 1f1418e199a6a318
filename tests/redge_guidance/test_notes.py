"""What a reward notes is in the trace at every guided step."""

from redge_guidance import GuidanceConfig, guide
from tests.helpers.hosts import count_of_a, seeded
from tests.helpers.tiny import tiny_pipeline, tiny_reward


def test_notes_of_a_step_without_the_reward_are_those_of_the_step_before():
    pipe = tiny_pipeline()
    with guide(pipe, tiny_reward() + count_of_a, GuidanceConfig(every=3)) as handle:
        pipe(["", "a"], num_inference_steps=6, generator=seeded())
    notes = [step.notes for step in handle.trace]
    asked = [any(one.asked for one in step.sequences) for step in handle.trace]
    assert asked == [True, False, False] * 2
    assert all(set(one) == {"TextClassifierReward", "count_of_a"} for one in notes)
    assert not any(one.asked for one in handle.trace[-1].sequences if not one.free)  # finished
    assert notes[0] == notes[1] == notes[2] != notes[3] == notes[4] == notes[5]
