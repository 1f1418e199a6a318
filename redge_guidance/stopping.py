"""When guidance of a sequence ends though its sampling goes on: `stop_when` of `guide`, sequence by sequence."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from redge_guidance.checks import real_number, whole_number
from redge_guidance.step import DenoisingStep
from redge_guidance.trace import SequenceFigures, StepTrace

StopRule = Callable[[list[SequenceFigures]], bool]
Guided = Callable[[DenoisingStep], tuple[Tensor, StepTrace]]


@dataclass(frozen=True)
class Settled:
    """Whether the last `patience + 1` rewards of a sequence lie within `tolerance`: highest - lowest <= tolerance.

    The rewards are those of the guided steps, means over draws and updates, which scatter: take more `num_draws`, or a
    wider `tolerance`, where draws differ much.

    Attributes:
        tolerance: >= 0, in units of the reward.
        patience: guided steps without a change, at least 1.

    Raises:
        ValueError: a value out of range.

    >>> rewards = [0.1, 0.6, 0.902, 0.9, 0.905]
    >>> figures = [SequenceFigures(reward, 0.0, 0.0, 0.0, 1) for reward in rewards]
    >>> Settled(tolerance=0.01, patience=2)(figures), Settled(tolerance=0.01, patience=3)(figures)
    (True, False)
    """

    tolerance: float = 0.01
    patience: int = 3

    def __post_init__(self) -> None:
        tolerance = real_number("tolerance", self.tolerance)
        if not 0 <= tolerance < float("inf"):
            raise ValueError(f"`tolerance` must be a finite number >= 0, got {self.tolerance!r}.")
        object.__setattr__(self, "tolerance", tolerance)
        object.__setattr__(self, "patience", whole_number("patience", self.patience, 1))

    def __call__(self, figures: list[SequenceFigures]) -> bool:
        last = [one.reward for one in figures[-self.patience - 1 :]]
        return len(last) > self.patience and max(last) - min(last) <= self.tolerance


class Stopping:
    """Which sequences of one call of a sampler `rule` has stopped, by the figures of each alone.

    A sequence begins anew, guided, when positions of it become free that were not free before in this call: the next
    block of a text that is drawn block by block.

    Args:
        rule: asked after every step in which a sequence was guided and had free positions, with its figures of all
            such steps, of the block; True ends its guidance. None: nothing is ever stopped.

    Raises:
        ValueError: a rule that is not callable.
    """

    def __init__(self, rule: StopRule | None = None):
        if rule is not None and (not callable(rule) or isinstance(rule, type)):
            hint = f"; make one, `{rule.__name__}(...)`" if isinstance(rule, type) else ""
            raise ValueError(
                f"`stop_when` must be a function of the figures of one sequence, such as `Settled()`, or None, got "
                f"{rule!r}{hint}."
            )
        self._rule = rule
        self._figures: list[list[SequenceFigures]] = []
        self._stopped: list[bool] = []
        self._was_free = torch.zeros(0, 0, dtype=torch.bool)

    @property
    def rule(self) -> StopRule | None:
        return self._rule

    def guide(
        self, step: DenoisingStep, guided: Guided, whole_batch: bool = False
    ) -> tuple[Tensor | None, StepTrace | None]:
        """Guide the sequences of a step that are not stopped, and ask the rule about them.

        Args:
            step: at least one position of it is free.
            guided: from a step to logits `(free positions, vocabulary)` and figures; not called where all have stopped.
            whole_batch: whether the reward knows the sequences by their place in the batch, and has to see all.

        Returns:
            Logits of all free positions of `step`, the host's own ones at sequences that have stopped, or None for the
            host's own everywhere; figures of all sequences, None where `guided` was not called.
        """
        if self._rule is None:
            return guided(step)
        self._follow(step.free)
        if not any(self._stopped):
            logits, figures = guided(step)
            self._note(figures)
            return logits, figures
        going = [k for k, stopped in enumerate(self._stopped) if not stopped]
        chosen = torch.tensor(going, dtype=torch.long, device=step.free.device)
        now = _without_others(step, chosen) if whole_batch else rows_of(step, chosen)
        if not now.free.any():
            return _with_guided(step, chosen, None), None
        logits, figures = guided(now)
        figures = self._of_all(figures, going, step.free)
        self._note(figures)
        return _with_guided(step, chosen, logits), figures

    def _note(self, figures: StepTrace) -> None:
        for k, one in enumerate(figures.sequences):
            if not one.stopped and one.free:
                self._figures[k].append(one)
                self._stopped[k] = self._ask(self._figures[k])

    def _of_all(self, figures: StepTrace, going: list[int], free: Tensor) -> StepTrace:
        """The figures of a step in which the sequences `going` were guided, with those of all; `free` as in a step.

        `figures` are of all or of these alone.
        """
        whole = len(figures.sequences) == len(free)
        guided = [figures.sequences[k] for k in going] if whole else figures.sequences
        by_place = dict(zip(going, guided, strict=True))
        sequences = tuple(
            by_place[k] if k in by_place else replace(self._figures[k][-1], kl=0.0, grad_norm=0.0, free=n, stopped=True)
            for k, n in enumerate(free.sum(-1).tolist())
        )
        return replace(figures, reward=sum(one.reward for one in guided) / len(guided), sequences=sequences)

    def _ask(self, figures: list[SequenceFigures]) -> bool:
        assert self._rule is not None
        answer: Any = self._rule(list(figures))
        if answer is None or (isinstance(answer, Tensor) and answer.numel() != 1):
            raise ValueError(
                f"`stop_when` must return True or False for the figures of one sequence, got {answer!r}; end it with "
                "`return`."
            )
        return bool(answer)

    def _follow(self, free: Tensor) -> None:
        """Begin anew where more is free than was."""
        before = self._was_free.to(free.device)
        if len(before) != len(free):  # the first step, or the first of another batch
            before = torch.zeros(len(free), 0, dtype=torch.bool, device=free.device)
            self._figures, self._stopped = [[] for _ in free], [False] * len(free)
        length = max(before.shape[1], free.shape[1])
        before, now = (torch.nn.functional.pad(one, (0, length - one.shape[1])) for one in (before, free))
        for k in (now & ~before).any(-1).nonzero()[:, 0].tolist():
            self._figures[k], self._stopped[k] = [], False
        self._was_free = before | now


def _without_others(step: DenoisingStep, chosen: Tensor) -> DenoisingStep:
    """The step, with nothing free in sequences that are not `chosen`, `(n,)` int64."""
    mine = torch.isin(torch.arange(len(step.ids), device=chosen.device), chosen)
    return replace(step, free=step.free & mine[:, None])


def rows_of(step: DenoisingStep, chosen: Tensor) -> DenoisingStep:
    """The step of the sequences `chosen` alone, `(n,)` int64 in ascending order."""

    def rows(values: Any) -> Any:
        if isinstance(values, Tensor):
            return values[chosen]
        several = isinstance(values, Sequence) and not isinstance(values, str)
        return [values[k] for k in chosen.tolist()] if several else values

    names = [
        "logits",
        "ids",
        "free",
        "attention_mask",
        "given",
        "prompts",
        "generator",
        "unending",
        "lead",
        "later",
        "held",
    ]
    return replace(step, **{name: rows(getattr(step, name)) for name in names})


_MORE = ("lead", "later", "held")


def _with_guided(step: DenoisingStep, chosen: Tensor, guided: Tensor | None) -> Tensor | None:
    """Logits `(free positions, vocabulary)`, float32 at least: the host's, and `guided` ones at `chosen` sequences.

    Where nothing is guided, None if the host's own are so: a sequence is to be drawn alike whether or not others of its
    batch are still guided, in the same dtype.
    """
    dtype = torch.promote_types(step.logits.dtype, torch.float32)
    if guided is None and step.logits.dtype == dtype:
        return None
    block = step.free[:, -step.logits.shape[1] :]
    logits = step.logits[block].to(dtype)
    if guided is not None:
        logits[torch.isin(block.nonzero()[:, 0], chosen)] = guided.to(dtype)
    return logits
