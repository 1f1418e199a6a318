"""What guidance of images costs: seconds by part, and peak memory with and without gradient checkpointing.

One denoising step, one update, one draw, everything hidden, on random weights of the shapes of Halton-MaskGIT-base (a
transformer of 142 M parameters, the VQ-f16 decoder with 16,384 codes) and of a ViT-B/16 classifier as the reward, whose
input is resized to 224 pixels. Memory is the peak of resident memory above what stood before the step; each is measured
in a process of its own. Estimator and update are timed as the same step with pixels that are a sum of codebook entries.

    python benchmarks/image_cost.py
"""

import argparse
import dataclasses
import json
import resource
import subprocess
import sys
import time

import torch
from diffusers import VQModel
from report import environment, save
from settings import PLAIN
from torch import Tensor
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

from redge_guidance import GuidanceConfig
from redge_guidance.hosts import DenoisingStep
from redge_guidance.pipelines import MaskedImageTransformer
from redge_guidance.pipelines.image.vq_tokens import codebook_of, to_pixels
from redge_guidance.rewards import ImageClassifierReward
from redge_guidance.samples.images import ImageDecoder
from redge_guidance.tilting import guided_logits
from redge_guidance.updates import Natural

CODES = 16384
CASES = [(256, 1), (256, 4), (384, 1), (384, 2), (512, 1), (512, 2)]


def vq_model() -> VQModel:
    return VQModel(
        down_block_types=("DownEncoderBlock2D",) * 4 + ("AttnDownEncoderBlock2D",),
        up_block_types=("AttnUpDecoderBlock2D",) + ("UpDecoderBlock2D",) * 4,
        block_out_channels=(128, 128, 256, 256, 512),
        layers_per_block=2,
        latent_channels=256,
        num_vq_embeddings=CODES,
        vq_embed_dim=8,
    ).eval()


def seconds(function) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # GiB


@torch.no_grad()
def transformer_seconds(side: int, ids: Tensor) -> float:
    transformer = MaskedImageTransformer(sample_size=side).eval()
    return seconds(lambda: transformer(ids))


def measure(size: int, images: int, chunk_size: int | None) -> dict[str, float]:
    torch.manual_seed(0)
    side = size // 16
    vqvae = vq_model().requires_grad_(False)
    del vqvae.encoder
    classifier = ViTForImageClassification(ViTConfig(num_labels=1000)).eval()
    reward = ImageClassifierReward(classifier, ViTImageProcessor(), 0)
    decoder = ImageDecoder(codebook_of(vqvae), lambda x: to_pixels(vqvae, x, True), chunk_size)
    ids = torch.full((images, side**2), CODES)
    free = torch.ones_like(ids, dtype=torch.bool)
    model_seconds = transformer_seconds(side, ids)
    logits = 3 * torch.randn(images, side**2, CODES)
    step = DenoisingStep(logits, ids, free, free, 1.0, 0.0, None, images=decoder)
    config = GuidanceConfig(**PLAIN | {"update": Natural(1, 1.0), "num_draws": 1})
    before = peak()
    total = seconds(lambda: guided_logits(step, reward, config, torch.Generator().manual_seed(0)))
    memory = peak() - before

    def gradient(function, given: Tensor) -> None:
        given.requires_grad_()
        torch.autograd.grad(function(given).sum(), given)

    trivial = dataclasses.replace(step, images=ImageDecoder(codebook_of(vqvae), lambda x: x.sum((1, 2))))
    own = seconds(lambda: guided_logits(trivial, lambda x: x, config, torch.Generator().manual_seed(0)))
    embeddings = torch.randn(images, side**2, 8)
    decoding = seconds(lambda: gradient(lambda x: torch.cat([decoder.decode(p) for p in x.split(1)]), embeddings))
    judging = seconds(lambda: gradient(reward.of_pixels, torch.rand(images, 3, size, size)))
    return {
        "transformer": model_seconds,
        "estimator and update": own,
        "decoder": decoding,
        "reward": judging,
        "guided step": total,
        "memory_gib": memory,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", default="benchmarks/results/image_cost.json")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        size, images, chunk_size = json.loads(args.one)
        print(json.dumps(measure(size, images, chunk_size)))
        return
    rows = []
    print("| pixels | images | transformer, s | estimator | decoder | reward | step | GiB | chunks of 1: step | GiB |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for size, images in CASES:
        found = []
        for chunk_size in (None, 1):
            command = [sys.executable, __file__, "--one", json.dumps([size, images, chunk_size])]
            output = subprocess.check_output(command, text=True, stderr=subprocess.DEVNULL)
            found.append(json.loads(output.splitlines()[-1]))
            rows.append({"size": size, "images": images, "decode_chunk_size": chunk_size, **found[-1]})
        plain, chunked = found
        print(
            f"| {size} | {images} | {plain['transformer']:.1f} | {plain['estimator and update']:.2f} | "
            f"{plain['decoder']:.1f} | {plain['reward']:.1f} | "
            f"{plain['guided step']:.1f} | {plain['memory_gib']:.2f} | {chunked['guided step']:.1f} | "
            f"{chunked['memory_gib']:.2f} |",
            flush=True,
        )
    save(args.output, environment("diffusers", "transformers") | {"results": rows})


if __name__ == "__main__":
    main()
