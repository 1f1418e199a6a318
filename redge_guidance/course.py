"""The sequences of one call of a sampler: which are asked about their reward in a step, which are left as they are."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from redge_guidance.stopping import Asking, StopRule
from redge_guidance.trace import SequenceFigures, StepTrace, of_sequences

_LONGEST = 8  # steps at which the reward is asked, of which one that needs nothing is asked in one


@dataclass(frozen=True, eq=False)
class Plan:
    """What becomes of the sequences of one step; all are `(batch,)` bool.

    Attributes:
        asked: draws are made, the reward is asked.
        first: those of the asked of which no ceiling is known, see `SequenceFigures`.
        kept: neither asked nor stopped: tilted as before.
        stopped: guidance of it has been ended by `stop_when`.
    """

    asked: Tensor
    first: Tensor
    kept: Tensor
    stopped: Tensor


class Course:
    """Which sequences of one call of a sampler are asked at which step, by the figures of each alone.

    A sequence is asked at its first step and then at every n-th. One that has reached its target without being moved is
    asked at every second of these steps, then at every fourth, at last at every eighth, until it has not. A sequence
    begins anew when positions of it become free that were not free before in this call: the next block of a text that
    is drawn block by block.

    Args:
        rule: asked after every step in which a sequence was asked, with its figures of all such steps, of the block;
            True ends its guidance. None: nothing is ever stopped.
        every: n.

    Raises:
        ValueError: a rule that is not callable.
    """

    def __init__(self, rule: StopRule | None = None, every: int = 1):
        self._asking, self._every = Asking(rule), every
        self._figures: list[list[SequenceFigures]] = []  # of the steps in which it was asked, of the block
        self._last: list[SequenceFigures] = []
        self._stopped: list[bool] = []
        self._ended: list[bool] = []  # by somebody else than the rule
        self._notes: dict[str, float] = {}
        self._wait: list[int] = []  # steps until it is asked
        self._gap: list[int] = []
        self._was_free = torch.zeros(0, 0, dtype=torch.bool)

    def plan(self, free: Tensor, together: bool = False) -> Plan:
        """Of the next step, `free` being as in a `DenoisingStep`; `together`: all are asked, or none."""
        self._follow(free)
        if len(self._ended) == len(free):
            self._stopped = [before or now for before, now in zip(self._stopped, self._ended, strict=True)]
        alive = free.any(-1).tolist()
        going = [here and not stopped for here, stopped in zip(alive, self._stopped, strict=True)]
        asked = [here and wait <= 0 for here, wait in zip(going, self._wait, strict=True)]
        if together and any(asked):
            asked = going
        self._wait = [wait - 1 for wait in self._wait]

        def tensor(values: Sequence[bool]) -> Tensor:
            return torch.tensor(list(values), dtype=torch.bool, device=free.device)

        kept = [here and not now for here, now in zip(going, asked, strict=True)]
        known = [bool(figures) and figures[-1].ceiling is not None for figures in self._figures]
        first = [now and not found for now, found in zip(asked, known, strict=True)]
        return Plan(tensor(asked), tensor(first), tensor(kept), tensor(self._stopped))

    @property
    def stopped(self) -> tuple[bool, ...]:
        """Of every sequence, whether the rule has ended its guidance."""
        return tuple(self._stopped)

    def ceilings(self, chosen: Tensor) -> Tensor:
        """The most that strengths may be of the sequences `chosen` `(batch,)` bool; nan where it is not known yet."""
        known = [figures[-1].ceiling if figures else None for figures in self._figures]
        values = [torch.nan if value is None else value for value in known]
        return torch.tensor(values, device=chosen.device)[chosen]

    def note(self, plan: Plan, figures: StepTrace) -> StepTrace:
        """The figures of all sequences, from those of a step in which some were asked; the rule is asked about these.

        `figures.sequences` are of the whole batch; of those that were not asked `kl`, `entropy` and `free` count.
        """
        sequences = []
        for k, (one, asked, kept) in enumerate(
            zip(figures.sequences, plan.asked.tolist(), plan.kept.tolist(), strict=True)
        ):
            if asked:
                self._last[k] = one
                self._figures[k].append(one)
                self._stopped[k] = self._asking(self._figures[k])
                self._gap[k] = min(2 * self._gap[k], _LONGEST) if one.at_rest else 1
                self._wait[k] = self._gap[k] * self._every - 1
            elif kept:
                one = replace(self._last[k], kl=one.kl, entropy=one.entropy, free=one.free, asked=False)
            elif self._stopped[k] and self._figures[k]:
                one = replace(self._last[k], kl=0.0, grad_norm=0.0, free=one.free, stopped=True, asked=False)
            else:  # nothing is free
                one = replace(self._last[k], kl=0.0, grad_norm=0.0, entropy=0.0, free=0, asked=False)
            sequences.append(one)
        if bool(plan.kept.any()):  # of these the last notes hold, as their last reward does
            figures = replace(figures, notes=self._notes | figures.notes)
        self._notes = figures.notes
        if bool(plan.asked.all()):
            return replace(figures, sequences=tuple(sequences))
        return replace(of_sequences(figures.progress, sequences), notes=figures.notes)

    def stop(self, chosen: Tensor) -> None:
        """From the next plan on guidance of the sequences `chosen`, `(batch,)` bool, has ended."""
        self._ended = chosen.tolist()

    def reorder(self, rows: Tensor) -> None:
        """Sequence i goes on as a copy of `rows[i]`, `(batch,)` int64."""
        order = rows.tolist()
        if len(order) != len(self._figures):
            return
        self._figures = [list(self._figures[k]) for k in order]
        self._last, self._stopped = [self._last[k] for k in order], [self._stopped[k] for k in order]
        self._wait, self._gap = [self._wait[k] for k in order], [self._gap[k] for k in order]
        self._was_free = self._was_free[rows.to(self._was_free.device)]

    def _follow(self, free: Tensor) -> None:
        """Begin anew where more is free than was."""
        before = self._was_free.to(free.device)
        if len(before) != len(free):  # the first step, or the first of another batch
            before = torch.zeros(len(free), 0, dtype=torch.bool, device=free.device)
            count = len(free)
            self._figures, self._stopped = [[] for _ in free], [False] * count
            self._wait, self._gap = [0] * count, [1] * count
            self._last = [SequenceFigures(0.0, 0.0, 0.0, 0.0, 0)] * count
        length = max(before.shape[1], free.shape[1])
        before, now = (torch.nn.functional.pad(one, (0, length - one.shape[1])) for one in (before, free))
        for k in (now & ~before).any(-1).nonzero()[:, 0].tolist():
            self._figures[k], self._stopped[k], self._wait[k], self._gap[k] = [], False, 0, 1
        self._was_free = before | now
