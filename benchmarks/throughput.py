"""Samples a second of `generate`: batch sizes, guided and not, and two processes against one.

The embedded model of texts, toward the embedded classifier's *positive*. Every figure is the median of `--rounds`
rounds, in each of which everything ran once, one after the other; one sample is drawn before the clock starts.
Processes are those of `torchrun` with one thread each, beside one process with one thread and with two, in batches of
16; their time is that of `generate_to`, from when all are ready.

python benchmarks/throughput.py
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

import torch
from accelerate import PartialState
from report import environment, save

import redge_guidance
from redge_guidance.generation import generate_to
from redge_guidance.pipelines import MaskedTextPipeline
from redge_guidance.rewards import TextClassifierReward

NAMES = ("Tom", "Mary", "She", "He", "They", "We", "I", "You")
SETTINGS = {"gen_length": 16, "num_inference_steps": 8}
BATCHES = (1, 4, 16, 64)
KINDS = ("unguided", "guided")
LAUNCHES = {"1 process, 1 thread": (1, 1), "1 process, 2 threads": (1, 2), "2 processes, 1 thread each": (2, 1)}


def parts(guided: bool) -> tuple[Any, Any]:
    pipe = MaskedTextPipeline.from_pretrained("builtin:tatoeba-masked")
    pipe.set_progress_bar_config(disable=True)
    return pipe, TextClassifierReward.from_pretrained("builtin:sentiment", label="positive") if guided else None


def prompts(count: int) -> list[str]:
    return [NAMES[k % len(NAMES)] for k in range(count)]


def by_batch(pipe: Any, reward: Any, batch_size: int, samples: int) -> float:
    """Samples a second."""
    draw = lambda count: list(redge_guidance.generate(pipe, prompts(count), reward, batch_size=batch_size, **SETTINGS))  # noqa: E731
    draw(1)
    started = time.perf_counter()
    drawn = draw(max(samples, batch_size))
    return len(drawn) / (time.perf_counter() - started)


def worker(folder: str, guided: bool, samples: int) -> None:
    """One of the processes; the first says how many samples a second all of them made."""
    state = PartialState(cpu=True)
    pipe, reward = parts(guided)
    list(redge_guidance.generate(pipe, prompts(1), reward, **SETTINGS))
    state.wait_for_everyone()
    started = time.perf_counter()
    done = generate_to(f"{folder}/out.jsonl", pipe, prompts(samples), reward, progress=False, **SETTINGS)
    if state.is_main_process:
        print(json.dumps(done.made / (time.perf_counter() - started)))


def launched(processes: int, threads: int, guided: bool, samples: int) -> float:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={processes}", "--standalone"]
        command += [__file__, "--worker", folder, "--samples", str(samples), *["--guided"] * guided]
        surroundings = os.environ | {"OMP_NUM_THREADS": str(threads)}
        told = subprocess.run(command, env=surroundings, capture_output=True, text=True, check=True).stdout
    return float(told.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--samples", type=int, default=64, help="of a figure; a batch at least, and twice as many of processes"
    )
    parser.add_argument("--output", default="benchmarks/results/throughput.json")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--guided", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        return worker(args.worker, args.guided, args.samples)
    torch.set_num_threads(1)
    loads, found = [], {kind: {"by_batch": {}, "by_process": {}} for kind in KINDS}
    models = {kind: parts(kind == "guided") for kind in KINDS}
    for _ in range(args.rounds):
        loads.append([round(load, 2) for load in os.getloadavg()])
        for kind in KINDS:
            for size in BATCHES:
                rate = by_batch(*models[kind], size, args.samples)
                found[kind]["by_batch"].setdefault(str(size), []).append(round(rate, 2))
            for name, (processes, threads) in LAUNCHES.items():
                rate = launched(processes, threads, kind == "guided", 2 * args.samples)
                found[kind]["by_process"].setdefault(name, []).append(round(rate, 2))
            print(kind, json.dumps(found[kind]), flush=True)
    results: dict[str, Any] = {
        kind: {way: {k: round(statistics.median(v), 2) for k, v in rates.items()} for way, rates in ways.items()}
        for kind, ways in found.items()
    }
    settings = {**SETTINGS, "samples": args.samples, "rounds": args.rounds, "cores": os.cpu_count()}
    report = {"settings": settings, "load_average": loads, "samples_per_second": results, "rounds": found}
    save(args.output, environment("transformers") | report)
    return None


if __name__ == "__main__":
    main()
