"""The reverse process of masked diffusion: which tokens to draw, and when."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

# SchedulerMixin has to be a name of this module: `DiffusionPipeline.from_pretrained` looks for it here.
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils import BaseOutput
from torch import Tensor

from redge_guidance.checks import real_number
from redge_guidance.pipelines.confidence import BY_CONFIDENCE, confidence_of
from redge_guidance.pipelines.sampling import Generators, kept_logits, multinomial, plain_count, uniform
from redge_guidance.pipelines.schedules import COUNTINGS, SCHEDULES, visible_share, visible_tokens
from redge_guidance.pipelines.uniform_scheduler import UniformDiffusionScheduler as UniformDiffusionScheduler

ORDERS = ("ancestral", "random", "left_to_right", *BY_CONFIDENCE, "remasking", "halton")


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

    With r = 1 - t, alpha_t is r (linear), `1 - cos(pi r / 2)` (cosine, as MaskGIT), `sqrt(r)` (root), `r^2` (square) or
    `1 - 2 arccos(r) / pi` (arccos): the five `sched_mode` of Halton-MaskGIT. t runs from 1 to 0 in equal steps. From t
    to s < t, hidden tokens are drawn from the model and become visible

    - `"ancestral"`: each on its own with probability `(alpha_s - alpha_t) / (1 - alpha_t)` (MDLM, arXiv 2406.07524,
      equation 7);
    - `"random"`: as many as the schedule asks for, anywhere. With one token a step this samples the model exactly
      (first-hitting sampler, arXiv 2409.02908);
    - `"left_to_right"`: as many as the schedule asks for, the first ones;
    - `"confidence"`: as many as the schedule asks for, where the drawn token is likeliest to the model, whatever the
      temperature (MaskGIT, arXiv 2202.04200; LLaDA's `low_confidence`, arXiv 2502.09992), with `choice_temperature * t`
      times Gumbel noise added to the log-probability;
    - `"maskgit_plus"`, `"entropy"`, `"topk_margin"`: as many as the schedule asks for, where the distribution that is
      drawn from, tempered and cut to top_k and top_p, gives the drawn token the most, has the least entropy, or the
      largest margin between its two likeliest tokens (Dream's `alg`, arXiv 2508.15487), with `choice_temperature`
      (Dream's `alg_temp`) times Gumbel noise added; SDAR's `low_confidence` is the first of them;
    - `"remasking"`: as ancestral, but visible tokens are hidden again with probability
      `sigma = remasking_strength * min(1, (1 - alpha_s) / alpha_t)`, and hidden ones become visible with probability
      `(alpha_s - (1 - sigma) alpha_t) / (1 - alpha_t)` (ReMDM-rescale, arXiv 2503.00307, section 4.1);
    - `"halton"`: as many as the schedule asks for, along a Halton sequence over a grid (arXiv 2503.17076), of images.

    Args:
        unmasking_order: one of the above.
        schedule: `"linear"`, `"cosine"`, `"root"`, `"square"` or `"arccos"`.
        choice_temperature: randomness of the orders by confidence, >= 0 (`r_temp` of Halton-MaskGIT).
        remasking_strength: eta of ReMDM, in [0, 1].
        counting: how many the schedule asks for. `"share"`: of what is still hidden
            `(alpha_s - alpha_t) / (1 - alpha_t)` is drawn, rounded up, so that 10 in 4 steps are 3, 3, 2, 2 (LLaDA,
            SDAR); `"share_down"`: rounded down, the rest in the last step (Dream). `"floor"`: after i of n steps
            `max(i, floor(alpha_s * total))` of what may be drawn are visible (`HaltonSampler`). `"floor_from_zero"`:
            the same with r = (i - 1) / (n - 1), so that the first step reveals one token, and 1 - r in the place of t
            in the noise of the confidence order (`ConfidenceSampler`).
        random_steps: first steps of the confidence order that reveal anywhere; 2 is the `randomize="warm_up"` of
            `ConfidenceSampler`, whose `"random"` is the order of that name and `"no"` a `choice_temperature` of 0.
        roll: start every image at its own cell of the Halton sequence (`randomize` of `HaltonSampler`).
        eps: time at which the last step ends, in [0, 1); all that is hidden then is drawn in that step (Dream's `eps`).
        confidence_threshold: further tokens are drawn where the confidence, as a probability, is above it (SDAR's
            `low_confidence_dynamic`, Fast-dLLM's `threshold`); only of orders that have a probability; None: none.

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
        counting: str = "share",
        random_steps: int = 0,
        roll: bool = False,
        eps: float = 0.0,
        confidence_threshold: float | None = None,
    ):
        _check_choice("unmasking_order", unmasking_order, ORDERS)
        _check_choice("schedule", schedule, SCHEDULES)
        _check_choice("counting", counting, COUNTINGS)
        if not 0 <= (noise := real_number("choice_temperature", choice_temperature)) < math.inf:
            raise ValueError(f"`choice_temperature` must be >= 0, got {noise}.")
        if not 0 <= (strength := real_number("remasking_strength", remasking_strength)) <= 1:
            raise ValueError(f"`remasking_strength` must lie in [0, 1], got {strength}.")
        if not 0 <= (last := real_number("eps", eps)) < 1:
            raise ValueError(f"`eps` must lie in [0, 1), got {last}.")
        first = plain_count("random_steps", random_steps, 0)
        least = None if confidence_threshold is None else real_number("confidence_threshold", confidence_threshold)
        self.register_to_config(choice_temperature=noise, remasking_strength=strength, random_steps=first)
        self.register_to_config(eps=last, confidence_threshold=least)
        if confidence_threshold is not None and unmasking_order not in ("confidence", "maskgit_plus"):
            raise ValueError(
                "`confidence_threshold` needs `unmasking_order` 'confidence' or 'maskgit_plus', which have a "
                f"probability, got {unmasking_order!r}."
            )
        self.num_inference_steps: int | None = None
        self.timesteps: Tensor = torch.empty(0)
        self.num_tokens: int | None = None
        self._times: list[float] = []  # `timesteps` before they were rounded

    def set_timesteps(
        self, num_inference_steps: int, device: str | torch.device | None = None, num_tokens: int | None = None
    ) -> None:
        """Times at which the model is called: n of them, in equal steps from 1 to `eps`, that one left out.

        Args:
            num_inference_steps: n.
            device: of `timesteps`, float64 on the CPU and float32 elsewhere, since not every device has float64.
            num_tokens: draw in every step its share of so many tokens, even where fewer are hidden, as where a block is
                partly given (SDAR); None: of those that are hidden.
        """
        steps = self.num_inference_steps = plain_count("num_inference_steps", num_inference_steps)
        self.num_tokens = None if num_tokens is None else plain_count("num_tokens", num_tokens)
        times = torch.arange(steps, 0, -1, dtype=torch.float64, device="cpu")
        times = times * ((1 - self.config.eps) / steps) + self.config.eps
        self._times = times.tolist()
        self.timesteps = times if torch.device(device or "cpu").type == "cpu" else times.float().to(device)

    def alpha(self, t: float) -> float:
        """Probability that a token is visible at time t in [0, 1]."""
        return visible_share(self.config.schedule, torch.tensor(1 - t, dtype=torch.float64, device="cpu")).item()

    def step(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        *,
        mask_token_id: int,
        free: Tensor | None = None,
        ranks: Tensor | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        late_tokens: Sequence[int] | None = None,
        generator: Generators = None,
        return_dict: bool = True,
    ) -> MaskedDiffusionSchedulerOutput | tuple[Tensor, Tensor]:
        """From time t to the next one.

        Args:
            model_output: `(batch, length, vocabulary)` logits of the clean tokens; -inf forbids a token, and the mask
                token is never drawn.
            timestep: t, one of `timesteps`.
            sample: `(batch, length)` int64, the tokens at time t, hidden ones `mask_token_id`.
            mask_token_id: id that stands for a hidden token.
            free: `(batch, length)` bool, the positions that this step may change: neither prompt nor padding, and of
                the block that is being drawn; None: all.
            ranks: `(batch, length)`, when a position is drawn, in the order `"halton"`; the lowest first.
            temperature: divides the logits; 0 takes the likeliest token.
            top_k, top_p: draw from the k likeliest tokens, from the likeliest tokens of total probability p.
            late_tokens: ids of which a position is not confident, so that orders by confidence draw them last: their
                logits are left out of the confidence (LLaDA's `confidence_eos_eot_inf`).
            generator: source of all randomness, on the device of the logits or on the CPU; a list of one a row makes
                every row independent of the others.
            return_dict: return an output object instead of `(prev_sample, pred_original_sample)`.

        Raises:
            ValueError: `set_timesteps` has not been called, or the order `"halton"` is not given its `ranks`.
        """
        if self.num_inference_steps is None:
            raise ValueError("`set_timesteps` must be called before `step`.")
        if self.config.unmasking_order == "halton" and (ranks is None or ranks.shape != sample.shape):
            found = "none" if ranks is None else f"{tuple(ranks.shape)}"
            raise ValueError(
                f'`ranks` must be {tuple(sample.shape)} for the order "halton", which is one of grids, got {found}; '
                "take another `unmasking_order` where there is no grid, as in texts."
            )
        if late_tokens is not None and len(late_tokens) and self.config.unmasking_order not in BY_CONFIDENCE:
            raise ValueError(f"`late_tokens` needs an order by confidence, got {self.config.unmasking_order!r}.")
        t = self._exact(float(timestep))
        s = max(self.config.eps, t - (1 - self.config.eps) / self.num_inference_steps)
        free = torch.ones_like(sample, dtype=torch.bool) if free is None else free
        hidden = (sample == mask_token_id) & free
        logits = model_output[hidden].float()
        if mask_token_id < logits.shape[-1]:
            logits[:, mask_token_id] = -torch.inf
        kept = kept_logits(logits, temperature, top_k, top_p)
        tokens = kept.argmax(-1)
        if temperature > 0:
            tokens = multinomial(kept.softmax(-1), hidden.nonzero()[:, 0], generator)
        x_0 = sample.masked_scatter(hidden, tokens)
        if s < self.config.eps + 1e-9:
            again = torch.zeros_like(hidden)
        elif self.config.unmasking_order in ("ancestral", "remasking"):
            again = self._hidden_independently(hidden, free, t, s, generator)
        else:
            confidence = confidence_of(self.config.unmasking_order, logits, kept, tokens, late_tokens)
            scores = torch.zeros_like(hidden, dtype=logits.dtype).masked_scatter(hidden, confidence)
            if ranks is not None and self.config.unmasking_order == "halton":
                scores = -ranks.to(scores)
            again = self._hidden_by_rank(hidden, free, scores, t, s, generator)
        prev_sample = x_0.masked_fill(again, mask_token_id)
        if not return_dict:
            return prev_sample, x_0
        return MaskedDiffusionSchedulerOutput(prev_sample=prev_sample, pred_original_sample=x_0)

    def add_noise(
        self, original_samples: Tensor, timestep: float, mask_token_id: int, generator: torch.Generator | None = None
    ) -> Tensor:
        """Hide each token with probability `1 - alpha_t`: a draw from q(x_t | x_0)."""
        everywhere = torch.ones_like(original_samples, dtype=torch.bool)
        stays = uniform(everywhere, generator) < self.alpha(float(timestep))
        return original_samples.masked_fill(~stays, mask_token_id)

    def _hidden_independently(self, hidden: Tensor, free: Tensor, t: float, s: float, generator: Generators) -> Tensor:
        """Where a token is hidden at time s, each position by itself."""
        alpha_t, alpha_s = self.alpha(t), self.alpha(s)
        sigma = 0.0
        if self.config.unmasking_order == "remasking" and alpha_t > 0:
            sigma = self.config.remasking_strength * min(1.0, (1 - alpha_s) / alpha_t)
        reveal = (alpha_s - (1 - sigma) * alpha_t) / (1 - alpha_t)
        number = uniform(free, generator)
        return (hidden & (number >= reveal)) | (~hidden & free & (number < sigma))

    def _hidden_by_rank(
        self, hidden: Tensor, free: Tensor, confidence: Tensor, t: float, s: float, generator: Generators
    ) -> Tensor:
        """Where a token is hidden at time s, as many in each row as the schedule asks for.

        `confidence`: the highest are revealed first, in the orders that have scores of their own.
        """
        order, steps = self.config.unmasking_order, len(self._times)
        step, noise_level = round((1 - t) * steps / (1 - self.config.eps)), t
        if self.config.counting == "floor_from_zero":
            noise_level = 1 - step / (steps - 1)
        number, scores = uniform(free, generator).clamp(min=1e-20), confidence
        if order == "random" or (order == "confidence" and step < self.config.random_steps):
            scores = number
        elif order == "left_to_right":
            scores = -torch.arange(hidden.shape[-1], device=hidden.device, dtype=number.dtype).expand(hidden.shape)
        elif order in BY_CONFIDENCE and self.config.choice_temperature > 0:
            strength = self.config.choice_temperature * (noise_level if order == "confidence" else 1.0)
            scores = scores - strength * torch.log(-torch.log(number))
        order_of = (
            scores.masked_fill(~hidden, torch.inf).flip(-1).argsort(dim=-1, stable=True)
        )  # of equals the last first
        rank = order_of.argsort(-1).flip(-1)
        again = hidden & (rank < self._still_hidden(hidden, free, step))
        if self.config.confidence_threshold is not None:
            again &= (confidence.exp() if order == "confidence" else confidence) <= self.config.confidence_threshold
        return again

    def _exact(self, t: float) -> float:
        """The time of the step whose timestep is t, before it was rounded to float32; another time as it is."""
        nearest = min(self._times, key=lambda time: abs(time - t))
        return nearest if abs(nearest - t) < 1e-6 else t

    def _still_hidden(self, hidden: Tensor, free: Tensor, step: int) -> Tensor:
        """How many tokens of each row `(batch, 1)` the schedule leaves hidden after a step."""
        times = [*self._times, self.config.eps]
        count = hidden.sum(-1, keepdim=True)
        if not self.config.counting.startswith("share"):
            total = free.sum(-1, keepdim=True)
            return total - visible_tokens(self.config.counting, self.config.schedule, step, len(times) - 1, total)
        if self.num_tokens is None:
            return count - self._drawn(count, times[step], times[step + 1])
        planned = torch.full_like(count, self.num_tokens)
        for t, s in itertools.pairwise(times[: step + 1]):
            planned = planned - self._drawn(planned, t, s)
        return count - self._drawn(planned, times[step], times[step + 1])

    def _drawn(self, count: Tensor, t: float, s: float) -> Tensor:
        drawn = count * ((self.alpha(s) - self.alpha(t)) / (1 - self.alpha(t)))
        margin = 1e-6 * drawn.clamp(min=1)  # absorbs rounding in n * (1 - (1 - 1/n))
        return (drawn - margin).ceil().long() if self.config.counting == "share" else (drawn + margin).floor().long()


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"`{name}` must be one of {', '.join(choices)}, got {value!r}.")
