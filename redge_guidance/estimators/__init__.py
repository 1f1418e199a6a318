"""Gradient estimators: logits in, differentiable one-hot sample out.

Every estimator has the call shape of `torch.nn.functional.gumbel_softmax`, `(logits, ..., hard=True, generator=None)
-> sample`, and treats the last dimension as the categories. The function and the frozen dataclass of the same name do
the same; the dataclass carries its settings, `ESTIMATORS` finds it by name. `reinforce_loo` needs no gradient of the
reward and is the exception: it takes draws and their rewards.
"""

from typing import Any

from redge_guidance.estimators.base import Estimator
from redge_guidance.estimators.categorical import (
    EntropyMix,
    GumbelSoftmax,
    ReinforceLOO,
    ReinMax,
    Soft,
    StraightThrough,
    entropy_mix,
    gumbel_softmax,
    reinforce_loo,
    reinmax,
    soft,
    straight_through,
)
from redge_guidance.estimators.diffusion import ReDGE, ReDGECov, ReinDGE, redge, redge_cov, reindge
from redge_guidance.estimators.distribution import OneHotCategoricalReDGE

__all__ = [
    "ESTIMATORS",
    "EntropyMix",
    "Estimator",
    "GumbelSoftmax",
    "OneHotCategoricalReDGE",
    "ReDGE",
    "ReDGECov",
    "ReinDGE",
    "ReinMax",
    "ReinforceLOO",
    "Soft",
    "StraightThrough",
    "entropy_mix",
    "gumbel_softmax",
    "redge",
    "redge_cov",
    "reindge",
    "reinforce_loo",
    "reinmax",
    "soft",
    "straight_through",
]

ESTIMATORS: dict[str, Any] = {
    "entropy_mix": EntropyMix,
    "gumbel_softmax": GumbelSoftmax,
    "redge": ReDGE,
    "redge_cov": ReDGECov,
    "reindge": ReinDGE,
    "reinforce_loo": ReinforceLOO,
    "reinmax": ReinMax,
    "soft": Soft,
    "straight_through": StraightThrough,
}
