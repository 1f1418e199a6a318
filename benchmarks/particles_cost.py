"""What particles cost beside the model and the reward.

64 texts of `builtin:tatoeba-masked` in 8 groups of 8, by the judge `builtin:sentiment`, one thread, process time. The
same sampler without particles, guided or not, is run in turns with them. What is left of each when the model, the
scheduler and the calls of the reward are taken away is compared:

    own = rest of particles - rest of the sampler,    share = own / (particles - own).

    python benchmarks/particles_cost.py
"""

import argparse
import contextlib
import functools
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from report import environment, save

from redge_guidance import GuidanceConfig, guide
from redge_guidance.particles import ParticleConfig, particles
from redge_guidance.pipelines import MaskedTextPipeline
from redge_guidance.rewards import TextClassifierReward

GROUPS, SIZE = 8, 8
SETTINGS = {
    "not guided": (ParticleConfig(num_particles=SIZE), None),
    "not guided, every=2": (ParticleConfig(num_particles=SIZE, every=2), None),
    "guided": (ParticleConfig(num_particles=SIZE), GuidanceConfig()),
    'guided, intermediate="guidance"': (
        ParticleConfig(num_particles=SIZE, intermediate="guidance"),
        GuidanceConfig(),
    ),
}


class Clock:
    """Seconds of process time that were spent in some functions, and how often they were called."""

    def __init__(self) -> None:
        self.spent, self.calls = 0.0, 0

    def timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            started = time.process_time()
            try:
                return function(*args, **kwargs)
            finally:
                self.spent += time.process_time() - started
                self.calls += 1

        return wrapper


JUDGING, SAMPLING = Clock(), Clock()


class Timed(TextClassifierReward):
    __call__ = JUDGING.timed(TextClassifierReward.__call__)


def run(pipe: MaskedTextPipeline, attached: contextlib.AbstractContextManager, seed: int) -> dict[str, float]:
    """Seconds of one call: all, of the reward's forward passes, and what is left without these, model and scheduler."""
    for clock in (JUDGING, SAMPLING):
        clock.spent, clock.calls = 0.0, 0
    with attached:
        started = time.process_time()
        pipe([""] * (GROUPS * SIZE), generator=torch.Generator().manual_seed(seed))
        total = time.process_time() - started
    rest = total - JUDGING.spent - SAMPLING.spent
    return {"all": total, "reward": JUDGING.spent, "rest": rest, "calls": JUDGING.calls}


def measure(pipe: MaskedTextPipeline, reward: Timed, name: str, repeats: int) -> dict[str, float]:
    config, guidance = SETTINGS[name]
    rows = []
    for seed in range(-1, repeats):  # the first one warms up
        without = contextlib.nullcontext() if guidance is None else guide(pipe, reward, guidance)
        alone = run(pipe, without, max(seed, 0))
        found = run(pipe, particles(pipe, reward, config, guidance), max(seed, 0))
        own = found["rest"] - alone["rest"]
        row = {"sampler": alone["all"], "particles": found["all"], "reward": found["reward"], "own": own}
        rows.append(row | {"share": own / (found["all"] - own), "more_calls": found["calls"] - alone["calls"]})
    return {key: statistics.median(row[key] for row in rows[1:]) for key in rows[0]} | {
        "lowest_share": min(row["share"] for row in rows[1:]),
        "highest_share": max(row["share"] for row in rows[1:]),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", nargs="*", default=list(SETTINGS))
    parser.add_argument("--output", default="benchmarks/results/particles_cost.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    pipe = MaskedTextPipeline.from_pretrained("builtin:tatoeba-masked")
    pipe.set_progress_bar_config(disable=True)
    pipe.model.forward = SAMPLING.timed(pipe.model.forward)
    pipe.scheduler.step = SAMPLING.timed(pipe.scheduler.step)
    reward = Timed.from_pretrained("builtin:sentiment", label="negative")
    rows = {}
    for name in arguments.only:
        rows[name] = measure(pipe, reward, name, arguments.repeats)
        print(name, {key: round(value, 3) for key, value in rows[name].items()}, flush=True)
        report = environment("transformers", "diffusers") | {"texts": GROUPS * SIZE, "repeats": arguments.repeats}
        save(arguments.output, report | {"rows": rows})


if __name__ == "__main__":
    main()
