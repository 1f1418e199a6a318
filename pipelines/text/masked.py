"""Text generation with a masked diffusion language model."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from redge_guidance.chats import Prompt
from redge_guidance.pipelines.drawing import Canvas
from redge_guidance.pipelines.sampling import AfterStep, Callback, Generators, plain_settings
from redge_guidance.pipelines.scheduler import MaskedDiffusionScheduler
from redge_guidance.pipelines.schedules import classifier_free
from redge_guidance.pipelines.text.allowed import check_parts
from redge_guidance.pipelines.text.base import TextPipeline
from redge_guidance.pipelines.text.blocks import (
    aligned_blocks,
    check_independent,
    check_stride,
    split_into_blocks,
    steps_of_blocks,
    stretches,
    strides,
)
from redge_guidance.pipelines.text.bound import Scoring, masked_losses
from redge_guidance.pipelines.text.calling import BlockReader, WindowReader
from redge_guidance.pipelines.text.families import ModelFamily, set_mask_token
from redge_guidance.pipelines.text.output import TextPipelineOutput
from redge_guidance.pipelines.text.prompts import check_tokenizer
from redge_guidance.positions import longest
from redge_guidance.text import end_token_id, is_in


class MaskedTextPipeline(TextPipeline):
    """Generate, continue or fill in text with any Hugging Face model that maps ids to logits.

    Hidden positions hold the mask token, and `scheduler` decides which of them to draw in each denoising step.

    Args:
        model: called as in `ModelFamily`; returns logits `(batch, length, vocabulary)` of the tokens at the same ones.
        tokenizer: has a mask token and an end-of-text token.
        scheduler: a `MaskedDiffusionScheduler`.
        length: canvas of a text that fits it, in tokens, prompt and beginning-of-text token included.
        temperature, top_p, block_length: what `__call__` uses when it is not told otherwise.
        suppress_tokens: further token ids that are never generated, the end of the text too where it is among them.
            Special tokens that end no text never are, nor ids that the tokenizer does not have.
        shift_logits, attention, time_input, block_size, leading_token: how the model is called, as in `ModelFamily`.

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
        block_size: int | None = None,
        leading_token: bool = False,
        block_length: int | None = None,
    ):
        super().__init__()
        check_parts(model, tokenizer, scheduler, "MaskedDiffusionScheduler", suppress_tokens)
        how = ModelFamily(shift_logits, attention, time_input, block_size=block_size, leading_token=leading_token)
        if how.is_block and block_size is None:
            raise ValueError("`block_size` must be given for block-causal attention, got None.")
        check_tokenizer(tokenizer, "mask_token_id", "eos_token_id")
        self.register_modules(model=model, tokenizer=tokenizer, scheduler=scheduler)
        self.register_to_config(length=length, temperature=temperature, top_p=top_p, suppress_tokens=suppress_tokens)
        self.register_to_config(shift_logits=shift_logits, attention=attention, time_input=time_input)
        self.register_to_config(block_size=block_size, leading_token=leading_token, block_length=block_length)

    @classmethod
    def _assemble(
        cls, model: Any, tokenizer: Any, how: ModelFamily, length: int, mask_token_id: int | None = None
    ) -> "MaskedTextPipeline":
        set_mask_token(tokenizer, how, mask_token_id)
        scheduler = MaskedDiffusionScheduler(**how.scheduler)
        call = dict(how.call)
        if (how.block_size or 0) % (call.get("block_length") or 1):
            del call["block_length"]  # of blocks of attention that this model does not have
        return cls(model, tokenizer, scheduler, length=length, **how.settings(), **call)

    @torch.no_grad()
    def __call__(
        self,
        prompt: Prompt | Sequence[Prompt] = "",
        *,
        gen_length: int | None = None,
        block_length: int | None = None,
        stride_length: int | None = None,
        num_inference_steps: int | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        suppress_tokens: list[int] | None = None,
        late_tokens: list[int] | None = None,
        guidance_scale: float = 1.0,
        use_chat_template: bool = False,
        use_cache: bool = True,
        generator: Generators = None,
        return_dict: bool = True,
        callback_on_step_end: Callback | None = None,
        callback_on_step_end_tensor_inputs: list[str] | None = None,
    ) -> TextPipelineOutput | tuple[Tensor, list[str]]:
        """Generate one text a prompt.

        Args:
            prompt: text to continue; `""` is unconditional. A prompt with mask tokens in it (`"I [MASK] you."`) is
                a whole text of which only those are filled in; it does not end before its last given word. A list of
                messages (`{"role": "user", "content": "Hello."}`) is a chat to answer, in the tokenizer's template.
            gen_length: number of new tokens after every prompt; None: up to the canvas of the pipeline, and at least
                half a canvas. A model with block-causal attention goes on to the end of a block.
            block_length: draw blocks of so many tokens one after the other, from left to right (LLaDA's
                semi-autoregressive decoding), with an equal share of the steps each; None: that of the pipeline, or all
                at once. With block-causal attention it divides the model's blocks, which are drawn whole by default
                (Fast-dLLM's `small_block_size`).
            stride_length: texts longer than the model: draw as many tokens as it has positions, and then so many more
                at a time, with the last ones in view (MDLM's semi-autoregressive sampling); None: such texts are an
                error.
            num_inference_steps: denoising steps; None: as many as hidden tokens, so that one is drawn at a time, or as
                a block of attention has.
            temperature, top_p: None: those of the pipeline. 0 is greedy.
            top_k: draw from the k likeliest tokens only.
            suppress_tokens: token ids that are not generated, beside those that never are (LLaDA's `logits_eos_inf` for
                the end of the text); None: those of the pipeline.
            late_tokens: token ids that orders by confidence are not sure of, so that they come last (LLaDA's
                `confidence_eos_eot_inf`, whose published script takes the end of the turn alone above temperature 0).
            guidance_scale: classifier-free guidance, `logits = u + guidance_scale * (c - u)`, u with the prompt
                hidden; 1 is none (LLaDA's `cfg_scale` is smaller by 1).
            use_chat_template: take every prompt for the turn of a user and put it into the chat template of the
                tokenizer; mask tokens in it are then an error.
            use_cache: with block-causal attention, read finished blocks once, where the model takes a cache.
            generator: source of all randomness; the same generator gives the same texts. A list of one a prompt makes
                every text independent of the others.
            return_dict: return an output object, with the `answers`, instead of `(sequences, texts)`.
            callback_on_step_end: called as `callback(pipe, step, timestep, {name: tensor})`; may return a dict with a
                new `sample`; `pipe._interrupt = True` makes this step the last.
            callback_on_step_end_tensor_inputs: of `["sample", "logits"]`; default `["sample"]`.

        Raises:
            ValueError: a prompt that is too long or holds a reserved token, or a setting out of range.
        """
        temperature = self.config.temperature if temperature is None else temperature
        top_p = self.config.top_p if top_p is None else top_p
        after_step = AfterStep(self, callback_on_step_end, callback_on_step_end_tensor_inputs)
        counts = {"top_k": top_k, "gen_length": gen_length, "block_length": block_length}
        counts |= {"stride_length": stride_length, "num_inference_steps": num_inference_steps}
        plain = plain_settings(temperature, top_p, counts, guidance_scale)
        temperature, top_p, guidance_scale, top_k, gen_length, block_length, stride_length, num_inference_steps = plain
        if stride_length is not None:
            check_stride(stride_length, block_length, self._window())
        drawing = self._plan(prompt, gen_length, use_chat_template, generator, stride_length is not None)
        drawing = replace(drawing, spends_logits=not after_step.reads_logits)
        canvas, sample = drawing.canvas, drawing.canvas.ids
        length = self.config.block_length if block_length is None else block_length
        blocks, steps, size = self._blocks(canvas, length, stride_length, num_inference_steps, generator)
        draws: dict[str, Any] = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "late_tokens": late_tokens}
        read = self._reader(canvas, guidance_scale, suppress_tokens, stride_length, use_cache)
        one_source, done = generator is None or isinstance(generator, torch.Generator), 0
        with self.progress_bar(total=sum(steps)) as progress_bar, self._running(sum(steps)):
            for number, block in enumerate(blocks):
                self.scheduler.set_timesteps(steps[number], device=sample.device, num_tokens=size)
                now = replace(drawing, block=number, num_blocks=len(blocks), steps_before=done, num_steps=sum(steps))
                with self._draw(now):
                    for t in self.scheduler.timesteps:
                        nothing_left = one_source and size is not None and not self._hidden(sample, block).any()
                        if self.interrupt or nothing_left:  # a list of generators advances alike
                            done, _ = done + 1, progress_bar.update(not self.interrupt)
                            continue
                        logits = read(sample, block, self.scheduler.alpha(float(t)))
                        sample, _ = self.scheduler.step(
                            logits,
                            t,
                            sample,
                            mask_token_id=self.tokenizer.mask_token_id,
                            free=block,
                            generator=generator,
                            return_dict=False,
                            **draws,
                        )
                        sample = after_step(done, t, sample, logits)
                        done += 1
                        progress_bar.update()
                if size is not None:
                    sample = self._ended(sample, canvas)
        self._say_undrawn(self._hidden(sample, canvas.free), "they hold the mask token, and are left out of the texts")
        return self._output(sample, canvas, return_dict)

    def _blocks(
        self,
        canvas: Canvas,
        block_length: int | None,
        stride_length: int | None,
        num_inference_steps: int | None,
        generator: Generators,
    ) -> tuple[list[Tensor], list[int], int | None]:
        """Blocks that are drawn one after the other, their steps, and how many tokens the steps of a block are for."""
        if not len(canvas):
            return [], [], None
        if self._family.is_block:
            size = self._family.block_size
            assert size is not None
            length = block_length or size
            blocks = aligned_blocks(canvas.free, canvas.attention_mask, length, size, self._family.leading_token)
            if num_inference_steps is not None:
                check_independent(blocks, num_inference_steps, generator)
                return blocks, steps_of_blocks(blocks, num_inference_steps), length
            return blocks, [length] * len(blocks), length
        if stride_length is None:
            blocks = split_into_blocks(canvas.free, block_length)
        else:
            blocks = strides(canvas.free, canvas.attention_mask, self._window(), stride_length)
        steps = steps_of_blocks(blocks, num_inference_steps)
        check_independent(blocks, num_inference_steps, generator)
        return blocks, steps, None

    def _window(self) -> int:
        window = longest(self.model)
        if window is None or self._family.is_block:
            raise ValueError(
                "`stride_length` needs a model whose config says how long its texts may be, and that sees all of them; "
                "leave it out."
            )
        return window

    def _hidden(self, sample: Tensor, block: Tensor) -> Tensor:
        return (sample == int(self.tokenizer.mask_token_id)) & block

    def _reader(
        self,
        canvas: Canvas,
        guidance_scale: float,
        suppress_tokens: list[int] | None,
        stride_length: int | None,
        use_cache: bool,
    ) -> Callable[[Tensor, Tensor, float], Tensor]:
        """What gives the logits of a block, by classifier-free guidance where there is something to be guided by."""

        def one() -> Callable[..., Tensor]:
            if self._family.is_block:
                return BlockReader(self.model, self._family, use_cache)
            if stride_length is not None:
                return WindowReader(self.model, self._family, self._window())
            return lambda ids, attention_mask, alpha, block: self._logits(ids, attention_mask, alpha)

        conditional, unconditional = one(), one()

        def read(sample: Tensor, block: Tensor, alpha: float) -> Tensor:
            level = torch.full((len(sample),), alpha, device=sample.device)
            logits = conditional(sample, canvas.attention_mask, level, block)
            if guidance_scale != 1 and canvas.prompt.any():
                without = sample.masked_fill(canvas.prompt, self.tokenizer.mask_token_id)
                other = unconditional(without, canvas.attention_mask, level, block)
                logits = classifier_free(logits, other, guidance_scale)
            return self._without_suppressed(logits, suppress_tokens, canvas.unending)

        return read

    def _ended(self, sample: Tensor, canvas: Canvas) -> Tensor:
        """Rows that have come to their end, with the end-of-text token in what is still hidden."""
        end: Any = end_token_id(self.tokenizer)
        ended = (is_in(sample, self.ends) & canvas.free).any(-1, keepdim=True)
        return sample.masked_fill(ended & self._hidden(sample, canvas.free), end)

    def _corrupted_nll(self, ids: Tensor, levels: Tensor, how: Scoring) -> Tensor:
        block_size = self._family.block_size if self._family.is_block else None
        parts = list(stretches(how.start, ids.shape[1], block_size))

        def predict(x_0: Tensor, masked: Tensor, alpha: Tensor) -> Tensor:
            return self._predicted(x_0, masked, alpha, how)

        return masked_losses(ids, levels, parts, how, predict, self._execution_device)

    def _predicted(self, x_0: Tensor, masked: Tensor, alpha: Tensor, how: Scoring) -> Tensor:
        """Logits `(n, vocabulary)` float32 at the masked positions."""
        mask_id = int(self.tokenizer.mask_token_id)

        def read(x_t: Tensor) -> Tensor:
            everywhere = torch.ones_like(masked)
            if self._family.is_block:
                return BlockReader(self.model, self._family, use_cache=False)(x_t, everywhere, alpha, masked)[masked]
            return self._logits(x_t, everywhere, alpha)[masked]

        x_t = x_0.masked_fill(masked, mask_id)
        logits, other = read(x_t).float(), how.without_prompt(x_t, mask_id)
        if other is not None:
            logits = classifier_free(logits, read(other).float(), how.guidance_scale)
        return self._without_suppressed(logits)
