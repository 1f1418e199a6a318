"""What texts must be like: the base of constraints, and several of them together."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from redge_guidance.constraints.canvas import Conditioning, Reading
from redge_guidance.constraints.compiling import compile_tokens
from redge_guidance.constraints.machine import MOST_STATES, Machine, TooManyStatesError
from redge_guidance.constraints.messages import Transitions
from redge_guidance.constraints.token_automaton import TokenAutomaton, token_intersection
from redge_guidance.recipe import Noted
from redge_guidance.text import end_token_ids


class Constraint(Noted):
    """Base of constraints: a set of texts that an automaton recognises. Outside it nothing is drawn.

        guide(pipe, constraint)
        guide(pipe, reward & constraint)
        guide(pipe, RegexConstraint(r"[A-Z].*") & LengthConstraint(5, 8))

    One has to write `build` and `accepts`.

    Attributes:
        answer_only: whether the prompt in front is left out of what is judged; None: in a chat it is, elsewhere not.
        most_states: an automaton of more states is an error.
    """

    answer_only: bool | None = None
    most_states: int = MOST_STATES

    def build(self) -> Machine:
        """The automaton of the accepted texts.

        Raises:
            TooManyStatesError: it would have more than `most_states`.
        """
        raise NotImplementedError

    def accepts(self, texts: Sequence[str]) -> list[bool] | None:
        """Which finished texts are accepted, judged without the automaton; None where texts do not tell."""
        raise NotImplementedError

    @property
    def over_tokens(self) -> bool:
        """Whether it is about tokens, so that only an automaton over tokens, `compiled`, can tell."""
        return False

    @cached_property
    def machine(self) -> Machine:
        """`build()`, once.

        Raises:
            ValueError: too many states, or no text at all that is accepted.
        """
        try:
            found = self.build()
        except TooManyStatesError as error:
            raise self._too_large(error) from error
        if found.is_empty:
            raise ValueError(f"`{self.name}` accepts no text at all; loosen it.")
        return found

    def compiled(self, tokenizer: Any, vocabulary: int, ends: Sequence[int]) -> TokenAutomaton:
        """The automaton over the tokens of a tokenizer.

        Args:
            vocabulary: number of logits.
            ends: token ids that end a text.

        Raises:
            ValueError: the tokenizer can write none of the texts, or too many states.
        """
        try:
            return compile_tokens(self.machine, tokenizer, vocabulary, ends, self.most_states)
        except TooManyStatesError as error:
            raise self._too_large(error) from error

    def log_probability(
        self, log_probs: Tensor, tokenizer: Any, attention_mask: Tensor | None = None, ends: Sequence[int] | None = None
    ) -> Tensor:
        """`log P_q(accept)` of texts whose tokens are drawn independently, differentiable: `(batch,)` float64, nats.

        Its gradient by `log q_t(v)` is the posterior of token v at position t, given acceptance.

        Args:
            log_probs: `(batch, length, vocabulary)`, log q, normalised.
            attention_mask: `(batch, length)` bool, False at positions that are no part of the text; None: all are.
            ends: token ids that end a text; None: the tokenizer's.
        """
        ends = end_token_ids(tokenizer) if ends is None else ends
        automaton = self.compiled(tokenizer, log_probs.shape[-1], ends)
        text = torch.ones(log_probs.shape[:2], dtype=torch.bool) if attention_mask is None else attention_mask.bool()
        none = torch.zeros_like(text)
        reading = Reading(torch.zeros(text.shape, dtype=torch.long), text, ~text, none, none)
        return Conditioning(Transitions(automaton), log_probs.device).log_accept(reading, log_probs[text])

    def _too_large(self, error: TooManyStatesError) -> ValueError:
        return ValueError(
            f"`{self.name}` needs an automaton of more than {error.most} states; make it simpler, or raise "
            "`most_states`."
        )

    @property
    def name(self) -> str:
        return type(self).__name__

    def __and__(self, other: Any) -> Any:
        if isinstance(other, Constraint):
            return Intersection([*parts_of(self), *parts_of(other)])
        return Constrained(other, self) if callable(other) or hasattr(other, "score") else NotImplemented

    def __rand__(self, other: Any) -> Any:
        return self & other


class Intersection(Constraint):
    """Texts that all of some constraints accept, as `a & b & c` makes it.

    Args:
        parts: at least one; all judge the whole text, or all the answer.

    Raises:
        ValueError: none, or parts that judge different things. When first used: nothing that all accept.
    """

    def __init__(self, parts: Sequence[Constraint]):
        self.parts = list(parts)
        wrong = [one for one in self.parts if not isinstance(one, Constraint)]
        if wrong or not self.parts:
            found = type(wrong[0]).__name__ if wrong else "none"
            raise ValueError(f"`parts` must be constraints, got {found}.")
        kinds = {one.answer_only for one in self.parts}
        if len(kinds) > 1:
            raise ValueError(
                f"`answer_only` must be the same for all constraints of an intersection, got {sorted(kinds, key=str)}; "
                "say it for each of them."
            )
        self.answer_only = self.parts[0].answer_only
        self.most_states = max(one.most_states for one in self.parts)

    def build(self) -> Machine:
        machines = [one.machine for one in self.parts if not one.over_tokens]
        found = machines[0]
        for one in machines[1:]:
            found = found.intersection(one, self.most_states)
        return found

    def compiled(self, tokenizer: Any, vocabulary: int, ends: Sequence[int]) -> TokenAutomaton:
        over_tokens = [one for one in self.parts if one.over_tokens]
        found = None
        if len(over_tokens) < len(self.parts):
            found = super().compiled(tokenizer, vocabulary, ends)
        for one in over_tokens:
            other = one.compiled(tokenizer, vocabulary, ends)
            found = other if found is None else token_intersection(found, other, self.most_states)
        assert found is not None
        return found

    def accepts(self, texts: Sequence[str]) -> list[bool] | None:
        told = [found for one in self.parts if (found := one.accepts(texts)) is not None]
        return [all(answers) for answers in zip(*told, strict=True)] if told else None

    @property
    def name(self) -> str:
        return " & ".join(one.name for one in self.parts)


@dataclass(frozen=True, eq=False)
class Constrained:
    """`reward & constraint`: texts of a form, and of those the ones that a reward likes.

    Attributes:
        reward: any reward that `guide` takes.
        constraint: what all texts are to be.
    """

    reward: Callable[..., Any]
    constraint: Constraint

    def __and__(self, other: Any) -> "Constrained":
        if not isinstance(other, Constraint):
            raise TypeError(f"`&` joins constraints, got {type(other).__name__}; add rewards up by `+` first.")
        return Constrained(self.reward, self.constraint & other)

    def __rand__(self, other: Any) -> "Constrained":
        return self.__and__(other)


def parted(reward: Any) -> tuple[Any, Constraint | None]:
    """The reward and the constraint of what `guide` is given, None where there is none."""
    if isinstance(reward, Constraint):
        return None, reward
    return (reward.reward, reward.constraint) if isinstance(reward, Constrained) else (reward, None)


def parts_of(constraint: Constraint) -> list[Constraint]:
    """Those of an intersection, or the constraint itself."""
    return constraint.parts if isinstance(constraint, Intersection) else [constraint]
