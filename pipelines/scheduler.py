"""The reverse process of absorbing (masked) diffusion: which hidden tokens to draw, and when."""

import math
from dataclasses import dataclass
from typing import Any

import torch

# SchedulerMixin has to be a name of this module: `DiffusionPipeline.from_pretrained` looks for it here.
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils import BaseOutput
from torch import Tensor
from transformers import TopKLogitsWarper, TopPLogitsWarper

ORDERS = ("ancestral", "random", "left_to_right", "confidence", "remasking")
SCHEDULES = ("linear", "cosine")


@dataclass
class MaskedDiffusionSchedulerOutput(BaseOutput):
    """Output of one denoising step.

    Attributes:
        prev_sample: `(batch, length)` int64, the tokens at the next, lower noise level.
        pred_original_sample: `(batch, length)` int64, the same with every hidden token drawn.
    """

    prev_sample: Tensor
    pred_original_sample: Tensor


class MaskedDiffusionScheduler(SchedulerMixin, ConfigMixin):
    r"""Reverse process of a masked diffusion in which a token is visible at time t with probability alpha_t.

    `alpha_t = 1 - t` (linear) or `1 - sin(pi t / 2)` (cosine, as MaskGIT), t running from 1 to 0 in equal steps. From t
    to s < t, hidden tokens are drawn from the model and become visible

    - `"ancestral"`: each on its own with probability `(alpha_s - alpha_t) / (1 - alpha_t)` (MDLM, arXiv 2406.07524,
      equation 7);
    - `"random"`: as many as the schedule asks for, anywhere. With one token a step this samples the model exactly
      (first-hitting sampler, arXiv 2409.02908);
    - `"left_to_right"`: as many as the schedule asks for, the first ones;
    - `"confidence"`: as many as the schedule asks for, where the drawn token is likeliest (MaskGIT, arXiv 2202.04200;
      LLaDA, arXiv 2502.09992), with `choice_temperature * t` times Gumbel noise added to the log-probability;
    - `"remasking"`: as ancestral, but visible tokens are hidden again with probability
      `sigma = remasking_strength * min(1, (1 - alpha_s) / alpha_t)`, and hidden ones become visible with probability
      `(alpha_s - (1 - sigma) alpha_t) / (1 - alpha_t)` (ReMDM-rescale, arXiv 2503.00307, section 4.1).

    Args:
        unmasking_order: one of the above.
        schedule: `"linear"` or `"cosine"`.
        choice_temperature: randomness of the confidence order, >= 0.
        remasking_strength: eta of ReMDM, in [0, 1].

    Raises:
        ValueError: a value out of range.
    """

    order = 1  # of the solver, as every scheduler of diffusers declares it

    @register_to_config
    def __init__(
        self,
        unmasking_order: str = "random",
        schedule: str = "linear",
        choice_temperature: float = 0.0,
        remasking_strength: float = 0.1,
    ):
        _check_choice("unmasking_order", unmasking_order, ORDERS)
        _check_choice("schedule", schedule, SCHEDULES)
        if choice_temperature < 0:
            raise ValueError(f"`choice_temperature` must be >= 0, got {choice_temperature}.")
        if not 0 <= remasking_strength <= 1:
            raise ValueError(f"`remasking_strength` must lie in [0, 1], got {remasking_strength}.")
        self.num_inference_steps: int | None = None
        self.timesteps: Tensor = torch.empty(0)

    def set_timesteps(self, num_inference_steps: int, device: str | torch.device | None = None) -> None:
        """Times `1, 1 - 1/n, ..., 1/n` at which the model is called."""
        if num_inference_steps < 1:
            raise ValueError(f"`num_inference_steps` must be >= 1, got {num_inference_steps}.")
        self.num_inference_steps = num_inference_steps
        self.timesteps = torch.arange(num_inference_steps, 0, -1, dtype=torch.float64, device=device)
        self.timesteps /= num_inference_steps

    def alpha(self, t: float) -> float:
        """Probability that a token is visible at time t in [0, 1]."""
        return 1 - t if self.config.schedule == "linear" else 1 - math.sin(math.pi * t / 2)

    def step(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        *,
        mask_token_id: int,
        frozen: Tensor | None = None,
        active: Tensor | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        generator: torch.Generator | None = None,
        return_dict: bool = True,
    ) -> MaskedDiffusionSchedulerOutput | tuple[Tensor, Tensor]:
        """From time t to the next one.

        Args:
            model_output: `(batch, length, vocabulary)` logits of the clean tokens; -inf forbids a token, and the mask
                token is never drawn.
            timestep: t, one of `timesteps`.
            sample: `(batch, length)` int64, the tokens at time t, hidden ones `mask_token_id`.
            mask_token_id: id that stands for a hidden token.
            frozen: `(batch, length)` bool, visible tokens that must not be hidden again (prompt and padding).
            active: `(batch, length)` bool, the positions that this step may change (a block); None: all.
            temperature: divides the logits; 0 takes the likeliest token.
            top_k, top_p: draw from the k likeliest tokens, from the likeliest tokens of total probability p.
            generator: source of all randomness, on the device of the logits or on the CPU.
            return_dict: return an output object instead of `(prev_sample, pred_original_sample)`.

        Raises:
            ValueError: `set_timesteps` has not been called.
        """
        if self.num_inference_steps is None:
            raise ValueError("`set_timesteps` must be called before `step`.")
        t = float(timestep)
        s = max(0.0, t - 1 / self.num_inference_steps)
        hidden = sample == mask_token_id
        if active is not None:
            hidden &= active
            frozen = ~active if frozen is None else frozen | ~active
        tokens, log_probs = _draw(model_output[hidden], mask_token_id, temperature, top_k, top_p, generator)
        x_0 = sample.masked_scatter(hidden, tokens)
        if s < 1e-9:
            prev_sample = x_0
        elif self.config.unmasking_order in ("ancestral", "remasking"):
            prev_sample = self._step_independently(sample, x_0, hidden, frozen, t, s, mask_token_id, generator)
        else:
            scores = torch.zeros_like(hidden, dtype=log_probs.dtype).masked_scatter(hidden, log_probs)
            prev_sample = self._step_by_rank(x_0, scores, hidden, t, s, mask_token_id, generator)
        if not return_dict:
            return prev_sample, x_0
        return MaskedDiffusionSchedulerOutput(prev_sample=prev_sample, pred_original_sample=x_0)

    def add_noise(
        self, original_samples: Tensor, timestep: float, mask_token_id: int, generator: torch.Generator | None = None
    ) -> Tensor:
        """Hide each token with probability `1 - alpha_t`: a draw from q(x_t | x_0)."""
        uniform = _uniform(original_samples, generator)
        return original_samples.masked_fill(uniform >= self.alpha(float(timestep)), mask_token_id)

    def _step_independently(
        self,
        sample: Tensor,
        x_0: Tensor,
        hidden: Tensor,
        frozen: Tensor | None,
        t: float,
        s: float,
        mask_token_id: int,
        generator: torch.Generator | None,
    ) -> Tensor:
        alpha_t, alpha_s = self.alpha(t), self.alpha(s)
        sigma = 0.0
        if self.config.unmasking_order == "remasking" and alpha_t > 0:
            sigma = self.config.remasking_strength * min(1.0, (1 - alpha_s) / alpha_t)
        reveal = (alpha_s - (1 - sigma) * alpha_t) / (1 - alpha_t)
        uniform = _uniform(sample, generator)
        stays = hidden & (uniform >= reveal)
        goes = ~hidden & (uniform < sigma)
        if frozen is not None:
            goes &= ~frozen
        return x_0.masked_fill(stays | goes, mask_token_id)

    def _step_by_rank(
        self,
        x_0: Tensor,
        log_probs: Tensor,
        hidden: Tensor,
        t: float,
        s: float,
        mask_token_id: int,
        generator: torch.Generator | None,
    ) -> Tensor:
        share = (1 - self.alpha(s)) / (1 - self.alpha(t))
        count = hidden.sum(-1, keepdim=True)
        keep_hidden = (count * share - 1e-6).ceil()  # the margin absorbs rounding in n * (1 - 1/n)
        uniform = _uniform(x_0, generator).clamp(min=1e-20)
        if self.config.unmasking_order == "random":
            scores = uniform
        elif self.config.unmasking_order == "left_to_right":
            scores = -torch.arange(x_0.shape[-1], device=x_0.device, dtype=uniform.dtype).expand(x_0.shape)
        else:
            scores = log_probs - self.config.choice_temperature * t * torch.log(-torch.log(uniform))
        rank = scores.masked_fill(~hidden, torch.inf).argsort(-1).argsort(-1)  # hidden tokens come first
        return x_0.masked_fill(hidden & (rank < keep_hidden), mask_token_id)


