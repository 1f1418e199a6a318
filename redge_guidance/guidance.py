"""Guidance of one denoising step: the reward's gradient, carried into the logits."""

import copy
import time
from dataclasses import replace

import torch
from torch import Tensor

from redge_guidance.accepting import as_reward, as_strings
from redge_guidance.config import GuidanceConfig
from redge_guidance.constraints.constraint import parted
from redge_guidance.draws import Draws, Noise
from redge_guidance.evaluation import WrongKind
from redge_guidance.form import formed
from redge_guidance.formed import FormOfStep
from redge_guidance.forming import constrained_logits, formed_logits, together
from redge_guidance.goals import Goals, exchanged
from redge_guidance.gradients import RewardGradients, routes
from redge_guidance.inference import gradients_allowed, outside_inference_mode
from redge_guidance.precision import Autocast
from redge_guidance.prediction import HostLogits, Prediction, distances
from redge_guidance.randomness import check_seed, noise_of
from redge_guidance.reward import AnyReward, Wanted, named_tokens
from redge_guidance.step import DenoisingStep
from redge_guidance.stopping import Stopping, StopRule
from redge_guidance.terms import asks_for_whole_batch
from redge_guidance.trace import Figures, StepTrace, Trace
from redge_guidance.updates import LogProbs, project_to_budget


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

    Attributes:
        config: the settings in force.
        trace: a `Trace`, one `StepTrace` a guided step.

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
    ):
        rewarding, constraint = parted(reward)
        wanted = None if rewarding is None else as_reward(rewarding)
        self.config = GuidanceConfig() if config is None else config
        if not isinstance(self.config, GuidanceConfig):
            raise ValueError(f"`config` must be a GuidanceConfig, got {type(config).__name__}.")
        self._form, wanted = formed(wanted, constraint)
        if wanted is not None:
            routes(wanted, self.config)
        self.trace = Trace()
        self._reward, self._seed, self._index = wanted, check_seed(seed), 0
        self._goals, self._told = Goals(wanted), set[str]()
        self._formed: FormOfStep | None = None  # of the step that the host is taking
        self._stopping = Stopping(stop_when)

    def alike(self) -> "Guidance":
        """The same guidance, of another sampler at the same time; its trace is this one's."""
        other = copy.copy(self)
        other.begin()
        return other

    def begin(self) -> None:
        """A call of the sampler begins: its steps are counted from 0."""
        self._index, self._goals = 0, Goals(self._reward)
        self._stopping = Stopping(self._stopping.rule)

    def settle(self, step: DenoisingStep, tokens: Tensor, positions: Tensor) -> Tensor | None:
        """Told what the host has drawn from the logits of a step that can be settled, `(batch, length)` both.

        Returns:
            What it is to have drawn, `(batch, length)`; None: that.
        """
        formed, self._formed = self._formed, None
        return None if formed is None else formed.settle(tokens, positions)

    def foresee(self, step: DenoisingStep) -> None:
        """Told of the step to come, without logits, before the model is called.

        Raises:
            ValueError: a text that cannot become one that the constraint accepts.
        """
        if self.is_hard and self._form is not None:
            self._form.check(step)

    def end(self) -> None:
        """A call of the sampler is over: a warning for every goal that nothing moved and that is not reached, once."""
        self._goals.report(self._told)
        self._goals = Goals(self._reward)

    def __call__(self, step: DenoisingStep) -> Tensor | None:
        """Guided logits `(free positions, vocabulary)`, float32; None where this step is not to be guided.

        Raises:
            ValueError: a reward of the wrong shape, not finite, or without gradient.
            RuntimeError: a reward with parameters that were made under `torch.inference_mode()`.
        """
        started = time.perf_counter()
        config, index = self.config, self._index
        self._index += 1
        if not step.free.any() or (not self.is_hard and not self._acts(step)):
            return None

        def guided(step: DenoisingStep) -> tuple[Tensor, StepTrace]:
            while True:
                noise = noise_of(step, self._seed, index)
                try:
                    self._formed = None if self._form is None else FormOfStep(self._form, step)
                    return guided_logits(step, self._reward, config, noise, self._goals, self._formed)
                except WrongKind as error:
                    self._reward = exchanged(self._reward, error.reward, as_strings(error))
                    self._goals = Goals(self._reward)

        with gradients_allowed():
            here, logits, figures = outside_inference_mode(step), None, None
            if here.settles and self._stopping.rule is not None:  # some may be guided by themselves
                here = replace(here, settles=False)
            self._formed = None
            going = torch.zeros(len(step.ids), dtype=torch.bool, device=step.ids.device)  # guided by rewards
            if self._acts(step):
                whole = self._reward is not None and asks_for_whole_batch(self._reward)
                logits, figures = self._stopping.guide(here, guided, whole)
                if figures is not None:
                    going = torch.tensor([not one.stopped for one in figures.sequences], device=going.device)
            if self._form is not None and self.is_hard and (here.free.any(-1) & ~going).any():
                noise = noise_of(here, self._seed, index)
                logits, others, self._formed = constrained_logits(here, self._form, noise, going, logits, config)
                figures = others if figures is None else figures
        if figures is not None:
            self.trace.append(replace(figures, seconds=time.perf_counter() - started, step=index))
        return logits

    @property
    def is_hard(self) -> bool:
        """Whether there is a constraint, which holds in every step, whatever the settings of rewards."""
        return self._form is not None and self._form.is_hard

    def _acts(self, step: DenoisingStep) -> bool:
        """Whether rewards count in this step."""
        config = self.config
        rewarding = self._reward is not None or (self._form is not None and self._form.is_rewarding)
        return rewarding and config.scale > 0 and config.start <= step.progress < config.stop


