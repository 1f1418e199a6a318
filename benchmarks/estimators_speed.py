"""Time and peak memory of a hard sample and its gradient, against the published `redge` 0.1.0 and torch.

Every method runs in a process of its own: warmed up on a small tensor, timed alone, and its peak resident memory taken
above what stood before, which is the logits and the gradient of the sample. One round runs all methods back to back;
the table has medians over the rounds, ratios first taken within each round. The published `n_steps` counts grid points:
its 5 is our `num_steps=4`. Processor time counts all threads, those that wait for others by spinning too. Every round
says which load average it began with, the busy processes of `--busy` included.

    pip install redge==0.1.0                              # MIT, with its dependency reinmax
    python benchmarks/estimators_speed.py                 # the table, 128 x 126,464
    python benchmarks/estimators_speed.py --busy 2        # the same beside two processes that never rest
    python benchmarks/estimators_speed.py --curve         # cost against categories and rows
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

import torch
from report import environment, save
from torch import Tensor

from redge_guidance import estimators

PEER, DENSE, SUPPORT = "redge 0.1.0: redge", "redge", 64


# One thread that never rests. It ends when its standard input does, with the process that began it, however that ends.
BUSY = """
import os, sys, threading
import torch
torch.set_num_threads(1)
threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
x = torch.randn(2**18)
print("busy", flush=True)
while True:
    x.softmax(-1)
