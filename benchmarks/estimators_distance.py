"""How far samples of the diffusion estimators are from softmax(logits): the worst total variation over many logits.

The distribution of a hard sample is the mean of the soft one over the noise, `q = E[D(x_{t_1}, t_1)]`; its distance is
`1/2 sum_v |q_v - softmax(logits)_v|`. Every setting is tried on logits of many sizes and shapes with few draws of the
noise; the worst is changed at random where that makes it worse still; and what came out worst is measured again, with
new noise and more of it. Categories with one and the same logit have one probability, and are averaged. `noise` is what
the figure would be of exact samples, by the noise that is left: `1/2 sum_v sqrt(2 / pi) standard error of q_v`.
`reindge` draws the samples of `redge`.

    python benchmarks/estimators_distance.py
"""

import argparse
import itertools
import math

import torch
from report import environment, save
from torch import Tensor

from redge_guidance.estimators import ReDGE, ReDGECov

Candidate = tuple[float, int, str, Tensor]  # distance less noise, size, name, logits
KINDS = {"redge": ReDGE, "redge_cov": ReDGECov}
SIZES = (2, 3, 5, 10, 20, 50, 100, 300)
SETTINGS = {4: (0.1, 0.3, 0.5, 0.7), 2: (0.1, 0.3, 0.5, 0.7), 16: (0.1, 0.3)}  # t1 by num_steps
AGAIN = 4  # shapes that are measured again
CHANGES = 40  # that are tried on the worst


def shapes(size: int) -> dict[str, Tensor]:
    """Logits `(size,)` by name: flat, peaked, a few large, two levels with a tail, ramps, and random."""
    found = {"flat": torch.zeros(size)}
    for share in (0.01, 0.03, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.97):
        for large in sorted({1, 2, 3, size // 4, size // 2, size - 1} & set(range(1, size))):  # share of them together
            odds = share * (size - large) / ((1 - share) * large)
            logits = torch.zeros(size)
            logits[:large] = math.log(odds)
            found[f"{large} of {size} with {share}"] = logits
    if size > 100:  # too many numbers of their own for little noise
        return found
    for power in (0.5, 1.0, 2.0):
        found[f"Zipf {power}"] = -power * torch.arange(1, size + 1).float().log()
    for scale, seed in itertools.product((0.5, 1.0, 2.0, 4.0), range(4)):
        noise = torch.randn(size, generator=torch.Generator().manual_seed(seed))
        found[f"normal times {scale}, seed {seed}"] = scale * noise
    return found


def distance(estimator: ReDGE, logits: Tensor, numbers: int, seed: int) -> tuple[float, float]:
    """Total variation from softmax(logits), and that of the noise alone; of `numbers` logits' worth of draws."""
    generator = torch.Generator().manual_seed(seed)
    draws = max(2048, numbers // len(logits))
    total, squares = torch.zeros(2, len(logits), dtype=torch.float64)
    done = 0
    while done < draws:
        count = min(draws - done, max(1, 2**18 // len(logits)))
        noise = torch.randn(count, len(logits), generator=generator)
        soft = estimator.soft(logits.expand(count, -1).contiguous(), noise).double()
        total += soft.sum(0)
        squares += soft.square().sum(0)
        done += count
    q = total / draws
    variance = (squares / draws - q.square()).clamp(min=0) / draws
    _, level, members = logits.unique(return_inverse=True, return_counts=True)
    means = torch.zeros(len(members), dtype=torch.float64).index_add_(0, level, q) / members
    errors = torch.zeros(len(members), dtype=torch.float64).index_add_(0, level, variance).sqrt()
    pi = logits.double().softmax(-1)
    left = math.sqrt(2 / math.pi) * errors.sum() / 2
    return (means[level] - pi).abs().sum().item() / 2, left.item()


def worse(estimator: ReDGE, start: Candidate, few: int) -> Candidate:
    """From one candidate to another one, by random changes of its levels that make the distance larger."""
    best, size, name, logits = start
    generator = torch.Generator().manual_seed(2)
    for _ in range(CHANGES):
        levels, level = logits.unique(return_inverse=True)
        step = 0.5 * torch.randn(len(levels), generator=generator)
        candidate = (levels + step)[level]
        found, noise = distance(estimator, candidate, few, seed=0)
        if found - noise > best:
            best, logits = found - noise, candidate
    return best, size, f"{name}, changed", logits


def worst(kind: str, num_steps: int, t1: float, few: int, many: int) -> list[dict[str, object]]:
    """The shapes of the largest distance, by size of the distance."""
    estimator = KINDS[kind](num_steps, t1)
    tried: list[Candidate] = []
    for size in SIZES:
        for name, logits in shapes(size).items():
            found, noise = distance(estimator, logits, few, seed=0)
            tried.append((found - noise, size, name, logits))
    tried.sort(key=lambda one: -one[0])
    tried = [worse(estimator, tried[0], few), *tried[: AGAIN - 1]]
    rows: list[dict[str, object]] = []
    for _, size, name, logits in tried:
        found, noise = distance(estimator, logits, many, seed=1)
        row = {"K": size, "logits": name, "total_variation": found, "noise": noise}
        rows.append(row | ({"values": logits.tolist()} if "changed" in name else {}))
    return sorted(rows, key=lambda row: -float(str(row["total_variation"])))


def table(results: list[dict]) -> str:
    lines = ["| estimator | num_steps | t1 | total variation | noise | logits |", "|---|---|---|---|---|---|"]
    for row in results:
        first = row["worst"][0]
        cells = (
            row["estimator"],
            row["num_steps"],
            row["t1"],
            f"{first['total_variation']:.4f}",
            f"{first['noise']:.4f}",
        )
        lines.append(f"| {' | '.join(map(str, cells))} | {first['logits']} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--few", type=int, default=2**16, help="logits' worth of noise in the search")
    parser.add_argument("--many", type=int, default=2**22, help="and for what is reported")
    parser.add_argument("--output", default="benchmarks/results/estimators_distance.json")
    args = parser.parse_args()
    results = []
    settings = [(kind, n, t1) for n in SETTINGS for kind in KINDS for t1 in SETTINGS[n]]
    for kind, num_steps, t1 in settings:
        rows = worst(kind, num_steps, t1, args.few, args.many)
        results.append({"estimator": kind, "num_steps": num_steps, "t1": t1, "worst": rows})
        first = rows[0]
        shown = f"{first['total_variation']:.4f} (noise {first['noise']:.4f}), K={first['K']}, {first['logits']}"
        print(f"{kind} num_steps={num_steps} t1={t1}: {shown}", flush=True)
    search = {"few": args.few, "many": args.many, "sizes": SIZES, "seeds": {"search": 0, "reported": 1}}
    save(args.output, environment() | {"settings": search, "results": results})
    print(table(results))


if __name__ == "__main__":
    main()
