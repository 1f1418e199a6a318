"""What was measured, as a table for people: a row a method, with intervals over the samples."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from redge_guidance.evaluate.running import Cell
from redge_guidance.evaluate.statistics import bootstrap, interval

Interval = tuple[float, float]
_HEAD = (
    "| method | gold | optimised | reward | nats/token | other model | grammatical | distinct | distinct-2 | words | "
    "s a sample | wall-clock | process | model calls | reward calls | peak MB | best-of at least as long "
    "| gold above it |"
)


@dataclass(frozen=True)
class Row:
    """A method on a task, all its seeds together.

    Attributes:
        task, method: names.
        count: of samples.
        seconds: by the wall, of a sample.
        process_seconds: of all processors, of a sample.
        gold, gold_interval: the mean of the judge's values, and its 95 % interval: Wilson's where they are 0 or 1, else
            by the bootstrap over samples.
        golds: the values, by seed.
        reward, optimised: means; `optimised` is the share that is as the rewards want it, NaN where none says.
        nats, nats_interval, other_nats: by the token, NaN where they are not known.
        grammatical, distinct, distinct_2, words: NaN where they are not known.
        model_sequences, reward_forwards, reward_backwards: of a sample.
        peak_memory: bytes, the most of any seed; NaN where it is not known.
    """

    task: str
    method: str
    count: int
    seconds: float
    process_seconds: float
    gold: float
    gold_interval: Interval
    golds: dict[int, list[float]]
    reward: float
    optimised: float
    nats: float
    nats_interval: Interval
    other_nats: float
    grammatical: float
    distinct: float
    distinct_2: float
    words: float
    model_sequences: float
    reward_forwards: float
    reward_backwards: float
    peak_memory: float


def rows_of(cells: Sequence[Cell]) -> list[Row]:
    """One a task and method, in the order in which they first come."""
    groups: dict[tuple[str, str], list[Cell]] = {}
    for cell in cells:
        groups.setdefault((cell["task"], cell["method"]), []).append(cell)
    return [_row(task, method, group) for (task, method), group in groups.items()]


def _row(task: str, method: str, group: Sequence[Cell]) -> Row:
    gold, count = _column(group, "gold"), len(_column(group, "gold"))
    nats, other, tokens = (_column(group, name) for name in ("nats", "other_nats", "tokens"))
    reached = _column(group, "optimised")
    by_token = lambda upper: sum(upper) / sum(tokens) if upper else math.nan  # noqa: E731
    return Row(
        task=task,
        method=method,
        count=count,
        seconds=sum(cell["seconds"] for cell in group) / count,
        process_seconds=sum(cell["process_seconds"] for cell in group) / count,
        gold=_mean(gold),
        gold_interval=interval(_mean(gold), count) if _are_shares(gold) else bootstrap(lambda mean: mean, gold),
        golds={cell["seed"]: cell["gold"] for cell in group},
        reward=_mean(_column(group, "reward")),
        optimised=_mean(reached),
        nats=by_token(nats),
        nats_interval=bootstrap(lambda n, t: n / t, nats, tokens) if nats else (math.nan, math.nan),
        other_nats=by_token(other),
        grammatical=_mean(_column(group, "grammatical")),
        distinct=_mean([cell["distinct"] for cell in group if "distinct" in cell]),
        distinct_2=_mean([cell["distinct_2"] for cell in group if cell.get("distinct_2") is not None]),
        words=_mean([cell["words"] for cell in group if "words" in cell]),
        model_sequences=sum(cell["model_sequences"] for cell in group) / count,
        reward_forwards=sum(cell["reward_forwards"] for cell in group) / count,
        reward_backwards=sum(cell["reward_backwards"] for cell in group) / count,
        peak_memory=max((cell["peak_memory"] for cell in group if cell["peak_memory"]), default=math.nan),
    )


def as_long(row: Row, rows: Sequence[Row]) -> Row | None:
    """The cheapest best-of-n of the same task, the bare sampler among them, that takes at least as long by the wall.

    None: there is none that was measured, or the row is one itself.
    """
    plain = [other for other in rows if other.task == row.task and _is_plain(other.method)]
    longer = [other for other in plain if other.seconds >= row.seconds]
    return None if _is_plain(row.method) or not longer else min(longer, key=lambda other: other.seconds)


def difference(row: Row, other: Row) -> tuple[float, Interval]:
    """Of the gold of two methods, and its 95 % interval, the samples of each being independent.

    Of shares p and p' with Wilson's intervals [l, u] and [l', u'] it is Newcombe's (1998, method 10),
    `d - sqrt((p - l)^2 + (u' - p')^2)` to `d + sqrt((u - p)^2 + (p' - l')^2)`; else by the bootstrap.
    """
    ours, theirs = (np.array([value for one in r.golds.values() for value in one]) for r in (row, other))
    by = float(ours.mean() - theirs.mean())
    if _are_shares(ours) and _are_shares(theirs):
        (low, high), (least, most) = row.gold_interval, other.gold_interval
        below = math.hypot(row.gold - low, most - other.gold)
        return by, (by - below, by + math.hypot(high - row.gold, other.gold - least))
    source = np.random.default_rng(0)
    means = [one[source.integers(len(one), size=(2000, len(one)))].mean(1) for one in (ours, theirs)]
    lower, upper = np.percentile(means[0] - means[1], [2.5, 97.5])
    return by, (float(lower), float(upper))


def table(cells: Sequence[Cell]) -> str:
    """Markdown, a part for every task: what the gold judge says, and a row a method.

    `gold` and `nats/token` have 95 % intervals. Times of a method are beside the bare sampler's, `unguided`; calls are
    sequences through the model and, forward and backward, through the reward's models, by the sample.
    """
    rows, lines = rows_of(cells), list[str]()
    for task in dict.fromkeys(row.task for row in rows):
        mine = [row for row in rows if row.task == task]
        bare = next((row for row in mine if row.method == "unguided"), None)
        said = next((cell["judged"] for cell in cells if cell["task"] == task and "judged" in cell), None)
        seeds = sorted({seed for row in mine for seed in row.golds})
        lines += [f"### {task}", ""]
        lines += [f"{f'Gold: {said}. ' if said else ''}{mine[0].count} samples a method, seeds {seeds}.", ""]
        lines += [_HEAD, "|---" * _HEAD.count(" | ") + "|---|"]
        lines += [_line(row, bare, as_long(row, mine)) for row in mine] + [""]
    return "\n".join(lines + _footer(cells))


def _line(row: Row, bare: Row | None, other: Row | None) -> str:
    is_share = _are_shares([value for values in row.golds.values() for value in values])
    figure = (lambda x: f"{x:.1%}") if is_share else (lambda x: f"{x:.3f}")
    low, high = row.gold_interval
    times = [
        "" if bare is None else f"{ours / theirs:.2f}x"
        for ours, theirs in (
            (row.seconds, 1.0 if bare is None else bare.seconds),
            (row.process_seconds, 1.0 if bare is None else bare.process_seconds),
        )
    ]
    beside = ""
    if other is not None:
        by, (least, most) = difference(row, other)
        beside = f"{figure(by)} ({figure(least)} to {figure(most)})"
    found = [
        row.method,
        f"{figure(row.gold)} ({figure(low)} to {figure(high)})",
        _or_nothing(row.optimised, ".1%"),
        _or_nothing(row.reward, ".3g"),
        f"{row.nats:.2f} ({row.nats_interval[0]:.2f} to {row.nats_interval[1]:.2f})" if row.nats == row.nats else "",
        _or_nothing(row.other_nats, ".2f"),
        _or_nothing(row.grammatical, ".1%"),
        _or_nothing(row.distinct, ".1%"),
        _or_nothing(row.distinct_2, ".2f"),
        _or_nothing(row.words, ".1f"),
        f"{row.seconds:.3f}",
        *times,
        f"{row.model_sequences:.1f}",
        f"{row.reward_forwards:.1f}, {row.reward_backwards:.1f}",
        _or_nothing(row.peak_memory / 2**20, ".0f"),
        "" if other is None else other.method,
        beside,
    ]
    return "| " + " | ".join(one.replace("|", "\\|") for one in found) + " |"


def _footer(cells: Sequence[Cell]) -> list[str]:
    """Where it was measured; everything that differs between the cells is there."""
    told = {
        f"{cell['hardware']}, {cell['threads']} threads, "
        + ", ".join(f"{name} {number}" for name, number in cell["versions"].items())
        for cell in cells
    }
    dates = sorted({cell["date"] for cell in cells})
    return [f"{', '.join(dates)}; {'; '.join(sorted(told))}."] if cells else []


def _column(group: Sequence[Cell], name: str) -> list[Any]:
    """Of all samples; of what is not known those that are."""
    return [value for cell in group for value in cell.get(name, ()) if value is not None]


def _are_shares(values: Any) -> bool:
    return all(value in (0, 1) for value in values)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def _is_plain(method: str) -> bool:
    return method == "unguided" or method.startswith("best-of-")


def _or_nothing(value: float, how: str) -> str:
    return "" if math.isnan(value) else format(value, how)
