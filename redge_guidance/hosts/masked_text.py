"""`MaskedTextPipeline` (or any text pipeline) over `MaskedDiffusionScheduler`."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from redge_guidance.hosts.base import Host, ids_in, is_a, no_logits, share_done, steps_left
from redge_guidance.hosts.registry import register_host
from redge_guidance.step import DenoisingStep
from redge_guidance.text import before_text, end_token_ids, fixed_before, is_in, special_token_ids

_NOTHING = object()
# Orders in which where a token becomes visible does not depend on the logits: given a joint draw they are exact.
_INDEPENDENT = ("ancestral", "random", "left_to_right", "remasking", "halton")


def step_ahead(pipe: Any) -> DenoisingStep:
    """The whole drawing of one of our pipelines of texts as a step to come."""
    drawing = pipe.drawing
    canvas = drawing.canvas
    return DenoisingStep(
        logits=no_logits(pipe.model, canvas.ids),
        ids=canvas.ids,
        free=canvas.free,
        attention_mask=canvas.attention_mask,
        temperature=1.0,
        progress=0.0,
        tokenizer=pipe.tokenizer,
        given=canvas.given,
        prompts=drawing.prompts,
        ends=end_token_ids(pipe.tokenizer, pipe.model),
        lead=canvas.lead,
        chat=drawing.chat,
    )


@register_host
class MaskedTextHost(Host):
    """The scheduler sees the whole canvas; free are the masks of the block that is being drawn, later ones no text.

    What a pipeline says in its `drawing` is taken from there; one that says nothing has no padding, no blocks and no
    prompts.
    """

    description = "text pipelines with a MaskedDiffusionScheduler and a tokenizer: hidden positions, at scheduler.step"

    @classmethod
    def matches(cls, pipe: Any) -> bool:
        is_text = getattr(pipe, "tokenizer", None) is not None and getattr(pipe, "vqvae", None) is None
        return is_text and is_a(getattr(pipe, "scheduler", None), "MaskedDiffusionScheduler")

    def begin(self, arguments: Mapping[str, Any]) -> None:
        self._written: Tensor | None = None  # of a pipeline that does not say what was given

    def before(self) -> tuple[Any, Callable[[dict[str, Any]], DenoisingStep]] | None:
        return (self.pipe.model, self._ahead) if getattr(self.pipe, "drawing", _NOTHING) is not _NOTHING else None

    def _ahead(self, arguments: dict[str, Any]) -> DenoisingStep:
        return step_ahead(self.pipe)

    def finished(self, result: Any) -> Tensor | None:
        return ids_in(result, "sequences")

    def read(self, seam: str, arguments: Mapping[str, Any]) -> DenoisingStep:
        ids, drawing = arguments["sample"], getattr(self.pipe, "drawing", None)
        hidden, block = ids == arguments["mask_token_id"], arguments.get("free")
        if block is None and drawing is not None:
            block = drawing.canvas.free
        free = hidden if block is None else hidden & block
        ends = end_token_ids(self.pipe.tokenizer, getattr(self.pipe, "model", None))
        if self._written is None:
            self._written = ~hidden & ~is_in(ids, {*special_token_ids(self.pipe.tokenizer), *ends})
        text = torch.ones_like(free) if drawing is None else drawing.canvas.attention_mask
        fixed = None if block is None else fixed_before(block)
        scheduler, order = self.pipe.scheduler, self.pipe.scheduler.config.get("unmasking_order")
        timesteps = scheduler.timesteps
        progress = share_done(timesteps, arguments["timestep"])
        if drawing is not None and drawing.num_steps is not None:  # of all blocks, which may have different numbers
            progress = (drawing.steps_before + round(progress * len(timesteps))) / drawing.num_steps
        return DenoisingStep(
            logits=arguments["model_output"],
            ids=ids,
            free=free,
            attention_mask=text & (free | ~hidden),
            temperature=float(arguments.get("temperature") or 1.0),
            progress=progress,
            tokenizer=self.pipe.tokenizer,
            reserved=[i for i in (arguments["mask_token_id"],) if i < arguments["model_output"].shape[-1]],
            given=fixed if drawing is None else drawing.canvas.given,
            prompts=None if drawing is None else drawing.prompts,
            generator=arguments.get("generator"),
            ends=ends,
            lead=None if drawing is None else drawing.canvas.lead,
            chat=drawing is not None and drawing.chat,
            unending=before_text(free, self._written if drawing is None else drawing.canvas.prompt),
            later=hidden & ~free & text,
            greedy=arguments.get("temperature") == 0,
            spent=drawing is not None and drawing.spends_logits,
            settles=order not in _INDEPENDENT,
            independent=order in _INDEPENDENT,
            redraws=steps_left(timesteps, arguments["timestep"]) if order == "remasking" else 0,
        )
