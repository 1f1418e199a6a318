r"""Forward and backward messages of a token automaton over a canvas.

For positions that are drawn independently, `q = prod_t q_t`, and an automaton that goes from state i to
`next(i, v)` with token v,

    f_{t+1}(j) = sum_i f_t(i) M_t(i, j),    M_t(i, j) = sum of q_t(v) over the tokens v that lead from i to j,
    b_t(i) = sum_j M_t(i, j) b_{t+1}(j),    b_T(i) = exp(value of i) where i accepts, else 0,

and `Z = f_T . b_T` is the probability of acceptance, or E_q[exp(value); accepted]. The posterior of a token is
`q_t(v) w_t(v) / Z`, `w_t(v) = sum_i f_t(i) b_{t+1}(next(i, v))`, which is the same for all tokens of a class. Given the
states that a joint draw goes through, positions are independent again: any choice of tokens that lead from each state
to the next is accepted.
"""

from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from redge_guidance.constraints.arithmetic import Arithmetic, Array, Best, Linear, Log, Segments, largest
from redge_guidance.constraints.machine import DEAD
from redge_guidance.constraints.token_automaton import TokenAutomaton

_SPREAD = 600.0  # nats between the likeliest and the least likely class of a position, up to which `Linear` is exact
_AGREEMENT = 1e-6  # nats by which Z may differ between positions before `Log` is taken


class Transitions:
    """The transitions of an automaton: entries `(state, class, next)`, and pairs `(state, next)` of them.

    Attributes:
        source, target: `(pairs,)`, the states of each pair.
        by_target, by_source: the pairs, by state.
        by_pair, by_class: the entries, by pair and by class.
        pair_of, class_of, entry_source, entry_target: `(entries,)`, the pair, the class and the states of each entry.
    """

    def __init__(self, automaton: TokenAutomaton):
        self.automaton = automaton
        self.states, self.classes = automaton.table.shape
        state, self.class_of = np.nonzero(automaton.table != DEAD)
        after = automaton.table[state, self.class_of].astype(np.int64)
        self.entry_source, self.entry_target = state.astype(np.int64), after
        pairs, self.pair_of = np.unique(self.entry_source * self.states + after, return_inverse=True)
        self.source, self.target = np.divmod(pairs, max(self.states, 1))
        self.by_target = Segments.of(self.target, self.states)
        self.by_source = Segments.of(self.source, self.states)  # in the order in which they are
        self.source_by_target = self.source[self.by_target.order]
        self.by_pair = Segments.of(self.pair_of, len(pairs))
        self.by_class = Segments.of(self.class_of, self.classes)
        self.degree = np.bincount(self.source, minlength=self.states)
        self.first = np.concatenate([[0], self.degree.cumsum()[:-1]])

    @cached_property
    def _matrix(self) -> torch.Tensor:
        """`(pairs, classes)`, 1 where tokens of a class lead from the one state of a pair to the other."""
        index = torch.from_numpy(np.stack([self.pair_of.reshape(-1), self.class_of]))
        size = (len(self.source), self.classes)
        return torch.sparse_coo_tensor(
            index, torch.ones(index.shape[1], dtype=torch.float64), size, check_invariants=False
        ).coalesce()

    @cached_property
    def _transposed(self) -> torch.Tensor:
        return self._matrix.t().coalesce()

    def masses_of_pairs(self, masses: Array, arithmetic: Arithmetic) -> Array:
        """`(classes, n)` to `(pairs, n)`, M of the module."""
        if arithmetic is Linear:
            found: Array = torch.sparse.mm(self._matrix, torch.from_numpy(masses)).numpy()
            return found
        return arithmetic.sums(masses[self.class_of[self.by_pair.order]], self.by_pair)

    def weights_of_classes(self, pairs: Array, arithmetic: Arithmetic) -> Array:
        """`(pairs, n)`, `f_t(i) b_{t+1}(j)`, to `(classes, n)`, w of the module."""
        if arithmetic is Linear:
            found: Array = torch.sparse.mm(self._transposed, torch.from_numpy(pairs)).numpy()
            return found
        return arithmetic.sums(pairs[self.pair_of[self.by_class.order]], self.by_class)


