"""Text generation with a masked diffusion language model."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from redge_guidance.pipelines.drawing import Canvas
from redge_guidance.pipelines.sampling import AfterStep, Callback, Generators, check_settings
from redge_guidance.pipelines.scheduler import MaskedDiffusionScheduler
from redge_guidance.pipelines.text.base import TextPipeline, TextPipelineOutput, check_tokenizer
from redge_guidance.pipelines.text.blocks import check_independent, split_into_blocks, steps_of_blocks
from redge_guidance.pipelines.text.families import ModelFamily, set_mask_token


class MaskedTextPipeline(TextPipeline):
    """Generate, continue or fill in text with any Hugging Face model that maps ids to logits.

    Text lies on a canvas of token positions; after its end the canvas is filled with the end-of-text token. Hidden
    positions hold the mask token, and `scheduler` decides which of them to draw in each denoising step.

    Args:
        model: called with `input_ids` `(batch, length)` and, where its `forward` takes them, `attention_mask` and
            `position_ids`; returns logits `(batch, length, vocabulary)` of the tokens at the same positions.
        tokenizer: has a mask token and an end-of-text token.
        scheduler: a `MaskedDiffusionScheduler`.
        length: canvas of a text that fits it, in tokens, prompt and beginning-of-text token included.
        temperature, top_p: what `__call__` uses when it is not told otherwise.
        suppress_tokens: further token ids that are never generated. Mask, padding, beginning-of-text and unknown
            tokens never are, nor ids that the tokenizer does not have.
        shift_logits, attention, time_input: how the model is called, as in `ModelFamily`.

    Raises:
        ValueError: a tokenizer without mask or end-of-text token, or an unknown `attention`.
    """

    scheduler: MaskedDiffusionScheduler
    corruption = "masked"

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        scheduler: MaskedDiffusionScheduler,
        length: int = 64,
        temperature: float = 1.0,
        top_p: float | None = None,
        suppress_tokens: list[int] | None = None,
        shift_logits: bool = False,
        attention: str = "2d",
        time_input: str | None = None,
    ):
        super().__init__()
        ModelFamily(shift_logits, attention, time_input)
        check_tokenizer(tokenizer, "mask_token_id", "eos_token_id")
        self.register_modules(model=model, tokenizer=tokenizer, scheduler=scheduler)
        self.register_to_config(length=length, temperature=temperature, top_p=top_p, suppress_tokens=suppress_tokens)
        self.register_to_config(shift_logits=shift_logits, attention=attention, time_input=time_input)

    @classmethod
    def _assemble(cls, model: Any, tokenizer: Any, how: ModelFamily, length: int) -> "MaskedTextPipeline":
        set_mask_token(tokenizer, how.mask_token_id)
        return cls(model, tokenizer, MaskedDiffusionScheduler(), length=length, **how.settings())

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] = "",
        *,
        gen_length: int | None = None,
        block_length: int | None = None,
        num_inference_steps: int | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        guidance_scale: float = 1.0,
        use_chat_template: bool = False,
        generator: Generators = None,
        return_dict: bool = True,
        callback_on_step_end: Callback | None = None,
        callback_on_step_end_tensor_inputs: list[str] | None = None,
    ) -> TextPipelineOutput | tuple[Tensor, list[str]]:
        """Generate one text a prompt.

        Args:
            prompt: text to continue; `""` is unconditional. A prompt with mask tokens in it (`"I [MASK] you."`) is
                a whole text of which only those are filled in.
            gen_length: number of new tokens after every prompt; None: up to the canvas of the pipeline, and at least
                half a canvas.
            block_length: draw blocks of so many tokens one after the other, from left to right (LLaDA's
                semi-autoregressive decoding), with an equal share of the steps each; None: all at once.
            num_inference_steps: denoising steps; None: as many as hidden tokens, so that one is drawn at a time.
            temperature, top_p: None: those of the pipeline. 0 is greedy.
            top_k: draw from the k likeliest tokens only.
            guidance_scale: classifier-free guidance, `logits = u + guidance_scale * (c - u)`, u with the prompt
                hidden; 1 is none.
            use_chat_template: take every prompt for the turn of a user and put it into the chat template of the
                tokenizer; mask tokens in it are then an error.
            generator: source of all randomness; the same generator gives the same texts. A list of one a prompt makes
                every text independent of the others.
            return_dict: return an output object instead of `(sequences, texts)`.
            callback_on_step_end: called as `callback(pipe, step, timestep, {name: tensor})`; may return a dict with a
                new `sample`.
            callback_on_step_end_tensor_inputs: of `["sample", "logits"]`; default `["sample"]`.

        Raises:
            ValueError: a prompt that is too long or holds a reserved token, or a setting out of range.
        """
        temperature = self.config.temperature if temperature is None else temperature
        top_p = self.config.top_p if top_p is None else top_p
        after_step = AfterStep(self, callback_on_step_end, callback_on_step_end_tensor_inputs)
        counts = {"top_k": top_k, "gen_length": gen_length, "block_length": block_length}
        check_settings(temperature, top_p, counts | {"num_inference_steps": num_inference_steps})
        drawing = self._plan(prompt, gen_length, use_chat_template, generator)
        canvas, sample = drawing.canvas, drawing.canvas.ids
        blocks = split_into_blocks(canvas.free, block_length) if len(canvas) else []
        steps = steps_of_blocks(blocks, num_inference_steps) if blocks else []
        check_independent(blocks, num_inference_steps, generator)
        done = 0
        with self.progress_bar(total=sum(steps)) as progress_bar:
            for number, block in enumerate(blocks):
                self.scheduler.set_timesteps(steps[number], device=sample.device)
                now = replace(drawing, block=number, num_blocks=len(blocks), steps_before=done, num_steps=sum(steps))
                with self._draw(now):
                    for t in self.scheduler.timesteps:
                        logits = self._conditional_logits(
                            sample, canvas, self.scheduler.alpha(float(t)), guidance_scale
                        )
                        sample, _ = self.scheduler.step(
                            logits,
                            t,
                            sample,
                            mask_token_id=self.tokenizer.mask_token_id,
                            free=block,
                            temperature=temperature,
                            top_k=top_k,
                            top_p=top_p,
                            generator=generator,
                            return_dict=False,
                        )
                        sample = after_step(done, t, sample, logits)
                        done += 1
                        progress_bar.update()
        return self._output(sample, canvas, return_dict)

    def _conditional_logits(self, sample: Tensor, canvas: Canvas, alpha: float, guidance_scale: float) -> Tensor:
        """Logits of the clean tokens, by classifier-free guidance where there is something to be guided by."""
        logits = self._logits(sample, canvas.attention_mask, alpha)
        if guidance_scale != 1 and canvas.prompt.any():
            without = sample.masked_fill(canvas.prompt, self.tokenizer.mask_token_id)
            unconditional = self._logits(without, canvas.attention_mask, alpha)
            logits = unconditional + guidance_scale * (logits - unconditional)
        return self._without_suppressed(logits)

    def _corrupted_nll(
        self, ids: Tensor, start: int, levels: Tensor, batch_size: int, generator: torch.Generator
    ) -> Tensor:
        canvas = ids.shape[1] - start
        k = (levels * canvas).long().clamp(max=canvas - 1) + 1
        order = torch.rand(len(ids), canvas, generator=generator, device=generator.device).cpu()
        hidden = torch.nn.functional.pad(order.argsort(-1).argsort(-1) < k[:, None], (start, 0))
        losses = torch.empty(len(ids))
        for part in torch.arange(len(ids)).split(batch_size):
            x_0, masked = ids[part].to(self._execution_device), hidden[part].to(self._execution_device)
            alpha = 1 - k[part].to(x_0.device) / canvas
            x_t = x_0.masked_fill(masked, self.tokenizer.mask_token_id)
            logits = self._logits(x_t, torch.ones_like(masked), alpha)
            rows = self._without_suppressed(logits[masked].float())
            loss = torch.zeros(x_0.shape, device=rows.device)
            loss[masked] = torch.nn.functional.cross_entropy(rows, x_0[masked], reduction="none")
            losses[part] = (loss.sum(-1).cpu() * canvas) / k[part]
        return losses
