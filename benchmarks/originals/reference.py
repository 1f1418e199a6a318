"""What the authors' code gives on fixed inputs: logits, greedy tokens, laws of one step, bounds.

Run in the reference interpreter (transformers 4, where the authors' classes load as they are). One file a checkpoint, a
list of cases that `benchmarks/published.py` reads:

    kind      "logits", "greedy", "law" or "bound"
    what      the authors' name for it
    settings  of the authors' sampler, in their words
    inputs    prompts, or ids with their attention mask and noise level
    expected  what came out

    python benchmarks/originals/reference.py --public PUBLIC --checkpoints FOLDER --to FOLDER
"""

import argparse
import json
import math
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import authors
import stand_ins
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer

Case = dict[str, Any]
PROMPTS = ["the cat", "my brother likes", "she"]
CHAT = "one day the"
TEXTS = ["the cat sat", "my sea"]
ALPHAS = [0.125, 0.5, 0.875]  # share of tokens that are left
SHORTEST = 1e-5  # time at which bounds of uniform diffusion begin; their 1e-3 leaves out 2 % with random weights
STEPS, STEP = 8, 4  # the law is that of the fifth step of eight, from t = 1/2 to 3/8


def case(kind: str, what: str, inputs: dict[str, Any], expected: Any, **settings: Any) -> Case:
    return {"kind": kind, "what": what, "settings": settings, "inputs": inputs, "expected": expected}


def pretrained(folder: Path, **settings: Any) -> Any:
    """The authors' class by the authors' own loading."""
    own = json.loads((folder / "config.json").read_text())["auto_map"]
    kinds = (AutoModelForCausalLM, AutoModelForMaskedLM, AutoModel)
    kind = next(kind for kind in kinds if kind.__name__ in own)
    return kind.from_pretrained(folder, trust_remote_code=True, **settings).eval()


def tokenizer_of(folder: Path) -> Any:
    own = folder if (folder / "tokenizer_config.json").is_file() else folder.parent / "tokenizer"
    return AutoTokenizer.from_pretrained(own, trust_remote_code=True)


