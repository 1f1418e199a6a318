"""Estimators in guidance at equal numbers of reward gradients a step, hard and soft samples, on texts and on digits.

Every step is by itself: all sequences have one scale, the reward is asked at every step, q starts from p. One gradient
is one draw and one update of full size; four are four draws of one such update; twelve are four draws of each of three
updates of step size 1/3. The score function has as many values instead, and nothing with one. Every estimator has, for
every number of gradients, a scale of its own: `--tune` tries scales on seeds of its own and keeps the smallest whose
outcome is at most 2 % of the way from unguided to the best below that best.

The outcome is that of a judge who takes no part: VADER of texts toward *negative* and *positive*, another network of
digits toward each of the ten. nats: the model's own likelihood bound by token. All intervals are 95 %, Student's t over
seeds; differences to hard `redge` of as many gradients are paired by seed.

Without noise a soft sample is the expectation: those of `straight_through`, `entropy_mix` and `reinmax` are `soft`, and
that of `reindge` is that of `redge`; they are one row.

    python benchmarks/estimators_guidance.py --task text --tune     # writes results/estimators_guidance_text_tune.json
    python benchmarks/estimators_guidance.py --task text            # reads it, writes estimators_guidance_text.json
"""

import argparse
import json
import math
import statistics
from pathlib import Path
from typing import Any

import torch
from eight_rewards import Bench, best_scale
from report import environment, save
from reward_cases import cases
from scipy.stats import t
from settings import PLAIN

from redge_guidance import GuidanceConfig
from redge_guidance.estimators import ESTIMATORS, Estimator, ScoreFunction
from redge_guidance.updates import Natural

CASES = {"text": "sentiment", "digits": "digits"}
SCALES = {"text": (0.5, 1, 1.5, 2, 3, 4, 6, 9), "digits": (60, 125, 250, 500, 1000, 2000)}
SPENT = {1: (1, 1), 4: (4, 1), 12: (4, 3)}  # gradients a step: draws, updates
SAME = ("straight_through, soft", "entropy_mix, soft", "reinmax, soft", "reindge, soft")
FIGURES = ("outcome", "nats_a_token", "distinct")
BASE = "redge, hard"
Row = dict[str, Any]


def variants() -> dict[str, Estimator]:
    """Every estimator with hard and with soft samples, where it has both and they are none that another has."""
    found: dict[str, Estimator] = {}
    for name, kind in ESTIMATORS.items():
        if name == "soft":
            found[name] = kind()
            continue
        found[f"{name}, hard"] = kind()
        if not issubclass(kind, ScoreFunction) and f"{name}, soft" not in SAME:
            found[f"{name}, soft"] = kind(hard=False)
    return found


def config_of(estimator: Estimator, gradients: int, scale: float) -> GuidanceConfig | None:
    """None: the estimator cannot be had from so few."""
    draws, updates = SPENT.get(gradients, (gradients, 1))
    if estimator.needs == "values" and draws < 2:
        return None
    chosen = {"scale": scale, "num_draws": draws, "update": Natural(updates, 1 / updates), "estimator": estimator}
    return GuidanceConfig(**PLAIN | chosen)


def half_width(values: list[float]) -> float:
    """Of the 95 % interval of a mean, by Student's t; nan of fewer than two.

    >>> round(half_width([1.0, 2.0, 3.0]), 3)
    2.484
    """
    if len(values) < 2:
        return math.nan
    return float(t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))


def summary(values: list[float]) -> tuple[float, float]:
    return statistics.mean(values), half_width(values)


class Runs:
    """The unguided figures of every seed, drawn once, and the guided ones beside them."""

    def __init__(self, bench: Bench, seeds: list[int]):
        self._bench, self._seeds = bench, seeds
        self.bare = [self._kept(bench(seed)) for seed in seeds]

    def __call__(self, config: GuidanceConfig) -> list[Row]:
        return [self._kept(self._bench(seed, config)) for seed in self._seeds]

    @staticmethod
    def _kept(row: Row) -> Row:
        return {key: row[key] for key in (*FIGURES, "process_seconds") if key in row}


def tune(runs: Runs, estimator: Estimator, gradients: int, scales: list[float]) -> Row | None:
    """Outcomes by scale, means over the seeds, and the best scale."""
    outcomes = {0.0: statistics.mean(row["outcome"] for row in runs.bare)}
    for scale in scales:
        config = config_of(estimator, gradients, scale)
        if config is None:
            return None
        outcomes[scale] = statistics.mean(row["outcome"] for row in runs(config))
    best = best_scale(outcomes)
    at_edge = len(scales) > 1 and best in (min(scales), max(scales))
    return {"best": best, "at_edge": at_edge, "outcomes": {f"{scale:g}": value for scale, value in outcomes.items()}}


def compared(rows: list[Row], base: list[Row] | None, bare: list[Row]) -> Row:
    """Means over seeds with half widths of their intervals, and what is left of them after those of `base`."""
    found: Row = {"seeds": rows}
    for key in FIGURES:
        if key in rows[0]:
            found[key] = summary([row[key] for row in rows])
            if base is not None:
                found[f"{key}_beside_redge"] = summary([a[key] - b[key] for a, b in zip(rows, base, strict=True)])
    times, unguided = (statistics.mean(row["process_seconds"] for row in some) for some in (rows, bare))
    return found | {"times_unguided": times / unguided}


