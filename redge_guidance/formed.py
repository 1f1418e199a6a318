"""A form at work on one denoising step."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from redge_guidance.constraints.arithmetic import Array
from redge_guidance.constraints.feasibility import explained, without_impossible_hold
from redge_guidance.constraints.messages import Messages
from redge_guidance.constraints.refinement import DEAD
from redge_guidance.constraints.settling import Committed, settled
from redge_guidance.draws import Noise
from redge_guidance.form import Form
from redge_guidance.step import DenoisingStep

_WORTH = 3.0  # units of other rewards that one of these is pursued as: what is wanted is that a word is there
_NEVER = 700.0  # nats, a probability of next to nothing
_SURE = 40.0  # nats in favour, beyond which more makes no difference


@dataclass(frozen=True)
class Figures:
    """What a form made of a step, by sequence.

    Attributes:
        log_accept: `(batch,)` nats, log-probability of acceptance under the q that came in.
        reward: `(batch,)`, what the automata expect to be worth afterwards, in units of the reward.
        kl: `(batch,)` nats, KL between what went out and what came in, over whole texts.
        entropy: `(batch,)` nats, summed over the free positions, of the classes of tokens that the automata tell apart,
            given the form.
        notes: log P under the q that came in, by term, mean over the batch.
    """

    log_accept: Array
    reward: Array
    kl: Array
    entropy: Array
    notes: dict[str, float]


class FormOfStep:
    """A form at work on one denoising step.

    Args:
        form: what is held to, and what is worth something.
        step: the step.
        weighed: whether `log_prob` will be asked for; the logits that come in are kept then.
    """

    def __init__(self, form: Form, step: DenoisingStep, weighed: bool = False):
        self._form, self._step = form, step
        self._conditioning = form.conditioning(step)
        self._reading = without_impossible_hold(self._conditioning, form.reading(step))
        self.is_hard = form.is_hard
        self.notes: dict[str, float] = {}
        self._weighed = weighed
        self._now: Array | None = None  # what it is worth to end in a state, in this step
        self._drawn_from: tuple[Messages, Tensor, Tensor] | None = None

    def condition(
        self, logits: Tensor, noise: Noise, scale: float | Array, kl_budget: float | None = None
    ) -> tuple[Tensor, Figures]:
        """Logits `(free positions, vocabulary)` given the form, from logits like them.

        Where a host may commit several tokens at once, tokens are left that lead along the states of one joint draw:
        whatever is drawn of these, wherever, can be completed. Of one token a step the law is that of the posterior.
        `logits` are overwritten, unless texts are weighed.

        Args:
            scale: what one unit of the rewards is worth, also `(batch,)`, to each; 0: the constraint alone counts.
            kl_budget: nats per free token that the rewards, not the constraint, may cost; None: no limit.
        """
        logits, notes = self._given_further(logits, scale)
        masses = self._conditioning.classes.log_probs(logits)
        messages = plain = self._messages(masses)
        self._check(plain, logits)
        worth, more = self._worth(plain, scale)
        notes |= more
        if worth is not None:
            if kl_budget is not None:
                worth = self._within(kl_budget, masses, worth, plain)
            messages = self._messages(masses, worth)
        ends = messages.end_distribution()
        cost = -messages.log_z if worth is None else (worth * ends).sum(0) - messages.log_z
        values = self._conditioning.automaton.values.T @ ends
        entropy = np.where(self._reading.free.cpu().numpy().T, messages.entropy(), 0.0).sum(axis=0)
        notes |= self._terms(values)
        figures = Figures(plain.log_z, self._form.weights @ values, cost, entropy, notes)
        if self._step.settles or self._weighed:
            self._drawn_from, self._noise, self._now = (messages, masses, logits), noise, worth
        if self._step.settles:
            return self._conditioning.posterior(self._reading, messages, logits), figures
        if self._step.greedy:
            best = self._messages(self._conditioning.classes.highest(logits), worth, best=True)
            states = best.draw(np.zeros((1, self._reading.ids.shape[1], len(self._reading))))
        else:
            states = messages.draw(self._uniform(noise, 1))
        out = None if self._weighed else logits
        guided = self._conditioning.given_states(self._reading, states[0], logits, out=out)
        if self._step.decisive:
            token = _drawn(guided, self._step.free.nonzero()[:, 0], noise)
            guided = torch.full_like(guided, -torch.inf).scatter_(1, token[:, None], 0.0)
        return guided, figures

    def settle(self, tokens: Tensor, positions: Tensor) -> Tensor | None:
        """What the host has drawn, made a joint draw where it was several tokens of a text; None: it is one.

        For steps that can be settled.

        Args:
            tokens, positions: `(batch, length)` int64 and bool, what was drawn and where.
        """
        if self._drawn_from is None or not (positions.sum(-1) > 1).any():
            return None
        messages, masses, logits = self._drawn_from
        free = self._reading.free.cpu().numpy()
        by_position = np.full((*free.shape, masses.shape[1]), -np.inf)
        by_position[free] = masses.double().cpu().numpy()
        pad = (0, free.shape[1] - tokens.shape[1])
        here = torch.nn.functional.pad(positions, pad).cpu().numpy() & free
        labels = self._conditioning.labels(torch.nn.functional.pad(tokens, pad).cpu().numpy())
        uniform = self._uniform(self._noise, 2)
        drawn = Committed(labels.T, (here & (labels != DEAD)).T, uniform, self._step.greedy)
        anew = settled(messages, np.ascontiguousarray(by_position.transpose(1, 2, 0)), drawn).T
        changed = (anew != DEAD) & free
        if not changed.any():
            return None
        row = torch.from_numpy(np.flatnonzero(changed[free])).to(logits.device)
        label = torch.from_numpy(anew[changed]).to(logits.device)
        within = self._conditioning.classes.within(logits[row], label)
        sequence = torch.from_numpy(np.nonzero(changed)[0]).to(logits.device)
        found = within.argmax(-1) if self._step.greedy else _drawn(within, sequence, self._noise)
        result = torch.nn.functional.pad(tokens, pad)
        result[torch.from_numpy(changed).to(result.device)] = found.to(result.device)
        return result[:, : tokens.shape[1]]

    def log_prob(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Log-probability of what was drawn, as a joint draw has it; `(batch,)` float64 on the CPU, nats.

        Of the tokens x_S at the positions S of a text that is `log Z(x_S) - log Z`, Z the sum over all texts, as
        `condition` has it, and Z(x_S) that over those with x_S: exact where S does not depend on what is drawn.

        Args:
            tokens, positions: `(batch, length)` int64 and bool, what was drawn in the end, and where.
        """
        assert self._drawn_from is not None
        messages, masses, logits = self._drawn_from
        pad = (0, self._reading.free.shape[1] - tokens.shape[1])
        here = torch.nn.functional.pad(positions, pad) & self._reading.free
        chosen, rows = torch.nn.functional.pad(tokens, pad)[here], here[self._reading.free]
        wide = torch.float64 if logits.device.type == "cpu" else logits.dtype  # not every accelerator has float64
        log_q = logits[rows].to(wide).log_softmax(-1).gather(-1, chosen[:, None])[:, 0]
        labels = torch.from_numpy(self._conditioning.labels(chosen.cpu().numpy()))
        alive, row = labels != DEAD, rows.nonzero()[:, 0].cpu()
        clamped = masses.detach().double().cpu().clone()
        clamped[row] = -torch.inf
        clamped[row[alive], labels[alive]] = log_q.double().cpu()[alive]
        with np.errstate(invalid="ignore"):
            found = self._messages(clamped, self._now).log_z - messages.log_z
        drawn = here.any(-1).cpu().numpy()
        return torch.from_numpy(np.where(drawn, found, 0.0))

    def marginals(self, logits: Tensor, scale: float | Array) -> Tensor:
        """Logits of the posterior of each free position, like `logits`."""
        logits, _ = self._given_further(logits, scale)
        masses = self._conditioning.classes.log_probs(logits)
        messages = self._messages(masses)
        self._check(messages, logits)
        self._now, self.notes = self._worth(messages, scale)
        if self._now is not None:
            messages = self._messages(masses, self._now)
        self.notes |= self._terms(self._conditioning.automaton.values.T @ messages.end_distribution())
        return self._conditioning.posterior(self._reading, messages, logits)

    def draws_along(self, log_q: Tensor, support: Tensor | None, count: int, noise: Noise) -> Tensor:
        """What `count` samples are to be drawn from, `(count, rows, S)`: log_q along the states of joint draws.

        Sequences whose support holds no text of the form are drawn from log_q as it is. After `marginals`, by which is
        known what the automata are worth in this step.
        """
        classes = self._conditioning.classes
        masses = classes.log_probs(log_q) if support is None else classes.masses_of_some(log_q, support)
        messages = self._messages(masses, self._now)
        row = self._reading.free.nonzero()[:, 0]
        possible = torch.from_numpy(np.isfinite(messages.log_z)).to(log_q.device)[row, None]
        drawn = []
        for states in messages.draw(self._uniform(noise, count)):
            along = self._conditioning.given_states(self._reading, states, log_q, support)
            usable = possible & (along > -torch.inf).any(-1, keepdim=True)
            drawn.append(torch.where(usable, along, log_q).log_softmax(-1))
        return torch.stack(drawn)

    def _given_further(self, logits: Tensor, scale: float | Array) -> tuple[Tensor, dict[str, float]]:
        """Logits given the further forms, one after the other, and what these note."""
        notes: dict[str, float] = {}
        for further in self._form.further if np.any(scale) else ():
            form = FormOfStep(further, self._step)
            logits = form.marginals(logits, scale)
            notes |= form.notes
        return logits, notes

    def _terms(self, values: Array) -> dict[str, float]:
        """What the terms of the reward expect to be worth, without their weights; `values` is `(columns, batch)`."""
        notes: dict[str, float] = {}
        for term, weight, value in zip(self._form.terms, self._form.unweighted, values, strict=True):
            notes[term] = notes.get(term, 0.0) + float(weight * value.mean())
        return notes

    def _messages(self, masses: Tensor, worth: Array | None = None, best: bool = False) -> Messages:
        return self._conditioning.messages(self._reading, masses, worth, best)

    def _worth(self, plain: Messages, scale: float | Array) -> tuple[Array | None, dict[str, float]]:
        """What it is worth to end in a state, `(states, batch)` nats, and log P of each term; None: nothing."""
        form, values = self._form, self._conditioning.automaton.values
        if not np.any(scale) or not len(form.weights):
            return None, {}
        possible, ends = plain.possible_ends(), plain.end_distribution()
        worth, notes = np.zeros(ends.shape), {}
        lost = np.zeros((len(form.weights), ends.shape[1]), dtype=bool)
        for k, weight in enumerate(form.weights):
            signed = np.sign(weight) * values[:, k]
            if form.linear[k]:
                worth += scale * weight * values[:, k, None]
                signed = np.minimum(signed, 1.0)
            best = np.where(possible, signed[:, None], -np.inf).max(axis=0)
            lost[k] = possible.any(axis=0) & (best < signed.max())
            reached = signed[:, None] == best
            with np.errstate(divide="ignore"):
                log_p = np.log(np.minimum((ends * reached).sum(axis=0), 1.0))
            notes[f"log P({form.names[k]})"] = float(np.where(lost[k], -_NEVER, np.maximum(log_p, -_NEVER)).mean())
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

    def _check(self, messages: Messages, logits: Tensor) -> None:
        """A ValueError where a text cannot be completed, or the model has said nothing."""
        impossible = np.flatnonzero(~np.isfinite(messages.log_z) & self._step.free.any(-1).cpu().numpy())
        if len(impossible):
            if bool((logits.isnan() | logits.isposinf()).any()):
                raise ValueError("`logits` must be finite or -inf, got NaN or inf from the model; try another `dtype`.")
            raise ValueError(explained(self._conditioning, self._reading, int(impossible[0]), self._step.tokenizer))


def _drawn(logits: Tensor, sequence: Tensor, noise: Noise) -> Tensor:
    """`(rows,)`, a token of each row; `sequence` `(rows,)`, ascending, says which text a row is of."""
    if isinstance(noise, torch.Generator):
        return torch.multinomial(logits.softmax(-1), 1, generator=noise)[:, 0]
    counts = torch.bincount(sequence, minlength=len(noise)).tolist()
    return torch.cat(
        [
            torch.multinomial(part.softmax(-1), 1, generator=source)[:, 0]
            for part, source in zip(logits.split(counts), noise, strict=True)
            if len(part)
        ]
    )