def rows(mask_id: int, length: int = 12, first: int = 1) -> tuple[Tensor, Tensor]:
    """Ids `(5, length)` with masks in them, two rows padded on the left (id 0), and their attention mask."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(5, 85, (5, length), generator=generator)
    hidden = torch.rand(ids.shape, generator=generator) < torch.tensor([0.2, 0.5, 0.9, 0.5, 0.5])[:, None]
    attention_mask = torch.arange(length) >= torch.tensor([0, 0, 0, 3, 5])[:, None]
    start = attention_mask.int().argmax(-1, keepdim=True)
    hidden &= torch.arange(length) >= start + first
    return ids.masked_fill(hidden, mask_id).masked_fill(~attention_mask, 0), attention_mask


def row_by_row(call: Callable[[Tensor], Tensor], ids: Tensor, attention_mask: Tensor) -> Tensor:
    """Logits of a model that takes no attention mask: every row without its padding, zeros there."""
    parts = [call(row[mask][None])[0] for row, mask in zip(ids, attention_mask, strict=True)]
    pad = torch.nn.functional.pad
    return torch.stack(
        [pad(part, (0, 0, len(mask) - len(part), 0)) for part, mask in zip(parts, attention_mask, strict=True)]
    )


def encoded(tokenizer: Any, prompts: list[str]) -> tuple[Tensor, Tensor]:
    """Ids padded on the left, and their attention mask."""
    tokenizer.padding_side = "left"
    batch = tokenizer(prompts, add_special_tokens=False, padding=True, return_tensors="pt")
    return batch["input_ids"], batch["attention_mask"]


# ------------------------------------------------------------------------------------------- LLaDA, LLaDA-MoE, Dream
def llada(public: Path, folder: Path) -> list[Case]:
    model, tokenizer = pretrained(folder), tokenizer_of(folder)
    mask_id = getattr(model.config, "mask_token_id", None) or tokenizer.mask_token_id
    end, turn = tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|eot_id|>")
    turn = tokenizer.convert_tokens_to_ids("<|role_end|>") if turn is None else turn
    ids, attention_mask = rows(mask_id)
    inputs = {"ids": ids, "attention_mask": attention_mask}
    cases = [case("logits", "forward", inputs, model(ids, attention_mask=attention_mask.long()).logits)]

    numbers = {"end": ("126081", end), "turn": ("126348", turn), "mask": ("126336", mask_id)}
    generate = authors.edited(public / "LLaDA/generate.py", **numbers).generate
    allow = authors.forbid(model, authors.reserved(tokenizer, model.config.vocab_size, mask_id))
    sixteen = {"gen_length": 16, "steps": 16, "block_length": 16}
    for settings in (
        {"gen_length": 8, "steps": 8, "block_length": 8},
        {"gen_length": 8, "steps": 4, "block_length": 4},
        {"gen_length": 10, "steps": 4, "block_length": 10},
        {"gen_length": 8, "steps": 8, "block_length": 4, "cfg_scale": 1.5},
        sixteen,
        sixteen | {"logits_eos_inf": True},
        sixteen | {"confidence_eos_eot_inf": True},
    ):
        prompt, mask = encoded(tokenizer, PROMPTS)
        out = generate(model, prompt, mask, temperature=0.0, mask_id=mask_id, **settings)
        cases.append(case("greedy", "generate.py", {"prompts": PROMPTS}, out, **settings))
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": CHAT}], add_generation_prompt=True, tokenize=False
    )
    prompt, mask = encoded(tokenizer, [text])
    settings = {"gen_length": 8, "steps": 8, "block_length": 4}
    out = generate(model, prompt, mask, temperature=0.0, mask_id=mask_id, **settings)
    cases.append(case("greedy", "generate.py, chat template", {"prompts": [CHAT], "chat": True}, out, **settings))

    likelihood = authors.edited(public / "LLaDA/get_log_likelihood.py", mask=("126336", mask_id)).get_log_likelihood
    for prompt_text, text in (("", TEXTS[0]), ("", TEXTS[1]), (TEXTS[1], TEXTS[0])):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        answer = torch.tensor(ids if prompt_text else [*ids, end])
        given = torch.tensor(tokenizer(prompt_text, add_special_tokens=False)["input_ids"], dtype=torch.long)
        torch.manual_seed(0)
        nll = [-likelihood(model, given, answer, mc_num=512, batch_size=64, mask_id=mask_id) for _ in range(32)]
        inputs = {"text": text, "prompt": prompt_text, "ids": answer}
        cases.append(case("bound", "get_log_likelihood.py", inputs, mean_and_error(torch.tensor(nll))))
    allow()
    return cases


def mean_and_error(estimates: Tensor) -> Tensor:
    """`(2,)`, the mean and its standard error."""
    return torch.stack([estimates.mean(), estimates.std() / math.sqrt(len(estimates))])


def dream(public: Path, folder: Path) -> list[Case]:
    model, tokenizer = pretrained(folder), tokenizer_of(folder)
    mask_id = model.config.mask_token_id
    seen: list[Tensor] = []
    kind = type(model.generation_config)  # generate makes its own only with transformers older than 4.50
    config = kind(mask_token_id=mask_id, pad_token_id=tokenizer.pad_token_id, return_dict=False)

    def keep(step: Any, x: Tensor, logits: Tensor) -> Tensor:
        seen.append(logits.clone())
        return logits

    cases = []
    for first in (1, 0):  # whether the first token of a text may be hidden: padded rows predict it from their padding
        ids, attention_mask = rows(mask_id, first=first)
        if first == 0:
            ids, attention_mask = ids[:3], attention_mask[:3]
        model.diffusion_generate(
            ids[:, :-1], attention_mask=attention_mask[:, :-1].long(), max_new_tokens=1, steps=1,
            generation_config=config, generation_logits_hook_func=keep,
        )  # fmt: skip
        ids = torch.cat([ids[:, :-1], torch.full_like(ids[:, :1], mask_id)], -1)
        inputs = {"ids": ids, "attention_mask": attention_mask}
        what = "diffusion_generate, logits" + (", first token hidden" if first == 0 else "")
        cases.append(case("logits", what, inputs, seen[-1]))

    authors.forbid(model, authors.reserved(tokenizer, model.config.vocab_size, mask_id))
    new = {"max_new_tokens": 10}
    for settings in (
        *({"alg": alg, "steps": steps} for alg in ("maskgit_plus", "entropy", "topk_margin") for steps in (10, 4, 1)),
        {"alg": "origin", "steps": 1},
        {"alg": "entropy", "steps": 10, "add_bos_token": False},
        {"alg": "entropy", "steps": 10, "chat_template": True},
    ):
        own = {key: settings[key] for key in ("alg", "steps")}
        for prompt in PROMPTS[:2]:
            text = prompt if settings.get("add_bos_token") is False else tokenizer.bos_token + prompt
            if "chat_template" in settings:
                turn = [{"role": "user", "content": prompt}]
                text = tokenizer.apply_chat_template(turn, add_generation_prompt=True, tokenize=False)
            given, mask = encoded(tokenizer, [text])
            out = model.diffusion_generate(
                given, attention_mask=mask, temperature=0.0, generation_config=config, **new, **own
            )
            inputs = {"prompts": [prompt], "chat": "chat_template" in settings}
            cases.append(case("greedy", "diffusion_generate", inputs, out, **new, **settings))
    return cases


# ------------------------------------------------------------------------------------------------ MDLM, UDLM, Duo
def sigma_of(alpha: float, count: int) -> Tensor:
    return torch.full((count,), -math.log(alpha))


def dit(module: Any, folder: Path, **config: Any) -> Any:
    """The authors' training class with the weights of the checkpoint."""
    own = json.loads((folder / "config.json").read_text())
    model = {"hidden_size": own["hidden_dim"], "scale_by_sigma": True, "length": own["model_length"]}
    model |= {key: own[key] for key in ("cond_dim", "n_blocks", "n_heads", "dropout")}
    made = module.dit.DIT({"model": model, **config}, vocab_size=own["vocab_size"])
    state = load_file(folder / "model.safetensors")
    made.load_state_dict({name.removeprefix("backbone."): tensor for name, tensor in state.items()})
    return made.eval(), own


