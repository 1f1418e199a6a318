"""What a call of a sampler has come to: finished samples, what they are worth, what kept one from its target."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from redge_guidance.config import GuidanceConfig
from redge_guidance.evaluation import checked
from redge_guidance.form import automata_of
from redge_guidance.inference import gradients_allowed
from redge_guidance.records import columns
from redge_guidance.reward import AnyReward, RewardSum, Term
from redge_guidance.sample import Sample
from redge_guidance.samples.images import RelaxedImages
from redge_guidance.samples.tokens import RelaxedTokens
from redge_guidance.step import DenoisingStep
from redge_guidance.strength import Strength, least_of
from redge_guidance.terms import terms_of
from redge_guidance.text import is_in, text_mask
from redge_guidance.trace import FinishedFigures, SequenceFigures, StepTrace

_IN_FULL = 0.97  # of a price or a budget, which bisection leaves a little below


@dataclass(frozen=True, eq=False)
class Ending:
    """What is known when a call of a sampler has come to its end.

    Attributes:
        step: the last one, without its logits.
        tokens, positions: `(batch, length)` int64 and bool, what was drawn in it, and where.
        ids: `(batch, length)` int64, the whole context as the sampler has returned it, which may be of another length;
            None: it is `tokens`.
        result: what the sampler has returned.
    """

    step: DenoisingStep
    tokens: Tensor
    positions: Tensor
    ids: Tensor | None = None
    result: Any = None

    def sample(self) -> Sample | None:
        """The finished samples as rewards are shown them, nothing of them free; None where it is not known what is."""
        step, length = self.step, self.tokens.shape[1]
        ids = self.tokens if self.ids is None else self.ids
        if len(ids) != len(self.tokens) or (self.ids is None and step.coming):
            return None

        def fitted(mask: Tensor, beyond: bool = False) -> Tensor:
            return torch.nn.functional.pad(mask[:, : ids.shape[1]], (0, max(0, ids.shape[1] - length)), value=beyond)

        left = step.free & ~self.positions
        left = left if step.held is None else left & ~step.held
        left = left if step.later is None else left | step.later
        undrawn, text = fitted(left), fitted(step.attention_mask | left, True)
        given, lead = (None if mask is None else fitted(mask) for mask in (step.given, step.lead))
        if self.ids is not None:  # where the sampler, or a callback, may have put something else since
            undrawn = (fitted(step.free, True) if given is None else ~given) & is_in(ids, self._mask())
        if step.images is not None:
            undrawn |= ids >= len(step.images.codebook)
        text = text_mask(ids, step.tokenizer, text, given, step.ends)
        if bool((undrawn & text).any()):
            return None
        free = torch.zeros_like(text)
        nothing = torch.zeros(0, step.logits.shape[-1], device=ids.device)
        told = {"tokenizer": step.tokenizer, "prompts": step.prompts, "ends": step.ends, "chat": step.chat}
        tokens = RelaxedTokens(ids, free, nothing, attention_mask=text, given=given, lead=lead, **told)
        if step.images is not None:
            pixels = pixels_in(self.result, len(ids))
            decoder = step.images if pixels is None else replace(step.images, decode=lambda _: pixels, chunk_size=None)
            return RelaxedImages(tokens, decoder)
        said = texts_in(self.result, len(ids))
        agreed = said is None or said in (tokens.texts(), tokens.answers())
        return tokens if agreed else None

    def _mask(self) -> set[int]:
        """The token that all positions still to be drawn held before the last step; none where they held others."""
        step = self.step
        held = torch.zeros_like(step.free) if step.held is None else step.held
        blank, words = set(step.ids[step.free & ~held].tolist()), step.logits.shape[-1]
        return blank if len(blank) == 1 and all(i in step.reserved or i >= words for i in blank) else set()


def texts_in(result: Any, count: int) -> list[str] | None:
    """As many strings in what a sampler has returned; None: there are none."""
    parts = result if isinstance(result, tuple) else (getattr(result, "texts", None),)
    lists = (part for part in parts if isinstance(part, list) and len(part) == count)
    return next((part for part in lists if part and all(isinstance(one, str) for one in part)), None)


def pixels_in(result: Any, count: int) -> Tensor | None:
    """As many images in what a sampler has returned, `(count, 3, height, width)` in [0, 1]; None: there are none."""
    found = getattr(result, "images", result)
    found = found[0] if isinstance(found, tuple) and found else found
    if isinstance(found, list) and found and all(hasattr(one, "getbands") for one in found):  # of PIL
        found = np.stack([np.asarray(one.convert("RGB")) for one in found]) / np.float32(255)
    if not isinstance(found, Tensor) and hasattr(found, "__array__"):
        found = torch.as_tensor(found).movedim(-1, 1) if getattr(found, "ndim", 0) == 4 else None
    fits = isinstance(found, Tensor) and found.is_floating_point() and found.ndim == 4 and found.shape[1] == 3
    return found.float() if fits and len(found) == count else None


@dataclass(frozen=True, eq=False)
class Account:
    """What guidance did in a call, and for what: asked later what the call has come to.

    Attributes:
        reward: the whole of it, with the terms that are automata.
        steps: the guided steps of the call, as far as the trace kept them.
        taken: number of all its steps.
        stopped: of every sequence, whether `stop_when` had ended its guidance.
        fields: of the prompts, as `columns` has them.
    """

    reward: AnyReward
    strength: Strength
    config: GuidanceConfig
    steps: Sequence[StepTrace]
    taken: int
    stopped: Sequence[bool]
    fields: Mapping[str, Sequence[Any]]

    def of(self, ending: Ending) -> tuple[FinishedFigures, ...] | None:
        """Figures of every finished sample; None where it is not known what was drawn."""
        target, terms = self.strength.target, terms_of(self.reward)
        with gradients_allowed(), columns(self.fields):
            sample = ending.sample()
            if sample is None:
                return None
            by_term = {term.name: _values(term, sample) for term in terms}
        aimed = {term.name for term in terms if term.weight != 0 and not automata_of(term)}
        found = []
        for row in range(len(sample)):
            values = {name: several[row] for name, several in by_term.items()}
            worth = _total(terms, values, aimed)
            reached = None if target is None else worth >= least_of(target)
            why = f"{self._why_not(row)}; in the end it is worth {worth:.3g}" if reached is False else None
            found.append(FinishedFigures(_total(terms, values, values), values, worth, reached, why))
        return tuple(found)

    def _why_not(self, row: int) -> str:
        """What the figures of a sequence that has missed its target say for sure, and what may help."""
        steps = [step for step in self.steps if row < len(step.sequences) and step.sequences[row].free]
        if not steps:
            whole = "nothing of it was left to draw" if self.steps else "there were none"
            return f"it was not moved at any guided step, since {whole}; look at `start`, `stop` and `schedule`"
        asked = [(step, step.sequences[row]) for step in steps if step.sequences[row].asked]
        if not asked:
            return "its reward was not asked in the steps that the trace has"
        last, at = asked[-1][1], asked[-1][0]
        if row < len(self.stopped) and self.stopped[row]:
            return f"`stop_when` ended its guidance after step {at.step + 1} of {self.taken}, {_at(last)}; end it later"
        if not any(_pulled(one) for _, one in asked):
            return (
                "nothing pulled at it: its reward was the same for all tokens that could be drawn, as far as was seen; "
                "name the tokens that it wants (`token_ids`), take `support=None`, more `num_draws`, or another reward"
            )
        if last.reached:
            how = " without being moved" if last.at_rest else ""
            return f"step {at.step + 1} of {self.taken} expected it to be reached{how}, {self._expected(last)}"
        return f"at step {at.step + 1} of {self.taken}, the last that asked, {self._short(last, at)}{self._ended()}"

    def _ended(self) -> str:
        """That guidance was over before the end, if it was."""
        after = self._after()
        steps = f"{after} step{'s' * (after > 1)}"
        return f"; guidance ended {steps} before the end: look at `stop` and `schedule`" if after else ""

    def _after(self) -> int:
        """Steps after those that the settings let guidance act in; others had nothing to draw."""
        if self.config.stop == 1 and self.config.schedule == "constant":
            return 0
        return self.taken - 1 - max(step.step for step in self.steps)

    def _expected(self, last: SequenceFigures) -> str:
        after = self._after()
        if after:
            return (
                f"{_at(last)}, and guidance ended {after} step{'s' * (after > 1)} before the end; take a later `stop`"
            )
        return (
            f"{_at(last)}, and what was drawn from there is worth less: take {self._oftener()}more `num_draws`, or, "
            'where samples are soft, an estimator of hard ones, such as `estimator="redge"`'
        )

    def _oftener(self) -> str:
        return "`every=1`, " if self.config.every > 1 else ""

    def _short(self, last: SequenceFigures, at: StepTrace) -> str:
        strength, factor = self.strength, self.config.factor(at.progress)
        ceiling, limit = last.ceiling, strength.times(factor).limit
        if ceiling is not None and last.strength >= _IN_FULL * factor * ceiling:
            scheduled = "" if factor == 1 else f", of which `schedule` left {factor:.3g}"
            where = f"{last.strength:.3g} nats a unit of reward{scheduled}, {_at(last)}"
            if strength.most is not None:
                return (
                    f"it paid the most that `usual_scale` of the reward allows, {where}: take {self._oftener()}a "
                    "`kl_budget`, which then says what it may cost, or a lower `target`"
                )
            return f"it paid the most that the budget allows, {where}: take a larger `kl_budget`, or a lower `target`"
        if limit is not None and last.kl >= _IN_FULL * limit:
            return (
                f"it spent the whole budget, {last.kl:.3g} nats per free token, {_at(last)}: take a larger `kl_budget`"
            )
        return (
            f"its samples were below the target, {_at(last)}, though the price would have allowed for more: take "
            f"{self._oftener()}more steps, or more `num_draws`"
        )


def _values(term: Term, sample: Sample) -> list[float]:
    """Of a term without its weight: its `score` of what is finished, or, where it has none, of the hard tokens."""
    reward, judges = term.reward, getattr(term.reward, "answer_only", None)
    if isinstance(sample, RelaxedImages) or hasattr(reward, "score"):
        prompts = None if sample.prompts is None else list(sample.prompts)
        try:
            found: list[float] = RewardSum([replace(term, weight=1.0)]).score(sample.finished(judges), prompts).tolist()
            return found
        except NotImplementedError:
            pass
    values = checked(sample.evaluate(reward), len(sample), term.name)
    return [float(value) for value in values]


def _total(terms: Sequence[Term], values: Mapping[str, float], names: Collection[str]) -> float:
    return sum(term.weight * values[term.name] for term in terms if term.name in names)


def _pulled(one: SequenceFigures) -> bool:
    """Whether the reward of a sequence was seen to vary: it had a price, or did not need one."""
    return one.at_rest or (one.grad_norm > 0 and (one.ceiling is not None or one.strength > 0))


def _at(figures: SequenceFigures) -> str:
    return f"at a reward of {figures.reward:.4g}"
