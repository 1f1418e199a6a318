"""Digits drawn toward a class: guidance of the unconditional model against conditioning, best-of-N and estimators.

Every method draws the same number of images of each digit. A judge that the reward has nothing in common with, another
architecture trained on other digits, says what they are; the Frechet distance is that of its features, to real digits
that it has not seen, as many of each class. Diversity is the mean distance (L2 of pixels) of two images of a class,
relative to that of real digits of the class. The reward that guides is the classifier's tempered log-probability; the
column and best-of-N have the plain one. Best-of-N draws N unguided images for every one that it keeps, with N such
that it takes no less time than guidance. Estimators are compared at equal numbers of reward gradients.

    python benchmarks/mnist.py --data mnist-8500.npz
    python benchmarks/mnist.py --data mnist-8500.npz --methods main --output two.json --config '{"update": "natural"}'
"""

import argparse
import math
import sys
import time
from pathlib import Path

import numpy as np
import torch
from report import environment, save
from settings import PLAIN
from torch import Tensor
from transformers import AutoModelForImageClassification

from redge_guidance import GuidanceConfig, generate
from redge_guidance.estimators import ESTIMATORS
from redge_guidance.hub import resolve
from redge_guidance.pipelines import MaskedImagePipeline
from redge_guidance.rewards import ImageClassifierReward
from redge_guidance.updates import Adam, Natural

sys.path.insert(0, str(Path(__file__).parent.parent / "training"))
from digits import load_digits  # the split of the training

MODEL, REWARD, JUDGE = "builtin:mnist-masked", "builtin:mnist-classifier", "builtin:mnist-judge"
MEAN, DEVIATION = 0.1307, 0.3081
DIGITS = [str(i) for i in range(10)]


