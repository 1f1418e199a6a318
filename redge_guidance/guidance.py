"""Guidance of one denoising step: the reward's gradient, carried into the logits."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from redge_guidance.config import GuidanceConfig
from redge_guidance.hosts.base import DenoisingStep
from redge_guidance.relaxed import RelaxedTokens
from redge_guidance.text import text_mask
from redge_guidance.updates import kl, project_to_budget

Reward = Callable[[RelaxedTokens], Tensor]

_ROWS = 8  # of a large vocabulary that are reduced at once: they stay in the cache


@dataclass(frozen=True)
class StepTrace:
    """Figures of one guided denoising step.

    Attributes:
        progress: share of the denoising steps done before this one.
        reward: mean reward of the relaxed samples drawn in this step, over batch, draws and updates.
        kl: KL(q || p) after the step's updates, in nats per free token.
        grad_norm: root mean square over the free positions of the norm of the gradient that the update rule used, per
            unit of reward.
        entropy: of q, in nats per free token.
        seconds: spent on guidance, the model and the scheduler left out.
    """

    progress: float
    reward: float
    kl: float
    grad_norm: float
    entropy: float
    seconds: float


class Guidance:
    """A reward, settings and randomness: moves the logits of denoising steps, and notes what it did.

    Args:
        reward: any callable from `RelaxedTokens` to a differentiable tensor `(batch,)`, higher is better. It need not
            be differentiable for the estimator `reinforce_loo`.
        config: `GuidanceConfig()` when None.
        seed: of guidance's own generator, never the host's, which runs on through all steps.

    Attributes:
        config: the settings in force.
        trace: a list of `StepTrace`, one entry a guided step.

    Raises:
        ValueError: a reward that is not callable, or a config of another type.
    """

    def __init__(self, reward: Reward, config: GuidanceConfig | None = None, seed: int = 0):
        if not callable(reward):
            raise ValueError(
                f"`reward` must be a callable from RelaxedTokens to (batch,), got {type(reward).__name__}."
            )
        self.config = GuidanceConfig() if config is None else config
        if not isinstance(self.config, GuidanceConfig):
            raise ValueError(f"`config` must be a GuidanceConfig, got {type(config).__name__}.")
        self.trace: list[StepTrace] = []
        self._reward, self._seed = reward, seed
        self._generator: torch.Generator | None = None

    def __call__(self, step: DenoisingStep) -> Tensor | None:
        """Guided logits `(free positions, vocabulary)`, float32; None where this step is not to be guided.

        Raises:
            ValueError: a reward of the wrong shape, not finite, or without gradient.
            RuntimeError: under `torch.inference_mode()`.
        """
        started = time.perf_counter()
        config = self.config
        if config.scale == 0 or not config.start <= step.progress < config.stop or not step.free.any():
            return None
        if torch.is_inference_mode_enabled():
            raise RuntimeError(
                "guidance needs gradients and cannot run under `torch.inference_mode()`; use `torch.no_grad()` instead."
            )
        logits, figures = guided_logits(step, self._reward, config, self._random(step.logits.device))
        self.trace.append(StepTrace(step.progress, *figures, seconds=time.perf_counter() - started))
        return logits

    def _random(self, device: torch.device) -> torch.Generator:
        if self._generator is None or self._generator.device != device:
            self._generator = torch.Generator(device).manual_seed(self._seed)
        return self._generator


def guided_logits(
    step: DenoisingStep, reward: Reward, config: GuidanceConfig, generator: torch.Generator
) -> tuple[Tensor, tuple[float, float, float, float]]:
    """Logits of the free positions, moved toward the reward, and the step's reward, KL, gradient norm and entropy.

    Guidance acts on `p = softmax(logits / temperature)`, what the host draws from. Within `config.support` it moves q;
    the probability of all other tokens stays what it was.

    Returns:
        `(free positions, vocabulary)` float32 logits, and the four figures of `StepTrace` in its order.
    """
    with torch.no_grad():
        scaled = step.logits.float()
        if step.temperature != 1:
            scaled = scaled / step.temperature
        if step.reserved:
            reserved = torch.tensor(step.reserved, device=scaled.device)
            scaled = scaled.index_fill(-1, reserved, -torch.inf)
        kept, support = scaled, None
        if config.support is not None and config.support < scaled.shape[-1]:
            kept, support = scaled.topk(config.support, dim=-1)
        log_z = kept.logsumexp(-1, keepdim=True)
        log_p = kept - log_z
        total = torch.cat([rows.logsumexp(-1, keepdim=True) for rows in scaled.split(_ROWS)])
        mass = (log_z - total).exp()[:, 0]  # (rows,), probability of the support under p
        ascent = _Ascent(step, reward, config, generator, support)
        sequence = step.free.nonzero()[:, 0]

        def project(log_q: Tensor) -> Tensor:
            if config.kl_budget is None:
                return log_q
            budget = config.kl_budget * step.free.sum(-1).to(log_q.dtype)
            return project_to_budget(log_q, log_p, budget, sequence, mass)

        log_q = config.update(log_p, ascent, project)  # type: ignore[operator]  # names were resolved by the config
        new = log_q + log_z
        logits = new if support is None else scaled.scatter(-1, support, new)
        if step.temperature != 1:
            logits *= step.temperature
        entropy = -(log_q.exp() * log_q.masked_fill(log_q == -torch.inf, 0)).sum(-1).mean()
        figures = torch.stack([ascent.mean_reward(), (mass * kl(log_q, log_p)).mean(), ascent.grad_norm(), entropy])
        reward_mean, kl_mean, grad_norm, entropy_mean = figures.tolist()
    return logits, (reward_mean, kl_mean, grad_norm, entropy_mean)


class _Ascent:
    """Reward gradients at a candidate q, for the update rules: draws, calls the reward, checks it, differentiates."""

    def __init__(
        self,
        step: DenoisingStep,
        reward: Reward,
        config: GuidanceConfig,
        generator: torch.Generator,
        support: Tensor | None,
    ):
        self.scale = config.scale
        self._step, self._reward, self._config = step, reward, config
        self._generator, self._support = generator, support
        self._rewards: list[Tensor] = []
        self._grad_norms: list[Tensor] = []

    def grad_logits(self, log_q: Tensor) -> Tensor:
        return self._gradient(log_q, at_sample=False)

    def grad_sample(self, log_q: Tensor, damping: float) -> Tensor:
        if getattr(self._config.estimator, "differentiates_sample", False):
            return self._gradient(log_q, at_sample=True)
        probs = log_q.exp()
        return self._gradient(log_q, at_sample=False) / (probs + damping).clamp(min=torch.finfo(probs.dtype).tiny)

    def mean_reward(self) -> Tensor:
        return torch.stack(self._rewards).mean()

    def grad_norm(self) -> Tensor:
        return torch.stack(self._grad_norms).mean()

    def _gradient(self, log_q: Tensor, at_sample: bool) -> Tensor:
        """Gradient of the summed reward, averaged over the draws, by the sample or by the logits: `(rows, S)`."""
        if hasattr(self._config.estimator, "gradient"):
            return self._score_gradient(log_q)
        draws = self._config.num_samples
        with torch.enable_grad():
            logits = log_q.detach().requires_grad_()
            expanded = logits.expand(draws, *logits.shape)
            sample = self._config.estimator(expanded, hard=True, generator=self._generator)  # type: ignore[operator]
            if at_sample:
                sample = sample.detach().requires_grad_()
            rewards = self._call_reward(self._relax(sample))
            target = sample if at_sample else logits
            (grad,) = torch.autograd.grad(rewards.sum() / draws, target, allow_unused=True)
        if grad is None:
            raise ValueError(
                "`reward` has no gradient with respect to the tokens: it must be computed from `tokens.embed(table)` "
                "or `tokens.weights`; hard ids and strings carry no gradient and need the estimator `reinforce_loo`."
            )
        grad = grad.sum(0) if at_sample else grad
        if not grad.isfinite().all():
            raise ValueError("`reward` has a gradient that is NaN or infinite; look for a log or a division at 0.")
        return self._noted(rewards, grad)

    def _score_gradient(self, log_q: Tensor) -> Tensor:
        """The same by the logits, from rewards alone: the estimator has a `gradient` of its own."""
        draws, estimator = self._config.num_samples, self._config.estimator
        sample = estimator(log_q.expand(draws, *log_q.shape), generator=self._generator)  # type: ignore[operator]
        rewards = self._call_reward(self._relax(sample), differentiable=False)
        by_row = rewards.float().view(draws, -1)[:, self._step.free.nonzero()[:, 0]]
        return self._noted(rewards, estimator.gradient(log_q, by_row, sample))  # type: ignore[union-attr]

    def _noted(self, rewards: Tensor, grad: Tensor) -> Tensor:
        self._rewards.append(rewards.detach().float().mean())
        self._grad_norms.append(grad.square().sum(-1).mean().sqrt())
        return grad

    def _relax(self, sample: Tensor) -> RelaxedTokens:
        """The batch once for every draw, draw by draw, with `sample` `(draws, rows, S)` at the free positions."""
        draws, step = len(sample), self._step
        free = step.free.repeat(draws, 1)
        support = None if self._support is None else self._support.repeat(draws, 1)
        weights = sample.flatten(0, 1)
        index = weights.detach().argmax(-1, keepdim=True)
        drawn = index if support is None else support.gather(-1, index)
        ids = step.ids.repeat(draws, 1).masked_scatter(free, drawn)
        given = None if step.given is None else step.given.repeat(draws, 1)
        mask = text_mask(ids, step.tokenizer, step.attention_mask.repeat(draws, 1), given)
        one_hot = getattr(self._config.estimator, "one_hot", True)
        return RelaxedTokens(ids, free, weights, support, one_hot, mask, step.tokenizer)

    def _call_reward(self, tokens: RelaxedTokens, differentiable: bool = True) -> Tensor:
        rewards = self._reward(tokens)
        if not isinstance(rewards, Tensor) or not torch.is_floating_point(rewards):
            raise ValueError(f"`reward` must return a floating point tensor, got {_kind(rewards)}.")
        if rewards.shape != (len(tokens),):
            hint = "do not sum or average over the batch" if rewards.ndim == 0 else "return one number a sequence"
            raise ValueError(f"`reward` must return shape ({len(tokens)},), got {tuple(rewards.shape)}; {hint}.")
        if not rewards.isfinite().all():
            raise ValueError("`reward` returned NaN or infinity; make it finite for every sequence.")
        if differentiable and not rewards.requires_grad:
            raise ValueError(
                "`reward` returned a tensor without gradient: compute it from `tokens.embed(table)` or "
                "`tokens.weights`, and do not detach it or use `torch.no_grad()`; a reward that has none needs "
                "the estimator `reinforce_loo`."
            )
        return rewards


def _kind(value: Any) -> str:
    return f"a tensor of {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
