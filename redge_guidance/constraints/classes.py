"""Logits of tokens and masses of their classes: from the one to the other and back."""

import torch
from torch import Tensor

from redge_guidance.constraints.machine import DEAD
from redge_guidance.constraints.token_automaton import TokenAutomaton

_LEAST_SHARE = 0.05  # of the largest class, below which its mass is not what the others leave


class TokenClasses:
    """The classes of the tokens of an automaton, on a device.

    Most tokens do the same to most automata: that class is never gathered. Its mass is what the others leave of the
    whole, or, where that is little, a sum of its own.

    Args:
        automaton: whose classes.
        device: of the logits.
    """

    def __init__(self, automaton: TokenAutomaton, device: torch.device):
        class_of = torch.from_numpy(automaton.class_of).long().to(device)
        self.count = automaton.table.shape[1]
        self._of_token = torch.where(class_of == DEAD, self.count, class_of)  # the last one for those that lead nowhere
        sizes = torch.bincount(self._of_token, minlength=self.count + 1)
        self._largest = int(sizes.argmax())
        self._others = (self._of_token != self._largest).nonzero()[:, 0]
        self._of_others = self._of_token[self._others]

    def masses(self, logits: Tensor) -> Tensor:
        """`log sum exp` of the logits of every class; `(rows, vocabulary)` to `(rows, classes)`, -inf for none."""
        found = _scattered(logits[:, self._others], self._of_others.expand(len(logits), -1), self.count + 1)
        if self._largest < self.count:
            found[:, self._largest] = self._rest(logits, found.logsumexp(-1))
        return found[:, : self.count]

    def masses_of_some(self, logits: Tensor, support: Tensor) -> Tensor:
        """The same of some tokens of each row, `support` `(rows, S)` int64 being the ids of the columns."""
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
        of_largest = weights[:, self._largest, None]
        if len(self._others) < logits.shape[1] // 2 and bool((of_largest == -torch.inf).all()):
            result = torch.full_like(logits, -torch.inf)
        else:
            result = logits + of_largest
        result[:, self._others] = logits[:, self._others] + weights[:, self._of_others]
        return result

    def _rest(self, logits: Tensor, others: Tensor) -> Tensor:
        """Log-mass of the largest class, `others` `(rows,)` being that of all others."""
        whole = logits.logsumexp(-1)
        share = -torch.expm1(others - whole)
        rest = whole + share.log()
        little = ~(share > _LEAST_SHARE)
        if little.any():
            rest[little] = logits[little].index_fill(1, self._others, -torch.inf).logsumexp(-1)
        return rest


def _scattered(logits: Tensor, group: Tensor, count: int) -> Tensor:
    """`log sum exp` by group; `(rows, n)`, both, to `(rows, count)`."""
    top = logits.new_full((len(logits), count), -torch.inf).scatter_reduce(1, group, logits, "amax")
    finite = top.masked_fill(top == -torch.inf, 0.0)
    parts = (logits - finite.gather(1, group)).exp()
    return finite + torch.zeros_like(top).scatter_add(1, group, parts).log()
