"""Texts of a form inside guidance: what a constraint, and rewards that are automata, make of a denoising step.

The model's prediction, or the q that other rewards have made of it, is exchanged for `q(x) exp(r(x)) [x accepted] / Z`,
r being what the automata are worth: exactly, by messages over the canvas.
"""

import warnings
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from redge_guidance.constraints.canvas import Conditioning, Reading
from redge_guidance.constraints.constraint import Constraint, Intersection, parts_of
from redge_guidance.constraints.feasibility import explained, impossible
from redge_guidance.constraints.machine import Machine, TooManyStatesError
from redge_guidance.constraints.messages import Transitions
from redge_guidance.constraints.valued import Valued
from redge_guidance.reward import AnyReward, Reward, RewardSum, Term
from redge_guidance.step import DenoisingStep
from redge_guidance.terms import terms_of
from redge_guidance.text import end_token_ids, is_in, special_token_ids

_MOST_STATES = 20_000  # of rewards together, beyond which one is pursued by its gradient


class _Worth(Constraint):
    """All texts, each worth something."""

    def __init__(self, machine: Machine):
        self._machine = machine

    def build(self) -> Machine:
        return self._machine

    @property
    def name(self) -> str:
        return "the rewards that are automata"


class Form:
    """A constraint and rewards that are automata, as one automaton.

    Args:
        constraint: None: any text.
        valued: the rewards, each with its weight.
        answer_only: what they judge; None: in a chat the answer, elsewhere the whole text.
    """

    def __init__(
        self,
        constraint: Constraint | None,
        valued: Sequence[tuple[float, Valued]] = (),
        answer_only: bool | None = None,
    ):
        self.constraint, self._valued, self._answer_only = constraint, list(valued), answer_only
        self._key: tuple[object, ...] | None = None
        self._tokenizer: object = None  # itself, not its id, which another may have once this one is gone
        self._conditioning: Conditioning | None = None
        self._hopeless: set[str] = set()
        self.weights = np.array([w * one for w, v in self._valued for one in v.weights], dtype=np.float64)
        self.linear = np.array([v.linear for _, v in self._valued for _ in v.weights], dtype=bool)
        self.names = [name for _, v in self._valued for name in v.names]

    @property
    def is_rewarding(self) -> bool:
        """Whether there are rewards among it."""
        return bool(self._valued)

    @property
    def is_hard(self) -> bool:
        return self.constraint is not None

    def conditioning(self, step: DenoisingStep) -> Conditioning:
        """The automaton over the tokens of a step; compiled when the first step with such tokens comes."""
        ends = tuple(end_token_ids(step.tokenizer) if step.ends is None else step.ends)
        vocabulary = step.logits.shape[-1]
        return self.compiled(step.tokenizer, vocabulary, ends, step.logits.device)

    def compiled(self, tokenizer: object, vocabulary: int, ends: Sequence[int], device: torch.device) -> Conditioning:
        if tokenizer is None:
            raise ValueError("`constraint` needs a tokenizer, got a pipeline of images, or one without; leave it out.")
        key = (vocabulary, tuple(ends), device)
        if self._conditioning is None or tokenizer is not self._tokenizer or key != self._key:
            parts = [] if self.constraint is None else parts_of(self.constraint)
            whole = [*parts, *(_Worth(valued.machine) for _, valued in self._valued)]
            together = whole[0] if len(whole) == 1 else _together(whole)
            automaton = together.compiled(tokenizer, vocabulary, ends)
            self._conditioning = Conditioning(Transitions(automaton), device)
            self._key, self._tokenizer = key, tokenizer
        return self._conditioning

    def reading(self, step: DenoisingStep) -> Reading:
        """The canvas of a step as the automaton reads it; what the host will append to it is unknown."""
        text, free = step.attention_mask, step.free
        later = torch.zeros_like(free) if step.later is None else step.later
        ends = end_token_ids(step.tokenizer) if step.ends is None else step.ends
        drawn_end = is_in(step.ids, ends)
        if step.given is not None:
            drawn_end = drawn_end & ~step.given
        silent = is_in(step.ids, special_token_ids(step.tokenizer)) & ~free & ~later & ~drawn_end
        skipped = silent | ~(text | later)
        if step.chat if self._answer_only is None else self._answer_only:
            lead = step.lead
            if lead is None and step.given is not None:
                lead = step.given.cumprod(-1).bool()
            skipped = skipped if lead is None else skipped | (lead & ~free)
        pad = (0, step.coming)
        held = torch.zeros_like(free) if step.held is None else step.held
        return Reading(
            ids=torch.nn.functional.pad(step.ids, pad),
            free=torch.nn.functional.pad(free, pad),
            skipped=torch.nn.functional.pad(skipped & ~free, pad),
            unknown=torch.nn.functional.pad(later & ~free & ~skipped, pad, value=True),
            held=torch.nn.functional.pad(held, pad),
        )

    def check(self, step: DenoisingStep) -> None:
        """A ValueError where a text of a step to come cannot be completed, whatever the model says."""
        if not step.logits.shape[-1]:  # a model that does not say how many tokens it has
            return
        conditioning, reading = self.conditioning(step), self.reading(step)
        for k in impossible(conditioning, reading):
            if bool(step.free[k].any()):
                raise ValueError(explained(conditioning, reading, k, step.tokenizer))

    def tell(self, lost: NDArray[np.bool_]) -> None:
        """Warn, once, of what no text of the canvas can have any more, or lack; `lost` is `(terms, batch)`."""
        for name, texts in zip(self.names, lost, strict=True):
            if texts.any() and name not in self._hopeless:
                self._hopeless.add(name)
                warnings.warn(
                    f"{name} cannot be reached by {int(texts.sum())} of {len(texts)} texts: the tokens that are fixed "
                    "leave no room for it, or rule it out; give it room, or leave it out.",
                    stacklevel=2,
                )


def formed(reward: AnyReward | None, constraint: Constraint | None) -> tuple[Form | None, AnyReward | None]:
    """What automata can do of a reward and a constraint, and what is left for gradients; None where there is none."""
    judges = None if constraint is None else constraint.answer_only
    taken: list[tuple[Term, Valued]] = []
    left: list[Term] = []
    product: Machine | None = None
    for term in [] if reward is None else terms_of(reward):
        valued = term.reward.valued() if isinstance(term.reward, Reward) and term.weight != 0 else None
        if valued is not None and not taken and constraint is None:
            judges = getattr(term.reward, "answer_only", None)
        if valued is None or getattr(term.reward, "answer_only", None) != judges:
            left.append(term)
            continue
        try:
            product = valued.machine if product is None else product.intersection(valued.machine, _MOST_STATES)
            taken.append((term, valued))
        except TooManyStatesError:
            left.append(term)
    if constraint is None and not taken:
        return None, reward
    form = Form(constraint, [(term.weight, valued) for term, valued in taken], judges)
    if not left:
        return form, None
    return form, (reward if not taken else RewardSum(left))


def _together(parts: Sequence[Constraint]) -> Intersection:
    """Their intersection, whatever each judges."""
    found = Intersection(parts[:1])
    found.parts = list(parts)
    found.most_states = max(one.most_states for one in parts)
    return found
