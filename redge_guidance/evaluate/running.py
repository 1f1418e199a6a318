"""Tasks, methods and seeds: each combination is drawn, judged, and written down before the next one begins."""

import contextlib
import hashlib
import json
import math
import platform
import statistics
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from redge_guidance.checks import as_real, as_whole, plain, whole_number
from redge_guidance.evaluate.costs import Meter
from redge_guidance.evaluate.judges import Grammar, distinct, distinct_n, image_nats, nats_and_tokens
from redge_guidance.evaluate.methods import Method, check_call, methods_of
from redge_guidance.evaluate.wanted import Goal, Task, rewarded
from redge_guidance.generation.differences import differences
from redge_guidance.generation.journal import Journal
from redge_guidance.generation.judging import shown
from redge_guidance.generation.sampler import Sampler
from redge_guidance.pipelines import MaskedImagePipeline
from redge_guidance.reward import RewardSum
from redge_guidance.setups.schema import MOST
from redge_guidance.terms import terms_of
from redge_guidance.version import __version__

Cell = dict[str, Any]
_PACKAGES = ("torch", "transformers", "diffusers")
_MADE_OF = ("task", "method", "settings", "seed", "samples", "batch_size", "threads")
_COST = ("peak_memory", "model_calls", "model_sequences", "reward_forwards", "reward_backwards")
_HAS = {*_MADE_OF, *_COST, "reward", "optimised", "gold", "seconds", "process_seconds", "date", "hardware", "versions"}
_BEGINS = b'{"task": '
_APART = 1000  # seeds of a goal from those of a run: more goals than this a task has not


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
        for name in ("samples", "batch_size"):
            number = whole_number(name, getattr(self, name), 1)
            if number > MOST:
                raise ValueError(f"`{name}` must be at most {MOST:,}, got {number}.")
            object.__setattr__(self, name, number)
        given: Any = list(self.seeds) if isinstance(self.seeds, Iterable) else self.seeds
        seeds = [as_whole(seed) for seed in given] if isinstance(given, list) else []
        most = 2**63 // _APART
        if not seeds or len(set(seeds)) < len(seeds) or not all(s is not None and -most < s < most for s in seeds):
            raise ValueError(f"`seeds` must be integers, at least one, each once, below {most:,}, got {given!r:.80}.")
        object.__setattr__(self, "seeds", tuple(seeds))


def run(task: Task, methods: Sequence[Method | str], plan: Plan, output: str | Path | None = None) -> Iterator[Cell]:
    """Every method with every seed, seed by seed and method by method, so that what slows the machine slows them all.

    A cell is a mapping of plain values, one line of `output`: what was drawn (`task`, `method`, `settings`, `seed`,
    `texts`), columns with a number for every sample (`reward`, `optimised`, `gold`, `grammatical`, `nats`,
    `other_nats`, `tokens`), figures of all (`distinct`, `distinct_1`, `_2`, `_3`, `words`), and what the drawing cost
    (`seconds`, `process_seconds`, `peak_memory`, `model_calls`, `model_sequences`, `reward_forwards`,
    `reward_backwards`), judging left out; `judged` is what the gold judge says. Cells that `output` has already are
    given back as they are.

    `methods` are `Method`s, or their names, see `method`.

    Raises:
        ValueError: no such method; fewer samples than the task has goals; `output` has a cell of the same task, method
            and seed with other settings; what sampling raises.
        RuntimeError: the judge raises.
        OSError: `output` cannot be written.
    """
    if plan.samples < len(task.goals):
        raise ValueError(f"`samples` must be at least the {len(task.goals)} goals of {task.name}, got {plan.samples}.")
    given_all = [methods] if isinstance(methods, str) else methods
    made = [one for given in given_all for one in ([given] if isinstance(given, Method) else methods_of([given]))]
    names = [method.name for method in made]
    if len(set(names)) < len(names):
        raise ValueError(f"`methods` must be different ones, got {names!r:.200}; leave out the second of two.")
    check_call(f"`settings` of {task.name}", task.settings)
    output = None if output is None else Path(output)
    known = {} if output is None else cells(output)
    wanted = [(method, seed) for seed in plan.seeds for method in made]
    told = [_told(task, method, plan, seed) for method, seed in wanted]
    for one in told:
        _check_same(known.get(_key(one)), one, output)
    journal = None if output is None else Journal(output)
    try:
        known = {} if output is None else cells(output)  # and what another process wrote before this one had the file
        judges, warm = _Judges(task), set[str]()
        for (method, seed), one in zip(wanted, told, strict=True):
            cell = known.get(_key(one))
            if cell is None:
                if method.name not in warm:
                    warm.add(method.name)
                    _warm_up(task, method, plan)
                found = _measured(task, method, plan, seed, judges) | {"judged": task.judged}
                cell = one | found | _environment()
                if journal is not None:
                    journal.append([cell])
            yield cell
    finally:
        if journal is not None:
            journal.close()


