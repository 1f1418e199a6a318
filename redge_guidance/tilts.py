"""What guidance keeps from one denoising step for the next: `log q - log p`, position by position, token by token."""

from dataclasses import dataclass

import torch
from torch import Tensor

from redge_guidance.divergence import log_ratio
from redge_guidance.prediction import HostLogits, Moved, distances
from redge_guidance.step import DenoisingStep
from redge_guidance.updates import project_to_budget, row_chunks


@dataclass(frozen=True, eq=False)
class Kept:
    """The tilts of some positions.

    Attributes:
        values: `(rows, S)` nats, `log q - log p` up to a constant a row; 0 where both are -inf.
        strengths, shares: `(rows, 1)`, as in `updates.Start`.
        support: `(rows, S)` int64, token ids of the columns; None: column = id.
    """

    values: Tensor
    strengths: Tensor
    shares: Tensor
    support: Tensor | None

    def at(self, rows: Tensor) -> "Kept":
        """Those of some rows, by their numbers."""
        support = None if self.support is None else self.support[rows]
        return Kept(self.values[rows], self.strengths[rows], self.shares[rows], support)

    def on(self, support: Tensor | None) -> Tensor:
        """The tilts of the tokens of another support `(rows, S')`, 0 of those that were not in this one."""
        if self.support is None:
            return self.values if support is None else self.values.gather(-1, support)
        if support is None:
            raise ValueError("tilts of some tokens have no values for all others; begin anew with another `support`.")
        ids, order = self.support.sort(-1)
        place = torch.searchsorted(ids, support).clamp_(max=ids.shape[1] - 1)
        values = self.values.gather(-1, order).gather(-1, place)
        return values.masked_fill_(ids.gather(-1, place) != support, 0.0)


class Tilts:
    """The tilts of one call of a sampler, by sequence and position of the canvas."""

    def __init__(self) -> None:
        self._row = torch.zeros(0, 0, dtype=torch.long)  # (batch, length), where among `_kept`; -1: nowhere
        self._kept: Kept | None = None

    def keep(self, free: Tensor, kept: Kept, going: Tensor) -> None:
        """From now on these, of the sequences `going` `(batch,)` bool, at positions `free` `(batch, length)` of them.

        Those of the other sequences stay as they are.
        """
        row = self._rows(free)
        others = row[~going]
        stay = others[others >= 0]
        new = torch.full_like(row, -1)
        new[~going] = others.masked_scatter(others >= 0, torch.arange(len(stay), device=row.device))
        mine = free & going[:, None]
        new = new.masked_scatter(mine, len(stay) + torch.arange(len(kept.values), device=row.device))
        if self._kept is not None and len(stay):
            old = self._kept.at(stay)
            support = None
            if old.support is not None and kept.support is not None:
                support = torch.cat([old.support, kept.support])
            kept = Kept(
                torch.cat([old.values, kept.values]),
                torch.cat([old.strengths, kept.strengths]),
                torch.cat([old.shares, kept.shares]),
                support,
            )
        self._row, self._kept = new, kept

    def reorder(self, rows: Tensor) -> None:
        """Sequence i goes on as a copy of `rows[i]`, `(batch,)` int64."""
        if len(self._row) == len(rows):
            self._row = self._row[rows]

    def at(self, free: Tensor) -> tuple[Tensor, Kept] | None:
        """Which of the positions `free` `(batch, length)` have a tilt, `(rows,)` bool, and these; None: none has."""
        row = self._rows(free)[free]
        found = row >= 0
        if self._kept is None or not bool(found.any()):
            return None
        return found, self._kept.at(row[found])

    def _rows(self, free: Tensor) -> Tensor:
        """`(batch, length)` for a canvas that may have grown; of another batch none."""
        if len(self._row) != len(free):
            self._kept = None
            return torch.full(free.shape, -1, dtype=torch.long, device=free.device)
        longer = free.shape[1] - self._row.shape[1]
        return torch.nn.functional.pad(self._row, (0, longer), value=-1)


def carried(step: DenoisingStep, found: Tensor, kept: Kept, budget: float | None) -> tuple[Moved, Tensor, Tensor]:
    """What q is drawn from, as tilted as before on top of what the model now says.

    Within the support `q ~ p exp(tilt)`; all other tokens keep their probability.

    Args:
        step: its free positions are the rows.
        found: `(rows,)` bool, which of them have a tilt.
        kept: the tilts of these.
        budget: nats per free token that q may be from p, averaged over a sequence; None: no limit.

    Returns:
        The logits, and KL(q || p) and the entropy of q within the support, `(rows,)` each; 0 where nothing is tilted.
    """
    host = HostLogits(step)
    sequence = step.free.nonzero()[:, 0]
    support = kept.support
    if support is not None and not bool(found.all()):  # of the others some tokens, which stay as they are
        some = torch.arange(support.shape[1], device=found.device).repeat(len(found), 1)
        support = some.masked_scatter(found[:, None], support)
    log_z, values = torch.empty(host.shape[0], 1, device=found.device), []
    for rows in row_chunks(host.shape, found.device):
        logits = host.logits(rows)
        log_z[rows] = logits.logsumexp(-1, keepdim=True)
        values.append(logits if support is None else logits.gather(-1, support[rows]))
    likeliest = torch.cat(values) if values else host.logits()
    within = likeliest[found].logsumexp(-1, keepdim=True)
    log_p = likeliest[found] - within
    usable = within.isfinite()
    log_q = (log_p + kept.values).log_softmax(-1).where(usable, log_p)
    mass = (within - log_z[found]).exp()[:, 0]
    if budget is not None:
        most = budget * torch.bincount(sequence, minlength=len(step.ids)).to(log_q.dtype)
        log_q = project_to_budget(log_q, log_p, most, sequence[found], mass)
    divergence, entropy = (torch.zeros_like(log_z[:, 0]) for _ in range(2))
    divergence[found], entropy[found] = distances(log_q, log_p, mass)
    likeliest[found] = (log_q + within).where(usable, likeliest[found])
    return Moved(step, likeliest, support), divergence, entropy


def tilt_of(log_q: Tensor, log_p: Tensor) -> Tensor:
    """`log q - log p`, 0 where both are -inf, and at most 1e4 either way."""
    return log_ratio(log_q, log_p).clamp_(-1e4, 1e4)
