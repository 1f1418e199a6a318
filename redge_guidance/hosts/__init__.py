"""Adapters: where a pipeline keeps its logits. One small module a host; the rest of the package knows none by name."""

from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from redge_guidance.hosts import masked_text


@dataclass(frozen=True, eq=False)
class DenoisingStep:
    """What guidance needs to know of one call of `scheduler.step`.

    Attributes:
        logits: `(free positions, vocabulary)`, the model's logits at the free positions in row-major order.
        ids: `(batch, length)` int64, the whole context, fixed and free.
        free: `(batch, length)` bool, the positions whose tokens are still to be drawn.
        attention_mask: `(batch, length)` bool, False on padding before the text.
        temperature: what the host divides the logits by before it samples; 1 for greedy decoding.
        progress: share of the denoising steps done before this one, in [0, 1).
        tokenizer: the generator's.
    """

    logits: Tensor
    ids: Tensor
    free: Tensor
    attention_mask: Tensor
    temperature: float
    progress: float
    tokenizer: Any


class Host(Protocol):
    """An adapter: a module or object with these four names."""

    DESCRIPTION: str

    def matches(self, pipe: Any) -> bool:
        """Whether this adapter is for `pipe`."""

    def read(self, pipe: Any, arguments: dict[str, Any]) -> dict[str, Any]:
        """The fields of a `DenoisingStep` out of the arguments of `pipe.scheduler.step`, by name."""

    def write(self, arguments: dict[str, Any], logits: Tensor) -> None:
        """Put guided `logits` of the shape that `read` gave into the arguments, without changing the host's tensors."""


HOSTS: list[Any] = [masked_text]


def find_host(pipe: Any) -> Any:
    """The adapter for `pipe`.

    Raises:
        ValueError: no adapter matches.
    """
    for host in HOSTS:
        if host.matches(pipe):
            return host
    scheduler = type(getattr(pipe, "scheduler", None)).__name__
    raise ValueError(
        f"`pipe` must be a pipeline with a discrete scheduler that guidance knows, got {type(pipe).__name__} with "
        f"scheduler {scheduler}; supported: {'; '.join(host.DESCRIPTION for host in HOSTS)}."
    )
