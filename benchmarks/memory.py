"""Does resident memory grow over ten thousand prompts? A guided run into a file, of a tiny model.

Growth is counted from when the first hundred are done to the end of the run, and again over a second call, which finds
everything made. The process holds the model too, so that the model is tiny: what matters is what is kept of a prompt.

python benchmarks/memory.py --prompts 10000
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import torch
from report import environment, save

from redge_guidance import GuidanceConfig
from redge_guidance.generation import generate_to

sys.path.insert(0, str(Path(__file__).parent.parent))  # for the tiny models of the tests
WORDS, STEPS, BATCH = "abcde", 2, 16


def resident() -> float:
    """MB."""
    return psutil.Process().memory_info().rss / 1e6


def prompts(count: int, figures: dict[str, float], started: float) -> Iterator[dict[str, object]]:
    """`count` different prompts with a field of their own; notes the memory whenever a window of batches is done."""
    every = max(count // 10, 1)
    for i in range(count):
        if i in (8 * BATCH, 16 * BATCH) or (i and i % every < 8 * BATCH and i % (8 * BATCH) == 0):
            figures[str(i)] = round(resident(), 2)
            print(f"{i}: {figures[str(i)]} MB, {time.perf_counter() - started:.0f} s", flush=True)
        yield {"prompt": " ".join(WORDS[i // 5**k % 5] for k in range(6)), "id": i, "note": f"what came with it, {i}"}


def run(count: int, output: str) -> tuple[dict[str, float], float]:
    from tests.helpers.tiny import tiny_pipeline, tiny_reward

    figures: dict[str, float] = {}
    pipe, reward, started = tiny_pipeline(), tiny_reward(), time.perf_counter()
    source = prompts(count, figures, started)
    config = GuidanceConfig(num_draws=1)
    done = generate_to(output, pipe, source, reward, config, batch_size=BATCH, gen_length=4, num_inference_steps=STEPS)
    figures["end"] = round(resident(), 2)
    if done.made + done.before != count:
        raise SystemExit(f"{done.made} of {count} samples were made")
    return figures, round(time.perf_counter() - started, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=10_000)
    parser.add_argument("--output", default="benchmarks/results/memory.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        output = f"{folder}/out.jsonl"
        (first, seconds), (again, _) = run(args.prompts, output), run(args.prompts, output)
    results = {
        "resident_mb": first,
        "growth_mb": round(first[list(first)[-2]] - first[str(8 * BATCH)], 2),
        "growth_with_sorting_mb": round(first["end"] - first[str(8 * BATCH)], 2),
        "growth_of_second_call_mb": round(again["end"] - first["end"], 2),
        "seconds": seconds,
    }
    settings = {"prompts": args.prompts, "batch_size": BATCH, "num_inference_steps": STEPS}
    save(args.output, environment("transformers") | {"settings": settings, "results": results})
    print(results)


if __name__ == "__main__":
    main()