class Messages:
    """The messages over a batch of canvases.

    Args:
        transitions: of the automaton.
        masses: `(positions, classes, batch)` float64, log-probability of each class at each position.
        skipped: `(positions, batch)` bool, positions that are no part of the text: padding, a prompt.
        unknown: `(positions, batch)` bool, positions that are drawn later, of which nothing is known: the automaton
            goes wherever it can.
        end: `(states, batch)` float64, log b_T: the value of each state, -inf where a text must not end.
        best: take the largest wherever a sum stands, so that a draw is the likeliest text; `masses` are those of the
            likeliest token of each class then.

    Attributes:
        log_z: `(batch,)` float64, log Z; -inf where no canvas is accepted.
    """

    def __init__(
        self,
        transitions: Transitions,
        masses: Array,
        skipped: NDArray[np.bool_],
        unknown: NDArray[np.bool_],
        end: Array,
        best: bool = False,
    ):
        self.transitions, self._log_masses = transitions, masses
        self._skipped, self._unknown, self._end = skipped, unknown, end
        top = masses.max(axis=1, keepdims=True) if masses.shape[1] else np.full((len(masses), 1, end.shape[1]), -np.inf)
        self._top = np.where(np.isneginf(top), 0.0, top)
        relative = masses - self._top
        finite = relative[~np.isneginf(relative)]
        spread = -float(finite.min()) if finite.size else 0.0
        finite = end[~np.isneginf(end)]
        small = spread < _SPREAD and (not finite.size or float(np.ptp(finite)) < _SPREAD)
        self._arithmetic: Arithmetic = Best if best else Linear if small else Log
        self._run(relative)
        if self._arithmetic is Linear and not self._agree():
            self._arithmetic = Log
            self._run(relative)

    def _run(self, relative: Array) -> None:
        ar, tr = self._arithmetic, self.transitions
        positions, _, batch = relative.shape
        flat = np.ascontiguousarray(ar.from_log(relative).transpose(1, 0, 2)).reshape(tr.classes, positions * batch)
        pairs = tr.masses_of_pairs(flat, ar).reshape(len(tr.source), positions, batch)
        self._pairs = np.ascontiguousarray(pairs.transpose(1, 0, 2))
        self._forward = np.full((positions + 1, tr.states, batch), ar.zero)
        self._backward = np.full((positions + 1, tr.states, batch), ar.zero)
        self._forward_scale, self._backward_scale = np.zeros((2, positions + 1, batch))
        self._forward[0, 0] = ar.one
        top = self._end.max(axis=0)
        self._backward[-1] = ar.from_log(self._end - np.where(np.isneginf(top), 0.0, top))
        self._backward_scale[-1] = top
        for t in range(positions):
            moved = self._moved(
                t, self._forward[t], tr.source_by_target, self._pairs[t][tr.by_target.order], tr.by_target
            )
            self._forward[t + 1], scale = ar.scaled(moved)
            self._forward_scale[t + 1] = self._forward_scale[t] + scale + self._top_at(t)
        for t in reversed(range(positions)):
            moved = self._moved(t, self._backward[t + 1], tr.target, self._pairs[t], tr.by_source)
            self._backward[t], scale = ar.scaled(moved)
            self._backward_scale[t] = self._backward_scale[t + 1] + scale + self._top_at(t)
        self.log_z = self._backward_scale[0] + ar.to_log(self._backward[0, 0])

    def _top_at(self, t: int) -> Array:
        top: Array = np.where(self._skipped[t] | self._unknown[t], 0.0, self._top[t, 0])
        return top

    def _moved(self, t: int, states: Array, along: NDArray[np.int64], masses: Array, to: Segments) -> Array:
        """One position of a message, `(states, batch)`: the sums over pairs from `along` to the groups of `to`."""
        ar = self._arithmetic
        carried = states.take(along, axis=0)
        moved = ar.sums(ar.times(carried, masses), to)
        if self._unknown[t].any():
            moved = np.where(self._unknown[t], largest(carried, to, ar.zero), moved)
        if self._skipped[t].any():
            moved = np.where(self._skipped[t], states, moved)
        return moved

    def _agree(self) -> bool:
        """Whether every position gives the same Z: nothing was lost that is too small for `Linear`."""
        both = np.einsum("tsb,tsb->tb", self._forward, self._backward)
        with np.errstate(invalid="ignore"):
            found = Linear.to_log(both) + self._forward_scale + self._backward_scale
            same = np.abs(found - self.log_z) <= _AGREEMENT
        same[1:] |= np.logical_or.accumulate(self._unknown, axis=0)  # behind which sums meet largest ones
        return bool(np.isfinite(self.log_z).all() and same.all())

    @cached_property
    def log_weights(self) -> Array:
        """`(positions, classes, batch)`: `log w - log Z`, by which the posterior differs from the log-probabilities."""
        ar, tr = self._arithmetic, self.transitions
        positions, _, batch = self._log_masses.shape
        pairs = ar.times(
            self._forward[:-1].transpose(1, 0, 2)[tr.source], self._backward[1:].transpose(1, 0, 2)[tr.target]
        )
        found = ar.to_log(tr.weights_of_classes(np.ascontiguousarray(pairs.reshape(len(tr.source), -1)), ar))
        weights = found.reshape(tr.classes, positions, batch).transpose(1, 0, 2)
        with np.errstate(invalid="ignore"):
            joint = weights + self._log_masses
            highest = joint.max(axis=1, keepdims=True)
            total = highest + np.log(np.exp(joint - highest).sum(axis=1, keepdims=True))
        return weights - np.where(np.isfinite(total), total, 0.0)

    def entropy(self) -> Array:
        """`(positions, batch)` nats: of the class of the token at each position, given acceptance."""
        with np.errstate(invalid="ignore"):
            log_p = self.log_weights + self._log_masses
            entropy: Array = -np.where(np.isneginf(log_p), 0.0, np.exp(log_p) * log_p).sum(axis=1)
        return entropy

    def draw(self, uniform: Array) -> NDArray[np.int64]:
        """States of joint draws: `(draws, positions + 1, batch)`.

        From state s the next one is `j ~ M_t(s, j) b_{t+1}(j) / b_t(s)`.

        Args:
            uniform: `(draws, positions, batch)`, numbers in [0, 1).
        """
        ar, tr = self._arithmetic, self.transitions
        draws, positions, batch = uniform.shape
        column = np.tile(np.arange(batch), draws)
        states = np.zeros((positions + 1, draws * batch), dtype=np.int64)
        for t in range(positions):
            now = states[t]
            counts = np.where(self._skipped[t][column], 0, tr.degree[now])
            offsets = counts.cumsum() - counts
            within = np.arange(counts.sum()) - np.repeat(offsets, counts)
            pair, which = np.repeat(tr.first[now], counts) + within, np.repeat(column, counts)
            mass = np.where(self._unknown[t][which], ar.one, self._pairs[t, pair, which])
            score = ar.times(mass, self._backward[t + 1][tr.target[pair], which])
            states[t + 1] = now
            moving = counts > 0
            numbers = uniform[:, t].reshape(-1)[moving]
            chosen = _chosen(ar, score, counts[moving], numbers)
            states[t + 1][moving] = tr.target[pair[chosen]]
        return states.reshape(positions + 1, draws, batch).transpose(1, 0, 2)

    def log_backward(self, t: int) -> Array:
        """`(states, batch)`: log b_t, up to a number for each canvas."""
        return self._arithmetic.to_log(self._backward[t])

    def log_moved(self, t: int, states: Array, rows: NDArray[np.int64]) -> Array:
        """Logarithms of weights of states `(states, len(rows))` of some canvases, moved on by position t."""
        transitions = self.transitions
        masses = self._arithmetic.to_log(self._pairs[t][:, rows])
        carried = states[transitions.source_by_target]
        moved = Log.sums(carried + masses[transitions.by_target.order], transitions.by_target)
        if self._unknown[t, rows].any():
            moved = np.where(self._unknown[t, rows], largest(carried, transitions.by_target, -np.inf), moved)
        result: Array = np.where(self._skipped[t, rows], states, moved)
        return result

    def possible_ends(self) -> NDArray[np.bool_]:
        """`(states, batch)`: where an accepted canvas may end."""
        ends: NDArray[np.bool_] = (self._forward[-1] > self._arithmetic.zero) & ~np.isneginf(self._end)
        return ends

    def end_distribution(self) -> Array:
        """`(states, batch)`: the posterior of the state that the canvas ends in."""
        joint = self._arithmetic.to_log(self._arithmetic.times(self._forward[-1], self._backward[-1]))
        with np.errstate(invalid="ignore"):
            probs = np.exp(joint - joint.max(axis=0))
        probs = np.nan_to_num(probs)
        total = probs.sum(axis=0)
        result: Array = probs / np.where(total == 0, 1.0, total)
        return result


