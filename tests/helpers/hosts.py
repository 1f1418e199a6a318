"""Every host on the real pipeline class around tiny models, and what is watched while they draw."""

import functools
import inspect

import torch
from diffusers import (
    AmusedImg2ImgPipeline,
    AmusedInpaintPipeline,
    AmusedPipeline,
    BlockRefinementScheduler,
    DiscreteDDIMScheduler,
    EntropyBoundScheduler,
)

from redge_guidance.updates import Natural
from tests.helpers.images import tiny_amused, tiny_image_pipeline
from tests.helpers.settings import plain_config
from tests.helpers.tiny import WORDS, tiny_gemma, tiny_llada2, tiny_pipeline, tiny_uniform
from tests.helpers.unified import ImagesPipeline, UnifiedPipeline, tiny_unified

PAD, EOS, MASK, A = 0, 1, 2, 3
RESERVED = [PAD, MASK]
# One update to the tilted p, which is the exact optimum for a reward linear in the tokens.
JUMP = plain_config(
    scale=1.5,
    estimator="straight_through",
    update=Natural(num_updates=1, step_size=1.0, damping=0.0),
    num_draws=1,
    support=None,
)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


# ---- rewards ----


def count_of_a(tokens):
    """Sum over all positions that count of being `a`: linear in the one-hots."""
    table = torch.zeros(len(WORDS), 1)
    table[A] = 1.0
    return (tokens.embed(table)[..., 0] * tokens.attention_mask).sum(-1)


def all_of_a(tokens):
    table = torch.zeros(len(WORDS), 1)
    table[A] = 1.0
    return tokens.embed(table)[..., 0].sum(-1)


def brightness(pixels):
    return pixels.mean((1, 2, 3))


# ---- hosts of texts: `make() -> (pipe, run)`, `run(seed)` gives sequences ----


def masked(prompt=("a b", "", "c [MASK] [MASK] d"), pipe=None, **settings):
    pipe = tiny_pipeline() if pipe is None else pipe

    def run(seed=0):
        return pipe(list(prompt), generator=seeded(seed), **{"num_inference_steps": 3} | settings).sequences

    return pipe, run


def llada2(prompt=("a b", "c"), **settings):
    pipe = tiny_llada2()
    defaults = {"gen_length": 8, "block_length": 4, "num_inference_steps": 4, "temperature": 1.0}
    defaults |= {"use_chat_template": False, "editing_threshold": None, "output_type": "seq"}

    def run(seed=0):
        return pipe(list(prompt), generator=seeded(seed), **defaults | settings).sequences

    return pipe, run


def gemma(scheduler, prompt=("a b", "c d"), **settings):
    pipe = tiny_gemma(scheduler)
    defaults = {"gen_length": 8, "num_inference_steps": 4, "temperature": 1.0, "eos_early_stop": False}
    defaults |= {"confidence_threshold": None, "output_type": "seq"}

    def run(seed=0):
        return pipe(list(prompt), generator=seeded(seed), **defaults | settings).sequences

    return pipe, run


def uniform(prompt=("", ""), prediction_type="denoiser", **scheduler):
    """Without a prompt and with the model's logits as they are, for the comparison with the exact optimum."""
    pipe = tiny_uniform(prediction_type=prediction_type, **scheduler)

    def run(seed=0):
        return pipe(list(prompt), generator=seeded(seed)).sequences

    return pipe, run


TEXTS = {
    "uniform": lambda: uniform(),
    "uniform, corrector": lambda: uniform(corrector_steps=1, corrector_k=2),
    "llada2": lambda: llada2(),
    "llada2 editing": lambda: llada2(editing_threshold=0.3, max_post_steps=2),
    "llada2 greedy": lambda: llada2(temperature=0.0),
    "llada2 greedy method": lambda: llada2(sampling_method="greedy", temperature=0.5),
    "llada2 top-k, top-p, threshold": lambda: llada2(top_k=5, top_p=0.9, threshold=0.2, temperature=0.8),
    "llada2 no early stop, odd length": lambda: llada2(eos_early_stop=False, gen_length=5),
    "gemma block refinement": lambda: gemma(BlockRefinementScheduler()),
    "gemma block refinement, editing": lambda: gemma(BlockRefinementScheduler(editing_threshold=0.3)),
    "gemma ddim": lambda: gemma(DiscreteDDIMScheduler()),
    "gemma ddim, corrector": lambda: gemma(DiscreteDDIMScheduler(corrector_steps=1, corrector_k=2)),
    "gemma entropy bound": lambda: gemma(EntropyBoundScheduler()),
    "gemma static cache, early stop": lambda: gemma(
        DiscreteDDIMScheduler(), cache_implementation="static", eos_early_stop=True, confidence_threshold=0.5
    ),
}
MASKED = {
    "masked": lambda: masked(),
    "masked blocks": lambda: masked(block_length=2, num_inference_steps=4),
    "masked cfg": lambda: masked(guidance_scale=2.0),
    "masked remasking": lambda: masked(pipe=tiny_pipeline(unmasking_order="remasking")),
}


