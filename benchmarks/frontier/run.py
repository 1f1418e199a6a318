"""Everything published about methods: which, at which price, on which task. Killed and started again it goes on.

    python benchmarks/frontier/run.py                  # all parts, on two processes
    python benchmarks/frontier/run.py --parts hacking  # one
    python benchmarks/frontier/run.py --smoke          # each part in small, into a folder that is thrown away

What is measured is in `benchmarks/results/frontier/PART.jsonl`, a line a task, method and seed; tables and pictures
beside this file are made of it. Each process has one thread; all methods of a task and seed run one after the other in
one process, so that their times can be compared.
"""

import argparse
import contextlib
import functools
import multiprocessing
import os
import tempfile
import time
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from redge_guidance.evaluate import Plan, cells, methods_of, plot, run, table, task

HERE, RESULTS = Path(__file__).parent, Path(__file__).parent.parent / "results" / "frontier"


@dataclass(frozen=True)
class Part:
    """Tasks by methods by seeds; each task is a process.

    `few` are the methods of a smoke run, `longer` what a task has besides, so that a best-of-n took as long as anything
    else there; `order` is the sampler's.
    """

    tasks: tuple[str, ...]
    methods: tuple[str, ...]
    samples: int
    few: tuple[str, ...]
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    batch_size: int = 64
    steps: int | None = None
    order: str | None = None
    longer: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


TASKS = ("sentiment", "rare", "two", "words", "similarity", "uniform", "digits")
SUDOKUS = tuple(f"sudoku-{kind}" for kind in ("easy", "medium", "hard", "expert"))
FLUENT = ("unguided", *(f"guided[scale: {scale}]" for scale in (1, 4, 16)))
RULES = ("straight_through", "gumbel_softmax", "reinmax", "redge", "guided[estimator: {redge: {hard: false}}]")
PLAIN = (30, 125, 500, 2000, 8000)
FOOLED = ("unguided", *(f"guided[scale: {s}{more}]" for more in ("", ", kl_budget: 0.5") for s in PLAIN), "guided")
GREEDY = "unguided[sampler: {temperature: 0}]"
BOARDS = ("unguided", GREEDY, "guided", *RULES, "best-of-4", "fk-4", "guided-fk-4")
FREE = ("unguided", "guided", "guided[every: 1]", *RULES, "best-of-4", "guided-best-of-4")
PARTS = {
    "methods": Part(
        TASKS,
        ("main",),
        24,
        few=("main",),
        longer={"similarity": ("best-of-16",), "digits": ("best-of-16", "best-of-32")},
    ),
    "estimators": Part(("sentiment", "digits"), ("unguided", "estimators"), 20, few=("redge",), seeds=(0, 1)),
    "sudoku": Part(SUDOKUS, BOARDS, 64, few=("guided",), seeds=(0,)),
    "ancestral": Part(("sudoku-medium", "sudoku-hard"), FREE, 64, few=("guided",), seeds=(0, 1), order="ancestral"),
    "hacking": Part(("sentiment",), ("strengths", "best-of-2"), 20, few=("guided[scale: 2, kl_budget: 0.5]",)),
    "fooled": Part(("digits-plain",), FOOLED, 20, few=("guided[scale: 500]",)),
    "fluent": Part(("sentiment-fluent",), FLUENT, 8, few=("unguided",)),
}


def small(part: Part) -> Part:
    """The same in seconds, on the first task alone."""
    return replace(part, tasks=part.tasks[:1], methods=part.few, samples=2, seeds=(0,), steps=2, longer={})


def draw(name: str, wanted: str, part: Part, folder: Path) -> str:
    """The results of one task of a part, into a file of its own."""
    torch.set_num_threads(1)
    drawn = task(wanted)
    drawn = (
        drawn if part.steps is None else replace(drawn, settings=drawn.settings | {"num_inference_steps": part.steps})
    )
    if part.order is not None:
        scheduler = drawn.pipe.scheduler
        drawn.pipe.scheduler = scheduler.from_config(scheduler.config, unmasking_order=part.order)
        drawn = replace(drawn, made_from={"unmasking_order": part.order})
    plan = Plan(max(part.samples, len(drawn.goals)), part.seeds, part.batch_size)
    parent, done = os.getppid(), 0
    methods = methods_of([*part.methods, *part.longer.get(wanted, ())])
    for done, _ in enumerate(run(drawn, methods, plan, folder / f"{name}-{wanted}.jsonl"), 1):  # noqa: B007
        if os.getppid() != parent:  # which was killed
            raise SystemExit(1)
    return f"{name}, {wanted}: {done} cells"


def report(name: str, part: Part, folder: Path, pictures: Path) -> None:
    """The table and the picture of a part, of the tasks that are done."""
    found = [cell for task in part.tasks for cell in cells(folder / f"{name}-{task}.jsonl").values()]
    if found:
        (pictures / f"{name}.md").write_text(table(found) + "\n")
        (pictures / f"{name}.png").write_bytes(plot(found))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS), metavar="PART")
    parser.add_argument("--tasks", nargs="+", help="of these parts some tasks alone")
    parser.add_argument("--seeds", nargs="+", type=int, help="of these parts some seeds alone")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--smoke", action="store_true")
    args = parser.parse_args()
    parts = {name: small(PARTS[name]) if args.smoke else PARTS[name] for name in args.parts}
    parts = {
        name: part if args.seeds is None else replace(part, seeds=tuple(args.seeds)) for name, part in parts.items()
    }
    with tempfile.TemporaryDirectory() as thrown_away:
        folder = Path(thrown_away) if args.smoke else RESULTS
        folder.mkdir(parents=True, exist_ok=True)
        began = time.perf_counter()
        jobs = [(name, task, part) for name, part in parts.items() for task in part.tasks]
        jobs = [job for job in jobs if args.tasks is None or job[1] in args.tasks]
        if not jobs:
            parser.error(f"--tasks must name tasks of {', '.join(parts)}, got {', '.join(args.tasks)}")
        several = None if args.smoke else ProcessPoolExecutor(args.processes, multiprocessing.get_context("spawn"))
        with contextlib.nullcontext() if several is None else several:
            drawing = functools.partial(draw, folder=folder)
            for told in (map if several is None else several.map)(drawing, *zip(*jobs, strict=True)):
                print(f"{time.perf_counter() - began:6.0f} s  {told}", flush=True)
        for name, part in parts.items():  # with all that is there
            report(name, part, folder, folder if args.smoke else HERE)


if __name__ == "__main__":
    main()
