"""Text generation with a masked diffusion language model."""

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
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer

from redge_guidance.checkpoints import loading, resolve
from redge_guidance.pipelines.canvas import chat, encode, split_into_blocks, steps_of_blocks
from redge_guidance.pipelines.families import ModelFamily, clean_logits, family_of, set_mask_token
from redge_guidance.pipelines.masked_scheduler import MaskedDiffusionScheduler
from redge_guidance.text import end_token_id, generated_after, reserved_token_ids, text_mask


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
        shift_logits, attention, time_input: how the model is called, as in `ModelFamily`.

    Raises:
        ValueError: a tokenizer without mask or end-of-text token, or an unknown `attention`.
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
        shift_logits: bool = False,
        attention: str = "2d",
        time_input: str | None = None,
    ):
        super().__init__()
        ModelFamily(shift_logits, attention, time_input)
        for name in ("mask_token_id", "eos_token_id"):
            if (end_token_id(tokenizer) if name == "eos_token_id" else getattr(tokenizer, name, None)) is None:
                raise ValueError(f"`tokenizer` must have a `{name}`, got None; set it on the tokenizer.")
        self.register_modules(model=model, tokenizer=tokenizer, scheduler=scheduler)
        self._block, self._num_blocks = 0, 1  # the block that is being drawn
        self.register_to_config(length=length, temperature=temperature, top_p=top_p, suppress_tokens=suppress_tokens)
        self.register_to_config(shift_logits=shift_logits, attention=attention, time_input=time_input)

    @classmethod
    def from_pretrained(
        cls,
        name: str | os.PathLike[str],
        *,
        family: str | None = None,
        dtype: torch.dtype = torch.float32,
        **kwargs: Any,
    ) -> "MaskedTextPipeline":
        """Load a pipeline folder, a masked language model with its tokenizer, or `"builtin:tatoeba-masked"`.

        A model may be any masked language model of transformers, or one of a family that comes with code of its own:
        LLaDA, Dream and MDLM are told by their config, others (conversions of autoregressive models, say) by `family`.

        Args:
            name: embedded checkpoint, folder, or hub id.
            family: `"masked-lm"`, `"llada"`, `"dream"` or `"mdlm"`: how the model is called; None: as its config says.
                Of a pipeline folder the settings are stored with it.
            dtype: of the model.
            **kwargs: for `DiffusionPipeline.from_pretrained`, or the `from_pretrained` of transformers' auto classes
                when `name` is a model without a pipeline.

        Raises:
            ValueError, FileNotFoundError: `name` is unknown, the family is unknown, or code of a checkpoint is not
                trusted.
            OSError: `name` is a hub id that cannot be loaded.
        """
        path = resolve(name)
        remote: dict[str, Any] = {key: kwargs[key] for key in ("revision", "token", "cache_dir") if key in kwargs}
        with loading(name):
            if _is_pipeline(path, remote):
                pipe: MaskedTextPipeline = super().from_pretrained(path, dtype=dtype, **kwargs)
                return pipe
            code = {key: kwargs[key] for key in ("trust_remote_code",) if key in kwargs}
            config = AutoConfig.from_pretrained(path, **remote, **code)
            how = family_of(config, family)
            model = _auto_class(config).from_pretrained(path, dtype=dtype, **kwargs)
            tokenizer = AutoTokenizer.from_pretrained(path, **remote, **code)
        set_mask_token(tokenizer, how.mask_token_id)
        length = min(64, _longest(model) or 64)
        settings: dict[str, Any] = {
            "shift_logits": how.shift_logits,
            "attention": how.attention,
            "time_input": how.time_input,
        }
        return cls(model.eval(), tokenizer, MaskedDiffusionScheduler(), length=length, **settings)

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] = "",
        *,
        gen_length: int | None = None,
        block_length: int | None = None,
        num_inference_steps: int | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        guidance_scale: float = 1.0,
        use_chat_template: bool = False,
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
            block_length: draw blocks of so many tokens one after the other, from left to right (LLaDA's
                semi-autoregressive decoding), with an equal share of the steps each; None: all at once.
            num_inference_steps: denoising steps; None: as many as hidden tokens, so that one is drawn at a time.
            temperature, top_p: None: those of the pipeline. 0 is greedy.
            top_k: draw from the k likeliest tokens only.
            guidance_scale: classifier-free guidance, `logits = u + guidance_scale * (c - u)`, u with the prompt
                hidden; 1 is none.
            use_chat_template: take every prompt for the turn of a user and put it into the chat template of the
                tokenizer; mask tokens in it are then an error.
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
        counts = {"top_k": top_k, "gen_length": gen_length, "block_length": block_length}
        counts["num_inference_steps"] = num_inference_steps
        self._check_inputs(temperature, top_p, counts, callback_inputs)
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        if not prompts:
            sample = torch.empty(0, 0, dtype=torch.long, device=self._execution_device)
            return MaskedTextPipelineOutput(sequences=sample, texts=[]) if return_dict else (sample, [])
        sample, attention_mask, from_prompt = self._canvas(prompts, gen_length, use_chat_template)
        mask_token_id = self.tokenizer.mask_token_id
        frozen = sample != mask_token_id
        hidden_prompt = sample.masked_fill(from_prompt, mask_token_id)
        blocks = split_into_blocks(~frozen, block_length)
        steps = steps_of_blocks([~frozen & block for block in blocks], num_inference_steps)
        self._num_blocks, step = len(blocks), 0
        with self.progress_bar(total=sum(steps)) as progress_bar:
            for self._block, active in enumerate(blocks):
                self.scheduler.set_timesteps(steps[self._block], device=sample.device)
                for t in self.scheduler.timesteps:
                    alpha = self.scheduler.alpha(float(t))
                    logits = self._logits(sample, attention_mask, alpha)
                    if guidance_scale != 1 and from_prompt.any():
                        without = torch.where(frozen, hidden_prompt, sample)
                        unconditional = self._logits(without, attention_mask, alpha)
                        logits = unconditional + guidance_scale * (logits - unconditional)
                    logits[..., self._suppressed(logits.shape[-1])] = -torch.inf
                    sample, _ = self.scheduler.step(
                        logits,
                        t,
                        sample,
                        mask_token_id=mask_token_id,
                        frozen=frozen,
                        active=active,
                        temperature=temperature,
                        top_k=top_k,
                        top_p=top_p,
                        generator=generator,
                        return_dict=False,
                    )
                    if callback_on_step_end is not None:
                        tensors = {"sample": sample, "logits": logits}
                        inputs = {name: tensors[name] for name in callback_inputs}
                        sample = (callback_on_step_end(self, step, t, inputs) or {}).get("sample", sample)
                    step += 1
                    progress_bar.update()
        self.maybe_free_model_hooks()
        texts = self._decode(sample, attention_mask, generated_after(~frozen))
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
        encoded = [encode(self.tokenizer, text, "texts", allow_mask=False) for text in texts]
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
            alpha = 1 - k[part].to(x_0.device) / canvas
            x_t = x_0.masked_fill(masked, self.tokenizer.mask_token_id)
            logits = self._logits(x_t, torch.ones_like(masked), alpha)
            rows = logits[masked].float()
            rows[:, self._suppressed(rows.shape[-1])] = -torch.inf
            loss = torch.zeros(x_0.shape, device=rows.device)
            loss[masked] = torch.nn.functional.cross_entropy(rows, x_0[masked], reduction="none")
            losses[part] = (loss.sum(-1).cpu() * canvas) / k[part]
        return losses.view(-1, num_samples).mean(-1)

    def _logits(self, ids: Tensor, attention_mask: Tensor, alpha: Tensor | float = 1.0) -> Tensor:
        """`(batch, length, vocabulary)`; alpha, `(batch,)` or a number, is the share of tokens that is visible."""
        family = ModelFamily(self.config.shift_logits, self.config.attention, self.config.time_input)
        alpha = torch.as_tensor(alpha, dtype=torch.float32, device=ids.device).expand(len(ids))
        return clean_logits(self.model, family, ids, attention_mask, alpha)

    def _suppressed(self, vocabulary: int) -> list[int]:
        """Ids that are never generated, in ascending order."""
        extra = {i for i in self.config.suppress_tokens or [] if i < vocabulary} - {end_token_id(self.tokenizer)}
        return sorted(extra.union(reserved_token_ids(self.tokenizer, vocabulary)))

    def _canvas(
        self, prompts: list[str], gen_length: int | None, use_chat_template: bool = False
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Left-padded ids, their attention mask, and which ids were given by the user; each `(batch, length)`."""
        mask_id, end_id = self.tokenizer.mask_token_id, end_token_id(self.tokenizer)
        rows: list[list[Any]] = []
        given: list[list[bool]] = []
        for prompt in prompts:
            start, text = (
                ([], chat(self.tokenizer, prompt)) if use_chat_template else encode(self.tokenizer, prompt, "prompt")
            )
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

    def _decode(self, ids: Tensor, attention_mask: Tensor, given: Tensor) -> list[str]:
        mask = text_mask(ids, self.tokenizer, attention_mask, given)
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
        self, temperature: float, top_p: float | None, counts: dict[str, int | None], callback_inputs: list[str]
    ) -> None:
        if not 0 <= temperature < float("inf"):
            raise ValueError(f"`temperature` must be >= 0, got {temperature}; 0 is greedy.")
        if top_p is not None and not 0 < top_p <= 1:
            raise ValueError(f"`top_p` must lie in (0, 1], got {top_p}.")
        for name, value in counts.items():
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


def _auto_class(config: Any) -> Any:
    """The auto class under which a checkpoint with code of its own registers its model."""
    own = getattr(config, "auto_map", None) or {}
    for kind in (AutoModelForMaskedLM, AutoModel, AutoModelForCausalLM):
        if kind.__name__ in own:
            return kind
    return AutoModelForMaskedLM


def _longest(model: Any) -> int | None:
    """Most token positions that the model's config admits; None where it does not say."""
    for name in ("max_position_embeddings", "max_sequence_length", "n_positions"):
        longest: int | None = getattr(getattr(model, "config", None), name, None)
        if longest:
            return longest
    return None