# ---- hosts of images ----


def masked_image(takes_text=False, calls=None, **scheduler):
    pipe = tiny_image_pipeline(takes_text, **scheduler)

    def run(seed=0):
        asked = {"prompt": ["a b", "c"]} if takes_text else {"class_labels": [0, 2]}
        settings = {"guidance_scale": 2.0} | (calls or {})
        return pipe(**asked, **settings, generator=seeded(seed), output_type="latent").tokens

    return pipe, run


RAMPS = {"temperature": [2.0, 1.5, 1.0, 0.7], "guidance_scale": [1.0, 2.0, 3.0, 4.0]}


def inpainting():
    pipe = tiny_image_pipeline(unmasking_order="confidence")
    image, mask = torch.rand(1, 3, 8, 8, generator=seeded()), torch.zeros(8, 8)
    mask[:, 4:] = 1
    settings = {"num_images_per_prompt": 2, "image": image, "mask_image": mask, "output_type": "latent"}

    def run(seed=0):
        return pipe(**settings, generator=seeded(seed)).tokens

    return pipe, run


def amused(kind=AmusedPipeline, guidance_scale=3.0, **settings):
    pipe = tiny_amused(kind)

    def run(seed=0):
        fixed = {"num_inference_steps": 4, "guidance_scale": guidance_scale, "output_type": "latent"}
        return pipe(["a b", "c"], **settings, **fixed, generator=seeded(seed)).images

    return pipe, run


def amused_inpaint():
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., 4:] = 1
    image = torch.rand(2, 3, 8, 8, generator=seeded())
    return amused(AmusedInpaintPipeline, image=image, mask_image=mask.repeat(2, 1, 1, 1), strength=1.0)


def unified(kind=ImagesPipeline, **settings):
    """A pipeline class that is none of diffusers', with aMUSEd's step."""
    pipe = tiny_unified(kind)

    def run(seed=0):
        images = pipe(["a b", "c"], **settings, generator=seeded(seed), output_type="latent")
        return images if torch.is_tensor(images) else images[0]

    return pipe, run


ORDERS = ["ancestral", "random", "confidence", "remasking"]
IMAGES = {order: (lambda order=order: masked_image(unmasking_order=order, schedule="cosine")) for order in ORDERS}
IMAGES |= {
    "text": lambda: masked_image(takes_text=True, unmasking_order="confidence"),
    "halton": lambda: masked_image(unmasking_order="halton", schedule="arccos", counting="floor", roll=True),
    "ramps": lambda: masked_image(
        calls=RAMPS, unmasking_order="confidence", counting="floor_from_zero", random_steps=1, choice_temperature=4.5
    ),
    "inpainting": inpainting,
    "amused": lambda: amused(AmusedPipeline, height=8, width=8),
    "amused without cfg": lambda: amused(AmusedPipeline, 1.0, height=8, width=8),
    "amused img2img": lambda: amused(
        AmusedImg2ImgPipeline, image=torch.rand(2, 3, 8, 8, generator=seeded()), strength=0.8
    ),
    "amused inpaint": amused_inpaint,
    "images pipeline": unified,
    "images pipeline without cfg": lambda: unified(guidance_scale=1.0),
    "unified pipeline": lambda: unified(UnifiedPipeline),
}

ONE_OF_EACH = {  # every class of host once
    "masked": MASKED["masked blocks"],
    "uniform": lambda: uniform(("a b", "", "c [MASK] d"), corrector_steps=1),
    "llada2": TEXTS["llada2"],
    "gemma block refinement": TEXTS["gemma block refinement"],
    "gemma ddim": TEXTS["gemma ddim, corrector"],
    "gemma entropy bound": TEXTS["gemma entropy bound"],
    "images": IMAGES["random"],
    "amused": IMAGES["amused"],
}
ALL = MASKED | TEXTS | {f"images: {name}": make for name, make in IMAGES.items()}


def any_reward(pipe):
    """A reward of the kind that the pipeline is for."""
    return brightness if hasattr(pipe, "vqvae") else count_of_a


# ---- what is watched ----


def spied(pipe):
    """What the scheduler's own methods are called with, in a list; spy before drawing."""
    calls = []

    def spy(name, original):
        @functools.wraps(original)
        def method(*args, **kwargs):
            calls.append((name, inspect.signature(original).bind(*args, **kwargs).arguments))
            return original(*args, **kwargs)

        setattr(pipe.scheduler, name, method)

    for name in ("step", "step_correct"):
        if hasattr(pipe.scheduler, name):
            spy(name, getattr(pipe.scheduler, name))
    return calls


def state_of(pipe):
    """What guidance must leave as it found it."""
    modules = [module for module in pipe.components.values() if isinstance(module, torch.nn.Module)]
    hooks = sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for part in modules for m in part.modules())
    return type(pipe), set(vars(pipe)), dict(vars(pipe.scheduler)).keys(), hooks
