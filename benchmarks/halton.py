"""Halton-MaskGIT's transformer, VQ model and samplers, ours against the public implementation with random weights.

Builds the public classes, fills them with random numbers, writes files like the published ones, converts these, and
compares outputs: logits with and without a class, the images of tokens, and the tokens of images. `--public` is a clone
of github.com/valeoai/Halton-MaskGIT (which needs einops). `--samplers` compares its samplers instead, on tiny models.

    python benchmarks/halton.py --public Halton-MaskGIT
    python benchmarks/halton.py --public Halton-MaskGIT --samplers
"""

import argparse
import sys
import tempfile
from pathlib import Path

import torch
from halton_samplers import compare
from report import environment, save

from redge_guidance.pipelines import MaskedDiffusionScheduler, MaskedImagePipeline

SIZES = {"tiny": (384, 6, 6), "base": (768, 12, 12), "large": (1024, 24, 16)}


def fill(module: torch.nn.Module, generator: torch.Generator) -> None:
    """Random weights in the place of the initial ones, some of which are zero."""
    for parameter in module.parameters():
        scale = parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.1
        parameter.data = scale * torch.randn(parameter.shape, generator=generator) + (parameter.ndim == 1)


def difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Largest difference, relative to the root mean square."""
    return ((ours - theirs).abs().max() / theirs.square().mean().sqrt()).item()


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--public", required=True)
    parser.add_argument("--samplers", action="store_true")
    parser.add_argument("--output", help="a file in benchmarks/results")
    args = parser.parse_args()
    sys.path.insert(0, args.public)
    if args.samplers:
        results = compare(fill)
        print(results)
        save(args.output or "benchmarks/results/halton_samplers.json", environment("diffusers") | {"results": results})
        return
    from Network.transformer import Transformer
    from Network.vq_model import VQ_16

    results = {}
    for name, side in (("tiny", 16), ("base", 16), ("large", 24)):
        generator = torch.Generator().manual_seed(0)
        width, depth, heads = SIZES[name]
        theirs = Transformer(side, width, 16384, depth, heads, 4 * width, nclass=1000, register=1, proj=1).eval()
        vq = VQ_16(codebook_size=16384, codebook_embed_dim=8).eval()
        for module in (theirs, vq):
            fill(module, generator)
        with tempfile.TemporaryDirectory() as folder:
            files = Path(folder) / "transformer.pth", Path(folder) / "vq.pt"
            torch.save({"model_state_dict": theirs.state_dict(), "iter": 1, "global_epoch": 1}, files[0])
            torch.save({"model": vq.state_dict()}, files[1])
            pipe = MaskedImagePipeline.from_halton(*files, scheduler=MaskedDiffusionScheduler())
            pipe.save_pretrained(Path(folder) / "pipeline")
            pipe = MaskedImagePipeline.from_pretrained(Path(folder) / "pipeline")
        ids = torch.randint(16385, (2, side, side), generator=generator)
        labels, dropped = torch.tensor([1, 817]), torch.tensor([False, True])
        expected = theirs(ids, labels, dropped)[..., :-1]  # the public model has a logit for the hidden token
        logits = pipe.transformer(ids.flatten(1), torch.where(dropped, 1000, labels))
        tokens = ids.clamp(max=16383)
        pixels = torch.rand(2, 3, 16 * side, 16 * side, generator=generator)
        found = pipe.encode(pixels)
        wanted = vq.encode(2 * pixels - 1)[2][2].view(found.shape)
        results[f"{name}, {16 * side} pixels"] = {
            "deviation_of_logits": expected.std().item(),
            "logits": difference(logits, expected),
            "pixels": difference(pipe.decode(tokens.flatten(1)), (vq.decode_code(tokens) / 2 + 0.5).clamp(0, 1)),
            "tokens_that_agree": (found == wanted).float().mean().item(),
        }
        print(name, results[f"{name}, {16 * side} pixels"], flush=True)
    save(args.output or "benchmarks/results/halton.json", environment("diffusers") | {"results": results})


if __name__ == "__main__":
    main()
