"""A canvas of tokens, as an automaton reads it."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from redge_guidance.constraints.arithmetic import Array
from redge_guidance.constraints.classes import TokenClasses
from redge_guidance.constraints.machine import DEAD
from redge_guidance.constraints.messages import Messages, Transitions


@dataclass(frozen=True, eq=False)
class Reading:
    """What an automaton reads at each position of a batch of canvases. All `(batch, positions)`.

    Attributes:
        ids: int64, the tokens; at free positions any.
        free: bool, positions that are drawn from logits of their own.
        skipped: bool, positions that are no part of what is judged: padding, a prompt in front, special tokens in it.
        unknown: bool, positions that are drawn later.
        held: bool, free positions whose token stays unless the host exchanges it for one that does the same.
    """

    ids: Tensor
    free: Tensor
    skipped: Tensor
    unknown: Tensor
    held: Tensor

    def __len__(self) -> int:
        return len(self.ids)


class Conditioning:
    """An automaton at work on canvases: messages, and logits given acceptance.

    Args:
        transitions: of the automaton.
        device: of the logits.
    """

    def __init__(self, transitions: Transitions, device: torch.device):
        self.transitions, self.automaton = transitions, transitions.automaton
        self.classes = TokenClasses(self.automaton, device)
        self._live = self.automaton.class_of

    def messages(
        self, reading: Reading, masses: Tensor | None, worth: Array | None = None, best: bool = False
    ) -> Messages:
        """Messages over the canvases.

        Args:
            reading: of the batch.
            masses: `(free positions, classes)`, log-probability of each class at the free positions, in row-major
                order; None: nothing is known of them.
            worth: `(states, batch)` nats, what it is worth to end in a state; None: nothing.
            best: of the likeliest tokens alone, `masses` being the log-probability of the likeliest of each class.
        """
        batch, positions = reading.ids.shape
        free, skipped, unknown, held = (
            np.ascontiguousarray(one.cpu().numpy().T)
            for one in (reading.free, reading.skipped, reading.unknown, reading.held)
        )
        if masses is None:
            unknown = unknown | (free & ~held)
        fixed = held | ~(free | skipped | unknown)
        labels = self.labels(reading.ids.cpu().numpy().T)
        table = np.full((positions, batch, self.classes.count), -np.inf)
        table[skipped | unknown] = 0.0
        if masses is not None:
            rows, columns = np.nonzero(free.T)
            table[columns, rows] = masses.detach().double().cpu().numpy()
        table[fixed] = -np.inf
        t, b = np.nonzero(fixed & (labels != DEAD))
        table[t, b, labels[t, b]] = 0.0
        accepting = self.automaton.accepting[:, None]
        end = np.where(accepting, np.zeros((1, batch)) if worth is None else worth, -np.inf)
        by_position = np.ascontiguousarray(table.transpose(0, 2, 1))
        return Messages(self.transitions, by_position, skipped, unknown, end, best)

    def labels(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """The class of each token, `DEAD` for one that leads nowhere."""
        known = ids < len(self._live)
        labels: NDArray[np.int64] = np.where(known, self._live[np.where(known, ids, 0)], DEAD)
        return labels

    def posterior(self, reading: Reading, messages: Messages, logits: Tensor, support: Tensor | None = None) -> Tensor:
        """Logits of the free positions given acceptance: `log q + log w`; a new tensor like `logits`."""
        weights = messages.log_weights.transpose(2, 0, 1)[reading.free.cpu().numpy()]
        return self.classes.weighted(logits, torch.from_numpy(weights).to(logits), support)

    def given_states(
        self,
        reading: Reading,
        states: NDArray[np.int64],
        logits: Tensor,
        support: Tensor | None = None,
        out: Tensor | None = None,
    ) -> Tensor:
        """Logits of the tokens that lead along `states`, -inf for all others; a new tensor like `logits`, or `out`.

        Args:
            states: `(positions + 1, batch)`, of one joint draw.
        """
        free = reading.free.cpu().numpy()
        now, after = states[:-1].T[free], states[1:].T[free]
        return self.classes.along(logits, now, after, support, out)

    def log_accept(self, reading: Reading, log_q: Tensor) -> Tensor:
        """`log P_q(accept)`, `(batch,)` float64, differentiable in `log_q` `(free positions, vocabulary)`.

        Its gradient by `log q_t(v)` is the posterior of token v at position t.
        """
        result: Tensor = _LogAccept.apply(log_q, self, reading)
        return result


class _LogAccept(torch.autograd.Function):
    @staticmethod
    def forward(ctx, log_q, conditioning, reading):  # type: ignore[no-untyped-def]
        messages = conditioning.messages(reading, conditioning.classes.masses(log_q)[:, :-1])
        posterior = conditioning.posterior(reading, messages, log_q).exp()
        possible = torch.from_numpy(np.isfinite(messages.log_z)).to(log_q.device)
        row = reading.free.nonzero()[:, 0]
        ctx.save_for_backward(torch.where(possible[row, None], posterior, 0.0), row)
        return torch.from_numpy(messages.log_z).to(log_q.device)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        posterior, row = ctx.saved_tensors
        return posterior * grad.to(posterior)[row, None], None, None
