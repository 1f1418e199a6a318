"""Meissonic, Monetico and Muddit as published, around tiny random components, guided.

`compare_images(folder)` expects clones of github.com/viiika/Meissonic and github.com/M-E-AGI-Lab/Muddit in `folder`, as
`Meissonic` and `Muddit`. Nothing of theirs is copied: their pipelines, schedulers and transformers are imported, and
filled with random weights, since published ones need a GPU.

    python benchmarks/published_images.py --public FOLDER
"""

import argparse
import contextlib
import importlib
import json
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from diffusers import VQModel
from diffusers.models.attention_processor import Attention
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing

from redge_guidance import GuidanceConfig, guide

CODES, WORDS, SIDE, LENGTH = 32, [f"word{i}" for i in range(40)], 16, 77
SPECIAL = ["[START]", "[END]"]
NORM = {"norm_num_groups": 2, "layers_per_block": 1}


def compare_images(public: Path) -> list[dict[str, Any]]:
    """A row for each of the published pipelines; `error` says why one could not be compared."""
    rows = []
    for folder, kind, task in CASES:
        row: dict[str, Any] = {"repository": folder, "pipeline": kind, "task": task}
        if not (public / folder).is_dir():
            rows.append(row | {"error": f"not compared: no {folder} in the folder"})
            continue
        try:
            with published(public / folder) as source:
                rows.append(row | checks(*CASES[folder, kind, task](source, kind)))
        except Exception as error:  # a row that was not compared says so
            rows.append(row | {"error": f"not compared: {type(error).__name__}: {error}"})
    return rows


def checks(pipe: Any, run: Callable[[int], torch.Tensor], reward: Any, score: Callable[..., float]) -> dict[str, Any]:
    """Scale 0, the same generator twice, a rising reward, and the pipeline afterwards.

    Args:
        pipe: the pipeline.
        run: a seed to what is drawn, a tensor or a list of texts.
        reward: what to guide by.
        score: the reward of what `run` gives, its mean.
    """
    pipe.set_progress_bar_config(disable=True)
    run(0)  # Muddit adds a token to its text encoder in its first call
    bare, kind = run(0), type(pipe)
    with guide(pipe, reward, GuidanceConfig(scale=0.0)):
        off = run(0)
    means, progress, twice = [score(torch_or_list([run(seed) for seed in range(4)]))], [], False
    for scale in SCALES:
        with guide(pipe, reward, GuidanceConfig(scale=scale)) as handle:
            guided = [run(seed) for seed in range(4)]
            twice = same(run(0), guided[0])
            means.append(score(torch_or_list(guided)))
            steps = len(handle.trace) // 5
            progress = [round(step.progress, 3) for step in handle.trace][:steps]
            shown = [figure for step in handle.trace for figure in (step.reward, step.kl, step.entropy)]
    return {
        "scale 0 is bit-equal": same(off, bare),
        "same generator, same samples": twice,
        "reward at scales 0, " + ", ".join(f"{scale:g}" for scale in SCALES): [round(mean, 4) for mean in means],
        "reward rises": means == sorted(means) and means[0] < means[-1],
        "progress": progress,
        "trace is finite": bool(torch.tensor(shown).isfinite().all()) and progress == sorted(progress),
        "removal restores": type(pipe) is kind and same(run(0), bare) and "step" not in vars(pipe.scheduler),
    }


SCALES = (30.0, 300.0)


def same(one: Any, other: Any) -> bool:
    return torch.equal(one, other) if torch.is_tensor(one) else one == other


def torch_or_list(parts: list[Any]) -> Any:
    return torch.cat(parts) if torch.is_tensor(parts[0]) else [text for part in parts for text in part]


# ---- the pipelines, and how they are called ----


