"""`stop_when`: guidance of a sequence ends by its own figures, its sampling goes on."""

from dataclasses import replace

import pytest
import torch

from redge_guidance import GuidanceConfig, guide
from redge_guidance.guidance import Guidance
from redge_guidance.reward import Reward
from redge_guidance.step import DenoisingStep
from redge_guidance.stopping import Settled
from redge_guidance.terms import asks_for_whole_batch
from redge_guidance.trace import SequenceFigures
from tests.helpers.hosts import ALL, JUMP, ONE_OF_EACH, any_reward, brightness, count_of_a, seeded
from tests.helpers.image_rewards import clip
from tests.redge_guidance.test_rows_alone import MAKERS, check, reward

STRONG = GuidanceConfig(4.0, num_draws=3, update=JUMP.update)


def after(steps):
    return lambda figures: len(figures) >= steps


def at_once(figures):
    return True


def test_settled_looks_at_the_last_rewards_alone():
    def figures(*rewards):
        return [SequenceFigures(one, 0.0, 0.0, 0.0, 1) for one in rewards]

    rule = Settled(tolerance=0.25, patience=2)
    assert not rule(figures(1.0, 1.0))
    assert rule(figures(9.0, 1.0, 1.25, 1.0))
    assert not rule(figures(1.0, 1.0, 1.5, 1.25))
    assert Settled(tolerance=0, patience=1)(figures(0.5, 0.5))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tolerance": -1.0}, "`tolerance` must be a finite number >= 0, got -1.0"),
        ({"tolerance": "a"}, "`tolerance` must be a number"),
        ({"tolerance": float("nan")}, "`tolerance` must be a finite number"),
        ({"patience": 0}, "`patience` must be an integer >= 1, got 0"),
    ],
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(ValueError, match=message):
        Settled(**settings)


def test_a_rule_that_is_none(pipe):
    with pytest.raises(ValueError, match="`stop_when` must be a function of the figures of one sequence"):
        guide(pipe, count_of_a, stop_when=3)
    with pytest.raises(ValueError, match=r"make one, `Settled\(...\)`"):
        guide(pipe, count_of_a, stop_when=Settled)
    with (
        guide(pipe, count_of_a, stop_when=lambda figures: None),
        pytest.raises(ValueError, match="`stop_when` must return True or False .* got None; end it with `return`"),
    ):
        pipe("", generator=seeded())


@pytest.mark.parametrize("name", [n for n in ALL if n in ("masked", "uniform, corrector", "images: random")])
def test_a_rule_that_never_stops_changes_nothing(name):
    pipe, run = ALL[name]()
    with guide(pipe, any_reward(pipe), STRONG):
        plain = run()
    with guide(pipe, any_reward(pipe), STRONG, stop_when=lambda figures: False):
        assert torch.equal(run(), plain)


def step_of(free, dtype=torch.float32, **settings):
    free = torch.tensor(free).bool()
    logits = torch.randn(*free.shape, 8, generator=seeded(1)).to(dtype)
    ids = torch.full(free.shape, 3)
    step = DenoisingStep(logits, ids, free, torch.ones_like(free), 0.8, 0.25, None, reserved=[0])
    return replace(step, generator=[seeded(5 + k) for k in range(len(free))], **settings)


FREE = [[1, 1, 0], [0, 1, 1], [1, 1, 1]]


def by_length(figures):
    """Stops a sequence of two free positions after its second step, and nothing else."""
    return figures[-1].free == 2 and len(figures) == 2


def test_a_stopped_sequence_has_the_logits_of_the_host_bit_for_bit():
    guidance, plain = Guidance(count_of_a, STRONG, stop_when=by_length), Guidance(count_of_a, STRONG)
    step = step_of(FREE)
    for k in range(4):
        found, expected = guidance(step), plain(step)
        if k < 2:
            assert torch.equal(found, expected)
            continue
        torch.testing.assert_close(found[4:], expected[4:])
        assert torch.equal(found[:4], step.logits[step.free][:4])  # reserved tokens and all
    assert [[one.stopped for one in step.sequences] for step in guidance.trace] == [[False] * 3] * 2 + [
        [True, True, False]
    ] * 2
    last, before = guidance.trace[-1], guidance.trace[1]
    assert (last.sequences[0].kl, last.sequences[0].grad_norm, last.sequences[0].free) == (0.0, 0.0, 2)
    assert last.sequences[0].reward == before.sequences[0].reward
    assert last.reward == last.sequences[2].reward == pytest.approx(plain.trace[-1].sequences[2].reward)
    assert last.kl == pytest.approx(last.sequences[2].kl)


