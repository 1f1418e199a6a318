"""What tables of automata have in common, whatever they read: distances, equal states, products."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

DEAD = -1
NEVER = -1


class TooManyStatesError(ValueError):
    """An automaton would have more states than `most`; `explains` whether the message says of what and what to do."""

    def __init__(self, most: int, message: str | None = None):
        self.most, self.explains = most, message is not None
        super().__init__(message or f"the automaton would have more than {most} states.")


def distances(table: NDArray[Any], accepting: NDArray[np.bool_]) -> NDArray[np.int64]:
    """The least number of steps from each state to an accepting one, or `NEVER`.

    Args:
        table: `(states, classes)`, the next state, or `DEAD`.
        accepting: `(states,)`.
    """
    edges = _Edges.into(table)
    steps = np.where(accepting, 0, NEVER).astype(np.int64)
    reached, step = np.flatnonzero(accepting), 0
    while len(reached):
        step += 1
        before = edges.sources[edges.of(reached)]
        reached = np.unique(before[steps[before] == NEVER])
        steps[reached] = step
    return steps


def coarsest(table: NDArray[Any], part: NDArray[np.int64]) -> NDArray[np.int64]:
    """The parts of states that no text tells apart: the coarsest partition that is stable and refines `part`.

    Hopcroft's: what was split need not be looked at again but for all pieces without the largest. All pieces of a round
    are looked at together, and a state is known by the sum of random numbers, one for each class and part that it leads
    to; that two different ones have equal sums has a probability below 2**-50.

    Args:
        table: `(states, classes)`, the next state, or `DEAD`.
        part: `(states,)`, a number for what tells states apart from the beginning, below the number of states.
    """
    edges = _Edges.into(table)
    part = part.copy()
    random = np.random.default_rng(0)
    of_class = random.integers(1, 2**64 - 1, (table.shape[1],), dtype=np.uint64)
    of_part = random.integers(1, 2**64 - 1, (table.shape[0],), dtype=np.uint64)
    sizes = np.bincount(part, minlength=len(table))
    count, pending = int(part.max()) + 1, np.ones(len(table), dtype=bool)
    while True:
        into = edges.of(np.flatnonzero(pending[part]))
        pending[:] = False
        if not len(into):
            return part
        sources, which = np.unique(edges.sources[into], return_inverse=True)
        sums = np.zeros(len(sources), dtype=np.uint64)
        np.add.at(sums, which.reshape(-1), of_class[edges.classes[into]] * of_part[part[edges.targets[into]]])
        count = _split(part, sizes, pending, count, sources, sums)


def _split(
    part: NDArray[np.int64],
    sizes: NDArray[np.int64],
    pending: NDArray[np.bool_],
    count: int,
    states: NDArray[np.int64],
    sums: NDArray[np.uint64],
) -> int:
    """Splits the parts of `states` by `sums`, those that are not among them in one piece; returns the new count.

    `part`, `sizes` and `pending` (of parts, all pieces but the largest) are changed in place.
    """
    order = np.lexsort((sums, part[states]))
    states, sums, parents = states[order], sums[order], part[states[order]]
    new_parent = np.append(True, parents[1:] != parents[:-1])
    starts = np.flatnonzero(new_parent | np.append(True, sums[1:] != sums[:-1]))
    piece = np.diff(np.append(starts, len(states)))  # the size of each
    first = np.flatnonzero(new_parent[starts])  # of the pieces of each parent
    parent = parents[starts[first]]
    pieces = np.diff(np.append(first, len(starts)))
    rest = sizes[parent] - np.add.reduceat(piece, first)
    largest = np.maximum.reduceat(piece, first)
    fresh = np.ones(len(starts), dtype=bool)
    fresh[first[rest == 0]] = False  # keeps the number, as the rest does where there is one
    numbers = parents[starts]
    numbers[fresh] = count + np.arange(fresh.sum())
    part[states] = np.repeat(numbers, piece)
    sizes[parent] = np.where(rest > 0, rest, piece[first])
    sizes[numbers[fresh]] = piece[fresh]
    split = (pieces > 1) | (rest > 0)
    pending[numbers] = np.repeat(split, pieces)
    pending[parent] |= split
    exempt = np.where(rest >= largest, parent, numbers[_first_largest(piece, first, np.repeat(largest, pieces))])
    pending[exempt] = False
    return count + int(fresh.sum())


def _first_largest(piece: NDArray[np.int64], first: NDArray[np.int64], largest: NDArray[np.int64]) -> NDArray[np.int64]:
    """Of each parent the first of its pieces that is as large as its largest."""
    candidates = np.where(piece == largest, np.arange(len(piece)), len(piece))
    return np.asarray(np.minimum.reduceat(candidates, first))


def product(one: NDArray[Any], two: NDArray[Any], most: int) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """The table of the pairs of states that are reached from (0, 0), and `(states, 2)`, the pairs.

    Args:
        one, two: `(states, classes)`, over the same classes.
        most: limit of the number of pairs.

    Raises:
        TooManyStatesError: more than `most` are reached.
    """
    width = len(two)
    number, reached, rows = {0: 0}, np.zeros(1, dtype=np.int64), []
    while len(reached):
        left, right = one[reached // width].astype(np.int64), two[reached % width].astype(np.int64)
        after = np.where((left == DEAD) | (right == DEAD), DEAD, left * width + right)
        rows.append(after)
        fresh = [pair for pair in np.unique(after).tolist() if pair != DEAD and pair not in number]
        if len(number) + len(fresh) > most:
            raise TooManyStatesError(most)
        number.update(zip(fresh, range(len(number), len(number) + len(fresh)), strict=True))
        reached = np.array(fresh, dtype=np.int64)
    pairs = np.fromiter(number, dtype=np.int64, count=len(number))
    order, table = np.argsort(pairs), np.concatenate(rows)
    found = order[np.searchsorted(pairs, table, sorter=order).clip(max=len(pairs) - 1)]
    return np.where(table == DEAD, DEAD, found).astype(np.int32), np.stack([pairs // width, pairs % width], axis=1)


class _Edges:
    """The transitions of a table, in the order of their targets."""

    def __init__(self, sources: NDArray[Any], classes: NDArray[Any], targets: NDArray[Any], starts: NDArray[Any]):
        self.sources, self.classes, self.targets, self._starts = sources, classes, targets, starts

    @classmethod
    def into(cls, table: NDArray[Any]) -> "_Edges":
        sources, classes = np.nonzero(table != DEAD)
        targets = table[sources, classes].astype(np.int64)
        order = np.argsort(targets, kind="stable")
        starts = np.append(0, np.cumsum(np.bincount(targets, minlength=len(table))))
        return cls(sources[order], classes[order], targets[order], starts)

    def of(self, states: NDArray[Any]) -> NDArray[np.int64]:
        """Which lead to `states`."""
        first, sizes = self._starts[states], self._starts[states + 1] - self._starts[states]
        shift = np.repeat(first - np.append(0, np.cumsum(sizes)[:-1])[: len(sizes)], sizes)
        return np.asarray(shift + np.arange(len(shift)))
