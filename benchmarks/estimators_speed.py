"""Time and peak memory of a hard sample and its gradient, against the published `redge` 0.1.0 and torch.

Every method runs in a process of its own: warmed up on a small tensor, timed alone, and its peak resident memory taken
above what stood before, which is the logits and the gradient of the sample. One round runs all methods back to back;
the table has medians over the rounds, ratios first taken within each round. The published `n_steps` counts grid points:
its 5 is our `num_steps=4`. Processor time counts all threads, those that wait for others by spinning too. Every round
says which load average it began with, the busy processes of `--busy` included.

On CUDA a method is warmed up by three calls at full size and timed by events; its memory is what torch has allocated at
most. Memory is in units of the bytes of all logits in their own dtype. A method that fails, because it does not know
the dtype or because memory is short, has its message in the table and null in the file.

    pip install redge==0.1.0                              # MIT, with its dependency reinmax
    python benchmarks/estimators_speed.py                 # the table, 128 x 126,464
    python benchmarks/estimators_speed.py --busy 2        # the same beside two processes that never rest
    python benchmarks/estimators_speed.py --curve         # cost against categories and rows
    python benchmarks/estimators_speed.py --device cuda --dtype bfloat16 --rows 512 --categories 151936
"""

import argparse
import gc
import json
import os
import resource
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from report import environment, save
from torch import Tensor

from redge_guidance import estimators

PEER, DENSE, SUPPORT = "redge 0.1.0: redge", "redge", 64
GUMBEL, SOFTMAX = "torch: gumbel_softmax", "torch: softmax"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
WARM_UPS = 3
Result = dict[str, Any]  # figures by name, or an `error`

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
    GUMBEL: Method(lambda logits: torch.nn.functional.gumbel_softmax(logits, hard=True)),
    SOFTMAX: Method(lambda logits: logits.softmax(-1)),
    **{name: Method(kind()) for name, kind in sorted(estimators.ESTIMATORS.items()) if kind.needs == "gradient"},
    "redge, num_steps=16": Method(lambda logits: estimators.redge(logits, num_steps=16)),
    f"redge, {SUPPORT} likeliest": Method(on_support, gives=SUPPORT),
    f"redge, {SUPPORT} given": Method(estimators.redge, sees=SUPPORT, gives=SUPPORT),
}


def measure(args: argparse.Namespace) -> dict[str, float]:
    """Seconds of one forward and backward, by the clock and of processors, and the peak memory above logits and slope.

    Memory is in units of the bytes of the full logits in their own dtype.
    """
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    method, dtype = METHODS[args.one], DTYPES[args.dtype]

    def tensors(rows: int, categories: int) -> tuple[Tensor, Tensor]:
        logits = torch.randn(rows, method.sees or categories, device=args.device).mul_(4).to(dtype).requires_grad_()
        return logits, torch.randn(rows, method.gives or categories, device=args.device).to(dtype)

    def once(logits: Tensor, slope: Tensor) -> None:
        torch.autograd.grad(method.sample(logits), logits, slope)

    once(*tensors(2, 100))
    inputs = tensors(args.rows, args.categories)
    timed = on_cuda if args.device == "cuda" else on_cpu
    seconds, processor, peak = timed(lambda: once(*inputs), args.repeats)
    return {
        "seconds": seconds,
        "processor": processor,
        "memory": peak / (dtype.itemsize * args.rows * args.categories),
    }