def test_the_reward_is_asked_about_those_that_go_on_with_their_prompts():
    seen = []

    def asked(tokens):
        seen.append(list(tokens.prompts))
        return count_of_a(tokens)

    guidance = Guidance(asked, GuidanceConfig(num_draws=1, update=JUMP.update), stop_when=by_length)
    step = step_of(FREE, prompts=["x", "y", "z"])
    for _ in range(3):
        guidance(step)
    assert seen == [["x", "y", "z"]] * 2 + [["z"]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_where_all_have_stopped_the_reward_is_not_asked_and_the_dtype_is_that_of_the_others(dtype):
    calls = []
    guidance = Guidance(lambda t: calls.append(1) or count_of_a(t), STRONG, stop_when=at_once)
    step = step_of(FREE, dtype)
    guidance(step)
    asked, steps = len(calls), len(guidance.trace)
    found = guidance(step)
    assert (len(calls), len(guidance.trace)) == (asked, steps)
    if dtype == torch.bfloat16:  # as beside a sequence that is guided still
        assert torch.equal(found, step.logits[step.free].float())
    else:
        assert found is None


def test_all_of_them_hold_float64_as_it_is():
    guidance, step = Guidance(count_of_a, STRONG, stop_when=by_length), step_of(FREE, torch.float64)
    for _ in range(3):
        found = guidance(step)
    assert torch.equal(found[:4], step.logits[step.free][:4])


def test_a_sequence_without_free_positions_is_not_asked_about():
    """It waits for others of its batch; alone it would not be guided, and its figures are to be the same."""
    seen = []
    guidance = Guidance(count_of_a, STRONG, stop_when=lambda figures: seen.append(len(figures)) or False)
    step = step_of([[0, 0, 0], [1, 1, 0]])
    guidance(step)
    guidance(step)
    assert seen == [1, 2]


def test_a_sequence_begins_anew_where_other_positions_become_free():
    guidance = Guidance(count_of_a, STRONG, stop_when=after(2))
    first, second = step_of([[1, 1, 0, 0], [1, 0, 0, 0]]), step_of([[0, 0, 1, 1], [1, 0, 0, 0]])
    for _ in range(3):
        guidance(first)
    assert len(guidance.trace) == 2
    guidance(second)
    assert [one.stopped for one in guidance.trace[-1].sequences] == [False, True]
    guidance(second)
    guidance(second)
    assert len(guidance.trace) == 4
    longer = step_of([[0, 0, 1, 1, 0], [1, 0, 0, 0, 1]])
    guidance(longer)
    assert [one.stopped for one in guidance.trace[-1].sequences] == [True, False]


def test_another_call_begins_anew(pipe):
    with guide(pipe, count_of_a, STRONG, stop_when=at_once) as handle:
        for calls in (1, 2):
            pipe(["", ""], num_inference_steps=4, generator=seeded())
            assert len(handle.trace) == calls
    assert [step.step for step in handle.trace] == [0, 0]


def test_sampling_goes_on_to_the_end_as_without_guidance(pipe):
    steps = []
    with guide(pipe, count_of_a, STRONG, stop_when=at_once) as handle:
        texts = pipe(["", "a"], num_inference_steps=4, callback_on_step_end=lambda *a: steps.append(a[1]))
    assert (steps, len(handle.trace)) == ([0, 1, 2, 3], 1)
    assert not (texts.sequences == 2).any()


ALONE = ("masked, random", "masked, confidence", "masked, blocks", "masked, cfg", "uniform", "uniform, corrector")
ALONE += ("images", "images, remasking", "images, halton")


@pytest.mark.parametrize("name", ALONE)
def test_rows_of_a_batch_are_those_drawn_alone(name):
    """With a rule that ends them at different steps."""
    pipe, draw = MAKERS[name]()
    images, seen, threshold = hasattr(pipe, "vqvae"), set(), 0.0

    def rule(figures):
        stop = figures[-1].reward > (threshold if images else 0.6)
        seen.add(len(figures) if stop else 0)
        return stop

    config = GuidanceConfig(30.0 if images else 3.0, num_draws=3, update=JUMP.update)
    with guide(pipe, brightness if images else reward, config) as handle:
        everywhere = draw([0, 1, 2, 3])
    first = sorted(one.reward for one in handle.trace[0].sequences)
    threshold = (first[1] + first[2]) / 2  # two of them stop at once
    with guide(pipe, brightness if images else reward, config, stop_when=rule) as handle:
        check(draw)
        stopped = draw([0, 1, 2, 3])
    assert any(one.stopped for step in handle.trace for one in step.sequences) or len(seen) > 1
    assert stopped.shape == everywhere.shape


class ByPlace(Reward):
    """The token that is wanted is another one for every sequence of the batch."""

    whole_batch = True

    def __call__(self, sample):
        wanted = torch.arange(3, 6).repeat(sample.draws)
        tables = torch.nn.functional.one_hot(wanted, 8).float()
        embedded = sample.embed(torch.eye(8))
        return torch.einsum("blv,bv->b", embedded, tables)


def test_a_reward_that_knows_the_batch_by_place_sees_all_of_it():
    guidance, plain = Guidance(ByPlace(), STRONG, stop_when=by_length), Guidance(ByPlace(), STRONG)
    step = step_of(FREE)
    for _ in range(3):
        found, expected = guidance(step), plain(step)
    torch.testing.assert_close(found[4:], expected[4:])
    assert torch.equal(found[:4], step.logits[step.free][:4])
    last = guidance.trace[-1]
    assert [one.stopped for one in last.sequences] == [True, True, False]
    assert last.reward == pytest.approx(last.sequences[2].reward)


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_every_host_is_drawn_to_the_end(name):
    pipe, run = ONE_OF_EACH[name]()
    with guide(pipe, any_reward(pipe), STRONG) as handle:
        run()
        every = len(handle.trace)
    with guide(pipe, any_reward(pipe), STRONG, stop_when=at_once) as handle:
        sequences = run()
    assert 0 < len(handle.trace) < every
    assert torch.isfinite(sequences.float()).all()


def test_rewards_with_a_target_for_each_say_so():
    assert clip(target=["a", "b"]).whole_batch
    assert not clip(target="a").whole_batch
    assert asks_for_whole_batch(0.5 * clip(target=["a", "b"]) + brightness)
    assert not asks_for_whole_batch(brightness)
