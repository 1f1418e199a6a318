"""diffusers' `AmusedPipeline`, and its variants for image to image and for inpainting."""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from redge_guidance.hosts.base import DenoisingStep, Host, is_a
from redge_guidance.pipelines.image.vq_tokens import codebook_of, to_pixels
from redge_guidance.samples.images import ImageDecoder


class AmusedHost(Host):
    """Free are the hidden tokens. The prompts are read off the text encoder: its first call since the last image.

    `model_output` is `(batch, codes, height, width)`, and classifier-free guidance has been applied to it.
    """

    description = (
        "diffusers' AmusedPipeline, AmusedImg2ImgPipeline and AmusedInpaintPipeline: hidden tokens, at scheduler.step"
    )

    def __init__(self, pipe: Any):
        super().__init__(pipe)
        self._read_texts: list[Tensor] = []
        self._prompts: list[str] | None = None
        self._hook = pipe.text_encoder.register_forward_pre_hook(self._remember_text)

    @classmethod
    def matches(cls, pipe: Any) -> bool:
        kinds = ("AmusedPipeline", "AmusedImg2ImgPipeline", "AmusedInpaintPipeline")
        return is_a(pipe, *kinds) and is_a(pipe.scheduler, "AmusedScheduler")

    def begin(self) -> None:
        self._prompts = None
        if self._read_texts:
            self._prompts = self.pipe.tokenizer.batch_decode(self._read_texts[0], skip_special_tokens=True)
        self._read_texts = []

    def close(self) -> None:
        self._hook.remove()

    def read(self, seam: str, arguments: dict[str, Any]) -> DenoisingStep:
        output, ids = arguments["model_output"], arguments["sample"].flatten(1)
        timesteps, vqvae = self.pipe.scheduler.timesteps, self.pipe.vqvae
        decode = partial(to_pixels, vqvae, do_normalize=False)
        return DenoisingStep(
            logits=output.permute(0, 2, 3, 1).flatten(1, 2),
            ids=ids,
            free=ids == self.pipe.scheduler.config.mask_token_id,
            attention_mask=torch.ones_like(ids, dtype=torch.bool),
            temperature=1.0,
            progress=int((timesteps > arguments["timestep"]).sum()) / len(timesteps),
            tokenizer=None,
            images=ImageDecoder(codebook_of(vqvae), decode, self._prompts),
        )

    def write(self, arguments: dict[str, Any], step: DenoisingStep, logits: Tensor) -> None:
        output = arguments["model_output"].clone()
        square = output.permute(0, 2, 3, 1)  # a view, in which the free positions are written
        square[step.free.view(square.shape[:3])] = logits.to(output.dtype)
        arguments["model_output"] = output

    def _remember_text(self, text_encoder: Any, args: tuple[Any, ...]) -> None:
        self._read_texts.append(args[0])
