"""Train a classifier of digits: the reward, a ConvNeXT on one half of the digits, or its judge, a ResNet on the other.

The judge never sees a digit that the reward has seen; its features also serve Frechet distances.

Guidance lives on the reward's gradient, and a plain classifier has one that leads to images it likes and nobody else
does. The reward is therefore trained on the worst images within a small L2 distance, found by projected gradient
descent (arXiv 1706.06083), which makes the gradient point to what a digit looks like. The distance is a share of the
image's own norm, and strokes are made thicker and thinner, since otherwise a bolder digit is a safer one, and guidance
draws bold digits. Half of the images are what guidance will show: digits with some of their tokens hidden and predicted
by the generator, decoded; the others are digits, half of these mixed with another and labelled so.

What guidance draws with that reward still differs from digits, by stray dots for one. In each of the rounds that follow
it draws digits with the reward as it is, and the reward learns to tell these, as an eleventh class, from real digits
that went through the same tokens: the ratio of their densities becomes part of its gradient (as in discriminator
guidance, arXiv 2211.17091).

    python training/train_digit_classifier.py --data mnist-8500.npz --role reward --generator builtin:mnist-masked \
        --output digit-classifier
"""

import argparse
import copy
import json
import time
from collections.abc import Callable
from functools import partial
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

from redge_guidance import GuidanceConfig, guide
from redge_guidance.estimators import ESTIMATORS
from redge_guidance.pipelines import MaskedImagePipeline
from redge_guidance.pipelines.image.vq_tokens import codebook_of, to_pixels, to_tokens
from redge_guidance.rewards import ImageClassifierReward

MEAN, DEVIATION = 0.1307, 0.3081
RADIUS, SMALL_RADIUS, ATTACK_STEPS = 0.22, 0.03, 4  # radii are shares of the image's norm
RELAXED_VARIANTS = 4
NONE = 10  # the reward's class of what guidance draws
DRAWN_PER_DIGIT, DRAWN_TEMPERATURE, DRAWN_SCALE = 128, 8.0, 400.0


def build_model(role: str):
    labels = dict(enumerate([str(i) for i in range(10)] + ["none"] * (role == "reward")))
    names = {"num_labels": len(labels), "id2label": labels, "label2id": {name: i for i, name in labels.items()}}
    if role == "reward":
        config = ConvNextConfig(
            image_size=28, patch_size=2, num_stages=3, hidden_sizes=[32, 64, 96], depths=[2, 2, 1], **names
        )
        return ConvNextForImageClassification(config)
    config = ResNetConfig(embedding_size=32, hidden_sizes=[32, 64, 64], depths=[1, 2, 1], layer_type="basic", **names)
    return ResNetForImageClassification(config)


def drawn(pipe: MaskedImagePipeline, model, seed: int) -> Digits:
    """Images that guidance draws with `model` as its reward, `DRAWN_PER_DIGIT` toward each digit."""
    model = copy.deepcopy(model)  # a reward freezes its model
    config = GuidanceConfig(DRAWN_SCALE, "soft", num_draws=1)
    parts = []
    for digit in range(10):
        reward = ImageClassifierReward(model, processor(), digit, temperature=DRAWN_TEMPERATURE)
        generator = torch.Generator().manual_seed(1000 * (seed + 1) + digit)
        with guide(pipe, reward, config, seed=seed):
            parts.append(
                pipe(num_images_per_prompt=DRAWN_PER_DIGIT, generator=generator, output_type="pt").images[:, :1]
            )
    return Digits(torch.cat(parts), torch.arange(10).repeat_interleave(DRAWN_PER_DIGIT))