def _draw(
    logits: Tensor,
    mask_token_id: int,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    generator: torch.Generator | None,
) -> tuple[Tensor, Tensor]:
    """Tokens `(rows,)` drawn from logits `(rows, vocabulary)` and their log-probabilities `(rows,)` in nats.

    The logits are overwritten.
    """
    logits = logits.float()
    if mask_token_id < logits.shape[-1]:
        logits[:, mask_token_id] = -torch.inf
    if temperature > 0:
        logits /= temperature
    log_z = logits.logsumexp(-1, keepdim=True)
    if temperature == 0:
        tokens = logits.argmax(-1, keepdim=True)
    elif len(logits) == 0:
        tokens = torch.empty(0, 1, dtype=torch.long, device=logits.device)
    else:
        kept = logits
        for warper in logit_warpers(top_k, top_p):
            kept = warper(None, kept)
        probs = kept.softmax(-1)
        source = probs if generator is None else probs.to(generator.device)
        tokens = torch.multinomial(source, 1, generator=generator).to(logits.device)
    return tokens[:, 0], (logits.gather(-1, tokens) - log_z)[:, 0]


def logit_warpers(top_k: int | None, top_p: float | None) -> list[Any]:
    """What leaves only the k likeliest tokens, and the likeliest of total probability p, in logits."""
    warpers: list[Any] = []
    if top_k is not None:
        warpers.append(TopKLogitsWarper(top_k))
    if top_p is not None and top_p < 1:
        warpers.append(TopPLogitsWarper(top_p))
    return warpers


def _uniform(like: Tensor, generator: torch.Generator | None) -> Tensor:
    device = like.device if generator is None else generator.device
    return torch.rand(like.shape, generator=generator, device=device).to(like.device)


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"`{name}` must be one of {', '.join(choices)}, got {value!r}.")
