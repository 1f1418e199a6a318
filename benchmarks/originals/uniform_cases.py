"""Uniform diffusion: UDLM, Duo."""

from pathlib import Path

import authors
import torch
from cases import (
    ALPHAS,
    STEP,
    STEPS,
    TEXTS,
    Case,
    case,
    dit,
    mean_and_error,
    pretrained,
    row_by_row,
    rows,
    sigma_of,
    state_of,
    tokenizer_of,
)  # fmt: skip

SHORTEST = 1e-5  # time at which bounds begin; their 1e-3 leaves out 2 % with random weights


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
