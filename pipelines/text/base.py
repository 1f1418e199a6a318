"""What text pipelines share: loading, the canvas of a prompt, its decoding, the bound on a text's probability."""

import os
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from redge_guidance.chats import Prompt
from redge_guidance.checks import real_number
from redge_guidance.hub import loading, resolve
from redge_guidance.pipelines.drawing import Canvas, Drawer, Drawing
from redge_guidance.pipelines.sampling import Generators, Source, check_generators, plain_settings
from redge_guidance.pipelines.text.allowed import allowed_logits
from redge_guidance.pipelines.text.bound import Scoring
from redge_guidance.pipelines.text.calling import clean_logits
from redge_guidance.pipelines.text.families import FAMILIES, ModelFamily, with_config
from redge_guidance.pipelines.text.loading import (
    check_length,
    check_model,
    is_pipeline,
    load_language_model,
    pipeline_options,
    read_config,
)
from redge_guidance.pipelines.text.output import TextPipelineOutput, texts_of
from redge_guidance.pipelines.text.prompts import as_prompts, as_texts, given_before, lay_out, scored_rows
from redge_guidance.positions import longest
from redge_guidance.recipe import remembered
from redge_guidance.remote import REMOTE, load_pipeline
from redge_guidance.text import end_token_ids


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
    @remembered
    def from_pretrained(
        cls,
        name: str | os.PathLike[str],
        *,
        family: str | None = None,
        dtype: torch.dtype = torch.float32,
        tokenizer: Any = None,
        mask_token_id: int | None = None,
        trust_remote_code: bool = False,
        weights_only: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Load a pipeline folder, a language model with its tokenizer, or an embedded checkpoint (`"builtin:..."`).

        A model may be any masked language model of transformers, or one of a family that comes with code of its own,
        for transformers 4 or 5: LLaDA, Dream, MDLM, BD3-LM, SDAR, Fast-dLLM v2, LLaDA2, UDLM and Duo are told by their
        config, others by `family`. It gets its authors' own sampler, and is called once, to see what it is.

        Args:
            name: embedded checkpoint, folder, or hub id.
            family: a name of `FAMILIES` in `redge_guidance.pipelines.text.families`, how the model is called; None: as
                its config says. Of a pipeline folder the settings are stored with it.
            dtype: of the model.
            tokenizer: a tokenizer, or the folder or hub id of one, for a checkpoint that has none (MDLM: its card says
                gpt2's); None: the checkpoint's.
            mask_token_id: the mask token, where neither config nor tokenizer say which it is, or do not agree.
            trust_remote_code: run Python code that comes with the checkpoint.
            weights_only: also read weights from a pickle, by `torch.load(weights_only=True)`.
            **kwargs: for `DiffusionPipeline.from_pretrained`, or the `from_pretrained` of transformers' auto classes
                when `name` is a model without a pipeline; of one with code of its own `device_map`,
                `attn_implementation`, `revision`, `token` and `cache_dir`.

        Returns:
            The pipeline, of this class or, called on `TextPipeline`, of the one that fits.

        Raises:
            ValueError, FileNotFoundError: `name` is unknown or of another kind of diffusion than this class, the
                family is unknown or does not fit, code of a checkpoint is not trusted or does not run, weights do not
                fit their class, or there is no tokenizer or mask token.
            OSError: `name` is a hub id that cannot be loaded, or lacks files.
        """
        remote: dict[str, Any] = {key: kwargs[key] for key in ("revision", "token", "cache_dir") if key in kwargs}
        path = resolve(name, kwargs.get("revision"), kwargs.get("cache_dir"))
        with loading(name):
            if is_pipeline(path, remote):
                stored = cls.load_config(path, **remote)["_class_name"]
                kind = next((kind for kind in TextPipeline.__subclasses__() if kind.__name__ == stored), cls)
                if kind is TextPipeline:
                    raise ValueError(f"`{name}` is for {stored}, which makes no texts; call {stored}.from_pretrained.")
                _check_kind(name, cls, kind)
                fixed = {"family": family, "mask_token_id": mask_token_id, "weights_only": weights_only or None}
                more = pipeline_options(name, tokenizer, trust_remote_code, fixed)
                return kind._load(path, dtype=dtype, **more, **kwargs)
            config, how = read_config(path, family, trust_remote_code, kwargs)
            _check_kind(name, cls, _kind_of(how))
            options = (dtype, tokenizer, trust_remote_code, weights_only, kwargs)
            model, words = load_language_model(path, config, *options)
        return cls.from_model(model, words, how, mask_token_id)

    @classmethod
    def from_model(cls, model: Any, tokenizer: Any, family: Any = "masked-lm", mask_token_id: int | None = None) -> Any:
        """A pipeline around a model that is in memory already, with its family's settings; the model is called once.

        Args:
            model: maps `input_ids` `(batch, length)` to logits `(batch, length, vocabulary)`.
            tokenizer: of the model; a mask token that it does not name is named in it.
            family: a name of `FAMILIES`, or a `ModelFamily`.
            mask_token_id: the mask token; None: as the family and the tokenizer say.

        Raises:
            ValueError: the model cannot be called so, or its mask token is not known.
        """
        if isinstance(family, str) and family not in FAMILIES:
            raise ValueError(f"`family` must be one of {', '.join(FAMILIES)}, got {family!r}.")
        how = with_config(FAMILIES[family], getattr(model, "config", None)) if isinstance(family, str) else family
        kind = _kind_of(how)
        _check_kind(type(model).__name__, cls, kind)
        check_model(model, how, tokenizer)
        return kind._assemble(model.eval(), tokenizer, how, min(64, longest(model) or 64), mask_token_id)

    @classmethod
    def _load(cls, path: str, **kwargs: Any) -> Any:
        return load_pipeline(cls, path, **kwargs)

    @classmethod
    @abstractmethod
    def _assemble(
        cls, model: Any, tokenizer: Any, how: ModelFamily, length: int, mask_token_id: int | None = None
    ) -> "TextPipeline":
        """The pipeline around a model that came without one."""

    @torch.no_grad()
    def nll(
        self,
        texts: str | list[str],
        num_corruptions: int = 16,
        batch_size: int = 32,
        generator: Generators = None,
        prompts: Prompt | Sequence[Prompt] | None = None,
        guidance_scale: float = 1.0,
    ) -> Tensor:
        """Upper bound on `-log p(text)`, or `-log p(text | prompt)`: the negative ELBO, by Monte Carlo, unbiased.

        With k of a text's C positions hidden, k uniform on 1..C, it is of masked diffusion `E[(C / k) * sum over hidden
        i of -log p(x_i | visible)]` (arXiv 2406.03736, equation 5), summed over the blocks where attention is
        block-causal, and a model that is told the time is told k / C; of uniform diffusion the bound of UDLM in
        continuous time (`uniform_posterior.elbo_rate`). Without prompts all positions of the canvas count, the end of
        the text and what follows it too, only a beginning-of-text token does not, nor the first token where logits are
        shifted and nothing comes before it. The canvas is the pipeline's, or for a longer text its own length and one
        for the end, if the model has room for it. With prompts, or where `suppress_tokens` leave no end, the tokens of
        the text itself count, and nothing else is on the canvas (LLaDA's `get_log_likelihood`).

        Args:
            texts: strings.
            num_corruptions, batch_size: corruptions a text, at stratified noise levels; sequences a call of the model.
            generator: source of the corruptions, or a list of one a text, independent of the others; None: seeded
                with 0, so that equal calls give equal figures.
            prompts: what each text, or all of them, follows: texts, or conversations in the chat template.
            guidance_scale: as in a call: the bound is then that of the model that draws by these logits.

        Returns:
            `(len(texts),)` float32 on the CPU, nats a text.

        Raises:
            ValueError: a text with a reserved token or longer than the model, or prompts of another number.
        """
        texts = as_texts(texts, "texts")
        counts, one = {"num_corruptions": num_corruptions, "batch_size": batch_size}, guidance_scale
        *_, scale, num_corruptions, batch_size = plain_settings(1.0, None, counts, real_number("guidance_scale", one))
        check_generators(generator, len(texts))
        source = Source(generator or torch.Generator().manual_seed(0), num_corruptions)
        prompts = given_before(prompts, self.ends, self.config.suppress_tokens)
        settings = (prompts, self._family.shift_logits, self.config.length, longest(self.model))
        rows = scored_rows(self.tokenizer, texts, *settings)
        total = torch.zeros(len(texts))
        for length, front, start in sorted({(len(ids), front, start) for ids, front, start in rows}):
            check_length(self.model, length)
            if length <= start:
                continue  # nothing of an empty text is to be predicted
            members = [i for i, (ids, *given) in enumerate(rows) if (len(ids), *given) == (length, front, start)]
            ids = torch.tensor([rows[i][0] for i in members])
            how = Scoring(front, start, batch_size, source.of(members), scale)
            strata = torch.arange(num_corruptions).repeat(len(ids))
            levels = (strata + how.source.uniform()) / num_corruptions
            ids = ids.repeat_interleave(num_corruptions, 0)
            losses = self._corrupted_nll(ids, levels, how)
            total[members] = losses.view(-1, num_corruptions).mean(-1)
        return total

    @abstractmethod
    def _corrupted_nll(self, ids: Tensor, levels: Tensor, how: Scoring) -> Tensor:
        """One estimate of the bound a row, `(rows,)`: `levels` `(rows,)` in [0, 1), what `how` calls given stays."""

    @property
    def device(self) -> torch.device:
        """Where the model is, also one that is no class of transformers."""
        found = getattr(self.model, "device", None)
        return next(self.model.parameters()).device if found is None else torch.device(found)

    @property
    def _family(self) -> ModelFamily:
        """How the model is called."""
        names = ("shift_logits", "attention", "time_input", "block_size", "leading_token")
        return ModelFamily(**{name: self.config[name] for name in names if name in self.config})

    def _logits(
        self,
        ids: Tensor,
        attention_mask: Tensor,
        alpha: Tensor | float = 1.0,
        inputs: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """`(batch, length, vocabulary)`; alpha, `(batch,)` or a number, is the share of tokens left as they were."""
        alpha = torch.as_tensor(alpha, dtype=torch.float32, device=ids.device).expand(len(ids))
        return clean_logits(self.model, self._family, ids, attention_mask, alpha, inputs)

    def save_pretrained(self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any) -> None:
        """As in diffusers; a ValueError for a model whose code came with its checkpoint."""
        if (kind := type(self.model)).__module__.startswith(REMOTE):
            raise ValueError(f"a pipeline around {kind.__name__}, with code of its checkpoint, cannot be saved.")
        super().save_pretrained(save_directory, *args, **kwargs)

    @property
    def ends(self) -> tuple[int, ...]:
        """Token ids that end a text: the tokenizer's, and those of the model's `generation_config`."""
        return end_token_ids(self.tokenizer, self.model)

    def _without_suppressed(
        self, logits: Tensor, suppress_tokens: Sequence[int] | None = None, unending: Tensor | None = None
    ) -> Tensor:
        """Logits `(..., vocabulary)` of tokens that may be generated, -inf for all others."""
        asked = self.config.suppress_tokens if suppress_tokens is None else suppress_tokens
        return allowed_logits(logits, self.tokenizer, self.ends, [] if asked is None else asked, unending)

    def canvas(
        self,
        prompts: Sequence[Prompt],
        gen_length: int | None = None,
        use_chat_template: bool = False,
        any_length: bool = False,
    ) -> Canvas:
        """What a call with these prompts would draw on, padded on the left; the arguments are those of a call.

        Raises:
            ValueError: a prompt that is too long, unless `any_length`, holds a reserved token, or leaves nothing that a
                model of shifted logits could predict the first token from.
        """
        settings = (self.config.length, gen_length, use_chat_template)
        canvas = lay_out(self.tokenizer, self._family, prompts, *settings).to(self._execution_device)
        if not any_length:
            check_length(self.model, canvas.ids.shape[1])
        return canvas

    def _plan(
        self,
        prompt: Prompt | Sequence[Prompt],
        gen_length: int | None,
        use_chat_template: bool,
        generator: Generators,
        any_length: bool = False,
    ) -> Drawing:
        """What a call with that prompt, or those, draws."""
        prompts, chat = as_prompts(prompt, use_chat_template)
        check_generators(generator, len(prompts))
        return Drawing(self.canvas(prompts, gen_length, chat, any_length), prompts, chat=chat)

    def _output(
        self, sequences: Tensor, canvas: Canvas, return_dict: bool
    ) -> TextPipelineOutput | tuple[Tensor, list[str]]:
        self.maybe_free_model_hooks()
        texts, answers = (texts_of(sequences, canvas, self.tokenizer, self.ends, only) for only in (False, True))
        if not return_dict:
            return sequences, texts
        return TextPipelineOutput(sequences=sequences, texts=texts, answers=answers)


def _kind_of(how: ModelFamily) -> Any:
    return next(kind for kind in TextPipeline.__subclasses__() if kind.corruption == how.corruption)


def _check_kind(name: Any, asked: type[TextPipeline], found: type[TextPipeline]) -> None:
    if not issubclass(found, asked):
        raise ValueError(
            f"`{name}` is for {found.__name__} and cannot be loaded by {asked.__name__}; call "
            f"{found.__name__}.from_pretrained, or say by `family` how the model is called."
        )
