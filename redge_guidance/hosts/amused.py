"""diffusers' `AmusedPipeline`, and its variants for image to image and for inpainting."""

from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from redge_guidance.hosts.base import Drawn, Host, field_of, in_float32, is_a, share_done
from redge_guidance.hosts.registry import register_host
from redge_guidance.samples.images import ImageDecoder
from redge_guidance.step import DenoisingStep


@register_host
class AmusedHost(Host):
    """Free are the hidden tokens. The prompts are those of the call; where it has embeddings instead there are none.

    `model_output` is `(batch, codes, height, width)`, and classifier-free guidance has been applied to it.
    """

    description = (
        "diffusers' AmusedPipeline, AmusedImg2ImgPipeline and AmusedInpaintPipeline: hidden tokens, at scheduler.step"
    )
    tested_with: ClassVar[dict[str, str]] = {"diffusers": "0.40 to 0.42"}

    @classmethod
    def matches(cls, pipe: Any) -> bool:
        kinds = ("AmusedPipeline", "AmusedImg2ImgPipeline", "AmusedInpaintPipeline")
        return is_a(pipe, *kinds) and is_a(pipe.scheduler, "AmusedScheduler")

    def begin(self, arguments: Mapping[str, Any]) -> None:
        self._embedded = arguments.get("prompt_embeds") is not None
        self._given: Tensor | None = None  # tokens that were there before the first step
        prompt, number = arguments.get("prompt"), arguments.get("num_images_per_prompt") or 1
        texts = [prompt] if isinstance(prompt, str) else prompt
        self._prompts = None if texts is None else list(texts) * number  # as the pipeline repeats them

    def read(self, seam: str, arguments: Mapping[str, Any]) -> DenoisingStep:
        from redge_guidance.pipelines.image.vq_tokens import codebook_of, to_pixels  # which imports diffusers

        output, ids, vqvae = arguments["model_output"], arguments["sample"].flatten(1), self.pipe.vqvae
        free = ids == self.pipe.scheduler.config.mask_token_id
        self._given = ~free if self._given is None else self._given
        return DenoisingStep(
            logits=output.permute(0, 2, 3, 1).flatten(1, 2),
            ids=ids,
            free=free,
            attention_mask=torch.ones_like(free),
            temperature=1.0,
            progress=share_done(self.pipe.scheduler.timesteps, arguments["timestep"]),
            tokenizer=None,
            given=self._given,
            prompts=self._prompts,
            images=ImageDecoder(codebook_of(vqvae), partial(to_pixels, vqvae, do_normalize=False)),
            generator=arguments.get("generator"),
        )

    def write(self, arguments: dict[str, Any], step: DenoisingStep, logits: Tensor) -> None:
        output = in_float32(arguments["model_output"])
        square = output.permute(0, 2, 3, 1)  # a view, in which the free positions are written
        square[step.free.view(square.shape[:3])] = logits.to(output.dtype)
        arguments["model_output"] = output

    def reorder(self, step: DenoisingStep, output: Any, rows: Tensor) -> Any:
        if self._embedded:
            raise RuntimeError(
                "AmusedPipeline was given `prompt_embeds`, of which nobody can tell whose prompts are equal; pass "
                "`prompt` to have images exchanged."
            )
        return super().reorder(step, output, rows)

    def after(self, seam: str, step: DenoisingStep, output: Any) -> Drawn:
        tokens = field_of(output, "prev_sample").flatten(1)
        kept = step.free & (tokens != self.pipe.scheduler.config.mask_token_id)
        return Drawn(tokens.where(kept, step.ids), kept)
