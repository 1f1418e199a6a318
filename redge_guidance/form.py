"""Texts of a form inside guidance: what a constraint, and rewards that are automata, make of a denoising step.

The model's prediction, or the q that other rewards have made of it, is exchanged for `q(x) exp(r(x)) [x accepted] / Z`,
r being what the automata are worth: exactly, by messages over the canvas.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from redge_guidance.constraints.arithmetic import Array
from redge_guidance.constraints.canvas import Conditioning, Reading
from redge_guidance.constraints.constraint import Constraint, Intersection, parts_of
from redge_guidance.constraints.feasibility import explained, without_impossible_hold
from redge_guidance.constraints.machine import Machine, TooManyStatesError
from redge_guidance.constraints.messages import Messages, Transitions
from redge_guidance.constraints.valued import Valued
from redge_guidance.draws import Noise
from redge_guidance.goals import terms_of
from redge_guidance.reward import AnyReward, Reward, RewardSum, Term
from redge_guidance.step import DenoisingStep
from redge_guidance.text import end_token_ids, is_in, special_token_ids

_WORTH = 3.0  # units of other rewards that one of these is pursued as: what is wanted is that a word is there
_NEVER = 700.0  # nats, a probability of next to nothing
_SURE = 40.0  # nats in favour, beyond which more makes no difference
_MOST_STATES = 20_000  # of rewards together, beyond which one is pursued by its gradient


class _Worth(Constraint):
    """All texts, each worth something."""

    def __init__(self, machine: Machine):
        self._machine = machine

    def build(self) -> Machine:
        return self._machine


@dataclass(frozen=True)
class Figures:
    """What a form made of a step, by sequence.

    Attributes:
        log_accept: `(batch,)` nats, log-probability of acceptance under the q that came in.
        reward: `(batch,)`, what the automata expect to be worth afterwards, in units of the reward.
        kl: `(batch,)` nats, KL between what went out and what came in, over whole texts.
        notes: log P under the q that came in, by term, mean over the batch.
    """

    log_accept: Array
    reward: Array
    kl: Array
    notes: dict[str, float]


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
        key = (id(tokenizer), vocabulary, tuple(ends), device)
        if self._conditioning is None or key != self._key:
            parts = [] if self.constraint is None else parts_of(self.constraint)
            whole = [*parts, *(_Worth(valued.machine) for _, valued in self._valued)]
            together = whole[0] if len(whole) == 1 else _together(whole)
            automaton = together.compiled(tokenizer, vocabulary, ends)
            self._conditioning, self._key = Conditioning(Transitions(automaton), device), key
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

    def at(self, step: DenoisingStep) -> "FormOfStep":
        conditioning, reading = self.conditioning(step), self.reading(step)
        return FormOfStep(self, conditioning, without_impossible_hold(conditioning, reading), step)

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


class FormOfStep:
    """A form at work on one denoising step."""

    def __init__(self, form: Form, conditioning: Conditioning, reading: Reading, step: DenoisingStep):
        self._form, self._conditioning, self._reading, self._step = form, conditioning, reading, step
        self.is_hard = form.is_hard

    def condition(
        self, logits: Tensor, noise: Noise, scale: float, kl_budget: float | None = None
    ) -> tuple[Tensor, Figures]:
        """Logits `(free positions, vocabulary)` given the form, from logits like them.

        Where a host may commit several tokens at once, tokens are left that lead along the states of one joint draw:
        whatever is drawn of these, wherever, can be completed. Of one token a step the law is that of the posterior.

        Args:
            scale: what one unit of the rewards is worth; 0: the constraint alone counts.
            kl_budget: nats per free token that the rewards, not the constraint, may cost; None: no limit.
        """
        log_q = logits.log_softmax(-1)
        masses = self._conditioning.classes.masses(log_q)
        messages = plain = self._messages(masses)
        self._check(plain)
        worth, notes = self._worth(plain, scale)
        if worth is not None:
            if kl_budget is not None:
                worth = self._within(kl_budget, masses, worth, plain)
            messages = self._messages(masses, worth)
        ends = messages.end_distribution()
        cost = -messages.log_z if worth is None else (worth * ends).sum(0) - messages.log_z
        values = self._conditioning.automaton.values.T @ ends
        figures = Figures(plain.log_z, self._form.weights @ values, cost, notes)
        if self._step.greedy:
            best = self._messages(self._conditioning.classes.highest(log_q), worth, best=True)
            states = best.draw(np.zeros((1, self._reading.ids.shape[1], len(self._reading))))
        else:
            states = messages.draw(self._uniform(noise, 1))
        guided = self._conditioning.given_states(self._reading, states[0], log_q)
        return (_decided(guided, noise, self._step.free.sum(-1).tolist()) if self._step.decisive else guided), figures

    def marginals(self, logits: Tensor, scale: float) -> Tensor:
        """Logits of the posterior of each free position, like `logits`."""
        masses = self._conditioning.classes.masses(logits.log_softmax(-1))
        messages = self._messages(masses)
        self._check(messages)
        self._now, _ = self._worth(messages, scale)
        if self._now is not None:
            messages = self._messages(masses, self._now)
        return self._conditioning.posterior(self._reading, messages, logits)

    def draws_along(self, log_q: Tensor, support: Tensor | None, count: int, noise: Noise) -> Tensor:
        """What `count` samples are to be drawn from, `(count, rows, S)`: log_q along the states of joint draws.

        Sequences whose support holds no text of the form are drawn from log_q as it is. After `marginals`, by which is
        known what the automata are worth in this step.
        """
        classes = self._conditioning.classes
        masses = classes.masses(log_q) if support is None else classes.masses_of_some(log_q, support)
        messages = self._messages(masses, self._now)
        row = self._reading.free.nonzero()[:, 0]
        possible = torch.from_numpy(np.isfinite(messages.log_z)).to(log_q.device)[row, None]
        drawn = []
        for states in messages.draw(self._uniform(noise, count)):
            along = self._conditioning.given_states(self._reading, states, log_q, support)
            usable = possible & (along > -torch.inf).any(-1, keepdim=True)
            drawn.append(torch.where(usable, along, log_q).log_softmax(-1))
        return torch.stack(drawn)

    def _messages(self, masses: Tensor, worth: Array | None = None, best: bool = False) -> Messages:
        return self._conditioning.messages(self._reading, masses, worth, best)

    def _worth(self, plain: Messages, scale: float) -> tuple[Array | None, dict[str, float]]:
        """What it is worth to end in a state, `(states, batch)` nats, and log P of each term; None: nothing."""
        form, values = self._form, self._conditioning.automaton.values
        if scale == 0 or not len(form.weights):
            return None, {}
        possible, ends = plain.possible_ends(), plain.end_distribution()
        worth, notes = np.zeros(ends.shape), {}
        lost = np.zeros((len(form.weights), ends.shape[1]), dtype=bool)
        for k, weight in enumerate(form.weights):
            if form.linear[k]:
                worth += scale * weight * values[:, k, None]
                continue
            signed = np.sign(weight) * values[:, k]
            best = np.where(possible, signed[:, None], -np.inf).max(axis=0)
            lost[k] = possible.any(axis=0) & (best < signed.max())
            reached = signed[:, None] == best
            with np.errstate(divide="ignore"):
                log_p = np.log(np.minimum((ends * reached).sum(axis=0), 1.0))
            notes[f"log P({form.names[k]})"] = float(np.maximum(log_p, -_NEVER).mean())
            push = _WORTH * scale * abs(weight) * np.exp(np.minimum(-log_p, _NEVER))
            worth += reached * np.minimum(push, _SURE - np.maximum(log_p, -_NEVER))
        form.tell(lost)
        return worth, notes

    def _within(self, kl_budget: float, masses: Tensor, worth: Array, plain: Messages) -> Array:
        """What the ends are worth, for each sequence by as much less as it takes to keep within the budget."""
        budget = kl_budget * self._step.free.sum(-1).cpu().numpy()
        low, high = np.zeros(worth.shape[1]), np.ones(worth.shape[1])
        for k in range(12):
            share = high if k == 0 else (low + high) / 2
            messages = self._messages(masses, share * worth)
            cost = (share * worth * messages.end_distribution()).sum(0) - (messages.log_z - plain.log_z)
            low, high = np.where(cost <= budget, share, low), np.where(cost <= budget, high, share)
        return low * worth

    def _uniform(self, noise: Noise, count: int) -> Array:
        """`(count, positions, batch)` in [0, 1); of a list of generators each draws for its own text alone."""
        batch, positions = self._reading.ids.shape
        if isinstance(noise, torch.Generator):
            return torch.rand(count, positions, batch, generator=noise, device=noise.device).double().cpu().numpy()
        result = np.zeros((count, positions, batch))
        read = (~self._reading.skipped).cpu().numpy()
        for k, generator in enumerate(noise):
            numbers = torch.rand(int(read[k].sum()), count, generator=generator, device=generator.device)
            result[:, read[k], k] = numbers.double().cpu().numpy().T
        return result

    def _check(self, messages: Messages) -> None:
        """A ValueError where a text cannot be completed."""
        impossible = np.flatnonzero(~np.isfinite(messages.log_z) & self._step.free.any(-1).cpu().numpy())
        if len(impossible):
            raise ValueError(explained(self._conditioning, self._reading, int(impossible[0]), self._step.tokenizer))


def _decided(logits: Tensor, noise: Noise, counts: Sequence[int]) -> Tensor:
    """The same with one token of each position, drawn from it; `counts` says how many positions each sequence has."""
    parts = [logits] if isinstance(noise, torch.Generator) else logits.split(list(counts))
    sources = [noise] if isinstance(noise, torch.Generator) else noise
    drawn = [
        torch.multinomial(part.softmax(-1), 1, generator=source)
        for part, source in zip(parts, sources, strict=True)
        if len(part)
    ]
    return torch.full_like(logits, -torch.inf).scatter_(1, torch.cat(drawn), 0.0)


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
