"""Which sequences are asked at which step, and how far they are moved, in the real pipelines."""

import re

import pytest
import torch

from redge_guidance import GuidanceConfig, guide
from redge_guidance.constraints import RegexConstraint
from redge_guidance.guidance import Guidance
from redge_guidance.rewards import LexicalReward
from redge_guidance.updates import Natural
from tests.helpers.hosts import MASK, PAD, masked, seeded
from tests.helpers.tiny import tiny_pipeline
from tests.helpers.watching import guided, linear, log_p
from tests.redge_guidance.test_tilts import JUMP, TABLE, curved, kl_of, tilts_of

SOFT = {"estimator": "soft", "update": JUMP, "support": None}
RESERVED = torch.tensor([PAD, MASK])
STEPS = {"num_inference_steps": 6, "temperature": 2.0}


def mean_reward(step, logits):
    """`E_q[r]` of the linear reward, by the tables of fixed tokens and of probabilities: `(batch,)`."""
    canvas = TABLE[step.ids].masked_fill(step.free, 0.0)
    canvas[step.free] = ((logits / step.temperature).softmax(-1) * TABLE).sum(-1)
    return canvas.sum(-1)


def own(step):
    return step.logits[step.free[:, -step.logits.shape[1] :]]


@pytest.mark.parametrize("update", [JUMP, Natural()])
@pytest.mark.parametrize("every", [1, 2])
def test_a_target_is_met_as_far_as_the_ceiling_goes(update, every):
    """At every step in which the reward is asked, by the exact mean of a linear reward."""
    pipe, run = masked(("a b", "", "c"), gen_length=5, **STEPS)
    config = GuidanceConfig(**SOFT | {"update": update}, target=1.0, kl_budget=0.3, every=every)
    pairs, trace = guided(pipe, run, linear(TABLE), config)
    pairs = [pair for pair in pairs if pair[1] is not None]  # the last step may have nothing left to draw
    for (step, logits), figures in zip(pairs, trace, strict=True):
        reached, before = mean_reward(step, logits), mean_reward(step, log_p(step) * step.temperature)
        for k, one in enumerate(figures.sequences):
            if not one.asked or not one.free:
                continue
            assert one.at_rest == (one.strength == 0)
            if one.at_rest:
                assert one.reached
                assert before[k] >= 1.0 - 1e-4
            elif one.reached:
                assert one.strength < one.ceiling
                assert reached[k] == pytest.approx(1.0, abs=2e-2)
            else:  # the ceiling, or all that the budget of this step allows; or not by what was drawn
                assert 0 < one.strength <= one.ceiling
                assert before[k] < reached[k] < 1.0 or reached[k] == pytest.approx(1.0, abs=2e-2)
        assert (kl_of(step, logits) <= 0.3 * (1 + 1e-3)).all()


def test_a_target_that_is_out_of_reach_costs_the_ceiling_at_every_step():
    pipe, run = masked(("a b", ""), **STEPS)
    pairs, trace = guided(pipe, run, linear(TABLE), GuidanceConfig(**SOFT, target=1e6, kl_budget=0.2))
    spent = kl_of(*pairs[0])
    torch.testing.assert_close(spent, torch.full_like(spent, 0.2), rtol=1e-2, atol=0)
    for figures in trace:
        for one in figures.sequences:
            within = 0 < one.strength <= one.ceiling  # less where even that is beyond the budget of this step
            assert not one.free or (within and one.reached is False)


def test_sequences_that_have_their_target_are_left_alone():
    pipe, run = masked(("a b", "", "c"), gen_length=5, **STEPS)
    bare = run()
    with guide(pipe, linear(TABLE), GuidanceConfig(target=-1e6, kl_budget=1.0)) as handle:
        assert torch.equal(run(), bare)
    assert all(one.at_rest or not one.free for step in handle.trace for one in step.sequences)
    pairs, _ = guided(pipe, run, linear(TABLE), GuidanceConfig(target=-1e6, kl_budget=1.0))
    for step, logits in pairs:
        if logits is not None:
            torch.testing.assert_close(logits.softmax(-1), own(step).index_fill(-1, RESERVED, -torch.inf).softmax(-1))


