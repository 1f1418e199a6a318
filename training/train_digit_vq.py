"""Train the VQ model of the digits: 28 x 28 pixels to 7 x 7 tokens.

The codebook begins as encodings of the data, and an entry that has not been used for a while is put on an encoding of
the moment; otherwise most of it would never be used.

    python training/train_digit_vq.py --data mnist-8500.npz --output digit-vq
"""

import argparse
import json
import time
from pathlib import Path

import torch
from diffusers import VQModel
from digits import augmented, load_digits
from torch import Tensor


def build_model(codebook_size: int) -> VQModel:
    return VQModel(
        in_channels=1,
        out_channels=1,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 64),
        layers_per_block=1,
        latent_channels=64,
        sample_size=28,
        num_vq_embeddings=codebook_size,
        norm_num_groups=8,
        vq_embed_dim=8,
        scaling_factor=1.0,
    )


def quantized(model: VQModel, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Encodings `(n, dim)`, nearest codes `(n,)`, and the codes' entries `(batch, dim, h, w)`, straight-through."""
    latents = model.encode(images).latents.float()
    table = model.quantize.embedding.weight
    rows = latents.permute(0, 2, 3, 1).flatten(0, 2)
    codes = torch.cdist(rows.detach(), table.detach()).argmin(-1)
    entries = table[codes].view(len(images), *latents.shape[2:], -1).permute(0, 3, 1, 2)
    return rows, codes, latents + (entries - latents).detach()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--output", required=True)
    parser.add_argument("--codebook-size", type=int, default=128)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--lr", type=float, default=2e-3)
    args = parser.parse_args()
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    digits = load_digits(args.data)
    images = digits["training"].images
    model = build_model(args.codebook_size)
    table = model.quantize.embedding.weight
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, weight_decay=1e-4, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.lr, args.steps, pct_start=0.05)
    usage = torch.ones(args.codebook_size)
    started = time.time()
    for step in range(1, args.steps + 1):
        chosen = torch.randint(len(images), (args.batch_size,), generator=generator)
        x = 2 * augmented(images[chosen], generator, shift=1.0, turn=0.1) - 1
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rows, codes, entries = quantized(model, x)
            decoded = model.decode(entries.to(torch.bfloat16), force_not_quantize=True).sample.float()
        nearest = table[codes]
        codebook_loss, commitment = (nearest - rows.detach()).square().mean(), (rows - nearest.detach()).square().mean()
        error = (decoded - x).square().mean() + 0.25 * (decoded - x).abs().mean()
        (error + codebook_loss + 0.25 * commitment).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        with torch.no_grad():
            share = torch.bincount(codes, minlength=args.codebook_size) / len(codes)
            usage = 0.99 * usage + 0.01 * args.codebook_size * share
            if step == 50 or (step < 0.7 * args.steps and step % 50 == 0):
                dead = (usage < 0.03).nonzero()[:, 0] if step > 50 else torch.arange(args.codebook_size)
                table[dead] = rows[torch.randperm(len(rows), generator=generator)[: len(dead)]].detach()
                usage[dead] = 1
        if step % 100 == 0 or step == args.steps:
            figures = evaluate(model, digits["validation"].images)
            print(f"step {step} {figures} seconds {time.time() - started:.0f}", flush=True)
    model.save_pretrained(args.output)
    (Path(args.output) / "figures.json").write_text(json.dumps({"steps": args.steps, **figures}, indent=1) + "\n")


@torch.no_grad()
def evaluate(model: VQModel, images: Tensor) -> dict[str, float]:
    """Root mean square error of the pixels in [0, 1], and the perplexity of the codes."""
    _, codes, entries = quantized(model, 2 * images - 1)
    decoded = model.decode(entries, force_not_quantize=True).sample.clamp(-1, 1) / 2 + 0.5
    shares = torch.bincount(codes, minlength=len(model.quantize.embedding.weight)) / len(codes)
    perplexity = torch.special.entr(shares).sum().exp()
    return {
        "rmse": round((decoded - images).square().mean().sqrt().item(), 4),
        "perplexity": round(perplexity.item(), 1),
    }


if __name__ == "__main__":
    main()
