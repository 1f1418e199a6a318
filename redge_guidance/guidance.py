"""`guide`: attach a reward to a pipeline by its scheduler's `step`."""

import functools
import inspect
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from redge_guidance.config import GuidanceConfig
from redge_guidance.hosts import DenoisingStep, find_host
from redge_guidance.relaxed import RelaxedTokens
from redge_guidance.text import text_mask
from redge_guidance.updates import kl, project_to_budget

Reward = Callable[[RelaxedTokens], Tensor]

_MARK = "_redge_guidance_handle"


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


class GuidanceHandle:
    """A reward attached to a pipeline, as returned by `guide`. A context manager that removes itself on exit.

    Attributes:
        config: the settings in force.
        trace: a list of `StepTrace`, one entry a guided step since the handle was made.
    """

    def __init__(self, pipe: Any, reward: Reward, config: GuidanceConfig, seed: int):
        self.config = config
        self.trace: list[StepTrace] = []
        self._pipe, self._reward, self._seed = pipe, reward, seed
        kind = find_host(pipe)
        self._scheduler = pipe.scheduler
        self._seams = [name for name in kind.seams if hasattr(self._scheduler, name)]
        if any(hasattr(getattr(self._scheduler, name), _MARK) for name in self._seams):
            raise ValueError("`pipe` is guided already; call `remove()` on the first handle, or add up the rewards.")
        self._generator: torch.Generator | None = None
        self._host = kind(pipe)
        self._previous = {name: vars(self._scheduler).get(name) for name in (*self._seams, "set_timesteps")}
        for name in self._seams:
            setattr(self._scheduler, name, self._guided(name, getattr(self._scheduler, name)))
        self._scheduler.set_timesteps = self._beginning(self._scheduler.set_timesteps)

    def _guided(self, seam: str, original: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(original)

        @functools.wraps(original)  # keeps the signature: some pipelines choose their arguments by it
        def method(*args: Any, **kwargs: Any) -> Any:
            bound = signature.bind(*args, **kwargs)
            if self.config.scale > 0:
                self._guide(seam, bound.arguments)
            return original(*bound.args, **bound.kwargs)

        setattr(method, _MARK, self)
        return method

    def _beginning(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def set_timesteps(*args: Any, **kwargs: Any) -> Any:
            self._host.begin()
            return original(*args, **kwargs)

        return set_timesteps

    @property
    def _attached(self) -> bool:
        return getattr(vars(self._scheduler).get("step"), _MARK, None) is self

    def remove(self) -> None:
        """Give the pipeline its own scheduler's methods back. Does nothing the second time."""
        if not self._attached:
            return
        self._host.close()
        for name, previous in self._previous.items():
            if previous is None:
                delattr(self._scheduler, name)
            else:
                setattr(self._scheduler, name, previous)

    def __enter__(self) -> "GuidanceHandle":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.remove()

    def __repr__(self) -> str:
        return (
            f"<GuidanceHandle {'on' if self._attached else 'removed from'} {type(self._pipe).__name__}, {self.config}>"
        )

    def _guide(self, seam: str, arguments: dict[str, Any]) -> None:
        """Replace the logits in the arguments of the scheduler's `seam` by guided ones, where they are to be guided."""
        started = time.perf_counter()
        step = self._host.read(seam, arguments)
        if not self.config.start <= step.progress < self.config.stop or not step.free.any():
            return
        if torch.is_inference_mode_enabled():
            raise RuntimeError(
                "guidance needs gradients and cannot run under `torch.inference_mode()`; use `torch.no_grad()` instead."
            )
        logits, figures = guided_logits(step, self._reward, self.config, self._random(step.logits.device))
        self._host.write(arguments, step, logits)
        self.trace.append(StepTrace(step.progress, *figures, seconds=time.perf_counter() - started))

    def _random(self, device: torch.device) -> torch.Generator:
        """Guidance's own randomness: seeded once, never the pipeline's."""
        if self._generator is None or self._generator.device != device:
            self._generator = torch.Generator(device).manual_seed(self._seed)
        return self._generator


def guide(pipe: Any, reward: Reward, config: GuidanceConfig | None = None, *, seed: int = 0) -> GuidanceHandle:
    """Steer every sample that `pipe` draws toward `reward`, until the handle is removed.

    `pipe` is used exactly as before. Each call of its `scheduler.step` first has its logits moved by `config.update`;
    the scheduler then samples from them with its own settings and its own randomness. The schedule, the positions
    that are fixed already and the pipeline's generator are left alone.

    Args:
        pipe: a pipeline with a discrete scheduler.
        reward: any callable from `RelaxedTokens` to a differentiable tensor `(batch,)`, higher is better. It need not
            be differentiable for the estimator `reinforce_loo`.
        config: `GuidanceConfig()` when None.
        seed: of guidance's own generator, which runs on through all calls of the pipeline.

    Returns:
        A `GuidanceHandle`; `handle.remove()`, or leaving a `with guide(...)` block, restores the pipeline.

    Raises:
        ValueError: an unsupported or an already guided pipeline, or a reward that is not callable. While sampling: a
            reward of the wrong shape, not finite, or without gradient.
        RuntimeError: while sampling under `torch.inference_mode()`.

    Example:
        >>> from redge_guidance.pipelines import MaskedTextPipeline
        >>> from redge_guidance.rewards import SequenceClassifierReward
        >>> pipe = MaskedTextPipeline.from_pretrained("builtin:tatoeba-masked")
        >>> reward = SequenceClassifierReward.from_pretrained("builtin:sentiment", label="positive")
        >>> with guide(pipe, reward) as handle:
        ...     output = pipe(prompt=["", "Tom"], generator=torch.Generator().manual_seed(0))
        >>> len(output.texts), len(handle.trace) > 0
        (2, True)
    """
    if not callable(reward):
        raise ValueError(f"`reward` must be a callable from RelaxedTokens to (batch,), got {type(reward).__name__}.")
    config = GuidanceConfig() if config is None else config
    if not isinstance(config, GuidanceConfig):
        raise ValueError(f"`config` must be a GuidanceConfig, got {type(config).__name__}.")
    return GuidanceHandle(pipe, reward, config, seed)


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
        scaled = step.logits.float() / step.temperature
        scaled[:, step.reserved] = -torch.inf
        kept, support = scaled, None
        if config.support is not None and config.support < scaled.shape[-1]:
            kept, support = scaled.topk(config.support, dim=-1)
        log_z = kept.logsumexp(-1, keepdim=True)
        log_p = kept - log_z
        mass = (log_z - scaled.logsumexp(-1, keepdim=True)).exp()[:, 0]  # (rows,), probability of the support under p
        ascent = _Ascent(step, reward, config, generator, support)
        sequence = step.free.nonzero()[:, 0]

        def project(log_q: Tensor) -> Tensor:
            if config.kl_budget is None:
                return log_q
            budget = config.kl_budget * step.free.sum(-1).to(log_q.dtype)
            return project_to_budget(log_q, log_p, budget, sequence, mass)

        log_q = config.update(log_p, ascent, project)  # type: ignore[operator]  # names were resolved by the config
        new = (log_q + log_z) * step.temperature
        logits = new if support is None else (scaled * step.temperature).scatter(-1, support, new)
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
