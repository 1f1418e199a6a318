"""Guidance as a callable, for samplers of language models that take one: transformers' and Dream's."""

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor

from redge_guidance.checks import as_whole, real_number, whole_number
from redge_guidance.config import GuidanceConfig
from redge_guidance.guidance import Guidance
from redge_guidance.precision import in_float32
from redge_guidance.reward import Wanted
from redge_guidance.step import DenoisingStep
from redge_guidance.text import (
    before_text,
    end_token_ids,
    is_in,
    padding_token_id,
    reserved_token_ids,
    special_token_ids,
)
from redge_guidance.trace import Trace


class GuidanceLogitsProcessor(LogitsProcessor):
    """Guides transformers' `DiffusionGemma.generate`; all positions of the canvas are free.

    `generate` appends to the list of processors that it is given, so give it a fresh one in every call:

        guidance = GuidanceLogitsProcessor(model, tokenizer, reward, GuidanceConfig(scale=2.0))
        model.generate(**inputs, logits_processor=LogitsProcessorList([guidance]))

    Args:
        model: its `generation_config` says how long and at which temperatures `generate` denoises; what is passed to
            `generate` itself has to be passed here too.
        tokenizer: the model's tokenizer, or its processor.
        reward, config, seed: as for `guide`; the sampler is taken to draw from torch's global generator. `start` and
            `stop` are shares of the steps of every canvas, since the number of canvases is not known here.
        max_denoising_steps, t_min, t_max, max_new_tokens: None: those of `model.generation_config`.
        attention_mask: `(batch, prompt)`, of the prompts, False on padding; None: padding tokens in front are padding.
        prompts: what each of the texts was asked for, for rewards that want to know.
        eos_token_id: the tokens at which `generate` stops, where it is told by itself; None: those that the generation
            config names, and the tokenizer's.

    Attributes:
        trace: a `Trace`, one `StepTrace` a guided step.

    Raises:
        ValueError: as `guide`, or a number of steps that is neither given nor in the generation config.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        reward: Wanted,
        config: GuidanceConfig | None = None,
        *,
        seed: int = 0,
        max_denoising_steps: int | None = None,
        t_min: float | None = None,
        t_max: float | None = None,
        max_new_tokens: int | None = None,
        attention_mask: Tensor | None = None,
        prompts: Sequence[str] | None = None,
        eos_token_id: int | Sequence[int] | None = None,
    ):
        self._guidance = Guidance(reward, config, seed)
        self._tokenizer = getattr(tokenizer, "tokenizer", tokenizer)
        settings = model.generation_config
        self._ends, self._reserved_but = _ends_of(self._tokenizer, model, eos_token_id)
        steps = max_denoising_steps or getattr(settings, "max_denoising_steps", None)
        if steps is None:
            raise ValueError(
                "`max_denoising_steps` is not in the generation config of `model`; pass what `generate` is given."
            )
        self._steps = whole_number("max_denoising_steps", steps, 1, "pass what `generate` is given")
        t_min = getattr(settings, "t_min", None) if t_min is None else t_min
        t_max = getattr(settings, "t_max", None) if t_max is None else t_max
        known = t_min is not None and t_max is not None
        self._temperatures = (real_number("t_min", t_min), real_number("t_max", t_max)) if known else None
        tokens = getattr(settings, "max_new_tokens", None) if max_new_tokens is None else max_new_tokens
        self._new_tokens = None if tokens is None else whole_number("max_new_tokens", tokens, 1)
        self._context: Tensor | None = None
        self._prompt_length = 0
        self._prompts, self._prompt_mask = prompts, attention_mask

    @property
    def trace(self) -> Trace:
        return self._guidance.trace

    def __call__(self, input_ids: Tensor, scores: Tensor, cur_step: int | Tensor) -> Tensor:
        """Guided logits `(batch, canvas, vocabulary)`; `input_ids` is the text before the canvas.

        `cur_step` counts the steps that are left, from `max_denoising_steps` to 1.
        """
        left, (batch, canvas) = int(cur_step), scores.shape[:2]
        self._follow(input_ids, canvas, left == self._steps)
        ids = torch.nn.functional.pad(input_ids, (0, canvas))
        position = torch.arange(ids.shape[1], device=ids.device)
        free = (position >= input_ids.shape[1]).expand(batch, -1)
        given = (position < self._prompt_length).expand(batch, -1)
        step = DenoisingStep(
            logits=scores,
            ids=ids,
            free=free,
            attention_mask=self._text(ids, given),
            temperature=self._temperature(left),
            progress=1 - left / self._steps,
            tokenizer=self._tokenizer,
            given=given,
            reserved=reserved_token_ids(self._tokenizer, scores.shape[-1], self._reserved_but),
            prompts=self._prompts,
            ends=self._ends,
            coming=self._coming(input_ids.shape[1], canvas),
            decisive=left == 1,
        )
        logits = self._guidance(step)
        if left == 1:
            self._guidance.end()
        return scores if logits is None else logits.view(scores.shape)

    def _coming(self, context: int, canvas: int) -> int:
        """Positions of the canvases behind this one; 0 where the number of tokens is not known."""
        if self._new_tokens is None:
            return 0
        canvases = -(-self._new_tokens // canvas)
        return max(0, canvases * canvas - (context - self._prompt_length) - canvas)

    def _text(self, ids: Tensor, given: Tensor) -> Tensor:
        if self._prompt_mask is None:
            return ~_guessed_padding(ids, given, self._tokenizer)
        mask = self._prompt_mask.to(ids.device, torch.bool)
        return torch.nn.functional.pad(mask, (0, ids.shape[1] - mask.shape[1]), value=True)

    def _follow(self, input_ids: Tensor, canvas: int, first_step: bool) -> None:
        """Tell the next canvas of a text from the beginning of another."""
        before, self._context = self._context, input_ids
        if not first_step:
            return
        if before is None or input_ids.shape[1] <= canvas or not torch.equal(input_ids[:, :-canvas], before):
            self._prompt_length = input_ids.shape[1]
            self._guidance.begin()

    def _temperature(self, left: int) -> float:
        if self._temperatures is None:
            return 1.0
        t_min, t_max = self._temperatures
        return t_min + (t_max - t_min) * left / self._steps


def _ends_of(
    tokenizer: Any, model: Any, eos_token_id: int | Sequence[int] | None
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """What ends a text of `generate`, and what may be drawn though it is special: that, and other ends of a text."""
    usual = end_token_ids(tokenizer, model)
    if eos_token_id is None:
        return usual, usual
    asked = (eos_token_id,) if isinstance(eos_token_id, int) else tuple(eos_token_id)
    if not all(isinstance(i, int) and i >= 0 for i in asked):
        raise ValueError(f"`eos_token_id` must be a token id, or several, got {eos_token_id!r}.")
    return asked, (*asked, *usual)


def _guessed_padding(ids: Tensor, given: Tensor, tokenizer: Any) -> Tensor:
    """A leading run of padding tokens in the prompt; with a warning where such a token may stand for something else."""
    pad: int | None = getattr(tokenizer, "pad_token_id", None)
    if pad is None:
        return torch.zeros_like(given)
    padding: Tensor = ((ids == pad) & given).cumprod(-1).bool()
    if padding_token_id(tokenizer) is not None:
        return padding
    if padding.any():
        warnings.warn(
            f"the prompts begin with {tokenizer.convert_ids_to_tokens(pad)!r}, which is padding to the tokenizer and "
            "something else as well; it is read as text. Pass `attention_mask`, False on padding.",
            stacklevel=2,
        )
    return torch.zeros_like(padding)


class DreamLogitsHook:
    """Guides Dream's `diffusion_generate` through its `generation_logits_hook_func`.

        hook = DreamLogitsHook(tokenizer, reward, GuidanceConfig(scale=2.0), steps=128, temperature=0.2)
        settings = {"generation_config": model.generation_config, "steps": 128, "temperature": 0.2}
        model.diffusion_generate(ids, max_new_tokens=128, generation_logits_hook_func=hook, **settings)

    Without `generation_config` Dream fails by itself, guided or not: transformers gives it one without Dream's fields.
    The hook gets logits that Dream has shifted to the positions they are for, before temperature and truncation.

    Args:
        tokenizer: the model's, with its mask token.
        reward, config, seed: as for `guide`; the sampler's randomness is taken to be torch's global one.
        steps, temperature: what `diffusion_generate` is given.
        attention_mask: `(batch, prompt)`, of the prompts, False on padding; None: no padding.
        prompts: what each of the texts was asked for, for rewards that want to know.

    Attributes:
        trace: a `Trace`, one `StepTrace` a guided step.

    Raises:
        ValueError: as `guide`, a tokenizer without mask token, or steps below 1.
    """

    def __init__(
        self,
        tokenizer: Any,
        reward: Wanted,
        config: GuidanceConfig | None = None,
        *,
        steps: int,
        temperature: float = 0.0,
        attention_mask: Tensor | None = None,
        prompts: Sequence[str] | None = None,
        seed: int = 0,
    ):
        self._guidance = Guidance(reward, config, seed)
        if getattr(tokenizer, "mask_token_id", None) is None:
            raise ValueError("`tokenizer` must have a `mask_token_id`, got None; pass the tokenizer of the model.")
        number = as_whole(steps)
        if number is None or number < 1:
            raise ValueError(f"`steps` must be >= 1, got {steps!r}; pass what `diffusion_generate` is given.")
        self._steps = number
        self._tokenizer, self._temperature = tokenizer, real_number("temperature", temperature)
        self._prompt_mask, self._prompts = attention_mask, prompts
        self._given: Tensor | None = None
        self._written: Tensor | None = None

    @property
    def trace(self) -> Trace:
        return self._guidance.trace

    def __call__(self, step: int | None, x: Tensor, logits: Tensor | None) -> Tensor | None:
        """Guided logits `(batch, length, vocabulary)`, x `(batch, length)` being the tokens with their masks."""
        if step is None or logits is None:  # the call before the first step
            return logits
        free = x == self._tokenizer.mask_token_id
        if step == 0 or self._given is None:
            self._given, special = ~free, special_token_ids(self._tokenizer)
            self._written = self._given & ~is_in(x, {*special, *end_token_ids(self._tokenizer)})
            self._guidance.begin()
        assert self._written is not None
        valid = torch.ones_like(free)
        if self._prompt_mask is not None:
            valid[:, : self._prompt_mask.shape[1]] = self._prompt_mask.to(valid)
        guided = self._guidance(
            DenoisingStep(
                logits=logits,
                ids=x,
                free=free,
                attention_mask=valid,
                temperature=self._temperature or 1.0,
                progress=step / self._steps,
                tokenizer=self._tokenizer,
                given=self._given,
                reserved=reserved_token_ids(self._tokenizer, logits.shape[-1]),
                prompts=self._prompts,
                unending=before_text(free, self._written),
                greedy=self._temperature == 0,
            )
        )
        if step == self._steps - 1:
            self._guidance.end()
        if guided is None:
            return logits
        result = in_float32(logits)
        result[free] = guided.to(result.dtype)
        return result