def test_one_at_rest_is_asked_ever_less_often():
    pipe, run = masked(("",), pipe=tiny_pipeline(length=20, unmasking_order="random"), num_inference_steps=20)
    for every, asked in ((1, [0, 2, 6, 14]), (2, [0, 4, 12])):
        with guide(pipe, linear(TABLE), GuidanceConfig(target=-1e6, kl_budget=1.0, every=every)) as handle:
            run()
        assert [step.step for step in handle.trace if step.sequences[0].asked] == asked


def test_rows_alone_are_rows_of_a_batch_though_they_are_asked_at_different_steps():
    # of one length: the reward counts padding, too
    prompts, pipe = ["a b", "b b", "c e", "d e"], tiny_pipeline(unmasking_order="random")

    def draw(chosen):
        generators = [seeded(10 + k) for k in chosen]
        settings = {"gen_length": 8, "num_inference_steps": 8, "temperature": 2.0}
        return pipe([prompts[k] for k in chosen], generator=generators, **settings).sequences[:, -8:]

    with guide(pipe, curved, GuidanceConfig(target=0.2, kl_budget=1.0)) as handle:
        together = draw([0, 1, 2, 3])
        assert len({tuple(s.sequences[k].asked for s in handle.trace) for k in range(4)}) > 1
        assert torch.equal(torch.cat([draw([k]) for k in range(4)]), together)
        assert torch.equal(draw([2, 0]), together[[2, 0]])


def test_a_second_call_begins_anew_and_removal_ends_it():
    pipe, run = masked(**STEPS)
    bare = run()
    with guide(pipe, curved, GuidanceConfig(target=3.0, kl_budget=1.0, every=3)) as handle:
        first = run()
        asked = [[one.asked for one in step.sequences] for step in handle.trace]
        run(1)
        handle.trace.clear()
        assert torch.equal(run(), first)
        assert [[one.asked for one in step.sequences] for step in handle.trace] == asked
    assert not torch.equal(first, bare)
    assert torch.equal(run(), bare)


def test_a_stop_rule_is_told_of_the_steps_in_which_the_reward_was_asked():
    pipe, run = masked(("",), **STEPS)
    told = []
    rule = lambda figures: told.append(len(figures)) or len(figures) == 2  # noqa: E731
    config = GuidanceConfig(scale=1.0, every=2, num_draws=1)
    with guide(pipe, curved, config, stop_when=rule) as handle:
        run()
    assert told == [1, 2]
    assert [step.sequences[0].asked for step in handle.trace] == [True, False, True]
    assert all(step.sequences[0].kl > 0 for step in handle.trace)  # steps in which nothing is guided are not traced


SCHEDULES = {
    "constant": ("constant", lambda progress: 1.0),
    "linear": ("linear", lambda progress: 1 - progress),
    "early": ("early", lambda progress: 1.0 if progress < 0.5 else 0.0),
    "function": (lambda progress: 3 * progress, lambda progress: 3 * progress),
}


@pytest.mark.parametrize(("schedule", "factor"), SCHEDULES.values(), ids=SCHEDULES)
def test_a_schedule_multiplies_the_scale(schedule, factor):
    pipe, run = masked(("a b", ""), **STEPS)
    config = GuidanceConfig(0.7, **SOFT, every=1, warm_start=0.0, schedule=schedule)
    pairs, _ = guided(pipe, run, linear(TABLE), config)
    for step, logits in pairs:
        assert (logits is None) == (factor(step.progress) == 0)
        if logits is not None:
            one = tilts_of(step, (log_p(step) + 0.7 * factor(step.progress) * TABLE) * step.temperature)
            torch.testing.assert_close(tilts_of(step, logits), one, atol=1e-4, rtol=1e-3)


