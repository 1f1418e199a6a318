"""What an estimator is: the contract, and the two kinds there are."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor

from redge_guidance.estimators.inputs import Generators
from redge_guidance.estimators.sampling import sample


@dataclass(frozen=True)
class Estimator(ABC):
    """Draws a differentiable one-hot sample from logits `(..., K)`; a frozen dataclass of its settings.

    A subclass writes `__call__`, states the attributes where they differ, and calls `super().__post_init__()` if it
    has a `__post_init__` of its own. Most derive from `Pathwise` or `ScoreFunction` instead.

    Attributes:
        hard: a setting of all, by keyword: hard samples, or the soft ones that they are drawn from.
        needs: of a reward, its `"gradient"`, or its `"values"` alone.
        gradient_at: `"sample"` where the gradient at the logits is the Jacobian of `softmax(logits)` times the reward's
            gradient at the sample, so that the latter can be used without the former; else `"logits"`.
        one_hot: whether samples are exactly one-hot; where not, they lie inside the simplex.

    >>> class Halfway(Estimator):
    ...     def __call__(self, logits, generator=None):
    ...         return (logits / 2).softmax(-1)
    >>> Halfway(hard=False)(torch.zeros(2))
    tensor([0.5000, 0.5000])
    """

    hard: bool = field(default=True, kw_only=True)
    needs: ClassVar[Literal["gradient", "values"]] = "gradient"
    gradient_at: ClassVar[Literal["sample", "logits"]] = "logits"

    def __post_init__(self) -> None:
        if not isinstance(self.hard, bool):
            raise ValueError(f"`hard` must be True or False, got {self.hard!r}.")

    @property
    def one_hot(self) -> bool:
        return self.hard

    @property
    def is_random(self) -> bool:
        """Whether another draw is another sample."""
        return True

    @abstractmethod
    def __call__(self, logits: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """A sample `(..., K)` of the dtype of `logits`, which are in nats; `generator`, or the global one, decides."""


@dataclass(frozen=True)
class Pathwise(Estimator):
    """An estimator with a gradient in closed form, written as mathematics on rows `(rows, K)` of float32 or float64.

    `soft` maps logits and noise to a point of the simplex, `draw` picks a category there (or `category` from all that
    there is), `value` is what a hard sample looks like, and `vjp` is the estimator's gradient. Subclasses override what
    differs from straight-through; shapes, dtypes, chunks of rows and torch's transformations are seen to. On a CPU
    chunks are worked through by several threads, so that these methods are called on some at once.

    Attributes:
        fused: the Jacobian of the last draw, where a class has CUDA kernels of its own in `fused`; not inherited.
    """

    fused: ClassVar[Literal["softmax", "reinmax"] | None] = None

    def __call__(self, logits: Tensor, generator: Generators | None = None) -> Tensor:
        return sample(self, logits, generator)

    @property
    def noise(self) -> Literal["normal", "exponential"] | None:
        """`"normal"` (standard), `"exponential"` (of mean 1) or None: one number for every logit."""
        return None

    @property
    def is_random(self) -> bool:
        return self.hard or self.noise is not None

    def soft(self, logits: Tensor, noise: Tensor | None) -> Tensor:
        """`softmax(logits)`, `(rows, K)`."""
        return logits.softmax(-1)

    def draw(self, soft: Tensor, uniform: Tensor) -> Tensor:
        """`(rows, 1)` int64, a category drawn from `soft` by its inverse cumulative sum at `uniform` `(rows, 1)`.

        A category of probability 0 is never drawn.
        """
        cumulative = soft.cumsum(-1)
        total = cumulative[:, -1:]
        below_total = torch.nextafter(total, torch.zeros_like(total))
        found = torch.searchsorted(cumulative, torch.minimum(uniform * total, below_total), right=True)
        return found if soft.device.type == "cpu" else _possible(found, soft)

    def category(self, logits: Tensor, noise: Tensor | None, soft: Tensor, uniform: Tensor) -> Tensor:
        """`(rows, 1)` int64, the category of a hard sample, `soft` being `self.soft(logits, noise)`."""
        return self.draw(soft, uniform)

    def value(self, soft: Tensor, drawn: Tensor) -> Tensor | None:
        """The hard sample `(rows, K)`; None for the one-hot of `drawn`, which is what `one_hot` has to say."""
        return None

    def vjp(self, logits: Tensor, noise: Tensor | None, drawn: Tensor | None, grad: Tensor) -> Tensor:
        """The estimator's gradient with respect to the logits, `grad` `(rows, K)` being that of the sample.

        `drawn` is None for a soft sample.
        """
        return softmax_vjp(logits.softmax(-1), grad)


@dataclass(frozen=True)
class ScoreFunction(Estimator):
    """An estimator for rewards without gradient: hard draws that carry none, and `gradient` to make it from rewards."""

    needs = "values"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.hard:
            raise ValueError(f"`hard` must be True for {type(self).__name__}, which weighs draws by their rewards.")

    def __call__(self, logits: Tensor, generator: Generators | None = None) -> Tensor:
        return Pathwise()(logits.detach(), generator)

    @abstractmethod
    def gradient(self, logits: Tensor, rewards: Tensor, samples: Tensor) -> Tensor:
        """Gradient of the expected reward `(..., K)` from `samples` `(n, ..., K)` and their `rewards` `(n, ...)`."""


def _possible(found: Tensor, soft: Tensor) -> Tensor:
    """`found` `(rows, 1)`, with the likeliest category where one of probability 0 was found.

    An accelerator adds up in a tree: the sum at a category of probability 0 may be rounded otherwise than the one
    before it, so that there is something between the two. Of 4,096 categories, half of them of probability 0, one of
    these is drawn about twice in a million times.
    """
    nothing = soft.gather(-1, found) == 0
    if not torch.compiler.is_compiling() and not bool(nothing.any()):
        return found
    return torch.where(nothing, soft.argmax(-1, keepdim=True), found)


def softmax_vjp(probs: Tensor, grad: Tensor, out: Tensor | None = None) -> Tensor:
    """`probs * (grad - <probs, grad>)`: the vector-Jacobian product of a softmax; all `(rows, K)`."""
    out = torch.empty_like(probs) if out is None else out
    torch.ops.aten._softmax_backward_data.out(grad, probs, -1, probs.dtype, grad_input=out)  # one pass over the memory
    return out


def reinmax_vjp(probs: Tensor, drawn: Tensor, grad: Tensor) -> Tensor:
    """`1/2 [diag(p) - p p^T + (d - p)(d - p)^T] grad`, d the one-hot of `drawn` `(rows, 1)`; the others `(rows, K)`."""
    mean = (probs * grad).sum(-1, keepdim=True)
    surprise = grad.gather(-1, drawn) - mean  # <d - p, grad>
    result = probs * (grad - mean - surprise)
    return result.scatter_add_(-1, drawn, surprise) / 2
