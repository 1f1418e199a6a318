"""Deterministic automata over characters: which texts, and what each is worth."""

from collections import deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from redge_guidance.constraints.alphabet import Alphabet

DEAD = -1
MOST_STATES = 20_000

_State = TypeVar("_State", bound=Hashable)


class TooManyStatesError(ValueError):
    """An automaton would have more states than `most`."""

    def __init__(self, most: int):
        self.most = most
        super().__init__(f"the automaton would have more than {most} states.")


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
        """Whether no text is accepted; of one that is `minimal`."""
        return len(self.table) == 1 and not self.accepting[0]

    def complement(self) -> "Machine":
        """Accepts what this does not; of one without values."""
        states, classes = self.table.shape
        table = np.vstack([np.where(self.table == DEAD, states, self.table), np.full((1, classes), states)])
        values = np.zeros((states + 1, 0))
        return Machine(self.alphabet, table.astype(np.int32), np.append(~self.accepting, True), values).minimal()

    def intersection(self, other: "Machine", most: int = MOST_STATES) -> "Machine":
        """Accepts what both do; the values of this one, then those of the other."""
        alphabet, mine, others = self.alphabet.refined(other.alphabet)
        one, two = self.table[:, mine], other.table[:, others]

        def step(pair: tuple[int, int]) -> list[tuple[int, int] | None]:
            rows = zip(one[pair[0]].tolist(), two[pair[1]].tolist(), strict=True)
            return [None if DEAD in after else after for after in rows]

        return Machine.explored(
            alphabet,
            (0, 0),
            step,
            lambda pair: bool(self.accepting[pair[0]] and other.accepting[pair[1]]),
            lambda pair: [*self.values[pair[0]], *other.values[pair[1]]],
            most,
        )

    def minimal(self) -> "Machine":
        """The smallest automaton of the same texts and values: Moore's partition refinement."""
        table = np.where(_live(self.table, self.accepting)[self.table] & (self.table != DEAD), self.table, DEAD)
        worth = np.column_stack([self.accepting, np.where(self.accepting[:, None], self.values, 0.0)])
        part, count = _numbered(worth)
        while True:
            after = np.where(table == DEAD, -1, part[table])
            finer, found = _numbered(np.column_stack([part, after]))
            if found == count:
                break
            part, count = finer, found
        return self._quotient(table, part)

    def _quotient(self, table: NDArray[Any], part: NDArray[Any]) -> "Machine":
        """One state for each part, in the order in which they are reached; one class for equal columns."""
        _, representatives = np.unique(part, return_index=True)
        rows = np.where(table[representatives] == DEAD, -1, part[table[representatives]])
        order, seen = [int(part[0])], {int(part[0])}
        for state in order:  # grows as it goes
            fresh = [int(i) for i in np.unique(rows[state]) if i != DEAD and int(i) not in seen]
            order += fresh
            seen |= set(fresh)
        rank = np.full(len(rows) + 1, DEAD)  # the last one for DEAD itself
        rank[order] = np.arange(len(order))
        kept = representatives[order]
        columns, classes = np.unique(rank[rows[order]], axis=1, return_inverse=True)
        return Machine(
            self.alphabet.merged(classes.reshape(-1)),
            np.ascontiguousarray(columns, dtype=np.int32),
            self.accepting[kept],
            np.where(self.accepting[kept, None], self.values[kept], 0.0),
        )


def _numbered(rows: NDArray[Any]) -> tuple[NDArray[np.int64], int]:
    """A number for each distinct row."""
    distinct, number = np.unique(rows, axis=0, return_inverse=True)
    return number.reshape(-1), len(distinct)


def _live(table: NDArray[Any], accepting: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """States from which some text is accepted, and at the end False, for `DEAD`."""
    live = np.append(accepting, False)
    while True:
        more = live.copy()
        more[:-1] |= live[table].any(axis=1)
        if (more == live).all():
            return live
        live = more