def guided_logits(
    step: DenoisingStep,
    reward: AnyReward | None,
    config: GuidanceConfig,
    noise: Noise,
    goals: Goals | None = None,
    form: FormOfStep | None = None,
) -> tuple[Tensor, StepTrace]:
    """Logits of the free positions, moved toward the reward, and the figures of the step.

    Guidance acts on `p = softmax(logits / temperature)`, what the host draws from. Within `config.support`, and on the
    tokens that the reward names, it moves q; the probability of all other tokens stays what it was. Its own arithmetic
    is float32, inside `torch.autocast` too, in which the reward alone is computed.

    Args:
        step: at least one position of it is free.
        reward, config: as for `Guidance`; None: the form alone counts.
        noise: one generator on the device of the logits, or one for every sequence.
        goals: told what moves and what does not; None: nobody asks.
        form: what texts are to be: q is tilted by the reward, whose samples keep to the form, then conditioned.

    Returns:
        `(free positions, vocabulary)` float32 logits, and a `StepTrace` without seconds.
    """
    ambient = Autocast.here(step.logits.device)
    with torch.no_grad(), Autocast.off(step.logits.device):
        if reward is None:
            assert form is not None
            return formed_logits(step, form, HostLogits(step).logits(), noise, config)
        named = [] if config.support is None else named_tokens(reward, step.tokenizer)
        whole = None if form is None else form.marginals(HostLogits(step).logits(), config.scale)
        model = Prediction(step, config.support, named, None if whole is None else lambda rows, _: whole[rows])
        log_p: LogProbs = model
        log_z, support = model.log_z, model.support
        if model.kept is not None:
            log_z = model.kept.logsumexp(-1, keepdim=True)
            log_p = model.kept - log_z
        mass = (log_z - model.log_z).exp()[:, 0]  # (rows,), probability of the support under p
        draws = Draws(step, support, noise)
        figures = Figures(draws.sequence, len(step.ids))

        def project(log_q: Tensor) -> Tensor:
            if config.kl_budget is None:
                return log_q
            budget = config.kl_budget * step.free.sum(-1).to(log_q.dtype)
            return project_to_budget(log_q, log_p, budget, draws.sequence, mass)

        def along(log_q: Tensor, count: int) -> Tensor:
            assert form is not None
            return form.draws_along(log_q, support, count, noise)

        told = Goals(reward) if goals is None else goals
        ascent = RewardGradients(reward, config, draws, figures, told, ambient, None if form is None else along)
        log_q = config.update(log_p, ascent, project)
        trace = figures.step(step.progress, *distances(log_q, log_p, mass))
        logits = log_q.add_(log_z) if support is None else model.logits().scatter_(-1, support, log_q + log_z)
        if form is not None:
            logits, formed_trace = formed_logits(step, form, logits, noise, config)
            return logits, together(trace, formed_trace)
        if step.temperature != 1:
            logits *= step.temperature
    return logits, trace
