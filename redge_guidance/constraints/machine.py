"""Deterministic automata over characters: which texts, and what each is worth."""

from collections import deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from redge_guidance.constraints.alphabet import Alphabet
from redge_guidance.constraints.refinement import DEAD as DEAD
from redge_guidance.constraints.refinement import NEVER, coarsest, distances, product
from redge_guidance.constraints.refinement import TooManyStatesError as TooManyStatesError

MOST_STATES = 20_000

_State = TypeVar("_State", bound=Hashable)


@dataclass(frozen=True, eq=False)
class Machine:
    """A deterministic automaton that reads a text character by character.

    State 0 is the first. A text is accepted if the state that it ends in is; it is worth the row of `values` of that
    state. No text is accepted that goes through `DEAD`.

    Attributes:
        alphabet: what the columns of `table` stand for.
        table: `(states, classes)` int32, the next state, or `DEAD`.
        accepting: `(states,)` bool.
        values: `(states, terms)` float64; no terms where a text is only accepted or not.
    """

    alphabet: Alphabet
    table: NDArray[np.int32]
    accepting: NDArray[np.bool_]
    values: NDArray[np.float64]

    @classmethod
    def explored(
        cls,
        alphabet: Alphabet,
        first: _State,
        step: Callable[[_State], Sequence[_State | None]],
        accepts: Callable[[_State], bool],
        values: Callable[[_State], Sequence[float]] = lambda state: (),
        most: int = MOST_STATES,
    ) -> "Machine":
        """The smallest automaton of what is reached from `first`.

        Args:
            step: from a state to the state after a character of each class; None: no text goes on so.
            accepts, values: of a state.

        Raises:
            TooManyStatesError: more than `most` are reached.
        """
        number: dict[Any, int] = {first: 0}
        waiting, rows = deque([first]), []
        while waiting:
            row = []
            for after in step(waiting.popleft()):
                if after is None:
                    row.append(DEAD)
                    continue
                if after not in number:
                    if len(number) >= most:
                        raise TooManyStatesError(most)
                    number[after] = len(number)
                    waiting.append(after)
                row.append(number[after])
            rows.append(row)
        worth = np.array([list(values(state)) for state in number], dtype=np.float64).reshape(len(number), -1)
        accepting = np.array([accepts(state) for state in number])
        return cls(alphabet, np.array(rows, dtype=np.int32), accepting, worth).minimal()

    def accepts(self, text: str) -> bool:
        """Whether `text` as a whole is accepted."""
        state = self.after(text)
        return state != DEAD and bool(self.accepting[state])

    def after(self, text: str, state: int = 0) -> int:
        """The state after `text`."""
        for label in self.alphabet.classes_of(text):
            if state == DEAD:
                break
            state = int(self.table[state, label])
        return state

    @property
    def is_empty(self) -> bool:
        """Whether no text is accepted."""
        return self.shortest() is None

    def shortest(self) -> int | None:
        """The least number of characters of an accepted text; None where there is none."""
        least = int(distances(self.table, self.accepting)[0])
        return None if least == NEVER else least

    def equivalent(self, other: "Machine") -> bool:
        """Whether both accept the same texts, each with the same values."""
        one, two = self.minimal(), other.minimal()
        return all(
            np.array_equal(mine, others)
            for mine, others in (
                (one.alphabet.starts, two.alphabet.starts),
                (one.alphabet.labels, two.alphabet.labels),
                (one.table, two.table),
                (one.accepting, two.accepting),
                (one.values, two.values),
            )
        )

    def complement(self) -> "Machine":
        """Accepts what this does not; of one without values."""
        states, classes = self.table.shape
        table = np.vstack([np.where(self.table == DEAD, states, self.table), np.full((1, classes), states)])
        values = np.zeros((states + 1, 0))
        return Machine(self.alphabet, table.astype(np.int32), np.append(~self.accepting, True), values).minimal()

    def as_value(self) -> "Machine":
        """Accepts every text, of the value 1 where this accepts it, else 0; of one without values."""
        states, classes = self.table.shape
        table = np.vstack([np.where(self.table == DEAD, states, self.table), np.full((1, classes), states)])
        values = np.append(self.accepting, False).astype(np.float64)[:, None]
        return Machine(self.alphabet, table.astype(np.int32), np.ones(states + 1, dtype=bool), values).minimal()

    def intersection(self, other: "Machine", most: int = MOST_STATES) -> "Machine":
        """Accepts what both do; the values of this one, then those of the other."""
        alphabet, mine, others = self.alphabet.refined(other.alphabet)
        table, pairs = product(self.table[:, mine], other.table[:, others], most)
        left, right = pairs.T
        accepting = self.accepting[left] & other.accepting[right]
        return Machine(alphabet, table, accepting, np.hstack([self.values[left], other.values[right]])).minimal()

    def minimal(self) -> "Machine":
        """The smallest automaton of the same texts and values.

        Equal ones have equal arrays: states are numbered in the order in which they are first reached, and classes
        in that of their first code points.
        """
        live = np.append(distances(self.table, self.accepting) != NEVER, False)  # at the end, for `DEAD`
        table = np.where(live[self.table], self.table, DEAD)
        columns, classes = np.unique(table, axis=1, return_inverse=True)
        worth = np.column_stack([self.accepting, np.where(self.accepting[:, None], self.values, 0.0)])
        part = coarsest(columns, _numbered(worth))
        _, kept = np.unique(part, return_index=True)
        rows = np.append(part, DEAD)[columns[kept]]
        return self._numbered_by_use(rows[:, classes.reshape(-1)], kept, int(part[0]))

    def _numbered_by_use(self, rows: NDArray[Any], kept: NDArray[Any], first: int) -> "Machine":
        """The automaton of `rows`, whose states are those `kept` of this one, without those that are not reached."""
        alphabet, rows = _by_first_use(self.alphabet, rows)
        order, seen = [first], {first, DEAD}
        for state in order:  # grows as it goes
            fresh = [after for after in dict.fromkeys(rows[state].tolist()) if after not in seen]
            order += fresh
            seen.update(fresh)
        rank = np.full(len(rows) + 1, DEAD)  # the last one for DEAD itself
        rank[order] = np.arange(len(order))
        alphabet, table = _by_first_use(alphabet, rank[rows[order]])
        states = kept[order]
        values = np.where(self.accepting[states, None], self.values[states], 0.0)
        return Machine(alphabet, np.ascontiguousarray(table, dtype=np.int32), self.accepting[states], values)


def _by_first_use(alphabet: Alphabet, rows: NDArray[Any]) -> tuple[Alphabet, NDArray[Any]]:
    """One class for equal columns; the classes in the order of their first code points."""
    columns, number = np.unique(rows, axis=1, return_inverse=True)
    into = number.reshape(-1)
    _, first = np.unique(into[alphabet.labels], return_index=True)
    rank = np.empty(len(first), dtype=np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    return alphabet.merged(rank[into]), columns[:, np.argsort(first)]


def _numbered(rows: NDArray[Any]) -> NDArray[np.int64]:
    """A number for each distinct row."""
    return np.unique(rows, axis=0, return_inverse=True)[1].reshape(-1)