def shown(pair: tuple[float, float], share: bool, sign: str = "") -> str:
    mean, half = pair
    unit = 100 if share else 1
    digits = 1 if share else 3
    width = "" if math.isnan(half) else f" ± {unit * half:.{digits}f}"
    return f"{unit * mean:{sign}.{digits}f}{width}"


def table(results: dict[str, dict[str, Row]], unguided: Row) -> str:
    """Markdown; outcomes and distinct in percent."""
    lines = [
        "| gradients | estimator | scale | outcome, % | beside redge | nats/token | beside redge | distinct | time |",
        "|---" * 9 + "|",
        _line("0", "unguided", "", unguided),
    ]
    for gradients, rows in results.items():
        lines += [_line(gradients, name, f"{row['scale']:g}", row) for name, row in rows.items()]
    return "\n".join(lines)


def _line(gradients: str, name: str, scale: str, row: Row) -> str:
    cells = []
    for key in ("outcome", "nats_a_token"):
        beside = row.get(f"{key}_beside_redge")
        share = key == "outcome"
        cells += [shown(row[key], share), "" if beside is None else shown(beside, share, "+")]
    cells.append(shown(row["distinct"], True) if "distinct" in row else "")
    return f"| {gradients} | {name} | {scale} | {' | '.join(cells)} | {row['times_unguided']:.2f}x |"


def compare(runs: Runs, scale_of: Any, budgets: list[int], names: list[str], keep: Any) -> None:
    """Runs all, and calls `keep(results)` after each: gradients, then estimators, hard `redge` first."""
    results: dict[str, dict[str, Row]] = {}
    for gradients in budgets:
        rows: dict[str, Row] = {}
        base = None
        for name in sorted(names, key=lambda one: one != BASE):
            scale = scale_of(name, gradients)
            config = None if scale is None else config_of(variants()[name], gradients, scale)
            if config is None:
                continue
            found = runs(config)
            rows[name] = compared(found, None if name == BASE else base, runs.bare) | {"scale": scale}
            base = found if name == BASE else base
            results[str(gradients)] = rows
            print(_line(str(gradients), name, f"{scale:g}", rows[name]), flush=True)
            keep(results)


def load(path: str) -> dict[str, dict[str, Row]]:
    if not Path(path).is_file():
        raise SystemExit(f"{path} is not there, which has the scales; run --tune first, or give one by --scale.")
    found: dict[str, dict[str, Row]] = json.loads(Path(path).read_text())["results"]
    return found


def main() -> None:
    known = variants()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=list(CASES), default="text")
    parser.add_argument("--tune", action="store_true", help="find the scales, on --tune-seeds")
    parser.add_argument("--budgets", type=int, nargs="+", default=[1, 4, 12], help="gradients a step")
    parser.add_argument("--samples", type=int, default=64, help="of a seed, spread over labels or digits")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--tune-seeds", type=int, nargs="+", default=[100, 101])
    parser.add_argument("--scales", type=float, nargs="+", help="of the sweep")
    parser.add_argument("--scale", type=float, help="one for all, instead of those of --tune")
    parser.add_argument("--estimators", nargs="+", choices=list(known), default=list(known), metavar="NAME")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tuned", help="file of --tune; not given: results/estimators_guidance_TASK_tune.json")
    parser.add_argument("--output", help="not given: benchmarks/results/estimators_guidance_TASK.json")
    args = parser.parse_args()
    if args.scale is None and set(args.seeds) & set(args.tune_seeds):
        parser.error("--seeds must be others than --tune-seeds")
    if min(args.budgets) < 1 or args.samples < 1:
        parser.error("--budgets and --samples must be at least 1")
    torch.set_num_threads(args.threads)
    bench = Bench(cases()[CASES[args.task]], args.samples, "builtin:tatoeba-masked", "builtin:mnist-masked")
    runs = Runs(bench, args.tune_seeds if args.tune else args.seeds)
    stem = f"benchmarks/results/estimators_guidance_{args.task}"
    tuned = args.tuned or f"{stem}_tune.json"
    told = {"task": args.task, "samples": args.samples, "seeds": args.tune_seeds if args.tune else args.seeds}

    def keep(path: str, results: Any, **more: Any) -> None:
        save(path, environment("transformers", "diffusers") | {"settings": told, "results": results} | more)

    if args.tune:
        found: dict[str, dict[str, Row]] = {}
        for gradients in args.budgets:
            for name in args.estimators:
                row = tune(runs, known[name], gradients, args.scales or list(SCALES[args.task]))
                if row is not None:
                    found.setdefault(str(gradients), {})[name] = row
                    edge = ", at the edge of the sweep: try others too" if row["at_edge"] else ""
                    print(f"{gradients} gradients, {name}: scale {row['best']:g}{edge}", flush=True)
                    keep(tuned, found)
        return
    scales = {} if args.scale is not None else load(tuned)

    def scale_of(name: str, gradients: int) -> float | None:
        if args.scale is not None:
            return float(args.scale)
        row = scales.get(str(gradients), {}).get(name)
        return None if row is None else float(row["best"])

    unguided, output, last = compared(runs.bare, None, runs.bare), args.output or f"{stem}.json", {}

    def note(results: dict[str, dict[str, Row]]) -> None:
        last.update(results)
        keep(output, results, unguided=unguided)

    compare(runs, scale_of, args.budgets, args.estimators, note)
    print("\n" + table(last, unguided))


if __name__ == "__main__":
    main()
