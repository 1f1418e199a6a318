import inspect
import math
from dataclasses import dataclass, replace

import pytest
import torch

from redge_guidance import GuidanceConfig, ReDGE, guide, straight_through
from redge_guidance.divergence import kl
from redge_guidance.estimators import Estimator
from redge_guidance.guidance import Guidance
from redge_guidance.hosts import DenoisingStep
from redge_guidance.pipelines import MaskedTextPipeline
from redge_guidance.tilting import guided_logits
from redge_guidance.updates import Adam, Natural
from tests.helpers.settings import plain_config
from tests.helpers.tiny import tiny_pipeline, word_tokenizer

PROMPTS = ["", "a b", "c [MASK] [MASK] d", "e"]
JUMP = Natural(num_updates=1, step_size=1.0, damping=0.0)  # one update to the tilted p
CONFIGS = {
    "default": GuidanceConfig(),
    "target": GuidanceConfig(target=-0.05),
    "scale": GuidanceConfig(scale=2.0),
    "plain": plain_config(),
    "support": GuidanceConfig(support=3, every=1, estimator="entropy_mix", update=Natural(3, 1 / 3)),
    "straight_through": GuidanceConfig(estimator="straight_through"),
    "redge": GuidanceConfig(estimator="redge"),
    "soft": GuidanceConfig(estimator="soft", num_draws=1),
    "black box": GuidanceConfig(estimator="reinforce_loo", num_draws=32),
    "adam": plain_config(update=Adam(num_updates=3)),
    "budget": GuidanceConfig(scale=50.0, kl_budget=0.2, estimator="entropy_mix"),
}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def sample(pipe, seed=0, prompt=PROMPTS, **kwargs):
    return pipe(prompt, generator=seeded(seed), **kwargs).sequences


def table_reward(table):
    """Sum over all positions of one number a token: linear in the one-hots."""
    return lambda tokens: tokens.embed(table[:, None])[..., 0].sum(-1)


def step_of(logits, free=None, temperature=1.0):
    """A denoising step of `logits` `(batch, length, V)` with everything hidden, or only `free`."""
    free = torch.ones(logits.shape[:2]).bool() if free is None else free
    ids = torch.full(free.shape, 3).masked_fill(free, 2)
    valid = torch.ones_like(free)
    return DenoisingStep(logits, ids, free, valid, temperature, 0.0, None)


# ---- invariant 1: off means off ----


@pytest.mark.parametrize("order", ["ancestral", "random", "left_to_right", "confidence", "remasking"])
def test_scale_zero_gives_the_tokens_of_the_bare_pipeline(order, reward):
    pipe = tiny_pipeline(unmasking_order=order)
    bare = sample(pipe, temperature=0.9)
    with guide(pipe, reward, GuidanceConfig(scale=0.0)):
        assert torch.equal(sample(pipe, temperature=0.9), bare)


def test_outside_start_and_stop_nothing_is_guided(pipe, reward):
    bare = sample(pipe, num_inference_steps=4)
    with guide(pipe, reward, GuidanceConfig(scale=100.0, start=0.8)) as handle:
        assert torch.equal(sample(pipe, num_inference_steps=4), bare)  # the last step starts at progress 0.75
    assert handle.trace == []
    with guide(pipe, reward, GuidanceConfig(scale=100.0, start=0.25, stop=0.75)) as handle:
        assert not torch.equal(sample(pipe, num_inference_steps=4), bare)
    assert [step.progress for step in handle.trace] == [0.25, 0.5]


def test_guidance_does_not_consume_the_generator_of_the_pipeline(pipe, reward):
    bare, guided = seeded(), seeded()
    pipe(PROMPTS, generator=bare)
    state = torch.get_rng_state()
    with guide(pipe, reward):
        pipe(PROMPTS, generator=guided)
    assert torch.equal(bare.get_state(), guided.get_state())
    assert torch.equal(torch.get_rng_state(), state)


# ---- invariant 2: removal ----


