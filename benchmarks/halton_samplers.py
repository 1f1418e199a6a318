"""Halton-MaskGIT's own samplers beside the orders, schedules and ramps of `MaskedImagePipeline`; run by `halton.py`.

- The order of cells and the tokens of every step, for many grids and numbers of steps: equal as numbers.
- Images of a tiny random model, tokens compared one by one. Both draw a token by the same function of a position's
  probabilities in the place of `torch.multinomial`, and Gumbel noise from torch's generator, seeded alike.
- Images of a random model of four tokens, with each sampler's own randomness: the joint law over all images, by a
  chi-square test of two samples.

The public confidence sampler draws tokens that are visible anew in every step. Here it is given a model that predicts
what it sees, as a trained one does; the model's logit of the hidden token, which the public samplers can draw, is low.
"""

import itertools
import tempfile
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import torch
from diffusers import VQModel
from scipy.stats import chi2_contingency

from redge_guidance.pipelines import MaskedDiffusionScheduler, MaskedImagePipeline
from redge_guidance.pipelines.image.halton import convert_transformer
from redge_guidance.pipelines.image.order import halton_order
from redge_guidance.pipelines.schedules import guidance_ramp, temperature_ramp, visible_tokens

MODES = ("root", "linear", "square", "cosine", "arccos")
CLASSES = 5


class Copying:
    """The public model, sure of the tokens that it sees."""

    def __init__(self, model, codes):
        self.model, self.codes = model, codes

    def __call__(self, code, labels, drop_label=None):
        logits = self.model(code, labels, drop_label)
        seen = torch.nn.functional.one_hot(code.flatten(1), self.codes + 1)
        return logits + 1e4 * seen * (code.flatten(1) != self.codes)[..., None]

    def eval(self):
        return self

    def train(self):
        return self


class Pair:
    """A tiny random model as the public trainer, which its samplers are given, and as our pipeline."""

    def __init__(self, side, codes, fill, model_class, calm=1.0):
        model = model_class(side, 32, codes, 2, 4, 48, nclass=CLASSES, register=1, proj=1).eval()
        fill(model, torch.Generator().manual_seed(side))
        model.tok_emb.weight.data *= calm
        model.head.bias.data[-1] = -1e4
        self.side, self.codes, self.seen = side, codes, []
        copying = Copying(model, codes)
        arguments = SimpleNamespace(device="cpu", mask_value=codes, codebook_size=codes, use_ema=False)
        self.trainer = SimpleNamespace(vit=copying, input_size=side, args=arguments, autocast=nullcontext())
        self.trainer.ae = SimpleNamespace(decode_code=lambda code: self.seen.append(code.flatten(1)) or code.float())
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "transformer.pth"
            torch.save({"model_state_dict": model.state_dict()}, file)
            self.transformer = convert_transformer(file, num_attention_heads=4)
        self.vqvae = VQModel(block_out_channels=(8,), norm_num_groups=2, num_vq_embeddings=codes, vq_embed_dim=4)

    def theirs(self, sampler, labels):
        sampler(self.trainer, nb_sample=len(labels), labels=labels, verbose=False)
        return self.seen.pop()

    def ours(self, scheduler, labels, **settings):
        pipe = MaskedImagePipeline(self.transformer, self.vqvae, scheduler)
        pipe.set_progress_bar_config(disable=True)
        return pipe(labels.tolist(), output_type="latent", **settings).tokens


def shared_draw(probs, num_samples, replacement=False, *, generator=None):
    """A token of each row by a number that the three likeliest ones stand for."""
    first = probs.topk(min(3, probs.shape[-1])).indices.double()
    weights = torch.tensor([1.0, 7.0, 49.0], dtype=torch.float64)[: first.shape[-1]]
    number = (first @ weights * 0.6180339887).frac()[:, None]
    cumulative = probs.double().cumsum(-1)
    return (cumulative < number * cumulative[:, -1:]).sum(-1, keepdim=True)


@contextmanager
def shared_randomness():
    def gumbel(size):
        return -np.log(-np.log(torch.rand(size).numpy()))

    with mock.patch.object(torch, "multinomial", shared_draw), mock.patch.object(np.random, "gumbel", gumbel):
        yield