def cells(file: Path) -> dict[tuple[str, str, int], Cell]:
    """The cells of a file, whole lines only; none where there is no file.

    Raises:
        ValueError: a line that is no cell, or the beginning of something else than one; no regular file.
    """
    found: dict[tuple[str, str, int], Cell] = {}
    if not file.exists():
        return found
    if not file.is_file():
        raise ValueError(f"`output` must name a file, which a run can go on with, got {file}, which is none.")
    *lines, rest = file.read_bytes().split(b"\n")
    for number, line in enumerate([*lines, rest], 1):
        try:
            if number > len(lines):  # a half one is cut off, if it is ours
                if not (rest.startswith(_BEGINS) or _BEGINS.startswith(rest)):
                    raise ValueError
                break
            cell = json.loads(line)
            found[_key(cell)] = cell
            if not set(cell) >= _HAS:
                raise KeyError
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(
                f"`output` {file} has something else than a result of `evaluate` in line {number}; take another name."
            ) from error
    return found


def _told(task: Task, method: Method, plan: Plan, seed: int) -> Cell:
    images = Sampler(task.pipe, {}).makes_images
    settings = method.to_dict(task.temperature, rewarded(task.goals[0]), images)
    settings |= {"pipeline": _plain(task.settings)}
    shared = {"samples": plan.samples, "batch_size": plan.batch_size, "threads": torch.get_num_threads()}
    shared["made_from"] = _plain(task.made_from)
    return {"task": task.name, "method": method.name, "seed": seed, "settings": settings, **shared}


def _key(cell: Cell) -> tuple[str, str, int]:
    return str(cell["task"]), str(cell["method"]), int(cell["seed"])


def _check_same(known: Cell | None, told: Cell, output: Path | None) -> None:
    if known is None:
        return
    for name in (*_MADE_OF, *(["made_from"] if "made_from" in known else [])):
        if _digest(known[name]) != _digest(_since(known[name], told[name])):
            what = "; ".join(differences(known[name], _since(known[name], told[name]))).removeprefix(": ")
            raise ValueError(
                f"`output` {output} has {told['method']} of {told['task']}, seed {told['seed']}, with another `{name}` "
                f"({what}); take another name."
            )


def _since(known: Any, told: Any) -> Any:
    """`told` without the settings that `known` has not heard of, being older, and that are None or empty."""
    if not isinstance(known, dict) or not isinstance(told, dict):
        return told
    return {key: _since(known.get(key), one) for key, one in told.items() if key in known or one not in (None, {})}


def _digest(value: Any) -> str:
    return hashlib.blake2b(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value, default=str))


def _draw(task: Task, method: Method, samples: int, seed: int, batch_size: int) -> list[list[Any]]:
    """Samples of every goal, as evenly many as can be; every goal has seeds of its own."""
    drawn = []
    for k, goal in enumerate(task.goals):
        prompts = _prompts(goal, (samples - k + len(task.goals) - 1) // len(task.goals))
        how: dict[str, Any] = {"batch_size": batch_size, "temperature": task.temperature, "settings": task.settings}
        drawn.append(method.draw(task.pipe, goal.reward, prompts, seed=_APART * seed + k, **how) if prompts else [])
    return drawn


def _prompts(goal: Goal, count: int) -> list[Any]:
    """Of the samples of a goal, in their order."""
    return [goal.prompts[i % len(goal.prompts)] for i in range(count)]


def _warm_up(task: Task, method: Method, plan: Plan) -> None:
    """What first calls alone pay for is paid; what they have to say is said by those that are measured, too."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _draw(task, method, 1, 2**40, plan.batch_size)


def _measured(task: Task, method: Method, plan: Plan, seed: int, judges: "_Judges") -> Cell:
    with Meter(task.pipe, [rewarded(goal) for goal in task.goals]) as meter:
        drawn = _draw(task, method, plan.samples, seed, plan.batch_size)
    cost = {"seconds": round(meter.seconds, 4), "process_seconds": round(meter.process_seconds, 4)}
    return judges(drawn) | cost | {name: getattr(meter, name) for name in _COST}


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
            made: Any = torch.stack(samples) if isinstance(samples[0], torch.Tensor) else samples
            told = [shown(prompt) for prompt in _prompts(goal, len(samples))]
            reward = RewardSum(terms_of(rewarded(goal)))
            found["reward"] += [_short(value) for value in reward.score(made, told).tolist()]
            reached: Sequence[bool | None] | None = reward.reached(made, told)
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
    try:
        given = plain(goal.gold(samples))
    except Exception as error:
        raise RuntimeError(
            f"`gold` of {task.name} raised {type(error).__name__}: {error}; on a list of {len(samples)} samples."
        ) from error
    values = [as_real(int(one) if isinstance(one, bool) else one) for one in given] if isinstance(given, list) else []
    if len(values) != len(samples) or not all(value is not None and 0 <= value <= 1 for value in values):
        told = f"{given!r:.80}" + (f", {len(given)} of them" if isinstance(given, list) else "")
        raise ValueError(
            f"`gold` of {task.name} must give a number in [0, 1] for every sample, {len(samples)} in a list, got "
            f"{told}."
        )
    return [_short(value) for value in values if value is not None]


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