def test_remove_restores_the_pipeline_exactly(pipe, reward):
    before = [dict(vars(part)) for part in (pipe, pipe.scheduler)]
    bare = sample(pipe)
    handle = guide(pipe, reward)
    assert inspect.signature(pipe.__call__) == inspect.signature(MaskedTextPipeline.__call__.__get__(pipe))
    sample(pipe)
    handle.remove()
    handle.remove()
    pipe.scheduler.set_timesteps(6)
    after = [dict(vars(part)) for part in (pipe, pipe.scheduler)]
    assert [set(part) for part in before] == [set(part) for part in after]
    assert "step" not in vars(pipe.scheduler)
    assert torch.equal(sample(pipe), bare)


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
def test_an_exception_in_the_reward_leaves_the_pipeline_usable(pipe, error):
    bare = sample(pipe)

    def broken(tokens):
        raise error

    with pytest.raises(error), guide(pipe, broken):
        sample(pipe)
    assert "step" not in vars(pipe.scheduler)
    assert torch.equal(sample(pipe), bare)


# ---- invariant 3: a batch is its rows ----


@dataclass(frozen=True, eq=False)
class Replayed(Estimator):
    """Straight-through with noise that belongs to a position: the same for a row alone as in its batch."""

    uniform: torch.Tensor = None  # (draws, rows, K)
    gradient_at = "sample"

    def __call__(self, logits, generator=None):
        soft = logits.softmax(-1)
        drawn = (logits - (-self.uniform.log()).log()).argmax(-1)
        one_hot = torch.nn.functional.one_hot(drawn, logits.shape[-1]).to(logits.dtype)
        return one_hot + soft - soft.detach()


@pytest.mark.parametrize("update", [Natural(num_updates=2, step_size=0.6), Adam(num_updates=4)])
@pytest.mark.parametrize("kl_budget", [None, 0.1])
def test_guiding_a_batch_is_guiding_its_rows(update, kl_budget, reward):
    torch.manual_seed(0)
    logits, free = torch.randn(3, 5, 8), torch.rand(3, 5) < 0.6
    uniform = torch.rand(2, int(free.sum()), 8)
    whole = step_of(logits, free)
    whole = DenoisingStep(whole.logits, whole.ids, free, whole.attention_mask, 1.0, 0.0, reward.tokenizer)

    def guided(step, noise):
        config = GuidanceConfig(
            scale=3.0, estimator=Replayed(uniform=noise), update=update, num_draws=2, kl_budget=kl_budget, support=None
        )
        return guided_logits(step, reward, config, seeded())[0]

    batch = guided(whole, uniform)
    position = 0
    for i in range(3):
        rows = slice(position, position := position + int(free[i].sum()))
        one = slice(i, i + 1)
        step = DenoisingStep(
            whole.logits[one], whole.ids[one], free[one], whole.attention_mask[one], 1.0, 0.0, reward.tokenizer
        )
        torch.testing.assert_close(guided(step, uniform[:, rows]), batch[rows], atol=1e-5, rtol=1e-4)


# ---- invariant 4: what is fixed stays fixed ----


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_prompts_and_committed_tokens_never_change_and_reserved_ones_are_never_drawn(pipe, reward, config):
    seen = []
    with guide(pipe, reward, config):
        final = pipe(
            PROMPTS,
            generator=seeded(),
            callback_on_step_end=lambda pipe, i, t, tensors: seen.append(tensors["sample"]),
        ).sequences
    mask_id, pad_id = pipe.tokenizer.mask_token_id, pipe.tokenizer.pad_token_id
    for earlier, later in zip(seen, [*seen[1:], final], strict=True):
        fixed = earlier != mask_id
        assert torch.equal(later[fixed], earlier[fixed])
    canvas = pipe.canvas(PROMPTS)
    assert torch.equal(final[canvas.prompt], canvas.ids[canvas.prompt])
    new = final[canvas.free]
    assert not ((new == mask_id) | (new == pad_id)).any()


# ---- invariant 5: a reward that is wrong says so ----

BAD_REWARDS = {
    "sum": (lambda t: t.weights.sum(), r"must return shape \(16,\), got \(\); do not sum"),
    "per token": (
        lambda t: t.embed(torch.ones(8, 1))[..., 0],
        r"must return shape \(16,\), got \(16, \d+\); return one",
    ),
    "number": (lambda t: 1.0, "must return a floating point tensor, got float"),
    "integers": (lambda t: t.ids.sum(-1), "must return a floating point tensor, got a tensor of torch.int64"),
    "nan": (lambda t: t.embed(torch.ones(8, 1)).sum((1, 2)) * float("nan"), "returned NaN or infinity"),
    "nan gradient": (
        lambda t: t.embed(torch.zeros(8, 1)).sum((1, 2)).sqrt() + t.embed(torch.ones(8, 1)).sum((1, 2)),
        "has a gradient that is NaN or infinite",
    ),
    "detached": (lambda t: t.embed(torch.ones(8, 1)).sum((1, 2)).detach(), "returned a tensor without gradient"),
    "unrelated": (
        lambda t: torch.ones(len(t), requires_grad=True) * 2,
        "has no gradient with respect to the tokens",
    ),
}


