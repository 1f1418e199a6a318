"""A regular expression as a reward."""

import re
from collections.abc import Sequence

import torch
from torch import Tensor

from redge_guidance.chats import Prompt
from redge_guidance.constraints.regex import RegexConstraint
from redge_guidance.constraints.valued import Valued
from redge_guidance.finished import to_judge
from redge_guidance.reward import Reward
from redge_guidance.samples.tokens import RelaxedTokens


class RegexReward(Reward):
    """`r(x) = 1 if re.fullmatch(pattern, x, flags) else 0`: a form that has a price, where `RegexConstraint` has none.

    Guidance follows it exactly, by the automaton of the expression: every token is as much likelier as the texts with
    it are likelier to match. The log-probability that a text matches is in the trace.

    Args:
        pattern, flags: as for `RegexConstraint`.
        answer_only: leave the prompt in front out of what is judged; None: in a chat it is, elsewhere it is not.

    Raises:
        ValueError: as `RegexConstraint`.
    """

    modality = "text"
    differentiable = False

    def __init__(self, pattern: str | re.Pattern[str], flags: int = 0, *, answer_only: bool | None = None):
        self.pattern, self.flags, self.answer_only = pattern, flags, answer_only
        self._constraint = RegexConstraint(pattern, flags, answer_only=answer_only)

    def __call__(self, sample: RelaxedTokens) -> Tensor:
        return self.score(sample.finished(self.answer_only)).to(sample.weights)

    def score(self, samples: list[str], prompts: Sequence[Prompt] | None = None, batch_size: int = 32) -> Tensor:
        samples, prompts, batch_size = to_judge(samples, prompts, batch_size)
        return torch.tensor(self._constraint.accepts(samples), dtype=torch.float)

    def reached(self, samples: list[str], prompts: Sequence[Prompt] | None = None) -> list[bool]:
        """Which texts match."""
        return self._constraint.accepts(to_judge(samples, prompts)[0])

    def valued(self) -> list[Valued]:
        shown = self.pattern if isinstance(self.pattern, str) else self.pattern.pattern
        machine = self._constraint.machine.as_value()
        return [Valued(machine, (1.0,), (f"the expression {shown!r:.60}",))]
