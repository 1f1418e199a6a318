"""`MaskedTextPipeline` (or any text pipeline) over `MaskedDiffusionScheduler`."""

from typing import Any

import torch
from torch import Tensor

from redge_guidance.hosts.base import DenoisingStep, Host, is_a
from redge_guidance.text import generated_after


class MaskedTextHost(Host):
    """The scheduler sees the whole canvas; free are the masks of the block that is being drawn, later ones no text."""

    description = "text pipelines with a MaskedDiffusionScheduler and a tokenizer: hidden positions, at scheduler.step"

    @classmethod
    def matches(cls, pipe: Any) -> bool:
        scheduler, tokenizer = getattr(pipe, "scheduler", None), getattr(pipe, "tokenizer", None)
        return is_a(scheduler, "MaskedDiffusionScheduler") and tokenizer is not None

    def read(self, seam: str, arguments: dict[str, Any]) -> DenoisingStep:
        ids, timesteps = arguments["sample"], self.pipe.scheduler.timesteps
        frozen, active = arguments.get("frozen"), arguments.get("active")
        hidden = ids == arguments["mask_token_id"]
        free = hidden if active is None else hidden & active
        within = int((timesteps > arguments["timestep"]).sum()) / len(timesteps)
        return DenoisingStep(
            logits=arguments["model_output"],
            ids=ids,
            free=free,
            attention_mask=_not_padding(ids, frozen, self.pipe.tokenizer) & (free | ~hidden),
            temperature=arguments.get("temperature") or 1.0,
            progress=(getattr(self.pipe, "_block", 0) + within) / getattr(self.pipe, "_num_blocks", 1),
            tokenizer=self.pipe.tokenizer,
            given=None if frozen is None else generated_after(~frozen),
        )


def _not_padding(ids: Tensor, frozen: Tensor | None, tokenizer: Any) -> Tensor:
    pad = tokenizer.pad_token_id
    if pad is None or frozen is None:
        return torch.ones_like(ids, dtype=torch.bool)
    padding: Tensor = ((ids == pad) & frozen).cumprod(-1).bool()
    return ~padding
