"""diffusers' `DiffusionGemmaPipeline` over its three schedulers."""

import inspect
from collections.abc import Callable, Mapping
from importlib.metadata import version
from types import CodeType
from typing import Any, ClassVar

import torch
from torch import Tensor

from redge_guidance.chats import is_conversation
from redge_guidance.hosts.base import Drawn, Host, field_of, ids_in, in_block, is_a, no_logits
from redge_guidance.hosts.registry import register_host
from redge_guidance.step import DenoisingStep
from redge_guidance.text import end_token_ids, reserved_token_ids

_SCHEDULERS = ("BlockRefinementScheduler", "DiscreteDDIMScheduler", "EntropyBoundScheduler")
_MASK = "create_diffusion_decoder_attention_mask"  # of the model's decoder, which the pipeline calls


@register_host
class DiffusionGemmaHost(Host):
    """Uniform corruption: a canvas of tokens, none of them a mask, is resampled in every step.

    Free is the whole canvas, but for the positions that a `BlockRefinementScheduler` has committed (unless it may edit
    them). The context is heard on its way into the encoder, which sees every finished piece of text once.
    """

    description = (
        "diffusers' DiffusionGemmaPipeline with BlockRefinementScheduler, DiscreteDDIMScheduler (corrector steps too) "
        "or EntropyBoundScheduler: the canvas but for committed positions, at scheduler.step and step_correct"
    )
    seams = ("step", "step_correct")
    tested_with: ClassVar[dict[str, str]] = {"diffusers": "0.40 to 0.42", "transformers": "5.0 to 5.23"}

    @classmethod
    def matches(cls, pipe: Any) -> bool:
        return is_a(pipe, "DiffusionGemmaPipeline") and is_a(pipe.scheduler, *_SCHEDULERS)

    @classmethod
    def check(cls, pipe: Any) -> None:
        """Whether the model takes what the pipeline passes: transformers 5.24 renamed `past_key_values`.

        Read off the code of the one and the signature of the other, not off version numbers, which do not tell what a
        later version of either has mended.
        """
        make_mask = getattr(getattr(getattr(pipe.model, "model", None), "decoder", None), _MASK, None)
        passed = _keywords(inspect.unwrap(type(pipe).__call__).__code__, "decoder_attention_mask", "inputs_embeds")
        if make_mask is None or not passed:
            return
        taken = inspect.signature(make_mask).parameters
        unknown = [name for name in passed if name not in taken]
        if unknown and not any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken.values()):
            raise RuntimeError(
                f"DiffusionGemmaPipeline of diffusers {version('diffusers')} cannot draw with transformers "
                f"{version('transformers')}, guided or not: it passes `{unknown[0]}` to `{_MASK}`, which takes "
                f"{', '.join(taken)}. Install a version that it was tested with, transformers "
                f"{cls.tested_with['transformers']}, or guide the model's own sampler: "
                "`model.generate(logits_processor=...)` with "
                "`redge_guidance.hosts.callables.GuidanceLogitsProcessor`."
            )

    def begin(self, arguments: Mapping[str, Any]) -> None:
        self._arguments = arguments
        self._tokenizer = getattr(self.pipe.processor, "tokenizer", self.pipe.processor)
        prompt = arguments.get("prompt")
        self._prompts = [prompt] if isinstance(prompt, str) else prompt
        messages = arguments.get("messages")
        if messages is not None:
            self._prompts = [messages] if is_conversation(messages) else list(messages)
        self._pieces: list[Tensor] = []  # the prompt, then every finished canvas
        self._step = 0  # of this canvas, the one that is taken or was taken last
        self.listen(self.pipe.model.model.encoder, self._remember_context)
        self.listen(self.pipe.model, self._remember_told)

    def before(self) -> tuple[Any, Callable[[dict[str, Any]], DenoisingStep]] | None:
        return self.pipe.model.model.encoder, self._ahead

    def _ahead(self, arguments: dict[str, Any]) -> DenoisingStep:
        prompt, length = arguments["input_ids"], self.pipe.model.config.canvas_length
        ids = torch.nn.functional.pad(prompt, (0, length))
        free = torch.arange(ids.shape[1], device=ids.device) >= prompt.shape[1]
        return DenoisingStep(
            logits=no_logits(self.pipe.model, ids),
            ids=ids,
            free=free.expand(ids.shape),
            attention_mask=torch.nn.functional.pad(arguments["attention_mask"].bool(), (0, length), value=True),
            temperature=1.0,
            progress=0.0,
            tokenizer=self._tokenizer,
            given=~free.expand(ids.shape),
            prompts=self._prompts,
            chat=True,
            ends=self._ends(),
            coming=self._coming(length, 0),
        )

    def read(self, seam: str, arguments: Mapping[str, Any]) -> DenoisingStep:
        canvas, steps = arguments["sample"], self.pipe.scheduler.num_inference_steps
        if seam == "step":
            self._step += 1
        ids = torch.cat([*self._pieces, canvas], -1)
        position = torch.arange(ids.shape[1], device=ids.device)
        ends = self._ends()
        drawn = {*ends, *end_token_ids(self._tokenizer, self.pipe.model)}  # that it may draw
        return DenoisingStep(
            logits=arguments["model_output"],
            ids=ids,
            free=in_block(self._uncommitted(canvas, arguments), ids.shape[1]),
            attention_mask=torch.nn.functional.pad(self._attention_mask, (0, canvas.shape[1]), value=True),
            temperature=self._temperature(seam, arguments),
            progress=((len(self._pieces) - 1) * steps + self._step) / self.pipe.num_timesteps,
            tokenizer=self._tokenizer,
            given=(position < self._pieces[0].shape[1]).expand(ids.shape),
            reserved=reserved_token_ids(self._tokenizer, arguments["model_output"].shape[-1], drawn),
            prompts=self._prompts,
            chat=True,  # the pipeline puts every prompt into the chat template
            generator=arguments.get("generator"),
            ends=ends,
            coming=self._coming(canvas.shape[1], len(self._pieces) - 1),
            held=in_block(self._held(seam, canvas), ids.shape[1]),
            greedy=seam == "step" and arguments.get("temperature") == 0,
            redraws=steps - 1 - self._step if is_a(self.pipe.scheduler, "DiscreteDDIMScheduler") else 0,
            decisive=is_a(self.pipe.scheduler, "EntropyBoundScheduler") and self._step + 1 == steps,
        )

    def after(self, seam: str, step: DenoisingStep, output: Any) -> Drawn:
        """Tokens that were accepted; where a scheduler draws the whole canvas anew every clean token."""
        self._seam = seam
        if seam == "step_correct":
            return super().after(seam, step, output)
        tokens, scheduler, length = field_of(output, "sampled_tokens"), self.pipe.scheduler, step.ids.shape[1]
        kept = torch.ones_like(tokens, dtype=torch.bool)
        if is_a(scheduler, "EntropyBoundScheduler"):
            kept = output.accepted_index
        elif is_a(scheduler, "BlockRefinementScheduler"):
            kept = output.transfer_index | output.editing_transfer_index
        positions = in_block(kept, length) & step.free
        return Drawn(in_block(tokens, length).where(positions, step.ids), positions)

    def finished(self, result: Any) -> Tensor | None:
        """The pipeline returns what follows the prompt."""
        answers = ids_in(result, "sequences")
        return None if answers is None else torch.cat([self._pieces[0], answers], -1)

    def reorder(self, step: DenoisingStep, output: Any, rows: Tensor) -> Any:
        """The encoder is given a view of the pipeline's own text and its cache; both are exchanged where they are."""
        keeps = [name for name in ("eos_early_stop", "confidence_threshold") if self._arguments.get(name, True)]
        if keeps:
            off = {"eos_early_stop": False, "confidence_threshold": None}
            raise RuntimeError(
                "DiffusionGemmaPipeline remembers by itself which sequences have ended; pass "
                f"`{keeps[0]}={off[keeps[0]]}` to have sequences exchanged."
            )
        exchanged = super().reorder(step, output, rows)
        if self._seam == "step_correct":  # the model goes on being told the logits of the step before the sweep
            self._told.copy_(self._told[rows])
        *finished, last = self._pieces
        length = last.stride(0)  # of the text whose last part the encoder was given
        text = last.as_strided((len(rows), length), (length, 1), 0)
        text.copy_(text[rows])
        self._pieces = [*(piece[rows] for piece in finished), last]
        self._cache.reorder_cache(rows)
        committed = getattr(self.pipe.scheduler, "_committed", None)
        if committed is not None:
            self.pipe.scheduler._committed = committed[rows]
        return exchanged

    def _ends(self) -> tuple[int, ...]:
        """The token at which the pipeline cuts its texts: that of the call, or its own."""
        asked = self._arguments.get("eos_token_id")
        end = self.pipe.eos_token_id if asked is None else asked
        return () if end is None else (int(end),)

    def _coming(self, canvas_length: int, finished: int) -> int:
        """Positions of the canvases behind this one, of which so many are before it."""
        canvases = -(-self._arguments["gen_length"] // canvas_length)
        return int(max(0, canvases - finished - 1) * canvas_length)

    def _held(self, seam: str, canvas: Tensor) -> Tensor:
        """Tokens that stay unless they are exchanged: all in a sweep, the committed ones where these may be edited."""
        committed = getattr(self.pipe.scheduler, "_committed", None)
        if seam == "step_correct":
            return torch.ones_like(canvas, dtype=torch.bool)
        if self._step == 0 or committed is None or committed.shape != canvas.shape:
            return torch.zeros_like(canvas, dtype=torch.bool)
        held: Tensor = committed
        return held

    def _uncommitted(self, canvas: Tensor, arguments: Mapping[str, Any]) -> Tensor:
        committed = getattr(self.pipe.scheduler, "_committed", None)
        editing = arguments.get("editing_threshold") or getattr(self.pipe.scheduler.config, "editing_threshold", None)
        if self._step == 0 or committed is None or committed.shape != canvas.shape or editing is not None:
            return torch.ones_like(canvas, dtype=torch.bool)
        uncommitted: Tensor = ~committed
        return uncommitted

    def _temperature(self, seam: str, arguments: Mapping[str, Any]) -> float:
        scheduler = self.pipe.scheduler
        if seam == "step_correct":
            return 1.0
        if is_a(scheduler, "EntropyBoundScheduler"):  # falls from t_max to t_min
            left = (scheduler.num_inference_steps - self._step) / scheduler.num_inference_steps
            return float(scheduler.config.t_min + (scheduler.config.t_max - scheduler.config.t_min) * left)
        return float(arguments.get("temperature") or 1.0)

    def _remember_context(self, arguments: dict[str, Any]) -> None:
        self._pieces.append(arguments["input_ids"])
        self._step = -1
        self._cache: Any = arguments.get("past_key_values", arguments.get("cache"))
        self._attention_mask: Tensor = arguments["attention_mask"].bool()

    def _remember_told(self, arguments: dict[str, Any]) -> None:
        self._told: Tensor = arguments["self_conditioning_logits"]


def _keywords(code: CodeType, *among: str) -> tuple[str, ...]:
    """Names of the keyword arguments of a call that `code` makes, the one that has all of `among`; () without one.

    CPython keeps them as a tuple among the constants.
    """
    calls = (names for names in code.co_consts if isinstance(names, tuple) and {*among} <= {*map(str, names)})
    return next(calls, ())
