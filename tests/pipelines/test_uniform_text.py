"""The uniform posterior against enumeration, and the pipeline on the real classes, tiny."""

import math
import types

import pytest
import torch
from diffusers import DiscreteDDIMScheduler
from transformers import BertConfig

from redge_guidance import GuidanceConfig, guide
from redge_guidance.pipelines import MaskedDiffusionScheduler, MaskedTextPipeline, TextPipeline, UniformTextPipeline
from redge_guidance.pipelines.drawing import Canvas
from redge_guidance.pipelines.text.families import FAMILIES, family_of
from redge_guidance.pipelines.text.posterior import denoiser_logits, elbo_rate, leave_one_out_logits
from redge_guidance.updates import Natural
from tests.helpers.tiny import CHAT_TEMPLATE, WORDS, tiny_pipeline, tiny_uniform, word_tokenizer

PAD, EOS, MASK = 0, 1, 2
K = 4


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def kernel(start, end):
    """`(K, K)` float64, probability of a token at the lower level `start` to be another one at the level `end`."""
    kept = end / start if start else 1.0
    return kept * torch.eye(K, dtype=torch.float64) + (1 - kept) / K


def posterior(clean, seen, alpha_t, alpha_s):
    """`q(z_s | z_t, x_0)` by Bayes' rule."""
    weights = kernel(1.0, alpha_s)[clean] * kernel(alpha_s, alpha_t)[:, seen]
    return weights / weights.sum()


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.95])
def test_the_denoiser_is_bayes_rule_on_the_leave_one_out_prediction(alpha):
    logits = torch.randn(5, K, dtype=torch.float64, generator=seeded())
    seen = torch.tensor([0, 1, 2, 3, 0])
    expected = logits.softmax(-1) * kernel(1.0, alpha)[:, seen].T
    found = denoiser_logits(logits, seen, alpha)
    torch.testing.assert_close(found.softmax(-1), expected / expected.sum(-1, keepdim=True))
    torch.testing.assert_close(leave_one_out_logits(found, seen, alpha), logits)


def test_a_clean_token_from_the_denoiser_then_the_posterior_is_the_step_of_udlm():
    """UDLM puts the leave-one-out prediction y into `q(z_s | z_t, x_0)` as a function of x_0."""
    alpha_t, alpha_s, seen = 0.3, 0.55, 2
    logits = torch.randn(K, dtype=torch.float64, generator=seeded())
    y, z = logits.softmax(-1), torch.eye(K, dtype=torch.float64)[seen]
    clean = denoiser_logits(logits, torch.tensor(seen), alpha_t).softmax(-1)
    ours = sum(clean[x] * posterior(x, seen, alpha_t, alpha_s) for x in range(K))
    kept = alpha_t / alpha_s
    plugged = K * alpha_t * z * y + (kept - alpha_t) * z + (alpha_s - alpha_t) * y + (1 - kept) * (1 - alpha_s) / K
    torch.testing.assert_close(ours, plugged / (K * alpha_t * y[seen] + 1 - alpha_t))


def test_the_bound_is_the_limit_of_the_bound_in_small_steps():
    """Discrete time: sum over the steps of KL(q(z_s | z_t, x_0) || model), and the last one's -log p(x_0 | z)."""
    y, clean, steps = torch.randn(K, dtype=torch.float64, generator=seeded()).softmax(-1), 1, 400
    total = 0.0
    for step in range(steps):
        alpha_t, alpha_s = step / steps, (step + 1) / steps
        for seen in range(K):
            weight = kernel(1.0, alpha_t)[clean, seen]
            p = denoiser_logits(y.log(), torch.tensor(seen), alpha_t).softmax(-1)
            if step + 1 == steps:
                total -= weight * p[clean].log()
                continue
            true = posterior(clean, seen, alpha_t, alpha_s)
            model = sum(p[x] * posterior(x, seen, alpha_t, alpha_s) for x in range(K))
            total += weight * (true * (true / model).log()).sum()
    t = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    rate = torch.zeros_like(t)
    for seen in range(K):
        ids = torch.full(t.shape, clean), torch.full(t.shape, seen)
        rate += ((1 - t) * (seen == clean) + t / K) * elbo_rate(y.log().expand(len(t), K), *ids, 1 - t)
    assert rate.mean().item() == pytest.approx(total.item(), rel=1e-3)
    assert rate.mean().item() == pytest.approx(-y[clean].log().item(), rel=1e-3)  # one token alone: the bound is tight


class Memoryless(torch.nn.Module):
    """Predicts the same distribution whatever the other tokens are: the exact leave-one-out model of such texts."""

    device, dtype = torch.device("cpu"), torch.float32

    def __init__(self, logits):
        super().__init__()
        self.logits = torch.nn.Parameter(logits)
        self.config = types.SimpleNamespace(vocab_size=len(logits))

    def forward(self, input_ids):
        return self.logits.expand(*input_ids.shape, -1)


