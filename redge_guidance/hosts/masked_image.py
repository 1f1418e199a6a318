"""`MaskedImagePipeline` over `MaskedDiffusionScheduler`."""

from functools import partial
from typing import Any

import torch

from redge_guidance.hosts.base import DenoisingStep, Host, is_a
from redge_guidance.pipelines.image.vq_tokens import codebook_of, to_pixels
from redge_guidance.samples.images import ImageDecoder


class MaskedImageHost(Host):
    """Free are the hidden tokens; tokens that are visible, given ones among them, are as they are."""

    description = "MaskedImagePipeline with a MaskedDiffusionScheduler: hidden tokens of images, at scheduler.step"

    @classmethod
    def matches(cls, pipe: Any) -> bool:
        return is_a(pipe, "MaskedImagePipeline") and is_a(pipe.scheduler, "MaskedDiffusionScheduler")

    def read(self, seam: str, arguments: dict[str, Any]) -> DenoisingStep:
        ids, timesteps, vqvae = arguments["sample"], self.pipe.scheduler.timesteps, self.pipe.vqvae
        decode = partial(to_pixels, vqvae, do_normalize=self.pipe.config.do_normalize)
        return DenoisingStep(
            logits=arguments["model_output"],
            ids=ids,
            free=ids == arguments["mask_token_id"],
            attention_mask=torch.ones_like(ids, dtype=torch.bool),
            temperature=arguments.get("temperature") or 1.0,
            progress=int((timesteps > arguments["timestep"]).sum()) / len(timesteps),
            tokenizer=None,
            images=ImageDecoder(codebook_of(vqvae), decode, self.pipe._prompts),
        )