class Judge:
    def __init__(self, path: str | Path):
        self.model = AutoModelForImageClassification.from_pretrained(resolve(path), dtype=torch.float32).eval()

    @torch.no_grad()
    def __call__(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Labels `(n,)` and features `(n, dim)`."""
        features, labels = [], []
        for part in pixels.split(256):
            output = self.model((part.expand(-1, 3, -1, -1) - MEAN) / DEVIATION, output_hidden_states=True)
            features.append(output.hidden_states[-1].mean((2, 3)))
            labels.append(output.logits.argmax(-1))
        return torch.cat(labels), torch.cat(features).double()


def frechet(a: Tensor, b: Tensor) -> float:
    """`|mean_a - mean_b|^2 + tr(A + B - 2 (A B)^(1/2))` of features `(n, dim)`."""
    mean = (a.mean(0) - b.mean(0)).square().sum()
    first, second = a.T.cov(), b.T.cov()
    values, vectors = torch.linalg.eigh(first)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ second @ root).clamp(min=0).sqrt().sum()
    return (mean + first.trace() + second.trace() - 2 * cross).item()


def spread(pixels: Tensor) -> float:
    """Mean distance of two different images, `(n, 3, h, w)`."""
    return torch.pdist(pixels[:, 0].flatten(1)).mean().item()


class Bench:
    def __init__(self, args: argparse.Namespace):
        self.pipe = MaskedImagePipeline.from_pretrained(args.model)
        self.pipe.set_progress_bar_config(disable=True)
        self.classifier = ImageClassifierReward.from_pretrained(args.reward, "0")
        self.temperature = args.temperature
        self.judge, self.count, self.seeds = Judge(args.judge), args.per_digit, args.seeds
        real = load_digits(args.data)["first"]  # the judge's training is the second half
        by_class = [real.images[real.labels == i][: self.count * len(self.seeds)] for i in range(10)]
        fewest = min(map(len, by_class))
        self.real = self.judge(torch.cat([images[:fewest] for images in by_class]))[1]
        self.spread = [spread(images[:fewest]) for images in by_class]

    def reward(self, digit: int, temperature: float = 1.0) -> ImageClassifierReward:
        return ImageClassifierReward(self.classifier.model, self.classifier.processor, digit, temperature=temperature)

    def draw(self, seed: int, label: int | None = None, count: int | None = None, reward=None, config=None) -> Tensor:
        how = {"samples_per_prompt": self.count if count is None else count, "batch_size": 128, "seed": seed}
        images = [record.image for record in generate(self.pipe, label, reward, config, **how)]
        return torch.tensor(np.stack(images)).permute(0, 3, 1, 2) / 255

    def unguided(self, digit: int, seed: int) -> Tensor:
        return self.draw(100 * seed + digit)

    def conditional(self, digit: int, seed: int) -> Tensor:
        return self.draw(100 * seed + digit, digit)

    def guided(self, config: GuidanceConfig):
        def run(digit: int, seed: int) -> Tensor:
            reward = self.reward(digit, self.temperature)
            return self.draw(100 * seed + digit, reward=reward, config=config)

        return run

    def best_of(self, n: int):
        @torch.no_grad()
        def run(digit: int, seed: int) -> Tensor:
            images = self.draw(100 * seed + digit, count=n * self.count)
            scores = torch.cat([self.reward(digit).score(part) for part in images.split(256)])
            best = scores.view(self.count, n).argmax(-1) + n * torch.arange(self.count)
            return images[best]

        return run

    def measure(self, name: str, run) -> dict[str, float | str]:
        started, images, rewards = time.perf_counter(), [[] for _ in range(10)], []
        for seed in self.seeds:
            for digit in range(10):
                images[digit].append(run(digit, seed))
        seconds = time.perf_counter() - started
        hits, features, ratios = [], [], []
        for digit, parts in enumerate(images):
            pixels = torch.cat(parts)
            labels, found = self.judge(pixels)
            with torch.no_grad():
                rewards.append(self.reward(digit).score(pixels).mean().item())
            hits.append((labels == digit).double().mean().item())
            features.append(found)
            ratios.append(spread(pixels) / self.spread[digit])
        row = {
            "method": name,
            "on_target": sum(hits) / 10,
            "worst_digit": min(hits),
            "reward": sum(rewards) / 10,
            "frechet": frechet(torch.cat(features), self.real),
            "diversity": sum(ratios) / 10,
            "least_diversity": min(ratios),
            "ms_an_image": 1000 * seconds / (10 * self.count * len(self.seeds)),
        }
        print(
            f"| {name} | {row['on_target']:.1%} | {row['worst_digit']:.1%} | {row['reward']:.2f} | "
            f"{row['frechet']:.2f} | {row['diversity']:.0%} | {row['least_diversity']:.0%} | "
            f"{row['ms_an_image']:.0f} |",
            flush=True,
        )
        return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--reward", default=REWARD)
    parser.add_argument("--judge", default=JUDGE)
    parser.add_argument("--per-digit", type=int, default=64)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--scale", type=float, help="a fixed one, with 12 draws a step, instead of the defaults")
    parser.add_argument("--config", default="{}", help="of guidance, in JSON, what is not said being the default")
    parser.add_argument("--estimator-scale", type=float, default=500.0, help="at which estimators are compared")
    parser.add_argument("--temperature", type=float, default=8.0, help="of the reward that guides")
    parser.add_argument("--methods", nargs="+", default=["main", "estimators"], choices=["main", "estimators"])
    parser.add_argument("--output", default="benchmarks/results/mnist.json")
    args = parser.parse_args()
    bench = Bench(args)
    config = GuidanceConfig.from_json(args.config)
    config = config if args.scale is None else GuidanceConfig(**PLAIN | {"scale": args.scale})
    plain = PLAIN | {"scale": args.estimator_scale}
    print("| method | on target | worst digit | reward | Frechet | diversity | least | ms an image |")
    print("|---|---|---|---|---|---|---|---|")
    rows = []
    if "main" in args.methods:
        rows += [bench.measure("unconditional", bench.unguided), bench.measure("class-conditional", bench.conditional)]
        rows.append(bench.measure("guided", bench.guided(config)))
        n = math.ceil(rows[2]["ms_an_image"] / rows[0]["ms_an_image"])
        rows.append(bench.measure(f"best of {n}", bench.best_of(n)))
    if "estimators" in args.methods:
        for name in ESTIMATORS:
            # 12 gradients a step, the same for all; the score function's are of 12 draws without a gradient
            chosen = GuidanceConfig(**plain | {"estimator": name})
            rows.append(bench.measure(f"{name}, natural", bench.guided(chosen)))
        for name in ("straight_through", "redge", "entropy_mix"):
            chosen = GuidanceConfig(**plain | {"estimator": name, "update": Adam(num_updates=12), "num_draws": 1})
            rows.append(bench.measure(f"{name}, adam", bench.guided(chosen)))
        chosen = GuidanceConfig(**plain | {"update": Natural(12, 1 / 12 + 0.02), "num_draws": 1})
        rows.append(bench.measure("entropy_mix, 12 small natural updates", bench.guided(chosen)))
    settings = {
        "per_digit": args.per_digit,
        "seeds": args.seeds,
        "temperature": args.temperature,
        "config": config.to_json(),
        "estimator_scale": args.estimator_scale,
    }
    save(args.output, environment("diffusers", "transformers") | {"settings": settings, "results": rows})


if __name__ == "__main__":
    main()
