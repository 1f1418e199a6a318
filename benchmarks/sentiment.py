"""Guidance toward a sentiment on the embedded checkpoints: what it buys, what it costs, against best-of-N.

Every method writes the same number of texts from the same seeds, in one process. VADER never sees the optimisation,
nor does the grammar judge, `link-parser` of Debian's package link-grammar. Times are those of this process on all
processors and by the clock on the wall, each relative to the unguided run of the same seed. Best-of-N draws N texts a
place from the bare sampler and keeps the one that the classifier likes best; N is the smallest number whose measured
time by the wall is no less than that of guidance at its defaults.

    python benchmarks/sentiment.py                        # the table of the README
    python benchmarks/sentiment.py --methods all          # estimators, update rules, supports, draws
    python benchmarks/sentiment.py --model builtin:tatoeba-uniform --output benchmarks/results/sentiment_uniform.json
"""

import argparse
import json
import math
import statistics

import torch
from report import environment, save
from settings import PLAIN

from redge_guidance import GuidanceConfig, generate
from redge_guidance.estimators import ReDGE
from redge_guidance.evaluate.costs import Clock
from redge_guidance.evaluate.judges import Grammar, Vader, distinct, nats_a_token
from redge_guidance.evaluate.statistics import interval
from redge_guidance.pipelines import TextPipeline
from redge_guidance.rewards import TextClassifierReward
from redge_guidance.updates import Adam, Natural

METHODS = {
    "default": GuidanceConfig(),
    "scale 2, 12 draws": GuidanceConfig(**PLAIN),
    "scale 0.9": GuidanceConfig(scale=0.9),
    "scale 2.5": GuidanceConfig(scale=2.5),
    "scale 3.6": GuidanceConfig(scale=3.6),
    "soft, scale 5": GuidanceConfig(scale=5.0, estimator="soft"),
    **{
        f"soft, scale 5, max tilt {limit}": GuidanceConfig(scale=5.0, estimator="soft", max_tilt=limit)
        for limit in (5, 6, 7)
    },
    "kl budget 0.3": GuidanceConfig(kl_budget=0.3),
    "full vocabulary": GuidanceConfig(support=None),
    "support 32": GuidanceConfig(support=32),
    "4 draws": GuidanceConfig(num_draws=4),
    "every step": GuidanceConfig(every=1),
    "every third step": GuidanceConfig(every=3),
    "no warm start": GuidanceConfig(warm_start=0.0),
    "linear": GuidanceConfig(schedule="linear"),
    "early": GuidanceConfig(schedule="early"),
    "1 full step": GuidanceConfig(**PLAIN | {"scale": 1.25, "update": Natural(1, 1.0)}),
    **{
        name: GuidanceConfig(estimator=name)
        for name in ("straight_through", "redge", "reinmax", "gumbel_softmax", "soft")
    },
    "redge, soft samples": GuidanceConfig(estimator=ReDGE(hard=False)),
    "adam x 10, 1 draw": GuidanceConfig(**PLAIN | {"update": Adam(), "num_draws": 1}),
    "adam x 10, 1 draw, redge": GuidanceConfig(**PLAIN | {"update": Adam(), "num_draws": 1, "estimator": "redge"}),
    "reinforce_loo, 32 draws": GuidanceConfig(estimator="reinforce_loo", num_draws=32),
}
BATCH = 64


SHARES = {"vader": "VADER", "classifier": "classifier", "grammar": "grammatical", "distinct": "distinct"}
Rows = dict[str, list[dict[str, float]]]  # of every method, one a seed


