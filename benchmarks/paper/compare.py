"""The experiments of the ReDGE paper (arXiv 2601.00781), our estimators beside the published `redge` 0.1.0.

Both sides see the same problem, optimizer and seeds; only the sampler differs. Settings are the published ones where
the paper's repository states them (polynomial: t1, tau and steps; VAE: sizes and learning rate), else those in
`problems`. The published `n_steps` counts grid points, ours denoiser evaluations: n_steps = num_steps + 1. Lower is
better in every column; the difference is ours minus theirs, with a 95 % interval over the seeds (t distribution).

    pip install redge==0.1.0
    python benchmarks/paper/compare.py --digits mnist-8500.npz
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, one_hot

sys.path.insert(0, str(Path(__file__).parents[1]))
from report import environment, save

from redge_guidance import estimators

Sampler = Callable[[Tensor], Tensor]
STUDENT = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 8: 2.365, 10: 2.262}
PUBLISHED = {"straight_through": "st", "gumbel_softmax": "gumbel"}  # where the names differ


def samplers(name: str, **settings: float) -> dict[str, Sampler]:
    """The same estimator, ours and the published one."""
    from redge import SAMPLERS

    renamed = {{"num_steps": "n_steps", "t1": "t_1"}.get(key, key): value for key, value in settings.items()}
    if "n_steps" in renamed:
        renamed["n_steps"] += 1
    if name == "reinmax":
        renamed["tau"] = 1.0
    published = SAMPLERS[PUBLISHED.get(name, name)]
    ours = partial(getattr(estimators, name), **settings)
    return {"ours": ours, "published": lambda logits: published(logits=logits, **renamed)}


def polynomial(sampler: Sampler, seed: int, power: float = 2.0, bits: int = 128, offset: float = 0.45) -> float:
    """min over pi of E ||b - offset||_p^p / bits, b bits. The exact loss of the result minus that of the optimum."""
    torch.manual_seed(seed)
    logits = torch.zeros(bits, 2, requires_grad=True)
    adam = torch.optim.Adam([logits], lr=0.05)
    for _ in range(500):
        bit = sampler(logits.expand(256, bits, 2))[..., 1]
        loss = (bit - offset).abs().pow(power).sum(-1).mean() / bits
        adam.zero_grad()
        loss.backward()
        adam.step()
    costs = torch.tensor([offset, 1 - offset]).pow(power)
    return ((logits.detach().softmax(-1) * costs).sum(-1).mean() - costs.min()).item()


def mixture(sampler: Sampler, seed: int, components: int = 20, points: int = 500) -> float:
    """Means of a 2-D Gaussian mixture by variational inference of the assignments; nats a point above the truth.

    Means are drawn from N(0, 15^2 I), points have standard deviation 2. The assignments' posterior has one row of
    logits a point; the means start at points drawn at random. Of the result the exact likelihood is taken.
    """
    torch.manual_seed(seed)
    true, deviation = 15 * torch.randn(components, 2), 2.0
    data = true[torch.randint(components, (points,))] + deviation * torch.randn(points, 2)
    means = data[torch.randperm(points)[:components]].clone().requires_grad_()
    logits = torch.zeros(points, components, requires_grad=True)
    adam = torch.optim.Adam([{"params": [means], "lr": 0.1}, {"params": [logits], "lr": 0.1}])

    def nll(means: Tensor) -> Tensor:
        squared = (data[:, None] - means).square().sum(-1) / (2 * deviation**2)
        return -(-squared).logsumexp(-1).mean()

    for _ in range(1000):
        assigned = sampler(logits.expand(8, points, components)) @ means
        q = logits.log_softmax(-1)
        energy = (data - assigned).square().sum(-1).mean(0) / (2 * deviation**2)
        loss = (energy + (q.exp() * q).sum(-1)).mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
    return (nll(means.detach()) - nll(true)).item()


def vae(sampler: Sampler, seed: int, digits: Tensor, held_out: Tensor, epochs: int = 30) -> float:
    """Negative ELBO in nats a digit, held out, of a VAE with 48 binary latents; exact draws judge the result."""
    torch.manual_seed(seed)
    encoder = nn.Sequential(
        nn.Linear(784, 512), nn.LeakyReLU(), nn.Linear(512, 256), nn.LeakyReLU(), nn.Linear(256, 96)
    )
    decoder = nn.Sequential(
        nn.Linear(96, 256), nn.LeakyReLU(), nn.Linear(256, 512), nn.LeakyReLU(), nn.Linear(512, 784)
    )
    adam = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=5e-4)

    def negative_elbo(x: Tensor, draw: Sampler) -> Tensor:
        logits = encoder(x).view(-1, 48, 2)
        log_q = logits.log_softmax(-1)
        kl = (log_q.exp() * (log_q + np.log(2))).sum((-1, -2))
        pixels = decoder(draw(logits).flatten(1))
        return (binary_cross_entropy_with_logits(pixels, x, reduction="none").sum(-1) + kl).mean()

    for _ in range(epochs):
        for batch in torch.randperm(len(digits)).split(200):
            loss = negative_elbo(digits[batch], sampler)
            adam.zero_grad()
            loss.backward()
            adam.step()
    with torch.no_grad():
        return torch.stack([negative_elbo(held_out, exact_draw) for _ in range(10)]).mean().item()


def exact_draw(logits: Tensor) -> Tensor:
    return torch.distributions.OneHotCategorical(logits=logits).sample()


def sudoku(sampler: Sampler, seed: int, puzzles: int = 32, hidden: int = 30) -> float:
    """Rule violations a puzzle after 300 Adam steps on the penalty of the rules; no model of puzzles.

    Puzzles are random symmetries of a full grid with `hidden` cells removed. A violation is a digit that a row, column
    or box lacks.
    """
    generator = torch.Generator().manual_seed(seed)
    clues = torch.stack([full_grid(generator) for _ in range(puzzles)])
    free = torch.zeros(puzzles, 81).scatter(1, torch.rand(puzzles, 81, generator=generator).topk(hidden).indices, 1)
    free, given = free.bool(), one_hot(clues, 9).float()
    units = rule_units()
    torch.manual_seed(seed)
    logits = torch.zeros(int(free.sum()), 9, requires_grad=True)
    adam = torch.optim.Adam([logits], lr=0.3)

    def fill(cells: Tensor) -> Tensor:
        return given.masked_scatter(free[..., None], cells)

    for _ in range(300):
        penalty = (fill(sampler(logits))[:, units].sum(2) - 1).square().sum()
        adam.zero_grad()
        penalty.backward()
        adam.step()
    best = one_hot(logits.detach().argmax(-1), 9).float()
    return (fill(best)[:, units].sum(2) == 0).sum().item() / puzzles


def rule_units() -> Tensor:
    """`(27, 9)`, the cells of every row, column and box."""
    cell = torch.arange(81).view(9, 9)
    boxes = cell.view(3, 3, 3, 3).transpose(1, 2).reshape(9, 9)
    return torch.cat([cell, cell.T, boxes])


def full_grid(generator: torch.Generator) -> Tensor:
    """`(81,)` digits 0-8 that obey the rules."""

    def shuffled_lines() -> Tensor:
        bands = torch.randperm(3, generator=generator)
        return torch.cat([3 * band + torch.randperm(3, generator=generator) for band in bands])

    row, column = torch.meshgrid(torch.arange(9), torch.arange(9), indexing="ij")
    grid = (3 * row + row.div(3, rounding_mode="floor") + column) % 9
    grid = torch.randperm(9, generator=generator)[grid]
    return grid[shuffled_lines()][:, shuffled_lines()].flatten()


def problems(digits: str | None) -> dict[str, tuple[Callable[..., float], dict[str, dict[str, float]]]]:
    """Name: the experiment and the settings of every estimator in it."""
    shared = {"straight_through": {}, "reinmax": {}}
    polynomial_settings = shared | {
        "gumbel_softmax": {"tau": 0.02},
        "redge": {"num_steps": 2, "t1": 0.1},
        "redge_cov": {"num_steps": 2, "t1": 0.2},
        "reindge": {"num_steps": 2, "t1": 0.8},
    }
    chains = {name: {"num_steps": 4, "t1": 0.5} for name in ("redge", "redge_cov", "reindge")}
    others = shared | {"gumbel_softmax": {"tau": 0.5}} | chains
    found = {f"polynomial p={p}": (partial(polynomial, power=p), polynomial_settings) for p in (1.5, 2.0, 3.0)}
    found |= {"mixture": (mixture, others), "sudoku": (sudoku, others)}
    if digits is not None:
        with np.load(digits) as arrays:
            images = torch.from_numpy(arrays["images"]).float().flatten(1) / 255
        images = (images > 0.5).float()
        found["vae"] = (partial(vae, digits=images[500:], held_out=images[:500]), others)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--digits", help="npz with `images` (n, 28, 28) uint8; without it the VAE is left out")
    parser.add_argument("--seeds", type=int, default=5, choices=sorted(STUDENT))
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", help="names of problems")
    parser.add_argument("--estimators", nargs="+", help="names; all if not given")
    parser.add_argument("--append", action="store_true", help="keep what --output has")
    parser.add_argument("--output", default="benchmarks/results/paper.json")
    args = parser.parse_args()
    results: list[dict[str, object]] = []
    print("| problem | estimator | settings | ours | published | difference | seconds, ours / published |")
    print("|---|---|---|---|---|---|---|")
    for problem, (experiment, settings) in problems(args.digits).items():
        if args.only and problem not in args.only:
            continue
        for name, chosen in settings.items():
            if args.estimators and name not in args.estimators:
                continue
            scores: dict[str, list[float]] = {}
            seconds: dict[str, float] = {}
            for side, sampler in samplers(name, **chosen).items():
                started = time.perf_counter()
                scores[side] = [experiment(sampler, args.first_seed + i) for i in range(args.seeds)]
                seconds[side] = time.perf_counter() - started
            differences = [a - b for a, b in zip(scores["ours"], scores["published"], strict=True)]
            mean, spread = statistics.mean(differences), statistics.stdev(differences)
            interval = STUDENT[args.seeds] * spread / args.seeds**0.5
            row = {"problem": problem, "estimator": name, "settings": chosen, "scores": scores, "seconds": seconds}
            row |= {"first_seed": args.first_seed}
            results.append(row | {"difference": mean, "interval": interval})
            ours, theirs = (f"{statistics.mean(scores[side]):.4g}" for side in ("ours", "published"))
            options = ", ".join(f"{key}={value}" for key, value in chosen.items())
            times = f"{seconds['ours']:.0f} / {seconds['published']:.0f}"
            line = f"| {problem} | {name} | {options} | {ours} | {theirs} | {mean:+.3g} ± {interval:.2g} | {times} |"
            print(line, flush=True)
    output = Path(args.output)
    if args.append and output.exists():
        results = json.loads(output.read_text())["results"] + results
    save(output, environment("redge") | {"results": results})


if __name__ == "__main__":
    main()
