"""Deterministic automata over tokens, on a canvas of them."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from redge_guidance.constraints.machine import DEAD


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
