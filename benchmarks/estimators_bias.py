"""Bias, variance and mean squared error of every gradient estimator against the exact gradient of E[r].

The exact gradient sums over all K^L sequences. Every estimator averages four draws, the default of guidance. Figures
are in units of the exact gradient's squared norm, means over random instances with a 95 % interval (t distribution);
the bias is corrected for the noise of its own estimate and may come out slightly negative.

    python benchmarks/estimators_bias.py
"""

import argparse
import itertools
import math
import statistics
from collections.abc import Callable
from functools import partial

import torch
from report import environment, save
from torch import Tensor

from redge_guidance import estimators
from redge_guidance.estimators.base import softmax_vjp

Reward = Callable[[Tensor], Tensor]
Gradients = Callable[[Tensor, Reward, int], Tensor]
SPACES = [(2, 8), (4, 4), (10, 3), (50, 2), (1000, 1)]
DRAWS = 4
T1 = (0.1, 0.3, 0.5, 0.7, 0.9)
TRIALS = {"exact forward": 1, "antithetic": 2, "control variate": 1}  # ideas beyond the paper: draws a gradient
STUDENT = {3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 8: 2.365, 10: 2.262}  # 97.5 % by number of instances


def linear(length: int, categories: int) -> Reward:
    a = torch.randn(length, categories)
    return lambda x: (x * a).sum((-1, -2))


def quadratic(length: int, categories: int) -> Reward:
    m = torch.randn(length * categories, length * categories)
    return lambda x: torch.einsum("...i,ij,...j->...", x.flatten(-2), m, x.flatten(-2))


def polynomial(length: int, categories: int) -> Reward:
    """Sum of five sixth powers."""
    a = torch.randn(5, length, categories) / math.sqrt(length)
    return lambda x: (0.5 + torch.einsum("...lk,jlk->...j", x, a)).pow(6).sum(-1)


def network(length: int, categories: int) -> Reward:
    """Two hidden layers of 32, with weights large enough to be far from linear."""
    sizes = [length * categories, 32, 32, 1]
    weights = [2 * torch.randn(a, b) / math.sqrt(a) for a, b in itertools.pairwise(sizes)]
    weights[0] *= math.sqrt(categories)  # only one category a position is not 0

    def reward(x: Tensor) -> Tensor:
        h = x.flatten(-2)
        for w in weights[:-1]:
            h = (h @ w).tanh()
        return (h @ weights[-1])[..., 0]

    return reward


OBJECTIVES = {f.__name__: f for f in (linear, quadratic, polynomial, network)}


def slope_of(reward: Reward, x: Tensor) -> Tensor:
    x = x.detach().requires_grad_()
    return torch.autograd.grad(reward(x).sum(), x)[0]


def by_autograd(estimator, logits: Tensor, reward: Reward, n: int) -> Tensor:
    """`n` gradients `(n, L, K)`, each of one draw."""
    leaf = logits.expand(n, *logits.shape).clone().requires_grad_()
    return torch.autograd.grad(reward(estimator(leaf)).sum(), leaf)[0]


def by_score(logits: Tensor, reward: Reward, n: int) -> Tensor:
    """`n` gradients of `DRAWS` draws; repeated, so that all estimators have `DRAWS * n` rows."""
    samples = estimators.straight_through(logits.expand(DRAWS, n, *logits.shape))
    rewards = reward(samples)
    return estimators.reinforce_loo(logits.expand(n, *logits.shape), rewards[..., None], samples)