"""


def peer(name: str, **settings: float):
    def sample(logits: Tensor) -> Tensor:
        from redge import SAMPLERS

        return SAMPLERS[name](logits, **settings)

    return sample


def on_support(logits: Tensor) -> Tensor:
    """ReDGE on the likeliest tokens of every row, the selection included."""
    return estimators.redge(logits.topk(SUPPORT, -1).values)


class Method(NamedTuple):
    """`sample` takes logits of `sees` categories and gives samples of `gives`; None is all of them."""

    sample: Callable[[Tensor], Tensor]
    sees: int | None = None
    gives: int | None = None


METHODS = {
    PEER: Method(peer("redge", n_steps=5, t_1=0.5)),
    "redge 0.1.0: redge_cov": Method(peer("redge_cov", n_steps=5, t_1=0.5)),
    "redge 0.1.0: reindge": Method(peer("reindge", n_steps=5, t_1=0.5)),
    "torch: gumbel_softmax": Method(lambda logits: torch.nn.functional.gumbel_softmax(logits, hard=True)),
    "torch: softmax": Method(lambda logits: logits.softmax(-1)),
    **{name: Method(kind()) for name, kind in sorted(estimators.ESTIMATORS.items()) if kind.needs == "gradient"},
    "redge, num_steps=16": Method(lambda logits: estimators.redge(logits, num_steps=16)),
    f"redge, {SUPPORT} likeliest": Method(on_support, gives=SUPPORT),
    f"redge, {SUPPORT} given": Method(estimators.redge, sees=SUPPORT, gives=SUPPORT),
}


def measure(name: str, rows: int, categories: int, repeats: int, threads: int) -> dict[str, float]:
    """Seconds of one forward and backward, by the clock and of processors, and the peak memory above logits and slope.

    Memory is in units of the full logits.
    """
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    method = METHODS[name]

    def tensors(rows: int, categories: int) -> tuple[Tensor, Tensor]:
        logits = torch.randn(rows, method.sees or categories).mul_(4).requires_grad_()
        return logits, torch.randn(rows, method.gives or categories)

    def once(logits: Tensor, slope: Tensor) -> None:
        torch.autograd.grad(method.sample(logits), logits, slope)

    once(*tensors(2, 100))
    inputs = tensors(rows, categories)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    once(*inputs)
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    seconds, processor = [], time.process_time()
    for _ in range(repeats):
        started = time.perf_counter()
        once(*inputs)
        seconds.append(time.perf_counter() - started)
    return {
        "seconds": statistics.median(seconds),
        "processor": (time.process_time() - processor) / repeats,
        "memory": peak / (4 * rows * categories),
    }


@contextmanager
def busy(number: int) -> Iterator[None]:
    """`number` processes that never rest, from when all are at work until the block is left."""
    with ExitStack() as stack:
        for _ in range(number):
            process = subprocess.Popen([sys.executable, "-c", BUSY], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            stack.enter_context(process)  # waits for its end
            stack.callback(process.kill)
            assert process.stdout is not None
            if process.stdout.readline() != b"busy\n":
                raise RuntimeError(f"a busy process ended with {process.wait()} before it began.")
        yield


def in_a_process(method: str, rows: int, categories: int, repeats: int, threads: int) -> dict[str, float]:
    arguments = ["--one", method, "--rows", rows, "--categories", categories]
    arguments += ["--repeats", repeats, "--threads", threads]
    command = [sys.executable, __file__, *map(str, arguments)]
    result: dict[str, float] = json.loads(subprocess.check_output(command, text=True).splitlines()[-1])
    return result


def compare(args: argparse.Namespace) -> dict[str, object]:
    rounds, loads = [], []
    for _ in range(args.rounds):
        loads.append(os.getloadavg()[0])
        rounds.append({m: in_a_process(m, args.rows, args.categories, args.repeats, args.threads) for m in METHODS})
    head = "ms | of processors, ms | times as fast as `redge` 0.1.0 | as torch's gumbel_softmax | peak memory, logits"
    print(f"| method | {head} |\n|---|---|---|---|---|---|")
    table = {}
    for method in METHODS:
        median = {key: statistics.median(r[method][key] for r in rounds) for key in rounds[0][method]}
        for key, other in (("times_redge", PEER), ("times_gumbel", "torch: gumbel_softmax")):
            median[key] = statistics.median(r[other]["seconds"] / r[method]["seconds"] for r in rounds)
        table[method] = median
        print(
            f"| {method} | {1000 * median['seconds']:.4g} | {1000 * median['processor']:.4g} | "
            f"{median['times_redge']:.3g} | {median['times_gumbel']:.3g} | {median['memory']:.2f} |",
            flush=True,
        )
    return {"table": table, "rounds": rounds, "load": loads}


def curve(args: argparse.Namespace) -> dict[str, object]:
    shapes = [(128, k) for k in (1_000, 4_000, 16_000, 64_000, 128_000, 262_144)]
    shapes += [(rows, 32_000) for rows in (16, 64, 256, 1024)]
    points = []
    print("| rows | categories | ours, ns a logit | `redge` 0.1.0, ns a logit |\n|---|---|---|---|")
    for rows, categories in shapes:
        repeats = max(3, int(2e8 / (rows * categories)))
        ours, theirs = (in_a_process(m, rows, categories, repeats, args.threads)["seconds"] for m in (DENSE, PEER))
        points.append({"rows": rows, "categories": categories, "redge": ours, "redge 0.1.0": theirs})
        per = 1e9 / (rows * categories)
        print(f"| {rows} | {categories:,} | {ours * per:.2f} | {theirs * per:.2f} |", flush=True)
    return {"curve": points}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=128)
    parser.add_argument("--categories", type=int, default=126_464)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--busy", type=int, default=0, help="processes that never rest, beside the measurement")
    parser.add_argument("--curve", action="store_true")
    parser.add_argument("--output")
    parser.add_argument("--one", choices=list(METHODS), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.one, args.rows, args.categories, args.repeats, args.threads)))
        return
    torch.set_num_threads(args.threads)
    with busy(args.busy):
        result = curve(args) if args.curve else compare(args)
    name = ("estimators_curve" if args.curve else "estimators_speed") + ("_busy" if args.busy else "")
    settings = {key: value for key, value in vars(args).items() if key not in ("one", "output")}
    save(args.output or f"benchmarks/results/{name}.json", environment("redge") | {"settings": settings} | result)


if __name__ == "__main__":
    main()
