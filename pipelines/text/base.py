"""What text pipelines share: loading, the canvas of a prompt, its decoding, the bound on a text's probability."""

import os
from abc import abstractmethod
from collections.abc import Sequence
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

from redge_guidance.hub import loading, resolve
from redge_guidance.pipelines.drawing import Canvas, Drawer, Drawing
from redge_guidance.pipelines.sampling import Generators, check_generators
from redge_guidance.pipelines.text.families import ModelFamily, clean_logits, family_of
from redge_guidance.pipelines.text.prompts import chat, encode
from redge_guidance.text import end_token_id, reserved_token_ids, text_mask


@dataclass
class TextPipelineOutput(BaseOutput):
    """Output of a text pipeline.

    Attributes:
        sequences: `(batch, length)` int64, left padding, prompt, new tokens, and what follows the end of the text.
        texts: `batch` strings, prompt and continuation up to the end of the text, special tokens left out.
    """

    sequences: Tensor
    texts: list[str]


class TextPipeline(Drawer, DiffusionPipeline):
    """Base of `MaskedTextPipeline` and `UniformTextPipeline`; its `from_pretrained` finds out which one is wanted.

    Text lies on a canvas of token positions; after its end the canvas is filled with the end-of-text token.

    Attributes:
        corruption: kind of diffusion, as in `ModelFamily`.
        drawing: what the call in progress draws, `Drawing`; None between calls.
    """

    model: Any
    tokenizer: Any
    corruption: ClassVar[str]
    model_cpu_offload_seq = "model"
    _callback_tensor_inputs: ClassVar[list[str]] = ["sample", "logits"]

    @classmethod
    def from_pretrained(
        cls,
        name: str | os.PathLike[str],
        *,
        family: str | None = None,
        dtype: torch.dtype = torch.float32,
        **kwargs: Any,
    ) -> Any:
        """Load a pipeline folder, a language model with its tokenizer, or an embedded checkpoint (`"builtin:..."`).

        A model may be any masked language model of transformers, or one of a family that comes with code of its own:
        LLaDA, Dream, MDLM, UDLM and Duo are told by their config, others (conversions of autoregressive models, say)
        by `family`.

        Args:
            name: embedded checkpoint, folder, or hub id.
            family: `"masked-lm"`, `"llada"`, `"dream"`, `"mdlm"`, or of uniform diffusion `"uniform-lm"`, `"udlm"`,
                `"duo"`: how the model is called; None: as its config says. Of a pipeline folder the settings are
                stored with it.
            dtype: of the model.
            **kwargs: for `DiffusionPipeline.from_pretrained`, or the `from_pretrained` of transformers' auto classes
                when `name` is a model without a pipeline.

        Returns:
            The pipeline, of this class or, called on `TextPipeline`, of the one that fits.

        Raises:
            ValueError, FileNotFoundError: `name` is unknown or of another kind of diffusion than this class, the
                family is unknown, or code of a checkpoint is not trusted.
            OSError: `name` is a hub id that cannot be loaded.
        """
        path = resolve(name)
        remote: dict[str, Any] = {key: kwargs[key] for key in ("revision", "token", "cache_dir") if key in kwargs}
        with loading(name):
            if _is_pipeline(path, remote):
                stored = cls.load_config(path, **remote)["_class_name"]
                kind = next((kind for kind in TextPipeline.__subclasses__() if kind.__name__ == stored), cls)
                if kind is TextPipeline:
                    raise ValueError(f"`{name}` is for {stored}, which makes no texts; call {stored}.from_pretrained.")
                _check_kind(name, cls, kind)
                return kind._load(path, dtype=dtype, **kwargs)
            code = {key: kwargs[key] for key in ("trust_remote_code",) if key in kwargs}
            config = AutoConfig.from_pretrained(path, **remote, **code)
            how = family_of(config, family)
            kind = next(kind for kind in TextPipeline.__subclasses__() if kind.corruption == how.corruption)
            _check_kind(name, cls, kind)
            model = _auto_class(config).from_pretrained(path, dtype=dtype, **kwargs)
            tokenizer = AutoTokenizer.from_pretrained(path, **remote, **code)
        return kind._assemble(model.eval(), tokenizer, how, length=min(64, _longest(model) or 64))

    @classmethod
    def _load(cls, path: str, **kwargs: Any) -> Any:
        return super().from_pretrained(path, **kwargs)

    @classmethod
    @abstractmethod
    def _assemble(cls, model: Any, tokenizer: Any, how: ModelFamily, length: int) -> "TextPipeline":
        """The pipeline around a model that came without one."""

    @torch.no_grad()
    def nll(
        self,
        texts: str | list[str],
        num_corruptions: int = 16,
        batch_size: int = 32,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Upper bound on `-log p(text)`: the negative ELBO, by Monte Carlo, unbiased.

        With k of a text's C positions hidden, k uniform on 1..C, it is of masked diffusion
        `E[(C / k) * sum over hidden i of -log p(x_i | visible)]` (arXiv 2406.03736, equation 5); of uniform diffusion
        the bound of UDLM in continuous time (`uniform_posterior.elbo_rate`). All positions of the canvas count, the end
        of the text and what follows it too, only a beginning-of-text token does not. The canvas is the pipeline's, or
        for a longer text its own length and one for the end.

        Args:
            texts: strings.
            num_corruptions: corruptions a text, at stratified noise levels.
            batch_size: sequences in one call of the model.
            generator: source of the corruptions; None: seeded with 0, so that equal calls give equal figures.

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
            strata = torch.arange(num_corruptions).repeat(len(ids))
            uniform = torch.rand(len(strata), generator=generator, device=generator.device).cpu()
            levels = (strata + uniform) / num_corruptions
            ids = ids.repeat_interleave(num_corruptions, 0)
            losses = self._corrupted_nll(ids, start, levels, batch_size, generator)
            total[members] = losses.view(-1, num_corruptions).mean(-1)
        return total

    @abstractmethod
    def _corrupted_nll(
        self, ids: Tensor, start: int, levels: Tensor, batch_size: int, generator: torch.Generator
    ) -> Tensor:
        """One estimate of the bound a row, `(rows,)`: `levels` `(rows,)` in [0, 1), the first `start` ids stay."""

    def _logits(self, ids: Tensor, attention_mask: Tensor, alpha: Tensor | float = 1.0) -> Tensor:
        """`(batch, length, vocabulary)`; alpha, `(batch,)` or a number, is the share of tokens left as they were."""
        family = ModelFamily(self.config.shift_logits, self.config.attention, self.config.time_input)
        alpha = torch.as_tensor(alpha, dtype=torch.float32, device=ids.device).expand(len(ids))
        return clean_logits(self.model, family, ids, attention_mask, alpha)

    def _without_suppressed(self, logits: Tensor) -> Tensor:
        """Logits `(..., vocabulary)` of tokens that may be generated, -inf for all others."""
        vocabulary, kept = logits.shape[-1], end_token_id(self.tokenizer)
        suppressed = set(self.config.suppress_tokens or []) - {kept}
        suppressed = suppressed.union(reserved_token_ids(self.tokenizer, vocabulary))
        ids = torch.tensor(sorted(i for i in suppressed if i < vocabulary), dtype=torch.long, device=logits.device)
        return logits.index_fill(-1, ids, -torch.inf)

    def canvas(self, prompts: Sequence[str], gen_length: int | None = None, use_chat_template: bool = False) -> Canvas:
        """What a call with these prompts would draw on, padded on the left; the arguments are those of a call.

        Raises:
            ValueError: a prompt that is too long or holds a reserved token.
        """
        mask_id, end_id = self.tokenizer.mask_token_id, end_token_id(self.tokenizer)
        rows: list[list[Any]] = []
        written: list[list[bool]] = []
        free: list[list[bool]] = []
        for prompt in prompts:
            start, text = (
                ([], chat(self.tokenizer, prompt)) if use_chat_template else encode(self.tokenizer, prompt, "prompt")
            )
            room = self.config.length - len(start) - len(text)
            holes = [i == mask_id for i in text]
            new = max(1, room) if any(holes) else gen_length or max(room, self.config.length // 2)
            fill = end_id if any(holes) or mask_id is None else mask_id
            rows.append(start + text + [fill] * new)
            written.append([False] * len(start) + [not hole for hole in holes] + [False] * new)
            free.append([False] * len(start) + holes + [not any(holes)] * new)
        length = max(map(len, rows), default=0)
        self._check_length(length)
        pad = self.tokenizer.pad_token_id
        device = self._execution_device

        def pack(values: list[list[Any]], fill: Any, dtype: torch.dtype) -> Tensor:
            padded = [[fill] * (length - len(row)) + list(row) for row in values]
            return torch.tensor(padded, dtype=dtype, device=device).view(len(rows), length)

        return Canvas(
            ids=pack(rows, end_id if pad is None else pad, torch.long),
            attention_mask=pack([[True] * len(row) for row in rows], False, torch.bool),
            prompt=pack(written, False, torch.bool),
            free=pack(free, False, torch.bool),
        )

    def _plan(
        self, prompt: str | list[str], gen_length: int | None, use_chat_template: bool, generator: Generators
    ) -> Drawing:
        """What a call with that prompt, or those, draws."""
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        check_generators(generator, len(prompts))
        return Drawing(self.canvas(prompts, gen_length, use_chat_template), prompts)

    def _output(
        self, sequences: Tensor, canvas: Canvas, return_dict: bool
    ) -> TextPipelineOutput | tuple[Tensor, list[str]]:
        self.maybe_free_model_hooks()
        mask = text_mask(sequences, self.tokenizer, canvas.attention_mask, canvas.given)
        rows = [row[keep].tolist() for row, keep in zip(sequences, mask, strict=True)]
        texts: list[str] = self.tokenizer.batch_decode(rows, skip_special_tokens=True) if rows else []
        return TextPipelineOutput(sequences=sequences, texts=texts) if return_dict else (sequences, texts)

    def _check_length(self, length: int) -> None:
        longest = _longest(self.model)
        if longest is not None and length > longest:
            raise ValueError(
                f"the text needs {length} token positions and the model has {longest}; "
                "shorten `prompt`, or lower `gen_length`."
            )


def check_tokenizer(tokenizer: Any, *names: str) -> None:
    """A ValueError if one of these special tokens is missing."""
    for name in names:
        if (end_token_id(tokenizer) if name == "eos_token_id" else getattr(tokenizer, name, None)) is None:
            raise ValueError(f"`tokenizer` must have a `{name}`, got None; set it on the tokenizer.")


def _check_kind(name: Any, asked: type[TextPipeline], found: type[TextPipeline]) -> None:
    if not issubclass(found, asked):
        raise ValueError(
            f"`{name}` is for {found.__name__} and cannot be loaded by {asked.__name__}; call "
            f"{found.__name__}.from_pretrained, or say by `family` how the model is called."
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
