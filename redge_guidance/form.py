"""Texts of a form inside guidance: what a constraint, and rewards that are automata, make of a denoising step.

The model's prediction, or the q that other rewards have made of it, is exchanged for `q(x) exp(r(x)) [x accepted] / Z`,
r being what the automata are worth: exactly, by messages over the canvas.
"""

import warnings
from collections.abc import Sequence
from typing import NamedTuple

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

_MOST_STATES = 2_000  # of automata that are followed together; others are followed one after the other


class Part(NamedTuple):
    """A reward that is an automaton, in a form: its weight, and the name of its term."""

    weight: float
    valued: Valued
    term: str


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
        parts: the rewards.
        answer_only: what they judge; None: in a chat the answer, elsewhere the whole text.
        further: forms of rewards that are too large together with these, or judge something else: q is given these
            first, one after the other, position by position.
    """

    def __init__(
        self,
        constraint: Constraint | None,
        parts: Sequence[Part] = (),
        answer_only: bool | None = None,
        further: Sequence["Form"] = (),
    ):
        self.constraint, self._parts, self._answer_only = constraint, list(parts), answer_only
        self.further = list(further)
        self._key: tuple[object, ...] | None = None
        self._tokenizer: object = None  # itself, not its id, which another may have once this one is gone
        self._conditioning: Conditioning | None = None
        self._hopeless: set[str] = set()
        each = [(part, k) for part in self._parts for k in range(len(part.valued.weights))]
        self.weights = np.array([part.weight * part.valued.weights[k] for part, k in each], dtype=np.float64)
        self.linear = np.array([part.valued.linear for part, _ in each], dtype=bool)
        self.names = [part.valued.names[k] for part, k in each]
        self.terms = [part.term for part, _ in each]
        self.unweighted = np.array([part.valued.weights[k] for part, k in each], dtype=np.float64)

    @property
    def is_rewarding(self) -> bool:
        """Whether there are rewards among it."""
        return bool(self._parts or self.further)

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
            whole = [*parts, *(_Worth(part.valued.machine) for part in self._parts)]
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


def automata_of(term: Term) -> list[Valued]:
    """What of a term is an automaton, and followed exactly; none: it is left to gradients, or counts nothing."""
    return term.reward.valued() if isinstance(term.reward, Reward) and term.weight != 0 else []


def formed(reward: AnyReward | None, constraint: Constraint | None) -> tuple[Form | None, AnyReward | None]:
    """What automata can do of a reward and a constraint, and what is left for gradients; None where there is none."""
    judges = None if constraint is None else constraint.answer_only
    product = None
    if constraint is not None and not all(part.over_tokens for part in parts_of(constraint)):
        product = constraint.machine
    parts: list[Part] = []
    further: list[Form] = []
    left: list[Term] = []
    for term in [] if reward is None else terms_of(reward):
        found = automata_of(term)
        mine = getattr(term.reward, "answer_only", None)
        if found and not parts and constraint is None:
            judges = mine
        for valued in found:
            part, together = Part(term.weight, valued, term.name), None
            if mine == judges:
                together = valued.machine if product is None else _product(product, valued.machine)
            if together is None:
                further.append(Form(None, [part], mine))
            else:
                product = together
                parts.append(part)
        if not found:
            left.append(term)
    if constraint is None and not parts and not further:
        return None, reward
    form = Form(constraint, parts, judges, further)
    whole = not parts and not further
    return form, reward if whole else RewardSum(left) if left else None


def _product(one: Machine, other: Machine) -> Machine | None:
    """Their intersection, if it is small enough to be followed at every step."""
    try:
        return one.intersection(other, max(_MOST_STATES, len(one.table)))
    except TooManyStatesError:
        return None


def _together(parts: Sequence[Constraint]) -> Intersection:
    """Their intersection, whatever each judges."""
    found = Intersection(parts[:1])
    found.parts = list(parts)
    found.most_states = max(one.most_states for one in parts)
    return found
