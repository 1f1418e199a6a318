"""`redge-guidance evaluate`: tasks by methods and seeds, into a file as they come, and a table of all."""

import argparse
import sys
import warnings
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

from redge_guidance.cli.common import quiet
from redge_guidance.cli.files import Target, check_targets, write_all
from redge_guidance.cli.terminal import PROGRAM, remark, say
from redge_guidance.setups.schema import MOST

_KINDS = ("png", "pdf", "svg")  # of pictures
_MOST_THREADS = 1024


def evaluate(args: argparse.Namespace, written: list[str], on_with: list[str]) -> int:
    """The exit code; `written` and `on_with` as of `generate`."""
    from redge_guidance.evaluate import TASKS, Plan, methods_of, plot, run, table, task

    if args.list:
        say(_listed())
        return 0
    if not args.task:
        raise ValueError(f"TASK must be one of {', '.join(TASKS)}, `all`, or a file in YAML, got none; see `--list`.")
    targets = _targets(args)
    methods = methods_of(args.methods)
    plan = Plan(args.samples, args.seeds, args.batch_size)
    if args.num_inference_steps is not None and not 1 <= args.num_inference_steps <= MOST:
        raise ValueError(f"`--num-inference-steps` must be from 1 to {MOST:,}, got {args.num_inference_steps}.")
    _set_threads(args.threads)
    quiet()
    output = None if args.output is None else Path(args.output)
    on_with += [] if output is None else [args.output]
    names = dict.fromkeys(name for one in args.task for name in (TASKS if one == "all" else [one]))
    called = [name if name in TASKS else Path(name).stem for name in names]
    if len(set(called)) < len(called):
        raise ValueError(f"TASK must be tasks of different names, got {', '.join(called)}; rename the file of one.")
    done = []
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *where: remark(PROGRAM, f"warning: {message}")
        for name in names:
            wanted = task(name)
            if args.num_inference_steps is not None:
                wanted = replace(wanted, settings=wanted.settings | {"num_inference_steps": args.num_inference_steps})
            for cell in run(wanted, methods, plan, output):
                done.append(cell)
                gold = sum(cell["gold"]) / len(cell["gold"])
                if sys.stderr.isatty() or output is not None:
                    remark(PROGRAM, f"{wanted.name}, {cell['method']}, seed {cell['seed']}: {gold:.3f}")
    shown = table(done)
    contents = {"table": shown.encode() + b"\n"} if "table" in targets else {}
    if "plot" in targets:
        contents["plot"] = plot(done, Path(args.plot).suffix[1:])
    write_all([(targets[kind], content) for kind, content in contents.items()])
    written += [targets[kind].name for kind in contents]
    say(shown)
    return 0


def _listed() -> str:
    from redge_guidance.evaluate import TASKS
    from redge_guidance.evaluate.methods import GROUPS

    tasks = [f"  {name:18}{told}" for name, (told, _) in TASKS.items()]
    methods = [f"  {group}:\n" + "\n".join(f"    {name}" for name in names) for group, names in GROUPS.items()]
    return "\n".join(["tasks:", *tasks, "methods, by group:", *methods])


def _targets(args: argparse.Namespace) -> dict[str, Target]:
    named = {"table": args.table, "plot": args.plot}
    if args.plot is not None and Path(args.plot).suffix[1:] not in _KINDS:
        raise ValueError(f"`--plot` must end with .{', .'.join(_KINDS)}, got {args.plot}.")
    if args.plot is not None and find_spec("matplotlib") is None:  # before anything is drawn
        raise RuntimeError("`matplotlib` is not installed, which draws plots; `pip install matplotlib`.")
    targets = {kind: Target(f"--{kind}", name) for kind, name in named.items() if name is not None}
    output = [] if args.output is None else [Target("--output", args.output)]
    check_targets([*targets.values(), *output])
    return targets


def _set_threads(threads: int | None) -> None:
    import torch

    if threads is not None:
        if not 1 <= threads <= _MOST_THREADS:
            raise ValueError(f"`--threads` must be >= 1 and <= {_MOST_THREADS}, got {threads}.")
        torch.set_num_threads(threads)
