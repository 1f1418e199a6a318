"""Train the token transformer of the digits: masked diffusion over the 7 x 7 tokens of `train_digit_vq.py`.

python training/train_digit_transformer.py --data mnist-8500.npz --vq digit-vq --output digit-transformer
"""

import argparse
import copy
import json
import time
from pathlib import Path

import torch
from diffusers import VQModel
from digits import Digits, augmented, hidden_tokens, load_digits
from torch import Tensor

from redge_guidance.pipelines import MaskedImageTransformer

EMA = 0.998


@torch.no_grad()
def encode(model: VQModel, images: Tensor) -> Tensor:
    """Token ids `(n, 49)` of images in [0, 1]."""
    table = model.quantize.embedding.weight
    latents = torch.cat([model.encode(2 * part - 1).latents for part in images.split(500)])
    rows = latents.permute(0, 2, 3, 1).flatten(0, 2)
    return torch.cdist(rows, table).argmin(-1).view(len(images), -1)


def loss_of(model, ids: Tensor, labels: Tensor, generator: torch.Generator, weighted: bool) -> Tensor:
    """Cross entropy of hidden tokens, k of 49 hidden with k uniform: a mean over them, or the bound in nats a token."""
    hidden = hidden_tokens(*ids.shape, generator)
    logits = model(ids.masked_fill(hidden, model.config.codebook_size), labels)
    losses = torch.nn.functional.cross_entropy(logits.float().transpose(1, 2), ids, reduction="none") * hidden
    if weighted:
        return (losses / hidden.sum(-1, keepdim=True)).sum(-1).mean()
    return losses.sum() / hidden.sum()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--vq", required=True, help="folder of train_digit_vq.py")
    parser.add_argument("--output", required=True)
    parser.add_argument("--width", type=int, default=160)
    parser.add_argument("--layers", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--lr", type=float, default=1.5e-3)
    parser.add_argument("--dropped-labels", type=float, default=0.3, help="share of images that have no class")
    parser.add_argument("--variants", type=int, default=12, help="of every image: itself, and moved and turned ones")
    parser.add_argument("--init", help="folder of an earlier run, to go on from its weights")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    generator = torch.Generator().manual_seed(3 + args.seed)
    vq = VQModel.from_pretrained(args.vq).eval()
    digits = load_digits(args.data)
    training = digits["training"]
    variants = [encode(vq, training.images)]
    variants += [
        encode(vq, augmented(training.images, generator, shift=1.0, turn=0.1)) for _ in range(args.variants - 1)
    ]
    tokens = torch.stack(variants)
    validation = Digits(encode(vq, digits["validation"].images), digits["validation"].labels)

    config = {"hidden_size": args.width, "num_hidden_layers": args.layers, "num_attention_heads": args.width // 32}
    model = MaskedImageTransformer(
        sample_size=7,
        codebook_size=vq.config.num_vq_embeddings,
        num_classes=10,
        intermediate_size=args.width * 5 // 2,
        **config,
    )
    curve = []
    if args.init:
        model = MaskedImageTransformer.from_pretrained(args.init)
        curve = json.loads((Path(args.init) / "curve.json").read_text())
    before = curve[-1]["step"] if curve else 0
    average = copy.deepcopy(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, weight_decay=0.05, betas=(0.9, 0.98), fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.lr, args.steps, pct_start=0.05)
    started, running = time.time(), 0.0
    for step in range(1, args.steps + 1):
        chosen = torch.randint(len(training), (args.batch_size,), generator=generator)
        variant = torch.randint(args.variants, (args.batch_size,), generator=generator)
        dropped = torch.rand(args.batch_size, generator=generator) < args.dropped_labels
        labels = training.labels[chosen].masked_fill(dropped, 10)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = loss_of(model, tokens[variant, chosen], labels, generator, weighted=False)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        running += (1 if step == 1 else 0.02) * (loss.item() - running)
        with torch.no_grad():
            for kept, new in zip(average.parameters(), model.parameters(), strict=True):
                kept.lerp_(new, 1 - min(EMA, step / (step + 10)))
        if step % 250 == 0 or step == args.steps:
            figures = evaluate(average, validation)
            curve.append({"step": before + step, **figures})
            print(f"step {step} loss {running:.3f} {figures} seconds {time.time() - started:.0f}", flush=True)
            average.save_pretrained(args.output)
            (Path(args.output) / "curve.json").write_text(json.dumps(curve, indent=1) + "\n")


@torch.no_grad()
def evaluate(model, validation: Digits) -> dict[str, float]:
    """The bound on the negative log-likelihood in nats a token, with and without the label."""
    results = {}
    for name, labels in (("given_label", validation.labels), ("no_label", torch.full_like(validation.labels, 10))):
        generator = torch.Generator().manual_seed(4)
        ids, labels = validation.images.repeat(4, 1), labels.repeat(4)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            results[name] = round(loss_of(model, ids, labels, generator, weighted=True).item(), 4)
    return results


if __name__ == "__main__":
    main()