def memoryless(length=2, **settings):
    logits = torch.randn(len(WORDS), generator=seeded(3))
    pipe = UniformTextPipeline(
        Memoryless(logits), word_tokenizer(), DiscreteDDIMScheduler(), length=length, attention="none", **settings
    )
    pipe.set_progress_bar_config(disable=True)
    allowed = logits.clone()
    allowed[[PAD, MASK]] = -torch.inf
    return pipe, allowed.log_softmax(-1)


@pytest.mark.parametrize("corrector_steps", [0, 1])
def test_samples_of_an_exact_model_follow_it_whatever_the_steps(corrector_steps):
    pipe, log_p = memoryless(num_inference_steps=3)
    pipe.scheduler.register_to_config(corrector_steps=corrector_steps, corrector_selection="random")
    ids = pipe([""] * 20_000, generator=seeded()).sequences
    found = torch.bincount(ids.flatten(), minlength=len(WORDS)) / ids.numel()
    assert (found - log_p.exp()).abs().sum() / 2 < 0.01
    pairs = torch.bincount(len(WORDS) * ids[:, 0] + ids[:, 1], minlength=len(WORDS) ** 2) / len(ids)
    assert (pairs - torch.outer(log_p.exp(), log_p.exp()).flatten()).abs().sum() / 2 < 0.03


class Pairs(torch.nn.Module):
    """The exact leave-one-out prediction, by Bayes' rule, for texts of two tokens that mostly agree."""

    device, dtype = torch.device("cpu"), torch.float32

    def __init__(self):
        super().__init__()
        self.config = types.SimpleNamespace(vocab_size=len(WORDS))
        self.joint = torch.zeros(len(WORDS), len(WORDS))
        self.joint[3:5, 3:5] = torch.tensor([[0.45, 0.03], [0.07, 0.45]])

    def forward(self, input_ids, timesteps):
        alpha = timesteps.neg().exp()[:, None]
        first, second = torch.nn.functional.one_hot(input_ids, len(WORDS)).unbind(1)
        of_first = (alpha * second + (1 - alpha) / len(WORDS)) @ self.joint.T
        of_second = (alpha * first + (1 - alpha) / len(WORDS)) @ self.joint
        return torch.stack([of_first, of_second], 1).log()


def test_many_steps_sample_the_joint_distribution():
    """A step draws all tokens independently, which in 64 steps does little harm; without the evidence it does."""
    pipe = UniformTextPipeline(
        Pairs(),
        word_tokenizer(),
        DiscreteDDIMScheduler(),
        length=2,
        num_inference_steps=64,
        attention="none",
        time_input="timesteps",
    )
    pipe.set_progress_bar_config(disable=True)
    ids = pipe([""] * 10_000, generator=seeded()).sequences
    found = torch.bincount(len(WORDS) * ids[:, 0] + ids[:, 1], minlength=len(WORDS) ** 2) / len(ids)
    assert (found - pipe.model.joint.flatten()).abs().sum() / 2 < 0.02


@pytest.mark.parametrize("prediction_type", ["leave_one_out", "denoiser"])
def test_temperature_is_that_of_the_leave_one_out_prediction(prediction_type):
    """Tempered after the evidence of what is seen, noise would stick: the distribution would depend on the steps."""
    pipe, log_p = memoryless(num_inference_steps=4)
    if prediction_type == "denoiser":
        exact, alphas = pipe.model.forward, iter(step / 4 for step in range(4))
        pipe.register_to_config(prediction_type="denoiser")
        pipe.model.forward = lambda input_ids: denoiser_logits(exact(input_ids), input_ids, next(alphas))
    ids = pipe([""] * 20_000, temperature=0.5, generator=seeded()).sequences
    found = torch.bincount(ids.flatten(), minlength=len(WORDS)) / ids.numel()
    assert (found - (2 * log_p).softmax(-1)).abs().sum() / 2 < 0.01


def test_nll_of_an_exact_model_is_its_log_probability():
    pipe, log_p = memoryless(length=3)
    nll = pipe.nll(["a b", "c"], num_corruptions=2**16, batch_size=2**13)
    expected = [-(log_p[3] + log_p[4] + log_p[EOS]), -(log_p[5] + 2 * log_p[EOS])]
    assert nll.tolist() == pytest.approx([e.item() for e in expected], rel=0.015)