def meissonic(source: Callable[[str], Any], kind: str) -> tuple[Any, ...]:
    """Monetico is this code too. A picture that is wider than high, where the pipeline lets one say so."""
    module = {"Pipeline": "pipeline", "Img2ImgPipeline": "pipeline_img2img", "InpaintPipeline": "pipeline_inpaint"}
    transformer = source("transformer").Transformer2DModel(**TRANSFORMER)
    pipe = getattr(source(module[kind]), kind)(**parts(transformer, source("scheduler").Scheduler))
    sizes = {"height": SIDE, "width": SIDE + 8}
    picture = torch.rand(2, 3, SIDE, SIDE + 8, generator=seeded(3))
    hole = torch.zeros(2, 1, SIDE, SIDE + 8)
    hole[..., 8:] = 1
    settings = {
        "Pipeline": sizes,
        "Img2ImgPipeline": {"image": picture, "strength": 0.8},
        "InpaintPipeline": {"image": picture, "mask_image": hole},
    }[kind]
    return images(pipe, **settings)


def muddit_image(source: Callable[[str], Any], kind: str) -> tuple[Any, ...]:
    return images(muddit(source, kind), height=SIDE, width=SIDE + 8)


def muddit_text(source: Callable[[str], Any], kind: str) -> tuple[Any, ...]:
    pipe = muddit(source, kind)
    pictures = torch.rand(2, 3, SIDE, SIDE, generator=seeded(3))
    liked = torch.arange(len(SPECIAL) + len(WORDS) + 1) % 2 == 0

    def run(seed: int) -> list[str]:
        call = {"prompt": ["word1 word2", "word3"], "image": pictures, "height": SIDE, "width": SIDE}
        return pipe(**call, num_inference_steps=6, generator=seeded(seed), output_type="latent").prompts

    def reward(tokens: Any) -> torch.Tensor:
        return tokens.embed(liked.float()[:, None])[..., 0].sum(-1)

    def score(texts: list[str]) -> float:
        """Share of liked words, after what the pipeline does to its texts."""
        words = [word for text in texts for word in text.split()]
        return sum(liked[len(SPECIAL) + WORDS.index(word)].item() for word in words) / len(words)

    return pipe, run, reward, score


CASES = {
    ("Meissonic", "Pipeline", "text to image"): meissonic,
    ("Meissonic", "Img2ImgPipeline", "image to image"): meissonic,
    ("Meissonic", "InpaintPipeline", "inpainting"): meissonic,
    ("Muddit", "UnifiedPipeline", "text to image"): muddit_image,
    ("Muddit", "UnifiedPipeline", "image to text"): muddit_text,
    ("Muddit", "UnifiedPipeline_new", "text to image"): muddit_image,
    ("Muddit", "UnifiedPipeline_new", "image to text"): muddit_text,
}


def images(pipe: Any, **settings: Any) -> tuple[Any, ...]:
    """Guided toward a pattern."""

    def run(seed: int) -> torch.Tensor:
        call = {"prompt": ["word1 word2", "word3"], "guidance_scale": 3.0, "num_inference_steps": 6}
        return pipe(**call, **settings, generator=seeded(seed), output_type="pt").images

    pattern = torch.randn(run(0).shape[1:], generator=seeded(5))

    def reward(pixels: torch.Tensor) -> torch.Tensor:
        return (pixels * pattern).mean((1, 2, 3)) * 10

    return pipe, run, reward, lambda pixels: reward(pixels).mean().item()


# ---- tiny components ----

TRANSFORMER = {
    "num_layers": 1,
    "num_single_layers": 1,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": 16,
    "pooled_projection_dim": 32,
    "axes_dims_rope": (4, 6, 6),
    "vocab_size": CODES + 1,
    "codebook_size": CODES,
}
CLIP = {"hidden_size": 16, "intermediate_size": 16, "projection_dim": 32, "num_hidden_layers": 2}
CLIP |= {"num_attention_heads": 2}


