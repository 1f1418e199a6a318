"""Pipelines with the step of aMUSEd: diffusers' `AmusedPipeline` and its variants, Meissonic, Monetico, Muddit."""

from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from redge_guidance.hosts.base import Drawn, Host, field_of, share_done
from redge_guidance.hosts.registry import register_host
from redge_guidance.hosts.seam import signature_of
from redge_guidance.precision import in_float32, keeping_the_first
from redge_guidance.samples.images import ImageDecoder
from redge_guidance.step import DenoisingStep
from redge_guidance.text import known_token_ids

_STEP = {"model_output", "timestep", "sample", "starting_mask_ratio", "generator"}


@register_host
class AmusedHost(Host):
    """Known by what they have: a VQ model, and a scheduler with the arguments of aMUSEd's and a mask token.

    Free are the hidden tokens; classifier-free guidance has been applied to what the scheduler gets. The prompts are
    those of the call; where it has embeddings instead there are none.

    - Images: `model_output` is `(batch, codes, height, width)`, `sample` `(batch, height, width)`.
    - Texts about images, of Muddit: `(batch, length, words)` and `(batch, length)`; the question is given. The
      pipeline reads its text off the logits of the last step, at every position: there the whole answer is free, and
      the guided logits are written to the tensor that the pipeline goes on with.
    """

    description = (
        "pipelines with the step of aMUSEd and a VQ model (diffusers' AmusedPipeline, AmusedImg2ImgPipeline and "
        "AmusedInpaintPipeline; Meissonic, Monetico and Muddit): hidden tokens of images, and of Muddit's texts about "
        "images, at scheduler.step"
    )
    tested_with: ClassVar[dict[str, str]] = {"diffusers": "0.40 to 0.42"}
    makes_images = True

    @classmethod
    def matches(cls, pipe: Any) -> bool:
        scheduler, vqvae = getattr(pipe, "scheduler", None), getattr(pipe, "vqvae", None)
        codebook = getattr(getattr(vqvae, "quantize", None), "embedding", None)
        if codebook is None or not hasattr(getattr(scheduler, "config", None), "mask_token_id"):
            return False
        step = getattr(scheduler, "step", None)
        return callable(step) and set(signature_of(step, scheduler, "step").parameters) >= _STEP

    def begin(self, arguments: Mapping[str, Any]) -> None:
        self._embedded = any(arguments.get(name) is not None for name in ("prompt_embeds", "encoder_hidden_states"))
        self._given: Tensor | None = None  # tokens that were there before the first step
        prompt = arguments.get("prompt")
        prompt = None if self._embedded else prompt  # embeddings go before the prompt, and may be of another
        self._texts = [prompt] if isinstance(prompt, str) else prompt
        self._pictures = arguments.get("image")
        self._is_last = False

    def read(self, seam: str, arguments: Mapping[str, Any]) -> DenoisingStep:
        output, ids, timesteps = (
            arguments["model_output"],
            arguments["sample"].flatten(1),
            self.pipe.scheduler.timesteps,
        )
        is_image = output.ndim == 4
        free = ids == self.pipe.scheduler.config.mask_token_id
        self._given = ~free if self._given is None else self._given
        progress = share_done(timesteps, arguments["timestep"])
        self._is_last = round(progress * len(timesteps)) == len(timesteps) - 1
        tokenizer = None if is_image else self._tokenizer()
        return DenoisingStep(
            logits=output.permute(0, 2, 3, 1).flatten(1, 2) if is_image else output,
            ids=ids,
            free=~self._given if self._is_last and not is_image else free,
            attention_mask=torch.ones_like(free),
            temperature=1.0,
            progress=progress,
            tokenizer=tokenizer,
            given=self._given,
            reserved=() if is_image else self._reserved(tokenizer, output.shape[-1]),
            prompts=self._prompts(len(ids)),
            images=self._decoder(width=output.shape[-1]) if is_image else None,
            generator=arguments.get("generator"),
        )

    def write(self, arguments: dict[str, Any], step: DenoisingStep, logits: Tensor) -> None:
        output = in_float32(arguments["model_output"])
        if step.images is None:
            output[step.free] = logits.to(output.dtype)
            if self._is_last:
                arguments["model_output"].copy_(keeping_the_first(output, arguments["model_output"].dtype))
        else:
            square = output.permute(0, 2, 3, 1)  # a view, in which the free positions are written
            square[step.free.view(square.shape[:3])] = logits.to(output.dtype)
        arguments["model_output"] = output

    def reorder(self, step: DenoisingStep, output: Any, rows: Tensor) -> Any:
        if self._embedded:
            raise RuntimeError(
                f"{type(self.pipe).__name__} was given `prompt_embeds`, of which nobody can tell whose prompts are "
                "equal; pass `prompt` to have sequences exchanged."
            )
        exchanged = super().reorder(step, output, rows)
        if step.images is None and self._is_last:
            step.logits.copy_(step.logits[rows])  # the pipeline's own, off which it reads the text
        return exchanged

    def _check_rows(self, step: DenoisingStep, rows: Tensor) -> None:
        super()._check_rows(step, rows)
        if step.images is not None or self._pictures is None:
            return
        if not all(torch.equal(self._pictures[i], self._pictures[k]) for i, k in enumerate(rows.tolist())):
            raise ValueError(f"`rows` must exchange texts about one image, got {rows.tolist()}; images stay in place.")

    def after(self, seam: str, step: DenoisingStep, output: Any) -> Drawn:
        tokens, mask = field_of(output, "prev_sample").flatten(1), self.pipe.scheduler.config.mask_token_id
        kept = (step.ids == mask) & (tokens != mask)
        return Drawn(tokens.where(kept, step.ids), kept)

    def _prompts(self, batch: int) -> list[str] | None:
        """As the pipeline repeats them: for several images of a prompt, or one question about several images."""
        texts = self._texts
        return None if texts is None else list(texts) * (batch // max(len(texts), 1))

    def _decoder(self, width: int) -> ImageDecoder:
        from redge_guidance.pipelines.image.vq_tokens import codebook_of, to_pixels  # which imports diffusers

        processor = getattr(getattr(self.pipe, "image_processor", None), "config", None)
        normalised = bool(getattr(processor, "do_normalize", False))
        vqvae = self.pipe.vqvae
        return ImageDecoder(codebook_of(vqvae), partial(to_pixels, vqvae, do_normalize=normalised, width=width))

    def _tokenizer(self) -> Any:
        second = getattr(self.pipe, "text_encoder_2", None) is not None
        return self.pipe.tokenizer_2 if second else self.pipe.tokenizer

    def _reserved(self, tokenizer: Any, words: int) -> list[int]:
        """The mask and what the tokenizer does not have; the tokens around a text, padding too, the pipeline draws."""
        mask = self.pipe.scheduler.config.mask_token_id
        missing = set(range(words)) - known_token_ids(tokenizer)
        return sorted({i for i in (mask, *missing) if i < words})
