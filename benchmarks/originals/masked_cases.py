"""Masked diffusion over whole texts: LLaDA, LLaDA-MoE, Dream, MDLM, SEDD."""

from pathlib import Path
from typing import Any

import authors
import torch
from cases import (
    ALPHAS,
    CHAT,
    PROMPTS,
    STEP,
    STEPS,
    TEXTS,
    Case,
    case,
    dit,
    encoded,
    mean_and_error,
    pretrained,
    row_by_row,
    rows,
    sigma_of,
    state_of,
    tokenizer_of,
)  # fmt: skip
from torch import Tensor


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
        # a batch of 61: of one that the length divides, rounding halves to even makes even numbers of masks likelier
        nll = [-likelihood(model, given, answer, mc_num=488, batch_size=61, mask_id=mask_id) for _ in range(32)]
        inputs = {"text": text, "prompt": prompt_text, "ids": answer}
        cases.append(case("bound", "get_log_likelihood.py", inputs, mean_and_error(torch.tensor(nll))))
    allow()
    return cases


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
