"""Text generation with a uniform diffusion language model."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from diffusers import DiscreteDDIMScheduler
from torch import Tensor

from redge_guidance.chats import Prompt
from redge_guidance.checks import as_whole, is_sequence
from redge_guidance.pipelines.drawing import Canvas
from redge_guidance.pipelines.sampling import (
    AfterStep,
    Callback,
    Generators,
    logit_warpers,
    plain_settings,
    random_tokens,
)
from redge_guidance.pipelines.schedules import classifier_free
from redge_guidance.pipelines.text.allowed import check_parts
from redge_guidance.pipelines.text.base import TextPipeline
from redge_guidance.pipelines.text.bound import Scoring
from redge_guidance.pipelines.text.families import ModelFamily, set_mask_token
from redge_guidance.pipelines.text.output import TextPipelineOutput
from redge_guidance.pipelines.text.posterior import denoiser_logits, elbo_rate, leave_one_out_logits
from redge_guidance.pipelines.text.prompts import check_tokenizer
from redge_guidance.pipelines.uniform_scheduler import UniformDiffusionScheduler

PREDICTIONS = ("leave_one_out", "denoiser")
NOISE_REMOVALS = ("ancestral", "greedy")
_SHORTEST_TIME, _SMALLEST_ALPHA = 1e-5, 1e-3  # the bound's integrand is not evaluated closer to either end


@dataclass(frozen=True)
class Classes:
    """The classes that a call asks a model for.

    Attributes:
        labels: `(batch,)` int64; None: none.
        nothing: `(batch,)` int64, what stands for no class in a model of classes; None: it is not asked.
        guidance_scale: of classifier-free guidance.
    """

    labels: Tensor | None
    nothing: Tensor | None
    guidance_scale: float

    @classmethod
    def of(cls, model: Any, class_labels: Any, guidance_scale: float, batch: int, device: Any) -> "Classes":
        """The classes that were asked for, checked; a ValueError if the model or the batch has no such ones."""
        number = getattr(getattr(model, "config", None), "cfg_num_classes", None) or 0
        if class_labels is None:
            if guidance_scale != 1:
                raise ValueError(f"`guidance_scale` needs `class_labels`, got {guidance_scale} and None.")
            return NO_CLASSES
        asked: Any = class_labels if is_sequence(class_labels) else [class_labels] * batch
        labels = [as_whole(label) for label in asked]
        if len(labels) != batch or not all(label is not None and 0 <= label < number for label in labels):
            raise ValueError(
                f"`class_labels` must be one, or one for each of {batch} texts, of the {max(number, 0)} classes of the "
                f"model, counted from 0; got {class_labels}."
            )
        chosen = torch.tensor(labels, dtype=torch.long, device=device)
        return cls(chosen, torch.full_like(chosen, number), guidance_scale)

    def logits(self, call: Callable[[dict[str, Tensor]], Tensor]) -> Tensor:
        """Of `call(further inputs of the model)`, by classifier-free guidance."""
        if self.labels is None or self.nothing is None:
            return call({})
        conditional = call({"cond": self.labels})
        if self.guidance_scale == 1:
            return conditional
        without = call({"cond": self.nothing})
        return classifier_free(conditional, without, self.guidance_scale)


NO_CLASSES = Classes(None, None, 1.0)


class UniformTextPipeline(TextPipeline):
    """Generate, continue or fill in text with a model that denoises uniformly random tokens.

    Nothing is a mask here: hidden positions begin as random tokens, and every step may replace every token that was not
    given, until the last one takes the clean tokens as they are. The steps are those of the exact posterior: a clean
    token drawn from the denoiser, then `q(z_s | z_t, x_0)` with `alpha_t = 1 - t`; for models that predict a token from
    the others (UDLM, Duo) that is their own sampler, see `uniform_posterior`. With `corrector_steps` in the scheduler's
    config, Gibbs sweeps follow every step but the last (arXiv 2605.22765). With `corrector_selection="random"` they
    keep the distribution; positions chosen by their confidence, the default there, lean it toward likely tokens.

    Args:
        model: called as in `ModelFamily`; returns logits `(batch, length, vocabulary)`.
        tokenizer: has an end-of-text token. With a mask token prompts may have gaps.
        scheduler: a `DiscreteDDIMScheduler` of diffusers, whose settings a `UniformDiffusionScheduler` takes over.
        length: canvas of a text that fits it, in tokens, prompt and beginning-of-text token included.
        num_inference_steps, temperature, top_p: what `__call__` uses when it is not told otherwise.
        suppress_tokens: further token ids that no text ends up with. Special tokens that end no text never are in one,
            nor ids that the tokenizer does not have; as noise they occur.
        prediction_type: `"leave_one_out"`, the model predicts a token from all others (UDLM, Duo); `"denoiser"`, from
            all and itself (D3PM, DiffusionGemma).
        shift_logits, attention, time_input: how the model is called, as in `ModelFamily`.

    Raises:
        ValueError: a tokenizer without end-of-text token, another scheduler, or an unknown `prediction_type` or
            `attention`.
    """

    scheduler: UniformDiffusionScheduler
    corruption = "uniform"

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        scheduler: DiscreteDDIMScheduler,
        length: int = 64,
        num_inference_steps: int = 64,
        temperature: float = 1.0,
        top_p: float | None = None,
        suppress_tokens: list[int] | None = None,
        prediction_type: str = "leave_one_out",
        shift_logits: bool = False,
        attention: str = "2d",
        time_input: str | None = None,
    ):
        super().__init__()
        check_parts(model, tokenizer, scheduler, "UniformDiffusionScheduler", suppress_tokens)
        ModelFamily(shift_logits, attention, time_input)
        if prediction_type not in PREDICTIONS:
            raise ValueError(f"`prediction_type` must be one of {', '.join(PREDICTIONS)}, got {prediction_type!r}.")
        if not isinstance(scheduler, DiscreteDDIMScheduler):
            raise ValueError(f"`scheduler` must be a DiscreteDDIMScheduler, got {type(scheduler).__name__}.")
        if not isinstance(scheduler, UniformDiffusionScheduler):
            scheduler = UniformDiffusionScheduler.from_config(scheduler.config)
        check_tokenizer(tokenizer, "eos_token_id")
        self.register_modules(model=model, tokenizer=tokenizer, scheduler=scheduler)
        self.register_to_config(length=length, num_inference_steps=num_inference_steps, temperature=temperature)
        self.register_to_config(top_p=top_p, suppress_tokens=suppress_tokens, prediction_type=prediction_type)
        self.register_to_config(shift_logits=shift_logits, attention=attention, time_input=time_input)

    @classmethod
    def _assemble(
        cls, model: Any, tokenizer: Any, how: ModelFamily, length: int, mask_token_id: int | None = None
    ) -> "UniformTextPipeline":
        if mask_token_id is not None:
            set_mask_token(tokenizer, how, mask_token_id)
        return cls(model, tokenizer, UniformDiffusionScheduler(), length=length, **how.settings())

    @torch.no_grad()
    def __call__(
        self,
        prompt: Prompt | Sequence[Prompt] = "",
        *,
        gen_length: int | None = None,
        num_inference_steps: int | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        class_labels: int | list[int] | None = None,
        guidance_scale: float = 1.0,
        noise_removal: str = "ancestral",
        use_chat_template: bool = False,
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
                half a canvas.
            num_inference_steps: denoising steps; None: as many as the pipeline says. Each may change every token, so
                more steps than tokens are worth their time.
            temperature: divides the logits of the leave-one-out prediction, before the token that is seen is taken into
                account: otherwise a low temperature would make noise stick. 0 takes the likeliest clean token. None:
                that of the pipeline.
            top_p: draw from the likeliest clean tokens of total probability p; None: that of the pipeline.
            top_k: draw from the k likeliest tokens only.
            class_labels: of a model of classes (UDLM's `cond`), one for all texts or one each; None: no class.
            guidance_scale: classifier-free guidance, `logits = u + guidance_scale * (c - u)` of the model's own
                prediction, u without the class; 1 is none. (UDLM's `gamma` mixes the posteriors of a step instead,
                which is another law but for 0 and 1.)
            noise_removal: the last step, `"ancestral"`, drawn as the others, or `"greedy"`, the likeliest tokens of the
                model's own prediction (Duo).
            use_chat_template: take every prompt for the turn of a user and put it into the chat template of the
                tokenizer; mask tokens in it are then an error.
            generator: source of all randomness, on the device of the pipeline or on the CPU; the same generator gives
                the same texts. A list of one a prompt makes every text independent of the others.
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
        counts = {"top_k": top_k, "gen_length": gen_length, "num_inference_steps": num_inference_steps}
        plain = plain_settings(temperature, top_p, counts, guidance_scale)
        temperature, top_p, guidance_scale, top_k, gen_length, num_inference_steps = plain
        if noise_removal not in NOISE_REMOVALS:
            raise ValueError(f"`noise_removal` must be one of {', '.join(NOISE_REMOVALS)}, got {noise_removal!r}.")
        drawing = self._plan(prompt, gen_length, use_chat_template, generator)
        classes = Classes.of(self.model, class_labels, guidance_scale, len(drawing.canvas), self._execution_device)
        drawing = replace(drawing, class_labels=classes.labels, spends_logits=not after_step.reads_logits)
        canvas, steps = drawing.canvas, num_inference_steps or self.config.num_inference_steps
        if not len(canvas):
            return self._output(canvas.ids, canvas, return_dict)
        self.scheduler.set_timesteps(steps, device=canvas.ids.device)
        noise = random_tokens(canvas.free, self._vocabulary(canvas.ids, canvas.attention_mask), generator)
        sample = torch.where(canvas.free, noise, canvas.ids)
        settings: dict[str, Any] = {"generator": generator, "attention_mask": canvas.attention_mask}
        with self.progress_bar(total=steps) as progress_bar, self._running(steps), self._draw(drawing):
            for step, t in enumerate(self.scheduler.timesteps):
                if self.interrupt:
                    self._say_undrawn(canvas.free, "the texts are those of its last step, with noise in them")
                    break
                greedy = noise_removal == "greedy" and step + 1 == steps
                logits = self._denoise(canvas, sample, step / steps, classes, temperature, greedy)
                for warper in logit_warpers(top_k, top_p):
                    kept = warper(None, logits.flatten(0, 1)) > -torch.inf
                    logits = logits.masked_fill(~kept.view(logits.shape), -torch.inf)
                draws_at = 1.0 if temperature > 0 and not greedy else 0.0  # the logits are tempered already
                drawn, *_ = self.scheduler.step(logits, t, sample, temperature=draws_at, return_dict=False, **settings)
                sample = torch.where(canvas.free, drawn, canvas.ids)
                for _ in range(self.scheduler.config.corrector_steps if step + 1 < steps else 0):
                    logits = self._denoise(canvas, sample, (step + 1) / steps, classes, temperature)
                    drawn, *_ = self.scheduler.step_correct(logits, t, sample, return_dict=False, **settings)
                    sample = torch.where(canvas.free, drawn, canvas.ids)
                sample = after_step(step, t, sample, logits)
                progress_bar.update()
        return self._output(sample, canvas, return_dict)

    def _denoise(
        self,
        canvas: Canvas,
        sample: Tensor,
        alpha: float,
        classes: Classes = NO_CLASSES,
        temperature: float = 1.0,
        own: bool = False,
    ) -> Tensor:
        """Logits of the clean tokens given the whole canvas; a given token is certain, so that no sweep chooses it.

        `own`: as the model gives them, whether or not it looks at the token itself.
        """
        logits = classes.logits(lambda inputs: self._logits(sample, canvas.attention_mask, alpha, inputs).float())
        if self.config.prediction_type == "denoiser" and not own:
            logits = leave_one_out_logits(logits, sample, alpha)
        logits = logits / (temperature or 1.0)
        logits = logits if own else denoiser_logits(logits, sample, alpha)
        logits = self._without_suppressed(logits, unending=canvas.unending)
        certain = torch.full_like(logits, -torch.inf).scatter_(-1, sample[..., None], 0.0)
        return torch.where(canvas.free[..., None], logits, certain)

    def _vocabulary(self, ids: Tensor, attention_mask: Tensor) -> int:
        """Number of tokens that noise is drawn from: as many as the model has logits."""
        size: int | None = getattr(getattr(self.model, "config", None), "vocab_size", None)
        return size or self._logits(ids[:1], attention_mask[:1]).shape[-1]

    def _corrupted_nll(self, ids: Tensor, levels: Tensor, how: Scoring) -> Tensor:
        if how.guidance_scale != 1:
            raise ValueError(
                "`guidance_scale` of `nll` needs a mask that hides the prompt, which uniform diffusion does not have, "
                f"got {how.guidance_scale}; leave it out."
            )
        # The few tokens replaced at small t weigh most: t = u^2 draws them more often, weighted by dt = 2 u du.
        times = levels.square()
        alpha = 1 - times.clamp(_SHORTEST_TIME, 1 - _SMALLEST_ALPHA)[:, None].expand(ids.shape)
        somewhere = ids[:1].to(self._execution_device)
        vocabulary = self._vocabulary(somewhere, torch.ones_like(somewhere, dtype=torch.bool))
        uniform, noise = how.source.uniform(ids.shape[1]), how.source.integers(vocabulary, ids.shape[1])
        seen = torch.where((uniform < 1 - alpha) & (torch.arange(ids.shape[1]) >= how.start), noise, ids)
        losses = torch.empty(len(ids))
        for part in torch.arange(len(ids)).split(how.batch_size):
            x_0, x_t, a = (tensor[part].to(self._execution_device) for tensor in (ids, seen, alpha))
            logits = self._logits(x_t, torch.ones_like(x_t, dtype=torch.bool), a[:, 0]).float()
            logits = self._without_suppressed(logits)
            if self.config.prediction_type == "denoiser":
                logits = leave_one_out_logits(logits, x_t, a)
            losses[part] = elbo_rate(logits, x_0, x_t, a)[:, how.start :].sum(-1).cpu()
        return losses * 2 * levels
