"""What `stop_when=Settled(...)` saves, and what it costs in reward, on the embedded models.

Texts toward *positive*. Of all tolerances and patiences the one is chosen, on one seed, that asks the reward about the
fewest texts and loses at most two points of hits; what it does is then reported on other seeds. `asked` counts texts
that the classifier read while guiding, draws and updates one by one; a hit is a finished text that the classifier, or
VADER, which takes no part, finds positive. The clock leaves out the judging. Guidance is that of `PLAIN`, a fixed scale
and twelve draws a step.

python benchmarks/stopping.py
"""

import argparse
import json
import os
import statistics
import time
from typing import Any

import torch
from report import environment, save
from settings import PLAIN
from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

from redge_guidance import GuidanceConfig, guide
from redge_guidance.pipelines import MaskedTextPipeline
from redge_guidance.rewards import TextClassifierReward
from redge_guidance.stopping import Settled

RULES = [Settled(tolerance, patience) for patience in (2, 3, 5) for tolerance in (0.02, 0.1, 0.3)]
LOSS = 0.02  # share of texts


class Bench:
    def __init__(self, samples: int, steps: int):
        self.pipe = MaskedTextPipeline.from_pretrained("builtin:tatoeba-masked")
        self.pipe.set_progress_bar_config(disable=True)
        self.reward = TextClassifierReward.from_pretrained("builtin:sentiment", label="positive")
        self.samples, self.steps, self.vader = samples, steps, SentimentIntensityAnalyzer()

    def __call__(self, rule: Settled | None, seed: int) -> dict[str, float]:
        asked = 0

        def count(module: Any, args: Any, kwargs: dict[str, Any], output: Any) -> None:
            nonlocal asked
            asked += len(output.logits)

        generators = [torch.Generator().manual_seed(1000 * seed + k) for k in range(self.samples)]
        hook = self.reward.model.register_forward_hook(count, with_kwargs=True)
        started = time.perf_counter()
        with guide(self.pipe, self.reward, GuidanceConfig(**PLAIN), stop_when=rule) as handle:
            texts = self.pipe([""] * self.samples, num_inference_steps=self.steps, generator=generators).texts
        seconds = time.perf_counter() - started
        hook.remove()
        figures = [one for step in handle.trace for one in step.sequences if one.free]
        return {
            "asked": asked,
            "guided_steps": sum(not one.stopped for one in figures) / self.samples,
            "seconds": seconds,
            "reward": float(torch.as_tensor(self.reward.score(texts)).mean()),
            "classifier": float(torch.as_tensor(self.reward.reached(texts)).float().mean()),
            "vader": sum(self.vader.polarity_scores(text)["compound"] >= 0.05 for text in texts) / len(texts),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=64, help="texts of a seed")
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--chosen-on", type=int, default=0, help="seed")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--output", default="benchmarks/results/stopping.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    bench, load = Bench(args.samples, args.steps), os.getloadavg()
    plain = bench(None, args.chosen_on)
    tried = {str(rule): bench(rule, args.chosen_on) for rule in RULES}
    print(json.dumps({"never": plain} | tried, indent=1), flush=True)
    kept = [rule for rule in RULES if tried[str(rule)]["classifier"] >= plain["classifier"] - LOSS]
    chosen = min(kept, key=lambda rule: tried[str(rule)]["asked"], default=None)
    runs = {name: [bench(rule, seed) for seed in args.seeds] for name, rule in (("never", None), ("chosen", chosen))}
    means = {
        name: {key: round(statistics.mean(run[key] for run in found), 4) for key in found[0]}
        for name, found in runs.items()
    }
    settings = {"samples": args.samples, "num_inference_steps": args.steps, "seeds": args.seeds, "load_average": load}
    choice = {"seed": args.chosen_on, "chosen": str(chosen), "never": plain, "tried": tried}
    report = {"settings": settings, "choice": choice, "results": means, "by_seed": runs}
    save(args.output, environment("transformers") | report)
    print(json.dumps(means, indent=1))


if __name__ == "__main__":
    main()
