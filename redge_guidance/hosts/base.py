"""What guidance asks of a pipeline, and the adapter that answers."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from redge_guidance.samples.images import ImageDecoder


@dataclass(frozen=True, eq=False)
class DenoisingStep:
    """What guidance needs to know of one call of `scheduler.step`.

    Attributes:
        logits: `(batch, block, vocabulary)`, the model's logits at the last `block` positions, as the host has them;
            those at the free positions are read, and nothing is written to them.
        ids: `(batch, length)` int64, the whole context, fixed and free.
        free: `(batch, length)` bool, the positions whose tokens are still to be drawn.
        attention_mask: `(batch, length)` bool, False on padding.
        temperature: what the host divides the logits by before it samples; 1 for greedy decoding.
        progress: share of the denoising steps done before this one, in [0, 1).
        tokenizer: the generator's; None where the host has none.
        given: `(batch, length)` bool, tokens of the prompt, among which an end-of-text token ends nothing; None: none.
        reserved: token ids that guidance forbids at the free positions.
        images: where tokens are those of images, what makes them pixels for the reward; None: the reward sees
            `RelaxedTokens`.
    """

    logits: Tensor
    ids: Tensor
    free: Tensor
    attention_mask: Tensor
    temperature: float
    progress: float
    tokenizer: Any
    given: Tensor | None = None
    reserved: list[int] = field(default_factory=list)
    images: ImageDecoder | None = None


class Host(ABC):
    """Adapter between one kind of pipeline and guidance; an instance serves one handle.

    Subclasses say which pipelines they are for and read a `DenoisingStep` out of the arguments of a scheduler's method.
    What a pipeline does not pass to its scheduler is read off its model by hooks, registered in `__init__` and removed
    in `close`.

    Attributes:
        description: what is guided, for `supports` and for errors.
        seams: names of the scheduler's methods that take `model_output` and are guided.
    """

    description: ClassVar[str]
    seams: ClassVar[tuple[str, ...]] = ("step",)

    def __init__(self, pipe: Any):
        self.pipe = pipe

    @classmethod
    @abstractmethod
    def matches(cls, pipe: Any) -> bool:
        """Whether this adapter is for `pipe`."""

    @abstractmethod
    def read(self, seam: str, arguments: dict[str, Any]) -> DenoisingStep:
        """The step that is about to be taken; `arguments` are those of the scheduler's method `seam`, by name."""

    def write(self, arguments: dict[str, Any], step: DenoisingStep, logits: Tensor) -> None:
        """Put guided logits `(free positions, vocabulary)` into the arguments; the host's own tensors stay."""
        output = arguments["model_output"].clone()
        output[step.free[:, -output.shape[1] :]] = logits.to(output.dtype)
        arguments["model_output"] = output

    def begin(self) -> None:  # noqa: B027 - most hosts remember nothing
        """A new generation begins: the pipeline has called `scheduler.set_timesteps`."""

    def close(self) -> None:  # noqa: B027
        """Guidance ends: leave nothing behind in the pipeline."""


def is_a(thing: Any, *names: str) -> bool:
    """Whether the class of `thing`, or one that it derives from, has one of these names; nothing is imported."""
    return any(kind.__name__ in names for kind in type(thing).__mro__)


def in_block(block: Tensor, length: int) -> Tensor:
    """`(batch, block length)` bool at the end of `(batch, length)`, False before."""
    return torch.nn.functional.pad(block, (length - block.shape[1], 0))
