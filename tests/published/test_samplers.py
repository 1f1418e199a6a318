"""The authors' samplers, written down once more as plain loops, and ours: equal tokens, or an equal law."""

import itertools
import math

import pytest
import torch

from redge_guidance.pipelines import MaskedDiffusionScheduler, MaskedTextPipeline, TextPipeline
from redge_guidance.pipelines.text.blocks import aligned_blocks
from redge_guidance.pipelines.text.families import ModelFamily
from redge_guidance.pipelines.text.posterior import denoiser_logits
from redge_guidance.pipelines.uniform_scheduler import UniformDiffusionScheduler
from tests.helpers.tiny import word_tokenizer
from tests.published.checkpoints import MASK, WORDS, reference, write

PROMPT, EOS = "a b c", 1
PROMPT_IDS = [WORDS.index(word) for word in PROMPT.split()]
RESERVED = [0, MASK]  # padding and mask are never drawn by ours; the authors' models have learnt not to


def load(folder, kind, **config):
    pipe = TextPipeline.from_pretrained(write(folder, kind, **config), trust_remote_code=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@torch.no_grad()
def plain_logits(ids):
    logits = reference("plain")(ids[None]).logits[0]
    logits[:, RESERVED] = -torch.inf
    return logits


# ---- LLaDA ----


def llada(
    gen_length, block_length, steps, temperature=0.0, cfg_scale=0.0, logits_eos_inf=False, late=()
):  # generate.py of its authors
    x = torch.tensor(PROMPT_IDS + [MASK] * gen_length)
    given = x != MASK
    blocks = gen_length // block_length
    for block in range(blocks):
        end = len(PROMPT_IDS) + (block + 1) * block_length
        share = steps // blocks
        counts = [block_length // share + (i < block_length % share) for i in range(share)]
        for count in counts:
            logits = plain_logits(x)
            if cfg_scale:
                without = plain_logits(torch.where(given, MASK, x))
                logits = (without + (cfg_scale + 1) * (logits - without)).nan_to_num(nan=-torch.inf)
            if logits_eos_inf:
                logits[:, EOS] = -torch.inf
            drawn = logits.argmax(-1)
            logits[:, list(late)] = -torch.inf
            confidence = logits.softmax(-1).gather(-1, drawn[:, None])[:, 0]
            confidence[(x != MASK) | (torch.arange(len(x)) >= end)] = -torch.inf
            chosen = confidence.sort(descending=True, stable=True).indices[:count]
            x[chosen] = drawn[chosen]
    return x.tolist()


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ({}, {}),
        ({"steps": 4, "block_length": 10}, {"num_inference_steps": 4}),  # 3, 3, 2, 2
        ({"block_length": 5}, {"block_length": 5}),
        ({"block_length": 5, "steps": 4}, {"block_length": 5, "num_inference_steps": 4}),
        ({"cfg_scale": 0.5}, {"guidance_scale": 1.5}),
        ({"logits_eos_inf": True}, {"suppress_tokens": [EOS]}),
        ({"late": [EOS]}, {"late_tokens": [EOS]}),
        ({"late": [5], "steps": 4}, {"late_tokens": [5], "num_inference_steps": 4}),
    ],
)
def test_llada(tmp_path, theirs, ours):
    pipe = load(tmp_path, "plain")  # whose own settings are greedy, by confidence
    pipe.model.model.ff_out.weight.data[EOS] *= 1.5
    expected_model = reference("plain")
    expected_model.model.ff_out.weight.data[EOS] *= 1.5
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tests.published.test_samplers.reference", lambda kind: expected_model)
        expected = llada(**{"gen_length": 10, "block_length": 10, "steps": 10} | theirs)
    assert pipe(PROMPT, gen_length=10, **ours).sequences[0].tolist() == expected