@pytest.mark.parametrize("name", BAD_REWARDS)
@pytest.mark.parametrize("estimator", ["straight_through", "redge"])
def test_bad_rewards(pipe, name, estimator):
    bad, message = BAD_REWARDS[name]
    bare = sample(pipe)
    with pytest.raises(ValueError, match="`reward` " + message), guide(pipe, bad, GuidanceConfig(estimator=estimator)):
        sample(pipe)
    assert torch.equal(sample(pipe), bare)


def test_bad_calls(pipe, reward):
    with pytest.raises(ValueError, match="`reward` must be a callable"):
        guide(pipe, "positive")
    with pytest.raises(ValueError, match="`config` must be a GuidanceConfig, got dict"):
        guide(pipe, reward, {"scale": 1})
    with pytest.raises(ValueError, match="`pipe` must be a pipeline with a discrete scheduler.*got object"):
        guide(object(), reward)
    with guide(pipe, reward), pytest.raises(ValueError, match="`pipe` is guided already"):
        guide(pipe, reward)


# ---- the mathematics, end to end ----


@pytest.mark.parametrize("temperature", [1.0, 0.5])
@pytest.mark.parametrize("config", ["default", "straight_through", "redge"])
def test_a_linear_reward_gives_the_exact_tilt(config, temperature):
    torch.manual_seed(0)
    logits, table = torch.randn(2, 3, 5), torch.randn(5)
    settings = {"scale": 1.5, "support": None, "num_draws": 1, "update": JUMP}
    if config == "straight_through":
        settings |= {"estimator": "straight_through"}
    if config == "redge":  # its gradient is exact for a linear reward only on average, and without damping
        settings |= {"estimator": ReDGE(), "num_draws": 20000}
    new, _ = guided_logits(
        step_of(logits, temperature=temperature), table_reward(table), GuidanceConfig(**settings), seeded()
    )
    expected = (logits.view(6, 5) / temperature + 1.5 * table).softmax(-1)
    error = 0.05 if config == "redge" else 1e-5
    torch.testing.assert_close((new / temperature).softmax(-1), expected, atol=error, rtol=0)


def test_samples_of_the_pipeline_follow_the_tilted_distribution():
    """One step, everything hidden: each token is drawn from p(v) exp(scale * r(v)) / Z of its position."""
    pipe, table = tiny_pipeline(length=3), torch.tensor([0, 0.3, 0, 1.0, -1, 0.5, 0, 2])
    texts = 20000
    with torch.no_grad():
        logits = pipe.model(torch.full((1, 3), 2), attention_mask=torch.ones(1, 3)).logits[0] / 3  # the temperature
    logits[:, [0, 2]] = -torch.inf
    # The reward counts all positions, whatever the text's end, so that it is linear in the one-hots.
    with guide(pipe, table_reward(table), GuidanceConfig(scale=0.8, update=JUMP, num_draws=1, support=None)):
        drawn = sample(pipe, prompt=[""] * texts, num_inference_steps=1, temperature=3.0)
    frequency = torch.nn.functional.one_hot(drawn, 8).float().mean(0)
    expected = (logits + 0.8 * table).softmax(-1)
    # Standard error of a frequency is at most 0.5 / sqrt(20000) = 0.0035.
    torch.testing.assert_close(frequency, expected, atol=4 * 0.0035, rtol=0)
    assert (frequency - logits.softmax(-1)).abs().max() > 0.05


def test_the_straight_through_gradient_at_the_sample_agrees_with_the_one_at_the_logits(reward):
    torch.manual_seed(0)
    logits = torch.randn(2, 4, 8)
    logits[..., 0] = -torch.inf  # padding is no text
    step = step_of(logits)
    step = DenoisingStep(step.logits, step.ids, step.free, step.attention_mask, 1.0, 0.0, reward.tokenizer)

    class ThroughLogits(Estimator):
        def __call__(self, logits, generator=None):
            return straight_through(logits, generator=generator)

    results = [
        guided_logits(step, reward, plain_config(estimator=e, update=JUMP), seeded())[0].softmax(-1)
        for e in ("straight_through", ThroughLogits())
    ]
    torch.testing.assert_close(*results, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["redge_cov", "reindge", "reinmax", "reinforce_loo"])