def muddit(source: Callable[[str], Any], kind: str) -> Any:
    words = {"tokenizer_vocab_size": len(SPECIAL) + len(WORDS) + 1, "downsample": True, "upsample": True}
    transformer = source("transformer").SymmetricTransformer2DModel(**TRANSFORMER, **words)
    more = {}
    if kind == "UnifiedPipeline_new":
        config = transformers.CLIPVisionConfig(**CLIP, image_size=SIDE, patch_size=8)
        size = {"shortest_edge": SIDE}
        more = {
            "image_encoder": random(transformers.CLIPVisionModelWithProjection(config)),
            "clip_image_processor": transformers.CLIPImageProcessor(size=size, crop_size=SIDE),
        }
    return getattr(source("pipeline"), kind)(**parts(transformer, source("scheduler").Scheduler), **more)


def parts(transformer: Any, scheduler: type) -> dict[str, Any]:
    """All but what a pipeline alone has. Both transformers were written for older processors of diffusers."""
    for module in transformer.modules():
        if isinstance(module, Attention) and not hasattr(module, "head_dim"):  # newer ones want to know it
            module.head_dim = module.inner_dim // module.heads
    config = transformers.CLIPTextConfig(
        **CLIP, vocab_size=len(SPECIAL) + len(WORDS), max_position_embeddings=LENGTH, bos_token_id=0, eos_token_id=1
    )
    vqvae = VQModel(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        latent_channels=8,
        vq_embed_dim=8,
        num_vq_embeddings=CODES,
        lookup_from_codebook=True,
        **NORM,
    )
    return {
        "vqvae": random(vqvae),
        "tokenizer": tokenizer(),
        "text_encoder": random(transformers.CLIPTextModelWithProjection(config)),
        "transformer": random(transformer),
        "scheduler": scheduler(mask_token_id=CODES),
    }


def tokenizer() -> transformers.PreTrainedTokenizerFast:
    """As CLIP's: texts begin and end with tokens of their own, and are filled up with the latter."""
    words = Tokenizer(models.WordLevel({w: i for i, w in enumerate(SPECIAL + WORDS)}, unk_token=SPECIAL[1]))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    ends = [(word, i) for i, word in enumerate(SPECIAL)]
    words.post_processor = TemplateProcessing(single=f"{SPECIAL[0]} $A {SPECIAL[1]}", special_tokens=ends)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=words,
        bos_token=SPECIAL[0],
        eos_token=SPECIAL[1],
        pad_token=SPECIAL[1],
        model_max_length=LENGTH,
    )


def random(module: torch.nn.Module) -> torch.nn.Module:
    """Random weights in the place of the initial ones, some of which are zero."""
    generator = seeded(0)
    for parameter in module.parameters():
        scale = parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.1
        parameter.data = scale * torch.randn(parameter.shape, generator=generator) + (parameter.ndim == 1)
    return module.eval()


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@contextlib.contextmanager
def published(folder: Path) -> Iterator[Callable[[str], Any]]:
    """Modules of a repository by name; they are all called `src`, and forgotten afterwards.

    Muddit imports a class of Gemma's tokenizer, which it does not use in what is compared, from where transformers 5
    has none; it is given one there meanwhile.
    """
    moved = "transformers.models.gemma.tokenization_gemma_fast"
    gone = importlib.util.find_spec(moved) is None
    if gone:
        sys.modules[moved] = types.ModuleType(moved)
        sys.modules[moved].GemmaTokenizerFast = transformers.PreTrainedTokenizerFast  # type: ignore[attr-defined]
    sys.path.insert(0, str(folder))
    try:
        yield lambda name: importlib.import_module(f"src.{name}")
    finally:
        sys.path.remove(str(folder))
        for name in [name for name in sys.modules if name.split(".")[0] == "src" or (gone and name == moved)]:
            del sys.modules[name]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--public", required=True, type=Path)
    print(json.dumps(compare_images(parser.parse_args().public), indent=1))


if __name__ == "__main__":
    main()
