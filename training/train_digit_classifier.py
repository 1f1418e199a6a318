"""Train a classifier of digits: the reward, a ConvNeXT on one half of the digits, or its judge, a ResNet on the other.

The judge never sees a digit that the reward has seen; its features also serve Frechet distances.

Guidance lives on the reward's gradient, and a plain classifier has one that leads to images it likes and nobody else
does. The reward is therefore trained on the worst images within a small L2 distance, found by projected gradient
descent (arXiv 1706.06083), which makes the gradient point to what a digit looks like. The distance is a share of the
image's own norm, and strokes are made thicker and thinner, since otherwise a bolder digit is a safer one, and guidance
draws bold digits. Half of the images are what guidance will show: digits with some of their tokens hidden and predicted
by the generator, decoded; the others are digits, half of these mixed with another and labelled so.

    python training/train_digit_classifier.py --data mnist-8500.npz --role reward --generator builtin:mnist-masked \
        --output digit-classifier
"""

import argparse
import json
import time
from pathlib import Path

import torch
from digits import Digits, augmented, hidden_tokens, load_digits, thickened
from torch import Tensor
from transformers import (
    ConvNextConfig,
    ConvNextForImageClassification,
    ResNetConfig,
    ResNetForImageClassification,
    ViTImageProcessor,
)

from redge_guidance.estimators import ESTIMATORS
from redge_guidance.image_tokens import codebook_of, to_pixels, to_tokens
from redge_guidance.pipelines import MaskedImagePipeline

MEAN, DEVIATION = 0.1307, 0.3081
RADIUS, ATTACK_STEPS = 0.22, 4  # the radius is a share of the image's norm
RELAXED_VARIANTS = 4
LABELS = {i: str(i) for i in range(10)}


def build_model(role: str):
    names = {"num_labels": 10, "id2label": LABELS, "label2id": {name: i for i, name in LABELS.items()}}
    if role == "reward":
        config = ConvNextConfig(
            image_size=28, patch_size=2, num_stages=3, hidden_sizes=[32, 64, 96], depths=[2, 2, 1], **names
        )
        return ConvNextForImageClassification(config)
    config = ResNetConfig(embedding_size=32, hidden_sizes=[32, 64, 64], depths=[1, 2, 1], layer_type="basic", **names)
    return ResNetForImageClassification(config)


@torch.no_grad()
def relaxed(pipe: MaskedImagePipeline, digits: Digits, generator: torch.Generator) -> Tensor:
    """Digits as guidance shows them `(n, 1, h, w)`: from 1 to all of their tokens hidden, predicted, drawn, decoded.

    What is drawn from is the unconditional prediction, or a geometric mean with the conditional one, half of the time,
    as guidance moves the prediction toward the class.
    """
    mask, classes = pipe.config.mask_token_id, pipe.transformer.config.num_classes
    do_normalize = pipe.config.do_normalize
    parts = []
    for images, labels in zip(digits.images.split(125), digits.labels.split(125), strict=True):
        moved = thickened(augmented(images, generator, shift=1.5, turn=0.15), generator)
        ids = to_tokens(pipe.vqvae, moved.expand(-1, 3, -1, -1), do_normalize)
        hidden = hidden_tokens(*ids.shape, generator)
        masked = ids.masked_fill(hidden, mask)
        free = pipe.transformer(masked, torch.full_like(labels, classes)).log_softmax(-1)
        given = pipe.transformer(masked, labels).log_softmax(-1)
        share = torch.rand(2, len(ids), 1, 1, generator=generator)
        logits = torch.lerp(free, given, 0.5 * share[0] * (share[1] < 0.5))
        name = ("soft", "entropy_mix", "straight_through")[int(torch.randint(3, (1,), generator=generator))]
        sample = ESTIMATORS[name]()(logits, hard=True, generator=generator)
        known = torch.nn.functional.one_hot(ids, logits.shape[-1]).float()
        weights = torch.where(hidden[..., None], sample, known)
        parts.append(to_pixels(pipe.vqvae, weights @ codebook_of(pipe.vqvae), do_normalize)[:, :1])
    return torch.cat(parts)


