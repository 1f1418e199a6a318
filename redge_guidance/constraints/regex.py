"""Texts that match a regular expression."""

import re
from collections.abc import Sequence

from redge_guidance.checks import whole_number
from redge_guidance.constraints.constraint import Constraint
from redge_guidance.constraints.expression import machine_of
from redge_guidance.constraints.machine import MOST_STATES, Machine, TooManyStatesError


class RegexConstraint(Constraint):
    """Texts that match a regular expression as a whole: `re.fullmatch(pattern, text, flags)`.

    Everything of Python's expressions that is regular is taken, with Python's own meaning; lookarounds and
    backreferences are not.

    Args:
        pattern: or what `re.compile` makes of it.
        flags: as `re` has them.
        answer_only: leave the prompt in front out of what is judged; None: in a chat it is, elsewhere it is not.
        most_states: an automaton of more states is an error.

    Raises:
        ValueError: an invalid expression, with the position of what is wrong; one that is not regular, or too large.

    >>> RegexConstraint(r"\\d{4}-\\d{2}-\\d{2}").accepts(["2026-11-27", "tomorrow"])
    [True, False]
    """

    def __init__(
        self,
        pattern: str | re.Pattern[str],
        flags: int = 0,
        *,
        answer_only: bool | None = None,
        most_states: int = MOST_STATES,
    ):
        self.pattern, self.flags = pattern, flags
        self.answer_only = answer_only
        self.most_states = whole_number("most_states", most_states, 1)
        _ = self.machine  # which says what is wrong with the pattern

    def build(self) -> Machine:
        return machine_of(self.pattern, self.flags, self.most_states)

    def _too_large(self, error: TooManyStatesError) -> ValueError:
        return ValueError(str(error)) if error.explains else super()._too_large(error)

    def accepts(self, texts: Sequence[str]) -> list[bool]:
        return [re.fullmatch(self.pattern, text, self.flags) is not None for text in texts]
