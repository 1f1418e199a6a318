"""Does resident memory grow over many guided calls? A new prompt each, one handle; growth after the first 100.

python benchmarks/memory.py --calls 1000
"""

import argparse
from pathlib import Path

import torch
from report import environment, save

from redge_guidance import GuidanceConfig, guide
from redge_guidance.pipelines import MaskedTextPipeline
from redge_guidance.rewards import TextClassifierReward

NAMES = ("Tom", "Mary", "She", "He", "They", "We", "I", "You", "It", "Who")


def resident() -> float:
    """MB, of Linux."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=1000)
    parser.add_argument("--output", default="benchmarks/results/memory.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    pipe = MaskedTextPipeline.from_pretrained("builtin:tatoeba-masked")
    pipe.set_progress_bar_config(disable=True)
    reward = TextClassifierReward.from_pretrained("builtin:sentiment", label="positive")
    figures = {}
    with guide(pipe, reward, GuidanceConfig(num_draws=1)) as handle:
        for call in range(args.calls):
            prompts = [NAMES[call % 10], NAMES[call // 10 % 10]]
            pipe(prompts, gen_length=6, num_inference_steps=2, generator=torch.Generator().manual_seed(call))
            if call + 1 in (100, args.calls) or (call + 1) % 200 == 0:
                figures[str(call + 1)] = round(resident(), 2)
    growth = round(figures[str(args.calls)] - figures["100"], 2)
    results = {"resident_mb": figures, "growth_mb": growth, "steps": handle.trace.total}
    save(args.output, environment("transformers") | {"settings": {"calls": args.calls}, "results": results})
    print(results)


if __name__ == "__main__":
    main()