def test_a_schedule_multiplies_the_budget_where_there_is_no_scale():
    pipe, run = masked(("a b", ""), **STEPS)
    config = GuidanceConfig(**SOFT, kl_budget=0.4, schedule="linear")
    pairs, _ = guided(pipe, run, linear(TABLE), config)
    for step, logits in pairs:
        assert (kl_of(step, logits) <= 0.4 * (1 - step.progress) * (1 + 1e-3)).all()


def test_a_constraint_holds_beside_a_target():
    pipe, pattern = tiny_pipeline(length=8), r"(a|b) .* e"
    with guide(pipe, linear(TABLE) & RegexConstraint(pattern), GuidanceConfig(target=3.0, kl_budget=1.0)) as handle:
        texts = pipe([""] * 4, num_inference_steps=6, generator=seeded()).texts
    assert [text for text in texts if not re.fullmatch(pattern, text)] == []
    assert all(one.strength <= one.ceiling for step in handle.trace for one in step.sequences if one.ceiling)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target": 1.0, "scale": 2.0}, "`target` and `scale` exclude each other, got target=1.0 and scale=2.0"),
        ({"target": float("nan")}, "`target` must be a finite number"),
        ({"target": float("inf")}, "`target` must be a finite number.*set `kl_budget`"),
        ({"target": "high"}, "`target` must be a finite number.*got 'high'"),
        ({"every": 0}, "`every` must be an integer >= 1, got 0"),
        ({"every": 1.5}, "`every` must be an integer >= 1, got 1.5"),
        ({"schedule": "cosine"}, "`schedule` must be one of constant, linear, early.*got 'cosine'"),
        ({"schedule": 0.5}, "`schedule` must be one of constant.*got 0.5"),
        ({"warm_start": 1.1}, r"`warm_start` must lie in \[0, 1\], got 1.1"),
        ({"warm_start": -0.1}, r"`warm_start` must lie in \[0, 1\], got -0.1"),
        ({"warm_start": None}, r"`warm_start` must lie in \[0, 1\], got None"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        GuidanceConfig(**settings)


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf"), "much", None])
def test_a_schedule_of_no_number_or_a_negative_one(value):
    pipe, run = masked(("",))
    bare = run()
    message = f"`schedule` must return a finite number >= 0, got {value!r} at progress 0"
    with guide(pipe, curved, GuidanceConfig(schedule=lambda _: value)), pytest.raises(ValueError, match=message):
        run()
    assert torch.equal(run(), bare)


def test_an_every_that_is_longer_than_the_run():
    pipe, run = masked(("",), num_inference_steps=3)
    message = "`every` must be at most the number of denoising steps, here 3, got 4"
    with guide(pipe, curved, GuidanceConfig(every=4)), pytest.raises(ValueError, match=message):
        run()
    with guide(pipe, curved, GuidanceConfig(every=3)):
        run()


def test_a_target_for_a_reward_of_unknown_range_says_what_is_assumed(pipe, reward):
    with pytest.warns(UserWarning, match="range is unknown.*at most 1 nats per free token; set `kl_budget`"):
        guide(pipe, curved, GuidanceConfig(target=1.0)).remove()
    guide(pipe, curved, GuidanceConfig(target=1.0, kl_budget=0.5)).remove()
    guide(pipe, reward, GuidanceConfig(target=-0.1)).remove()  # which names a usual one


def test_new_settings_are_written_and_read_again():
    config = GuidanceConfig(target=-0.05, kl_budget=0.5, schedule="early", every=3, warm_start=0.25)
    assert GuidanceConfig.from_json(config.to_json()) == config
    with pytest.raises(ValueError, match="`schedule` is a custom object and cannot be written as JSON"):
        GuidanceConfig(schedule=lambda progress: 1.0).to_json()


def test_a_target_that_nothing_can_pursue_is_said():
    with pytest.warns(UserWarning, match="`target` 1 has nothing to act on.*leave it out, or set `scale`"):
        Guidance(LexicalReward("a"), GuidanceConfig(target=1.0))


@pytest.mark.parametrize(
    ("settings", "tilt"),
    [
        ({}, 7.0),
        ({"target": -0.5}, 7.0),
        ({"kl_budget": 0.5}, 7.0),
        ({"scale": 2.0}, None),
        ({"max_tilt": 3.0}, 3.0),
        ({"scale": 2.0, "max_tilt": 3.0}, 3.0),
        ({"max_tilt": float("inf")}, float("inf")),
    ],
)
def test_tilts_for_rewards_in_nats_are_limited_where_the_price_is_found(reward, settings, tilt):
    assert Guidance(reward, GuidanceConfig(**settings)).strength.tilt == tilt
    assert Guidance(2 * reward + LexicalReward("a"), GuidanceConfig(**settings)).strength.tilt == tilt
    assert Guidance(curved, GuidanceConfig(**{"kl_budget": 1.0} | settings)).strength.tilt == settings.get("max_tilt")
    assert ("tilts at most" in Guidance(reward, GuidanceConfig(**settings)).trace.aim) == (tilt in (3.0, 7.0))


@pytest.mark.parametrize("limit", [0.25, 2.0])
def test_a_limit_of_tilts_is_kept_in_sampling(limit):
    """Of a linear reward, written out: what promises more than the limit is tilted alike."""
    pipe, run = masked(("a b", "", "c"), gen_length=5, **STEPS)
    config = GuidanceConfig(**SOFT, scale=3.0, every=1, max_tilt=limit)
    pairs, _ = guided(pipe, run, linear(TABLE), config)
    cut = 0
    for step, logits in pairs:
        if logits is None:
            continue
        p = log_p(step).exp()
        tilts = 3.0 * (TABLE - (p * TABLE).sum(-1, keepdim=True))
        cut += int((tilts > limit).sum())
        expected = p * tilts.clamp(max=limit).exp()
        torch.testing.assert_close((logits / step.temperature).softmax(-1), expected / expected.sum(-1, keepdim=True))
    assert cut > 0


@pytest.mark.parametrize("limit", [0.3, 0.6])
def test_a_target_is_met_along_tilts_that_are_limited(limit):
    """The strength is found on the path that q takes: one of tilts without a limit would fall short."""
    pipe, run = masked(("a b", "", "c"), gen_length=5, **STEPS)
    config = GuidanceConfig(**SOFT, target=1.0, kl_budget=3.0, every=1, max_tilt=limit)
    ((step, logits), *_), (figures, *_) = guided(pipe, run, linear(TABLE), config)
    moved = torch.tensor([not one.at_rest for one in figures.sequences])
    assert moved.tolist() == [True, False, True]
    torch.testing.assert_close(mean_reward(step, logits)[moved], torch.ones(2), rtol=0, atol=1e-2)


@pytest.mark.parametrize("lowest", [2.0, 0.0])
def test_a_target_that_one_draw_misses_is_not_reached(lowest):
    """Though the mean of the draws has it, so that the sequence is at rest."""
    pipe, run = masked(("a b", "", "c"), gen_length=5, **STEPS)

    def of_draws(tokens):
        values = torch.full((tokens.draws, len(tokens) // tokens.draws), 2.0)
        values[-1] = lowest
        return values.flatten() + 1e-9 * linear(TABLE)(tokens)

    with guide(pipe, of_draws, GuidanceConfig(target=0.5, kl_budget=1.0, estimator="entropy_mix")) as handle:
        run()
    asked = [one for step in handle.trace for one in step.sequences if one.asked and one.free]
    assert asked
    assert all(one.at_rest and one.reached is (lowest >= 0.5) for one in asked)
