"""Halton-MaskGIT's options: its order, how many tokens a step reveals, and its ramps.

What is expected is written by hand or is scipy's; `benchmarks/halton.py` compares with the published samplers.
"""

import itertools
import math

import pytest
import torch
from scipy.stats import qmc

from redge_guidance.pipelines import MaskedDiffusionScheduler
from redge_guidance.pipelines.image.order import halton_order, halton_ranks
from redge_guidance.pipelines.schedules import guidance_ramp, temperature_ramp, visible_share, visible_tokens
from tests.helpers.images import CODES, SIDE, tiny_image_pipeline
from tests.helpers.tiny import tiny_pipeline

MASK = 4


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


# ---- the order ----

# Points 1, 2, ... are (1/2, 1/3), (1/4, 2/3), (3/4, 1/9), (1/8, 4/9), (5/8, 7/9), (3/8, 2/9), (7/8, 5/9), (1/16, 8/9).
# Times two rows and three columns: (1, 1), (0, 2), (1, 0), (0, 1), (1, 2), (0, 0).
BY_HAND = {(2, 3): [4, 2, 3, 1, 5, 0], (1, 3): [1, 2, 0], (4, 1): [2, 1, 3, 0], (1, 1): [0]}


@pytest.mark.parametrize("grid", BY_HAND)
def test_small_grids_by_hand(grid):
    assert halton_order(*grid).tolist() == BY_HAND[grid]


@pytest.mark.parametrize("grid", [(16, 16), (24, 24), (5, 7), (9, 27), (32, 8), (64, 64)])
def test_the_order_is_that_of_scipys_points(grid):
    points = qmc.Halton(2, scramble=False).random(40_000)[1:]  # the first one is the origin
    rows, columns = (points * grid + 1e-9).astype(int).T  # no point but those on a line is so close to one
    expected = list(dict.fromkeys((rows * grid[1] + columns).tolist()))
    assert halton_order(*grid).tolist() == expected
    assert sorted(expected) == list(range(grid[0] * grid[1]))


@pytest.mark.parametrize("grid", list(itertools.product([1, 2, 3, 7, 13, 31], [1, 2, 9, 10, 28])))
def test_every_cell_comes_once(grid):
    assert sorted(halton_order(*grid).tolist()) == list(range(grid[0] * grid[1]))


def test_rolled_orders_start_at_cells_of_their_own():
    order = halton_order(3, 4)
    ranks = halton_ranks(3, 4, 5000, roll=True, generator=seeded())
    orders = ranks.argsort(-1)
    starts = (order[:, None] == orders[:, 0]).nonzero()[:, 0]
    assert sorted(starts.unique().tolist()) == list(range(12))
    for row, start in zip(orders[:200], order.argsort()[orders[:200, 0]], strict=True):
        assert torch.equal(row, order.roll(-int(start)))
    frequency = torch.bincount(orders[:, 0], minlength=12) / 5000
    torch.testing.assert_close(frequency, torch.full((12,), 1 / 12), atol=4 * (1 / 12 / 5000) ** 0.5, rtol=0)
    assert torch.equal(halton_ranks(3, 4, 2), order.argsort().repeat(2, 1))
    alone = [halton_ranks(3, 4, 1, roll=True, generator=[seeded(i)])[0] for i in range(4)]
    together = halton_ranks(3, 4, 4, roll=True, generator=[seeded(i) for i in range(4)])
    assert torch.equal(together, torch.stack(alone))


def test_a_grid_has_cells():
    with pytest.raises(ValueError, match="`width` must be >= 1, got 0"):
        halton_order(2, 0)


# ---- how many ----


@pytest.mark.parametrize(
    ("schedule", "share"),
    [
        ("linear", lambda r: r),
        ("cosine", lambda r: 1 - math.cos(math.pi * r / 2)),
        ("root", math.sqrt),
        ("square", lambda r: r * r),
        ("arccos", lambda r: 2 * math.asin(r) / math.pi),
    ],
)
def test_schedules_are_their_formulas(schedule, share):
    scheduler = MaskedDiffusionScheduler(schedule=schedule)
    for r in (0.0, 0.1, 0.5, 0.77, 1.0):
        assert scheduler.alpha(1 - r) == pytest.approx(share(r), abs=1e-12)
        assert visible_share(schedule, torch.tensor(r)).item() == pytest.approx(share(r), abs=1e-6)


