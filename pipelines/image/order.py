"""Halton-MaskGIT's order of drawing: the cells of a grid along a Halton sequence (arXiv 2503.17076)."""

from typing import Any

import torch
from torch import Tensor

from redge_guidance.pipelines.sampling import Generators, random_tokens


def halton_order(height: int, width: int) -> Tensor:
    r"""Cells of a grid, row-major, in the order in which a Halton sequence first meets them; int64.

    Point i = 1, 2, ... of the sequence lies in row `floor(height phi_2(i))` and column `floor(width phi_3(i))`, where
    phi_b(i) are the digits of i in base b mirrored at the point; a cell that was met before is passed over
    (`build_halton_mask` of `HaltonSampler`). As many points as it takes: the published code stops after 10,000, which
    miss cells of 50 x 50 and of most larger grids.

    >>> halton_order(2, 2)
    tensor([2, 1, 0, 3])

    Raises:
        ValueError: a grid without cells.
    """
    for name, value in (("height", height), ("width", width)):
        if value < 1:
            raise ValueError(f"`{name}` must be >= 1, got {value}.")
    # Every cell holds a whole interval of length 1 / rows by one of 1 / columns, and every rows * columns points in a
    # row meet every such pair of intervals once.
    rows, columns = _power(2, 2 * height), _power(3, 2 * width)
    index = torch.arange(1, rows * columns + 1)
    row, column = (_cell(index, base, size) for base, size in ((2, height), (3, width)))
    return torch.tensor(list(dict.fromkeys((row * width + column).tolist())))


def halton_ranks(height: int, width: int, batch: int, *, roll: bool = False, generator: Generators = None) -> Tensor:
    """When every cell is drawn, `(batch, height * width)` int64 from 0.

    Args:
        height, width: of the grid.
        batch: number of grids.
        roll: start every grid at a cell of its own, and go on at the front where the sequence ends (`randomize` of
            `HaltonSampler`).
        generator: source of where they start.
    """
    ranks = halton_order(height, width).argsort().repeat(batch, 1)
    if not roll:
        return ranks
    device = generator.device if isinstance(generator, torch.Generator) else None
    every = torch.ones(batch, 1, dtype=torch.bool, device=device)
    return (ranks + random_tokens(every, height * width, generator).cpu()) % (height * width)


def grid_order(scheduler: Any, side: int, batch: int, generator: Generators, device: torch.device) -> dict[str, Tensor]:
    """`ranks` of grids of `side` by `side`, as `scheduler.step` takes them, if its order is one of grids."""
    config = getattr(scheduler, "config", {})
    if config.get("unmasking_order") != "halton":
        return {}
    ranks = halton_ranks(side, side, batch, roll=config.get("roll", False), generator=generator)
    return {"ranks": ranks.to(device)}


def _power(base: int, least: int) -> int:
    """The smallest power of `base` that is `least` or more."""
    power = 1
    while power < least:
        power *= base
    return power


def _cell(index: Tensor, base: int, size: int) -> Tensor:
    """`floor(size phi_base(index))`."""
    mirrored, denominator = torch.zeros_like(index), 1
    while (index > 0).any():
        mirrored = mirrored * base + index % base
        index, denominator = index // base, denominator * base
    return size * mirrored // denominator
