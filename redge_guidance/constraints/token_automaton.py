"""Deterministic automata over tokens, on a canvas of them."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from redge_guidance.constraints.machine import MOST_STATES
from redge_guidance.constraints.refinement import DEAD, TooManyStatesError

_AT_ONCE = 4_000_000  # entries of a table
_ROUNDS = 16


@dataclass(frozen=True, eq=False)
class TokenAutomaton:
    """A deterministic automaton that reads a canvas token by token, from state 0.

    Every state but `DEAD` is reached by some tokens, and from every one some tokens lead to acceptance: the end of a
    text leads to states of their own, in which only tokens that end a text follow.

    Attributes:
        table: `(states, classes)` int32, the next state, or `DEAD`.
        class_of: `(vocabulary,)` int32, the class of each token; `DEAD` for one that leads nowhere from every state, as
            reserved tokens do.
        accepting: `(states,)` bool, where a canvas may end.
        values: `(states, terms)` float64, what the text is worth that a canvas is of.
    """

    table: NDArray[np.int32]
    class_of: NDArray[np.int32]
    accepting: NDArray[np.bool_]
    values: NDArray[np.float64]

    def step(self, state: int, token: int) -> int:
        """The state after one more token."""
        label = int(self.class_of[token])
        return DEAD if label == DEAD or state == DEAD else int(self.table[state, label])

    def accepts(self, ids: list[int]) -> bool:
        """Whether a canvas of these tokens is accepted."""
        state = 0
        for token in ids:
            state = self.step(state, token)
        return state != DEAD and bool(self.accepting[state])

    @property
    def is_empty(self) -> bool:
        """Whether no canvas is accepted; of one that is `reduced`."""
        return not self.accepting.any()

    def shortest(self, state: int = 0) -> int:
        """The least number of tokens from a state to acceptance.

        Raises:
            ValueError: no canvas is accepted.
        """
        found = int(self.distances()[state])
        if found < 0:
            raise ValueError("no canvas is accepted, of whatever length: the constraint cannot be met.")
        return found

    def distances(self) -> NDArray[np.int64]:
        """`(states,)`, the least number of tokens from each state to acceptance; -1: none."""
        source, target = self.edges()
        order = np.argsort(target, kind="stable")
        source, bounds = source[order], np.searchsorted(target[order], np.arange(len(self.table) + 1))
        found = np.where(self.accepting, 0, -1)
        front, steps = np.flatnonzero(self.accepting), 0
        while len(front):
            steps += 1
            before = np.unique(np.concatenate([source[bounds[i] : bounds[i + 1]] for i in front]))
            front = before[found[before] < 0]
            found[front] = steps
        return found

    def edges(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The pairs of states of which one follows the other by some token, each once: their firsts and seconds."""
        states, classes = self.table.shape
        found = []
        height = max(1, _AT_ONCE // max(states + 1, classes))
        for low in range(0, states, height):
            rows = self.table[low : low + height]
            seen = np.zeros((len(rows), states + 1), dtype=bool)
            seen[np.arange(len(rows))[:, None], rows] = True  # the last column is `DEAD`
            source, target = np.nonzero(seen[:, :-1])
            found.append((source + low, target))
        one, two = (np.concatenate(part) for part in zip(*found, strict=True))
        return one, two

    def reduced(self) -> "TokenAutomaton":
        """Of the same canvases: without states of no use, states of the same rows put together, and classes too."""
        useful = self.distances() >= 0
        useful &= self._reached(useful)
        useful[0] = True
        kept = np.flatnonzero(useful)
        number = np.full(len(useful) + 1, DEAD, dtype=np.int32)
        number[kept] = np.arange(len(kept))
        values = np.where(self.accepting[kept, None], self.values[kept], 0.0)
        found = replace(self, table=number[self.table[kept]], accepting=self.accepting[kept], values=values)
        return found._merged()._with_few_classes()

    def _reached(self, useful: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """From state 0 by useful states."""
        reached = np.zeros(len(useful) + 1, dtype=bool)
        front = np.array([0])
        while len(front):
            reached[front] = True
            after = np.zeros(len(useful) + 1, dtype=bool)
            after[self.table[front]] = True
            after[:-1] &= useful
            after[-1] = False
            front = np.flatnonzero(after & ~reached)
        return reached[:-1]

    def _merged(self) -> "TokenAutomaton":
        """States with equal rows are one."""
        _, worth = np.unique(np.column_stack([self.accepting, self.values]), axis=0, return_inverse=True)
        found, kinds = self, worth.reshape(-1)
        for _ in range(_ROUNDS):
            prints = mixed(kinds.astype(np.uint64)) + _prints(found.table)
            _, kept, number = np.unique(prints, return_index=True, return_inverse=True)
            if len(kept) == len(found.table):
                break
            order = np.argsort(kept)
            rank = np.argsort(order)
            number = np.append(rank[number.reshape(-1)], DEAD).astype(np.int32)
            kept = kept[order]
            kinds = kinds[kept]
            found = replace(
                found, table=number[found.table[kept]], accepting=found.accepting[kept], values=found.values[kept]
            )
        return found

    def _with_few_classes(self) -> "TokenAutomaton":
        """Equal columns are one, and those of `DEAD` alone none."""
        prints = _prints(self.table.T)
        _, kept, number = np.unique(prints, return_index=True, return_inverse=True)
        alive = (self.table[:, kept] != DEAD).any(axis=0)
        number = np.where(alive, np.cumsum(alive) - 1, DEAD)[number.reshape(-1)]
        class_of = np.append(number, DEAD)[self.class_of].astype(np.int32)
        return replace(self, table=np.ascontiguousarray(self.table[:, kept[alive]]), class_of=class_of)


def mixed(numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """A number of 64 bits for each, as if at random: splitmix64, by which sums tell sets apart."""
    numbers = numbers + np.uint64(0x9E3779B97F4A7C15)
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return numbers ^ (numbers >> np.uint64(31))


def _prints(rows: NDArray[np.int32]) -> NDArray[np.uint64]:
    """A number for each row that differs where rows differ."""
    found = np.zeros(len(rows), dtype=np.uint64)
    width = rows.shape[1]
    height = max(1, _AT_ONCE // max(width, 1))
    places = mixed(np.arange(width, dtype=np.uint64)) | np.uint64(1)
    for low in range(0, len(rows), height):
        part = rows[low : low + height].astype(np.int64) + 1
        found[low : low + height] = (mixed(part.astype(np.uint64)) * places).sum(axis=1, dtype=np.uint64)
    return found


def token_intersection(one: TokenAutomaton, two: TokenAutomaton, most: int = MOST_STATES) -> TokenAutomaton:
    """The canvases that both accept; values of the first, then those of the second. `is_empty` if there are none.

    Raises:
        ValueError: not of one vocabulary.
        TooManyStatesError: more than `most` states.
    """
    if len(one.class_of) != len(two.class_of):
        raise ValueError(
            f"`two` must have the vocabulary of `one`, {len(one.class_of)} tokens, got {len(two.class_of)}; compile "
            "both for the same model."
        )
    pairs, class_of = np.unique(np.stack([one.class_of, two.class_of]), axis=1, return_inverse=True)
    dead = (pairs == DEAD).any(axis=0)
    number = np.where(dead, DEAD, np.cumsum(~dead) - 1)
    pairs = pairs[:, ~dead]
    size = len(two.table)
    codes, front, rows = np.zeros(1, dtype=np.int64), np.zeros(1, dtype=np.int64), []
    while len(front):
        mine, others = one.table[front // size][:, pairs[0]], two.table[front % size][:, pairs[1]]
        dead_pairs = (mine == DEAD) | (others == DEAD)
        rows.append(np.where(dead_pairs, DEAD, mine.astype(np.int64) * size + others))
        after = np.unique(rows[-1])
        front = np.setdiff1d(after[after >= 0], codes)
        codes = np.concatenate([codes, front])
        if len(codes) > most:
            raise TooManyStatesError(most)
    order = np.argsort(codes)
    table: NDArray[Any] = np.concatenate(rows)
    at = order[np.minimum(np.searchsorted(codes, table, sorter=order), len(codes) - 1)]
    a, b = codes // size, codes % size
    return TokenAutomaton(
        np.where(table == DEAD, DEAD, at).astype(np.int32),
        number[class_of.reshape(-1)].astype(np.int32),
        one.accepting[a] & two.accepting[b],
        np.concatenate([one.values[a], two.values[b]], axis=1),
    ).reduced()


def token_length(
    minimum: int, maximum: int | None, vocabulary: int, ends: Iterable[int], drawable: Any
) -> TokenAutomaton:
    """The canvases of `minimum` to `maximum` tokens of `drawable` before the first of `ends`, or the end of the canvas.

    Args:
        minimum, maximum: numbers of tokens, both included; a `maximum` of None: any number from `minimum` on.
        vocabulary: number of logits.
        ends: ids that end a text.
        drawable: ids that may be drawn otherwise, or `(vocabulary,)` bool.

    Raises:
        ValueError: a range that holds no number.
    """
    if minimum < 0 or (maximum is not None and maximum < minimum):
        raise ValueError(
            f"`minimum` and `maximum` must be numbers with 0 <= minimum <= maximum, got {minimum}, {maximum}."
        )
    last = minimum if maximum is None else maximum
    chosen = np.asarray(list(drawable))
    class_of = np.full(vocabulary, DEAD, dtype=np.int32)
    class_of[chosen if chosen.dtype == bool else chosen.astype(np.int64)] = 0
    class_of[list(ends)] = 1
    table = np.full((last + 2, 2), DEAD, dtype=np.int32)
    table[:last, 0] = np.arange(1, last + 1)
    if maximum is None:
        table[last, 0] = last
    table[minimum:, 1] = last + 1
    accepting = np.arange(last + 2) >= minimum
    return TokenAutomaton(table, class_of, accepting, np.zeros((last + 2, 0))).reduced()