def state_of(mask_id: int | None, vocabulary: int) -> Tensor:
    """One text `(1, 8)` in the middle of its diffusion."""
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(vocabulary - 1, (1, 8), generator=generator)
    return ids if mask_id is None else ids.masked_fill(torch.tensor([[0, 1, 1, 0, 1, 1, 0, 1]]).bool(), mask_id)


def mdlm(public: Path, folder: Path) -> list[Case]:
    diffusion, models, noise_schedule = authors.load(public / "mdlm", "diffusion", "models", "noise_schedule")
    backbone, own = dit(models, folder)
    mask_id, tokenizer = own["vocab_size"] - 1, tokenizer_of(folder)
    config = authors.settings(
        noise={"type": "loglinear"}, sampling={"noise_removal": True}, model={"length": own["model_length"]}
    )
    theirs = authors.bare(
        diffusion.Diffusion, backbone=backbone, config=config, mask_index=mask_id, vocab_size=own["vocab_size"],
        parameterization="subs", time_conditioning=own["time_conditioning"], T=0, subs_masking=False,
        neg_infinity=-1e6, noise=noise_schedule.get_noise(config), change_of_variables=False,
        importance_sampling=False, antithetic_sampling=True, sampling_eps=1e-3, dtype=torch.float32, device="cpu",
    )  # fmt: skip
    cases = []
    ids, attention_mask = rows(mask_id, first=0)
    for alpha in ALPHAS:
        logits = row_by_row(lambda row, a=alpha: theirs.forward(row, sigma_of(a, 1)), ids, attention_mask)
        inputs = {"ids": ids, "attention_mask": attention_mask, "alpha": alpha}
        cases.append(case("logits", "Diffusion.forward, subs", inputs, logits, alpha=alpha, normalised=True))

    state, captured = state_of(mask_id, own["vocab_size"]), authors.Captured()
    diffusion._sample_categorical = captured
    t, dt = torch.full((1, 1), 1 - STEP / STEPS), 1 / STEPS
    for what, step in (
        ("_ddpm_update", lambda: theirs._ddpm_update(state, t, dt)),
        ("_ddpm_caching_update", lambda: theirs._ddpm_caching_update(state, t, dt)),
        ("_analytic_update", lambda: theirs._analytic_update(state, t, dt)),
        ("_denoiser_update (last step)", lambda: theirs._denoiser_update(state, t / STEPS)),
    ):
        step()
        law = authors.kept(captured.law(), state, mask_id)
        at = {"step": STEPS - 1 if "last" in what else STEP, "steps": STEPS}
        cases.append(case("law", what, {"ids": state, **at}, law))

    cases.append(semi_autoregressive(theirs, tokenizer))
    for text in TEXTS:
        x_0 = torch.tensor(tokenizer(text)["input_ids"] + [tokenizer.eos_token_id])
        torch.manual_seed(0)
        losses = theirs._forward_pass_diffusion(x_0.repeat(32 * 2048, 1)).sum(-1)
        inputs = {"text": text, "ids": x_0}
        cases.append(case("bound", "_forward_pass_diffusion", inputs, mean_and_error(losses.view(32, -1).mean(-1))))
    return cases


