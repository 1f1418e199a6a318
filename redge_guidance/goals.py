"""Whether anything pulls at the terms of a reward: a goal that no step could move is said, never passed over."""

import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from redge_guidance.chats import Prompt
from redge_guidance.reward import AnyReward, Reward, RewardSum, Term
from redge_guidance.sample import Sample
from redge_guidance.terms import terms_of

_MORE_DRAWS = "take more `num_draws`, or a function that says how near a sample is"
_NO_SLOPE = "its gradient was 0 at every draw, or the same for all tokens that may be drawn"
_TOKENS = (
    "where it wants tokens that the model finds unlikely, name them by `token_ids(tokenizer)` or take `support=None`; "
    "where it rounds or counts, give it a slope; where it wants more than there is room for, give it room"
)


class Goals:
    """The terms of a reward in one call of a sampler: which of them has had a gradient, at any draw of any step.

    Args:
        reward: a sum, a single term, or None. Terms of weight 0 are no goals.
    """

    def __init__(self, reward: AnyReward | None):
        terms = [] if reward is None else terms_of(reward)
        self._terms = {term.name: term for term in terms if term.weight != 0}
        self._unmoved = dict(self._terms)
        self._values: dict[str, tuple[float, float]] = {}  # lowest and highest of every draw
        self._last: dict[str, tuple[Tensor, Any, Sequence[Prompt] | None]] = {}  # values, finished samples, prompts
        self._by_values: set[str] = set()

    def waiting(self, reward: AnyReward) -> bool:
        """Whether a term of this part of the reward has not been moved yet, so that it has to be looked at."""
        return any(term.name in self._unmoved for term in terms_of(reward))

    def slopes(self, reward: AnyReward, values: Sequence[Tensor], target: Any, log_q: Tensor) -> None:
        """Note which terms of a sum have a gradient with respect to `target`; their values are `(draws * batch,)`.

        `log_q` `(rows, S)` is what is to be moved: a gradient moves it where tokens that may be drawn differ in it.
        """
        for term, value in zip(terms_of(reward), values, strict=True):
            if term.name in self._unmoved and value.requires_grad:
                (grad,) = torch.autograd.grad(value.sum(), target, retain_graph=True, allow_unused=True)
                self._note(term, grad, log_q)

    def slope(self, reward: AnyReward, grad: Tensor, log_q: Tensor) -> None:
        """Note the gradient of a reward that has but one term; `log_q` as in `slopes`."""
        self._note(terms_of(reward)[0], grad, log_q)

    def _note(self, term: Term, grad: Tensor | None, log_q: Tensor) -> None:
        if term.name in self._unmoved and grad is not None and bool(grad.any()) and _moves(grad, log_q):
            self._moved(term)

    def differences(self, reward: AnyReward, values: Sequence[Tensor], count: int) -> None:
        """Note which terms differ between the draws of one sequence, where values are all that is known of them."""
        for term, value in zip(terms_of(reward), values, strict=True):
            self._by_values.add(term.name)
            by_draw = value.detach().view(count, -1)
            if term.name in self._unmoved and bool((by_draw != by_draw[:1]).any()):
                self._moved(term)

    def _moved(self, term: Term) -> None:
        del self._unmoved[term.name]
        self._last.pop(term.name, None)

    def seen(self, reward: AnyReward, values: Sequence[Tensor], sample: Sample) -> None:
        """Note the values of what has not been moved, and whether it is as it should be already."""
        for term, value in zip(terms_of(reward), values, strict=True):
            value = value.detach()
            if term.name not in self._unmoved:
                continue
            low, high = self._values.get(term.name, (float("inf"), -float("inf")))
            self._values[term.name] = (min(low, float(value.min())), max(high, float(value.max())))
            judges = getattr(term.reward, "answer_only", None)
            finished = sample.finished(judges) if _says_yes_or_no(term.reward) else None
            self._last[term.name] = (value, finished, sample.prompts)

    def report(self, told: set[str]) -> None:
        """Warn of every goal that was neither moved nor reached; once, `told` being the names of those of before."""
        for name in self._unmoved:
            if name not in self._last or name in told or _reached(self._terms[name], *self._last[name]):
                continue
            told.add(name)
            low, high = self._values[name]
            value = f"the value {low:.4g}" if low == high else f"values from {low:.4g} to {high:.4g}"
            by_values = name in self._by_values
            why = (
                "the draws of a text or image never differed"
                if by_values
                else "its gradient was 0 at every draw, or the same for all tokens that may be drawn"
            )
            term = self._terms[name]
            asked = f"where {'1' if term.weight > 0 else '0'} would be a yes"  # of a function that says nothing of it
            verdict = "and it is not reached" if _says_yes_or_no(term.reward) else asked
            warnings.warn(
                f"`reward` {name} moved nothing in this call: {why}, with {value}, {verdict}; "
                f"{_MORE_DRAWS if by_values else _TOKENS}.",
                stacklevel=2,
            )


def _moves(grad: Tensor, log_q: Tensor) -> bool:
    """Whether a gradient `(..., rows, S)` is not the same for all tokens of positive probability in every row."""
    never = log_q == -torch.inf
    highest = grad.masked_fill(never, -torch.inf).amax(-1)
    return bool((highest > grad.masked_fill(never, torch.inf).amin(-1)).any())


def exchanged(reward: AnyReward | None, old: Any, new: AnyReward) -> AnyReward | None:
    """The same reward with `new` in the place of `old`, a term of it or the reward itself."""
    if not isinstance(reward, RewardSum):
        return new if reward is old else reward
    return RewardSum([replace(term, reward=new) if term.reward is old else term for term in reward.terms])


def _says_yes_or_no(reward: AnyReward) -> bool:
    return isinstance(reward, Reward) and type(reward).reached is not Reward.reached


def _reached(term: Term, value: Tensor, finished: Any, prompts: Sequence[Prompt] | None) -> bool:
    """Whether all draws are as the term wants them; of a function that says nothing of it 1 is taken for a yes."""
    known = None
    if finished is not None and isinstance(term.reward, Reward):
        known = term.reward.reached(finished, prompts)
    if known is None:
        return bool((value == (1 if term.weight > 0 else 0)).all())
    return all(yes == (term.weight > 0) for yes in known)