def test_confidence_does_not_depend_on_the_temperature():
    """LLaDA ranks by softmax(logits), Dream's maskgit_plus by the tempered distribution."""
    logits = torch.log(torch.tensor([[[0.50, 0.48, 0.02], [0.45, 0.275, 0.275]]]))
    sample, first = torch.full((1, 2), 3), {}
    for order in ("confidence", "maskgit_plus"):
        scheduler = MaskedDiffusionScheduler(unmasking_order=order)
        scheduler.set_timesteps(2)
        settings = {"mask_token_id": 3, "temperature": 0.1, "top_k": 1}
        drawn = scheduler.step(logits, 1.0, sample, **settings | {"top_k": None, "temperature": 0.01}).prev_sample
        first[order] = (drawn[0] != 3).tolist()
    assert first == {"confidence": [True, False], "maskgit_plus": [False, True]}


@pytest.mark.parametrize("steps", range(1, 14))
def test_counts_are_balanced_with_the_larger_ones_first(steps):
    scheduler = MaskedDiffusionScheduler(unmasking_order="left_to_right")
    for total in range(1, 13):
        scheduler.set_timesteps(steps)
        sample, counts = torch.full((1, total), 2), []
        for t in scheduler.timesteps:
            before = (sample == 2).sum().item()
            sample = scheduler.step(torch.zeros(1, total, 2), t, sample, mask_token_id=2).prev_sample
            counts.append(before - (sample == 2).sum().item())
        assert counts == [total // steps + (i < total % steps) for i in range(steps)]


def test_likelihood_of_an_answer(tmp_path):
    """`get_log_likelihood`: k of the answer's tokens hidden, k uniform, 1 / p_mask; here over every subset."""
    pipe, answer = load(tmp_path, "plain"), [WORDS.index(word) for word in ["d", "e", "f"]]
    ids, n, expected = torch.tensor(PROMPT_IDS + answer), len(answer), 0.0
    for size in range(1, n + 1):
        subsets = list(itertools.combinations(range(n), size))
        for subset in subsets:
            hidden = torch.tensor([len(PROMPT_IDS) + i for i in subset])
            log_probs = plain_logits(ids.index_fill(0, hidden, MASK)).log_softmax(-1)
            loss = -log_probs[hidden, ids[hidden]].sum().item() * n / size
            expected += loss / len(subsets) / n
    found = pipe.nll("d e f", prompts=PROMPT, num_corruptions=3000, batch_size=512).item()
    assert found == pytest.approx(expected, rel=0.01)
    both = pipe.nll(["d e f", "a"], prompts=[PROMPT, "b"], num_corruptions=3000, batch_size=512)
    assert both[0].item() == pytest.approx(expected, rel=0.01)
    with pytest.raises(ValueError, match="`prompts` must be one, or one for each of 2 texts, got 3"):
        pipe.nll(["a", "b"], prompts=["a"] * 3)


# ---- Dream ----


def dream(logits_of, total, steps, alg, eps=1e-3, temperature=0.0, top_p=None):
    """`_sample` of its authors, greedy."""
    x, times = torch.full((total,), MASK), torch.linspace(1, eps, steps + 1)
    for i in range(steps):
        hidden = x == MASK
        if not hidden.any():
            break
        logits = logits_of(x)
        if top_p is not None:
            ranked, places = logits.sort(-1, descending=True)
            cut = ranked.softmax(-1).cumsum(-1) > top_p
            cut = torch.cat([torch.zeros_like(cut[:, :1]), cut[:, :-1]], -1)
            logits = logits.masked_fill(torch.zeros_like(cut).scatter(-1, places, cut), -torch.inf)
        probs = logits.softmax(-1)
        confidence = {
            "maskgit_plus": probs.max(-1).values,
            "entropy": (probs * (probs + 1e-10).log()).sum(-1),
            "topk_margin": probs.topk(2, -1).values @ torch.tensor([1.0, -1.0]),
        }[alg]
        count = int(hidden.sum() * (1 - times[i + 1] / times[i])) if i < steps - 1 else int(hidden.sum())
        chosen = confidence.masked_fill(~hidden, -torch.inf).topk(count).indices
        x[chosen] = logits.argmax(-1)[chosen]
    return x.tolist()


@pytest.mark.parametrize("alg", ["maskgit_plus", "entropy", "topk_margin"])
@pytest.mark.parametrize(("steps", "top_p"), [(10, None), (4, None), (7, 0.6)])
def test_dream(alg, steps, top_p):
    table = torch.randn(10, len(WORDS), generator=torch.Generator().manual_seed(steps))

    def logits_of(x):
        return (table + torch.nn.functional.one_hot(x.roll(1), len(WORDS))).index_fill(
            -1, torch.tensor(MASK), -torch.inf
        )

    scheduler = MaskedDiffusionScheduler(unmasking_order=alg, eps=1e-3, counting="share_down")
    scheduler.set_timesteps(steps)
    x = torch.full((1, 10), MASK)
    for t in scheduler.timesteps:
        x = scheduler.step(logits_of(x[0])[None], t, x, mask_token_id=MASK, temperature=0.0, top_p=top_p).prev_sample
    assert x[0].tolist() == dream(logits_of, 10, steps, alg, top_p=top_p)


def test_alg_temp_draws_without_replacement_by_the_softmax_of_confidence():
    """One of two positions is drawn first with probability `softmax(confidence / alg_temp)`."""
    logits = torch.log(torch.tensor([0.6, 0.4, 0.9, 0.1]).view(1, 2, 2)).repeat(20_000, 1, 1)
    scheduler = MaskedDiffusionScheduler(unmasking_order="maskgit_plus", choice_temperature=0.5)
    scheduler.set_timesteps(2)
    sample = torch.full((20_000, 2), 2)
    drawn = scheduler.step(
        logits, 1.0, sample, mask_token_id=2, temperature=0.0, generator=torch.Generator().manual_seed(0)
    ).prev_sample
    expected = torch.softmax(torch.tensor([0.6, 0.9]) / 0.5, 0)
    assert (drawn[:, 1] != 2).double().mean().item() == pytest.approx(expected[1].item(), abs=0.012)


def test_a_model_of_shifted_logits_begins_with_its_token(tmp_path):
    """Dream's `add_bos_token`: there is nothing that position 0 could be predicted from."""
    tokenizer = word_tokenizer(WORDS)
    how = ModelFamily(shift_logits=True, attention="none")
    model = reference("plain")
    model.config.vocab_size = None
    pipe = MaskedTextPipeline.from_model(model, tokenizer, how)
    pipe.set_progress_bar_config(disable=True)
    with pytest.raises(ValueError, match="`prompt` must begin with a word for a model of shifted logits, got ''"):
        pipe("", gen_length=3)
    with pytest.raises(ValueError, match="`prompt` must begin with a word"):
        pipe("[MASK] a")
    row = pipe.nll("a b")  # position 0 is neither predicted nor counted
    pipe.tokenizer.bos_token = "c"
    assert pipe("", gen_length=3).sequences[0, 0] == WORDS.index("c")
    assert pipe.canvas(["a [MASK]"]).ids[0, :2].tolist() == [WORDS.index("c"), WORDS.index("a")]
    assert row != pipe.nll("a b")


# ---- blocks of attention ----


@torch.no_grad()
def block_logits(x, size=4):
    block = torch.arange(len(x)) // size
    seen = (block[:, None] >= block)[None, None]
    model = reference("blocks")
    logits = model(x[None], attention_mask=seen, position_ids=torch.arange(len(x))[None]).logits[0]
    logits[:, RESERVED] = -torch.inf
    return logits


def sdar(gen_length, size=4, steps=4, threshold=None, order="low_confidence"):
    """`block_diffusion_generate` of its authors, greedy, without a cache."""
    total = math.ceil((len(PROMPT_IDS) + gen_length) / size) * size
    x = torch.tensor(PROMPT_IDS + [MASK] * (total - len(PROMPT_IDS)))
    counts = [size // steps + (i < size % steps) for i in range(steps)]
    for first in range(len(PROMPT_IDS) // size * size, total, size):
        for count in counts:
            here = slice(first, first + size)
            hidden = x[here] == MASK
            if not hidden.any():
                break
            probs = block_logits(x[: first + size])[here].softmax(-1)
            confidence = probs.max(-1).values.masked_fill(~hidden, -torch.inf)
            if order == "sequential":
                confidence = (-torch.arange(size).float()).masked_fill(~hidden, -torch.inf)
            high = confidence > (torch.inf if threshold is None else threshold)
            chosen = torch.zeros_like(high)
            chosen[confidence.topk(min(count, int(hidden.sum()))).indices] = True
            chosen = high if high.sum() >= count else chosen
            x[here] = torch.where(chosen, probs.argmax(-1), x[here])
        if EOS in x[len(PROMPT_IDS) :]:
            break
    return x.tolist()


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ({}, {"confidence_threshold": None}),
        ({"steps": 2}, {"confidence_threshold": None, "steps": 2}),
        ({"steps": 3}, {"confidence_threshold": None, "steps": 3}),
        ({"threshold": 0.12}, {"confidence_threshold": 0.12}),
        ({"threshold": 0.12, "steps": 2}, {"confidence_threshold": 0.12, "steps": 2}),
        ({"order": "sequential", "steps": 2}, {"unmasking_order": "left_to_right", "steps": 2}),
    ],
)
def test_sdar(tmp_path, theirs, ours, use_cache):
    pipe = load(tmp_path, "blocks")
    assert dict(pipe.scheduler.config)["confidence_threshold"] == 0.85
    steps, ours = ours.get("steps", 4), {key: value for key, value in ours.items() if key != "steps"}
    ours = {"confidence_threshold": None} | ours
    pipe.scheduler = MaskedDiffusionScheduler(**{"unmasking_order": "maskgit_plus"} | ours)
    expected = sdar(13, **theirs)
    blocks = (len(expected) - len(PROMPT_IDS) // 4 * 4) // 4
    out = pipe(PROMPT, gen_length=13, num_inference_steps=steps * blocks, temperature=0.0, use_cache=use_cache)
    found = out.sequences[0].tolist()
    end = expected.index(MASK) if MASK in expected else len(expected)
    assert found[:end] == expected[:end]
    assert set(found[end:]) <= {EOS}


def test_a_block_partly_given_is_drawn_as_fast_as_a_whole_one(tmp_path):
    """SDAR: of 4 tokens in 3 steps 2, 1 and 1, also where 3 are hidden."""
    pipe, hidden = load(tmp_path, "blocks"), []
    pipe.scheduler = MaskedDiffusionScheduler(unmasking_order="maskgit_plus")

    def count(pipe, step, t, tensors):
        hidden.append((tensors["sample"] == MASK).sum().item())

    pipe("a", gen_length=3, num_inference_steps=3, callback_on_step_end=count)
    assert hidden == [1, 0]


def fast_dllm(gen_length, size=4, small=2):
    """Fast-dLLM v2, greedy: the first token of a block from the block before it, then small blocks, shifted."""
    x = torch.tensor(PROMPT_IDS + [MASK] * gen_length)
    for first in range(len(PROMPT_IDS) // size * size, len(x), size):
        if first and x[first] == MASK:
            x[first] = block_logits(x[:first])[-1].argmax()
        for start in range(first, first + size, small):
            here = slice(start, start + small)
            while (x[here] == MASK).any():
                logits = block_logits(x[: first + size])
                probs = torch.cat([logits[:1], logits[:-1]])[here].softmax(-1)
                confidence = probs.max(-1).values.masked_fill(x[here] != MASK, -torch.inf)
                x[start + confidence.argmax()] = probs[confidence.argmax()].argmax()
    return x.tolist()


@pytest.mark.parametrize("use_cache", [True, False])
def test_fast_dllm_v2(tmp_path, use_cache):
    pipe = load(tmp_path, "blocks", model_type="Fast_dLLM_Qwen", block_size=None, bd_size=4)
    assert (pipe.config.block_length, pipe.config.temperature, pipe.config.shift_logits) == (None, 0.0, True)
    pipe.scheduler = MaskedDiffusionScheduler(unmasking_order="maskgit_plus")
    found = pipe(PROMPT, gen_length=9, block_length=2, temperature=0.0, suppress_tokens=[], use_cache=use_cache)
    expected = fast_dllm(9)
    end = expected.index(EOS) // 2 * 2 + 2 if EOS in expected else len(expected)
    assert found.sequences[0, :end].tolist() == expected[:end]


def test_blocks_are_counted_from_the_first_token_of_a_row():
    free = torch.tensor([[0, 0, 1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 1, 1, 1]]).bool()
    text = torch.tensor([[1, 1, 1, 1, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1, 1, 1]]).bool()
    rows = [block.int().tolist() for block in aligned_blocks(free, text, 4, 4, leading_token=False)]
    assert rows == [
        [[0, 0, 1, 1, 0, 0, 0, 0], [0, 0, 0, 0, 0, 1, 0, 0]],
        [[0, 0, 0, 0, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0, 1, 1]],
    ]
    first = [block[0].int().tolist() for block in aligned_blocks(free, text, 2, 4, leading_token=True)]
    assert first == [[0, 0, 1, 1, 0, 0, 0, 0], [0, 0, 0, 0, 1, 0, 0, 0], [0, 0, 0, 0, 0, 1, 0, 0], [0] * 6 + [1, 1]]
    with pytest.raises(ValueError, match="`block_length` must divide the 4 positions of the model's blocks, got 3"):
        aligned_blocks(free, text, 3, 4, leading_token=False)


def test_strides_are_for_models_that_see_the_whole(tmp_path):
    pipe = load(tmp_path, "blocks")
    with pytest.raises(ValueError, match="`stride_length` needs a model .* that sees all of them"):
        pipe(PROMPT, gen_length=100, stride_length=4)
    pipe.scheduler = MaskedDiffusionScheduler(unmasking_order="random")
    with pytest.raises(ValueError, match="`late_tokens` needs an order by confidence, got 'random'"):
        pipe(PROMPT, gen_length=4, late_tokens=[EOS])


def test_an_end_that_is_filled_in_ends_nothing(tmp_path):
    pipe = load(tmp_path, "blocks")
    hidden = []
    pipe.callback = None

    def callback(pipe, step, t, tensors):
        sample = tensors["sample"].clone()
        sample[0, 1] = EOS  # whatever the model says: the first hole is an end
        hidden.append((sample == MASK).sum().item())
        return {"sample": sample}

    found = pipe("a [MASK] b c d [MASK] e [MASK]", temperature=0.0, callback_on_step_end=callback)
    assert hidden[0] == 2
    assert (found.sequences == MASK).sum() == 0
    assert pipe.nll("", prompts="a").item() == 0


def test_a_canvas_ends_with_a_block(tmp_path):
    pipe = load(tmp_path, "blocks")
    assert pipe.canvas([PROMPT], gen_length=2).ids.shape[1] == 8
    assert pipe.canvas([PROMPT], gen_length=1).ids.shape[1] == 4
    assert pipe.canvas(["a [MASK] b"]).ids.shape[1] % 4 == 0


@torch.no_grad()
def test_bound_of_a_text_in_blocks(tmp_path):
    """The sum over blocks, each with the clean blocks before it; every subset of the hidden."""
    pipe, answer = load(tmp_path, "blocks"), [WORDS.index(word) for word in ["d", "e", "f"]]
    ids, expected = torch.tensor(PROMPT_IDS + answer), 0.0
    for places in ([3], [4, 5]):
        for size in range(1, len(places) + 1):
            subsets = list(itertools.combinations(places, size))
            for subset in subsets:
                hidden = torch.tensor(subset)
                rows = block_logits(ids[: places[-1] // 4 * 4 + 4].index_fill(0, hidden, MASK)).log_softmax(-1)
                expected += -rows[hidden, ids[hidden]].sum().item() / size / len(subsets)
    found = pipe.nll("d e f", prompts=PROMPT, num_corruptions=2000, batch_size=512).item()
    assert found == pytest.approx(expected, rel=0.01)


# ---- texts longer than the model ----


def test_strides(tmp_path):
    """MDLM's semi-autoregressive sampler: a whole window, then strides with the last tokens in view; greedy."""
    pipe = load(tmp_path, "plain", max_sequence_length=8)
    pipe.scheduler = MaskedDiffusionScheduler(unmasking_order="left_to_right")
    with pytest.raises(ValueError, match="the text needs 15 token positions and the model has 8"):
        pipe(PROMPT, gen_length=12)
    found = pipe(PROMPT, gen_length=12, stride_length=3, temperature=0.0, suppress_tokens=[EOS]).sequences[0].tolist()
    x = torch.tensor(PROMPT_IDS + [MASK] * 12)
    for end, first in ((8, 3), (11, 8), (14, 11), (15, 14)):
        for place in range(first, end):
            window = x[max(0, end - 8) : end]
            logits = plain_logits(window)
            logits[:, EOS] = -torch.inf
            x[place] = logits[place - max(0, end - 8)].argmax()
    assert found == x.tolist()


# ---- uniform diffusion ----


@pytest.mark.parametrize("psi", ["pure-pc", "constant-0.3", "max-capped-0.4", "max-rescale-0.9", "constant-remdm-0.2"])
@pytest.mark.parametrize("rows", [False, True])
def test_psi_samplers(psi, rows):
    """One step: kappa times the posterior, plus 1 - kappa times the denoiser's token, corrupted to time s."""
    size, steps, step, number = 4, 5, 2, 6000
    scheduler = UniformDiffusionScheduler(psi=psi)
    scheduler.set_timesteps(steps)
    alpha_t, alpha_s = step / steps, (step + 1) / steps
    eta = float(psi.rpartition("-")[2]) if psi != "pure-pc" else 0.0
    sigma = {"max-capped": min(eta, (1 - alpha_s) / alpha_t), "constant-remdm": eta}.get(psi.rpartition("-")[0])
    sigma = eta * min(eta, (1 - alpha_s) / alpha_t) if psi.startswith("max-rescale") else sigma
    kappa = eta if sigma is None else min(1.0, max(0.0, 1 - sigma / (1 - alpha_s)))
    assert scheduler.kappa(step) == pytest.approx(kappa)
    own = torch.tensor([0.5, -1.0, 0.2, 1.0]).softmax(0)
    seen = torch.tensor(1)
    denoiser = denoiser_logits(own.log()[None], seen[None], alpha_t)[0]
    clean = denoiser.softmax(0)
    ratio = alpha_t / alpha_s
    posterior = torch.zeros(size)
    for token in range(size):
        x_0 = torch.nn.functional.one_hot(torch.tensor(token), size)
        z = torch.nn.functional.one_hot(seen, size)
        weight = (ratio * z + (1 - ratio) / size) * (alpha_s * x_0 + (1 - alpha_s) / size)
        posterior += clean[token] * weight / weight.sum()
    expected = kappa * posterior + (1 - kappa) * (alpha_s * clean + (1 - alpha_s) / size)
    logits, sample = denoiser.expand(1, number, size), seen.expand(1, number)
    generator = torch.Generator().manual_seed(0)
    drawn = scheduler.step(
        logits, step, sample, temperature=1.0, generator=[generator] if rows else generator
    ).prev_sample
    found = torch.bincount(drawn[0], minlength=size) / number
    torch.testing.assert_close(found, expected, atol=0.025, rtol=0)


def test_psi_names():
    assert UniformDiffusionScheduler().kappa(0) == 1
    for wrong in ("pure", "constant-2", "max-capped", "constant-x"):
        with pytest.raises(ValueError, match=f"`psi` must be pure-posterior, pure-pc, .* got '{wrong}'"):
            UniformDiffusionScheduler(psi=wrong)


@pytest.mark.parametrize("psi", ["pure-pc", "max-capped-0.4", "max-rescale-0.9", "constant-remdm-0.2"])
def test_psi_samplers_end_with_clean_tokens(psi):
    """Nothing is corrupted to noise level 0: the last tokens are those of the denoiser."""
    scheduler = UniformDiffusionScheduler(psi=psi)
    scheduler.set_timesteps(3)
    logits = torch.tensor([0.0, 0.0, 9.0, 0.0]).expand(1, 500, 4) * 10
    sample = torch.zeros(1, 500, dtype=torch.long)
    for step in scheduler.timesteps:
        sample = scheduler.step(logits, step, sample, generator=torch.Generator().manual_seed(int(step))).prev_sample
    assert (sample == 2).all()


def test_settings_of_the_corrector_are_kept():
    settings = {"corrector_steps": 2, "corrector_k": 3, "corrector_selection": "random", "corrector_selection_tau": 0.5}
    assert settings.items() <= dict(UniformDiffusionScheduler(**settings).config).items()