# 16 tokens. Of arccos: 16 * 2 asin(r) / pi = 2.57, 5.33, 8.64, 16 at quarters; of cosine 1.22, 4.69, 9.88, 16.
COUNTS = {
    ("floor", "linear"): [4, 8, 12, 16],
    ("floor", "cosine"): [1, 4, 9, 16],
    ("floor", "root"): [8, 11, 13, 16],
    ("floor", "square"): [1, 4, 9, 16],
    ("floor", "arccos"): [2, 5, 8, 16],
    ("floor_from_zero", "linear"): [1, 4, 8, 12, 16],
    ("floor_from_zero", "cosine"): [1, 2, 4, 9, 16],
    ("floor_from_zero", "root"): [1, 8, 11, 13, 16],
    ("floor_from_zero", "square"): [1, 2, 4, 9, 16],
    ("floor_from_zero", "arccos"): [1, 2, 5, 8, 16],
    # i^2 / 4 tokens after i of 8 steps, and i at least
    ("floor", "square", 8): [1, 2, 3, 4, 6, 9, 12, 16],
    ("floor", "linear", 20): [*range(1, 16), 16, 16, 16, 16, 16],
}


def states(scheduler, sample, logits=None, **kwargs):
    logits = torch.zeros(*sample.shape, 5) if logits is None else logits
    for t in scheduler.timesteps:
        sample = scheduler.step(logits, t, sample, mask_token_id=MASK, generator=seeded(), **kwargs).prev_sample
        yield sample


@pytest.mark.parametrize("order", ["random", "left_to_right", "confidence", "halton"])
@pytest.mark.parametrize("case", COUNTS)
def test_counts_by_hand(case, order):
    counting, schedule, *_ = case
    scheduler = MaskedDiffusionScheduler(order, schedule=schedule, counting=counting)
    scheduler.set_timesteps(len(COUNTS[case]))
    ranks = {"ranks": halton_ranks(4, 4, 3)} if order == "halton" else {}
    found = [(sample != MASK).sum(-1).tolist() for sample in states(scheduler, torch.full((3, 16), MASK), **ranks)]
    assert found == [[count] * 3 for count in COUNTS[case]]
    steps = len(found)
    assert [visible_tokens(counting, schedule, i, steps, torch.tensor(16)) for i in range(steps)] == COUNTS[case]


def test_what_was_given_does_not_count():
    """Eight tokens to draw in one row, four in the other, in four steps of the square."""
    free = torch.zeros(2, 12, dtype=torch.bool)
    free[0, 2:10], free[1, :4] = True, True
    sample = torch.zeros(2, 12).long().masked_fill(free, MASK)
    scheduler = MaskedDiffusionScheduler("random", schedule="square", counting="floor")
    scheduler.set_timesteps(4)
    found = [((after != MASK) & free).sum(-1).tolist() for after in states(scheduler, sample, free=free)]
    assert found == [[1, 1], [2, 2], [4, 3], [8, 4]]


# ---- which ----


