"""What finished samples are worth: rewards by term, the likelihood bound, and what guidance noted on the way."""

import contextlib
import warnings
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from redge_guidance.chats import is_conversation
from redge_guidance.constraints.constraint import Constraint
from redge_guidance.evaluation import infinite_allowed
from redge_guidance.form import automata_of
from redge_guidance.generation.requests import Prompt, Request
from redge_guidance.generation.sampler import Drawn
from redge_guidance.reward import AnyReward, Reward, RewardSum, Term
from redge_guidance.terms import terms_of
from redge_guidance.trace import StepTrace


@dataclass(frozen=True)
class Judgement:
    """Of one sample: see `Record`."""

    reward: float | None
    rewards: dict[str, float | None]
    reached: bool | None
    accepted: bool | None
    aimed: float | None = None  # the part of `reward` that a target is of: without the terms that are automata


class Judge:
    """Scores finished samples by every term of a reward, and asks a constraint whether it accepts them.

    A term that has no `score` of finished samples, such as a lambda of relaxed tokens, is None, with one warning.
    Of `competing` samples it is not said whether they are as their rewards want them, `reached`, which costs a second
    look at them, and one may be worth -inf.
    """

    def __init__(
        self,
        reward: AnyReward | None,
        chat: bool = False,
        constraint: Constraint | None = None,
        competing: bool = False,
    ):
        self._terms = [] if reward is None else terms_of(reward)
        self._aimed = {term.name for term in self._terms if term.weight != 0 and not automata_of(term)}
        self._reward, self._chat, self._constraint, self._competing = reward, chat, constraint, competing
        self._told: set[str] = set()

    def __call__(self, requests: Sequence[Request], drawn: Sequence[Drawn]) -> list[Judgement]:
        accepted = self._accepted(requests, drawn)
        if not self._terms:
            return [Judgement(None, {}, None, one) for one in accepted]
        prompts: list[Any] = [shown(request.line.prompt) for request in requests]
        with infinite_allowed() if self._competing else contextlib.nullcontext():
            by_term = {term.name: self._values(term, requests, drawn, prompts) for term in self._terms}
        reached = None if self._competing else self._reached(requests, drawn, prompts)
        judged = []
        for i in range(len(drawn)):
            values = {name: None if found is None else found[i] for name, found in by_term.items()}
            total, aimed = (self._total(values, names) for names in (values.keys(), self._aimed))
            judged.append(Judgement(total, values, None if reached is None else reached[i], accepted[i], aimed))
        return judged

    def _total(self, values: dict[str, float | None], names: Collection[str]) -> float | None:
        """The weighted sum of some terms; None where one has no value, or there are none."""
        pairs = [(term.weight, values[term.name]) for term in self._terms if term.name in names]
        known = [weight * value if weight != 0 else 0.0 for weight, value in pairs if value is not None]
        return sum(known) if known and len(known) == len(pairs) else None

    def _accepted(self, requests: Sequence[Request], drawn: Sequence[Drawn]) -> Sequence[bool | None]:
        """Of the texts as they are, whatever an automaton says; None where what it judges is more than the text."""
        constraint, unknown = self._constraint, [None] * len(drawn)
        if constraint is None or drawn[0].text is None:
            return unknown
        found = constraint.accepts(self._samples(constraint, requests, drawn))
        if found is None:
            return unknown
        answers = self._of_answers(constraint, requests)
        known = [one.whole or answer for one, answer in zip(drawn, answers, strict=True)]
        return [one if told else None for one, told in zip(found, known, strict=True)]

    def _values(
        self, term: Term, requests: Sequence[Request], drawn: Sequence[Drawn], prompts: list[Any]
    ) -> list[float] | None:
        samples = self._samples(term.reward, requests, drawn)
        can = isinstance(term.reward, Reward) or hasattr(term.reward, "score") or isinstance(samples, Tensor)
        try:
            if not can:
                raise NotImplementedError
            found: list[float] = RewardSum([replace(term, weight=1.0)]).score(samples, prompts).tolist()
        except NotImplementedError:
            if term.name not in self._told:
                self._told.add(term.name)
                warnings.warn(
                    f"`reward` {term.name} does not score finished samples, so that records have no value of it; "
                    "write `score(self, samples, prompts=None, batch_size=32)` in a class derived from `Reward`.",
                    stacklevel=2,
                )
            return None
        return found

    def _reached(self, requests: Sequence[Request], drawn: Sequence[Drawn], prompts: list[Any]) -> list[bool] | None:
        known = []
        for term in self._terms:
            if isinstance(term.reward, Reward) and term.weight != 0:
                found = term.reward.reached(self._samples(term.reward, requests, drawn), prompts)
                if found is not None:
                    known.append([yes == (term.weight > 0) for yes in found])
        return [all(answers) for answers in zip(*known, strict=True)] if known else None

    def _of_answers(self, judge: Any, requests: Sequence[Request]) -> list[bool]:
        """Whether a reward or a constraint judges the answer alone, by request."""
        asked = getattr(judge, "answer_only", None)  # None: in a chat
        return [(self._chat or is_conversation(r.line.prompt)) if asked is None else asked for r in requests]

    def _samples(self, reward: Any, requests: Sequence[Request], drawn: Sequence[Drawn]) -> Any:
        if drawn[0].pixels is not None:
            return torch.stack([one.pixels for one in drawn if one.pixels is not None])
        answers = self._of_answers(reward, requests)
        return [one.answer if answer else one.text for one, answer in zip(drawn, answers, strict=True)]


def shown(prompt: Prompt) -> Any:
    """A prompt as rewards are told it."""
    return prompt if is_conversation(prompt) else "" if prompt is None else str(prompt)


def bound_of(pipe: Any, request: Request, drawn: Drawn) -> float | None:
    """The pipeline's bound on `-log p(text)`, in nats, corrupted by the request's seed; None where it has none.

    In a chat that of the answer, given the conversation.
    """
    bound, prompt = getattr(pipe, "nll", None), request.line.prompt
    if bound is None or drawn.text is None:
        return None
    generator = torch.Generator().manual_seed(request.seed)
    try:
        if is_conversation(prompt):
            return float(bound([drawn.answer], prompts=[prompt], generator=generator))
        return float(bound([drawn.text], generator=generator))
    except ValueError:  # a text that its tokenizer reads in another way, as with a reserved token in it
        return None


class Guided(NamedTuple):
    """What guidance noted of one sequence in one call; see `Record` for `kl` and `strength`."""

    kl: float | None = None
    strength: float = 0.0


def guided_of(steps: Sequence[StepTrace], row: int) -> Guided:
    """From the guided steps that left it something to draw."""
    found = [step.sequences[row] for step in steps if row < len(step.sequences) and step.sequences[row].free]
    asked = [one for one in found if one.asked]
    return Guided(
        kl=sum(one.kl for one in found) / len(found) if found else None,
        strength=sum(one.strength for one in asked) / len(asked) if asked else 0.0,
    )