def on_cpu(once: Callable[[], None], repeats: int) -> tuple[float, float, int]:
    """Median seconds by the clock, seconds of processors, and bytes of peak memory, of one call."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    once()
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    seconds, processor = [], time.process_time()
    for _ in range(repeats):
        started = time.perf_counter()
        once()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds), (time.process_time() - processor) / repeats, peak


def on_cuda(once: Callable[[], None], repeats: int) -> tuple[float, float, int]:
    """As `on_cpu`, by the events and the allocator of the device."""
    for _ in range(WARM_UPS):
        once()
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    once()
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated() - before
    seconds, processor = [], []
    for _ in range(repeats):
        started, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        gc.collect()  # the published methods leave cycles, with tensors as large as the logits in them
        torch.cuda.synchronize()
        before_call = time.process_time()
        started.record()
        once()
        ended.record()
        torch.cuda.synchronize()
        processor.append(time.process_time() - before_call)
        seconds.append(started.elapsed_time(ended) / 1000)
    return statistics.median(seconds), statistics.median(processor), peak


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


def in_a_process(method: str, args: argparse.Namespace, **changed: int) -> Result:
    """What `measure` says of a method, or `{"error": why there is nothing to say}`."""
    command = [sys.executable, __file__, "--one", method]
    for name in ("rows", "categories", "repeats", "threads", "device", "dtype"):
        command += [f"--{name}", str(changed.get(name, getattr(args, name)))]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    lines = done.stdout.splitlines()
    if done.returncode or not lines:
        return {"error": f"the process ended with {done.returncode}"}
    result: Result = json.loads(lines[-1])
    return result


def row_of(method: str, rounds: list[dict[str, Result]]) -> Result:
    """Medians over the rounds and over the ratios within each; None for what a method that failed leaves open."""
    failed = [r[method]["error"] for r in rounds if "error" in r[method]]

    def median(key: str, over: str | None = None, under: str | None = None) -> float | None:
        if any("error" in r[name] for r in rounds for name in (method, over, under) if name):
            return None
        tops = [r[over or method][key] for r in rounds]
        return statistics.median(top / r[under][key] if under else top for top, r in zip(tops, rounds, strict=True))

    row: Result = {key: median(key) for key in ("seconds", "processor", "memory")}
    row["times_redge"] = median("seconds", PEER, method)
    row["times_gumbel"] = median("seconds", GUMBEL, method)
    row["softmaxes"] = median("seconds", method, SOFTMAX)
    return row | ({"error": failed[0]} if failed else {})


def compare(args: argparse.Namespace) -> dict[str, object]:
    rounds: list[dict[str, Result]] = []
    loads = []
    for _ in range(args.rounds):
        loads.append(os.getloadavg()[0])
        rounds.append({})
        for method in METHODS:
            rounds[-1][method] = in_a_process(method, args)
            print(f"{method}: {rounds[-1][method]}", file=sys.stderr, flush=True)
    head = "ms | of processors, ms | times as fast as `redge` 0.1.0 | as torch's gumbel_softmax | in torch's softmaxes"
    print(f"| method | {head} | peak memory, logits |\n|---|---|---|---|---|---|---|")
    table = {method: row_of(method, rounds) for method in METHODS}
    for method, row in table.items():
        cells = [None if row[key] is None else 1000 * row[key] for key in ("seconds", "processor")]
        cells += [row[key] for key in ("times_redge", "times_gumbel", "softmaxes", "memory")]
        shown = ["-" if cell is None else f"{cell:.4g}" for cell in cells]
        if "error" in row:
            shown[0] = row["error"]
        print(f"| {' | '.join([method, *shown])} |", flush=True)
    return {"table": table, "rounds": rounds, "load": loads}


def curve(args: argparse.Namespace) -> dict[str, object]:
    shapes = [(128, k) for k in (1_000, 4_000, 16_000, 64_000, 128_000, 262_144)]
    shapes += [(rows, 32_000) for rows in (16, 64, 256, 1024)]
    points = []
    print("| rows | categories | ours, ns a logit | `redge` 0.1.0, ns a logit |\n|---|---|---|---|")
    for rows, categories in shapes:
        shape = {"rows": rows, "categories": categories, "repeats": max(3, int(2e8 / (rows * categories)))}
        ours, theirs = (in_a_process(m, args, **shape).get("seconds") for m in (DENSE, PEER))
        points.append({"rows": rows, "categories": categories, "redge": ours, "redge 0.1.0": theirs})
        cells = ["-" if s is None else f"{s * 1e9 / (rows * categories):.2f}" for s in (ours, theirs)]
        print(f"| {rows} | {categories:,} | {' | '.join(cells)} |", flush=True)
    return {"curve": points}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=128)
    parser.add_argument("--categories", type=int, default=126_464)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtype", choices=list(DTYPES), default="float32")
    parser.add_argument("--repeats", type=int, help="5, and 20 on CUDA")
    parser.add_argument("--rounds", type=int, help="3, and 1 on CUDA")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--busy", type=int, default=0, help="processes that never rest, beside the measurement")
    parser.add_argument("--curve", action="store_true")
    parser.add_argument("--output")
    parser.add_argument("--one", choices=list(METHODS), help=argparse.SUPPRESS)
    args = parser.parse_args()
    repeats, rounds = (5, 3) if args.device == "cpu" else (20, 1)
    args.repeats, args.rounds = args.repeats or repeats, args.rounds or rounds
    return args


def main() -> None:
    args = arguments()
    if args.one:
        try:
            result: Result = measure(args)
        except Exception as error:
            traceback.print_exc()
            result = {"error": f"{type(error).__name__}: {error}".splitlines()[0].replace("|", "/")[:200]}
        print(json.dumps(result))
        return
    torch.set_num_threads(args.threads)
    with busy(args.busy):
        result = curve(args) if args.curve else compare(args)
    name = ("estimators_curve" if args.curve else "estimators_speed") + ("_busy" if args.busy else "")
    if (args.device, args.dtype) != ("cpu", "float32"):
        name += f"_{args.device}_{args.dtype}"
    settings = {key: value for key, value in vars(args).items() if key not in ("one", "output")}
    about = environment("redge", device=args.device) | {"settings": settings}
    save(args.output or f"benchmarks/results/{name}.json", about | result)


if __name__ == "__main__":
    main()
