"""What the host draws from at the free positions, computed row by row from its logits."""

import torch
from torch import Tensor

from redge_guidance.hosts.base import DenoisingStep
from redge_guidance.updates import LogProbs, kl, row_chunks


class Prediction:
    """`log p` of the free positions, p what the host draws from: `prediction[rows]` is `(rows, vocabulary)`, float32.

    It is computed from the logits of the host whenever it is asked for, so that guidance keeps no copy.
    """

    def __init__(self, step: DenoisingStep):
        self._step = step
        self._index = step.free[:, -step.logits.shape[1] :].nonzero(as_tuple=True)
        self._reserved = torch.tensor(step.reserved, dtype=torch.long, device=step.logits.device)
        self.shape = (len(self._index[0]), step.logits.shape[-1])
        # Results are written into memory that was there before: small new tensors among large temporary ones would
        # keep the latter's memory from being used again.
        self.log_z = torch.empty(self.shape[0], 1, device=step.logits.device)
        for rows in row_chunks(self.shape, self._reserved.device):
            self.log_z[rows] = self.logits(rows).logsumexp(-1, keepdim=True)

    def __getitem__(self, rows: slice) -> Tensor:
        return self.logits(rows).sub_(self.log_z[rows])

    def logits(self, rows: slice = slice(None)) -> Tensor:
        """What the host's logits become by temperature and reserved tokens, a new tensor."""
        logits = self._step.logits[tuple(i[rows] for i in self._index)].float()
        if self._step.temperature != 1:
            logits /= self._step.temperature
        return logits.index_fill_(-1, self._reserved, -torch.inf)

    def likeliest(self, count: int, named: list[int]) -> tuple[Tensor, Tensor]:
        """The named tokens and the `count` likeliest others of every row: logits and ids, both `(rows, S)`."""
        size = min(count + len(named), self.shape[1])
        first = torch.tensor(named, dtype=torch.long, device=self._reserved.device)
        support = torch.empty(self.shape[0], size, dtype=torch.long, device=first.device)
        kept = torch.empty(support.shape, device=first.device)
        for rows in row_chunks(self.shape, self._reserved.device):
            logits = self.logits(rows)
            support[rows] = logits.index_fill(-1, first, torch.inf).topk(size, dim=-1).indices
            kept[rows] = logits.gather(-1, support[rows])
        return kept, support


def distances(log_q: Tensor, log_p: LogProbs, mass: Tensor) -> tuple[Tensor, Tensor]:
    """Means over the rows of `mass * KL(q || p)` and of the entropy of q."""
    divergence, entropy = torch.empty_like(mass), torch.empty_like(mass)
    for rows in row_chunks(log_q.shape, log_q.device):
        q = log_q[rows]
        divergence[rows] = mass[rows] * kl(q, log_p[rows])
        entropy[rows] = torch.special.entr(q.exp()).sum(-1)
    return divergence.mean(), entropy.mean()