@torch.no_grad()
def relaxed(pipe: MaskedImagePipeline, digits: Digits, generator: torch.Generator, few_hidden: bool = False) -> Tensor:
    """Digits as guidance shows them `(n, 1, h, w)`: from 1 to all of their tokens hidden, predicted, drawn, decoded.

    What is drawn from is the unconditional prediction, or a geometric mean with the conditional one, half of the time,
    as guidance moves the prediction toward the class.
    """
    mask, classes = pipe.config.mask_token_id, pipe.transformer.config.num_classes
    do_normalize = pipe.config.do_normalize
    parts = []
    for images, labels in zip(digits.images.split(125), digits.labels.split(125), strict=True):
        moved = augmented(images, generator, shift=1.5, turn=0.15)
        ids = to_tokens(pipe.vqvae, moved.expand(-1, 3, -1, -1), do_normalize)
        hidden = hidden_tokens(*ids.shape, generator, few_hidden)
        masked = ids.masked_fill(hidden, mask)
        free = pipe.transformer(masked, torch.full_like(labels, classes)).log_softmax(-1)
        given = pipe.transformer(masked, labels).log_softmax(-1)
        share = torch.rand(2, len(ids), 1, 1, generator=generator)
        logits = torch.lerp(free, given, 0.5 * share[0] * (share[1] < 0.5))
        name = ("soft", "entropy_mix", "straight_through")[int(torch.randint(3, (1,), generator=generator))]
        sample = ESTIMATORS[name]()(logits, generator=generator)
        known = torch.nn.functional.one_hot(ids, logits.shape[-1]).float()
        weights = torch.where(hidden[..., None], sample, known)
        parts.append(to_pixels(pipe.vqvae, weights @ codebook_of(pipe.vqvae), do_normalize)[:, :1])
    return torch.cat(parts)