def _chosen(ar: Arithmetic, score: Array, counts: NDArray[np.int64], uniform: Array) -> NDArray[np.int64]:
    """One entry of each of some stretches of `counts` entries, drawn in proportion to `score`."""
    if not len(counts):
        return np.zeros(0, dtype=np.int64)
    starts = counts.cumsum() - counts
    top = np.maximum.reduceat(score, starts)
    if ar is Best:
        score = (score == np.repeat(top, counts)).astype(np.float64)
    elif ar is Log:
        score = np.exp(score - np.repeat(np.where(np.isneginf(top), 0.0, top), counts))
    else:
        score = score / np.repeat(np.where(top == 0, 1.0, top), counts)
    # each stretch by itself, so that what a row draws does not depend on the others, not in the last digit either
    within = np.arange(len(score)) - np.repeat(starts, counts)
    width = int(counts.max())
    padded = np.zeros((len(counts), width))
    padded[np.repeat(np.arange(len(counts)), counts), within] = score
    cumulative = padded.cumsum(axis=1)
    below = cumulative <= (uniform * cumulative[:, -1])[:, None]
    place = np.minimum(below.sum(axis=1), counts - 1)
    last = width - 1 - (padded[:, ::-1] > 0).argmax(axis=1)  # of positive weight
    chosen: NDArray[np.int64] = starts + np.minimum(place, last)
    return chosen
