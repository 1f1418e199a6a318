"""diffusers' `LLaDA2Pipeline` over `BlockRefinementScheduler`."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from redge_guidance.chats import is_conversation
from redge_guidance.hosts.base import Host, ids_in, in_block, is_a, no_logits
from redge_guidance.hosts.registry import register_host
from redge_guidance.step import DenoisingStep
from redge_guidance.text import end_token_ids, reserved_token_ids


@register_host
class LLaDA2Host(Host):
    """The scheduler sees one block; the context, prompt and finished blocks, is heard on its way into the model.

    Free are the masks of the block and, while editing is on, its tokens that the scheduler may still exchange; never
    the prompt, padding, the tail beyond the length asked for, or a sequence that has ended (`eos_early_stop`), with
    which the scheduler goes on though the pipeline keeps nothing of it.
    """

    description = "diffusers' LLaDA2Pipeline: masked and editable positions of the block, at scheduler.step"
    tested_with: ClassVar[dict[str, str]] = {"diffusers": "0.40 to 0.42"}

    @classmethod
    def matches(cls, pipe: Any) -> bool:
        return is_a(pipe, "LLaDA2Pipeline") and is_a(pipe.scheduler, "BlockRefinementScheduler")

    def begin(self, arguments: Mapping[str, Any]) -> None:
        self._arguments = arguments
        prompt, messages = (
            arguments.get(name) if arguments.get("input_ids") is None else None for name in ("prompt", "messages")
        )
        self._prompts = [prompt] if isinstance(prompt, str) else prompt
        templated = arguments.get("use_chat_template", True) and getattr(self.pipe.tokenizer, "chat_template", None)
        self._chat = messages is not None or (isinstance(prompt, str) and bool(templated))
        if messages is not None:
            self._prompts = [messages] if is_conversation(messages) else list(messages)
        self._first_length = self._length = self._prompt_length = 0  # of the context: at first, now; of the prompt
        self._steps = 0  # in this block
        self._seen: Tensor | None = None  # the context of the step before
        self._ended: Tensor | None = None
        self.listen(self.pipe.model, self._remember_context)

    def before(self) -> tuple[Any, Callable[[dict[str, Any]], DenoisingStep]] | None:
        return self.pipe.model, self._ahead

    def _ahead(self, arguments: dict[str, Any]) -> DenoisingStep:
        ids, asked = arguments["input_ids"], self._arguments.get("mask_token_id")
        free = ids == (self.pipe.mask_token_id if asked is None else asked)
        free &= arguments["attention_mask"].bool()
        prompt = int((~free).sum(-1).max())
        return DenoisingStep(
            logits=no_logits(self.pipe.model, ids),
            ids=ids,
            free=free,
            attention_mask=arguments["attention_mask"].bool(),
            temperature=1.0,
            progress=0.0,
            tokenizer=self.pipe.tokenizer,
            given=~free,
            prompts=self._prompts,
            chat=self._chat,
            ends=self._ends(),
            coming=max(0, prompt + self._arguments["gen_length"] - ids.shape[1]),
        )

    def read(self, seam: str, arguments: Mapping[str, Any]) -> DenoisingStep:
        block, ids = arguments["sample"], self._ids
        length, block_length = ids.shape[1], block.shape[1]
        in_prompt = arguments.get("prompt_mask")
        in_prompt = torch.zeros_like(block[0], dtype=torch.bool) if in_prompt is None else in_prompt
        if not self._first_length:
            self._first_length = length
            self._prompt_length = length - block_length + int(in_prompt.sum())
        self._steps = self._steps + 1 if length == self._length else 0
        self._length = length
        free = block == arguments["mask_token_id"]
        editing = arguments.get("editing_threshold")
        editing = self.pipe.scheduler.config.editing_threshold if editing is None else editing
        if editing is not None and editing > 0:
            free = torch.ones_like(free)
        ends, greedy = self._ends(), self._is_greedy(arguments)
        drawn = {*ends, *end_token_ids(self.pipe.tokenizer, self.pipe.model)}  # that the pipeline may draw
        free = in_block(free & ~in_prompt, length) & self._attention_mask & ~self._ended_rows(ids, arguments)
        return DenoisingStep(
            logits=arguments["model_output"],
            ids=ids,
            free=free,
            attention_mask=self._attention_mask,
            temperature=1.0 if greedy else float(arguments.get("temperature") or 1.0),
            progress=self._progress(block_length),
            tokenizer=self.pipe.tokenizer,
            given=(torch.arange(length, device=ids.device) < self._prompt_length).expand(ids.shape),
            reserved=reserved_token_ids(self.pipe.tokenizer, arguments["model_output"].shape[-1], drawn),
            prompts=self._prompts,
            chat=self._chat,
            generator=arguments.get("generator"),
            ends=ends,
            coming=max(0, self._prompt_length + self._arguments["gen_length"] - length),
            held=free & (ids != arguments["mask_token_id"]),
            greedy=greedy,
            settles=True,
        )

    def finished(self, result: Any) -> Tensor | None:
        """The pipeline returns what follows the prompt."""
        answers = ids_in(result, "sequences")
        return None if answers is None else torch.cat([self._ids[:, : self._prompt_length], answers], -1)

    def reorder(self, step: DenoisingStep, output: Any, rows: Tensor) -> Any:
        """The model is given a view of the pipeline's own text, in which finished blocks are exchanged."""
        if self._arguments.get("eos_early_stop", True):
            raise RuntimeError(
                "LLaDA2Pipeline remembers by itself which sequences have ended; pass `eos_early_stop=False` to have "
                "sequences exchanged."
            )
        exchanged = super().reorder(step, output, rows)
        self._ids.copy_(self._ids[rows])
        return exchanged

    def _ends(self) -> tuple[int, ...]:
        """The token at which the pipeline cuts its texts: that of the call, or its tokenizer's."""
        asked = self._arguments.get("eos_token_id")
        end = self.pipe.eos_token_id if asked is None else asked
        return () if end is None else (int(end),)

    def _ended_rows(self, ids: Tensor, arguments: Mapping[str, Any]) -> Tensor:
        """`(batch, 1)` bool, by the rule of the pipeline's scheduler, from what was committed in the step before."""
        end = next(iter(self._ends()), None)
        if self._ended is None:
            self._ended = torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
        if self._seen is not None and end is not None and self._arguments.get("eos_early_stop", True):
            before = ids[:, : self._seen.shape[1]]
            self._ended = self.pipe.scheduler.check_eos_finished(
                cur_x=ids,
                sampled_tokens=before,
                final_transfer=before != self._seen,
                finished=self._ended,
                eos_token_id=end,
                mask_token_id=arguments["mask_token_id"],
                prompt_length=self._prompt_length,
            )
        self._seen = ids.clone()
        return self._ended[:, None]

    def _progress(self, block_length: int) -> float:
        """By counting: what the pipeline passes as timestep is none of the scheduler's."""
        steps = self.pipe.scheduler.num_inference_steps
        block = (self._length - self._first_length) // block_length
        return float((block * steps + min(self._steps, steps - 1)) / max(self.pipe.num_timesteps, 1))

    def _is_greedy(self, arguments: Mapping[str, Any]) -> bool:
        method = arguments.get("sampling_method", "auto")
        return method == "greedy" or (method == "auto" and arguments.get("temperature") == 0)

    def _remember_context(self, arguments: dict[str, Any]) -> None:
        self._ids: Tensor = arguments["input_ids"]
        self._attention_mask: Tensor = arguments["attention_mask"].bool()
