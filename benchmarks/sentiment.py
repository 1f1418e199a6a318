"""Guidance toward a sentiment on the embedded checkpoints: what it buys, what it costs, against best-of-N.

Every method writes the same number of texts from the same seeds, in one process. VADER never sees the optimisation.
Best-of-N draws N texts a place from the bare sampler and keeps the one that the classifier likes best; N is the
smallest number whose measured time is no less than that of guidance at its defaults.

    python benchmarks/sentiment.py                        # the table of the README
    python benchmarks/sentiment.py --methods all          # estimators, update rules, supports, draws
    python benchmarks/sentiment.py --model builtin:tatoeba-uniform --output benchmarks/results/sentiment_uniform.json
"""

import argparse
import json
import math
import statistics
import time

import torch
from report import environment, save
from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

from redge_guidance import GuidanceConfig, generate
from redge_guidance.pipelines import TextPipeline
from redge_guidance.rewards import TextClassifierReward
from redge_guidance.updates import Adam, Natural

METHODS = {
    "default": GuidanceConfig(),
    "scale 0.9": GuidanceConfig(scale=0.9),
    "scale 2.5": GuidanceConfig(scale=2.5),
    "scale 3.6": GuidanceConfig(scale=3.6),
    "kl budget 0.3": GuidanceConfig(kl_budget=0.3),
    "full vocabulary": GuidanceConfig(support=None),
    "support 32": GuidanceConfig(support=32),
    "1 draw": GuidanceConfig(num_draws=1),
    "1 full step": GuidanceConfig(scale=1.25, update=Natural(1, 1.0)),
    **{
        name: GuidanceConfig(estimator=name)
        for name in ("straight_through", "redge", "reinmax", "gumbel_softmax", "soft")
    },
    "adam x 10, 1 draw": GuidanceConfig(update=Adam(), num_draws=1),
    "adam x 10, 1 draw, redge": GuidanceConfig(estimator="redge", update=Adam(), num_draws=1),
    "reinforce_loo, 32 draws": GuidanceConfig(estimator="reinforce_loo", num_draws=32),
}
BATCH = 64


class Bench:
    def __init__(self, model: str, label: str, samples: int):
        self.pipe = TextPipeline.from_pretrained(model)
        self.pipe.set_progress_bar_config(disable=True)
        self.reward = TextClassifierReward.from_pretrained("builtin:sentiment", label=label)
        self.label, self.samples = label, samples
        self.analyzer = SentimentIntensityAnalyzer()

    def sample(self, seed: int, config: GuidanceConfig | None = None) -> tuple[list[str], float]:
        """Texts and the seconds they took."""
        started, reward = time.perf_counter(), None if config is None else self.reward
        records = generate(self.pipe, "", reward, config, samples_per_prompt=self.samples, batch_size=BATCH, seed=seed)
        return [record.text for record in records], time.perf_counter() - started

    def best_of(self, seed: int, seconds: float) -> tuple[list[str], float, int]:
        """The best of N texts by the classifier, N and the time; N grows until `seconds` are spent."""
        started, n = time.perf_counter(), 0
        best, best_reward = [""] * self.samples, torch.full((self.samples,), -math.inf)
        while time.perf_counter() - started < seconds:
            texts, _ = self.sample(1000 * (seed + 1) + n)
            rewards = self.reward.score(texts)
            best = [new if r > b else old for new, old, r, b in zip(texts, best, rewards, best_reward, strict=True)]
            best_reward = torch.maximum(best_reward, rewards)
            n += 1
        return best, time.perf_counter() - started, n

    def judge(self, texts: list[str]) -> dict[str, float]:
        sign = {"negative": -1, "positive": 1}[self.label]
        compounds = [self.analyzer.polarity_scores(text)["compound"] for text in texts]
        tokens = sum(len(ids) + 1 for ids in self.pipe.tokenizer(texts, add_special_tokens=False).input_ids)
        return {
            "vader": statistics.mean(sign * c > 0.2 for c in compounds),
            "classifier": statistics.mean(found == self.label for found in self.reward.predict(texts)),
            "nll_per_token": self.pipe.nll(texts, num_corruptions=8).sum().item() / tokens,
            "tokens": tokens / len(texts),
            "distinct": len(set(texts)) / len(texts),
        }


def run(
    model: str, label: str, seeds: list[int], samples: int, methods: list[str]
) -> dict[str, list[dict[str, float]]]:
    bench = Bench(model, label, samples)
    bench.sample(10**6)  # warm up
    rows: dict[str, list[dict[str, float]]] = {}

    def record(name: str, texts: list[str], seconds: float, base: float, **more: float) -> None:
        row = bench.judge(texts) | {"seconds": seconds, "times_unguided": seconds / base} | more
        rows.setdefault(name, []).append(row | {"examples": texts[:8]})
        print(f"{label:9}{name:26}" + "".join(f"{k} {v:.3g}  " for k, v in row.items()), flush=True)

    for seed in seeds:
        bare, base = bench.sample(seed)
        record("unguided", bare, base, base)
        for name in methods:
            texts, seconds = bench.sample(seed, METHODS[name])
            record(name, texts, seconds, base)
            if name == "default":
                best, spent, n = bench.best_of(seed, seconds)
                record("best of N, same time", best, spent, base, n=n)
    return rows


def table(results: dict[str, dict[str, list[dict[str, float]]]]) -> str:
    """Markdown: means over the seeds."""
    lines = [
        "| toward | method | VADER | classifier | nats/token | distinct | time |",
        "|---|---|---|---|---|---|---|",
    ]
    for label, rows in results.items():
        for name, runs in rows.items():
            mean = {key: statistics.mean(run[key] for run in runs) for key in runs[0] if key != "examples"}
            full = name if "n" not in mean else f"best of {mean['n']:.0f}, same time"
            lines.append(
                f"| {label} | {full} | {mean['vader']:.1%} | {mean['classifier']:.1%} | {mean['nll_per_token']:.2f} | "
                f"{mean['distinct']:.1%} | {mean['times_unguided']:.1f}x |"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="builtin:tatoeba-masked")
    parser.add_argument("--samples", type=int, default=256)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--labels", nargs="+", default=["negative", "positive"])
    parser.add_argument("--methods", nargs="+", default=["default"], help='names, or "all"')
    parser.add_argument("--output", default="benchmarks/results/sentiment.json")
    args = parser.parse_args()
    methods = list(METHODS) if args.methods == ["all"] else args.methods
    results = {label: run(args.model, label, args.seeds, args.samples, methods) for label in args.labels}
    settings = {"model": args.model, "samples": args.samples, "seeds": args.seeds}
    settings["methods"] = {name: json.loads(METHODS[name].to_json()) for name in methods}
    save(args.output, environment("transformers", "diffusers") | {"settings": settings, "results": results})
    print(table(results))


if __name__ == "__main__":
    main()