def reward_batch(training: Digits, shown: Tensor, batch_size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Images and label probabilities `(batch, 10)`, half digits and half of `shown`, variants of them."""
    chosen = torch.randint(len(training), (batch_size // 2,), generator=generator)
    images = thickened(augmented(training.images[chosen], generator, shift=2.0, turn=0.2), generator)
    target = one_hot(training.labels[chosen])
    share = torch.rand(2, len(images), 1, generator=generator)
    share = share[0] * (share[1] < 0.5)
    other = torch.randperm(len(images), generator=generator)
    images = torch.lerp(images, images[other], share[..., None, None])
    target = torch.lerp(target, target[other], share)
    chosen = torch.randint(len(shown), (batch_size - len(images),), generator=generator)
    labels = training.labels[chosen % len(training)]
    return torch.cat([images, shown[chosen]]), torch.cat([target, one_hot(labels)])


def one_hot(labels: Tensor) -> Tensor:
    return torch.nn.functional.one_hot(labels, 10).float()


def attacked(model, images: Tensor, target: Tensor, radius: float) -> Tensor:
    """Images that the model does worst on within `radius` times their L2 norm, by gradient ascent."""
    moved = images.clone()
    radii = (radius * images.flatten(1).norm(dim=1)).clamp(min=1e-6).view(-1, 1, 1, 1)
    for _ in range(ATTACK_STEPS):
        moved.requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = model(pixel_values=normalized(moved)).logits
        loss = torch.nn.functional.cross_entropy(logits.float(), target, reduction="sum")
        (grad,) = torch.autograd.grad(loss, moved)
        step = grad / grad.flatten(1).norm(dim=1).clamp(min=1e-12).view(-1, 1, 1, 1)
        with torch.no_grad():
            offset = moved + 0.5 * radii * step - images
            norms = offset.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
            moved = (images + offset * radii / torch.maximum(norms, radii)).clamp(0, 1)
    return moved.detach()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--role", required=True, choices=["reward", "judge"])
    parser.add_argument("--output", required=True)
    parser.add_argument("--generator", help="pipeline that draws digits; needed for the reward")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--lr", type=float, default=3e-3)
    args = parser.parse_args()
    if args.role == "reward" and args.generator is None:
        parser.error("--role reward needs --generator")
    torch.manual_seed(0 if args.role == "reward" else 1)
    generator = torch.Generator().manual_seed(2)
    digits = load_digits(args.data)
    training, validation = digits["first" if args.role == "reward" else "second"], digits["validation"]
    if args.role == "reward":
        pipe = MaskedImagePipeline.from_pretrained(args.generator)
        shown = torch.cat([relaxed(pipe, training, generator) for _ in range(RELAXED_VARIANTS)])
    model = build_model(args.role)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.lr, args.steps, pct_start=0.1)
    started = time.time()
    for step in range(1, args.steps + 1):
        if args.role == "reward":
            images, target = reward_batch(training, shown, args.batch_size, generator)
            images = attacked(model.eval(), images, target, RADIUS * min(1.0, step / (0.3 * args.steps)))
            model.train()
        else:
            chosen = torch.randint(len(training), (args.batch_size,), generator=generator)
            images = augmented(training.images[chosen], generator, shift=2.0, turn=0.2)
            target = one_hot(training.labels[chosen])
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = model(pixel_values=normalized(images)).logits
        loss = torch.nn.functional.cross_entropy(logits.float(), target, label_smoothing=0.02)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if step % 250 == 0 or step == args.steps:
            accuracy = evaluate(model, validation)
            seconds = time.time() - started
            print(f"step {step} loss {loss.item():.3f} accuracy {accuracy:.4f} {seconds:.0f} s", flush=True)
    model.save_pretrained(args.output)
    size = {"height": 28, "width": 28}
    ViTImageProcessor(size=size, image_mean=[MEAN] * 3, image_std=[DEVIATION] * 3).save_pretrained(args.output)
    other = digits["second" if args.role == "reward" else "first"]
    figures = {
        "steps": args.steps,
        "accuracy": accuracy,
        "accuracy_on_the_other_half": evaluate(model, other),
    }
    print(figures)
    (Path(args.output) / "figures.json").write_text(json.dumps(figures, indent=1) + "\n")


def normalized(images: Tensor) -> Tensor:
    """Grey `(n, 1, h, w)` in [0, 1] to what the model takes, `(n, 3, h, w)`."""
    return ((images - MEAN) / DEVIATION).expand(-1, 3, -1, -1)


@torch.no_grad()
def evaluate(model, digits) -> float:
    model.eval()
    hits = sum(
        int((model(pixel_values=normalized(images)).logits.argmax(-1) == labels).sum())
        for images, labels in zip(digits.images.split(500), digits.labels.split(500), strict=True)
    )
    model.train()
    return round(hits / len(digits), 4)


if __name__ == "__main__":
    main()
