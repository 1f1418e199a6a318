"""What is asked for, and who judges whether it was given."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from redge_guidance.accepting import as_reward
from redge_guidance.constraints.constraint import parted
from redge_guidance.particles.search import check_judges


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

    def __post_init__(self) -> None:
        if isinstance(self.prompts, str) or not len(self.prompts):
            raise ValueError(f"`prompts` must be a list of prompts, at least one, got {self.prompts!r:.80}.")
        rewarding, constraint = parted(self.reward)
        if constraint is None and rewarding is not None:
            object.__setattr__(self, "reward", as_reward(rewarding))
        if not callable(self.gold):
            raise ValueError(f"`gold` must be a function of finished samples, got {self.gold!r:.80}.")


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
        made_from: plain values that say what the task is, which a run that goes on must have in common with its output.
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
    made_from: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.goals:
            raise ValueError(f"`goals` of {self.name} must be at least one, got none.")
        for goal in self.goals:
            check_judges(self.pipe, rewarded(goal))


def rewarded(goal: Goal) -> Any:
    """The reward of a goal without a constraint beside it."""
    return parted(goal.reward)[0]
