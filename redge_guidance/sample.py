"""What guidance shows to rewards."""

from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor

from redge_guidance.chats import Prompt


class Sample(Protocol):
    """What guidance shows to rewards: `RelaxedTokens` or `RelaxedImages`, which know how they are judged.

    Attributes:
        notes: figures for the trace, by name.
        prompts: what each sequence was asked for, or None.
        weights: the relaxed sample itself, through which all gradients go.
    """

    @property
    def notes(self) -> dict[str, Any]: ...

    @property
    def prompts(self) -> Sequence[Prompt] | None: ...

    @property
    def weights(self) -> Tensor: ...

    def __len__(self) -> int: ...

    def evaluate(self, reward: Any) -> Tensor:
        """The reward of these samples, `(batch,)`."""

    def finished(self, answer_only: bool | None = None) -> Any:
        """The same without relaxation, as `Reward.score` takes them: strings, or pixels.

        Of texts the answers without the prompt if `answer_only`, or, where that is None, if this is a chat.
        """
