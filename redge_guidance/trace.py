"""What guidance did: figures by step and by sequence."""

import logging
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SequenceFigures:
    """Figures of one sequence of a batch in one guided step.

    Attributes:
        reward: mean over its relaxed samples, draws and updates.
        kl: KL(q || p) after the step's updates, in nats per free token; 0 without free tokens, as the next two.
        grad_norm: root mean square over its free positions, mean over the updates.
        entropy: of q within the support, in nats per free token.
        free: number of its free positions.
    """

    reward: float
    kl: float
    grad_norm: float
    entropy: float
    free: int


@dataclass(frozen=True)
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
            `"coverage"` where a reward has another tokenizer.
        sequences: the same for every sequence of the batch; `reward` is their mean, `kl` and `entropy` are the means
            weighted by `free`.
    """

    progress: float
    reward: float
    kl: float
    grad_norm: float
    entropy: float
    seconds: float
    notes: dict[str, float] = field(default_factory=dict)
    sequences: tuple[SequenceFigures, ...] = ()


class Trace(list[StepTrace]):
    """The last `limit` guided steps, a list; `total` counts all that there were.

    >>> trace = Trace(limit=2)
    >>> for step in range(3):
    ...     trace.append(StepTrace(step / 3, 0.0, 0.0, 0.0, 0.0, 0.0))
    >>> [step.progress > 0 for step in trace], trace.total
    ([True, True], 3)
    """

    def __init__(self, limit: int = 10_000):
        super().__init__()
        self.limit, self.total = limit, 0

    def append(self, step: StepTrace) -> None:
        super().append(step)
        self.total += 1
        if len(self) > self.limit:
            if self.total == self.limit + 1:
                logger.warning(
                    "the trace keeps the last %d guided steps; empty it by `trace.clear()` to keep it short", self.limit
                )
            del self[0]


class Figures:
    """Collects the figures of one step while its updates run, on the device, and reads them once.

    Args:
        sequence: `(rows,)` int64, the sequence of a free position.
        batch: number of sequences.
    """

    def __init__(self, sequence: Tensor, batch: int):
        self._sequence, self._batch = sequence, batch
        self._rewards: list[Tensor] = []  # (batch,), of every update
        self._squares: list[Tensor] = []  # (rows,), squared norms of every update's gradient
        self._notes: dict[str, list[tuple[int, Tensor]]] = {}

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
        rows = torch.stack([*columns, free.to(reward)], -1).tolist()
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
            sequences=tuple(SequenceFigures(r, k, g, h, int(n)) for r, k, g, h, n in rows),
        )

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
