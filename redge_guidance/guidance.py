"""Guidance of a sampler: at every denoising step, which sequences are moved toward the reward, and how far."""

import copy
import time
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from redge_guidance.accepting import as_reward, as_strings
from redge_guidance.config import GuidanceConfig
from redge_guidance.constraints.constraint import parted
from redge_guidance.course import Course, Plan
from redge_guidance.ending import Account, Ending
from redge_guidance.evaluation import WrongKind
from redge_guidance.form import formed
from redge_guidance.formed import FormOfStep
from redge_guidance.forming import formed_logits, together
from redge_guidance.goals import Goals, exchanged
from redge_guidance.gradients import routes
from redge_guidance.inference import gradients_allowed, outside_inference_mode
from redge_guidance.parts import Part, figures_of, host_logits, p_logits, put_together
from redge_guidance.precision import Autocast
from redge_guidance.randomness import check_seed, noise_of
from redge_guidance.records import columns_now
from redge_guidance.reward import Wanted
from redge_guidance.step import DenoisingStep, rows_of, without_others
from redge_guidance.stopping import StopRule
from redge_guidance.strength import Strength, strength_of, update_of
from redge_guidance.terms import asks_for_whole_batch
from redge_guidance.tilting import tilted
from redge_guidance.tilts import Tilts, carried
from redge_guidance.trace import StepTrace, Trace