def halton_case(steps, w=0.0, low=1.0, high=1.0, power=1.0, warmup=0, randomize=False, top_k=-1):
    """The arguments of the public sampler, and ours."""
    public = {"sm_temp_min": low, "sm_temp_max": high, "temp_pow": power, "temp_warmup": warmup, "w": w}
    public |= {"step": steps, "randomize": randomize, "top_k": top_k}
    scheduler = MaskedDiffusionScheduler("halton", schedule="arccos", counting="floor", roll=randomize)
    settings = {"num_inference_steps": steps, "guidance_scale": 1 + w, "top_k": top_k if top_k > 0 else None}
    settings["temperature"] = temperature_ramp(1 / low, 1 / high, steps, power=power, warmup=warmup)
    return public, scheduler, settings


def confidence_case(steps, w=0.0, randomize="linear", r_temp=4.5, mode="arccos", sm_temp=1.0):
    public = {"sm_temp": sm_temp, "w": w, "randomize": randomize, "r_temp": r_temp, "sched_mode": mode, "step": steps}
    order = "random" if randomize == "random" else "confidence"
    noise = r_temp if randomize == "linear" else 0.0
    random_steps = 2 if randomize == "warm_up" else 0
    scheduler = MaskedDiffusionScheduler(order, mode, noise, counting="floor_from_zero", random_steps=random_steps)
    settings = {"num_inference_steps": steps, "guidance_scale": guidance_ramp(1 + w, steps), "temperature": 1 / sm_temp}
    return public, scheduler, settings


HALTON = [
    *(halton_case(steps, w) for steps in (1, 5, 12, 32, 70) for w in (0.0, 0.5, 3.0)),
    *(halton_case(32, 2.0, 1.0, 1.2, randomize=True) for _ in range(2)),  # of its README
    halton_case(32, 2.0, 1.1, 1.1, warmup=1, randomize=True),  # of its notebook
    halton_case(20, 0.7, 0.6, 1.7, power=2.5, warmup=4),
    halton_case(32, 3.0, top_k=1),
    halton_case(9, 1.0, 1.0, 1.4, randomize=True, top_k=1),
]
CONFIDENCE = [
    *(confidence_case(n, w, "linear", 4.5, mode) for n in (2, 8, 12, 33) for w in (0.0, 3.0) for mode in MODES),
    *(confidence_case(12, 1.5, kind, 4.5, mode) for kind in ("warm_up", "random", "no") for mode in MODES),
    confidence_case(15, 3.0, "linear", 1.0, "cosine", sm_temp=1.3),
]


def orders(sampler):
    """How many grids of side 1, 2, ..., 64 have the same order, and how many cells the public one leaves out where."""
    same, missing = 0, {}
    for side in range(1, 65):
        theirs = public_order(sampler, side)
        same += theirs == halton_order(side, side)[: len(theirs)].tolist()
        if len(theirs) < side**2:
            missing[side] = side**2 - len(theirs)
    return {"equal": same, "of": 64, "cells_that_the_public_order_leaves_out_by_side": missing}


def public_order(sampler, side):
    return [row * side + column for row, column in sampler.build_halton_mask(side).tolist()]


def counts(halton, confidence):
    """How many tokens are visible after every step."""
    sides, numbers = (2, 4, 7, 16, 24), range(2, 65)
    found = {"halton": [], "confidence": []}
    for side, steps in itertools.product(sides, numbers):
        total = torch.tensor(side**2)
        masks = []
        trainer = SimpleNamespace(vit=torch.nn.Identity(), input_size=side, autocast=nullcontext())
        trainer.args = SimpleNamespace(device="cpu", mask_value=1, codebook_size=1)
        trainer.vit.forward = lambda code, *_: torch.zeros(*code.flatten(1).shape, 2)
        trainer.ae = SimpleNamespace(decode_code=lambda code: code.float())
        masks = halton(w=0, step=steps)(trainer, nb_sample=1, labels=torch.tensor([0]), verbose=False)[2]
        theirs = torch.stack(masks).sum((1, 2, 3)).cumsum(0).long().tolist()
        ours = [visible_tokens("floor", "arccos", i, steps, total).item() for i in range(steps)]
        found["halton"].append(theirs == ours)
        for mode in MODES:
            listed = confidence.build_sequence(steps, side, mode, verbose=False).tolist()
            theirs = [min(max(count, i + 1), side**2) for i, count in enumerate(listed)]
            ours = [visible_tokens("floor_from_zero", mode, i, steps, total).item() for i in range(steps)]
            found["confidence"].append(theirs == ours)
    return {name: {"equal": sum(same), "of": len(same)} for name, same in found.items()}


