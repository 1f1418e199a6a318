r"""Tokens that were drawn independently at several positions, exchanged for such as a joint draw has.

From left to right, with the tokens before as they are now, the class c of a token that was drawn from the posterior
marginals m is kept with probability `min(1, cond(c) / m(c))`, cond being the conditional of the position given those
before; else it is drawn anew in proportion to `max(0, cond - m)`. So the tokens are a joint draw from the posterior,
exactly, and as many of them as can be are those that were drawn (the coupling of speculative sampling, arXiv
2211.17192, theorem 1). A single token of a canvas is always kept.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from redge_guidance.constraints.arithmetic import Array, Log
from redge_guidance.constraints.messages import Messages
from redge_guidance.constraints.refinement import DEAD


@dataclass(frozen=True, eq=False)
class Committed:
    """What was drawn. All `(positions, batch)`.

    Attributes:
        labels: int64, the class of the token at each position that was drawn.
        chosen: bool, which those are.
        uniform: in [0, 1), twice: `(2, positions, batch)`.
        greedy: whether a token is kept wherever it can be, and the likeliest one taken where not.
    """

    labels: NDArray[np.int64]
    chosen: NDArray[np.bool_]
    uniform: Array
    greedy: bool = False


def settled(messages: Messages, masses: Array, drawn: Committed) -> NDArray[np.int64]:
    """The classes that tokens are to be of instead, `(positions, batch)`; `DEAD` where they stay as they are.

    Args:
        messages: over the canvases, from which the marginals were computed.
        masses: `(positions, classes, batch)`, log-probability of each class at the positions that were drawn.
        drawn: tokens of the posterior marginals.
    """
    result = np.full(drawn.labels.shape, DEAD, dtype=np.int64)
    several = np.flatnonzero(drawn.chosen.sum(axis=0) > 1)
    if not len(several):
        return result
    transitions, weights = messages.transitions, messages.log_weights
    state = np.full((transitions.states, len(several)), -np.inf)
    state[0] = 0.0
    for t in range(len(masses)):
        behind = messages.log_backward(t + 1)[:, several]
        moved = messages.log_moved(t, state, several)
        now = np.flatnonzero(drawn.chosen[t, several])
        if len(now):
            rows = several[now]
            entries = state[transitions.entry_source][:, now] + behind[transitions.entry_target][:, now]
            given = Log.sums(entries[transitions.by_class.order], transitions.by_class) + masses[t][:, rows]
            cond, marginal = _normalised(given), _normalised(weights[t][:, rows] + masses[t][:, rows])
            labels = drawn.labels[t, rows].copy()
            anew = _anew(cond, marginal, labels, drawn.uniform[:, t, rows], drawn.greedy)
            result[t, rows] = np.where(anew == labels, DEAD, anew)
            moved[:, now] = _after(transitions.automaton.table, state[:, now], anew)
        state, _ = Log.scaled(moved)
    return result


def _anew(cond: Array, marginal: Array, labels: NDArray[np.int64], uniform: Array, greedy: bool) -> NDArray[np.int64]:
    """The class of each column: the one that was drawn, or another."""
    column = np.arange(len(labels))
    mine, handed = cond[labels, column], marginal[labels, column]
    if greedy:
        return np.where(mine > 0, labels, cond.argmax(axis=0))
    keep = uniform[0] * handed < mine
    rest = np.maximum(cond - marginal, 0.0)
    total = rest.cumsum(axis=0)
    other = (total <= uniform[1] * total[-1]).sum(axis=0)
    last = len(rest) - 1 - (rest[::-1] > 0).argmax(axis=0)
    other = np.where(total[-1] > 0, np.minimum(other, last), cond.argmax(axis=0))
    found: NDArray[np.int64] = np.where(keep, labels, other)
    return found


def _normalised(log_values: Array) -> Array:
    """Probabilities of every column."""
    top = log_values.max(axis=0)
    values = np.exp(log_values - np.where(np.isneginf(top), 0.0, top))
    total = values.sum(axis=0)
    result: Array = values / np.where(total == 0, 1.0, total)
    return result


def _after(table: NDArray[np.int32], state: Array, labels: NDArray[np.int64]) -> Array:
    """`(states, rows)`, the weights of states after a token of the class of each row."""
    after = np.full_like(state, -np.inf)
    for k, label in enumerate(labels.tolist()):
        target = table[:, label]
        known = np.flatnonzero((target != DEAD) & (state[:, k] > -np.inf))
        np.logaddexp.at(after[:, k], target[known], state[known, k])
    return after