class Guidance:
    """A reward, settings and a seed: moves the logits of denoising steps, and notes what it did.

    Its noise is a function of the sampler's generator, of the seed and of the number of the step within its call, see
    `noise_of`: the same generator gives the same samples, whatever was drawn before.

    Args:
        reward: a `Constraint`, `reward & constraint`, or any callable from `RelaxedTokens`, or from pixels
            `(batch, 3, height, width)` in [0, 1] where the pipeline makes images, to a differentiable tensor
            `(batch,)`, higher is better; on images also anything with `score(pixels, prompts)`. It need not be
            differentiable for the estimator `reinforce_loo`, nor where it, or a term of a sum, says so. Functions of
            strings, reward functions as in TRL and models of other libraries are accepted as
            `redge_guidance.accepting.as_reward` says.
        config: `GuidanceConfig()` when None.
        seed: of guidance's own noise.
        stop_when: ends the guidance of a sequence, see `Stopping`; None: nothing does.
        weighed: whether `log_prob` will be asked for.
        images: whether the sampler makes images, so that a plain function is a reward of them.

    Attributes:
        config: the settings in force.
        strength: what is pursued, and at what cost.
        trace: a `Trace`, one `StepTrace` a guided step.
        figures: of the step that was told last; None where it was not guided.

    Raises:
        ValueError: a reward that is not callable, a config of another type, one draw for a reward without gradient, or
            a seed that is none.
    """

    def __init__(
        self,
        reward: Wanted,
        config: GuidanceConfig | None = None,
        seed: int = 0,
        stop_when: StopRule | None = None,
        weighed: bool = False,
        images: bool = False,
    ):
        rewarding, constraint = parted(reward)
        wanted = None if rewarding is None else as_reward(rewarding)
        self.config = GuidanceConfig() if config is None else config
        if not isinstance(self.config, GuidanceConfig):
            raise ValueError(f"`config` must be a GuidanceConfig, got {type(config).__name__}.")
        self._whole = wanted  # what finished samples are judged by
        self._form, wanted = formed(wanted, constraint)
        if wanted is not None:
            routes(wanted, self.config)
        self._reward, self._seed, self._rule, self._weighed = wanted, check_seed(seed), stop_when, weighed
        self.strength = strength_of(wanted, self.config, images)
        update = self.config.update if wanted is None else update_of(wanted, self.config, images)
        self._resolved = replace(self.config, update=update)
        self.trace = Trace(aim=str(self.strength), target=self.strength.target)
        self._told = set[str]()
        self.begin()

    def alike(self) -> "Guidance":
        """The same guidance, of another sampler at the same time; its trace is this one's."""
        other = copy.copy(self)
        other.begin()
        return other

    def begin(self) -> None:
        """A call of the sampler begins: its steps are counted from 0."""
        self._index, self._goals = 0, Goals(self._reward)
        self._course = Course(self._rule, 1 if self._reward is None else self.config.every)
        self._tilts = Tilts()
        self._formed: FormOfStep | None = None  # of the step that the host is taking
        self.figures: StepTrace | None = None
        self._before = self.trace.total
        self.trace.finish(None)

    def settle(self, step: DenoisingStep, tokens: Tensor, positions: Tensor) -> Tensor | None:
        """Told what the host has drawn from the logits of a step that can be settled, `(batch, length)` both.

        Returns:
            What it is to have drawn, `(batch, length)`; None: that.
        """
        formed = self._formed
        self._formed = formed if self._weighed else None
        return None if formed is None else formed.settle(tokens, positions)

    def log_prob(self, tokens: Tensor, positions: Tensor) -> Tensor | None:
        """Of what was drawn in this step, after it was settled, the log-probability as part of a text of the form.

        Args:
            tokens, positions: `(batch, length)` int64 and bool.

        Returns:
            `(batch,)` float64 on the CPU, nats; None where the step was given no form, and tokens were drawn each by
            itself from the logits that were returned.
        """
        return None if self._formed is None else self._formed.log_prob(tokens, positions)

    def stop(self, chosen: Tensor) -> None:
        """From the next step on the sequences `chosen`, `(batch,)` bool, are left to the host, but for a constraint."""
        self._course.stop(chosen)

    def reorder(self, rows: Tensor) -> None:
        """From the next step on sequence i is a copy of `rows[i]`, `(batch,)` int64, with all that is known of it."""
        self._tilts.reorder(rows)
        self._course.reorder(rows)

    def foresee(self, step: DenoisingStep) -> None:
        """Told of the step to come, without logits, before the model is called.

        Raises:
            ValueError: a text that cannot become one that the constraint accepts.
        """
        if self.is_hard and self._form is not None:
            self._form.check(step)

    def came_to(self, ending: Ending) -> None:
        """Told what a call of the sampler has come to; the trace says what that is worth, to whoever asks."""
        if self._whole is not None:
            count = min(len(self.trace), self.trace.total - self._before)
            steps = self.trace[len(self.trace) - count :]
            account = Account(
                self._whole, self.strength, self.config, steps, self._index, self._course.stopped, columns_now()
            )
            self.trace.finish(partial(account.of, ending))

    def end(self) -> None:
        """A call of the sampler is over: a warning for every goal that nothing moved and that is not reached, once."""
        self._goals.report(self._told)
        self._goals = Goals(self._reward)

    def __call__(self, step: DenoisingStep) -> Tensor | None:
        """Guided logits `(free positions, vocabulary)`, float32.

        None where the host's own hold: where this step is not to be guided, and where the logits of the step are
        `spent` and have been written into.

        Raises:
            ValueError: a reward of the wrong shape, not finite, or without gradient; an `every` that is longer than the
                call has steps.
            RuntimeError: a reward with parameters that were made under `torch.inference_mode()`.
        """
        started, index = time.perf_counter(), self._index
        self._index += 1
        self._check_every(step, index)
        acts = self._acts(step)
        self._formed = self.figures = None
        if not step.free.any() or not (acts or self.is_hard):
            return None
        with gradients_allowed(), torch.no_grad():
            here = outside_inference_mode(step)
            plan = None
            if acts:
                plan = self._course.plan(here.free, self._reward is not None and asks_for_whole_batch(self._reward))
            parts = [] if plan is None or self._reward is None else self._moved(here, plan, index)
            logits, figures = self._with_form(here, parts, plan, index)
        if plan is not None and figures is not None:
            figures = self._course.note(plan, figures)
        if figures is not None:
            self.figures = replace(figures, seconds=time.perf_counter() - started, step=index)
            self.trace.append(self.figures)
        return logits

    @property
    def has_form(self) -> bool:
        """Whether something is followed exactly, as an automaton."""
        return self._form is not None

    @property
    def is_hard(self) -> bool:
        """Whether there is a constraint, which holds in every step, whatever the settings of rewards."""
        return self._form is not None and self._form.is_hard

    def _acts(self, step: DenoisingStep) -> bool:
        """Whether rewards count in this step."""
        config = self.config
        rewarding = self._reward is not None or (self._form is not None and self._form.is_rewarding)
        within = rewarding and config.scale != 0 and config.start <= step.progress < config.stop
        return within and config.factor(step.progress) > 0

    def _moved(self, step: DenoisingStep, plan: Plan, index: int) -> list[Part]:
        """What the reward makes of the sequences that are asked, and of those that are tilted as before."""
        parts, strength = list[Part](), self.strength.times(self.config.factor(step.progress))
        assert self._reward is not None
        found = self._tilts.at(step.free & plan.kept[:, None])
        if found is not None:
            part = rows_of(step, plan.kept)
            moved, divergence, entropy = carried(part, *found, strength.limit)
            parts.append(Part(plan.kept, moved, figures_of(part, divergence, entropy)))
        whole = asks_for_whole_batch(self._reward)
        groups = [plan.asked] if whole else [plan.first, plan.asked & ~plan.first]  # which draw as many samples each
        return parts + [self._asked(step, chosen, strength, index) for chosen in groups if bool(chosen.any())]

    def _asked(self, step: DenoisingStep, chosen: Tensor, strength: Strength, index: int) -> Part:
        """What the reward makes of some sequences, `(batch,)` bool; their tilts are kept where they will be needed."""
        config, free = self.config, step.free & chosen[:, None]
        ceilings, start = self._course.ceilings(chosen), self._tilts.at(free) if config.warm_start else None
        while True:
            assert self._reward is not None
            whole = asks_for_whole_batch(self._reward)
            part = without_others(step, chosen) if whole else rows_of(step, chosen)
            if whole and len(ceilings) < len(step.ids):
                ceilings = torch.full_like(chosen, torch.nan, dtype=ceilings.dtype).masked_scatter(chosen, ceilings)
            form = None if self._form is None else FormOfStep(self._form, part)
            try:
                noise = noise_of(part, self._seed, index)
                found = tilted(part, self._reward, self._resolved, strength, noise, self._goals, form, start, ceilings)
                break
            except WrongKind as error:
                strings = as_strings(error)
                self._reward, self._whole = (
                    exchanged(one, error.reward, strings) for one in (self._reward, self._whole)
                )
                self._goals = Goals(self._reward)
        if config.every > 1 or config.warm_start:
            self._tilts.keep(free, found.tilts(), chosen)
        trace = found.trace
        if whole:
            among = zip(trace.sequences, chosen.tolist(), strict=True)
            trace = replace(trace, sequences=tuple(one for one, mine in among if mine))
        at_rest = (found.strengths == 0)[:, 0] & torch.tensor(
            [one.at_rest for one in trace.sequences], device=chosen.device
        ).repeat_interleave(free[chosen].sum(-1))
        return Part(chosen, found.moved, trace, at_rest)

    def _with_form(
        self, step: DenoisingStep, parts: list[Part], plan: Plan | None, index: int
    ) -> tuple[Tensor | None, StepTrace | None]:
        """The logits of a step for the host, None for its own ones, and the figures of all its sequences."""
        figures = put_together(step, parts)
        with Autocast.off(step.logits.device):
            if self._form is None:
                return host_logits(step, parts), figures
            self._formed = FormOfStep(self._form, step, self._weighed)
            scale = np.zeros(len(step.ids))
            if plan is not None:
                forms = self.strength.times(self.config.factor(step.progress)).forms
                scale = np.where(plan.stopped.cpu().numpy(), 0.0, forms)
            noise = noise_of(step, self._seed, index, "form" if parts else "")
            before, budget = p_logits(step, parts), self.config.kl_budget
            logits, shaped = formed_logits(step, self._formed, before, noise, scale, budget)
        return logits, shaped if figures is None else together(figures, shaped)

    def _check_every(self, step: DenoisingStep, index: int) -> None:
        """A ValueError where a call has fewer steps than lie between two at which the reward is asked."""
        every = self.config.every
        if index == 1 and step.progress > 0 and (steps := round(1 / step.progress)) < every and every > 2:
            raise ValueError(
                f"`every` must be at most the number of denoising steps, here {steps}, got {every}: the reward would "
                "be asked at the first one alone. Take a smaller `every`, or `stop` to guide the beginning alone."
            )
