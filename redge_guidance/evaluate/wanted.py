"""What is asked for, and who judges whether it was given."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Goal:
    """A reward that is optimised, and a judge that is not.

    Attributes:
        reward: as for `guide`.
        gold: of finished samples, what each is worth to the judge, in [0, 1]: mostly whether it is what was asked for.
        prompts: taken in turn.
    """

    reward: Any
    gold: Callable[[Sequence[Any]], list[float]]
    prompts: Sequence[Any] = ("",)


@dataclass(frozen=True)
class Task:
    """Samples that are asked for.

    Attributes:
        name: for tables.
        judged: what the gold judge says, for people.
        pipe: a pipeline.
        goals: over which the samples are spread evenly.
        temperature: of particles, units of reward in a nat, where a method names none.
        settings: of the pipeline's call.
        prose: whether texts are sentences, whose grammar is judged.
        other: a pipeline whose bound on the likelihood of texts is taken beside that of `pipe`; None: there is none.
    """

    name: str
    judged: str
    pipe: Any
    goals: Sequence[Goal]
    temperature: float = 1.0
    settings: dict[str, Any] = field(default_factory=dict)
    other: Any = None
    prose: bool = True
