"""`MaskedTextPipeline` (or any text pipeline) over `MaskedDiffusionScheduler`."""

from typing import Any

import torch
from torch import Tensor

from redge_guidance.hosts.base import DenoisingStep, Host, is_a


class MaskedTextHost(Host):
    """The scheduler sees the whole canvas, and its free positions hold the mask token."""

    description = "text pipelines with a MaskedDiffusionScheduler and a tokenizer: hidden positions, at scheduler.step"

    @classmethod
    def matches(cls, pipe: Any) -> bool:
        scheduler, tokenizer = getattr(pipe, "scheduler", None), getattr(pipe, "tokenizer", None)
        return is_a(scheduler, "MaskedDiffusionScheduler") and tokenizer is not None

    def read(self, seam: str, arguments: dict[str, Any]) -> DenoisingStep:
        ids, timesteps = arguments["sample"], self.pipe.scheduler.timesteps
        free = ids == arguments["mask_token_id"]
        return DenoisingStep(
            logits=arguments["model_output"][free],
            ids=ids,
            free=free,
            attention_mask=_not_padding(ids, arguments.get("frozen"), self.pipe.tokenizer),
            temperature=arguments.get("temperature") or 1.0,
            progress=int((timesteps > arguments["timestep"]).sum()) / len(timesteps),
            tokenizer=self.pipe.tokenizer,
        )


def _not_padding(ids: Tensor, frozen: Tensor | None, tokenizer: Any) -> Tensor:
    pad = tokenizer.pad_token_id
    if pad is None or frozen is None:
        return torch.ones_like(ids, dtype=torch.bool)
    padding: Tensor = ((ids == pad) & frozen).cumprod(-1).bool()
    return ~padding
