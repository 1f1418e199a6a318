"""The reverse processes of masked and of uniform diffusion: which tokens to draw, and when."""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DiscreteDDIMScheduler

# SchedulerMixin has to be a name of this module: `DiffusionPipeline.from_pretrained` looks for it here.
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_discrete_ddim import DiscreteDDIMSchedulerOutput
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils import BaseOutput
from torch import Tensor

from redge_guidance.pipelines.sampling import Generators, logit_warpers, multinomial, uniform

_BY_CONFIDENCE = ("confidence", "maskgit_plus", "entropy", "topk_margin")
ORDERS = ("ancestral", "random", "left_to_right", *_BY_CONFIDENCE, "remasking")
SCHEDULES = ("linear", "cosine")
ROUNDINGS = ("up", "down")


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
    - `"confidence"`: as many as the schedule asks for, where the drawn token is likeliest to the model, whatever the
      temperature (MaskGIT, arXiv 2202.04200; LLaDA's `low_confidence`, arXiv 2502.09992), with `choice_temperature * t`
      times Gumbel noise added to the log-probability;
    - `"maskgit_plus"`, `"entropy"`, `"topk_margin"`: as many as the schedule asks for, where the distribution that is
      drawn from, tempered and cut to top_k and top_p, gives the drawn token the most, has the least entropy, or the
      largest margin between its two likeliest tokens (Dream's `alg`, arXiv 2508.15487), with `choice_temperature`
      (Dream's `alg_temp`) times Gumbel noise added; SDAR's `low_confidence` is the first of them;
    - `"remasking"`: as ancestral, but visible tokens are hidden again with probability
      `sigma = remasking_strength * min(1, (1 - alpha_s) / alpha_t)`, and hidden ones become visible with probability
      `(alpha_s - (1 - sigma) alpha_t) / (1 - alpha_t)` (ReMDM-rescale, arXiv 2503.00307, section 4.1).

    Args:
        unmasking_order: one of the above.
        schedule: `"linear"` or `"cosine"`.
        choice_temperature: randomness of the orders by confidence, >= 0.
        remasking_strength: eta of ReMDM, in [0, 1].
        eps: time at which the last step ends, in [0, 1); all that is hidden then is drawn in that step (Dream's `eps`).
        rounding: of the number of tokens that a step draws: `"up"`, so that 10 in 4 steps are 3, 3, 2, 2 (LLaDA, SDAR),
            or `"down"`, the rest in the last step (Dream).
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
        eps: float = 0.0,
        rounding: str = "up",
        confidence_threshold: float | None = None,
    ):
        _check_choice("unmasking_order", unmasking_order, ORDERS)
        _check_choice("schedule", schedule, SCHEDULES)
        if choice_temperature < 0:
            raise ValueError(f"`choice_temperature` must be >= 0, got {choice_temperature}.")
        if not 0 <= remasking_strength <= 1:
            raise ValueError(f"`remasking_strength` must lie in [0, 1], got {remasking_strength}.")
        _check_choice("rounding", rounding, ROUNDINGS)
        if not 0 <= eps < 1:
            raise ValueError(f"`eps` must lie in [0, 1), got {eps}.")
        if confidence_threshold is not None and unmasking_order not in ("confidence", "maskgit_plus"):
            raise ValueError(
                "`confidence_threshold` needs `unmasking_order` 'confidence' or 'maskgit_plus', which have a "
                f"probability, got {unmasking_order!r}."
            )
        self.num_inference_steps: int | None = None
        self.timesteps: Tensor = torch.empty(0)
        self.num_tokens: int | None = None

    def set_timesteps(
        self, num_inference_steps: int, device: str | torch.device | None = None, num_tokens: int | None = None
    ) -> None:
        """Times at which the model is called: n of them, in equal steps from 1 to `eps`, that one left out.

        Args:
            num_inference_steps: n.
            device: of `timesteps`.
            num_tokens: draw in every step its share of so many tokens, even where fewer are hidden, as where a block is
                partly given (SDAR); None: of those that are hidden.
        """
        if num_inference_steps < 1:
            raise ValueError(f"`num_inference_steps` must be >= 1, got {num_inference_steps}.")
        self.num_inference_steps, self.num_tokens = num_inference_steps, num_tokens
        self.timesteps = torch.arange(num_inference_steps, 0, -1, dtype=torch.float64, device=device)
        self.timesteps *= (1 - self.config.eps) / num_inference_steps
        self.timesteps += self.config.eps

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
        free: Tensor | None = None,
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
            temperature: divides the logits; 0 takes the likeliest token.
            top_k, top_p: draw from the k likeliest tokens, from the likeliest tokens of total probability p.
            late_tokens: ids of which a position is not confident, so that orders by confidence draw them last: their
                logits are left out of the confidence (LLaDA's `confidence_eos_eot_inf`).
            generator: source of all randomness, on the device of the logits or on the CPU; a list of one a row makes
                every row independent of the others.
            return_dict: return an output object instead of `(prev_sample, pred_original_sample)`.

        Raises:
            ValueError: `set_timesteps` has not been called.
        """
        if self.num_inference_steps is None:
            raise ValueError("`set_timesteps` must be called before `step`.")
        t = float(timestep)
        s = max(self.config.eps, t - (1 - self.config.eps) / self.num_inference_steps)
        free = torch.ones_like(sample, dtype=torch.bool) if free is None else free
        hidden = (sample == mask_token_id) & free
        logits = model_output[hidden].float()
        if mask_token_id < logits.shape[-1]:
            logits[:, mask_token_id] = -torch.inf
        kept = _kept(logits, temperature, top_k, top_p)
        tokens = kept.argmax(-1)
        if temperature > 0:
            tokens = multinomial(kept.softmax(-1), hidden.nonzero()[:, 0], generator)
        x_0 = sample.masked_scatter(hidden, tokens)
        if s < self.config.eps + 1e-9:
            again = torch.zeros_like(hidden)
        elif self.config.unmasking_order in ("ancestral", "remasking"):
            again = self._hidden_independently(hidden, free, t, s, generator)
        else:
            confidence = self._confidence(logits, kept, tokens, late_tokens)
            scores = torch.zeros_like(hidden, dtype=logits.dtype).masked_scatter(hidden, confidence)
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

    def _confidence(self, logits: Tensor, kept: Tensor, tokens: Tensor, late_tokens: Sequence[int] | None) -> Tensor:
        """How sure the model is of `tokens`, `(n,)`: a log-probability, minus an entropy in nats, or a margin."""
        order = self.config.unmasking_order
        if order not in _BY_CONFIDENCE:
            return torch.zeros(len(tokens), device=logits.device)
        rows = logits if order == "confidence" else kept
        if late_tokens is not None:
            rows = rows.index_fill(-1, torch.tensor(list(late_tokens), device=rows.device), -torch.inf)
        log_probs = rows.log_softmax(-1)
        if order == "entropy":
            return -torch.special.entr(log_probs.exp()).sum(-1)
        if order == "topk_margin":
            first, second = log_probs.exp().topk(2, -1).values.unbind(-1)
            return first - second
        chosen = log_probs.gather(-1, tokens[:, None])[:, 0]
        return chosen if order == "confidence" else chosen.exp()

    def _hidden_by_rank(
        self, hidden: Tensor, free: Tensor, confidence: Tensor, t: float, s: float, generator: Generators
    ) -> Tensor:
        """Where a token is hidden at time s, as many in each row as the schedule asks for."""
        order, threshold = self.config.unmasking_order, self.config.confidence_threshold
        count = hidden.sum(-1, keepdim=True)
        number = uniform(free, generator).clamp(min=1e-20)
        gumbel = -torch.log(-torch.log(number)) if self.config.choice_temperature > 0 else torch.zeros_like(number)
        if order == "random":
            scores = number
        elif order == "left_to_right":
            scores = -torch.arange(hidden.shape[-1], device=hidden.device, dtype=number.dtype).expand(hidden.shape)
        else:
            scores = confidence + self.config.choice_temperature * (t if order == "confidence" else 1.0) * gumbel
        rank = scores.masked_fill(~hidden, torch.inf).argsort(-1).argsort(-1)  # hidden tokens come first
        again = hidden & (rank < count - self._number(count, t, s))
        if threshold is not None:
            again &= (confidence.exp() if order == "confidence" else confidence) <= threshold
        return again

    def _number(self, count: Tensor, t: float, s: float) -> Tensor:
        """How many of `count` `(batch, 1)` hidden tokens the step from t to s draws."""
        steps = [*self.timesteps.tolist(), self.config.eps]
        if self.num_tokens is None:
            return self._rounded(count, t, s)
        hidden = torch.full_like(count, self.num_tokens)
        for now, then in itertools.pairwise(steps):
            number = self._rounded(hidden, now, then)
            if now <= t + 1e-9:
                return number
            hidden = hidden - number
        return hidden

    def _rounded(self, count: Tensor, t: float, s: float) -> Tensor:
        drawn = count * (self.alpha(s) - self.alpha(t)) / (1 - self.alpha(t))
        margin = 1e-6 * drawn.clamp(min=1)  # absorbs rounding in n * (1 - (1 - 1/n))
        return (drawn - margin).ceil().long() if self.config.rounding == "up" else (drawn + margin).floor().long()


class UniformDiffusionScheduler(DiscreteDDIMScheduler):
    """diffusers' `DiscreteDDIMScheduler`, which may be given a generator for every row.

    With one generator, or none, it is that scheduler. With a list each row is drawn by itself, without its padding, so
    that its tokens depend on its own generator and logits alone; of a corrector sweep `sampled_tokens` of the output
    are then those of `prev_sample`.
    """

    def step(
        self,
        model_output: Tensor,
        timestep: int | Tensor,
        sample: Tensor,
        *,
        temperature: float = 0.0,
        attention_mask: Tensor | None = None,
        generator: Generators = None,
        return_dict: bool = True,
    ) -> Any:
        """As the base class; `attention_mask` `(batch, length)` is False on padding, None: there is none."""

        def draw(logits: Tensor, tokens: Tensor, source: torch.Generator | None) -> Any:
            return super(UniformDiffusionScheduler, self).step(
                logits, timestep, tokens, temperature=temperature, generator=source
            )

        return _row_by_row(draw, "sampled_tokens", model_output, sample, attention_mask, generator, return_dict)

    def step_correct(
        self,
        model_output: Tensor,
        timestep: int | Tensor,
        sample: Tensor,
        *,
        attention_mask: Tensor | None = None,
        generator: Generators = None,
        return_dict: bool = True,
    ) -> Any:
        """As the base class; `attention_mask` as in `step`."""

        def draw(logits: Tensor, tokens: Tensor, source: torch.Generator | None) -> Any:
            return super(UniformDiffusionScheduler, self).step_correct(logits, timestep, tokens, generator=source)

        return _row_by_row(draw, "prev_sample", model_output, sample, attention_mask, generator, return_dict)


def _row_by_row(
    draw: Callable[[Tensor, Tensor, torch.Generator | None], Any],
    drawn: str,
    logits: Tensor,
    sample: Tensor,
    attention_mask: Tensor | None,
    generator: Generators,
    return_dict: bool,
) -> Any:
    """`draw(logits, sample, generator)`, or for each row of its own, padding left out; `drawn` names its tokens."""
    if generator is None or isinstance(generator, torch.Generator):
        output = draw(logits, sample, generator)
        return output if return_dict else output.to_tuple()
    text = torch.ones_like(sample, dtype=torch.bool) if attention_mask is None else attention_mask
    prev_sample, tokens = sample.clone(), sample.clone()
    for row, source in enumerate(generator):
        where = text[row]
        output = draw(logits[row, where][None], sample[row, where][None], source)
        prev_sample[row, where], tokens[row, where] = output.prev_sample[0], getattr(output, drawn)[0]
    log_probs = logits.gather(-1, tokens[..., None])[..., 0] - logits.logsumexp(-1)
    output = DiscreteDDIMSchedulerOutput(prev_sample, tokens, log_probs.exp(), logits)
    return output if return_dict else output.to_tuple()


def _kept(logits: Tensor, temperature: float, top_k: int | None, top_p: float | None) -> Tensor:
    """Logits `(n, vocabulary)` of the distribution that is drawn from, tempered and cut."""
    if temperature > 0:
        logits = logits / temperature
    for warper in logit_warpers(top_k, top_p) if len(logits) else ():
        logits = warper(None, logits)
    return logits


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"`{name}` must be one of {', '.join(choices)}, got {value!r}.")