def tokens(sampler, cases, pairs, images=3):
    equal = drawn = compared = 0
    different = []
    labels = torch.arange(images) % CLASSES
    for pair, (number, (public, scheduler, settings)) in itertools.product(pairs, enumerate(cases)):
        if sampler.__name__ == "ConfidenceSampler" and public["step"] > pair.side**2:
            continue  # which asks for more tokens than there are
        with shared_randomness():
            torch.manual_seed(number)
            theirs = pair.theirs(sampler(**public), labels)
            torch.manual_seed(number)
            ours = pair.ours(scheduler, labels, **settings)
        compared, drawn, equal = compared + 1, drawn + ours.numel(), equal + int((theirs == ours).sum())
        if not torch.equal(theirs, ours):
            different.append({"side": pair.side, **public, "agree": (theirs == ours).float().mean().item()})
    return {"cases": compared, "tokens": drawn, "equal": equal, "cases_with_a_difference": different}


def law(sampler, case, pair, images=8000):
    """p of a chi-square test that both draw from one law over all `codes**(side**2)` images."""
    public, scheduler, settings = case
    labels = torch.full((images,), 2)
    torch.manual_seed(1)
    np.random.seed(1)
    drawn = [pair.theirs(sampler(**public), labels), pair.ours(scheduler, labels, **settings)]
    powers = pair.codes ** torch.arange(pair.side**2)
    table = torch.stack([torch.bincount(ids @ powers, minlength=pair.codes**4) for ids in drawn]).numpy()
    common = table.sum(0) >= 20
    table = np.concatenate([table[:, common], table[:, ~common].sum(1, keepdims=True)], 1)
    table = table[:, table.sum(0) > 0]
    share = table / images
    return {
        "settings": public,
        "outcomes": table.shape[1],
        "total_variation": float(np.abs(share[0] - share[1]).sum() / 2),
        "p": float(chi2_contingency(table).pvalue),
    }


def compare(fill):
    """Every comparison; `fill` puts random weights into a module."""
    from Network.transformer import Transformer
    from Sampler.confidence_sampler import ConfidenceSampler
    from Sampler.halton_sampler import HaltonSampler

    results = {"orders": orders(HaltonSampler), "counts": counts(HaltonSampler, ConfidenceSampler)}
    pairs = [Pair(side, 40, fill, Transformer) for side in (4, 8, 16)]
    results["tokens"] = {
        "HaltonSampler": tokens(HaltonSampler, HALTON, pairs),
        "ConfidenceSampler": tokens(ConfidenceSampler, CONFIDENCE, pairs),
    }
    small = Pair(2, 3, fill, Transformer, calm=0.4)
    cases = [
        (HaltonSampler, halton_case(3, 1.5, 0.8, 1.3, randomize=True)),
        (HaltonSampler, halton_case(2, 0.5, 1.0, 1.0, warmup=1)),
        (HaltonSampler, halton_case(3, 0.0, top_k=2, randomize=True)),
        (ConfidenceSampler, confidence_case(3, 1.5, "linear", 2.0, "arccos")),
        (ConfidenceSampler, confidence_case(4, 0.5, "linear", 0.5, "square", sm_temp=0.8)),
        (ConfidenceSampler, confidence_case(4, 1.5, "warm_up", mode="root")),
        (ConfidenceSampler, confidence_case(3, 0.0, "random", mode="cosine")),
        (ConfidenceSampler, confidence_case(3, 1.0, "no", mode="linear")),
    ]
    results["laws"] = [{"sampler": one.__name__} | law(one, case, small) for one, case in cases]
    return results
