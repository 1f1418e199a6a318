"""Tasks, methods and seeds: each combination is drawn, judged, and written down before the next one begins."""

import contextlib
import hashlib
import json
import math
import platform
import statistics
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from redge_guidance.checks import as_real, whole_number
from redge_guidance.constraints.constraint import parted
from redge_guidance.evaluate.costs import Meter
from redge_guidance.evaluate.judges import Grammar, distinct, distinct_n, image_nats, nats_and_tokens
from redge_guidance.evaluate.methods import Method
from redge_guidance.evaluate.wanted import Goal, Task
from redge_guidance.generation.journal import Journal
from redge_guidance.pipelines import MaskedImagePipeline
from redge_guidance.randomness import check_seed
from redge_guidance.reward import RewardSum
from redge_guidance.terms import terms_of
from redge_guidance.version import __version__

Cell = dict[str, Any]
_PACKAGES = ("torch", "transformers", "diffusers")
_MADE_OF = ("task", "method", "settings", "seed", "samples", "batch_size", "threads")


@dataclass(frozen=True)
class Plan:
    """What is to be drawn.

    Attributes:
        samples: of a task, method and seed, spread evenly over the task's goals.
        seeds: of the runs.
        batch_size: sequences that are drawn together.
    """

    samples: int = 32
    seeds: Sequence[int] = (0,)
    batch_size: int = 64

    def __post_init__(self) -> None:
        object.__setattr__(self, "samples", whole_number("samples", self.samples, 1))
        object.__setattr__(self, "batch_size", whole_number("batch_size", self.batch_size, 1))
        seeds = [check_seed(seed) for seed in self.seeds]
        if not seeds or len(set(seeds)) < len(seeds):
            raise ValueError(f"`seeds` must be integers, at least one, each once, got {list(self.seeds)}.")
        object.__setattr__(self, "seeds", tuple(seeds))


def run(task: Task, methods: Sequence[Method], plan: Plan, output: Path | None = None) -> Iterator[Cell]:
    """Every method with every seed, seed by seed and method by method, so that what slows the machine slows them all.

    A cell is a mapping of plain values, one line of `output`: what was drawn (`task`, `method`, `settings`, `seed`,
    `texts`), columns with a number for every sample (`reward`, `optimised`, `gold`, `grammatical`, `nats`,
    `other_nats`, `tokens`), figures of all (`distinct`, `distinct_1`, `_2`, `_3`, `words`), and what the drawing cost
    (`seconds`, `process_seconds`, `peak_memory`, `model_calls`, `model_sequences`, `reward_forwards`,
    `reward_backwards`), judging left out. Cells that `output` has already are given back as they are.

    Raises:
        ValueError: fewer samples than the task has goals; `output` has a cell of the same task, method and seed with
            other settings; what sampling raises.
        OSError: `output` cannot be written.
    """
    if plan.samples < len(task.goals):
        raise ValueError(f"`samples` must be at least the {len(task.goals)} goals of {task.name}, got {plan.samples}.")
    known = {} if output is None else cells(output)
    wanted = [(method, seed) for seed in plan.seeds for method in methods]
    told = [_told(task, method, plan, seed) for method, seed in wanted]
    for one in told:
        _check_same(known.get(_key(one)), one, output)
    journal = None if output is None else Journal(output)
    try:
        judges, warm = _Judges(task), set[str]()
        for (method, seed), one in zip(wanted, told, strict=True):
            cell = known.get(_key(one))
            if cell is None:
                if method.name not in warm:
                    warm.add(method.name)
                    _warm_up(task, method, plan)
                cell = one | _measured(task, method, plan, seed, judges) | _environment()
                if journal is not None:
                    journal.append([cell])
            yield cell
    finally:
        if journal is not None:
            journal.close()


def cells(file: Path) -> dict[tuple[str, str, int], Cell]:
    """The cells of a file, whole lines only; none where there is no file.

    Raises:
        ValueError: a line that is no cell.
    """
    found: dict[tuple[str, str, int], Cell] = {}
    if not file.exists():
        return found
    content = file.read_bytes()
    for number, line in enumerate(content.split(b"\n")[:-1], 1):
        try:
            cell = json.loads(line)
            found[_key(cell)] = cell
            if not set(_MADE_OF) <= set(cell):
                raise KeyError
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(
                f"`output` {file} has something else than a result of `evaluate` in line {number}; take another name."
            ) from error
    return found


def _told(task: Task, method: Method, plan: Plan, seed: int) -> Cell:
    settings = method.to_dict(task.temperature) | {"pipeline": _plain(task.settings)}
    shared = {"samples": plan.samples, "batch_size": plan.batch_size, "threads": torch.get_num_threads()}
    return {"task": task.name, "method": method.name, "seed": seed, "settings": settings, **shared}


def _key(cell: Cell) -> tuple[str, str, int]:
    return str(cell["task"]), str(cell["method"]), int(cell["seed"])