def test_a_denoiser_is_taken_as_it_is():
    """The model's logits are then those of x_0 given all: nothing is added, and the bound takes away what it sees."""
    pipe, _ = memoryless(prediction_type="denoiser")
    sample = torch.tensor([[3, 4]])
    canvas = Canvas.all_text(sample, free=torch.ones_like(sample, dtype=torch.bool))
    plain = pipe._denoise(canvas, sample, 0.5)
    torch.testing.assert_close(plain[0, 0, 3:], pipe.model.logits.detach()[3:])
    pipe.register_to_config(prediction_type="leave_one_out")
    added = pipe._denoise(canvas, sample, 0.5)[0, 0] - plain[0, 0]
    assert added[3:].tolist() == pytest.approx([math.log1p(len(WORDS)), 0, 0, 0, 0], abs=1e-6)
    with torch.no_grad():
        pipe.model.logits.zero_()
    uniform = pipe.nll("a")
    pipe.register_to_config(prediction_type="denoiser")
    assert pipe.nll("a") > uniform + 0.1  # a denoiser that does not look at its token is a poor one


def test_prompts_of_all_kinds_in_one_batch():
    pipe = tiny_uniform()
    output = pipe(["", "a b", "c [MASK] [MASK] d"], generator=seeded())
    assert output.sequences.shape == (3, 6)
    assert output.sequences[1, :2].tolist() == [3, 4]
    filled = output.sequences[2].tolist()
    assert (filled[0], filled[3:]) == (5, [6, EOS, EOS])
    assert not ((output.sequences == MASK) | (output.sequences == PAD)).any()
    assert output.texts[1].startswith("a b")
    assert pipe([]).texts == []
    assert torch.equal(pipe(["", "a b", "c [MASK] [MASK] d"], generator=seeded()).sequences, output.sequences)


def test_given_tokens_stay_in_every_step_and_hidden_ones_begin_as_noise():
    pipe = tiny_uniform(corrector_steps=2, corrector_k=2)
    samples = []

    def callback(pipe, step, t, tensors):
        samples.append(tensors["sample"])
        assert tensors["logits"].shape == (1, 6, len(WORDS))

    pipe("a b", num_inference_steps=5, callback_on_step_end=callback, generator=seeded(),
         callback_on_step_end_tensor_inputs=["sample", "logits"])  # fmt: skip
    assert len(samples) == 5
    assert all(sample[0, :2].tolist() == [3, 4] for sample in samples)
    assert len({tuple(sample[0].tolist()) for sample in samples}) > 2


@pytest.mark.parametrize("temperature", [0.0, 0.5])
def test_top_k_of_one_is_greedy(temperature):
    pipe = tiny_uniform()
    run = {"num_inference_steps": 1, "generator": seeded()}
    greedy = pipe([""] * 4, temperature=0.0, **run).sequences
    run["generator"] = seeded()
    assert torch.equal(pipe([""] * 4, temperature=temperature, top_k=1, **run).sequences, greedy)
    assert pipe([""] * 4, top_p=1e-6, temperature=1.0, **(run | {"generator": seeded()})).sequences.equal(greedy)


def test_padding_on_the_left_does_not_change_a_rows_logits():
    pipe = tiny_uniform()
    canvas = pipe.canvas(["a b c d", "e"], gen_length=3)
    ids, mask = canvas.ids, canvas.attention_mask
    with torch.no_grad():
        together = pipe._logits(ids, mask)
        torch.testing.assert_close(together[1:, 3:], pipe._logits(ids[1:, 3:], mask[1:, 3:]))


def test_a_tokenizer_without_mask_token_serves_and_a_literal_mask_is_text():
    tokenizer = word_tokenizer()
    tokenizer.mask_token = None
    pipe = UniformTextPipeline(tiny_uniform().model, tokenizer, DiscreteDDIMScheduler(), length=6)
    pipe.set_progress_bar_config(disable=True)
    sequences = pipe("a", generator=seeded()).sequences
    assert sequences[0, 0] == 3
    assert sequences.shape == (1, 6)
    with pytest.raises(ValueError, match="must have a `mask_token_id`"):
        MaskedTextPipeline(pipe.model, tokenizer, MaskedDiffusionScheduler())


@pytest.mark.parametrize("family", ["udlm", "duo"])
def test_time_is_minus_the_logarithm_of_alpha(family):
    seen = []

    class Timed(Memoryless):
        def forward(self, input_ids, timesteps):
            seen.append(timesteps)
            return super().forward(input_ids)

    model = Timed(torch.zeros(len(WORDS)))
    pipe = UniformTextPipeline._assemble(model, word_tokenizer(), FAMILIES[family], length=4)
    pipe.set_progress_bar_config(disable=True)
    pipe("a", num_inference_steps=4)
    expected = [-math.log(max(alpha, 1e-3)) for alpha in (0, 0.25, 0.5, 0.75)]
    assert torch.cat(seen).tolist() == pytest.approx(expected)
    seen.clear()
    pipe.nll("a", num_corruptions=4)
    alphas = torch.cat(seen).neg().exp().sort().values.tolist()
    assert all(1 - ((4 - i) / 4) ** 2 <= alpha <= 1 - ((3 - i) / 4) ** 2 for i, alpha in enumerate(alphas))


