"""Weights of particles: how many are worth anything, which go on, and what they say of the normaliser."""

import torch
from torch import Tensor


class Weights:
    """Log-weights of groups of particles, float64 on the CPU.

    With resampling at times that may depend on the particles themselves, `mean(w f)` times the mean weights of all
    resamplings before is an unbiased estimate of the sum that it stands for at every step: of `Z E_target[f]` in the
    end, of Z for `f = 1`: resampling keeps the expectation of every particle's weight, and so does a step.

    Args:
        groups, size: so many groups of so many particles.

    Attributes:
        log: `(groups, size)`, since the group was last resampled; -inf: dead.
        log_z: `(groups,)`, log of the mean weights of all resamplings so far.
    """

    def __init__(self, groups: int, size: int):
        self.log = torch.zeros(groups, size, dtype=torch.float64)
        self.log_z = torch.zeros(groups, dtype=torch.float64)

    def add(self, increments: Tensor) -> None:
        """Multiply every weight by the exponential of `(groups, size)` nats; NaN and -inf: the particle dies."""
        self.log += increments.to(self.log).nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)

    @property
    def dead(self) -> Tensor:
        """Groups none of whose particles has a weight, `(groups,)` bool."""
        return self.log.isneginf().all(-1)

    def normalised(self) -> Tensor:
        """Weights that sum to 1 in every group, `(groups, size)`."""
        return self.log.softmax(-1)

    def effective(self) -> Tensor:
        """Effective sample sizes `1 / sum w^2` of normalised weights, `(groups,)`, from 1 to size."""
        return 1 / self.normalised().square().sum(-1)

    def log_normaliser(self) -> Tensor:
        """The estimate of log Z, `(groups,)`."""
        return self.log_z + self.log.logsumexp(-1) - torch.tensor(self.log.shape[1], dtype=self.log.dtype).log()

    def resample(self, which: Tensor, uniforms: Tensor) -> Tensor:
        """Resample the groups `which` `(groups,)` bool, systematically, at numbers in [0, 1) `(groups,)`.

        Returns:
            `(groups * size,)` int64, the particle that each goes on as; those that go on do so where they are.
        """
        size = self.log.shape[1]
        rows = torch.arange(self.log.numel()).view_as(self.log)
        for group in which.nonzero()[:, 0].tolist():
            counts = systematic(self.normalised()[group], float(uniforms[group]))
            rows[group] = group * size + in_place(counts)
        self.log_z = torch.where(which, self.log_normaliser(), self.log_z)
        self.log = self.log.masked_fill(which[:, None], 0.0)
        return rows.flatten()


def systematic(weights: Tensor, uniform: float) -> Tensor:
    """How often each of `weights` `(n,)`, normalised, is taken when n are: `(n,)` int64.

    One number places a comb of n teeth 1/n apart; each tooth takes the particle whose part of [0, 1) it falls into, so
    that the expected counts are `n * weights`, and no count is a whole one away from that.

    >>> systematic(torch.tensor([0.5, 0.1, 0.4]), 0.2)
    tensor([2, 0, 1])
    """
    n = len(weights)
    teeth = (torch.arange(n, dtype=torch.float64) + uniform) / n
    edges = weights.double().cumsum(0)
    found = torch.searchsorted(edges, teeth * edges[-1], right=True).clamp(max=n - 1)
    return torch.bincount(found, minlength=n)


def in_place(counts: Tensor) -> Tensor:
    """Who goes on as whom, `(n,)` int64: those that go on stay, their copies take the places of those that do not.

    >>> in_place(torch.tensor([2, 0, 1]))
    tensor([0, 0, 2])
    """
    rows = torch.arange(len(counts))
    rows[counts == 0] = torch.repeat_interleave(rows, (counts - 1).clamp(min=0))
    return rows
