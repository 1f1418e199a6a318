"""What the rewards of a sequence that is not finished are to its weight."""

import torch
from torch import Tensor


class Potential:
    """The log-potentials of the rows of a batch as rewards come in, see `ParticleConfig`; float64 on the CPU.

    Args:
        kind: `"difference"`, `"max"` or `"sum"`.
        temperature: units of reward in a nat.
        batch: number of rows.
    """

    def __init__(self, kind: str, temperature: float, batch: int):
        self._kind, self._temperature = kind, temperature
        self._spent = torch.zeros(batch, dtype=torch.float64)  # all increments so far, nats
        start = -torch.inf if kind == "max" else 0.0
        self._known = torch.full((batch,), start, dtype=torch.float64)  # the largest reward, or the sum of all

    def grow(self, rewards: Tensor, asked: Tensor) -> Tensor:
        """By how many nats the weights grow, `(batch,)`, now that these are the rewards.

        Those of rows that were not `asked`, `(batch,)` bool, stay as they are.
        """
        scaled = rewards.to(self._spent) / self._temperature
        if self._kind == "difference":
            grown = scaled - self._spent
        else:
            known = torch.maximum(self._known, scaled) if self._kind == "max" else self._known + scaled
            self._known = grown = known.where(asked, self._known)
        grown = grown.where(asked, 0.0)
        self._spent = self._spent + grown
        return grown

    def finish(self, rewards: Tensor) -> Tensor:
        """The same for the rewards of finished sequences, which are what all increments come to."""
        scaled = rewards.to(self._spent) / self._temperature
        grown, self._spent = scaled - self._spent, scaled
        return grown

    def reorder(self, rows: Tensor) -> None:
        self._spent, self._known = self._spent[rows], self._known[rows]
