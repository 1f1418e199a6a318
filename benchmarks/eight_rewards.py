"""One default against the best scale tuned by hand, for eight rewards and a sum, on the embedded checkpoints.

`--tune` tries scales on seeds of its own. The best one is the smallest whose outcome, as judged on the finished
samples, is at most 2 % of the way from unguided to the best of the sweep below that best. `--compare` has
`GuidanceConfig()` beside `GuidanceConfig(scale=best)` on other seeds; a black box, which has no gradient, is given 32
draws where it is tuned by hand. Both have the same samples, prompts and seeds, one after the other in this process.

ratio: (default - unguided) / (best - unguided) of the outcome, 0 is unguided, 1 is the best scale, with the 95 %
interval of a bootstrap over samples. nats: the model's own likelihood bound by token. Times are of this process on all
processors, and by the clock on the wall. reported: share of the samples that `handle.finished` says have reached their
target; held: of these, the share that has it by `reward.score` of what the pipeline returned. guessed: share of the
sequences whose last guided step expected to reach it (`SequenceFigures.reached`), which is in the file alone.

    python benchmarks/eight_rewards.py --tune       # writes benchmarks/results/eight_rewards_tune.json
    python benchmarks/eight_rewards.py --compare    # reads it
    python benchmarks/eight_rewards.py --compare --rewards words digits --samples 32
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from report import environment, save
from reward_cases import Case, Goal, cases

from redge_guidance import GuidanceConfig, guide
from redge_guidance.evaluate.costs import Clock
from redge_guidance.evaluate.judges import Grammar, distinct, image_nats_a_token, nats_a_token
from redge_guidance.evaluate.statistics import bootstrap
from redge_guidance.form import automata_of
from redge_guidance.pipelines import MaskedImagePipeline, TextPipeline
from redge_guidance.reward import RewardSum
from redge_guidance.terms import terms_of

BATCH, NEAR = 64, 0.02
TUNED, COMPARED = "benchmarks/results/eight_rewards_tune.json", "benchmarks/results/eight_rewards.json"
Row = dict[str, Any]


class Said(NamedTuple):
    """Of one sample: the target, whether the finished sample has it, and whether the last guided step expected so."""

    target: float
    reached: bool | None
    guessed: bool | None


class Bench:
    """Draws samples of a case and judges them."""

    def __init__(self, case: Case, samples: int, model: str, digits: str):
        kind = MaskedImagePipeline if case.images else TextPipeline
        self.pipe = kind.from_pretrained(digits if case.images else model)
        self.pipe.set_progress_bar_config(disable=True)
        self.case, self.goals = case, case.goals()[:samples]
        self.counts = [len(range(k, samples, len(self.goals))) for k in range(len(self.goals))]  # samples of each
        self.grammar = None if case.images else Grammar()
        for config in (None, GuidanceConfig()):  # what the first calls alone pay for
            self._draw(self.goals[0], [torch.Generator().manual_seed(0)], config, 0)

    def __call__(self, seed: int, config: GuidanceConfig | None = None) -> Row:
        """The figures of one run, the outcome of every sample among them."""
        clock, found, figures = Clock(), [], []
        for number, (goal, count) in enumerate(zip(self.goals, self.counts, strict=True)):
            seeds = [1_000_003 * seed + 10_007 * number + k for k in range(count)]
            for first in range(0, count, BATCH):
                generators = [torch.Generator().manual_seed(one) for one in seeds[first : first + BATCH]]
                with clock:
                    output, of_sequences = self._draw(goal, generators, config, seed)
                found.append((goal, output))
                figures.append(of_sequences)
        return self._judged(found, figures) | {"process_seconds": clock.process, "seconds": clock.wall}

    def _draw(
        self, goal: Goal, generators: list[torch.Generator], config: GuidanceConfig | None, seed: int
    ) -> tuple[Any, list[Said]]:
        """The pipeline's output, and what the handle says of every sample of it; nothing where there is no target."""
        how: Row = {"num_images_per_prompt": len(generators), "output_type": "pt"}
        how = how if self.case.images else {"prompt": [""] * len(generators)}
        if config is None:
            return self.pipe(**how, generator=generators), []
        with guide(self.pipe, goal.reward, config, seed=seed) as handle:
            output = self.pipe(**how, generator=generators)
        target = handle.trace.target
        if target is None:
            return output, []
        guesses: dict[int, bool] = {}
        for step in handle.trace:
            guesses |= {row: one.reached for row, one in enumerate(step.sequences) if one.reached is not None}
        known = handle.finished or (None,) * len(generators)
        return output, [
            Said(target, None if one is None else one.target_reached, guesses.get(row)) for row, one in enumerate(known)
        ]

    def _judged(self, found: list[tuple[Goal, Any]], figures: list[list[Said]]) -> Row:
        samples = [(goal, output.images if self.case.images else output.texts) for goal, output in found]
        outcomes = [float(value) for goal, some in samples for value in goal.judge(some)]
        rewards = [value for goal, some in samples for value in goal.reward.score(some).tolist()]
        reached = [yes for goal, some in samples for yes in goal.reward.reached(some) or []]
        row: Row = {"outcome": statistics.mean(outcomes), "reward": statistics.mean(rewards)}
        row["reached"] = statistics.mean(reached) if reached else None
        if self.case.images:
            row["nats_a_token"] = image_nats_a_token(self.pipe, torch.cat([output.tokens for _, output in found]))
        else:
            texts = [text for _, some in samples for text in some]
            row["nats_a_token"], row["distinct"] = nats_a_token(self.pipe, texts), distinct(texts)
            row["grammar"] = statistics.mean(self.grammar(texts))
            row["examples"] = texts[:: max(1, len(texts) // 8)]
        return row | told_and_true(samples, figures) | {"outcomes": outcomes}


def told_and_true(samples: list[tuple[Goal, Any]], figures: list[list[Said]]) -> Row:
    """How many samples the handle says have their target, how many of these have it, and how many steps guessed so.

    {} where nothing has a target.
    """
    row = {"said": 0, "told": 0, "true": 0, "judged": 0, "guessed": 0}
    for (goal, some), of_samples in zip(samples, figures, strict=True):
        rewards = with_a_target(goal.reward).score(some).tolist() if of_samples else []
        for one, reward in zip(of_samples, rewards, strict=True):
            row["said"] += one.reached is not None
            row["guessed"] += bool(one.guessed)
            if one.reached:
                row["told"] += 1
                row["judged"] += 1
                row["true"] += reward >= one.target - 1e-4 * max(1.0, abs(one.target))
    return row if row["said"] else {}


def with_a_target(reward: Any) -> Any:
    """A reward without its terms that are automata, which are followed exactly and have no target."""
    return RewardSum([term for term in terms_of(reward) if term.weight != 0 and not automata_of(term)])


def tune(bench: Bench, scales: list[float], seeds: list[int]) -> Row:
    """Figures of every scale, means over the seeds, and the best of them."""
    runs: dict[str, list[Row]] = {}
    for seed in seeds:
        for scale in [0.0, *scales]:
            config = None if scale == 0 else GuidanceConfig(scale=scale, **bench.case.settings)
            row = bench(seed, config)
            runs.setdefault(f"{scale:g}", []).append(row)
            print(f"  seed {seed} scale {scale:<6g}" + shown(row), flush=True)
    means = {scale: mean_of(rows) for scale, rows in runs.items()}
    best = best_scale({float(scale): row["outcome"] for scale, row in means.items()})
    return {"best": best, "at_edge": best in (min(scales), max(scales)), "scales": means}


def best_scale(outcomes: dict[float, float]) -> float:
    """The smallest scale whose outcome is within 2 % of the best one, unguided, scale 0, being 100 % away.

    >>> best_scale({0.0: 0.1, 1.0: 0.5, 2.0: 0.89, 4.0: 0.9, 8.0: 0.7})
    2.0
    """
    scales = sorted(scale for scale in outcomes if scale > 0)
    best = max(outcomes[scale] for scale in scales)
    least = best - NEAR * max(0.0, best - outcomes[0.0])
    return next(scale for scale in scales if outcomes[scale] >= least)


def compare(bench: Bench, scale: float, seeds: list[int]) -> Row:
    """Unguided, default and the scale on every seed, their means, and what the default reaches of the scale."""
    tuned = GuidanceConfig(scale=scale, **bench.case.settings)
    runs: dict[str, list[Row]] = {"unguided": [], "default": [], "best scale": []}
    for seed in seeds:
        for name, config in (("unguided", None), ("default", GuidanceConfig()), ("best scale", tuned)):
            runs[name].append(bench(seed, config))
            print(f"  seed {seed} {name:11}" + shown(runs[name][-1]), flush=True)
    outcomes = [[value for row in rows for value in row["outcomes"]] for rows in runs.values()]
    means = {name: mean_of(rows) for name, rows in runs.items()}
    bare, default, best = means.values()
    gain = best["outcome"] - bare["outcome"]
    return {
        "scale": scale,
        "ratio": (default["outcome"] - bare["outcome"]) / gain if gain else None,
        "ratio_interval": bootstrap(_ratio, *outcomes),
        "nats_ratio": default["nats_a_token"] / best["nats_a_token"],
        "means": means,
        "seeds": {str(seed): {name: rows[k] for name, rows in runs.items()} for k, seed in enumerate(seeds)},
    }


def _ratio(bare: np.ndarray, default: np.ndarray, best: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return (default - bare) / np.where(best == bare, np.nan, best - bare)


def mean_of(rows: list[Row]) -> Row:
    """Means over seeds of figures; counts are added up."""
    counts = ("said", "told", "true", "judged", "guessed")
    numbers = [key for key, value in rows[0].items() if isinstance(value, float | int)]
    return {key: (sum if key in counts else statistics.mean)(row[key] for row in rows) for key in numbers}


def shown(row: Row) -> str:
    return "".join(f" {key} {value:.3g}" for key, value in row.items() if isinstance(value, float | int))


def table(results: dict[str, Row], judged: dict[str, str]) -> str:
    """Markdown; of three figures in a cell the first is of unguided, then default, then the best scale."""
    lines = [
        "| reward | judged by | best scale | unguided, default, best | ratio | nats/token | ratio | process time | "
        "wall-clock | grammatical | reported | held |",
        "|---" * 12 + "|",
    ]
    for name, row in results.items():
        bare, default, best = (row["means"][kind] for kind in ("unguided", "default", "best scale"))
        low, high = row["ratio_interval"]
        ratio = "" if row["ratio"] is None else f"{row['ratio']:.2f} ({low:.2f} to {high:.2f})"
        times = [
            ", ".join(f"{one[kind] / bare[kind]:.2f}x" for one in (default, best))
            for kind in ("process_seconds", "seconds")
        ]
        grammar = ", ".join(f"{one['grammar']:.1%}" for one in (bare, default, best)) if "grammar" in bare else ""
        said = f"{default['told'] / default['said']:.1%}" if "said" in default else ""
        held = f"{default['true'] / default['judged']:.1%}" if default.get("judged") else ""
        figures = ", ".join(f"{one['outcome']:.3f}" for one in (bare, default, best))
        nats = ", ".join(f"{one['nats_a_token']:.2f}" for one in (bare, default, best))
        lines.append(
            f"| {name} | {judged[name]} | {row['scale']:g} | {figures} | {ratio} | {nats} | {row['nats_ratio']:.3f} | "
            f"{times[0]} | {times[1]} | {grammar} | {said} | {held} |"
        )
    return "\n".join(lines)


def load(path: str) -> dict[str, Row]:
    """Results of an earlier run, by reward; none: {}."""
    found: dict[str, Row] = json.loads(Path(path).read_text())["results"] if Path(path).is_file() else {}
    return found


def scales_of(tuned: dict[str, Row], names: list[str], path: str) -> dict[str, float]:
    missing = [name for name in names if name not in tuned]
    if missing:
        raise SystemExit(f"{path} has no scale of {', '.join(missing)}; run --tune --rewards {missing[0]!r} first.")
    return {name: float(tuned[name]["best"]) for name in names}


def main() -> None:
    known = cases()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tune", action="store_true", help="find the best scales")
    parser.add_argument("--compare", action="store_true", help="the default beside them; after --tune if both")
    parser.add_argument("--rewards", nargs="+", choices=list(known), default=list(known), metavar="NAME")
    parser.add_argument("--samples", type=int, default=64, help="of a reward and seed, spread over its goals")
    parser.add_argument("--tune-seeds", type=int, nargs="+", default=[100])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of --compare")
    parser.add_argument("--scales", type=float, nargs="+", help="of the sweep, instead of those of each reward")
    parser.add_argument("--digit-temperature", type=float, default=8.0, help="of the classifier of digits")
    parser.add_argument("--model", default="builtin:tatoeba-masked")
    parser.add_argument("--digit-model", default="builtin:mnist-masked")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tuned", default=TUNED, help="file of --tune")
    parser.add_argument("--output", default=COMPARED, help="file of --compare")
    args = parser.parse_args()
    if not (args.tune or args.compare):
        parser.error("take --tune, --compare, or both")
    shared = sorted(set(args.seeds) & set(args.tune_seeds))
    if shared:
        parser.error(f"--seeds must be others than --tune-seeds, and both have {shared[0]}")
    torch.set_num_threads(args.threads)
    chosen = cases(args.digit_temperature)
    stored = scales_of(load(args.tuned), args.rewards, args.tuned) if not args.tune else {}
    for name in args.rewards:
        print(f"{name}:", flush=True)
        case = chosen[name]
        bench = Bench(case, args.samples, args.model, args.digit_model)
        if args.tune:
            row = tune(bench, args.scales or list(case.scales), args.tune_seeds)
            print(
                f"  best scale {row['best']:g}{', at the edge of the sweep: try others too' if row['at_edge'] else ''}"
            )
            keep(args.tuned, name, row, args)
            stored[name] = row["best"]
        if args.compare:
            keep(args.output, name, compare(bench, stored[name], args.seeds), args)
    if args.compare:
        results = load(args.output)
        print(table({name: results[name] for name in args.rewards}, {name: one.judged for name, one in chosen.items()}))


def keep(path: str, name: str, row: Row, args: argparse.Namespace) -> None:
    """Put the result of a reward into the file, beside those of others that are there, in the order of the table."""
    wanted = ("samples", "seeds", "tune_seeds", "digit_temperature", "model", "digit_model", "threads")
    settings = {key: value for key, value in vars(args).items() if key in wanted}
    results = load(path) | {name: {"settings": settings} | row}
    ordered = {one: results[one] for one in cases() if one in results}
    save(path, environment("transformers", "diffusers") | {"results": ordered})


if __name__ == "__main__":
    main()
