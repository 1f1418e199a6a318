import pytest
import torch

from redge_guidance.pipelines import MaskedDiffusionScheduler

MASK = 4
ORDERS = ["ancestral", "random", "left_to_right", "confidence", "remasking"]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def prepared(steps, **config):
    scheduler = MaskedDiffusionScheduler(**config)
    scheduler.set_timesteps(steps)
    return scheduler


def denoise(scheduler, logits, sample, generator, **kwargs):
    """All steps, with a model that gives the same logits whatever it sees; yields the samples."""
    for t in scheduler.timesteps:
        sample = scheduler.step(logits, t, sample, mask_token_id=MASK, generator=generator, **kwargs).prev_sample
        yield sample


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize("steps", [1, 3, 7])
def test_final_tokens_are_all_drawn_and_follow_the_model(order, schedule, steps):
    if order == "confidence" and steps > 1:
        pytest.skip("drops unlikely draws by design, so that its tokens are likelier than the model says")
    torch.manual_seed(0)
    logits = torch.randn(2, 5)
    rows = 40000
    hidden = torch.full((rows, 2), MASK)
    scheduler = prepared(steps, unmasking_order=order, schedule=schedule)
    *_, final = denoise(scheduler, logits.expand(rows, 2, 5), hidden, seeded())
    assert not (final == MASK).any()
    expected = logits[:, :MASK].softmax(-1)
    frequency = torch.nn.functional.one_hot(final, MASK).float().mean(0)
    torch.testing.assert_close(frequency, expected, atol=4 * 0.5 / rows**0.5, rtol=0)


@pytest.mark.parametrize("order", ["ancestral", "remasking"])
@pytest.mark.parametrize("schedule", ["linear", "cosine", "root", "square", "arccos"])
def test_share_of_visible_tokens_is_alpha(order, schedule):
    scheduler = prepared(4, unmasking_order=order, schedule=schedule, remasking_strength=0.6)
    hidden = torch.full((300, 200), MASK)
    samples = list(denoise(scheduler, torch.zeros(300, 200, 5), hidden, seeded()))
    for sample, s in zip(samples, [0.75, 0.5, 0.25, 0.0], strict=True):
        visible = (sample != MASK).float().mean().item()
        assert visible == pytest.approx(scheduler.alpha(s), abs=4 * 0.5 / 60000**0.5)


def test_remasking_hides_visible_tokens_at_the_rate_of_the_paper_and_never_given_ones():
    scheduler = prepared(4, unmasking_order="remasking", remasking_strength=0.6)
    visible, free = torch.zeros(400, 200).long(), torch.ones(400, 200).bool()
    free[:, :50] = False
    sample = scheduler.step(
        torch.zeros(400, 200, 5), 0.75, visible, mask_token_id=MASK, free=free, generator=seeded()
    ).prev_sample
    assert (sample[:, :50] == 0).all()
    sigma = 0.6 * min(1.0, 0.5 / 0.25)
    assert (sample[:, 50:] == MASK).float().mean().item() == pytest.approx(sigma, abs=4 * 0.5 / 60000**0.5)
    kept = prepared(4, unmasking_order="ancestral").step(
        torch.zeros(400, 200, 5), 0.75, visible, mask_token_id=MASK, generator=seeded()
    )
    assert torch.equal(kept.prev_sample, visible)


@pytest.mark.parametrize("order", ["random", "left_to_right", "confidence"])
def test_one_token_a_step_when_there_are_as_many_steps(order):
    scheduler = prepared(18, unmasking_order=order)
    hidden = torch.full((5, 18), MASK)
    samples = list(denoise(scheduler, torch.zeros(5, 18, 5), hidden, seeded()))
    assert [(sample == MASK).sum(-1).tolist() for sample in samples] == [[n] * 5 for n in range(17, -1, -1)]


def test_confidence_reveals_where_the_drawn_token_is_likeliest():
    logits = torch.zeros(1, 4, 5)
    logits[0, :, 0] = torch.tensor([1.0, 4.0, 2.0, 3.0])
    scheduler = prepared(4, unmasking_order="confidence")
    hidden = torch.full((1, 4), MASK)
    samples = list(denoise(scheduler, logits, hidden, seeded(), temperature=0.0))
    revealed = [(sample[0] != MASK).nonzero()[:, 0].tolist() for sample in samples]
    assert revealed == [[1], [1, 3], [1, 2, 3], [0, 1, 2, 3]]


def test_left_to_right_reveals_the_first_ones():
    samples = denoise(
        prepared(2, unmasking_order="left_to_right"), torch.zeros(3, 4, 5), torch.full((3, 4), MASK), seeded()
    )
    assert (next(samples) != MASK).tolist() == [[True, True, False, False]] * 3