# ---- loading ----


def test_save_and_load(tmp_path):
    pipe = tiny_uniform(corrector_steps=1)
    pipe.save_pretrained(tmp_path)
    for kind in (UniformTextPipeline, TextPipeline):
        again = kind.from_pretrained(tmp_path)
        assert type(again) is UniformTextPipeline
        assert again.config.prediction_type == "leave_one_out"
        assert again.scheduler.config.corrector_steps == 1
        again.set_progress_bar_config(disable=True)
        assert again(["", "a"], generator=seeded()).texts == pipe(["", "a"], generator=seeded()).texts
    with pytest.raises(ValueError, match="is for UniformTextPipeline and cannot be loaded by MaskedTextPipeline"):
        MaskedTextPipeline.from_pretrained(tmp_path)


def test_a_model_without_a_pipeline(tmp_path):
    pipe = tiny_uniform()
    pipe.model.save_pretrained(tmp_path)
    pipe.tokenizer.save_pretrained(tmp_path)
    assert type(TextPipeline.from_pretrained(tmp_path)) is MaskedTextPipeline  # a masked language model says no more
    assert type(TextPipeline.from_pretrained(tmp_path, family="uniform-lm")) is UniformTextPipeline
    with pytest.raises(ValueError, match="cannot be loaded by UniformTextPipeline.*say by `family`"):
        UniformTextPipeline.from_pretrained(tmp_path)


def test_families_of_uniform_diffusion():
    for kind in ("udlm", "duo"):
        family = family_of(types.SimpleNamespace(model_type=kind))
        assert (family.corruption, family.time_input, family.attention) == ("uniform", "timesteps", "none")
    assert family_of(BertConfig()).corruption == "masked"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": -1.0}, "`temperature` must be >= 0, got -1.0"),
        ({"top_p": 0.0}, "`top_p` must lie in"),
        ({"num_inference_steps": 0}, "`num_inference_steps` must be >= 1, got 0"),
        ({"gen_length": 99}, "shorten `prompt`, or lower `gen_length`"),
        ({"use_chat_template": True}, "`use_chat_template` needs a chat template"),
        ({"callback_on_step_end_tensor_inputs": ["x"]}, "`callback_on_step_end_tensor_inputs` must be of"),
        ({"prompt": "a [PAD]"}, r"`prompt` must not contain reserved tokens, got '\[PAD\]'"),
    ],
)
def test_bad_input(settings, message):
    with pytest.raises(ValueError, match=message):
        tiny_uniform()(**settings)


def test_bad_parts():
    model = tiny_uniform().model
    with pytest.raises(ValueError, match="`scheduler` must be a DiscreteDDIMScheduler, got MaskedDiffusionScheduler"):
        UniformTextPipeline(model, word_tokenizer(), MaskedDiffusionScheduler())
    with pytest.raises(ValueError, match="`prediction_type` must be one of leave_one_out, denoiser, got 'epsilon'"):
        UniformTextPipeline(model, word_tokenizer(), DiscreteDDIMScheduler(), prediction_type="epsilon")


# ---- guided ----


def test_one_guided_step_draws_from_the_exact_tilted_distribution():
    """A canvas of two positions, one step: x_0 ~ q, q the optimum for a reward linear in the tokens."""
    pipe, log_p = memoryless(num_inference_steps=1)
    table = torch.zeros(len(WORDS), 1)
    table[WORDS.index("a")] = 1.0

    def reward(tokens):
        return tokens.embed(table)[..., 0].sum(-1)

    jump = Natural(num_updates=1, step_size=1.0)
    with guide(
        pipe, reward, GuidanceConfig(2.0, "straight_through", jump, num_draws=1, support=None, every=1, warm_start=0.0)
    ):
        ids = pipe([""] * 4_000, generator=seeded()).sequences
    found = torch.bincount(ids.flatten(), minlength=len(WORDS)) / ids.numel()
    tilted = (log_p + 2.0 * table[:, 0]).softmax(-1)
    assert found[WORDS.index("a")] > log_p.exp()[WORDS.index("a")] + 0.1
    assert (found - tilted).abs().sum() / 2 < 0.02


def test_chats_are_templated():
    pipe = tiny_uniform()
    pipe.tokenizer.chat_template = CHAT_TEMPLATE
    output = pipe("b c", gen_length=3, use_chat_template=True, generator=seeded())
    assert output.sequences[0, :4].tolist() == [4, 5, EOS, 3]  # "b c [EOS] a"
    assert output.texts[0].startswith("b c a")


def test_a_masked_pipeline_is_found_too(tmp_path):
    tiny_pipeline().save_pretrained(tmp_path)
    assert type(TextPipeline.from_pretrained(tmp_path)) is MaskedTextPipeline
