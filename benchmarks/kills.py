"""Runs of 200 prompts that are killed 50 times at random moments, by SIGKILL, with one and with two processes.

The file in the end is compared, byte for byte, with that of a run that nobody stopped. The model is a random one of
some thousand parameters, guided toward a word. Processes are forked from this one, so that a start costs no imports;
all of them get the signal at once, after a time that is drawn uniformly. `runs_that_ended` counts kills that came too
late.

    OMP_NUM_THREADS=1 python benchmarks/kills.py
"""

import argparse
import itertools
import os
import random
import signal
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from report import environment, save

sys.path.insert(0, str(Path(__file__).parent.parent))

from redge_guidance import GuidanceConfig
from redge_guidance.generation import generate_to
from redge_guidance.rewards import LexicalReward
from tests.helpers.processes import launch
from tests.helpers.tiny import tiny_pipeline

BATCH, STEPS = 8, 2
GUIDANCE: dict[str, Any] = {"scale": 3.0, "estimator": "soft", "num_draws": 1}


def prompts(count: int, seed: int) -> list[dict[str, Any]]:
    """Texts of no to four words, with a field each."""
    draw = random.Random(seed)
    return [{"prompt": " ".join(draw.choices("abcde", k=draw.randrange(5))), "id": k} for k in range(count)]


def run(output: Path, entries: list[dict[str, Any]], pipe: Any, reward: Any) -> None:
    settings: dict[str, Any] = {"batch_size": BATCH, "num_inference_steps": STEPS, "progress": False}
    generate_to(output, pipe, entries, reward, GuidanceConfig(**GUIDANCE), **settings)


def measure(processes: int, name: str, args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """One row: a run without a kill, and one with many."""
    entries, pipe, reward = prompts(args.prompts, args.seed), tiny_pipeline(), LexicalReward("a")
    whole, out = folder / f"whole-{processes}{name}", folder / f"killed-{processes}{name}"
    started = time.perf_counter()
    assert launch(lambda: run(whole, entries, pipe, reward), processes) == [0] * processes
    seconds = time.perf_counter() - started
    draw, killed, ended, grown = random.Random(args.seed + processes), 0, 0, []
    while killed < args.kills:
        codes = launch(lambda: run(out, entries, pipe, reward), processes, draw.uniform(0, 0.25 * seconds))
        if codes == [0] * processes:  # finished before its time: begin again
            ended += 1
            for file in folder.glob(f"killed-{processes}{name}*"):
                file.unlink()
            continue
        assert set(codes) <= {0, -signal.SIGKILL}, codes
        killed += -signal.SIGKILL in codes
        grown.append(sum(lines(part) for part in folder.glob(f"killed-{processes}{name}*")))
    assert launch(lambda: run(out, entries, pipe, reward), processes) == [0] * processes
    return {
        "processes": processes,
        "output": name,
        "prompts": args.prompts,
        "kills": killed,
        "runs_that_ended": ended,
        "kills_at_different_numbers_of_records": len(set(grown)),
        "seconds_of_a_run": round(seconds, 2),
        "identical": out.read_bytes() == whole.read_bytes(),
        "left_over": sorted(p.name for p in folder.iterdir() if p.name not in _expected(folder)),
    }


def lines(path: Path) -> int:
    return 0 if path.suffix == ".json" else path.read_bytes().count(b"\n")


def _expected(folder: Path) -> set[str]:
    names = [p.name for p in folder.iterdir() if p.suffix in (".jsonl", ".csv") and not p.name.startswith(".")]
    return {*names, *(f"{name}.run.json" for name in names)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--kinds", nargs="+", default=[".jsonl"], choices=[".jsonl", ".csv"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", default="benchmarks/results/kills.json")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        rows = [measure(count, name, args, Path(folder)) for count, name in itertools.product((1, 2), args.kinds)]
    for row in rows:
        print(row)
    settings = {"seed": args.seed, "batch_size": BATCH, "guidance": GUIDANCE, "num_inference_steps": STEPS}
    save(args.output, environment("transformers", "diffusers") | {"settings": settings, "rows": rows})
    if not all(row["identical"] and not row["left_over"] for row in rows):
        sys.exit("not the same bytes")


if __name__ == "__main__":
    main()
