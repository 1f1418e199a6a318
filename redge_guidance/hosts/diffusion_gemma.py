"""diffusers' `DiffusionGemmaPipeline` over its three schedulers."""

from typing import Any

import torch
from torch import Tensor

from redge_guidance.hosts.base import DenoisingStep, Host, in_block, is_a
from redge_guidance.text import reserved_token_ids

_SCHEDULERS = ("BlockRefinementScheduler", "DiscreteDDIMScheduler", "EntropyBoundScheduler")


class DiffusionGemmaHost(Host):
    """Uniform corruption: a canvas of tokens, none of them a mask, is resampled in every step.

    Free is the whole canvas, but for the positions that a `BlockRefinementScheduler` has committed (unless it may edit
    them). The context is read off the calls of the encoder, which sees every finished piece of text once.
    """

    description = (
        "diffusers' DiffusionGemmaPipeline with BlockRefinementScheduler, DiscreteDDIMScheduler (corrector steps too) "
        "or EntropyBoundScheduler: the canvas but for committed positions, at scheduler.step and step_correct"
    )
    seams = ("step", "step_correct")

    def __init__(self, pipe: Any):
        super().__init__(pipe)
        self._tokenizer = getattr(pipe.processor, "tokenizer", pipe.processor)
        self._hook = pipe.model.model.encoder.register_forward_pre_hook(self._remember_context, with_kwargs=True)
        self.begin()

    @classmethod
    def matches(cls, pipe: Any) -> bool:
        return is_a(pipe, "DiffusionGemmaPipeline") and is_a(pipe.scheduler, *_SCHEDULERS)

    def begin(self) -> None:
        self._pieces: list[Tensor] = []  # the prompt, then every finished canvas

    def close(self) -> None:
        self._hook.remove()

    def read(self, seam: str, arguments: dict[str, Any]) -> DenoisingStep:
        canvas, timestep = arguments["sample"], int(arguments["timestep"])
        ids = torch.cat([*self._pieces, canvas], -1)
        free = in_block(self._uncommitted(canvas, timestep, arguments), ids.shape[1])
        position = torch.arange(ids.shape[1], device=ids.device)
        steps = self.pipe.scheduler.num_inference_steps
        return DenoisingStep(
            logits=arguments["model_output"],
            ids=ids,
            free=free,
            attention_mask=torch.nn.functional.pad(self._attention_mask, (0, canvas.shape[1]), value=True),
            temperature=self._temperature(seam, timestep, arguments),
            progress=((len(self._pieces) - 1) * steps + timestep) / self.pipe.num_timesteps,
            tokenizer=self._tokenizer,
            given=(position < self._pieces[0].shape[1]).expand(ids.shape),
            reserved=reserved_token_ids(self._tokenizer, arguments["model_output"].shape[-1]),
        )

    def _uncommitted(self, canvas: Tensor, timestep: int, arguments: dict[str, Any]) -> Tensor:
        committed = getattr(self.pipe.scheduler, "_committed", None)
        editing = arguments.get("editing_threshold") or getattr(self.pipe.scheduler.config, "editing_threshold", None)
        if timestep == 0 or committed is None or committed.shape != canvas.shape or editing is not None:
            return torch.ones_like(canvas, dtype=torch.bool)
        uncommitted: Tensor = ~committed
        return uncommitted

    def _temperature(self, seam: str, timestep: int, arguments: dict[str, Any]) -> float:
        scheduler = self.pipe.scheduler
        if seam == "step_correct":
            return 1.0
        if is_a(scheduler, "EntropyBoundScheduler"):  # falls from t_max to t_min
            left = (scheduler.num_inference_steps - timestep) / scheduler.num_inference_steps
            return float(scheduler.config.t_min + (scheduler.config.t_max - scheduler.config.t_min) * left)
        return float(arguments.get("temperature") or 1.0)

    def _remember_context(self, encoder: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._pieces.append(kwargs["input_ids"])
        self._attention_mask: Tensor = kwargs["attention_mask"].bool()
