"""Unicode, cut into classes of characters that an automaton does not tell apart."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

END_OF_UNICODE = 0x110000

Ranges = Sequence[tuple[int, int]]


@dataclass(frozen=True, eq=False)
class Alphabet:
    """A partition of the code points 0 to 0x10FFFF into classes.

    Attributes:
        starts: `(runs,)` int64, ascending, the first one 0: where each run of code points of one class begins.
        labels: `(runs,)` int64, the class of a run, from 0; neighbouring runs differ.
    """

    starts: NDArray[np.int64]
    labels: NDArray[np.int64]

    @property
    def size(self) -> int:
        """Number of classes."""
        return int(self.labels.max()) + 1

    def sizes(self) -> NDArray[np.int64]:
        """Number of code points of each class."""
        runs = np.diff(np.append(self.starts, END_OF_UNICODE))
        return np.bincount(self.labels, weights=runs, minlength=self.size).astype(np.int64)

    @classmethod
    def of_sets(cls, sets: Sequence[Ranges]) -> tuple["Alphabet", NDArray[np.bool_]]:
        """The coarsest partition of which every set is a union, and `(sets, classes)`, which classes a set has.

        Args:
            sets: each some ranges of code points, `(first, last)`, both included, in any order.

        >>> alphabet, has = Alphabet.of_sets([[(48, 57)], [(48, 102)]])
        >>> alphabet.size, has[:, alphabet.classes_of("0a~")].tolist()
        (3, [[True, False, False], [True, True, False]])
        """
        edges = {0}
        for ranges in sets:
            for first, last in ranges:
                edges |= {first, last + 1}
        starts = np.array(sorted(edge for edge in edges if edge < END_OF_UNICODE), dtype=np.int64)
        inside = np.zeros((len(sets), len(starts)), dtype=bool)
        for row, ranges in zip(inside, sets, strict=True):
            for first, last in ranges:
                row[np.searchsorted(starts, first) : np.searchsorted(starts, last + 1)] = True
        distinct, labels = np.unique(inside.T, axis=0, return_inverse=True) if len(sets) else _one_class(starts)
        return _without_repetition(starts, labels.reshape(-1)), distinct.T.copy()

    def classes_of(self, text: str) -> NDArray[np.int64]:
        """The class of every character."""
        points = np.array([ord(sign) for sign in text], dtype=np.int64)
        return self.labels[np.searchsorted(self.starts, points, side="right") - 1]

    def refined(self, other: "Alphabet") -> tuple["Alphabet", NDArray[np.int64], NDArray[np.int64]]:
        """The coarsest partition that tells apart what either does, and of each of its classes that in both."""
        starts = np.union1d(self.starts, other.starts)
        pairs = np.stack(
            [one.labels[np.searchsorted(one.starts, starts, side="right") - 1] for one in (self, other)], axis=1
        )
        distinct, labels = np.unique(pairs, axis=0, return_inverse=True)
        return _without_repetition(starts, labels.reshape(-1)), distinct[:, 0], distinct[:, 1]

    def merged(self, into: NDArray[np.int64]) -> "Alphabet":
        """Its classes put together: class c becomes `into[c]`."""
        return _without_repetition(self.starts, into[self.labels])


def _one_class(starts: NDArray[np.int64]) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    return np.zeros((1, 0), dtype=bool), np.zeros(len(starts), dtype=np.int64)


def _without_repetition(starts: NDArray[np.int64], labels: NDArray[np.int64]) -> Alphabet:
    keep = np.concatenate([[True], labels[1:] != labels[:-1]])
    return Alphabet(starts[keep], labels[keep].astype(np.int64))
