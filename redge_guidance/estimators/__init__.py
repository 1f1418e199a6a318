"""Gradient estimators: logits in, differentiable one-hot sample out.

An estimator is a frozen dataclass of its settings, called as `(logits, generator=None) -> sample`; the last dimension
are the categories. `Estimator` is the contract, `ESTIMATORS` finds one by its name. The function of that name has the
call shape of `torch.nn.functional.gumbel_softmax`, `(logits, ..., hard=True, generator=None) -> sample`, and does the
same. `reinforce_loo` needs no gradient of the reward and is the exception: it takes draws and their rewards.

On a CPU rows are shared among `torch.get_num_threads()` threads, once for a sample and once for its gradient, which do
not depend on that number, bit for bit. No thread waits spinning for one that is not running, so that other work on the
same cores takes its share of them and no more.

On a CUDA device with Triton, large float32, float16 and bfloat16 tensors are drawn from by `redge` and `reindge` in one
kernel, and differentiated in another (`fused`), unless the generator is one of the CPU, `t1` is below 0.2 or
`num_steps` above 6. The first use compiles them for the number of categories. The draws have the same distribution as
elsewhere, and differ for the same seed.

Inside `torch.func.vmap(..., randomness="different")` every index has draws of its own, of logits that are not mapped
too.
"""

from redge_guidance.estimators.base import Estimator, Pathwise, ScoreFunction
from redge_guidance.estimators.categorical import (
    EntropyMix,
    GumbelSoftmax,
    ReinMax,
    Soft,
    StraightThrough,
    entropy_mix,
    gumbel_softmax,
    reinmax,
    soft,
    straight_through,
)
from redge_guidance.estimators.diffusion import ReDGE, ReDGECov, ReinDGE, redge, redge_cov, reindge
from redge_guidance.estimators.distribution import OneHotCategoricalReDGE
from redge_guidance.estimators.score_function import ReinforceLOO, reinforce_loo

__all__ = [
    "ESTIMATORS",
    "EntropyMix",
    "Estimator",
    "GumbelSoftmax",
    "OneHotCategoricalReDGE",
    "Pathwise",
    "ReDGE",
    "ReDGECov",
    "ReinDGE",
    "ReinMax",
    "ReinforceLOO",
    "ScoreFunction",
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

ESTIMATORS: dict[str, type[Estimator]] = {
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
