"""Parts of a batch that were moved in different ways in one step, put together again."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from redge_guidance.prediction import HostLogits, Moved
from redge_guidance.step import DenoisingStep
from redge_guidance.trace import SequenceFigures, StepTrace, of_sequences


@dataclass(frozen=True, eq=False)
class Part:
    """Some sequences of a step, moved.

    Attributes:
        chosen: `(batch,)` bool, which.
        moved: what is drawn from at their free positions.
        trace: the figures of these sequences.
        at_rest: `(their free positions,)` bool, those of sequences that are left to the host after all; None: none.
    """

    chosen: Tensor
    moved: Moved
    trace: StepTrace
    at_rest: Tensor | None = None

    @property
    def moves_all(self) -> bool:
        return bool(self.chosen.all()) and (self.at_rest is None or not bool(self.at_rest.any()))


def figures_of(step: DenoisingStep, divergence: Tensor, entropy: Tensor) -> StepTrace:
    """Of sequences whose reward was not asked: `KL(q || p)` and the entropy of q, `(free positions,)` each."""
    free, total = step.free.sum(-1), torch.zeros(2, len(step.ids), device=divergence.device)
    total.index_add_(1, step.free.nonzero()[:, 0], torch.stack([divergence, entropy]))
    rows = torch.stack([*(total / free.clamp(min=1)), free]).T.tolist()
    sequences = [SequenceFigures(0.0, kl, 0.0, h, int(count), asked=False) for kl, h, count in rows]
    return of_sequences(step.progress, sequences)


def put_together(step: DenoisingStep, parts: Sequence[Part]) -> StepTrace | None:
    """The figures of all sequences of a step, 0 for those of no part; None without parts."""
    if not parts:
        return None
    if len(parts) == 1 and len(parts[0].trace.sequences) == len(step.ids):
        return parts[0].trace
    free = step.free.sum(-1).tolist()
    sequences = [SequenceFigures(0.0, 0.0, 0.0, 0.0, count) for count in free]
    notes: dict[str, float] = {}
    for part in parts:
        notes |= part.trace.notes
        places = part.chosen.nonzero()[:, 0].tolist()
        for place, figures in zip(places, part.trace.sequences, strict=True):
            sequences[place] = figures
    return replace(of_sequences(step.progress, sequences), notes=notes)


def host_logits(step: DenoisingStep, parts: Sequence[Part]) -> Tensor | None:
    """Logits `(free positions, vocabulary)` for the host: its own ones where nothing was moved.

    None: those that the host has hold everywhere, where they are `spent` because they have been written into.

    They are float32 at least: a sequence is drawn alike whether or not others of its batch are moved.
    """
    dtype = torch.promote_types(step.logits.dtype, torch.float32)
    if not parts:
        return None if step.logits.dtype == dtype else _own(step).to(dtype)
    if step.spent and step.logits.dtype == dtype:
        for part in parts:
            _write(step, part)
        return None
    moved = [part.moved.logits() for part in parts]
    moved = moved if step.temperature == 1 else [logits.mul_(step.temperature) for logits in moved]
    if len(parts) == 1 and parts[0].moves_all:
        return moved[0]
    return _filled(step, _own(step).to(dtype), parts, moved)


def p_logits(step: DenoisingStep, parts: Sequence[Part]) -> Tensor:
    """Logits `(free positions, vocabulary)` of what is drawn from, the model's own where nothing was moved."""
    if len(parts) == 1 and parts[0].moves_all:
        return parts[0].moved.logits()
    return _filled(step, HostLogits(step).logits(), parts, [part.moved.logits() for part in parts])


def _write(step: DenoisingStep, part: Part) -> None:
    """What is drawn from at the free positions of a part, into the logits of the host: the tokens that differ alone."""
    free = step.free & part.chosen[:, None]
    row, position = free[:, -step.logits.shape[1] :].nonzero(as_tuple=True)
    values, support = part.moved.values * step.temperature, part.moved.support
    if part.at_rest is not None:
        moves = ~part.at_rest
        row, position, values = row[moves], position[moves], values[moves]
        support = None if support is None else support[moves]
    if support is None:
        step.logits[row, position] = values.to(step.logits.dtype)
    else:
        step.logits[row[:, None], position[:, None], support] = values.to(step.logits.dtype)


def _own(step: DenoisingStep) -> Tensor:
    return step.logits[step.free[:, -step.logits.shape[1] :]]


def _filled(step: DenoisingStep, logits: Tensor, parts: Sequence[Part], moved: Sequence[Tensor]) -> Tensor:
    """`logits` with those of the parts in their places; overwritten."""
    sequence = step.free.nonzero()[:, 0]
    for part, rows in zip(parts, moved, strict=True):
        places = part.chosen[sequence].nonzero()[:, 0]
        if part.at_rest is not None:
            places, rows = places[~part.at_rest], rows[~part.at_rest]
        logits[places] = rows.to(logits.dtype)
    return logits
