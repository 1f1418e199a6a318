"""What the host draws from at the free positions, computed row by row from its logits."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from redge_guidance.divergence import kl
from redge_guidance.step import DenoisingStep
from redge_guidance.text import end_token_ids
from redge_guidance.updates import LogProbs, row_chunks

_PARTS, _FEW = 8, 32  # of the vocabulary, one after the other; tokens that are found by way of them


class HostLogits:
    """What the host draws from at the free positions: `host.logits()` is `(rows, vocabulary)`, float32, a new tensor.

    It is computed from the logits of the host whenever it is asked for, so that guidance keeps no copy.
    """

    def __init__(self, step: DenoisingStep):
        self._step = step
        self._index = step.free[:, -step.logits.shape[1] :].nonzero(as_tuple=True)
        device = step.logits.device
        self._rows: Tensor | None = None  # of all positions of the batch, which are copied twice as fast one by one
        if step.logits.is_contiguous():
            self._rows = step.logits.flatten(0, 1)
            self._places = self._index[0] * step.logits.shape[1] + self._index[1]
        self._reserved = torch.tensor(step.reserved, dtype=torch.long, device=device)
        self.shape = (len(self._index[0]), step.logits.shape[-1])
        self._unending = None if step.unending is None else step.unending[:, -step.logits.shape[1] :][self._index]
        if self._unending is not None and not bool(self._unending.any()):
            self._unending = None
        ends = end_token_ids(step.tokenizer) if step.ends is None else step.ends
        self._ends = torch.tensor([i for i in ends if i < self.shape[1]], dtype=torch.long, device=device)

    def logits(self, rows: slice = slice(None)) -> Tensor:
        """What the host's logits become by temperature, reserved tokens and ends before given text, a new tensor."""
        if self._rows is None:
            logits = self._step.logits[tuple(i[rows] for i in self._index)].float()
        else:
            logits = self._rows.index_select(0, self._places[rows]).float()
        if self._step.temperature != 1:
            logits /= self._step.temperature
        logits.index_fill_(-1, self._reserved, -torch.inf)
        if self._unending is not None:
            ends = logits[:, self._ends].masked_fill(self._unending[rows, None], -torch.inf)
            logits.index_copy_(-1, self._ends, ends)
        return logits


class Prediction(HostLogits):
    """`log p` of the free positions, p what the host draws from: `prediction[rows]` is `(rows, vocabulary)`, float32.

    Args:
        step: whose logits.
        support: how many of the likeliest tokens of every row are wanted, `named` aside; None: the whole vocabulary.
        named: tokens that are wanted in every row.
        preferred: from logits `(rows, vocabulary)` to others by which the likeliest are told; None: by themselves.
        normalised: whether `log_z` is wanted.

    Attributes:
        log_z: `(rows, 1)`, log of the normaliser of the whole vocabulary; of rows that are not normalised 0.
        kept, support: `(rows, S)`, logits and ids of the tokens that are wanted; None for the whole vocabulary.
    """

    def __init__(
        self,
        step: DenoisingStep,
        support: int | None = None,
        named: Sequence[int] = (),
        preferred: Callable[[slice, Tensor], Tensor] | None = None,
        normalised: bool = True,
    ):
        super().__init__(step)
        device = step.logits.device
        first = torch.tensor(list(named), dtype=torch.long, device=device)
        # Results are written into memory that was there before: small new tensors among large temporary ones would
        # keep the latter's memory from being used again.
        self.log_z = torch.zeros(self.shape[0], 1, device=device)
        self.kept: Tensor | None = None
        self.support: Tensor | None = None
        if support is not None and support < self.shape[1]:
            size = (self.shape[0], min(support + len(named), self.shape[1]))
            self.kept = torch.empty(size, device=device)
            self.support = torch.empty(size, dtype=torch.long, device=device)
        for rows in row_chunks(self.shape, device):
            logits = self.logits(rows)
            if normalised:
                self.log_z[rows] = logits.logsumexp(-1, keepdim=True)
            if self.kept is not None and self.support is not None:
                ranked = logits if preferred is None else preferred(rows, logits)
                ranked = ranked.index_fill(-1, first, torch.inf) if named else ranked
                self.support[rows] = likeliest(ranked, size[1])
                self.kept[rows] = logits.gather(-1, self.support[rows])

    def __getitem__(self, rows: slice) -> Tensor:
        return self.logits(rows).sub_(self.log_z[rows])


def likeliest(logits: Tensor, count: int) -> Tensor:
    """Ids of the highest logits of every row of `(rows, vocabulary)`: `(rows, count)` int64, as `topk` finds them.

    On a CPU a few of many are found in two thirds of the time: every `(vocabulary // 8)`-th token is of one group, the
    highest are in the `count` groups whose highest are highest, and among these `topk` looks for them, in any order.

    >>> likeliest(torch.tensor([[0.0, 3.0, 1.0]]), 1)
    tensor([[1]])
    """
    rows, vocabulary = logits.shape
    groups = vocabulary // _PARTS
    if logits.device.type != "cpu" or count > _FEW or groups < _PARTS * count:
        return logits.topk(count, dim=-1).indices
    highest = logits[:, : groups * _PARTS].view(rows, _PARTS, groups).amax(1).topk(count, dim=-1, sorted=False).indices
    places = highest[:, None] + groups * torch.arange(_PARTS)[:, None]
    rest = torch.arange(groups * _PARTS, vocabulary).expand(rows, -1)
    ids = torch.cat([places.flatten(1), rest], -1)
    return ids.gather(-1, logits.gather(-1, ids).topk(count, dim=-1, sorted=False).indices)


@dataclass(frozen=True, eq=False)
class Moved:
    """What is drawn from at the free positions of a step, where some tokens have other logits than the host's.

    Attributes:
        step: whose free positions are the rows.
        values: `(rows, S)` float32, logits; temperature and all else counted in.
        support: `(rows, S)` int64, of which tokens; None: column = id.
    """

    step: DenoisingStep
    values: Tensor
    support: Tensor | None

    def logits(self) -> Tensor:
        """`(rows, vocabulary)` float32; the values themselves where they are of all tokens."""
        if self.support is None:
            return self.values
        return HostLogits(self.step).logits().scatter_(-1, self.support, self.values)


def distances(log_q: Tensor, log_p: LogProbs, mass: Tensor) -> tuple[Tensor, Tensor]:
    """`mass * KL(q || p)` and the entropy of q, `(rows,)` each, in nats."""
    divergence, entropy = torch.empty_like(mass), torch.empty_like(mass)
    for rows in row_chunks(log_q.shape, log_q.device):
        q = log_q[rows]
        divergence[rows] = mass[rows] * kl(q, log_p[rows])
        entropy[rows] = torch.special.entr(q.exp()).sum(-1)
    return divergence, entropy
