"""Attention in blocks: BD3-LM, SDAR, LLaDA2, Fast-dLLM v2."""

from pathlib import Path
from typing import Any

import authors
import stand_ins
import torch
from cases import PROMPTS, STEP, STEPS, Case, case, encoded, pretrained, rows, tokenizer_of
from torch import Tensor


def block_causal(length: int, block: int) -> Tensor:
    """`(length, length)` bool: a token sees its own block and those before it."""
    number = torch.arange(length) // block
    return number[:, None] >= number


def blocks_of_rows(mask_id: int, block: int) -> Tensor:
    """Ids `(3, 3 * block)` whose last block has masks, in one row everywhere."""
    ids = rows(0, 3 * block)[0][:3]
    chance = torch.tensor([0.5, 1.0, 0.5])[:, None]
    hidden = torch.rand(3, block, generator=torch.Generator().manual_seed(3)) < chance
    hidden[:, 0] = True
    return ids.masked_fill(torch.nn.functional.pad(hidden, (2 * block, 0)), mask_id)


def bd3lm(public: Path, folder: Path) -> list[Case]:
    (diffusion, noise_schedule) = authors.load(public / "bd3lms", "diffusion", "noise_schedule")
    backbone, tokenizer = pretrained(folder), tokenizer_of(folder)
    own, mask_id = backbone.config, backbone.config.vocab_size - 1
    sampling = {"kv_cache": False, "first_hitting": False, "nucleus_p": 1.0, "var_length": False}
    config = authors.settings(
        algo={"name": "bd3lm", "backbone": "hf_dit"}, sampling=sampling, model={"length": own.model_length}
    )
    theirs = authors.bare(
        diffusion.Diffusion, backbone=backbone, config=config, mask_index=mask_id, vocab_size=own.vocab_size,
        parameterization="subs", cross_attn=own.cross_attn, time_conditioning=own.time_conditioning,
        block_size=own.block_size, neg_infinity=-1e6, noise=noise_schedule.LogLinearNoise(), tokenizer=tokenizer,
        dtype=torch.float32, device="cpu",
    )  # fmt: skip
    ids, block = blocks_of_rows(mask_id, own.block_size), own.block_size
    sigma = torch.zeros(len(ids), 1)
    logits = theirs.forward(ids, sigma, sample_mode=True)
    inputs = {"ids": ids, "attention_mask": torch.ones_like(ids).bool(), "alpha": 0.5}
    cases = [case("logits", "Diffusion.forward, sample_mode", inputs, logits, normalised=True, block_size=block)]
    captured = authors.Captured()
    diffusion._sample_categorical = captured
    state = ids[:1]
    theirs._ddpm_caching_update(x=state, t=torch.full((1, 1), 1 - STEP / STEPS), dt=1 / STEPS)
    law = torch.nn.functional.one_hot(state, own.vocab_size).float()
    law[:, -block:] = authors.kept(captured.law(), state[:, -block:], mask_id)
    at = {"ids": state, "step": STEP, "steps": STEPS}
    cases.append(case("law", "_ddpm_caching_update", at, law, block_size=block))
    config.sampling.nucleus_p = 1e-9
    theirs.tokenizer = authors.settings(bos_token_id=tokenizer("s")["input_ids"][0])  # a token that a prompt may hold
    out, _ = theirs._semi_ar_sampler(n_samples=1, num_steps=1, num_strides=3, seqlen=None)
    inputs = {"prompts": ["s"]}
    settings = {"num_steps": 1, "num_strides": 3, "nucleus_p": 1e-9, "block_size": block}
    cases.append(case("greedy", "_semi_ar_sampler", inputs, out, **settings))
    return cases


