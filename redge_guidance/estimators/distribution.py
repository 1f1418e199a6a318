"""ReDGE for code that is written for `torch.distributions`."""

from typing import Any

import torch
from torch import Tensor
from torch.distributions import OneHotCategorical

from redge_guidance.estimators.diffusion import ReDGE


class OneHotCategoricalReDGE(OneHotCategorical):
    """`torch.distributions.OneHotCategoricalStraightThrough` with the gradient of `redge`.

    `rsample` draws hard one-hot samples that are differentiable in `probs` or `logits`. All else (`log_prob`,
    `entropy`, `kl_divergence` with any one-hot categorical, `expand`) is that of `OneHotCategorical`, and `sample`
    draws from it exactly. Randomness is torch's global one, as everywhere in `torch.distributions`.

    Args:
        probs: `(..., K)`, probabilities; rows are normalised. Either this or `logits`.
        logits: `(..., K)`, unnormalised log-probabilities in nats.
        num_steps, t1: as in `redge`.
        validate_args: as everywhere in `torch.distributions`.

    Raises:
        ValueError: settings out of range, or what `OneHotCategorical` raises.

    >>> _ = torch.manual_seed(0)
    >>> q = OneHotCategoricalReDGE(logits=torch.zeros(2, 5))
    >>> q.batch_shape, q.event_shape, q.rsample((3,)).shape
    (torch.Size([2]), torch.Size([5]), torch.Size([3, 2, 5]))
    """

    has_rsample = True

    def __init__(
        self,
        probs: Tensor | None = None,
        logits: Tensor | None = None,
        validate_args: bool | None = None,
        *,
        num_steps: int = 4,
        t1: float | None = None,
    ):
        self.estimator = ReDGE(num_steps, t1)
        super().__init__(probs, logits, validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "OneHotCategoricalReDGE":
        new = self._get_checked_instance(OneHotCategoricalReDGE, _instance)
        new.estimator = self.estimator
        expanded: OneHotCategoricalReDGE = super().expand(batch_shape, _instance=new)
        return expanded

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """One-hot samples `(*sample_shape, *batch_shape, K)`, differentiable by `redge`."""
        logits = self.logits.expand(self._extended_shape(torch.Size(sample_shape)))
        return self.estimator(logits)
