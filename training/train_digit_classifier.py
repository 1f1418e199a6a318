"""Train a classifier of digits: the reward, a ConvNeXT on one half of the digits, or its judge, a ResNet on the other.

The judge never sees a digit that the reward has seen; its features also serve Frechet distances.

Guidance lives on the reward's gradient, and a plain classifier has one that leads to images it likes and nobody else
does. The reward is therefore trained on the worst images within a small L2 distance of real ones, found by projected
gradient descent (arXiv 1706.06083), which makes the gradient point to what a digit looks like; and on mixtures of two
digits with mixed labels, half of the time.

    python training/train_digit_classifier.py --data mnist-8500.npz --role reward --output digit-classifier
"""

import argparse
import json
import time
from pathlib import Path

import torch
from digits import augmented, load_digits
from transformers import (
    ConvNextConfig,
    ConvNextForImageClassification,
    ResNetConfig,
    ResNetForImageClassification,
    ViTImageProcessor,
)

MEAN, DEVIATION = 0.1307, 0.3081
RADIUS, ATTACK_STEPS = 2.0, 4
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


def attacked(model, images: torch.Tensor, target: torch.Tensor, radius: float) -> torch.Tensor:
    """Images that the model does worst on within an L2 distance of `radius` of these, by gradient ascent."""
    moved = images.clone()
    for _ in range(ATTACK_STEPS):
        moved.requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = model(pixel_values=normalized(moved)).logits
        loss = torch.nn.functional.cross_entropy(logits.float(), target)
        (grad,) = torch.autograd.grad(loss, moved)
        step = grad / grad.flatten(1).norm(dim=1).clamp(min=1e-12).view(-1, 1, 1, 1)
        with torch.no_grad():
            offset = moved + 0.5 * radius * step - images
            offset = offset * (radius / offset.flatten(1).norm(dim=1).clamp(min=radius)).view(-1, 1, 1, 1)
            moved = (images + offset).clamp(0, 1)
    return moved.detach()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--role", required=True, choices=["reward", "judge"])
    parser.add_argument("--output", required=True)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--lr", type=float, default=3e-3)
    args = parser.parse_args()
    torch.manual_seed(0 if args.role == "reward" else 1)
    generator = torch.Generator().manual_seed(2)
    digits = load_digits(args.data)
    training, validation = digits["first" if args.role == "reward" else "second"], digits["validation"]
    model = build_model(args.role)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.lr, args.steps, pct_start=0.1)
    started = time.time()
    for step in range(1, args.steps + 1):
        chosen = torch.randint(len(training), (args.batch_size,), generator=generator)
        batch = training[chosen]
        images = augmented(batch.images, generator, shift=2.0, turn=0.2)
        target = torch.nn.functional.one_hot(batch.labels, 10).float()
        if args.role == "reward":
            share = torch.rand(len(images), 1, generator=generator) * (torch.rand(len(images), 1) < 0.5)
            other = torch.randperm(len(images), generator=generator)
            images = torch.lerp(images, images[other], share[..., None, None])
            target = torch.lerp(target, target[other], share)
            radius = RADIUS * min(1.0, step / (0.3 * args.steps))
            images = attacked(model.eval(), images, target, radius)
            model.train()
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


def normalized(images: torch.Tensor) -> torch.Tensor:
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
