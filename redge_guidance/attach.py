"""`guide`: attach a reward to a pipeline, by its scheduler's `step`, or to a model, by its forward."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from redge_guidance.arguments import Images, hidden_id, read_images
from redge_guidance.config import GuidanceConfig
from redge_guidance.guidance import Guidance
from redge_guidance.handle import Handle
from redge_guidance.hosts.attachment import Attachment
from redge_guidance.hosts.base import Drawn
from redge_guidance.hosts.calls import ForwardSettings
from redge_guidance.hosts.forward import ForwardAttachment
from redge_guidance.hosts.registry import makes_images, supports
from redge_guidance.loop import LogitsGuidance
from redge_guidance.reward import Wanted
from redge_guidance.step import DenoisingStep, Generators
from redge_guidance.stopping import StopRule
from redge_guidance.text import end_token_ids
from redge_guidance.trace import FinishedFigures, Trace


class GuidanceHandle(Handle):
    """A reward attached to a pipeline or a model, as `guide` returns it. A context manager that removes itself on exit.

    Attributes:
        config: the settings in force.
        trace: a `Trace`, one `StepTrace` a guided step since the handle was made.
    """

    def __init__(self, pipe: Any, guidance: Guidance | LogitsGuidance, attachment: Attachment | ForwardAttachment):
        super().__init__(pipe, attachment)
        self._guidance = guidance

    @property
    def config(self) -> GuidanceConfig:
        return self._guidance.config

    @property
    def trace(self) -> Trace:
        return self._guidance.trace

    @property
    def finished(self) -> tuple[FinishedFigures, ...] | None:
        """Of every sample of the last call of a pipeline: its reward, whether it has the target, and if not, why not.

        The reward is asked about the finished samples when this is first read, and not again. None without a target,
        where no call has come to its end yet, or it is not known what it has come to, and for models.
        """
        return self.trace.finished

    def reset(self, prompts: Sequence[str] | None = None, context: Tensor | None = None) -> None:
        """Of a guided model: its next call begins a sampling, where that cannot be told from the tokens.

        Args:
            prompts: what each text is asked for from now on; None: as before.
            context: `(batch, length)` int64, a text that is in the model's cache already.

        Raises:
            ValueError: a pipeline is guided, whose calls say when a sampling begins.
        """
        if not isinstance(self._attachment, ForwardAttachment):
            raise ValueError("`reset` is for guided models; a pipeline says by itself when a sampling begins.")
        self._attachment.reset(prompts, context)


def guide(
    pipe: Any,
    reward: Wanted,
    config: GuidanceConfig | None = None,
    *,
    seed: int = 0,
    decode_chunk_size: int | None = None,
    stop_when: StopRule | None = None,
    tokenizer: Any = None,
    mask_token_id: int | None = None,
    num_steps: int | None = None,
    block_length: int | None = None,
    prompts: Sequence[str] | None = None,
    temperature: float = 1.0,
    generator: Generators = None,
    classifier_free: str | None = "auto",
    guidance_scale: float | None = None,
    conditional_first: bool | None = None,
    shift_logits: bool = False,
    images: Images | None = None,
    vocabulary: slice | None = None,
    free: Callable[[Tensor], Tensor] | None = None,
    start: Callable[[dict[str, Any]], int] | None = None,
    remasking: bool = False,
) -> GuidanceHandle:
    """Steer every sample that `pipe` draws toward `reward`, until the handle is removed.

    `pipe` is used exactly as before. While it draws, each call of its `scheduler.step` first has its logits moved by
    `config.update`; the scheduler then samples from them with its own settings and its own randomness. The schedule,
    the positions that are fixed already and the pipeline's generator are left alone.

    The same generator gives the same samples, whatever was drawn before: guidance's noise is a function of the state of
    the pipeline's generator and of `seed`. A list of generators makes every sample independent of its batch.

    Guidance belongs to the calls of this pipeline object. Another pipeline that shares its scheduler or its model is
    not guided, and a copy of it, by `copy` or `pickle`, comes out unguided. The scheduler may be exchanged between
    calls. Two calls at the same time are refused.

    Given a model, any `torch.nn.Module` whose forward returns logits, and its `tokenizer`, the samplers are guided that
    are functions of it: the logits at the masks of every call that is made without gradients are moved. The reward's
    own calls of the model, and those of training, are not. What `LogitsGuidance` asks of a loop is read off the calls:
    the tokens, their padding, where a sampling begins; what cannot be read is said here once.

    Args:
        pipe: a pipeline with a discrete scheduler, or a model.
        reward: a `Constraint` (`redge_guidance.constraints`), `reward & constraint`, or any callable from
            `RelaxedTokens`, or from pixels `(batch, 3, height, width)` in [0, 1] where the pipeline makes images, to a
            differentiable tensor `(batch,)`, higher is better; on images also anything with `score(pixels, prompts)`.
            It need not be differentiable for the estimator `reinforce_loo`, nor where it, or a term of a sum, says so.
            Functions of strings, reward functions as in TRL and models of other libraries are accepted as
            `redge_guidance.accepting.as_reward` says.
        config: `GuidanceConfig()` when None.
        seed: of guidance's own noise.
        decode_chunk_size: of images, this many are decoded to pixels at a time, and once more in the backward pass,
            which bounds the memory; None: all at once, and only once.
        stop_when: asked after every guided step about every sequence, with the list of its `SequenceFigures` so far in
            this call; True ends its guidance, not its sampling, see `redge_guidance.stopping`. `Settled()` is one.
        tokenizer: of a model; this and all that follows is for models.
        mask_token_id: what a hidden token holds; None: the tokenizer's.
        num_steps, block_length, remasking: of the sampler, as `LogitsGuidance` has them; two calls of one step count as
            one.
        prompts: what each of the texts is asked for, for rewards that want to know; `handle.reset(prompts)` for others.
        temperature: what the sampler divides the logits by.
        generator: the sampler's source of randomness, read and never advanced.
        classifier_free: how the sampler calls the model with and without the prompt: `"doubled"`, in one batch of two
            halves; `"two_calls"`, one call after the other; None, only with it; `"auto"`, what is seen: a batch, or a
            call after another, in which the prompt alone is hidden, with a warning.
        guidance_scale: w of the sampler's `u + w * (c - u)` (LLaDA's `cfg_scale` + 1); guidance then acts on the mix
            itself. None: both predictions are moved alike, so that the mix moves as far; exact for a reward linear in
            the tokens without `support` and `kl_budget`, see `redge_guidance.hosts.classifier_free`.
        conditional_first: whether the half, or the call, with the prompt comes first; None: that in which less is
            hidden, and of two calls the first.
        shift_logits: whether the model's logits are those of the next position, and the sampler shifts them (Dream).
        images: where tokens are those of images, an `ImageDecoder`, or `(codebook, decode)`.
        vocabulary: the part of the logits that is of image tokens, whose ids begin with it (Lumina-DiMOO, MMaDA).
        free: of a model without masks, from the ids of a call `(batch, length)` to what may be drawn, bool like them.
        start: from the arguments of a call by name to the position of its first token, where the model has the text
            before in its cache; None: told by `position_ids`, or by what is in the cache.

    Returns:
        A `GuidanceHandle`; `handle.remove()`, or leaving a `with guide(...)` block, restores the pipeline.

    Raises:
        ValueError: an unsupported or an already guided pipeline, a model without tokenizer, a reward that is not
            callable, or a seed that torch does not take. While sampling: a reward of the wrong kind or shape, not
            finite, or without gradient; calls of a model with `inputs_embeds`, after a text that was not seen, or in
            another order than was said.
        RuntimeError: a pipeline that cannot draw with the versions that are installed, guided or not. While sampling:
            in two calls at the same time, with a version of the pipeline's library whose scheduler is called in a way
            that is not known, or with a reward that was made under `torch.inference_mode()`.

    Example:
        >>> from redge_guidance.pipelines import MaskedTextPipeline
        >>> from redge_guidance.rewards import TextClassifierReward
        >>> pipe = MaskedTextPipeline.from_pretrained("builtin:tatoeba-masked")
        >>> pipe.set_progress_bar_config(disable=True)
        >>> reward = TextClassifierReward.from_pretrained("builtin:sentiment", label="positive")
        >>> with guide(pipe, reward) as handle:
        ...     output = pipe(prompt=["", "Tom"], generator=torch.Generator().manual_seed(0))
        >>> len(output.texts), len(handle.trace) > 0
        (2, True)
    """
    settings = ForwardSettings(
        classifier_free,
        guidance_scale,
        conditional_first,
        shift_logits,
        vocabulary,
        temperature,
        free,
        start,
        generator,
    )
    if isinstance(pipe, torch.nn.Module) and supports(pipe) is None and not (tokenizer is None and images is None):
        decoder = read_images(images)
        if decoder is not None and decode_chunk_size is not None:
            decoder = replace(decoder, chunk_size=decode_chunk_size)
        mask = getattr(tokenizer, "mask_token_id", None) if mask_token_id is None else mask_token_id
        loop = LogitsGuidance(
            reward,
            config,
            tokenizer=tokenizer if decoder is None else None,
            mask_token_id=mask if decoder is None or mask is None else hidden_id(vocabulary, decoder.codebook),
            num_steps=num_steps,
            seed=seed,
            images=decoder,
            block_length=block_length,
            remasking=remasking,
            stop_when=stop_when,
            ends=None if tokenizer is None else end_token_ids(tokenizer, pipe),
        )
        return GuidanceHandle(pipe, loop, ForwardAttachment(pipe, loop, mask, settings, prompts))
    said = {"tokenizer": tokenizer, "mask_token_id": mask_token_id, "num_steps": num_steps, "images": images}
    said |= {"block_length": block_length, "prompts": prompts, "remasking": remasking or None}
    for_models = [name for name, value in said.items() if value is not None]
    for_models += [name for name, value in vars(settings).items() if not _is_default(name, value)]
    guidance = Guidance(reward, config, seed, stop_when, images=makes_images(pipe))
    return _guide_pipeline(pipe, guidance, decode_chunk_size, for_models)


def _is_default(name: str, value: Any) -> bool:
    default = getattr(ForwardSettings, name)
    return value is default or (isinstance(value, str | bool | int | float) and value == default)


def _guide_pipeline(pipe: Any, guidance: Guidance, chunk_size: int | None, for_models: list[str]) -> GuidanceHandle:
    def move(step: DenoisingStep) -> Tensor | None:
        if chunk_size is not None:
            if step.images is None:
                raise ValueError(
                    "`decode_chunk_size` is for pipelines of images, and this one makes texts; leave it out."
                )
            step = replace(step, images=replace(step.images, chunk_size=chunk_size))
        return guidance(step)

    def settle(step: DenoisingStep, drawn: Drawn) -> Tensor | None:
        return guidance.settle(step, drawn.tokens, drawn.positions)

    off = guidance.config.scale == 0 and not guidance.is_hard
    attachment = Attachment(
        pipe,
        begin=guidance.begin,
        move=None if off else move,
        end=guidance.end,
        foresee=guidance.foresee,
        settle=settle,
        came_to=guidance.came_to,
    )
    if for_models:
        attachment.remove()
        names = ", ".join(f"`{name}`" for name in for_models)
        verb, what = ("is", "it") if len(for_models) == 1 else ("are", "them")
        raise ValueError(f"{names} {verb} for models, and a pipeline says {what} by itself; leave {what} out.")
    return GuidanceHandle(pipe, guidance, attachment)