def sdar(public: Path, folder: Path) -> list[Case]:
    with stand_ins.triton_names():
        model = pretrained(folder, attn_implementation="sdpa")
    tokenizer, block, mask_id = tokenizer_of(folder), model.config.block_size, model.config.mask_token_id
    ids = blocks_of_rows(mask_id, block)
    visible = block_causal(ids.shape[1], block).expand(len(ids), 1, -1, -1)
    inputs = {"ids": ids, "attention_mask": torch.ones_like(ids).bool()}
    logits = model(ids, attention_mask=visible.float()).logits
    cases = [case("logits", "forward, block-causal mask", inputs, logits, block_size=block)]
    authors.forbid(model, authors.reserved(tokenizer, model.config.vocab_size, mask_id))
    (generate,) = authors.load(public / "SDAR", "generate")
    generate.torch = _Greedy()
    shared = {"gen_length": 12, "block_length": block}
    for settings in (
        shared | {"denoising_steps": 4, "remasking_strategy": "low_confidence_static"},
        shared | {"denoising_steps": 2, "remasking_strategy": "low_confidence_static"},
        shared | {"denoising_steps": 3, "remasking_strategy": "low_confidence_static"},
        shared | {"denoising_steps": 4, "remasking_strategy": "low_confidence_dynamic", "confidence_threshold": 0.15},
        shared | {"denoising_steps": 4, "remasking_strategy": "sequential"},
    ):
        for prompt in PROMPTS[:2]:
            given, _ = encoded(tokenizer, [prompt])
            out = generate.block_diffusion_generate(
                model, {"input_ids": given}, mask_id, stopping_criteria_idx=[tokenizer.eos_token_id], **settings
            )
            cases.append(case("greedy", "block_diffusion_generate", {"prompts": [prompt]}, out, **settings))
    return cases


class _Greedy:
    """torch, but `multinomial` takes the likeliest: SDAR's sampler has no temperature 0."""

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    @staticmethod
    def multinomial(probs: Tensor, num_samples: int) -> Tensor:
        return probs.argmax(-1, keepdim=True)


def llada2(public: Path, folder: Path) -> list[Case]:
    model, tokenizer = pretrained(folder), tokenizer_of(folder)
    mask_id, block = tokenizer.mask_token_id, 32  # in no config; what its authors use
    ids = blocks_of_rows(mask_id, block)
    visible = block_causal(ids.shape[1], block).expand(len(ids), 1, -1, -1)
    inputs = {"ids": ids, "attention_mask": torch.ones_like(ids).bool()}
    logits = model(ids, attention_mask=visible.float().log()).logits
    cases = [case("logits", "forward, block-causal mask", inputs, logits, block_size=block)]
    authors.forbid(model, authors.reserved(tokenizer, model.config.vocab_size, mask_id))

    # generate makes its mask in bfloat16
    authors.changed(model, lambda given: given | {"attention_mask": given["attention_mask"].float()})
    shared = {"gen_length": 40, "block_length": block}
    for settings in (
        shared | {"steps": 32, "threshold": 0.95},
        shared | {"steps": 10, "threshold": 0.95},
        shared | {"steps": 32, "threshold": 0.2},
    ):
        for prompt in PROMPTS[:2]:
            given, _ = encoded(tokenizer, [prompt])
            out = model.generate(given, temperature=0.0, mask_id=mask_id, eos_id=tokenizer.eos_token_id, **settings)
            full = torch.cat([given, out], -1)
            cases.append(case("greedy", "LLaDA2MoeModelLM.generate", {"prompts": [prompt]}, full, **settings))
    return cases


def fast_dllm_v2(public: Path, folder: Path) -> list[Case]:
    model, tokenizer = pretrained(folder), tokenizer_of(folder)
    mask_id, block = tokenizer.convert_tokens_to_ids("|<MASK>|"), model.config.bd_size
    ids = blocks_of_rows(mask_id, block)
    logits = model(ids).logits  # the class makes the mask itself
    inputs = {"ids": ids, "attention_mask": torch.ones_like(ids).bool()}
    shifted = torch.cat([logits[:, :1], logits[:, :-1]], 1)
    cases = [case("logits", "forward, shifted", inputs, shifted, block_size=block)]
    authors.forbid(model, authors.reserved(tokenizer, model.config.vocab_size, mask_id))
    shared = {"max_new_tokens": 2 * block, "block_size": block}
    for settings in (
        shared | {"small_block_size": 8, "threshold": 1.0},
        shared | {"small_block_size": 32, "threshold": 1.0},
        shared | {"small_block_size": 8, "threshold": 0.2},
        shared | {"small_block_size": 8, "threshold": 0.2, "use_block_cache": True},
    ):
        for prompt in PROMPTS[:2]:
            given, _ = encoded(tokenizer, [prompt])
            out = model.generate(
                given,
                mask_id=mask_id,
                stop_token=tokenizer.eos_token_id,
                tokenizer=tokenizer,
                temperature=0,
                **settings,
            )
            cases.append(case("greedy", "generate", {"prompts": [prompt]}, out[:, : 2 * block], **settings))
    return cases