def test_choice_temperature_makes_the_confidence_order_random():
    logits = torch.zeros(500, 4, 5)
    logits[:, :, 0] = torch.tensor([1.0, 4.0, 2.0, 3.0])
    scheduler = prepared(4, unmasking_order="confidence", choice_temperature=5.0)
    first = next(denoise(scheduler, logits, torch.full((500, 4), MASK), seeded(), temperature=0.0))
    counts = (first != MASK).sum(0)
    assert (counts > 50).all()


def test_random_order_is_uniform():
    first = next(
        denoise(prepared(4, unmasking_order="random"), torch.zeros(8000, 4, 5), torch.full((8000, 4), MASK), seeded())
    )
    share = (first != MASK).float().mean(0)
    torch.testing.assert_close(share, torch.full((4,), 0.25), atol=4 * 0.5 / 8000**0.5, rtol=0)


@pytest.mark.parametrize("order", ORDERS)
def test_visible_tokens_stay(order):
    sample = torch.tensor([[0, MASK, 2, MASK]])
    scheduler = prepared(3, unmasking_order=order)
    free = sample == MASK
    for later in denoise(scheduler, torch.zeros(1, 4, 5), sample, seeded(), free=free):
        assert later[0, [0, 2]].tolist() == [0, 2]


def test_temperature_top_k_and_top_p():
    logits = torch.tensor([0.5, 0.25, 0.15, 0.1, 1.0]).log().expand(20000, 1, 5)
    hidden = torch.full((20000, 1), MASK)

    def frequency(**kwargs):
        final = prepared(1).step(logits, 1.0, hidden, mask_token_id=MASK, generator=seeded(), **kwargs).prev_sample
        return torch.nn.functional.one_hot(final[:, 0], 5).float().mean(0)

    def normalised(*values):
        values = torch.tensor(values)
        return values / values.sum()

    close = {"atol": 4 * 0.5 / 20000**0.5, "rtol": 0}
    torch.testing.assert_close(frequency(), normalised(0.5, 0.25, 0.15, 0.1, 0), **close)
    torch.testing.assert_close(frequency(temperature=0.5), normalised(0.25, 0.0625, 0.0225, 0.01, 0), **close)
    torch.testing.assert_close(frequency(top_k=2), normalised(0.5, 0.25, 0, 0, 0), **close)
    torch.testing.assert_close(frequency(top_p=0.8), normalised(0.5, 0.25, 0.15, 0, 0), **close)
    torch.testing.assert_close(frequency(temperature=0), normalised(1.0, 0, 0, 0, 0))


def test_inputs_are_left_as_they_were():
    logits, sample = torch.randn(2, 3, 5), torch.full((2, 3), MASK)
    before = logits.clone()
    prepared(2).step(logits, 1.0, sample, mask_token_id=MASK, temperature=0.7, generator=seeded())
    assert torch.equal(logits, before)
    assert (sample == MASK).all()


def test_add_noise_hides_with_probability_one_minus_alpha():
    scheduler = MaskedDiffusionScheduler(schedule="cosine")
    noisy = scheduler.add_noise(torch.zeros(300, 300).long(), 0.4, MASK, seeded())
    assert (noisy == MASK).float().mean().item() == pytest.approx(1 - scheduler.alpha(0.4), abs=4 * 0.5 / 300)


def test_config_round_trip(tmp_path):
    MaskedDiffusionScheduler(unmasking_order="confidence", choice_temperature=0.3).save_pretrained(tmp_path)
    config = MaskedDiffusionScheduler.from_pretrained(tmp_path).config
    assert config.unmasking_order == "confidence"
    assert config.choice_temperature == 0.3


def test_bad_settings():
    with pytest.raises(
        ValueError, match="`unmasking_order` must be one of ancestral, random, left_to_right, confidence"
    ):
        MaskedDiffusionScheduler(unmasking_order="left")
    with pytest.raises(ValueError, match="`schedule` must be one of linear, cosine, root, square, arccos, got 'sq"):
        MaskedDiffusionScheduler(schedule="squared")
    with pytest.raises(
        ValueError, match="`counting` must be one of share, share_down, floor, floor_from_zero, got 'ceil'"
    ):
        MaskedDiffusionScheduler(counting="ceil")
    with pytest.raises(ValueError, match="`random_steps` must be >= 0, got -1"):
        MaskedDiffusionScheduler(random_steps=-1)
    with pytest.raises(ValueError, match=r"`remasking_strength` must lie in \[0, 1\]"):
        MaskedDiffusionScheduler(remasking_strength=2)
    with pytest.raises(ValueError, match="`choice_temperature` must be >= 0"):
        MaskedDiffusionScheduler(choice_temperature=-1)
    with pytest.raises(ValueError, match="`num_inference_steps` must be >= 1"):
        MaskedDiffusionScheduler().set_timesteps(0)
    with pytest.raises(ValueError, match="`set_timesteps` must be called"):
        MaskedDiffusionScheduler().step(torch.zeros(1, 1, 5), 1.0, torch.zeros(1, 1).long(), mask_token_id=MASK)