def semi_autoregressive(theirs: Any, tokenizer: Any) -> Case:
    """MDLM's sampler of long texts, one step a stride, the likeliest tokens (`Captured` draws none)."""

    class Ids:
        eos_token_id = tokenizer.eos_token_id

        @staticmethod
        def batch_decode(ids: Any) -> Tensor:
            return torch.as_tensor(ids)

    theirs.tokenizer = Ids
    settings = {"stride_length": 8, "num_strides": 2}
    _, texts, _ = theirs.sample_subs_guidance(n_samples=1, dt=1.0, **settings)
    settings["length"] = theirs.config.model.length
    return case("greedy", "sample_subs_guidance", {"prompts": [""]}, texts[-1], **settings)


def udlm(public: Path, folder: Path) -> list[Case]:
    diffusion, noise_schedule = authors.load(public / "discrete-diffusion-guidance", "diffusion", "noise_schedule")
    backbone, tokenizer = pretrained(folder), tokenizer_of(folder)
    own = backbone.config
    size, classes = own.vocab_size, own.cfg_num_classes
    config = authors.settings(
        noise={"type": "loglinear"},
        sampling={"use_float64": False},
        data={"num_classes": classes},
        zero_recon_loss=True,
    )
    theirs = authors.bare(
        diffusion.Diffusion, backbone=backbone, config=config, vocab_size=size, parameterization="d3pm",
        diffusion="uniform", limiting_distribution=torch.ones(1, 1, size) / size, T=0, subs_masking=False,
        time_conditioning=own.time_conditioning, noise=noise_schedule.get_noise(config), change_of_variables=False,
        importance_sampling=False, antithetic_sampling=True, sampling_eps=SHORTEST, dtype=torch.float32, device="cpu",
        training=False,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(1)
    ids, attention_mask = torch.randint(size, (5, 12), generator=generator), rows(0)[1]
    cases = []
    for label in [None] if not own.cfg else [1, classes]:
        cond = None if label is None else torch.tensor([label])
        named = {} if label is None else {"cond": label}
        for alpha in ALPHAS:
            inputs = {"ids": ids, "attention_mask": attention_mask, "alpha": alpha}
            logits = row_by_row(
                lambda row, a=alpha, c=cond: theirs.forward(row, sigma_of(a, 1), cond=c), ids, attention_mask
            )
            cases.append(case("logits", "Diffusion.forward", inputs, logits, alpha=alpha, normalised=True, **named))

    state = state_of(None, size)
    move = {"move_chance_t": torch.full((1, 1, 1), 1 - STEP / STEPS),
            "move_chance_s": torch.full((1, 1, 1), 1 - (STEP + 1) / STEPS)}  # fmt: skip
    sigma = sigma_of(STEP / STEPS, 1)
    at = {"ids": state, "step": STEP, "steps": STEPS}
    if own.cfg:
        for gamma in (0.0, 1.0, 2.0):
            cond = torch.tensor([1])
            _, law, _ = theirs._cfg_denoise(cond=cond, gamma=gamma, xt=state, time_conditioning=sigma, **move)
            cases.append(case("law", "_cfg_denoise", at, law.float(), gamma=gamma, cond=1))
        return cases
    _, law, _ = theirs._ddpm_denoise(xt=state, time_conditioning=sigma, **move)
    cases.append(case("law", "_ddpm_denoise", at, law.float()))
    for text in TEXTS:
        x_0 = torch.tensor(tokenizer(text)["input_ids"] + [tokenizer.eos_token_id])
        torch.manual_seed(0)
        parts = [
            theirs._forward_pass_diffusion(x_0.repeat(4096, 1))["diffusion_loss"].sum(-1).mean() for _ in range(64)
        ]
        inputs = {"text": text, "ids": x_0}
        what = "_forward_pass_diffusion, without the reconstruction at t = 0"
        cases.append(case("bound", what, inputs, mean_and_error(torch.stack(parts)), sampling_eps=SHORTEST))
    return cases


def duo(public: Path, folder: Path) -> list[Case]:
    algo, trainer_base, models = authors.load(public / "duo", "algo", "trainer_base", "models")
    backbone, own = dit(models, folder, algo={"causal_attention": False})
    size, tokenizer = own["vocab_size"], tokenizer_of(folder)
    config = authors.settings(sampling={"use_float64": True, "guid_weight": None})
    theirs = authors.bare(
        algo.DUO_BASE, backbone=backbone, config=config, vocab_size=size, time_conditioning=True, T=0, p_nucleus=1.0,
        noise=trainer_base.LogLinear(1e-3), class_conditional=False, ignore_bos=False, antithetic_sampling=True,
        sampling_eps=SHORTEST, dtype=torch.float32, device="cpu", neg_infinity=-1e6, loss_type="elbo",
    )  # fmt: skip
    generator = torch.Generator().manual_seed(1)
    ids, attention_mask = torch.randint(size, (5, 12), generator=generator), rows(0)[1]
    cases = []
    for alpha in ALPHAS:
        logits = row_by_row(lambda row, a=alpha: theirs.forward(row, sigma_of(a, 1)[:, None]), ids, attention_mask)
        inputs = {"ids": ids, "attention_mask": attention_mask, "alpha": alpha}
        cases.append(case("logits", "DUO_BASE.forward", inputs, logits, alpha=alpha, normalised=True))

    state, captured = state_of(None, size), authors.Captured()
    trainer_base.sample_categorical = captured
    t, dt = torch.full((1, 1), 1 - STEP / STEPS), torch.tensor(1 / STEPS)
    at = {"ids": state, "step": STEP, "steps": STEPS}
    theirs._ancestral_update(x=state, t=t, labels=None, dt=dt)
    cases.append(case("law", "_ancestral_update", at, captured.law()))
    for kappa in (0.0, 0.5):
        theirs._psi_update(x=state, t=t, labels=None, dt=dt, kappa=kappa)
        cases.append(case("law", "_psi_update", at, captured.law(), kappa=kappa))
    last = torch.full((1, 1), 1 / STEPS)
    theirs._ancestral_update(x=state, t=last, labels=None, dt=None, noise_removal_step=True)
    at = {"ids": state, "step": STEPS - 1, "steps": STEPS}
    cases.append(case("law", "_ancestral_update (last step)", at, captured.law(), noise_removal="ancestral"))
    sigma = theirs._sigma_from_alphat(theirs.noise(last)[1])
    greedy = torch.nn.functional.one_hot(theirs.forward(state, sigma).argmax(-1), size).float()
    cases.append(case("law", "greedy last step", at, greedy, noise_removal="greedy"))
    for text in TEXTS:
        x_0 = torch.tensor(tokenizer(text)["input_ids"] + [tokenizer.eos_token_id])
        torch.manual_seed(0)
        parts = [theirs.nll(x_0.repeat(4096, 1), None, None).sum(-1).mean() for _ in range(32)]
        inputs, estimate = {"text": text, "ids": x_0}, mean_and_error(torch.stack(parts))
        cases.append(case("bound", "DUO_BASE.nll", inputs, estimate, sampling_eps=SHORTEST))
    return cases


# ------------------------------------------------------------------------------------ blocks: BD3-LM, SDAR, LLaDA2
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


def sedd(public: Path, folder: Path) -> list[Case]:
    names = ("model", "sampling", "graph_lib", "noise_lib", "losses")
    model, sampling, graph_lib, noise_lib, losses = authors.load(public / "Score-Entropy-Discrete-Diffusion", *names)
    score, tokenizer = model.SEDD.from_pretrained(folder).eval(), tokenizer_of(folder)
    graph, noise = graph_lib.get_graph(score.config, "cpu"), noise_lib.get_noise(score.config)
    mask_id = graph.dim - 1
    ids, attention_mask = rows(mask_id, first=0)
    cases = []
    for alpha in ALPHAS:
        logits = row_by_row(lambda row, a=alpha: score(row, sigma_of(a, 1)), ids, attention_mask)
        inputs = {"ids": ids, "attention_mask": attention_mask, "alpha": alpha}
        cases.append(case("logits", "SEDD.forward, log score", inputs, logits, alpha=alpha))
    state, captured = state_of(mask_id, graph.dim), authors.Captured()
    sampling.sample_categorical = graph_lib.sample_categorical = captured
    score_fn = sampling.mutils.get_score_fn(score, train=False, sampling=True)
    t, dt = torch.full((1, 1), 1 - STEP / STEPS), 1 / STEPS
    for name in ("euler", "analytic"):
        sampling.get_predictor(name)(graph, noise).update_fn(score_fn, state, t, dt)
        law = authors.kept(captured.law(), state, mask_id)
        cases.append(case("law", f"predictor {name}", {"ids": state, "step": STEP, "steps": STEPS}, law))
    sampling.Denoiser(graph, noise).update_fn(score_fn, state, t / STEPS)
    law = torch.nn.functional.pad(captured.law(), (0, 1))
    law = authors.kept(law, state, mask_id)
    cases.append(case("law", "Denoiser (last step)", {"ids": state, "step": STEPS - 1, "steps": STEPS}, law))
    loss = losses.get_loss_fn(noise, graph, train=False)
    for text in TEXTS:
        x_0 = torch.tensor(tokenizer(text)["input_ids"] + [tokenizer.eos_token_id])
        torch.manual_seed(0)
        parts = [loss(score, x_0.repeat(4096, 1)).mean() for _ in range(16)]
        inputs = {"text": text, "ids": x_0}
        cases.append(case("bound", "losses.get_loss_fn", inputs, mean_and_error(torch.stack(parts))))
    return cases


FAMILIES: dict[str, Callable[[Path, Path], list[Case]]] = {
    "llada": llada, "llada-moe": llada, "dream": dream, "mdlm": mdlm, "mdlm-time": mdlm, "udlm": udlm,
    "udlm-no-time": udlm, "udlm-classes": udlm, "duo": duo, "bd3lm": bd3lm, "bd3lm-var-min": bd3lm, "sdar": sdar,
    "llada2": llada2, "sedd": sedd,
}  # fmt: skip


@torch.no_grad()
def compute(public: Path, checkpoints: Path, to: Path, names: list[str]) -> None:
    stand_ins.install()
    to.mkdir(parents=True, exist_ok=True)
    for name in names or FAMILIES:
        torch.manual_seed(0)
        try:
            cases: Any = FAMILIES[name](public, checkpoints / name)
            print(f"{name}: {len(cases)} cases", flush=True)
        except Exception as error:  # one family must not hide the others
            traceback.print_exc()
            cases = f"{type(error).__name__}: {str(error).splitlines()[0]}"
        torch.save(cases, to / f"{name}.pt")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--public", type=Path, required=True)
    parser.add_argument("--checkpoints", type=Path, required=True)
    parser.add_argument("--to", type=Path, required=True)
    parser.add_argument("names", nargs="*", help="families; default: all")
    arguments = parser.parse_args()
    compute(arguments.public.resolve(), arguments.checkpoints.resolve(), arguments.to, arguments.names)
