"""Reward gradients at a candidate q: by backpropagation through samples, or from the rewards of samples alone."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from redge_guidance.config import GuidanceConfig
from redge_guidance.draws import Draws
from redge_guidance.estimators import Estimator, ReinforceLOO, ScoreFunction
from redge_guidance.evaluation import checked
from redge_guidance.goals import Goals
from redge_guidance.precision import Autocast
from redge_guidance.reward import AnyReward, RewardSum
from redge_guidance.sample import Sample
from redge_guidance.strength import Slope, Strength, dearest, least_of, least_strengths
from redge_guidance.terms import split
from redge_guidance.trace import Figures
from redge_guidance.updates import Gradient, LogProbs, Start

_MOST_TOGETHER = 2**24  # numbers in the samples that are held at once, 64 MiB


class RewardGradients:
    """The `Ascent` of one step: draws, calls the reward, differentiates, and keeps the figures.

    What has a gradient is differentiated through the samples of the estimator. What has none, or everything where the
    estimator is a score function, is weighed by draws of its own.

    Args:
        reward: see `Guidance`.
        config: its estimator and number of draws count here.
        strength: what is pursued, and at what cost.
        log_p: `(rows, S)`, what the model says, in nats.
        mass: `(rows,)`, the probability of these S tokens.
        draws: of the step.
        figures: where rewards, gradients and notes go.
        goals: told what moves and what does not.
        ambient: how the reward is computed; None: as it is where the gradients are asked for.
        along: from log_q `(rows, S)` and a number of draws to what each is drawn from, `(draws, rows, S)`; None: log_q.
        start: where q starts; None: at p.
        ceilings: `(batch,)`, the most that strengths may be, nan where that is not known yet; None: nowhere.

    Attributes:
        last: strengths and shares `(rows, 1)` of the last update, 0 before.

    Raises:
        ValueError: one draw for a reward without gradient. When called: a reward of the wrong shape, not finite, or
            without gradient.
    """

    def __init__(
        self,
        reward: AnyReward,
        config: GuidanceConfig,
        strength: Strength,
        log_p: LogProbs,
        mass: Tensor,
        draws: Draws,
        figures: Figures,
        goals: Goals,
        ambient: Autocast | None = None,
        along: Callable[[Tensor, int], Tensor] | None = None,
        start: Start | None = None,
        ceilings: Tensor | None = None,
    ):
        self._along, self.start, self._ceilings, self.limit = along, start, ceilings, strength.tilt
        self._first = strength.most is None and (ceilings is None or bool(ceilings.isnan().any()))
        self._strength, self._log_p, self._mass = strength, log_p, mass
        self._goals, self._ambient = goals, ambient
        self._draws, self._config, self._figures = draws, config, figures
        self._parts = routes(reward, config)
        self._reward: Tensor = torch.zeros(())  # of every sequence, mean of the last draws
        self._lowest: Tensor = torch.zeros(())  # of these draws
        nothing = torch.zeros(len(draws.sequence), 1, device=draws.sequence.device)
        self.last = (nothing, nothing)

    def gradients(self, log_q: Tensor) -> list[Gradient]:
        found = [self._gradient(reward, estimator, log_q) for reward, estimator in self._parts]
        self._reward = torch.stack([rewards.mean(0) for _, rewards in found]).sum(0)
        self._lowest = torch.stack([rewards.amin(0) for _, rewards in found]).sum(0)
        return [gradient for gradient, _ in found]

    def strengths(self, log_q: Tensor, grad: Tensor, mean: Tensor, shares: Tensor) -> Tensor:
        sequence, strength = self._draws.sequence, self._strength
        if strength.scale is not None:
            found = torch.full_like(self._reward, strength.scale)
            self._figures.push(found)
            self.last = (found[sequence, None], shares)
            return found[sequence, None]
        free = torch.bincount(sequence, minlength=len(self._reward)).to(grad.dtype)
        drawn = Slope(self._reward, grad, self._log_p, log_q, sequence, self._mass)
        unknown = torch.full_like(self._reward, torch.nan) if self._ceilings is None else self._ceilings
        if strength.most is not None:
            unknown = torch.full_like(unknown, strength.most)
        ceilings = unknown
        if strength.budget is not None and bool(unknown.isnan().any()):
            ceilings = torch.where(unknown.isnan(), dearest(drawn, strength.budget * free), unknown)
        share = torch.ones_like(self._reward).index_copy_(0, sequence, shares[:, 0])
        along = replace(drawn, gradient=mean, limit=self.limit)
        limit = None if strength.limit is None else strength.limit * free
        solved = least_strengths(along, strength.target, strength.factor * ceilings, limit, share)
        # a reward that is where it should be says nothing of what it would cost to get there
        self._ceilings = ceilings.masked_fill(unknown.isnan() & solved.at_rest, torch.nan)
        reached = at_rest = None
        if strength.target is not None:
            reached, at_rest = solved.reaches & (self._lowest >= least_of(strength.target)), solved.at_rest
        self._figures.push(solved.strengths, self._ceilings, reached, at_rest)
        self.last = (solved.strengths[sequence, None], shares)
        return solved.strengths[sequence, None]

    def used(self, grad: Tensor) -> None:
        self._figures.add(self._reward, torch.linalg.vector_norm(grad, dim=-1).square())

    def _gradient(self, reward: AnyReward, estimator: Estimator, log_q: Tensor) -> tuple[Gradient, Tensor]:
        if isinstance(estimator, ScoreFunction):
            return self._by_score(reward, estimator, log_q)
        return self._through_samples(reward, estimator, log_q)

    def _through_samples(self, reward: AnyReward, estimator: Estimator, log_q: Tensor) -> tuple[Gradient, Tensor]:
        """The mean gradient of the draws, and the rewards `(draws, batch)`.

        They go through the reward together, or in as many parts as their size asks for.
        """
        draws = self._config.draws_of(estimator, self._first)
        together = min(draws, max(1, _MOST_TOGETHER // max(log_q.numel(), 1)))
        grads: Tensor | None = None
        rewards = []
        for first in range(0, draws, together):
            count = min(together, draws - first)
            grad, rewards_of_draws = self._through_draws(reward, estimator, log_q, count)
            share = count / draws
            grad = grad if share == 1 else grad * share
            grads = grad if grads is None else grads.add_(grad)
            del grad
            rewards.append(rewards_of_draws)
        assert grads is not None
        if not torch.linalg.vector_norm(grads, ord=torch.inf).isfinite():
            raise ValueError("`reward` has a gradient that is NaN or infinite; look for a log or a division at 0.")
        return Gradient(grads, estimator.gradient_at), torch.cat(rewards)

    def _through_draws(
        self, reward: AnyReward, estimator: Estimator, log_q: Tensor, count: int
    ) -> tuple[Tensor, Tensor]:
        """Gradient of the summed reward, averaged over `count` draws, and the rewards `(count, batch)`."""
        at_sample = estimator.gradient_at == "sample"
        with torch.enable_grad():
            logits = log_q.detach().requires_grad_(not at_sample)
            drawn = self._draws.draw(estimator, self._drawn_from(logits, count), count)
            target: Any = logits
            if at_sample:  # no leaf: a graph keeps its leaves alive, and the sample is as large as its gradient
                drawn = drawn.detach().add_(torch.zeros((), device=drawn.device, requires_grad=True))
                target = torch.autograd.graph.get_gradient_edge(drawn)
            sample = self._draws.sample(drawn, estimator.one_hot, log_q.detach())
            del drawn
            rewards, values = self._ask(reward, sample)
            del sample
            if not rewards.requires_grad:
                raise ValueError(_without_gradient("returned a tensor without gradient: compute it from"))
            if self._goals.waiting(reward) and len(values) > 1:
                self._goals.slopes(reward, values, target, log_q)
            (grad,) = torch.autograd.grad(rewards.sum() / count, target, allow_unused=True)
        if grad is None:
            raise ValueError(_without_gradient("has no gradient with respect to the tokens: it must be computed from"))
        if len(values) == 1:
            self._goals.slope(reward, grad, log_q)
        if at_sample:
            grad = grad[0] if count == 1 else grad.sum(0)
        return grad, rewards.detach().float().view(count, -1)

    def _by_score(self, reward: AnyReward, estimator: ScoreFunction, log_q: Tensor) -> tuple[Gradient, Tensor]:
        count = self._config.draws_of(estimator, self._first)
        drawn = self._draws.draw(estimator, self._drawn_from(log_q, count), count)
        rewards, values = self._ask(reward, self._draws.sample(drawn, estimator.one_hot, log_q))
        self._goals.differences(reward, values, count)
        by_sequence = rewards.detach().float().view(count, -1)
        grad = estimator.gradient(log_q, by_sequence[:, self._draws.sequence], drawn)
        return Gradient(grad, "logits", resolution=1 / count), by_sequence

    def _drawn_from(self, logits: Tensor, count: int) -> Tensor:
        """`logits`, or, where texts have a form, of the tokens that keep to it; with the gradient of `logits`."""
        if self._along is None:
            return logits
        along = self._along(logits.detach(), count)
        return logits + (along - logits.detach()).masked_fill(along == -torch.inf, -torch.inf)

    def _ask(self, reward: AnyReward, sample: Sample) -> tuple[Tensor, list[Tensor]]:
        """Rewards `(draws * batch,)`, checked, and those of every term of a sum."""
        with nullcontext() if self._ambient is None else self._ambient.in_force():
            if isinstance(reward, RewardSum):
                values = reward.values(sample)
                rewards = checked(reward.total(values), len(sample), "reward")
            else:
                rewards = checked(sample.evaluate(reward), len(sample), "reward")
                values = [rewards]
        self._figures.note(sample.notes, len(sample))
        if self._goals.waiting(reward):
            self._goals.seen(reward, values, sample)
        return rewards, values


def routes(reward: AnyReward, config: GuidanceConfig) -> list[tuple[AnyReward, Estimator]]:
    """Which part of a reward is climbed by which estimator: the one place that asks what has a gradient.

    Raises:
        ValueError: a part without gradient, and only one draw.
    """
    if isinstance(config.estimator, ScoreFunction):
        return [(reward, config.estimator)]
    smooth, black_box = split(reward)
    if black_box is not None and config.draws_of(ReinforceLOO()) < 2:
        raise ValueError(
            f"`num_draws` must be >= 2 for a reward without gradient, got {config.num_draws}; each draw is compared "
            "with the mean of the others. 32 or more serve better."
        )
    parts: list[tuple[AnyReward, Estimator]] = [] if smooth is None else [(smooth, config.estimator)]
    return parts if black_box is None else [*parts, (black_box, ReinforceLOO())]


def _without_gradient(found: str) -> str:
    return (
        f"`reward` {found} `tokens.embed(table)`, `tokens.weights` or the pixels, and do not detach it or use "
        "`torch.no_grad()`; hard ids and strings carry none: make a reward that has none a `BlackBoxReward`, or use "
        "the estimator `reinforce_loo`."
    )