def test_a_scheduler_reveals_the_lowest_ranks_of_what_is_hidden():
    ranks = halton_ranks(4, 4, 2, roll=True, generator=seeded(3))
    given = torch.zeros(2, 16, dtype=torch.bool)
    given[0, ranks[0].argsort()[1:3]] = True
    sample = torch.full((2, 16), MASK).masked_fill(given, 0)
    scheduler = MaskedDiffusionScheduler("halton", counting="floor")
    scheduler.set_timesteps(14)
    orders = [
        [cell for cell in rank.argsort().tolist() if not held[cell]] for rank, held in zip(ranks, given, strict=True)
    ]
    for i, after in enumerate(states(scheduler, sample, ranks=ranks, free=~given), 1):
        for row, (order, count) in enumerate(zip(orders, (i, 16 * i // 14), strict=True)):
            assert set(((after[row] != MASK) & ~given[row]).nonzero()[:, 0].tolist()) == set(order[:count])


@pytest.mark.parametrize(("order", "places"), [("left_to_right", [0, 1]), ("confidence", [5, 7])])
def test_other_orders_do_not_look_at_ranks(order, places):
    scheduler = MaskedDiffusionScheduler(order)
    scheduler.set_timesteps(4)
    logits = torch.zeros(1, 8, 5)
    logits[0, [5, 7], 0] = 3.0
    sample, ranks = torch.full((1, 8), MASK), halton_ranks(2, 4, 1)
    first = next(states(scheduler, sample, logits, temperature=0, ranks=ranks))
    assert (first != MASK).nonzero()[:, 1].tolist() == places


@pytest.mark.parametrize(("counting", "level"), [("floor", 2 / 3), ("floor_from_zero", 1 / 2)])
def test_the_noise_of_the_confidence_order(counting, level):
    """The second of three steps, with one token drawn: Gumbel noise makes the next a draw from a softmax."""
    log_p = torch.tensor([0.0, 0.5, 0.9]).log()
    logits = torch.full((20000, 3, 5), -torch.inf)
    logits[:, :, 0], logits[:, :, 1] = log_p, (1 - log_p.exp()).log()
    logits[:, :, 2] = torch.tensor([0.0, -torch.inf, -torch.inf])  # the drawn position has a distribution too
    sample = torch.full((20000, 3), MASK)
    sample[:, 0] = 0
    scheduler = MaskedDiffusionScheduler("confidence", counting=counting, choice_temperature=1.5)
    scheduler.set_timesteps(3)
    settings = {"mask_token_id": MASK, "generator": seeded(), "temperature": 0}
    after = scheduler.step(logits, scheduler.timesteps[1], sample, **settings).prev_sample
    confidence = torch.tensor([0.5, 0.9]).log()
    expected = (confidence / (1.5 * level)).softmax(-1)
    found = (after[:, 1:] != MASK).float().mean(0)
    torch.testing.assert_close(found, expected, atol=4 * 0.5 / 20000**0.5, rtol=0)


def test_the_first_steps_may_reveal_anywhere():
    logits = torch.zeros(8000, 4, 5)
    logits[:, :, 0] = torch.tensor([1.0, 4.0, 2.0, 3.0])
    scheduler = MaskedDiffusionScheduler("confidence", random_steps=2)
    scheduler.set_timesteps(4)
    seen = [sample != MASK for sample in states(scheduler, torch.full((8000, 4), MASK), logits, temperature=0)]
    for count, visible in enumerate(seen[:2], 1):
        share = visible.float().mean(0)
        torch.testing.assert_close(share, torch.full((4,), count / 4), atol=4 * 0.5 / 8000**0.5, rtol=0)
    likeliest = logits[:, :, 0].masked_fill(seen[1], -torch.inf).argmax(-1)
    assert torch.equal((seen[2] & ~seen[1]).int().argmax(-1), likeliest)


# ---- the pipeline ----


def drawn_places(pipe, **call):
    """`(steps, batch, length)` bool, what was visible after each step."""
    seen = []

    def callback(pipe, step, t, tensors):
        seen.append(tensors["sample"] != CODES)

    pipe(**call, generator=seeded(), output_type="latent", callback_on_step_end=callback)
    return torch.stack(seen)


def test_the_pipeline_follows_its_grid():
    pipe = tiny_image_pipeline(unmasking_order="halton", schedule="arccos", counting="floor")
    order = halton_order(SIDE, SIDE).tolist()
    for count, visible in zip([2, 5, 8, 16], drawn_places(pipe, class_labels=[0, 2]), strict=True):
        for row in visible:
            assert set(row.nonzero()[:, 0].tolist()) == set(order[:count])


def test_every_image_of_a_rolled_order_has_its_own():
    pipe = tiny_image_pipeline(unmasking_order="halton", schedule="arccos", counting="floor", roll=True)
    first = drawn_places(pipe, class_labels=0, num_images_per_prompt=6)[0]
    order = halton_order(SIDE, SIDE).tolist()
    pairs = [set(row.nonzero()[:, 0].tolist()) for row in first]
    allowed = [{order[i], order[(i + 1) % 16]} for i in range(16)]
    assert all(pair in allowed for pair in pairs)
    assert len({frozenset(pair) for pair in pairs}) > 2


def test_given_tokens_stay_and_the_order_passes_them_over():
    pipe = tiny_image_pipeline(unmasking_order="halton", counting="floor")
    order = halton_order(SIDE, SIDE)
    tokens = torch.full((SIDE**2,), CODES)
    tokens[order[:8]] = torch.arange(8)
    seen = drawn_places(pipe, tokens=tokens, num_inference_steps=8)
    assert [row[0].sum().item() for row in seen] == list(range(9, 17))
    assert all(seen[i, 0, order[8 + i]] for i in range(8))
    final = pipe(tokens=tokens, output_type="latent", generator=seeded()).tokens
    assert torch.equal(final[0, order[:8]], torch.arange(8))


def test_texts_have_no_grid():
    message = r'`ranks` must be \(1, 4\) for the order "halton", which is one of grids, got none; take another `unmask'
    with pytest.raises(ValueError, match=message):
        tiny_pipeline(unmasking_order="halton", length=4)("")
    scheduler = MaskedDiffusionScheduler("halton")
    scheduler.set_timesteps(1)
    with pytest.raises(ValueError, match=r"`ranks` must be \(2, 6\) .*, got \(1, 6\)"):
        next(states(scheduler, torch.full((2, 6), MASK), ranks=halton_ranks(2, 3, 1)))


@pytest.mark.parametrize("counting", ["floor", "floor_from_zero"])
def test_texts_have_the_schedules(counting):
    pipe = tiny_pipeline(unmasking_order="confidence", schedule="root", counting=counting)
    visible = []

    def callback(pipe, step, t, tensors):
        visible.append((tensors["sample"][:, -6:] != pipe.tokenizer.mask_token_id).sum().item())

    pipe("a", gen_length=6, num_inference_steps=3, generator=seeded(), callback_on_step_end=callback)
    # 6 sqrt(r) = 3.46, 4.90, 6 at thirds and 0, 4.24, 6 at halves
    assert visible == {"floor": [3, 4, 6], "floor_from_zero": [1, 4, 6]}[counting]


# ---- ramps ----


def test_ramps_by_hand():
    assert guidance_ramp(4.0, 4) == [1.0, 2.0, 3.0, 4.0]
    assert guidance_ramp(3.0, 1) == [3.0]
    assert temperature_ramp(1.0, 0.5, 3) == pytest.approx([1, 2 / 3, 1 / 2])
    assert temperature_ramp(1.0, 0.5, 3, power=2.0) == pytest.approx([1, 4 / 9, 1 / 4])
    assert temperature_ramp(0.8, 0.8, 4, warmup=2) == pytest.approx([1.6, 1.6, 0.8, 0.8])
    assert temperature_ramp(0.7, 0.3, 1) == pytest.approx([0.7])
    with pytest.raises(ValueError, match="`last` must be > 0, got 0.0"):
        temperature_ramp(1.0, 0.0, 3)


def test_a_pipeline_takes_one_number_a_step(monkeypatch):
    pipe, calls = tiny_image_pipeline(), []
    step = pipe.scheduler.step
    monkeypatch.setattr(
        pipe.scheduler, "step", lambda *args, **given: calls.append((args, given)) or step(*args, **given)
    )
    ramp = {"temperature": (2.0, 1.0, 0.5), "guidance_scale": guidance_ramp(3.0, 3)}
    pipe([1], **ramp, num_inference_steps=3, generator=seeded(), output_type="latent")
    assert [given["temperature"] for _, given in calls] == [2.0, 1.0, 0.5]
    for (logits, _, sample), scale in zip((args for args, _ in calls), (1.0, 2.0, 3.0), strict=True):
        with torch.no_grad():
            conditional, without = (pipe.transformer(sample, torch.tensor([label])) for label in (1, 3))
        torch.testing.assert_close(logits, without + scale * (conditional - without))


def test_ramps_are_kept_in_a_saved_pipeline_and_have_to_fit(tmp_path):
    pipe = tiny_image_pipeline()
    pipe.register_to_config(temperature=temperature_ramp(1.0, 0.5, 4), guidance_scale=guidance_ramp(4.0, 4))
    pipe.save_pretrained(tmp_path)
    loaded = type(pipe).from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert loaded.config.guidance_scale == [1.0, 2.0, 3.0, 4.0]
    tokens = [p(1, generator=seeded(), output_type="latent").tokens for p in (pipe, loaded)]
    assert torch.equal(*tokens)
    message = "`temperature` must be one number, or one for each of 6 steps, got 4; make it for the `num_inference"
    with pytest.raises(ValueError, match=message):
        loaded(1, num_inference_steps=6)
    for wrong in (2, 5):
        with pytest.raises(ValueError, match=f"`guidance_scale` must be one number, .* 4 steps, got {wrong}"):
            loaded(1, guidance_scale=[1.0] * wrong)
    with pytest.raises(ValueError, match="`temperature` must be >= 0, got -1.0"):
        loaded(1, temperature=[1.0, -1.0, 1.0, 1.0])
