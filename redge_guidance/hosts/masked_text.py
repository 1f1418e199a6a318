"""`MaskedTextPipeline` (or any text pipeline) over `MaskedDiffusionScheduler`."""

from typing import Any

import torch
from torch import Tensor

DESCRIPTION = "text pipelines with a MaskedDiffusionScheduler and a tokenizer"


def matches(pipe: Any) -> bool:
    from redge_guidance.pipelines import MaskedDiffusionScheduler

    scheduler = getattr(pipe, "scheduler", None)
    return isinstance(scheduler, MaskedDiffusionScheduler) and getattr(pipe, "tokenizer", None) is not None


def read(pipe: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    ids, timesteps = arguments["sample"], pipe.scheduler.timesteps
    free = ids == arguments["mask_token_id"]
    step_index = int((timesteps > arguments["timestep"]).sum())
    return {
        "logits": arguments["model_output"][free],
        "ids": ids,
        "free": free,
        "attention_mask": _not_padding(ids, arguments.get("frozen"), pipe.tokenizer),
        "temperature": arguments.get("temperature") or 1.0,
        "progress": step_index / len(timesteps),
        "tokenizer": pipe.tokenizer,
    }


def write(arguments: dict[str, Any], logits: Tensor) -> None:
    free = arguments["sample"] == arguments["mask_token_id"]
    output = arguments["model_output"].clone()
    output[free] = logits.to(output.dtype)
    arguments["model_output"] = output


def _not_padding(ids: Tensor, frozen: Tensor | None, tokenizer: Any) -> Tensor:
    pad = tokenizer.pad_token_id
    if pad is None or frozen is None:
        return torch.ones_like(ids, dtype=torch.bool)
    padding: Tensor = ((ids == pad) & frozen).cumprod(-1).bool()
    return ~padding
