"""`MaskedImagePipeline` over `MaskedDiffusionScheduler`."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from redge_guidance.hosts.base import Host, ids_in, is_a, share_done
from redge_guidance.hosts.registry import register_host
from redge_guidance.samples.images import ImageDecoder
from redge_guidance.step import DenoisingStep


@register_host
class MaskedImageHost(Host):
    """Free are the hidden tokens; tokens that are visible, given ones among them, are as they are."""

    description = "MaskedImagePipeline with a MaskedDiffusionScheduler: hidden tokens of images, at scheduler.step"
    makes_images = True

    @classmethod
    def matches(cls, pipe: Any) -> bool:
        return is_a(pipe, "MaskedImagePipeline") and is_a(pipe.scheduler, "MaskedDiffusionScheduler")

    def read(self, seam: str, arguments: Mapping[str, Any]) -> DenoisingStep:
        ids, drawing = arguments["sample"], self.pipe.drawing
        return DenoisingStep(
            logits=arguments["model_output"],
            ids=ids,
            free=ids == arguments["mask_token_id"],
            attention_mask=torch.ones_like(ids, dtype=torch.bool),
            temperature=float(arguments.get("temperature") or 1.0),
            progress=share_done(self.pipe.scheduler.timesteps, arguments["timestep"]),
            tokenizer=None,
            given=~drawing.canvas.free,
            prompts=drawing.prompts,
            classes=drawing.class_labels,
            images=ImageDecoder(self.pipe.codebook, self.pipe.decode_embeddings),
            generator=arguments.get("generator"),
        )

    def finished(self, result: Any) -> Tensor | None:
        return ids_in(result, "tokens", 1)

    def reorder(self, step: DenoisingStep, output: Any, rows: Tensor) -> Any:
        reordered, ranks = super().reorder(step, output, rows), self.pipe.drawing.ranks
        if ranks is not None:
            ranks.copy_(ranks[rows])
        return reordered

    def _check_rows(self, step: DenoisingStep, rows: Tensor) -> None:
        super()._check_rows(step, rows)
        labels = self.pipe.drawing.class_labels
        if labels is not None and not torch.equal(labels[rows], labels):
            raise ValueError(f"`rows` must exchange images of one class, got {rows.tolist()}; classes stay.")