def test_only_free_positions_are_drawn_and_the_last_step_leaves_the_others_hidden():
    scheduler = MaskedDiffusionScheduler()
    scheduler.set_timesteps(1)
    free = torch.tensor([[True, False, True, False]])
    hidden = torch.full((1, 4), MASK)
    output = scheduler.step(torch.zeros(1, 4, 5), 1.0, hidden, mask_token_id=MASK, free=free, generator=seeded())
    assert torch.equal(output.prev_sample == MASK, ~free)


def test_eps_is_where_the_last_step_ends():
    """Dream's share of a step is `1 - s / t` with times down to eps; what is hidden then is drawn in the last one."""
    scheduler = prepared(2, unmasking_order="left_to_right", eps=0.5)
    torch.testing.assert_close(scheduler.timesteps, torch.tensor([1.0, 0.75], dtype=torch.float64))
    samples = denoise(scheduler, torch.zeros(1, 12, 5), torch.full((1, 12), MASK), None)
    assert [(sample == MASK).sum().item() for sample in samples] == [9, 0]
    ancestral = prepared(1, unmasking_order="ancestral", eps=0.5)
    (last,) = denoise(ancestral, torch.zeros(100, 12, 5), torch.full((100, 12), MASK), seeded())
    assert not (last == MASK).any()


@pytest.mark.parametrize("order", ["confidence", "maskgit_plus"])
def test_a_threshold_is_a_probability(order):
    scheduler = prepared(4, unmasking_order=order, confidence_threshold=0.6)
    probs = torch.tensor([[0.7, 0.3], [0.8, 0.2], [0.55, 0.45], [0.5, 0.5]])
    sample = torch.full((1, 4), MASK)
    drawn = scheduler.step(probs.log()[None], 1.0, sample, mask_token_id=MASK, temperature=0.0).prev_sample
    assert (drawn[0] != MASK).tolist() == [True, True, False, False]


def test_what_is_as_sure_as_the_threshold_waits():
    scheduler = prepared(4, unmasking_order="maskgit_plus", confidence_threshold=0.5)
    probs = torch.tensor([[0.5, 0.5], [0.8, 0.2], [0.5, 0.5], [0.75, 0.25]])
    sample = torch.full((1, 4), MASK)
    drawn = scheduler.step(probs.log()[None], 1.0, sample, mask_token_id=MASK, temperature=0.0).prev_sample
    assert (drawn[0] != MASK).tolist() == [False, True, False, True]


@pytest.mark.parametrize("sure", [0, 1])
def test_confidence_is_the_models_whatever_is_cut(sure):
    """top_k leaves one token, of probability 1, everywhere."""
    probs = torch.full((2, 2), 0.5)
    probs = torch.tensor([[0.6, 0.4], [0.6, 0.4]])
    probs[sure] = torch.tensor([0.9, 0.1])
    scheduler, sample = prepared(2, unmasking_order="confidence"), torch.full((1, 2), MASK)
    drawn = scheduler.step(probs.log()[None], 1.0, sample, mask_token_id=MASK, top_k=1).prev_sample
    assert (drawn[0] != MASK).nonzero().tolist() == [[sure]]


@pytest.mark.parametrize("token", [-1, 5, 1.0, True])
def test_late_tokens_are_of_the_vocabulary(token):
    scheduler, sample = prepared(2, unmasking_order="confidence"), torch.full((1, 4), MASK)
    with pytest.raises(ValueError, match=f"`late_tokens` must be token ids below 5, got {token}"):
        scheduler.step(torch.zeros(1, 4, 5), 1.0, sample, mask_token_id=MASK, late_tokens=[0, token])


@pytest.mark.parametrize(("order", "strength"), [("confidence", 0.5), ("maskgit_plus", 1.0)])
def test_noise_of_the_confidence_fades_in_the_order_that_says_so(order, strength):
    """Of two positions the first is drawn first with probability `sigmoid(difference of confidences / noise)`."""
    probs = torch.tensor([[0.6, 0.4, 0, 0, 0], [0.9, 0.1, 0, 0, 0]])
    scheduler = prepared(4, unmasking_order=order, choice_temperature=1.0)
    logits, sample = probs.log().repeat(20_000, 2, 1), torch.full((20_000, 4), MASK)
    sample[:, 2:] = 0  # half of four is drawn at t = 0.5, and one of the two that are left
    settings = {"mask_token_id": MASK, "temperature": 0.0, "generator": seeded()}
    drawn = scheduler.step(logits, 0.5, sample, **settings).prev_sample
    confidence = probs.amax(-1).log() if order == "confidence" else probs.amax(-1)
    expected = (confidence / strength).softmax(-1)[1].item()
    assert (drawn[:, 1] != MASK).double().mean().item() == pytest.approx(expected, abs=0.015)