def test_every_estimator_finds_the_tilt_of_a_linear_reward(name):
    torch.manual_seed(0)
    logits, table = torch.randn(1, 2, 5), torch.randn(5)
    config = GuidanceConfig(1.5, name, JUMP, num_draws=40000, support=None)
    new, _ = guided_logits(step_of(logits), table_reward(table), config, seeded())
    expected = (logits.view(2, 5) + 1.5 * table).softmax(-1)
    torch.testing.assert_close(new.softmax(-1), expected, atol=0.05, rtol=0)


def test_a_reward_on_strings_guides_by_the_score_function(pipe):
    def counts(tokens):
        return torch.tensor([float(text.count("a")) for text in tokens.texts()])

    config = GuidanceConfig(scale=4.0, estimator="reinforce_loo", num_draws=64)
    bare = sum(text.count("a") for text in pipe([""] * 50, generator=seeded()).texts)
    with guide(pipe, counts, config):
        guided = sum(text.count("a") for text in pipe([""] * 50, generator=seeded()).texts)
    assert guided > 1.5 * bare
    with guide(pipe, counts), pytest.raises(ValueError, match="without gradient.*the estimator `reinforce_loo`"):
        sample(pipe)


def test_a_mixed_sample_is_embedded_as_a_mixture():
    logits, table, seen = torch.randn(1, 3, 5, generator=seeded()), torch.randn(5), []

    def reward(tokens):
        seen.append(tokens)
        return table_reward(table)(tokens)

    guided_logits(step_of(logits), reward, GuidanceConfig(estimator="soft", num_draws=1, support=None), seeded())
    assert not seen[0].hard
    torch.testing.assert_close(table_reward(table)(seen[0]), (logits.softmax(-1) * table).sum()[None])
    assert torch.equal(seen[0].ids, logits.argmax(-1))


def test_support_leaves_the_other_tokens_as_the_model_gave_them():
    torch.manual_seed(0)
    logits, table = torch.randn(2, 3, 8), torch.randn(8)
    new, figures = guided_logits(
        step_of(logits), table_reward(table), plain_config(4.0, update=JUMP, support=4), seeded()
    )
    p, q = logits.view(6, 8).softmax(-1), new.softmax(-1)
    kept = torch.zeros_like(p).scatter(-1, p.topk(4).indices, 1).bool()
    torch.testing.assert_close(q[~kept], p[~kept])
    inside = torch.where(kept, p * (4 * table).exp(), 0)
    inside *= torch.where(kept, p, 0).sum(-1, keepdim=True) / inside.sum(-1, keepdim=True)
    torch.testing.assert_close(q[kept], inside[kept])
    assert math.isclose(figures.kl, kl(q.log(), p.log()).mean(), rel_tol=1e-4)


@pytest.mark.parametrize("support", [None, 4])
def test_kl_budget_holds_for_every_sequence(support):
    torch.manual_seed(0)
    logits, table = torch.randn(3, 4, 8), torch.randn(8)
    free = torch.tensor([[1, 1, 1, 1], [0, 1, 0, 0], [0, 1, 1, 0]]).bool()
    config = GuidanceConfig(scale=20.0, update=JUMP, kl_budget=0.3, support=support)
    new, _ = guided_logits(step_of(logits, free), table_reward(table), config, seeded())
    spent = kl(new.log_softmax(-1), logits[free].log_softmax(-1))
    for rows in (slice(0, 4), slice(4, 5), slice(5, 7)):
        assert spent[rows].mean() <= 0.3 * (1 + 1e-5)
        assert spent[rows].mean() > 0.29


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_guidance_raises_the_reward(config, reward):
    pipe = tiny_pipeline(length=8)
    prompts = [""] * (100 if (config.num_draws or 1) < 32 else 50)
    # The model is random and very sure of itself; a high temperature gives guidance something to choose from.
    bare = reward.score(pipe(prompts, generator=seeded(), temperature=3.0).texts)
    with guide(pipe, reward, config):
        guided = reward.score(pipe(prompts, generator=seeded(), temperature=3.0).texts)
    error = ((bare.var() + guided.var()) / len(prompts)).sqrt()
    assert guided.mean() > bare.mean() + 3 * error


