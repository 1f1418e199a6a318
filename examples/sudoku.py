"""Solve Sudoku puzzles with a masked diffusion model: bare, guided by the rules, and by particles that compete.

    python examples/sudoku.py --difficulty hard --number 16

The model has learned what full boards look like; the rules are a reward, `AllDifferentReward("sudoku")`, whose gradient
guidance climbs in every step. `violations` counts the digits that rows, columns and boxes lack.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import torch

from redge_guidance import GuidanceConfig, guide, hub
from redge_guidance.particles import ParticleConfig, search
from redge_guidance.pipelines import MaskedTextPipeline
from redge_guidance.rewards import AllDifferentReward
from redge_guidance.rewards.text.all_different import violations

MODEL = "builtin:sudoku-masked"


class _Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Defaults, and the text above as it is."""


def load_puzzles(difficulty: str) -> list[str]:
    """Puzzles of a class that come with the model, 81 characters each, `.` for an empty cell."""
    made = json.loads((Path(hub.resolve(MODEL)) / "puzzles.json").read_text(encoding="utf-8"))
    return [puzzle for puzzle, _ in made[difficulty]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=_Help)
    parser.add_argument("--difficulty", choices=("easy", "medium", "hard", "expert"), default="hard")
    parser.add_argument("--number", type=int, choices=range(1, 65), metavar="1 to 64", default=16, help="of puzzles")
    parser.add_argument("--steps", type=int, default=20, help="calls of the model for a board")
    parser.add_argument("--scale", type=float, default=2.0, help="nats that a unit of the penalty is worth")
    parser.add_argument("--particles", type=int, default=8, help="that compete for a board, drawn at temperature 1")
    args = parser.parse_args()
    try:
        settings, config = GuidanceConfig(scale=args.scale), ParticleConfig(num_particles=args.particles)
    except ValueError as error:
        parser.error(str(error))
    if args.steps < 1:
        parser.error(f"--steps must be at least 1, got {args.steps}")
    pipe = MaskedTextPipeline.from_pretrained(MODEL)
    pipe.set_progress_bar_config(disable=True)
    rules = AllDifferentReward("sudoku")
    prompts = [puzzle.replace(".", "[MASK]") for puzzle in load_puzzles(args.difficulty)[: args.number]]

    def draw() -> list[str]:
        generators = [torch.Generator().manual_seed(i) for i in range(len(prompts))]
        return pipe(prompts, num_inference_steps=args.steps, generator=generators).texts

    def guided() -> list[str]:
        with guide(pipe, rules, settings):
            return draw()

    def compete() -> list[str]:
        found = search(pipe, prompts, rules, config, num_inference_steps=args.steps, temperature=1.0)
        return [one.best for one in found]

    report("bare", draw)
    boards = report("guided", guided)
    report(f"best of {args.particles} particles", compete)
    best = min(boards, key=violations)
    print(f"\na guided board with {violations(best)} violations:")
    print("\n".join(best[9 * k : 9 * k + 9] for k in range(9)))


def report(name: str, solve: Callable[[], list[str]]) -> list[str]:
    """The boards, of which the share that is solved is printed."""
    start = time.perf_counter()
    boards = solve()
    wrong = [violations(board) for board in boards]
    solved, mean = sum(n == 0 for n in wrong), sum(wrong) / len(wrong)
    print(
        f"{name}: {solved} of {len(boards)} solved, {mean:.1f} violations a board, {time.perf_counter() - start:.1f} s"
    )
    return boards


if __name__ == "__main__":
    main()