class Bench:
    def __init__(self, model: str, label: str, samples: int):
        self.pipe = TextPipeline.from_pretrained(model)
        self.pipe.set_progress_bar_config(disable=True)
        self.reward = TextClassifierReward.from_pretrained("builtin:sentiment", label=label)
        self.label, self.samples = label, samples
        self.vader, self.grammar = Vader(), Grammar()

    def warm_up(self) -> None:
        """What the first calls alone pay for."""
        for reward in (None, self.reward):
            list(generate(self.pipe, "", reward, samples_per_prompt=4))

    def sample(self, seed: int, config: GuidanceConfig | None = None) -> tuple[list[str], Clock]:
        """Texts and the time they took."""
        reward = None if config is None else self.reward
        with Clock() as clock:
            how = {"samples_per_prompt": self.samples, "batch_size": BATCH, "seed": seed}
            texts = [str(record.text) for record in generate(self.pipe, "", reward, config, **how)]
        return texts, clock

    def best_of(self, seed: int, seconds: float) -> tuple[list[str], Clock, int]:
        """The best of N texts by the classifier, the time and N, which grows until `seconds` by the wall are spent."""
        clock, n = Clock(), 0
        best, best_reward = [""] * self.samples, torch.full((self.samples,), -math.inf)
        while clock.wall < seconds:
            with clock:
                texts, _ = self.sample(1000 * (seed + 1) + n)
                rewards = self.reward.score(texts)
            best = [new if r > b else old for new, old, r, b in zip(texts, best, rewards, best_reward, strict=True)]
            best_reward = torch.maximum(best_reward, rewards)
            n += 1
        return best, clock, n

    def judge(self, texts: list[str]) -> dict[str, float]:
        tokens = sum(len(ids) + 1 for ids in self.pipe.tokenizer(texts, add_special_tokens=False).input_ids)
        return {
            "vader": statistics.mean(self.vader(texts, self.label)),
            "classifier": statistics.mean(found == self.label for found in self.reward.predict(texts)),
            "nll_per_token": nats_a_token(self.pipe, texts),
            "grammar": statistics.mean(self.grammar(texts)),
            "tokens": tokens / len(texts),
            "distinct": distinct(texts),
        }


def run(model: str, label: str, seeds: list[int], samples: int, methods: list[str]) -> Rows:
    bench = Bench(model, label, samples)
    bench.warm_up()
    rows: Rows = {}

    def record(name: str, seed: int, texts: list[str], clock: Clock, base: Clock, **more: float) -> None:
        row = {"seed": seed} | bench.judge(texts) | {"seconds": clock.wall, "process_seconds": clock.process}
        row |= {"times_unguided": clock.wall / base.wall, "process_times_unguided": clock.process / base.process}
        rows.setdefault(name, []).append(row | more | {"examples": texts[:8]})
        print(f"{label:9}{name:26}" + "".join(f"{k} {v:.3g}  " for k, v in (row | more).items()), flush=True)

    for seed in seeds:
        bare, base = bench.sample(seed)
        record("unguided", seed, bare, base, base)
        for name in methods:
            texts, clock = bench.sample(seed, METHODS[name])
            record(name, seed, texts, clock, base)
            if name == "default":
                best, spent, n = bench.best_of(seed, clock.wall)
                record("best of N, same time", seed, best, spent, base, n=n)
    return rows


def table(results: dict[str, Rows], samples: int) -> str:
    """Markdown: of every seed and, with 95 % intervals of the shares of all texts, of all."""
    lines = [
        f"| toward | method | seed | {' | '.join(SHARES.values())} | nats/token | process time | wall-clock |",
        "|---" * (6 + len(SHARES)) + "|",
    ]
    for label, rows in results.items():
        for name, runs in rows.items():
            mean = {key: statistics.mean(run[key] for run in runs) for key in runs[0] if key != "examples"}
            for kind in ("seconds", "process_seconds"):
                times, base = (statistics.mean(run[kind] for run in of) for of in (runs, rows["unguided"]))
                mean[kind.replace("seconds", "times_unguided")] = times / base
            for row in [*(runs if len(runs) > 1 else ()), mean]:
                full = name if "n" not in row else f"best of {row['n']:.0f}, same time"
                seed, shares = (f"{row['seed']}", [f"{row[key]:.1%}" for key in SHARES])
                if row is mean:
                    ends = [interval(row[key], samples * len(runs)) for key in SHARES]
                    seed = "all" if len(runs) > 1 else f"{runs[0]['seed']}"
                    shares = [f"{s} ({100 * a:.0f} to {100 * b:.0f})" for s, (a, b) in zip(shares, ends, strict=True)]
                lines.append(
                    f"| {label} | {full} | {seed} | {' | '.join(shares)} | {row['nll_per_token']:.2f} | "
                    f"{row['process_times_unguided']:.2f}x | {row['times_unguided']:.2f}x |"
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
    print(table(results, args.samples))


if __name__ == "__main__":
    main()
