"""Guidance of one denoising step: the reward's gradient, carried into the logits."""

import time
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from redge_guidance.config import GuidanceConfig
from redge_guidance.estimators import ReinforceLOO
from redge_guidance.hosts.base import DenoisingStep
from redge_guidance.prediction import Prediction, distances
from redge_guidance.reward import AnyReward, checked, evaluate, named_tokens, split
from redge_guidance.samples.tokens import RelaxedTokens
from redge_guidance.text import text_mask
from redge_guidance.updates import LogProbs, project_to_budget

_MOST_TOGETHER = 2**24  # numbers in the samples that are held at once, 64 MiB


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
        notes: figures that the reward noted on its tokens, means over the updates: the terms of a sum by name,
            `"coverage"` where a reward has another tokenizer.
    """

    progress: float
    reward: float
    kl: float
    grad_norm: float
    entropy: float
    seconds: float
    notes: dict[str, float] = field(default_factory=dict)


class Guidance:
    """A reward, settings and randomness: moves the logits of denoising steps, and notes what it did.

    Args:
        reward: any callable from `RelaxedTokens`, or from pixels `(batch, 3, height, width)` in [0, 1] where the
            pipeline makes images, to a differentiable tensor `(batch,)`, higher is better; on images also anything
            with `score(pixels, prompts)`. It need not be differentiable for the estimator `reinforce_loo`, nor where
            it, or a term of a sum, says so.
        config: `GuidanceConfig()` when None.
        seed: of guidance's own generator, never the host's, which runs on through all steps.

    Attributes:
        config: the settings in force.
        trace: a list of `StepTrace`, one entry a guided step.

    Raises:
        ValueError: a reward that is not callable, a config of another type, or one draw for a reward without gradient.
    """

    def __init__(self, reward: AnyReward, config: GuidanceConfig | None = None, seed: int = 0):
        if not callable(reward) and not hasattr(reward, "score"):
            raise ValueError(
                f"`reward` must be a callable from RelaxedTokens, or pixels, to (batch,), got {type(reward).__name__}."
            )
        self.config = GuidanceConfig() if config is None else config
        if not isinstance(self.config, GuidanceConfig):
            raise ValueError(f"`config` must be a GuidanceConfig, got {type(config).__name__}.")
        if split(reward)[1] is not None and self.config.num_samples < 2:
            raise ValueError(
                f"`num_samples` must be >= 2 for a reward without gradient, got {self.config.num_samples}; each draw "
                "is compared with the mean of the others. 32 or more serve better."
            )
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
        logits, figures, notes = guided_logits(step, self._reward, config, self._random(step.logits.device))
        seconds = time.perf_counter() - started
        self.trace.append(StepTrace(step.progress, *figures, seconds=seconds, notes=notes))
        return logits

    def _random(self, device: torch.device) -> torch.Generator:
        if self._generator is None or self._generator.device != device:
            self._generator = torch.Generator(device).manual_seed(self._seed)
        return self._generator


def guided_logits(
    step: DenoisingStep, reward: AnyReward, config: GuidanceConfig, generator: torch.Generator
) -> tuple[Tensor, tuple[float, float, float, float], dict[str, float]]:
    """Logits of the free positions, moved toward the reward, and the step's reward, KL, gradient norm and entropy.

    Guidance acts on `p = softmax(logits / temperature)`, what the host draws from. Within `config.support`, and on the
    tokens that the reward names, it moves q; the probability of all other tokens stays what it was.

    Returns:
        `(free positions, vocabulary)` float32 logits, the four figures of `StepTrace` in its order, and its notes.
    """
    with torch.no_grad():
        named = [] if config.support is None else named_tokens(reward, step.tokenizer)
        model = Prediction(step, config.support, named)
        log_p: LogProbs = model
        log_z, support = model.log_z, model.support
        if model.kept is not None:
            log_z = model.kept.logsumexp(-1, keepdim=True)
            log_p = model.kept - log_z
        mass = (log_z - model.log_z).exp()[:, 0]  # (rows,), probability of the support under p
        ascent = _Ascent(step, reward, config, generator, support)
        sequence = step.free.nonzero()[:, 0]

        def project(log_q: Tensor) -> Tensor:
            if config.kl_budget is None:
                return log_q
            budget = config.kl_budget * step.free.sum(-1).to(log_q.dtype)
            return project_to_budget(log_q, log_p, budget, sequence, mass)

        log_q: Tensor = config.update(log_p, ascent, project)  # type: ignore[operator]  # the config resolved names
        figures = torch.stack([ascent.mean_reward(), *distances(log_q, log_p, mass), ascent.grad_norm()])
        reward_mean, kl_mean, entropy, grad_norm = figures.tolist()
        logits = log_q.add_(log_z) if support is None else model.logits().scatter_(-1, support, log_q + log_z)
        if step.temperature != 1:
            logits *= step.temperature
    return logits, (reward_mean, kl_mean, grad_norm, entropy), ascent.notes()


class _Ascent:
    """Reward gradients at a candidate q, for the update rules: draws, calls the reward, checks it, differentiates.

    What has a gradient is differentiated through the estimator's samples; what has none, or everything where the
    estimator is a score function, is weighed by draws of its own.
    """

    def __init__(
        self,
        step: DenoisingStep,
        reward: AnyReward,
        config: GuidanceConfig,
        generator: torch.Generator,
        support: Tensor | None,
    ):
        self.scale = config.scale
        self._step, self._config, self._generator, self._support = step, config, generator, support
        self._smooth, self._black_box = split(reward)
        self._score_function: Any = ReinforceLOO()
        if hasattr(config.estimator, "gradient"):
            self._smooth, self._black_box, self._score_function = None, reward, config.estimator
        self._rewards: list[Tensor] = []  # of every update
        self._grad_norms: list[Tensor] = []
        self._notes: dict[str, list[Tensor]] = {}

    def grad_logits(self, log_q: Tensor) -> Tensor:
        parts = []
        if self._smooth is not None:
            parts.append(self._gradient(log_q, at_sample=False))
        if self._black_box is not None:
            parts.append(self._score_gradient(log_q))
        return self._noted(parts)

    def grad_sample(self, log_q: Tensor, damping: float) -> Tensor:
        parts = []
        if self._smooth is not None:
            at_sample = getattr(self._config.estimator, "differentiates_sample", False)
            grad, reward = self._gradient(log_q, at_sample)
            parts.append((grad if at_sample else _per_probability(grad, log_q, damping), reward))
        if self._black_box is not None:
            # the mean advantage of the draws that have a token, shrunk as if one more had it and none
            grad, reward = self._score_gradient(log_q)
            parts.append((_per_probability(grad, log_q, max(damping, 1 / self._config.num_samples)), reward))
        return self._noted(parts)

    def mean_reward(self) -> Tensor:
        return torch.stack(self._rewards).mean()

    def grad_norm(self) -> Tensor:
        return torch.stack(self._grad_norms).mean()

    def notes(self) -> dict[str, float]:
        names = list(self._notes)
        values = torch.stack([torch.stack(self._notes[name]).mean().cpu() for name in names]).tolist() if names else []
        return dict(zip(names, values, strict=True))

    def _gradient(self, log_q: Tensor, at_sample: bool) -> tuple[Tensor, Tensor]:
        """Gradient of the summed reward, averaged over the draws, by the sample or by the logits: `(rows, S)`.

        The draws go through the reward together, or in as many parts as their size asks for.
        """
        draws = self._config.num_samples
        together = min(draws, max(1, _MOST_TOGETHER // max(log_q.numel(), 1)))
        grads, rewards = torch.zeros(()), torch.zeros((), device=log_q.device)
        for first in range(0, draws, together):
            count = min(together, draws - first)
            grad, reward = self._gradient_of_draws(log_q, count, at_sample)
            share = count / draws
            if first > 0:
                grads.add_(grad, alpha=share)
            else:
                grads = grad if share == 1 else grad * share
            del grad
            rewards += share * reward
        if not torch.linalg.vector_norm(grads, ord=torch.inf).isfinite():
            raise ValueError("`reward` has a gradient that is NaN or infinite; look for a log or a division at 0.")
        return grads, rewards

    def _gradient_of_draws(self, log_q: Tensor, draws: int, at_sample: bool) -> tuple[Tensor, Tensor]:
        estimator, one_hot = self._config.estimator, getattr(self._config.estimator, "one_hot", True)
        with torch.enable_grad():
            logits = log_q.detach().requires_grad_(not at_sample)
            expanded = logits.expand(draws, *logits.shape)
            sample = estimator(expanded, hard=True, generator=self._generator)  # type: ignore[operator]
            target: Any = logits
            if at_sample:  # no leaf: a graph keeps its leaves alive, and the sample is as large as its gradient
                sample = sample.detach().add_(torch.zeros((), device=sample.device, requires_grad=True))
                target = torch.autograd.graph.get_gradient_edge(sample)
            rewards = self._call(self._smooth, self._relax(sample, one_hot))
            del sample
            if not rewards.requires_grad:
                raise ValueError(
                    "`reward` returned a tensor without gradient: compute it from `tokens.embed(table)`, "
                    "`tokens.weights` or the pixels, and do not detach it or use `torch.no_grad()`; make one that has "
                    "none a `BlackBoxReward`, or use the estimator `reinforce_loo`."
                )
            (grad,) = torch.autograd.grad(rewards.sum() / draws, target, allow_unused=True)
        if grad is None:
            raise ValueError(
                "`reward` has no gradient with respect to the tokens: it must be computed from `tokens.embed(table)`, "
                "`tokens.weights` or the pixels; hard ids and strings carry none: make it a `BlackBoxReward`, or use "
                "the estimator `reinforce_loo`."
            )
        if at_sample:
            grad = grad[0] if draws == 1 else grad.sum(0)
        return grad, rewards.detach().float().mean()

    def _score_gradient(self, log_q: Tensor) -> tuple[Tensor, Tensor]:
        """The same by the logits, from rewards alone."""
        draws = self._config.num_samples
        sample = self._score_function(log_q.expand(draws, *log_q.shape), generator=self._generator)
        rewards = self._call(self._black_box, self._relax(sample, one_hot=True)).detach().float()
        by_row = rewards.view(draws, -1)[:, self._step.free.nonzero()[:, 0]]
        return self._score_function.gradient(log_q, by_row, sample), rewards.mean()

    def _noted(self, parts: list[tuple[Tensor, Tensor]]) -> Tensor:
        """The sum of the parts' gradients; it and their rewards go into the figures of the step."""
        grad = parts[0][0] if len(parts) == 1 else parts[0][0] + parts[1][0]
        self._rewards.append(torch.stack([reward for _, reward in parts]).sum())
        self._grad_norms.append(torch.linalg.vector_norm(grad, dim=-1).square().mean().sqrt())
        return grad

    def _call(self, reward: AnyReward | None, tokens: RelaxedTokens) -> Tensor:
        assert reward is not None
        decoder, chunk_size = self._step.images, self._config.decode_chunk_size
        sample = tokens if decoder is None else decoder.images(tokens, chunk_size)
        rewards = checked(evaluate(reward, sample), len(tokens), "reward")
        for name, value in tokens.notes.items():
            self._notes.setdefault(name, []).append(torch.as_tensor(value, dtype=torch.float32).detach())
        return rewards

    def _relax(self, sample: Tensor, one_hot: bool) -> RelaxedTokens:
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
        return RelaxedTokens(ids, free, weights, support, one_hot, mask, step.tokenizer, given, draws)


def _per_probability(grad: Tensor, log_q: Tensor, damping: float) -> Tensor:
    """`g / (q + damping)`: from the gradient by the logits to that by the sample, up to a constant a row."""
    probs = log_q.exp()
    return grad / (probs + damping).clamp(min=torch.finfo(probs.dtype).tiny)