def _check_same(known: Cell | None, told: Cell, output: Path | None) -> None:
    if known is None:
        return
    for name in _MADE_OF:
        if _digest(known[name]) != _digest(told[name]):
            raise ValueError(
                f"`output` {output} has {told['method']} of {told['task']}, seed {told['seed']}, with another `{name}` "
                f"({json.dumps(known[name])[:200]}); take another name."
            )


def _digest(value: Any) -> str:
    return hashlib.blake2b(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value, default=str))


def _draw(task: Task, method: Method, samples: int, seed: int, batch_size: int) -> list[list[Any]]:
    """Samples of every goal, as evenly many as can be; every goal has seeds of its own."""
    drawn = []
    for k, goal in enumerate(task.goals):
        count = (samples - k + len(task.goals) - 1) // len(task.goals)
        prompts = [goal.prompts[i % len(goal.prompts)] for i in range(count)]
        how: dict[str, Any] = {"batch_size": batch_size, "temperature": task.temperature, "settings": task.settings}
        drawn.append(method.draw(task.pipe, goal.reward, prompts, seed=1000 * seed + k, **how) if prompts else [])
    return drawn


def _warm_up(task: Task, method: Method, plan: Plan) -> None:
    """What first calls alone pay for is paid; what they have to say is said by those that are measured, too."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _draw(task, method, 1, 2**40, plan.batch_size)


def _measured(task: Task, method: Method, plan: Plan, seed: int, judges: "_Judges") -> Cell:
    with Meter(task.pipe, [_reward(goal) for goal in task.goals]) as meter:
        drawn = _draw(task, method, plan.samples, seed, plan.batch_size)
    names = ("peak_memory", "model_calls", "model_sequences", "reward_forwards", "reward_backwards")
    cost = {"seconds": round(meter.seconds, 4), "process_seconds": round(meter.process_seconds, 4)}
    return judges(drawn) | cost | {name: getattr(meter, name) for name in names}


class _Judges:
    """Columns and figures of what was drawn for a task."""

    def __init__(self, task: Task):
        self._task = task
        self._grammar: Grammar | None = None
        self._of_texts = hasattr(task.pipe, "nll")
        if self._of_texts and task.prose:
            try:
                self._grammar = Grammar()
            except RuntimeError as error:
                warnings.warn(f"grammar is not judged: {error}", stacklevel=2)

    def __call__(self, drawn: list[list[Any]]) -> Cell:
        found: Cell = {"reward": [], "optimised": [], "gold": []}
        for goal, samples in zip(self._task.goals, drawn, strict=True):
            if not samples:
                continue
            shown: Any = torch.stack(samples) if isinstance(samples[0], torch.Tensor) else samples
            reward = RewardSum(terms_of(_reward(goal)))
            found["reward"] += [_short(value) for value in reward.score(shown).tolist()]
            reached: Sequence[bool | None] | None = reward.reached(shown)
            found["optimised"] += [None] * len(samples) if reached is None else reached
            found["gold"] += _gold(self._task, goal, samples)
        samples = [one for some in drawn for one in some]
        return found | (self._texts(samples) if self._of_texts else self._images(samples))

    def _texts(self, texts: list[str]) -> Cell:
        nats, tokens = nats_and_tokens(self._task.pipe, texts)
        found: Cell = {"texts": texts, "nats": [_short(one) for one in nats], "tokens": tokens}
        if self._task.other is not None:
            found["other_nats"] = [_short(one) for one in nats_and_tokens(self._task.other, texts)[0]]
        if self._grammar is not None:
            found["grammatical"] = self._grammar(texts)
        found |= {"distinct": _short(distinct(texts)), "words": _short(statistics.mean(len(t.split()) for t in texts))}
        return found | {f"distinct_{n}": _short(distinct_n(texts, n)) for n in (1, 2, 3)}

    def _images(self, images: list[Any]) -> Cell:
        if not isinstance(self._task.pipe, MaskedImagePipeline):
            return {}
        ids = self._task.pipe.encode(torch.stack(images))
        nats = [_short(one) for one in image_nats(self._task.pipe, ids).tolist()]
        return {"nats": nats, "tokens": [ids[0].numel()] * len(ids)}


def _gold(task: Task, goal: Goal, samples: list[Any]) -> list[float | None]:
    values = [as_real(value) for value in goal.gold(samples)]
    if len(values) != len(samples) or not all(value is not None and 0 <= value <= 1 for value in values):
        raise ValueError(f"`gold` of {task.name} must give a number in [0, 1] for every sample, got {values[:8]}.")
    return [_short(value) for value in values if value is not None]


def _reward(goal: Goal) -> Any:
    """Without a constraint beside it."""
    return parted(goal.reward)[0]


def _environment() -> Cell:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    models = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    found = {"redge-guidance": __version__}
    for name in _PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    hardware = models[0] if models else platform.machine()
    return {"date": date.today().isoformat(), "hardware": hardware, "versions": found}


def _short(value: float) -> float | None:
    """Of five digits; None: not finite."""
    return float(f"{value:.5g}") if math.isfinite(value) else None
