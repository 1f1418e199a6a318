"""diffusers' `LLaDA2Pipeline` over `BlockRefinementScheduler`."""

from typing import Any

import torch
from torch import Tensor

from redge_guidance.hosts.base import DenoisingStep, Host, in_block, is_a
from redge_guidance.text import reserved_token_ids


class LLaDA2Host(Host):
    """The scheduler sees one block; the context, prompt and finished blocks, is read off the call of the model.

    Free are the masks of the block and, while editing is on, its tokens that the scheduler may still exchange; never
    the prompt, padding, or the tail beyond the length asked for.
    """

    description = "diffusers' LLaDA2Pipeline: masked and editable positions of the block, at scheduler.step"

    def __init__(self, pipe: Any):
        super().__init__(pipe)
        self._hook = pipe.model.register_forward_pre_hook(self._remember_context, with_kwargs=True)
        self.begin()

    @classmethod
    def matches(cls, pipe: Any) -> bool:
        return is_a(pipe, "LLaDA2Pipeline") and is_a(pipe.scheduler, "BlockRefinementScheduler")

    def begin(self) -> None:
        self._first_length: int | None = None  # of the context at the first block
        self._prompt_length = 0

    def close(self) -> None:
        self._hook.remove()

    def read(self, seam: str, arguments: dict[str, Any]) -> DenoisingStep:
        block, config = arguments["sample"], self.pipe.scheduler.config
        ids, length, block_length = self._ids, self._ids.shape[1], block.shape[1]
        in_prompt = arguments.get("prompt_mask")
        in_prompt = torch.zeros_like(block[0], dtype=torch.bool) if in_prompt is None else in_prompt
        if self._first_length is None:
            self._first_length = length
            self._prompt_length = length - block_length + int(in_prompt.sum())
        free = block == arguments["mask_token_id"]
        editing = arguments.get("editing_threshold")
        editing = config.editing_threshold if editing is None else editing
        if editing is not None and editing > 0:
            free = torch.ones_like(free)
        free = in_block(free & ~in_prompt, length) & self._attention_mask
        return DenoisingStep(
            logits=arguments["model_output"],
            ids=ids,
            free=free,
            attention_mask=self._attention_mask,
            temperature=self._temperature(arguments),
            progress=self._progress(int(arguments["timestep"]), length, block_length),
            tokenizer=self.pipe.tokenizer,
            given=(torch.arange(length, device=ids.device) < self._prompt_length).expand(ids.shape),
            reserved=reserved_token_ids(self.pipe.tokenizer, arguments["model_output"].shape[-1]),
        )

    def _progress(self, timestep: int, length: int, block_length: int) -> float:
        steps = self.pipe.scheduler.num_inference_steps
        assert self._first_length is not None
        block = (length - self._first_length) // block_length
        return float((block * steps + min(timestep, steps - 1)) / max(self.pipe.num_timesteps, 1))

    def _temperature(self, arguments: dict[str, Any]) -> float:
        greedy = arguments.get("sampling_method", "auto") == "greedy"
        return 1.0 if greedy else float(arguments.get("temperature") or 1.0)

    def _remember_context(self, model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._ids: Tensor = args[0] if args else kwargs["input_ids"]
        self._attention_mask: Tensor = kwargs["attention_mask"].bool()
