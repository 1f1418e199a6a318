"""Logits of tokens and masses of their classes: from the one to the other and back."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from redge_guidance.constraints.refinement import DEAD
from redge_guidance.constraints.token_automaton import TokenAutomaton

_CHUNK = 2**18  # numbers that are worked on at once, which stay in the cache
_MOST_ROWS = 2**25  # numbers in the table of what may follow what
_LEAST = 1e-34  # of a sum of float32, beneath which it is of numbers that have lost digits, or all of them


class TokenClasses:
    """The classes of the tokens of an automaton, on a device.

    Args:
        automaton: whose classes.
        device: of the logits.
    """

    def __init__(self, automaton: TokenAutomaton, device: torch.device):
        class_of = torch.from_numpy(automaton.class_of).long().to(device)
        self._table = automaton.table
        self.count = automaton.table.shape[1]
        self._of_token = torch.where(class_of == DEAD, self.count, class_of)  # the last one for those that lead nowhere
        ordered, self._order = self._of_token.sort(stable=True)
        groups, self._starts = np.unique(ordered.cpu().numpy(), return_index=True)
        self._groups = torch.from_numpy(groups).to(device)

    def log_probs(self, logits: Tensor) -> Tensor:
        """Log-probability of every class; logits `(rows, vocabulary)` to `(rows, classes)`, -inf for none."""
        masses = self.masses(logits)
        return masses[:, : self.count] - masses.logsumexp(-1, keepdim=True)

    def masses(self, logits: Tensor) -> Tensor:
        """`log sum exp` of the logits of every class; `(rows, vocabulary)` to `(rows, classes + 1)`, -inf for none.

        The last one is of the tokens that lead nowhere.
        """
        if logits.device.type != "cpu" or logits.dtype != torch.float32:
            return _scattered(logits, self._of_token.expand_as(logits), self.count + 1)
        result = logits.new_full((len(logits), self.count + 1), -torch.inf)
        size = max(1, _CHUNK // max(logits.shape[1], 1))
        buffer = torch.empty(min(size, len(logits)), logits.shape[1])
        for first in range(0, len(logits), size):  # part by part, each read once
            part = logits[first : first + size]
            top = part.amax(-1, keepdim=True)
            top = top.masked_fill(top == -torch.inf, 0.0)
            probs = torch.sub(part, top, out=buffer[: len(part)]).exp_()
            ordered = probs.index_select(1, self._order).numpy()
            sums = torch.from_numpy(np.add.reduceat(ordered, self._starts, axis=1))
            sums.masked_fill_(sums < _LEAST, 0.0)
            result[first : first + size, self._groups] = sums.log_().add_(top)
        return self._with_smallest(logits, result)

    def _with_smallest(self, logits: Tensor, masses: Tensor) -> Tensor:
        """Where the mass of a class was too small for float32, as a sum of its own."""
        missing = masses[:, : self.count] == -torch.inf
        rows = missing.any(-1).nonzero()[:, 0]
        if not len(rows):
            return masses
        tokens = missing.any(0)[self._of_token.clamp(max=self.count - 1)] & (self._of_token < self.count)
        chosen = tokens.nonzero()[:, 0]
        which = self._of_token[chosen].expand(len(rows), -1)
        exact = _scattered(logits[rows][:, chosen], which, self.count + 1)
        masses[rows] = torch.where(masses[rows] == -torch.inf, exact, masses[rows])
        return masses

    def masses_of_some(self, logits: Tensor, support: Tensor) -> Tensor:
        """Of some tokens of each row, `support` `(rows, S)` int64 being the ids of the columns: `(rows, classes)`."""
        return _scattered(logits, self._of_token[support], self.count + 1)[:, : self.count]

    def highest(self, logits: Tensor) -> Tensor:
        """The highest logit of every class; `(rows, vocabulary)` to `(rows, classes)`, -inf for none."""
        empty = logits.new_full((len(logits), self.count + 1), -torch.inf)
        return empty.scatter_reduce(1, self._of_token.expand_as(logits), logits, "amax")[:, : self.count]

    def weighted(self, logits: Tensor, weights: Tensor, support: Tensor | None = None) -> Tensor:
        """`logits + weights` of the class of each token, -inf for tokens that lead nowhere; a new tensor.

        Args:
            logits: `(rows, vocabulary)`, or `(rows, S)` with `support`.
            weights: `(rows, classes)` in nats.
            support: `(rows, S)` int64, the ids of the columns; None: column = id.
        """
        weights = torch.nn.functional.pad(weights.to(logits), (0, 1), value=-torch.inf)
        if support is not None:
            return logits + weights.gather(1, self._of_token[support])
        result = torch.empty_like(logits)
        size = max(1, _CHUNK // max(logits.shape[1], 1)) if logits.device.type == "cpu" else len(logits)
        for first in range(0, len(logits), max(size, 1)):
            rows = slice(first, first + size)
            torch.add(logits[rows], weights[rows].index_select(1, self._of_token), out=result[rows])
        return result

    def within(self, logits: Tensor, label: Tensor) -> Tensor:
        """Logits `(rows, vocabulary)` of the tokens of the class `label` `(rows,)` of each row; -inf for others."""
        return logits.masked_fill(self._of_token != label[:, None], -torch.inf)

    def along(
        self,
        logits: Tensor,
        now: NDArray[np.int64],
        after: NDArray[np.int64],
        support: Tensor | None = None,
        out: Tensor | None = None,
    ) -> Tensor:
        """Logits of the tokens that lead from a state to another, -inf for all others; a new tensor, or `out`.

        Args:
            logits: `(rows, vocabulary)`, or `(rows, S)` with `support`.
            now, after: `(rows,)`, the states of each row.
            support: `(rows, S)` int64, the ids of the columns; None: column = id.
            out: what the result of a whole vocabulary is written to, `logits` too; None: a new tensor.
        """
        pairs, which = np.unique(np.stack([now, after]), axis=1, return_inverse=True)
        allowed = torch.from_numpy(self._table[pairs[0]] == pairs[1][:, None]).to(logits.device)
        allowed = torch.nn.functional.pad(allowed, (0, 1))
        added = torch.zeros(allowed.shape, device=logits.device, dtype=logits.dtype).masked_fill(~allowed, -torch.inf)
        row = torch.from_numpy(which.reshape(-1)).to(logits.device)
        if support is not None:
            return logits + added[row[:, None], self._of_token[support]]
        if added.shape[0] * logits.shape[1] > _MOST_ROWS:
            return self.weighted(logits, added[row, :-1])
        by_token = added.index_select(1, self._of_token)
        result = torch.empty_like(logits) if out is None else out
        size = max(1, _CHUNK // max(logits.shape[1], 1)) if logits.device.type == "cpu" else len(logits)
        for first in range(0, len(logits), max(size, 1)):
            rows = slice(first, first + size)
            torch.add(logits[rows], by_token[row[rows]], out=result[rows])
        return result


def _scattered(logits: Tensor, group: Tensor, count: int) -> Tensor:
    """`log sum exp` by group; `(rows, n)`, both, to `(rows, count)`."""
    top = logits.new_full((len(logits), count), -torch.inf).scatter_reduce(1, group, logits, "amax")
    finite = top.masked_fill(top == -torch.inf, 0.0)
    parts = (logits - finite.gather(1, group)).exp()
    return finite + torch.zeros_like(top).scatter_add(1, group, parts).log()
