"""Text generation with a masked diffusion language model."""

import inspect
import itertools
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import DiffusionPipeline
from diffusers.utils import BaseOutput
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from torch import Tensor
from transformers import AutoModelForMaskedLM, AutoTokenizer

from redge_guidance.checkpoints import loading, resolve
from redge_guidance.pipelines.masked_scheduler import MaskedDiffusionScheduler
from redge_guidance.text import end_token_id, reserved_token_ids, text_mask


@dataclass
class MaskedTextPipelineOutput(BaseOutput):
    """Output of `MaskedTextPipeline`.

    Attributes:
        sequences: `(batch, length)` int64, left padding, prompt, new tokens, and what follows the end of the text.
        texts: `batch` strings, prompt and continuation up to the end of the text, special tokens left out.
    """

    sequences: Tensor
    texts: list[str]


class MaskedTextPipeline(DiffusionPipeline):
    """Generate, continue or fill in text with any Hugging Face model that maps ids to logits.

    Text lies on a canvas of token positions; after its end the canvas is filled with the end-of-text token. Hidden
    positions hold the mask token, and `scheduler` decides which of them to draw in each denoising step.

    Args:
        model: called with `input_ids` `(batch, length)` and, where its `forward` takes them, `attention_mask` and
            `position_ids`; returns logits `(batch, length, vocabulary)` of the tokens at the same positions.
        tokenizer: has a mask token and an end-of-text token.
        scheduler: a `MaskedDiffusionScheduler`.
        length: canvas of a text that fits it, in tokens, prompt and beginning-of-text token included.
        temperature, top_p: what `__call__` uses when it is not told otherwise.
        suppress_tokens: further token ids that are never generated. Mask, padding, beginning-of-text and unknown
            tokens never are, nor ids that the tokenizer does not have.
    """

    model: Any
    tokenizer: Any
    scheduler: MaskedDiffusionScheduler
    model_cpu_offload_seq = "model"
    _callback_tensor_inputs: ClassVar[list[str]] = ["sample", "logits"]

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        scheduler: MaskedDiffusionScheduler,
        length: int = 64,
        temperature: float = 1.0,
        top_p: float | None = None,
        suppress_tokens: list[int] | None = None,
    ):
        super().__init__()
        for name in ("mask_token_id", "eos_token_id"):
            if (end_token_id(tokenizer) if name == "eos_token_id" else getattr(tokenizer, name, None)) is None:
                raise ValueError(f"`tokenizer` must have a `{name}`, got None; set it on the tokenizer.")
        self.register_modules(model=model, tokenizer=tokenizer, scheduler=scheduler)
        self.register_to_config(length=length, temperature=temperature, top_p=top_p, suppress_tokens=suppress_tokens)

    @classmethod
    def from_pretrained(
        cls, name: str | os.PathLike[str], *, dtype: torch.dtype = torch.float32, **kwargs: Any
    ) -> "MaskedTextPipeline":
        """Load a pipeline folder, a masked language model with its tokenizer, or `"builtin:tatoeba-masked"`.

        Args:
            name: embedded checkpoint, folder, or hub id.
            dtype: of the model.
            **kwargs: for `DiffusionPipeline.from_pretrained`, or the `from_pretrained` of transformers' auto classes
                when `name` is a model without a pipeline.

        Raises:
            ValueError, FileNotFoundError: `name` is unknown.
            OSError: `name` is a hub id that cannot be loaded.
        """
        path = resolve(name)
        remote: dict[str, Any] = {key: kwargs[key] for key in ("revision", "token", "cache_dir") if key in kwargs}
        with loading(name):
            if _is_pipeline(path, remote):
                pipe: MaskedTextPipeline = super().from_pretrained(path, dtype=dtype, **kwargs)
                return pipe
            model = AutoModelForMaskedLM.from_pretrained(path, dtype=dtype, **kwargs)
            if "trust_remote_code" in kwargs:
                remote["trust_remote_code"] = kwargs["trust_remote_code"]
            tokenizer = AutoTokenizer.from_pretrained(path, **remote)
        length = min(64, _longest(model) or 64)
        return cls(model.eval(), tokenizer, MaskedDiffusionScheduler(), length=length)

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] = "",
        *,
        gen_length: int | None = None,
        num_inference_steps: int | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        guidance_scale: float = 1.0,
        generator: torch.Generator | None = None,
        return_dict: bool = True,
        callback_on_step_end: Callable[[Any, int, Tensor, dict[str, Any]], dict[str, Any]] | None = None,
        callback_on_step_end_tensor_inputs: list[str] | None = None,
    ) -> MaskedTextPipelineOutput | tuple[Tensor, list[str]]:
        """Generate one text a prompt.

        Args:
            prompt: text to continue; `""` is unconditional. A prompt with mask tokens in it (`"I [MASK] you."`) is
                a whole text of which only those are filled in.
            gen_length: number of new tokens after every prompt; None: up to the canvas of the pipeline, and at least
                half a canvas.
            num_inference_steps: denoising steps; None: as many as hidden tokens, so that one is drawn at a time.
            temperature, top_p: None: those of the pipeline. 0 is greedy.
            top_k: draw from the k likeliest tokens only.
            guidance_scale: classifier-free guidance, `logits = u + guidance_scale * (c - u)`, u with the prompt
                hidden; 1 is none.
            generator: source of all randomness; the same generator gives the same texts.
            return_dict: return an output object instead of `(sequences, texts)`.
            callback_on_step_end: called as `callback(pipe, step, timestep, {name: tensor})`; may return a dict with a
                new `sample`.
            callback_on_step_end_tensor_inputs: of `["sample", "logits"]`; default `["sample"]`.

        Raises:
            ValueError: a prompt that is too long or holds a reserved token, or a setting out of range.
        """
        temperature = self.config.temperature if temperature is None else temperature
        top_p = self.config.top_p if top_p is None else top_p
        callback_inputs = callback_on_step_end_tensor_inputs or ["sample"]
        self._check_inputs(temperature, top_k, top_p, gen_length, num_inference_steps, callback_inputs)
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        if not prompts:
            sample = torch.empty(0, 0, dtype=torch.long, device=self._execution_device)
            return MaskedTextPipelineOutput(sequences=sample, texts=[]) if return_dict else (sample, [])
        sample, attention_mask, from_prompt = self._canvas(prompts, gen_length)
        mask_token_id = self.tokenizer.mask_token_id
        frozen = sample != mask_token_id
        hidden_prompt = sample.masked_fill(from_prompt, mask_token_id)
        if num_inference_steps is None:
            num_inference_steps = max(1, int((~frozen).sum(-1).max()))
        self.scheduler.set_timesteps(num_inference_steps, device=sample.device)
        for i, t in enumerate(self.progress_bar(self.scheduler.timesteps)):
            logits = self._logits(sample, attention_mask)
            if guidance_scale != 1 and from_prompt.any():
                unconditional = self._logits(torch.where(frozen, hidden_prompt, sample), attention_mask)
                logits = unconditional + guidance_scale * (logits - unconditional)
            logits[..., self._suppressed(logits.shape[-1])] = -torch.inf
            sample, _ = self.scheduler.step(
                logits,
                t,
                sample,
                mask_token_id=mask_token_id,
                frozen=frozen,
                temperature=temperature,
                top_k=top_k,
                top_p=top_p,
                generator=generator,
                return_dict=False,
            )
            if callback_on_step_end is not None:
                tensors = {"sample": sample, "logits": logits}
                returned = callback_on_step_end(self, i, t, {name: tensors[name] for name in callback_inputs})
                sample = (returned or {}).get("sample", sample)
        self.maybe_free_model_hooks()
        texts = self._decode(sample, attention_mask)
        return MaskedTextPipelineOutput(sequences=sample, texts=texts) if return_dict else (sample, texts)

    @torch.no_grad()
    def nll(
        self,
        texts: str | list[str],
        num_samples: int = 16,
        batch_size: int = 32,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Upper bound on `-log p(text)`: the negative ELBO, by Monte Carlo, unbiased.

        With k of a text's C positions hidden, k uniform on 1..C,
        `E[(C / k) * sum over hidden i of -log p(x_i | visible)]` (arXiv 2406.03736, equation 5). All positions of the
        canvas count, the end of the text and what follows it too, only a beginning-of-text token does not. The canvas
        is the pipeline's, or for a longer text its own length and one for the end.

        Args:
            texts: strings.
            num_samples: maskings a text, with stratified k.
            batch_size: sequences in one call of the model.
            generator: source of the maskings; None: seeded with 0, so that equal calls give equal figures.

        Returns:
            `(len(texts),)` float32 on the CPU, nats a text.

        Raises:
            ValueError: a text with a reserved token or longer than the model.
        """
        texts = [texts] if isinstance(texts, str) else list(texts)
        generator = torch.Generator().manual_seed(0) if generator is None else generator
        encoded = [self._encode(text, allow_mask=False) for text in texts]
        rows = [start + ids for start, ids in encoded]
        lengths = [max(self.config.length, len(row) + 1) for row in rows]
        total = torch.zeros(len(texts))
        for length in sorted(set(lengths)):
            self._check_length(length)
            members = [i for i, n in enumerate(lengths) if n == length]
            ids = torch.tensor([rows[i] + [end_token_id(self.tokenizer)] * (length - len(rows[i])) for i in members])
            start = len(encoded[members[0]][0])
            total[members] = self._canvas_nll(ids, start, num_samples, batch_size, generator)
        return total

    def _canvas_nll(
        self, ids: Tensor, start: int, num_samples: int, batch_size: int, generator: torch.Generator
    ) -> Tensor:
        """The bound of `nll`, `(texts,)`, for `(texts, start + C)` ids of which the first `start` are never hidden."""
        canvas = ids.shape[1] - start
        strata = torch.arange(num_samples).repeat(len(ids))
        uniform = (strata + torch.rand(len(strata), generator=generator, device=generator.device).cpu()) / num_samples
        k = (uniform * canvas).long().clamp(max=canvas - 1) + 1
        ids = ids.repeat_interleave(num_samples, 0)
        order = torch.rand(len(ids), canvas, generator=generator, device=generator.device).cpu()
        hidden = torch.nn.functional.pad(order.argsort(-1).argsort(-1) < k[:, None], (start, 0))
        losses = torch.empty(len(ids))
        for part in torch.arange(len(ids)).split(batch_size):
            x_0, masked = ids[part].to(self._execution_device), hidden[part].to(self._execution_device)
            logits = self._logits(x_0.masked_fill(masked, self.tokenizer.mask_token_id), torch.ones_like(masked))
            rows = logits[masked].float()
            rows[:, self._suppressed(rows.shape[-1])] = -torch.inf
            loss = torch.zeros(x_0.shape, device=rows.device)
            loss[masked] = torch.nn.functional.cross_entropy(rows, x_0[masked], reduction="none")
            losses[part] = (loss.sum(-1).cpu() * canvas) / k[part]
        return losses.view(-1, num_samples).mean(-1)

    def _logits(self, ids: Tensor, attention_mask: Tensor) -> Tensor:
        """`(batch, length, vocabulary)`; positions are counted from the first token that is not padding."""
        inputs: dict[str, Tensor] = {"input_ids": ids}
        accepted = inspect.signature(self.model.forward).parameters
        if "attention_mask" in accepted:
            inputs["attention_mask"] = attention_mask.long()
        if "position_ids" in accepted:
            inputs["position_ids"] = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)
        output = self.model(**inputs)
        logits: Tensor = output if isinstance(output, Tensor) else getattr(output, "logits", output[0])
        return logits

    def _suppressed(self, vocabulary: int) -> list[int]:
        """Ids that are never generated, in ascending order."""
        extra = {i for i in self.config.suppress_tokens or [] if i < vocabulary} - {end_token_id(self.tokenizer)}
        return sorted(extra.union(reserved_token_ids(self.tokenizer, vocabulary)))

    def _encode(self, text: str, allow_mask: bool = True) -> tuple[list[int], list[int]]:
        """Ids that the tokenizer puts before a text, and those of the text; what it puts after a text is left out."""
        tokenizer = self.tokenizer
        ids: list[int] = tokenizer(text, add_special_tokens=False).input_ids
        reserved = set(tokenizer.all_special_ids) - ({tokenizer.mask_token_id} if allow_mask else set())
        found = [tokenizer.convert_ids_to_tokens(i) for i in ids if i in reserved]
        if found:
            raise ValueError(
                f"`{'prompt' if allow_mask else 'texts'}` must not contain reserved tokens, got {found[0]!r} in "
                f"{text!r}; remove it."
            )
        ends = {end_token_id(tokenizer), tokenizer.mask_token_id}
        start = itertools.takewhile(
            lambda i: i in tokenizer.all_special_ids and i not in ends, tokenizer(text).input_ids
        )
        return list(start), ids

    def _canvas(self, prompts: list[str], gen_length: int | None) -> tuple[Tensor, Tensor, Tensor]:
        """Left-padded ids, their attention mask, and which ids were given by the user; each `(batch, length)`."""
        mask_id, end_id = self.tokenizer.mask_token_id, end_token_id(self.tokenizer)
        rows: list[list[Any]] = []
        given: list[list[bool]] = []
        for prompt in prompts:
            start, text = self._encode(prompt)
            room = self.config.length - len(start) - len(text)
            if mask_id in text:
                rest = [end_id] * max(1, room)
            else:
                rest = [mask_id] * (gen_length or max(room, self.config.length // 2))
            rows.append(start + text + rest)
            given.append([False] * len(start) + [i != mask_id for i in text] + [False] * len(rest))
        length = max(map(len, rows))
        self._check_length(length)
        pad = self.tokenizer.pad_token_id
        padding = [length - len(row) for row in rows]
        device = self._execution_device

        def pack(values: list[list[Any]], fill: Any, dtype: torch.dtype) -> Tensor:
            padded = [[fill] * n + list(row) for n, row in zip(padding, values, strict=True)]
            return torch.tensor(padded, dtype=dtype, device=device).view(len(rows), length)

        ids = pack(rows, end_id if pad is None else pad, torch.long)
        return ids, pack([[True] * len(row) for row in rows], False, torch.bool), pack(given, False, torch.bool)

    def _decode(self, ids: Tensor, attention_mask: Tensor) -> list[str]:
        mask = text_mask(ids, self.tokenizer, attention_mask)
        rows = [row[keep].tolist() for row, keep in zip(ids, mask, strict=True)]
        texts: list[str] = self.tokenizer.batch_decode(rows, skip_special_tokens=True)
        return texts

    def _check_length(self, length: int) -> None:
        longest = _longest(self.model)
        if longest is not None and length > longest:
            raise ValueError(
                f"the text needs {length} token positions and the model has {longest}; "
                "shorten `prompt`, or lower `gen_length`."
            )

    def _check_inputs(
        self,
        temperature: float,
        top_k: int | None,
        top_p: float | None,
        gen_length: int | None,
        num_inference_steps: int | None,
        callback_inputs: list[str],
    ) -> None:
        if not 0 <= temperature < float("inf"):
            raise ValueError(f"`temperature` must be >= 0, got {temperature}; 0 is greedy.")
        if top_p is not None and not 0 < top_p <= 1:
            raise ValueError(f"`top_p` must lie in (0, 1], got {top_p}.")
        for name, value in (("top_k", top_k), ("gen_length", gen_length), ("num_inference_steps", num_inference_steps)):
            if value is not None and value < 1:
                raise ValueError(f"`{name}` must be >= 1, got {value}.")
        unknown = set(callback_inputs) - set(self._callback_tensor_inputs)
        if unknown:
            raise ValueError(
                "`callback_on_step_end_tensor_inputs` must be of "
                f"{self._callback_tensor_inputs}, got {sorted(unknown)}."
            )


def _is_pipeline(path: str, remote: dict[str, Any]) -> bool:
    """Whether a folder or a hub repository holds a pipeline rather than a single model."""
    if os.path.isdir(path):
        return (Path(path) / "model_index.json").is_file()
    try:
        hf_hub_download(path, "model_index.json", **remote)
    except EntryNotFoundError:  # not in the repository; or no network and not in the cache
        return False
    return True


def _longest(model: Any) -> int | None:
    """Most token positions that the model's config admits; None where it does not say."""
    for name in ("max_position_embeddings", "max_sequence_length", "n_positions"):
        longest: int | None = getattr(getattr(model, "config", None), name, None)
        if longest:
            return longest
    return None