def test_more_scale_gives_more_reward_and_more_kl(reward):
    pipe, rewards, divergences = tiny_pipeline(length=8), [], []
    for scale in (0.5, 2.0, 8.0):
        with guide(pipe, reward, GuidanceConfig(scale=scale)) as handle:
            rewards.append(reward.score(pipe([""] * 100, generator=seeded()).texts).mean())
        divergences.append(sum(step.kl for step in handle.trace))
    assert sorted(rewards) == rewards
    assert sorted(divergences) == divergences


def test_half_precision_logits_are_guided_in_float32(pipe, reward):
    pipe.to(torch.bfloat16)
    with guide(pipe, reward) as handle:
        assert len(sample(pipe)) == len(PROMPTS)
    assert all(math.isfinite(step.kl) and math.isfinite(step.reward) for step in handle.trace)


def test_trace_and_repr(pipe, reward):
    with guide(pipe, reward) as handle:
        sample(pipe, num_inference_steps=3)
        sample(pipe, num_inference_steps=3)
        assert "on MaskedTextPipeline" in repr(handle)
    assert "removed from MaskedTextPipeline" in repr(handle)
    assert [step.progress for step in handle.trace] == pytest.approx([0, 1 / 3, 2 / 3] * 2)
    first = handle.trace[0]
    assert first.kl > 0
    assert first.grad_norm > 0
    assert 0 < first.entropy < math.log(8)
    assert first.seconds > 0


def test_own_seed_decides_the_noise_of_guidance(pipe, reward):
    def run(seed):
        with guide(pipe, reward, GuidanceConfig(scale=8.0, estimator="entropy_mix", num_draws=1), seed=seed):
            return sample(pipe, prompt=[""] * 20)

    assert torch.equal(run(1), run(1))
    assert not torch.equal(run(1), run(2))


def test_empty_batch(pipe, reward):
    with guide(pipe, reward):
        assert pipe([], generator=seeded()).texts == []


def test_sum_of_functions_and_a_lambda_is_a_reward(pipe):
    table = torch.zeros(8)
    table[3] = 1.0
    length = (lambda tokens: -0.1 * tokens.attention_mask.sum(-1), table_reward(table))
    with guide(pipe, lambda tokens: length[0](tokens) + length[1](tokens), GuidanceConfig(scale=20.0)):
        texts = pipe([""] * 20, generator=seeded()).texts
    assert sum("a" in text for text in texts) > 15


def test_word_tokenizer_is_what_the_tests_think():
    assert word_tokenizer()("a e").input_ids == [3, 7]


def test_draws_that_are_too_large_to_hold_together_go_one_after_the_other(monkeypatch):
    """A smooth expectation has no noise: the gradient is the same in one part, in two, or draw by draw."""
    logits, table = torch.randn(2, 3, 8, generator=seeded()), torch.randn(8, 3, generator=seeded())
    config = plain_config(scale=2.0, estimator="soft", support=None)
    seen, results = [], []

    def reward(tokens):
        seen.append(tokens.draws)
        return tokens.embed(table).square().sum((1, 2))

    for limit in (10**6, 3 * logits.numel(), 1):
        monkeypatch.setattr("redge_guidance.gradients._MOST_TOGETHER", limit)
        results.append(guided_logits(step_of(logits), reward, config, seeded())[0])
    assert seen == [4] * 3 + [3, 1] * 3 + [1] * 12
    torch.testing.assert_close(results[0], results[1])
    torch.testing.assert_close(results[0], results[2])


def test_the_noise_of_a_step_depends_on_its_number_where_the_samplers_generator_stands_still():
    """As with greedy sampling, which draws nothing."""
    logits, table = torch.randn(2, 3, 8, generator=seeded()), torch.randn(8, 3, generator=seeded())
    config = plain_config(estimator="straight_through", num_draws=1, support=None)
    guidance = Guidance(lambda tokens: tokens.embed(table).square().sum((1, 2)), config)
    step = replace(step_of(logits), generator=seeded(3))
    first, second = guidance(step), guidance(step)
    assert not torch.equal(first, second)
    guidance.begin()
    assert torch.equal(guidance(step), first)
    assert torch.equal(guidance(step), second)
