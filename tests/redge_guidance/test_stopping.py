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
from redge_guidance.updates import Natural
from tests.helpers.hosts import ALL, JUMP, ONE_OF_EACH, any_reward, brightness, count_of_a, seeded
from tests.helpers.image_rewards import clip
from tests.helpers.settings import plain_config
from tests.redge_guidance.test_rows_alone import MAKERS, check, reward

STRONG = plain_config(4.0, num_draws=3, update=JUMP.update)


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

    guidance = Guidance(asked, plain_config(num_draws=1, update=JUMP.update), stop_when=by_length)
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

    config = plain_config(30.0 if images else 3.0, num_draws=3, update=JUMP.update)
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


# ---- who is shown to the reward: not what is finished, and seldom what needs nothing ----


ONE = Natural(1, 1 / 2)  # the reward is called once where a sequence is asked


class Asked(Reward):
    """The count of "a" and what a prompt brings; notes whose turn it is."""

    def __init__(self, bonus):
        self.bonus, self.seen = bonus, []

    def __call__(self, sample):
        each = len(sample) // sample.draws
        self.seen.append(list(sample.prompts[:each]))
        return count_of_a(sample) + torch.tensor([self.bonus[prompt] for prompt in sample.prompts])


def test_finished_sequences_are_not_shown_to_the_reward():
    watched = Asked({"x": 0.0, "y": 0.0, "z": 0.0})
    guidance = Guidance(watched, GuidanceConfig(4.0, update=ONE, every=1))
    names, frees = ["x", "y", "z"], [[[1, 1], [1, 0], [1, 1]], [[0, 1], [0, 0], [1, 0]], [[0, 0], [0, 0], [1, 0]]]
    for free in frees:
        step = step_of(free, prompts=names)
        assert torch.isfinite(guidance(step)[:, 1:]).all()
    assert watched.seen == [["x", "y", "z"], ["x", "z"], ["z"]]
    last = guidance.trace[-1]
    assert [one.free for one in last.sequences] == [0, 0, 1]
    assert [one.asked for one in last.sequences] == [False, False, True]
    assert last.kl == pytest.approx(last.sequences[2].kl)


@pytest.mark.parametrize("name", ["masked", "uniform", "images"])
def test_hosts_show_no_sequence_in_which_nothing_is_free(name):
    pipe, run = ONE_OF_EACH[name]()
    free, shown = [], []

    def reward(sample):
        tokens = getattr(sample, "tokens", sample)
        if hasattr(tokens, "free"):
            free.append(bool(tokens.free.any(-1).all()))
        shown.append(len(sample))
        return any_reward(pipe)(sample)

    with guide(pipe, reward, GuidanceConfig(4.0, update=ONE, num_draws=1, every=1)) as handle:
        run()
    assert all(free)
    assert shown == [sum(one.asked for one in step.sequences) for step in handle.trace]
    assert all(one.free > 0 for step in handle.trace for one in step.sequences if one.asked)


@pytest.mark.parametrize(("every", "expected"), [(1, [0, 2, 6, 14, 22, 30]), (2, [0, 4, 12, 28]), (3, [0, 6, 18])])
def test_a_sequence_at_rest_is_asked_at_every_second_turn_then_every_fourth_and_at_last_every_eighth(every, expected):
    """Nobody else is there: in the steps between the reward is not called at all."""
    watched = Asked({"x": 9.0})
    guidance, asked = Guidance(watched, GuidanceConfig(target=5.0, update=ONE, kl_budget=1.0, every=every)), []
    step = step_of([[1, 1, 0]], prompts=["x"])
    for k in range(32):
        before = len(watched.seen)
        found = guidance(step)
        torch.testing.assert_close(found[:, 1:], step.logits[step.free][:, 1:])
        asked += [k] * (len(watched.seen) - before)
    assert asked == expected
    assert [step.step for step in guidance.trace if step.sequences[0].asked] == expected
    assert all(one.at_rest and one.reached and one.strength == 0 for step in guidance.trace for one in step.sequences)


def test_those_that_need_guidance_are_asked_while_others_rest():
    watched = Asked({"x": 9.0, "y": 0.0, "z": 9.0})
    guidance = Guidance(watched, GuidanceConfig(target=5.0, update=ONE, kl_budget=1.0, every=1))
    step = step_of(FREE, prompts=["x", "y", "z"])
    for _ in range(7):
        guidance(step)
    everybody = ["x", "y", "z"]
    both = [["x", "z"], ["y"]]  # of y alone it is known what it costs
    assert watched.seen == [everybody, ["y"], *both, ["y"], ["y"], ["y"], *both]
    last = guidance.trace[-2].sequences
    assert [one.asked for one in last] == [False, True, False]
    assert [one.at_rest for one in last] == [one.reached for one in last] == [True, False, True]
    assert last[1].strength == last[1].ceiling > 0


def test_one_that_has_lost_its_target_is_asked_at_every_turn_again():
    watched = Asked({"x": 9.0})
    guidance = Guidance(watched, GuidanceConfig(target=5.0, update=ONE, kl_budget=1.0, every=2))
    step = step_of([[1, 1, 0]], prompts=["x"])
    for k in range(19):  # asked at 0, 4 and 12; at 12 it is found to need guidance
        watched.bonus["x"] = 9.0 if k < 6 else 0.0
        guidance(step)
    assert [step.step for step in guidance.trace if step.sequences[0].asked] == [0, 4, 12, 14, 16, 18]
    assert [step.sequences[0].at_rest for step in guidance.trace] == [True] * 12 + [False] * 7


def test_a_new_block_is_asked_at_once_though_the_one_before_was_at_rest():
    watched = Asked({"x": 9.0})
    guidance = Guidance(watched, GuidanceConfig(target=5.0, update=ONE, kl_budget=1.0, every=2))
    for _ in range(5):  # asked at 0 and 4, and then only at 12
        guidance(step_of([[1, 1, 0, 0]], prompts=["x"]))
    for _ in range(5):
        guidance(step_of([[0, 0, 1, 1]], prompts=["x"]))
    assert [step.step for step in guidance.trace if step.sequences[0].asked] == [0, 4, 5, 9]


@pytest.mark.parametrize("every", [1, 2, 3])
def test_a_rule_is_told_of_the_steps_in_which_its_sequence_was_asked(every):
    told = []

    def rule(figures):
        told.append([one.asked for one in figures])
        return len(figures) == 3

    guidance, step = Guidance(count_of_a, replace(STRONG, every=every), stop_when=rule), step_of([[1, 1, 0]])
    for _ in range(3 * every):
        guidance(step)
    assert told == [[True], [True] * 2, [True] * 3]
    asked = [one.step for one in guidance.trace if one.sequences[0].asked]
    assert asked == [0, every, 2 * every]
    assert len(guidance.trace) == 2 * every + 1  # it has ended: what was tilted before is so no longer


def test_a_reward_of_the_whole_batch_is_asked_about_all_or_nobody():
    """Those at rest too, since the others may not be shown without them; not those in which nothing is free."""
    watched = Asked({"x": 9.0, "y": 0.0, "z": 9.0})
    watched.whole_batch = True
    guidance = Guidance(watched, GuidanceConfig(target=5.0, update=ONE, kl_budget=1.0, every=2))
    step = step_of([[1, 1, 0], [0, 1, 1], [0, 0, 0]], prompts=["x", "y", "z"])
    for _ in range(5):
        guidance(step)
    assert watched.seen == [["x", "y", "z"]] * 3
    for figures in guidance.trace[::2]:
        assert [one.asked for one in figures.sequences[:2]] == [True, True]
        assert figures.sequences[2].free == 0
