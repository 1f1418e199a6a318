"""Sums of products of probabilities, as numbers or as their logarithms, by segments of an array."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Segments:
    """Entries that belong together: entry `order[k]`, for `starts[i] <= k < starts[i + 1]`, is of group `groups[i]`.

    Attributes:
        order: `(entries,)`, entries sorted by their group.
        groups: `(present,)`, the groups that have an entry, ascending.
        starts: `(present,)`, where each begins in `order`.
        counts: `(present,)`, entries of each.
        size: number of all groups.
    """

    order: NDArray[np.int64]
    groups: NDArray[np.int64]
    starts: NDArray[np.int64]
    counts: NDArray[np.int64]
    size: int

    @classmethod
    def of(cls, group: NDArray[Any], size: int) -> "Segments":
        """`group` `(entries,)`: which of `size` groups each entry is of."""
        order = np.argsort(group, kind="stable")
        groups, starts, counts = np.unique(group[order], return_index=True, return_counts=True)
        return cls(order, groups, starts, counts, size)


class Linear:
    """Numbers as they are: fast, and 0 below 1e-308."""

    zero, one = 0.0, 1.0

    @staticmethod
    def from_log(values: Array) -> Array:
        result: Array = np.exp(values)
        return result

    @staticmethod
    def to_log(values: Array) -> Array:
        with np.errstate(divide="ignore"):
            result: Array = np.log(values)
        return result

    @staticmethod
    def times(one: Array, other: Array) -> Array:
        return one * other

    @staticmethod
    def sums(values: Array, segments: Segments) -> Array:
        """`(entries, ...)` in the order of `segments` to `(groups, ...)`."""
        total = np.zeros((segments.size, *values.shape[1:]))
        if len(segments.starts):
            total[segments.groups] = np.add.reduceat(values, segments.starts, axis=0)
        return total

    @staticmethod
    def scaled(values: Array) -> tuple[Array, Array]:
        """Values divided by the largest of every column, and the logarithm of that; columns of zeros stay."""
        largest = values.max(axis=0)
        return values / np.where(largest == 0, 1.0, largest), Linear.to_log(largest)


class Log:
    """Logarithms of numbers: slower, and exact however small these are."""

    zero, one = -np.inf, 0.0

    @staticmethod
    def from_log(values: Array) -> Array:
        return values

    @staticmethod
    def to_log(values: Array) -> Array:
        return values

    @staticmethod
    def times(one: Array, other: Array) -> Array:
        return one + other

    @staticmethod
    def sums(values: Array, segments: Segments) -> Array:
        """`log sum exp` of every group; `(entries, ...)` in the order of `segments` to `(groups, ...)`."""
        total = np.full((segments.size, *values.shape[1:]), -np.inf)
        if len(segments.starts):
            largest = np.maximum.reduceat(values, segments.starts, axis=0)
            finite = np.where(np.isneginf(largest), 0.0, largest)
            parts = np.exp(values - np.repeat(finite, segments.counts, axis=0))
            total[segments.groups] = finite + Linear.to_log(np.add.reduceat(parts, segments.starts, axis=0))
        return total

    @staticmethod
    def scaled(values: Array) -> tuple[Array, Array]:
        largest = values.max(axis=0)
        return values - np.where(np.isneginf(largest), 0.0, largest), largest


class Best(Log):
    """Logarithms, of which the largest is taken where `Log` sums."""

    @staticmethod
    def sums(values: Array, segments: Segments) -> Array:
        return largest(values, segments, -np.inf)


Arithmetic = type[Linear] | type[Log]


def largest(values: Array, segments: Segments, zero: float) -> Array:
    """The largest of every group; `(entries, ...)` in the order of `segments` to `(groups, ...)`."""
    result = np.full((segments.size, *values.shape[1:]), zero)
    if len(segments.starts):
        result[segments.groups] = np.maximum.reduceat(values, segments.starts, axis=0)
    return result