def chain(num_steps: int, t1: float, trial: str, logits: Tensor, reward: Reward, n: int) -> Tensor:
    """ReDGE with an idea beyond the paper, on `n` draws; one gradient a draw, a pair for antithetic noise."""
    redge = estimators.ReDGE(num_steps, t1)
    rows = logits.expand(n, *logits.shape).reshape(-1, logits.shape[-1])
    noise, uniform = torch.randn_like(rows), torch.rand(len(rows), 1)
    if trial == "antithetic":
        half = len(rows) // 2
        noise, uniform = (torch.cat([a[:half], b]) for a, b in ((noise, -noise[:half]), (uniform, 1 - uniform[:half])))
    if trial == "exact forward":
        # x_0 exactly; x_t1 given x_0; then the deterministic flow backwards to the noise that leads there
        drawn = redge.draw(rows.softmax(-1), uniform)
        s = redge.grid[0]
        x = s * noise + (1 - s) * torch.zeros_like(rows).scatter_(-1, drawn, 1.0)
        for t in redge.grid[1:]:
            denoised = (rows + (1 - s) / s**2 * x).softmax(-1)
            x, s = (1 - t) * denoised + t / s * (x - (1 - s) * denoised), t
        noise = x
    else:
        drawn = redge.draw(redge.soft(rows, noise), uniform)
    sample = torch.zeros_like(rows).scatter_(-1, drawn, 1.0)
    slope = slope_of(reward, sample.view(n, *logits.shape)).reshape_as(rows)
    if trial == "control variate":
        pi = logits.softmax(-1)
        mean = slope_of(reward, pi)
        expanded = mean.expand(n, *mean.shape).reshape_as(rows)
        gradients = redge.vjp(rows, noise, None, slope - expanded).view(n, *logits.shape) + softmax_vjp(pi, mean)
    else:
        gradients = redge.vjp(rows, noise, None, slope).view(n, *logits.shape)
    return gradients.view(2, n // 2, *logits.shape).mean(0) if trial == "antithetic" else gradients


def candidates() -> dict[str, tuple[Gradients, int]]:
    """How to get gradients, and how many draws are in each."""
    found: dict[str, tuple[Gradients, int]] = {"reinforce_loo": (by_score, DRAWS)}
    known = {name: estimators.ESTIMATORS[name]() for name in ("straight_through", "reinmax", "soft", "entropy_mix")}
    known |= {f"gumbel_softmax tau={tau}": estimators.GumbelSoftmax(tau) for tau in (0.1, 0.3, 0.5, 1.0, 2.0)}
    for kind, n, t1 in itertools.product(("redge", "redge_cov", "reindge"), (2, 4, 8), T1):
        known[f"{kind} n={n} t1={t1}"] = estimators.ESTIMATORS[kind](n, t1)
    found |= {name: (partial(by_autograd, estimator), 1) for name, estimator in known.items()}
    for (trial, draws), t1 in itertools.product(TRIALS.items(), T1):
        found[f"redge n=4 t1={t1}, {trial}"] = (partial(chain, 4, t1, trial), draws)
    return found


def exact_gradient(logits: Tensor, reward: Reward) -> Tensor:
    length, categories = logits.shape
    ids = torch.cartesian_prod(*[torch.arange(categories)] * length).view(-1, length)
    x = torch.nn.functional.one_hot(ids, categories).to(logits.dtype)
    leaf = logits.double().requires_grad_()
    p = leaf.log_softmax(-1)[torch.arange(length), ids].sum(-1).exp()
    return torch.autograd.grad((p * reward(x).double()).sum(), leaf)[0].to(logits.dtype)


def errors(
    gradients: Gradients, draws: int, logits: Tensor, reward: Reward, exact: Tensor, n: int
) -> tuple[float, float]:
    """Squared bias and variance of a mean of `DRAWS` draws, relative to the exact gradient; from `n` gradients."""
    g = gradients(logits, reward, n).flatten(1)
    norm, variance = exact.square().sum(), g.var(0).sum()
    bias = (g.mean(0) - exact.flatten()).square().sum() - variance / len(g)
    return (bias / norm).item(), (variance * draws / DRAWS / norm).item()


def summary(values: list[float]) -> dict[str, float]:
    interval = STUDENT[len(values)] * statistics.stdev(values) / math.sqrt(len(values))
    return {"mean": statistics.mean(values), "interval": interval}


def measure(instances: int, n: int) -> list[dict[str, object]]:
    rows = []
    for (categories, length), (objective, make) in itertools.product(SPACES, OBJECTIVES.items()):
        found: dict[str, list[tuple[float, float]]] = {}
        for seed in range(instances):
            torch.manual_seed(seed)
            logits, reward = torch.randn(length, categories), make(length, categories)
            exact = exact_gradient(logits, reward)
            for name, (gradients, draws) in candidates().items():
                found.setdefault(name, []).append(errors(gradients, draws, logits, reward, exact, n))
        for name, pairs in found.items():
            bias, variance = (list(column) for column in zip(*pairs, strict=True))
            figures = {"bias2": summary(bias), "variance": summary(variance)}
            figures["mse"] = summary([b + v for b, v in pairs])
            rows.append({"K": categories, "L": length, "objective": objective, "estimator": name} | figures)
        print(f"K={categories} L={length} {objective}", flush=True)
    return rows


def best_settings(rows: list[dict]) -> list[str]:
    """Of every family and trial, the setting of least mean squared error over all spaces and objectives."""
    totals: dict[str, list[float]] = {}
    for row in rows:
        totals.setdefault(row["estimator"], []).append(math.log(max(row["mse"]["mean"], 1e-6)))
    families: dict[str, str] = {}
    for name in sorted(totals, key=lambda name: statistics.mean(totals[name])):
        families.setdefault(name.split()[0] + name.partition(",")[2], name)
    return list(families.values())


def table(rows: list[dict], names: list[str]) -> str:
    lines = ["| K, L | objective | " + " | ".join(names) + " |", "|---|---|" + "---|" * len(names)]
    for (categories, length), objective in itertools.product(SPACES, OBJECTIVES):
        cells = []
        for name in names:
            (row,) = (
                r
                for r in rows
                if (r["K"], r["L"], r["objective"], r["estimator"]) == (categories, length, objective, name)
            )
            mse = row["mse"]
            cells.append(f"{max(row['bias2']['mean'], 0):.2g} + {row['variance']['mean']:.2g} (±{mse['interval']:.1g})")
        lines.append(f"| {categories}, {length} | {objective} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def plot(rows: list[dict], path: str, space: tuple[int, int] = (10, 3)) -> None:
    """Squared bias against variance, one panel an objective, a line through the settings of a family."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(OBJECTIVES), figsize=(16, 4.5), sharey=True)
    for axis, objective in zip(axes, OBJECTIVES, strict=True):
        families: dict[str, list[tuple[float, float]]] = {}
        for row in rows:
            if (row["K"], row["L"], row["objective"]) == (*space, objective):
                name = row["estimator"]
                if " n=" in name and " n=4" not in name:
                    continue
                family = name.split()[0] + name.partition(",")[2]
                families.setdefault(family, []).append((row["variance"]["mean"], max(row["bias2"]["mean"], 1e-5)))
        for i, (family, points) in enumerate(families.items()):
            style = {"color": f"C{i % 10}", "marker": "osv^D"[i % 5], "linestyle": "-" if i < 10 else ":"}
            axis.plot(*zip(*points, strict=True), label=family, markersize=4, linewidth=1, **style)
        axis.set(xscale="log", yscale="log", xlabel="relative variance, 4 draws", title=objective)
    axes[0].set_ylabel("relative squared bias")
    axes[-1].legend(fontsize=7, loc="center left", bbox_to_anchor=(1.02, 0.5))
    figure.suptitle(f"K = {space[0]}, L = {space[1]}; lines run through t1 or tau (num_steps = 4)")
    figure.savefig(path, dpi=110, bbox_inches="tight")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--instances", type=int, default=5, choices=sorted(STUDENT))
    parser.add_argument("--gradients", type=int, default=4000, help="of every estimator and instance")
    parser.add_argument("--output", default="benchmarks/results/estimators_bias.json")
    args = parser.parse_args()
    rows = measure(args.instances, args.gradients)
    names = best_settings(rows)
    settings = {"instances": args.instances, "gradients": args.gradients, "draws": DRAWS}
    save(args.output, environment() | {"settings": settings, "best_settings": names, "rows": rows})
    plot(rows, args.output.replace(".json", ".png"))
    print(table(rows, names))


if __name__ == "__main__":
    main()
