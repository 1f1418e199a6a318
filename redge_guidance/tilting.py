"""One denoising step moved toward a reward: from what the model says to q, and how far that is."""

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from redge_guidance.config import GuidanceConfig
from redge_guidance.draws import Draws, Noise
from redge_guidance.formed import FormOfStep
from redge_guidance.goals import Goals
from redge_guidance.gradients import RewardGradients
from redge_guidance.precision import Autocast
from redge_guidance.prediction import HostLogits, Moved, Prediction, distances
from redge_guidance.reward import AnyReward, named_tokens
from redge_guidance.step import DenoisingStep
from redge_guidance.strength import Strength, strength_of, update_of
from redge_guidance.tilts import Kept, tilt_of
from redge_guidance.trace import Figures, StepTrace
from redge_guidance.updates import LogProbs, Start, project_to_budget


class Tilted(NamedTuple):
    """What a reward makes of a step.

    Attributes:
        moved: what is to be drawn from.
        log_q, log_p: `(free positions, S)` in nats, normalised, within the support.
        support: `(free positions, S)` int64, token ids of the columns; None: column = id.
        strengths, shares: `(free positions, 1)`, of the last update, as in `updates.Start`.
        trace: without seconds.
    """

    moved: Moved
    log_q: Tensor
    log_p: LogProbs
    support: Tensor | None
    strengths: Tensor
    shares: Tensor
    trace: StepTrace

    def tilts(self) -> Kept:
        return Kept(tilt_of(self.log_q, self.log_p[:]), self.strengths, self.shares, self.support)


def tilted(
    step: DenoisingStep,
    reward: AnyReward,
    config: GuidanceConfig,
    strength: Strength,
    noise: Noise,
    goals: Goals | None = None,
    form: FormOfStep | None = None,
    start: tuple[Tensor, Kept] | None = None,
    ceilings: Tensor | None = None,
) -> Tilted:
    """What the reward makes of the free positions of a step.

    Guidance acts on `p = softmax(logits / temperature)`, what the host draws from. Within `config.support`, and on the
    tokens that the reward names, it moves q; the probability of all other tokens stays what it was. Its own arithmetic
    is float32, inside `torch.autocast` too, in which the reward alone is computed.

    Args:
        step: at least one position of it is free.
        reward, config: as for `Guidance`.
        strength: what is pursued, and at what cost.
        noise: one generator on the device of the logits, or one for every sequence.
        goals: told what moves and what does not; None: nobody asks.
        form: what texts are to be, which the reward's samples keep to; None: anything.
        start: which free positions have a tilt of the step before, `(free positions,)` bool, and these; None: none.
        ceilings: `(batch,)`, the most that strengths may be, nan where that is to be found; None: everywhere.

    Raises:
        ValueError: as for `Guidance`.
    """
    ambient = Autocast.here(step.logits.device)
    with torch.no_grad(), Autocast.off(step.logits.device):
        named = [] if config.support is None else named_tokens(reward, step.tokenizer)
        whole = None if form is None else form.marginals(HostLogits(step).logits(), strength.forms)
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
            if strength.budget is None or strength.scale is None:  # its strengths keep within the budget
                return log_q
            budget = strength.budget * step.free.sum(-1).to(log_q.dtype)
            return project_to_budget(log_q, log_p, budget, draws.sequence, mass)

        def along(log_q: Tensor, count: int) -> Tensor:
            assert form is not None
            return form.draws_along(log_q, support, count, noise)

        ascent = RewardGradients(
            reward,
            config,
            strength,
            log_p,
            mass,
            draws,
            figures,
            Goals(reward) if goals is None else goals,
            ambient,
            None if form is None else along,
            _started(log_p, support, start, config.warm_start),
            ceilings,
        )
        log_q = update_of(reward, config)(log_p, ascent, project)
        trace = figures.step(step.progress, *distances(log_q, log_p, mass))
    return Tilted(Moved(step, log_q + log_z, support), log_q, log_p, support, *ascent.last, trace)


def guided_logits(
    step: DenoisingStep, reward: AnyReward, config: GuidanceConfig, noise: Noise, goals: Goals | None = None
) -> tuple[Tensor, StepTrace]:
    """Logits `(free positions, vocabulary)` for the host, moved by `tilted`, and the figures of the step."""
    images = step.images is not None
    config = replace(config, update=update_of(reward, config, images))
    found = tilted(step, reward, config, strength_of(reward, config, images), noise, goals)
    logits = found.moved.logits()
    return logits if step.temperature == 1 else logits.mul_(step.temperature), found.trace


def _started(log_p: LogProbs, support: Tensor | None, start: tuple[Tensor, Kept] | None, share: float) -> Start | None:
    """`p exp(share * tilt)`; None: p."""
    if start is None or share == 0:
        return None
    found, kept = start
    log_q = log_p[:].clone()
    tilts = kept.on(None if support is None else support[found])
    log_q[found] = torch.add(log_q[found], tilts, alpha=share).log_softmax(-1)
    strengths, shares = torch.zeros_like(log_q[:, :1]), torch.zeros_like(log_q[:, :1])
    strengths[found], shares[found] = kept.strengths, share * kept.shares
    return Start(log_q, strengths, shares)
