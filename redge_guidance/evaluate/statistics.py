"""Intervals of what was measured."""

import math
from collections.abc import Callable, Sequence

import numpy as np


def interval(share: float, count: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share of `count` independent samples.

    >>> [round(end, 3) for end in interval(0.5, 10)]
    [0.237, 0.763]
    """
    z = 1.959964
    middle, width = share + z * z / (2 * count), z * math.sqrt(share * (1 - share) / count + (z / (2 * count)) ** 2)
    return max(0.0, (middle - width) / (1 + z * z / count)), min(1.0, (middle + width) / (1 + z * z / count))


def bootstrap(
    figure: Callable[..., np.ndarray], *columns: Sequence[float], resamples: int = 2000
) -> tuple[float, float]:
    """The 95 % interval of a figure of samples, by the percentiles of its values for samples drawn anew.

    Args:
        figure: of the means `(resamples,)` of every column, to values of the same shape.
        columns: a number a sample each, those of one row belonging together.
    """
    source = np.random.default_rng(0)
    rows = source.integers(len(columns[0]), size=(resamples, len(columns[0])))
    values = figure(*(np.asarray(column, dtype=float)[rows].mean(1) for column in columns))
    low, high = np.nanpercentile(values, [2.5, 97.5])
    return float(low), float(high)
