"""When guidance of a sequence ends though its sampling goes on: `stop_when` of `guide`, sequence by sequence."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from redge_guidance.checks import real_number, whole_number
from redge_guidance.trace import SequenceFigures

StopRule = Callable[[list[SequenceFigures]], bool]


@dataclass(frozen=True)
class Settled:
    """Whether the last `patience + 1` rewards of a sequence lie within `tolerance`: highest - lowest <= tolerance.

    The rewards are those of the steps in which it was asked, means over draws and updates, which scatter: take more
    `num_draws`, or a wider `tolerance`, where draws differ much.

    Attributes:
        tolerance: >= 0, in units of the reward.
        patience: such steps without a change, at least 1.

    Raises:
        ValueError: a value out of range.

    >>> rewards = [0.1, 0.6, 0.902, 0.9, 0.905]
    >>> figures = [SequenceFigures(reward, 0.0, 0.0, 0.0, 1) for reward in rewards]
    >>> Settled(tolerance=0.01, patience=2)(figures), Settled(tolerance=0.01, patience=3)(figures)
    (True, False)
    """

    tolerance: float = 0.01
    patience: int = 3

    def __post_init__(self) -> None:
        tolerance = real_number("tolerance", self.tolerance)
        if not 0 <= tolerance < float("inf"):
            raise ValueError(f"`tolerance` must be a finite number >= 0, got {self.tolerance!r}.")
        object.__setattr__(self, "tolerance", tolerance)
        object.__setattr__(self, "patience", whole_number("patience", self.patience, 1))

    def __call__(self, figures: list[SequenceFigures]) -> bool:
        last = [one.reward for one in figures[-self.patience - 1 :]]
        return len(last) > self.patience and max(last) - min(last) <= self.tolerance


class Asking:
    """`rule`, checked: from the figures of one sequence to whether its guidance ends. None: it never does.

    Raises:
        ValueError: a rule that is not callable. When called: one that returns neither True nor False.
    """

    def __init__(self, rule: StopRule | None = None):
        if rule is not None and (not callable(rule) or isinstance(rule, type)):
            hint = f"; make one, `{rule.__name__}(...)`" if isinstance(rule, type) else ""
            raise ValueError(
                f"`stop_when` must be a function of the figures of one sequence, such as `Settled()`, or None, got "
                f"{rule!r}{hint}."
            )
        self.rule = rule

    def __call__(self, figures: list[SequenceFigures]) -> bool:
        if self.rule is None:
            return False
        answer: Any = self.rule(list(figures))
        if answer is None or (isinstance(answer, Tensor) and answer.numel() != 1):
            raise ValueError(
                f"`stop_when` must return True or False for the figures of one sequence, got {answer!r}; end it with "
                "`return`."
            )
        return bool(answer)
