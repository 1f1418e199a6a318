"""What guidance did: figures by step and by sequence."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, SupportsIndex

import torch
from torch import Tensor

from redge_guidance.checks import whole_number
from redge_guidance.logging import get_logger

logger = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class SequenceFigures:
    """Figures of one sequence of a batch in one guided step.

    Attributes:
        reward: mean over its relaxed samples, draws and updates.
        kl: KL(q || p) after the step's updates, in nats per free token; 0 without free tokens, as the next two.
        grad_norm: root mean square over its free positions, mean over the updates.
        entropy: of q within the support, in nats per free token.
        free: number of its free positions.
        stopped: whether `stop_when` had ended its guidance before this step. Its `reward` and `entropy` are then those
            of the last step in which it was guided, `kl` and `grad_norm` are 0.
        strength: nats that one unit of reward was worth, in the last update; of a `scale` that, though `kl_budget` may
            have moved q back since, which `kl` shows.
        ceiling: the most that it may be until guidance of this sequence begins anew: what the budget bought when its
            reward was first asked; None where a scale is set.
        reached: the step's guess whether the target will be reached: by each of the samples that were last drawn, and,
            to first order, by what is drawn from; None without a target. Relaxed samples make it too hopeful. What the
            finished sample has is in `Trace.finished`.
        at_rest: whether it is so without being moved, so that it was left alone.
        asked: whether its reward was asked in this step; if not, `reward`, `grad_norm`, `strength` and `reached` are
            those of the step before. Not asked any more, either, where nothing is free.
    """

    reward: float
    kl: float
    grad_norm: float
    entropy: float
    free: int
    stopped: bool = False
    strength: float = 0.0
    ceiling: float | None = None
    reached: bool | None = None
    at_rest: bool = False
    asked: bool = True


@dataclass(frozen=True, slots=True)
class FinishedFigures:
    """Figures of one finished sample, by the reward itself.

    Attributes:
        reward: the weighted sum of all terms.
        rewards: the terms by name, without their weights.
        aimed: the part of `reward` that the target is of: without the terms that are automata.
        target_reached: whether that is at least the target, but for rounding; None without a target.
        why: what is known to have kept it from its target, and what may help; None where it is reached, or there
            is none.
    """

    reward: float
    rewards: dict[str, float]
    aimed: float
    target_reached: bool | None
    why: str | None = None


@dataclass(frozen=True, slots=True)
class StepTrace:
    """Figures of one guided denoising step.

    Attributes:
        progress: share of the denoising steps done before this one.
        reward: mean reward of the relaxed samples drawn in this step, over batch, draws and updates.
        kl: KL(q || p) after the step's updates, in nats per free token.
        grad_norm: root mean square over the free positions of the norm of the gradient that the update rule used, per
            unit of reward.
        entropy: of q within the support, in nats per free token.
        seconds: spent on guidance, the model and the scheduler left out.
        notes: figures that the reward noted on its tokens, means over the updates: the terms of a sum by name,
            `"coverage"` where a reward has another tokenizer; where the reward was not asked, those of the step before.
        sequences: the same for every sequence of the batch; `reward` is the mean of those that were not stopped before
            and have something free, `kl` and `entropy` are their means weighted by `free`.
        step: number of the step within its call of the sampler, from 0; steps that were not guided count.
    """

    progress: float
    reward: float
    kl: float
    grad_norm: float
    entropy: float
    seconds: float
    notes: dict[str, float] = field(default_factory=dict)
    sequences: tuple[SequenceFigures, ...] = ()
    step: int = 0


def of_sequences(progress: float, sequences: Sequence[SequenceFigures]) -> StepTrace:
    """The means of a step over those of its sequences that have free positions and are not stopped: of the reward; of
    `kl` and `entropy` weighted by `free`; of `grad_norm`, over those that were asked, the root mean square weighted by
    `free`; no seconds.
    """
    going = [one for one in sequences if one.free and not one.stopped]
    asked = [one for one in going if one.asked]

    def mean(values: Iterable[tuple[float, float]]) -> float:
        pairs = list(values)
        return sum(value * weight for value, weight in pairs) / max(sum(weight for _, weight in pairs), 1e-30)

    return StepTrace(
        progress=progress,
        reward=mean((one.reward, 1.0) for one in going),
        kl=mean((one.kl, one.free) for one in going),
        grad_norm=mean((one.grad_norm**2, one.free) for one in asked) ** 0.5,
        entropy=mean((one.entropy, one.free) for one in going),
        seconds=0.0,
        sequences=tuple(sequences),
    )


class Trace(list[StepTrace]):
    """The last guided steps, a list: at most `limit` of them, and of as many sequences together as `figures` says.

    Figures of a hundred thousand sequences take some 25 MB. The last step is kept whatever its batch.

    Args:
        limit: steps that are kept, at least 1.
        figures: sequences of these steps, counted once a step, at least 1.
        aim: what guidance pursues, at what cost, and why: one line for people.
        target: the reward that a sequence is to reach; None: there is none.

    Attributes:
        total: number of all steps that there were.

    >>> trace = Trace(limit=2)
    >>> for step in range(3):
    ...     trace.append(StepTrace(step / 3, 0.0, 0.0, 0.0, 0.0, 0.0))
    >>> [step.progress > 0 for step in trace], trace.total
    ([True, True], 3)
    """

    def __init__(self, limit: int = 10_000, figures: int = 100_000, aim: str = "", target: float | None = None):
        super().__init__()
        self.aim, self.target = aim, target
        self.limit, self.figures = whole_number("limit", limit, 1), whole_number("figures", figures, 1)
        self.total, self._told = 0, False
        self._find: Callable[[], tuple[FinishedFigures, ...] | None] | None = None
        self._finished: tuple[FinishedFigures, ...] | None = None
        self._length = self._held = 0  # when something was last appended: what is here now, unless somebody took away

    @property
    def finished(self) -> tuple[FinishedFigures, ...] | None:
        """Of every sample of the last call of a guided pipeline; the reward is asked when this is first read.

        None without a target, before and while a call draws, and where it is not known what it has come to.
        """
        if self._find is not None:
            self._finished, self._find = self._find(), None
        return self._finished

    def finish(self, find: Callable[[], tuple[FinishedFigures, ...] | None] | None) -> None:
        """How what a call has come to is found, by whoever asks first; None: not known."""
        self._find, self._finished = find, None

    def append(self, step: StepTrace) -> None:
        """Also lets go of the first steps that are too many, which is said once."""
        if len(self) != self._length:
            self._held = sum(len(one.sequences) for one in self)
        super().append(step)
        self.total += 1
        self._held += len(step.sequences)
        excess = 0
        while len(self) - excess > self.limit or (self._held > self.figures and len(self) - excess > 1):
            self._held -= len(self[excess].sequences)
            excess += 1
        if excess:
            del self[:excess]
            self._tell()
        self._length = len(self)

    def extend(self, steps: Iterable[StepTrace]) -> None:
        """`append` of one after the other."""
        for step in steps:
            self.append(step)

    def __reduce_ex__(self, protocol: SupportsIndex) -> Any:
        return _restored, (list(self), self.limit, self.figures, self.total, self.aim, self.target, self.finished)

    def _tell(self) -> None:
        if not self._told:
            self._told = True
            logger.warning(
                "the trace keeps the last %d guided steps; fewer where these are of more than %d sequences together; "
                "empty it by `trace.clear()` to keep it short",
                self.limit,
                self.figures,
            )


def _restored(
    steps: list[StepTrace],
    limit: int,
    figures: int,
    total: int,
    aim: str,
    target: float | None,
    finished: tuple[FinishedFigures, ...] | None = None,
) -> Trace:
    """A copy of a trace."""
    trace = Trace(limit, figures, aim, target)
    trace.extend(steps)
    trace.total, trace._finished = total, finished
    return trace


class Figures:
    """Collects the figures of one step while its updates run, on the device, and reads them once.

    Args: `sequence` `(rows,)` int64, the sequence of a free position; `batch`, the number of sequences.
    """

    def __init__(self, sequence: Tensor, batch: int):
        self._sequence, self._batch = sequence, batch
        self._rewards: list[Tensor] = []  # (batch,), of every update
        self._squares: list[Tensor] = []  # (rows,), squared norms of every update's gradient
        self._notes: dict[str, list[tuple[int, Tensor]]] = {}
        self._pushed: dict[str, Tensor] = {}

    def push(
        self,
        strengths: Tensor,
        ceilings: Tensor | None = None,
        reached: Tensor | None = None,
        at_rest: Tensor | None = None,
    ) -> None:
        """Of one update, as `SequenceFigures` has them, `(batch,)` each; None: there are none."""
        columns = {"strength": strengths, "ceiling": ceilings, "reached": reached, "at_rest": at_rest}
        self._pushed = {name: values for name, values in columns.items() if values is not None}

    def add(self, reward: Tensor, squared_norms: Tensor) -> None:
        """Of one update: the reward of every sequence, `(batch,)`, the squared norm of every row's gradient."""
        self._rewards.append(reward)
        self._squares.append(squared_norms)

    def note(self, notes: dict[str, Any], count: int = 1) -> None:
        """What a reward noted on a sample of `count` sequences."""
        for name, value in notes.items():
            self._notes.setdefault(name, []).append((count, torch.as_tensor(value, dtype=torch.float32).detach()))

    def step(self, progress: float, kl: Tensor, entropy: Tensor) -> StepTrace:
        """The step's figures, `kl` and `entropy` `(rows,)` being those of the final q; `seconds` is left at 0."""
        reward = torch.stack(self._rewards).mean(0)
        free = torch.bincount(self._sequence, minlength=self._batch)
        norms = [self._by_sequence(squares, free).sqrt() for squares in self._squares]
        columns = [reward, self._by_sequence(kl, free), torch.stack(norms).mean(0), self._by_sequence(entropy, free)]
        rows = torch.stack([*columns, *(one.to(reward) for one in (free, *self._pushed.values()))], -1).tolist()
        norm = torch.stack([squares.mean().sqrt() for squares in self._squares]).mean()
        means = torch.stack([reward.mean(), kl.mean(), norm, entropy.mean()]).tolist()
        return StepTrace(
            progress=progress,
            reward=means[0],
            kl=means[1],
            grad_norm=means[2],
            entropy=means[3],
            seconds=0.0,
            notes=self._means_of_notes(),
            sequences=tuple(self._sequence_figures(*row) for row in rows),
        )

    def _sequence_figures(
        self, reward: float, kl: float, norm: float, entropy: float, free: float, *pushed: float
    ) -> SequenceFigures:
        more: dict[str, Any] = dict(zip(self._pushed, pushed, strict=True))
        more |= {name: bool(more[name]) for name in ("reached", "at_rest") if name in more}
        more |= {"ceiling": None} if math.isnan(more.get("ceiling", 0.0)) else {}
        return SequenceFigures(reward, kl, norm, entropy, int(free), **more)

    def _by_sequence(self, values: Tensor, free: Tensor) -> Tensor:
        """Means over the rows of every sequence, `(batch,)`; 0 for one without rows."""
        total = torch.zeros(self._batch, dtype=values.dtype, device=values.device)
        return total.index_add_(0, self._sequence, values) / free.clamp(min=1)

    def _means_of_notes(self) -> dict[str, float]:
        if not self._notes:
            return {}
        values = [
            torch.stack([count * value.cpu() for count, value in noted]).sum() / sum(count for count, _ in noted)
            for noted in self._notes.values()
        ]
        return dict(zip(self._notes, torch.stack(values).tolist(), strict=True))