def real_batch(digits: Digits, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Digits moved, turned, thicker and thinner, half of them mixed with another, and probabilities `(size, 11)`."""
    chosen = torch.randint(len(digits), (size,), generator=generator)
    images = thickened(augmented(digits.images[chosen], generator, shift=2.0, turn=0.2), generator)
    target = one_hot(digits.labels[chosen], NONE + 1)
    share = torch.rand(2, size, 1, generator=generator)
    share = share[0] * (share[1] < 0.5)
    other = torch.randperm(size, generator=generator)
    return torch.lerp(images, images[other], share[..., None, None]), torch.lerp(target, target[other], share)


def shown_batch(shown: Digits, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Some of `shown`, all moved by up to 2 pixels, and probabilities `(size, 11)`."""
    chosen = torch.randint(len(shown), (size,), generator=generator)
    move = torch.randint(-2, 3, (2,), generator=generator).tolist()
    return shown.images[chosen].roll(move, (2, 3)), one_hot(shown.labels[chosen], NONE + 1)


def one_hot(labels: Tensor, classes: int) -> Tensor:
    return torch.nn.functional.one_hot(labels, classes).float()


def attacked(model, images: Tensor, target: Tensor, radius: Tensor) -> Tensor:
    """Images that the model does worst on within `radius` `(n,)` times their L2 norm, by gradient ascent."""
    model.eval()
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


def train(model, batch: Callable[[float], tuple[Tensor, Tensor]], validation: Digits, steps: int, lr: float) -> None:
    """Minimise the cross entropy of `batch(share of the steps done)`, images and probabilities."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, steps, pct_start=0.1)
    started = time.time()
    for step in range(1, steps + 1):
        images, target = batch(step / steps)
        model.train()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = model(pixel_values=normalized(images)).logits
        loss = torch.nn.functional.cross_entropy(logits.float(), target, label_smoothing=0.02)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if step % 250 == 0 or step == steps:
            accuracy = evaluate(model, validation)
            seconds = time.time() - started
            print(f"step {step} loss {loss.item():.3f} accuracy {accuracy:.4f} {seconds:.0f} s", flush=True)


def train_judge(model, digits: dict[str, Digits], args: argparse.Namespace, generator: torch.Generator) -> None:
    training = digits["second"]

    def batch(_: float) -> tuple[Tensor, Tensor]:
        chosen = torch.randint(len(training), (args.batch_size,), generator=generator)
        images = augmented(training.images[chosen], generator, shift=2.0, turn=0.2)
        return images, one_hot(training.labels[chosen], 10)

    train(model, batch, digits["validation"], args.steps, args.lr)


def train_reward(model, digits: dict[str, Digits], args: argparse.Namespace, generator: torch.Generator) -> None:
    training, half, quarter = digits["first"], args.batch_size // 2, args.batch_size // 4
    pipe = MaskedImagePipeline.from_pretrained(args.generator)
    pipe.set_progress_bar_config(disable=True)

    def shown_of(digits: Digits, few_hidden: bool, thicker: bool = False, label: int | None = None) -> Digits:
        parts = []
        for _ in range(RELAXED_VARIANTS):
            images = thickened(digits.images, generator) if thicker else digits.images
            parts.append(relaxed(pipe, Digits(images, digits.labels), generator, few_hidden))
        labels = digits.labels if label is None else torch.full_like(digits.labels, label)
        return Digits(torch.cat(parts), labels.repeat(RELAXED_VARIANTS))

    def first_batch(shown: Digits, done: float) -> tuple[Tensor, Tensor]:
        parts = [real_batch(training, half, generator), shown_batch(shown, half, generator)]
        images, target = (torch.cat(part) for part in zip(*parts, strict=True))
        return attacked(model, images, target, torch.full((2 * half,), RADIUS * min(1.0, done / 0.3))), target

    def later_batch(shown: Digits, others: Digits, _: float) -> tuple[Tensor, Tensor]:
        parts = [real_batch(training, half, generator)]
        parts += [shown_batch(shown, quarter, generator), shown_batch(others, quarter, generator)]
        images, target = (torch.cat(part) for part in zip(*parts, strict=True))
        small = SMALL_RADIUS * torch.rand(2 * quarter, generator=generator)
        return attacked(model, images, target, torch.cat([torch.full((half,), RADIUS), small])), target

    shown = shown_of(training, few_hidden=False, thicker=True)
    train(model, partial(first_batch, shown), digits["validation"], args.steps, args.lr)
    shown, seen = shown_of(training, few_hidden=True), []
    for i in range(args.rounds):
        seen.append(shown_of(drawn(pipe, model, seed=i), few_hidden=True, label=NONE))
        others = Digits(torch.cat([part.images for part in seen]), torch.cat([part.labels for part in seen]))
        train(model, partial(later_batch, shown, others), digits["validation"], args.steps_a_round, args.lr / 3)


def processor() -> ViTImageProcessor:
    size = {"height": 28, "width": 28}
    return ViTImageProcessor(size=size, image_mean=[MEAN] * 3, image_std=[DEVIATION] * 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--role", required=True, choices=["reward", "judge"])
    parser.add_argument("--output", required=True)
    parser.add_argument("--generator", help="pipeline that draws digits; needed for the reward")
    parser.add_argument("--steps", type=int, help="2,200 for the reward, 1,500 for the judge, unless given")
    parser.add_argument("--rounds", type=int, default=3, help="of drawing digits and telling them from real ones")
    parser.add_argument("--steps-a-round", type=int, default=1000)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--lr", type=float, default=3e-3)
    args = parser.parse_args()
    if args.role == "reward" and args.generator is None:
        parser.error("--role reward needs --generator")
    if args.steps is None:
        args.steps = 2200 if args.role == "reward" else 1500
    torch.manual_seed(0 if args.role == "reward" else 1)
    digits = load_digits(args.data)
    model = build_model(args.role)
    run = train_reward if args.role == "reward" else train_judge
    run(model, digits, args, torch.Generator().manual_seed(2))
    model.save_pretrained(args.output)
    processor().save_pretrained(args.output)
    figures = {
        "steps": args.steps,
        "accuracy": evaluate(model, digits["validation"]),
        "accuracy_on_the_other_half": evaluate(model, digits["second" if args.role == "reward" else "first"]),
    }
    if args.role == "reward":
        figures |= {"rounds": args.rounds, "steps_a_round": args.steps_a_round}
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
    return round(hits / len(digits), 4)


if __name__ == "__main__":
    main()
