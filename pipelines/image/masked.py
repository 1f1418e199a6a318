"""Image generation with a masked diffusion model over the tokens of a VQ model."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from diffusers import DiffusionPipeline
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils import BaseOutput
from torch import Tensor

from redge_guidance.hub import loading, resolve
from redge_guidance.pipelines.drawing import Drawer, Drawing
from redge_guidance.pipelines.image.completion import ImageCompletion, image_canvas
from redge_guidance.pipelines.image.conditions import Conditions, check_parts, takes_text
from redge_guidance.pipelines.image.halton import convert_transformer, convert_vq_model
from redge_guidance.pipelines.image.order import grid_order
from redge_guidance.pipelines.image.vq_tokens import codebook_of, embeddings_of, to_pixels, to_tokens
from redge_guidance.pipelines.sampling import AfterStep, Callback, Generators, check_generators, plain_settings
from redge_guidance.pipelines.scheduler import MaskedDiffusionScheduler
from redge_guidance.pipelines.schedules import classifier_free, for_each_step
from redge_guidance.recipe import remembered
from redge_guidance.remote import load_pipeline


@dataclass
class MaskedImagePipelineOutput(BaseOutput):
    """Output of `MaskedImagePipeline`.

    Attributes:
        images: as `output_type` says.
        tokens: `(batch, side**2)` int64, rows from top to bottom.
    """

    images: Any
    tokens: Tensor


class MaskedImagePipeline(Drawer, DiffusionPipeline):
    """Generate or complete images with a masked model of image tokens, as MaskGIT (arXiv 2202.04200).

    An image is a square of tokens, entries of the codebook of `vqvae`. Hidden tokens hold an id outside the codebook,
    and `scheduler` decides which of them to draw in each denoising step.

    Args:
        transformer: a `MaskedImageTransformer`, with or without classes, or diffusers' `UVit2DModel`, which is given a
            text.
        vqvae: diffusers' `VQModel`.
        scheduler: a `MaskedDiffusionScheduler`.
        tokenizer, text_encoder: of CLIP, for a `UVit2DModel`.
        mask_token_id: id of a hidden token; None: the one after the codebook, of a `UVit2DModel` its last one.
        do_normalize: whether the pixels of `vqvae` lie in [-1, 1] rather than [0, 1].
        num_inference_steps, temperature, guidance_scale: what `__call__` uses when it is not told otherwise.

    Raises:
        ValueError: a codebook and a transformer of different sizes, a mask token inside the codebook, or a text model
            without tokenizer or text encoder.
    """

    transformer: Any
    vqvae: Any
    scheduler: MaskedDiffusionScheduler
    tokenizer: Any
    text_encoder: Any
    model_cpu_offload_seq = "text_encoder->transformer"
    _exclude_from_cpu_offload: ClassVar[list[str]] = ["vqvae"]  # guidance decodes in the middle of a step
    _optional_components: ClassVar[list[str]] = ["tokenizer", "text_encoder"]
    _callback_tensor_inputs: ClassVar[list[str]] = ["sample", "logits"]

    def __init__(
        self,
        transformer: Any,
        vqvae: Any,
        scheduler: MaskedDiffusionScheduler,
        tokenizer: Any = None,
        text_encoder: Any = None,
        mask_token_id: int | None = None,
        do_normalize: bool = True,
        num_inference_steps: int = 16,
        temperature: float | Sequence[float] = 1.0,
        guidance_scale: float | Sequence[float] = 1.0,
    ):
        super().__init__()
        mask_token_id = check_parts(transformer, vqvae, tokenizer, text_encoder, mask_token_id)
        self.register_modules(transformer=transformer, vqvae=vqvae, scheduler=scheduler)
        self.register_modules(tokenizer=tokenizer, text_encoder=text_encoder)
        self.register_to_config(mask_token_id=mask_token_id, do_normalize=do_normalize, temperature=temperature)
        self.register_to_config(num_inference_steps=num_inference_steps, guidance_scale=guidance_scale)
        self.image_processor = VaeImageProcessor(do_resize=False, do_normalize=False)

    @classmethod
    @remembered
    def from_pretrained(
        cls, name: str | os.PathLike[str], *, dtype: torch.dtype = torch.float32, **kwargs: Any
    ) -> "MaskedImagePipeline":
        """Load a pipeline folder, a hub id, or an embedded checkpoint (`"builtin:mnist-masked"`).

        Args:
            name: embedded checkpoint, folder, or hub id.
            dtype: of the models.
            **kwargs: for `DiffusionPipeline.from_pretrained`, `trust_remote_code` among them.

        Raises:
            ValueError, FileNotFoundError: `name` is unknown, or its parts do not fit one another.
            OSError: `name` is a hub id that cannot be loaded.
        """
        hub = {key: kwargs[key] for key in ("revision", "token", "cache_dir") if key in kwargs}
        path = resolve(name, hub.get("revision"), hub.get("cache_dir"))
        with loading(name):
            stored = cls.load_config(path, **hub)
            if "vqvae" not in stored:
                kind = stored.get("_class_name")
                raise ValueError(f"`{name}` is for {kind}, which makes no images; call {kind}.from_pretrained.")
            pipe: MaskedImagePipeline = load_pipeline(cls, path, dtype, **kwargs)
        return pipe

    @classmethod
    def from_halton(
        cls, transformer: str | os.PathLike[str], vqvae: str | os.PathLike[str], **kwargs: Any
    ) -> "MaskedImagePipeline":
        """The class-conditional ImageNet models of Halton-MaskGIT, from their published files.

        `save_pretrained` then writes a folder that `from_pretrained` reads.

        Args:
            transformer: `ImageNet_256_*.pth` or `ImageNet_384_*.pth` of llvictorll/Halton-Maskgit.
            vqvae: `vq_ds16_c2i.pt` of FoundationVision/LlamaGen.
            **kwargs: further arguments of the constructor. Where they are not given, the sampler is that of the
                published configuration (`Config/base_cls2img.yaml`): the Halton order with the arccos schedule, 32
                steps, `cfg_w` 3, which is a `guidance_scale` of 4, and temperature 1. The published figures were made
                with `cfg_w` 1.5, 1, 0.7 and 0.5 for tiny, small, base and large.

        Raises:
            ValueError: a file that is a pickle of code, or holds other weights.
            FileNotFoundError: no such file.
        """
        defaults = {"guidance_scale": 4.0, "num_inference_steps": 32}
        scheduler = kwargs.pop("scheduler", None)
        if scheduler is None:
            scheduler = MaskedDiffusionScheduler("halton", schedule="arccos", counting="floor")
        return cls(convert_transformer(transformer), convert_vq_model(vqvae), scheduler, **defaults | kwargs)

    @torch.no_grad()
    def __call__(
        self,
        class_labels: int | Sequence[int] | None = None,
        prompt: str | list[str] | None = None,
        *,
        num_images_per_prompt: int = 1,
        tokens: Tensor | None = None,
        image: Any = None,
        mask_image: Any = None,
        num_inference_steps: int | None = None,
        temperature: float | Sequence[float] | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        guidance_scale: float | Sequence[float] | None = None,
        negative_prompt: str | None = None,
        generator: Generators = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callback | None = None,
        callback_on_step_end_tensor_inputs: list[str] | None = None,
    ) -> MaskedImagePipelineOutput | tuple[Any, Tensor]:
        """Generate images.

        Args:
            class_labels: one class or several, of a model with classes; None: whatever class.
            prompt: one text or several, of a model that is given a text.
            num_images_per_prompt: images of every class or prompt, or in all.
            tokens: `(batch, side**2)` or `(side**2,)` int64, tokens that stay; `pipe.mask_token_id` where one is to be
                drawn.
            image: an image to complete, PIL or `(3, height, width)` or a batch of these in [0, 1]; of the size that the
                pipeline makes.
            mask_image: white (1) where `image` is to be drawn anew, PIL or `(height, width)`. A token that covers any
                of it is drawn; elsewhere the result is `image` itself.
            num_inference_steps, temperature, guidance_scale: None: those of the pipeline. `temperature` 0 is greedy.
                Temperature and scale may be sequences, one number a step, such as the ramps of Halton-MaskGIT in
                `redge_guidance.pipelines.schedules`.
            top_k, top_p: draw from the k likeliest tokens, from the likeliest tokens of total probability p.
            guidance_scale: classifier-free guidance, `logits = u + guidance_scale * (c - u)`, u without class or text;
                1 is none.
            negative_prompt: what u is told instead of no text.
            generator: source of all randomness; the same generator gives the same images. A list of one an image makes
                every image independent of the others.
            output_type: `"pil"`, `"np"`, `"pt"` (`(batch, 3, height, width)` in [0, 1]) or `"latent"`, the tokens.
            return_dict: an output object instead of `(images, tokens)`.
            callback_on_step_end: called as `callback(pipe, step, timestep, {name: tensor})`; may return a dict with a
                new `sample`; `pipe._interrupt = True` makes this step the last.
            callback_on_step_end_tensor_inputs: of `["sample", "logits"]`; default `["sample"]`.

        Raises:
            ValueError: a label outside the classes, a text or a class for a model without, an image of the wrong size
                or range, or a setting out of range.
        """
        temperature = self.config.temperature if temperature is None else temperature
        steps = self.config.num_inference_steps if num_inference_steps is None else num_inference_steps
        guidance_scale = self.config.guidance_scale if guidance_scale is None else guidance_scale
        after_step = AfterStep(self, callback_on_step_end, callback_on_step_end_tensor_inputs)
        counts = {"num_images_per_prompt": num_images_per_prompt, "num_inference_steps": steps, "top_k": top_k}
        plain = plain_settings(temperature, top_p, counts, guidance_scale)
        temperature, top_p, guidance_scale, num_images_per_prompt, steps, top_k = plain
        self.scheduler.set_timesteps(steps, device=self._execution_device)
        temperatures = for_each_step("temperature", temperature, len(self.scheduler.timesteps))
        scales = for_each_step("guidance_scale", guidance_scale, len(self.scheduler.timesteps))
        conditions = Conditions(self, self._execution_device)
        prompts, condition = conditions.given(class_labels, prompt, negative_prompt, num_images_per_prompt)
        batch = next(iter(condition.values())).shape[0]
        check_generators(generator, batch)
        nothing = conditions.without(batch, negative_prompt) if set(scales) != {1} else {}
        completion = ImageCompletion.read(image, mask_image, self.image_size, self._execution_device)
        canvas = image_canvas(self, batch, tokens, completion, self._execution_device)
        ranks = grid_order(self.scheduler, self.side, batch, generator, self._execution_device).get("ranks")
        sample = canvas.ids
        settings: dict[str, Any] = {"ranks": ranks, "top_k": top_k, "top_p": top_p, "generator": generator}
        drawing = Drawing(canvas, prompts, class_labels=condition.get("class_labels"), ranks=ranks)
        with self._running(len(temperatures)), self._draw(drawing):
            for step, t in enumerate(self.progress_bar(self.scheduler.timesteps)):
                if self.interrupt:
                    break
                logits = self._logits(sample, condition)
                if scales[step] != 1:
                    logits = classifier_free(logits, self._logits(sample, nothing), scales[step])
                sample, _ = self.scheduler.step(
                    logits,
                    t,
                    sample,
                    mask_token_id=self.mask_token_id,
                    free=canvas.free,
                    temperature=temperatures[step],
                    return_dict=False,
                    **settings,
                )
                sample = after_step(step, t, sample, logits)
        self._say_undrawn(sample == self.mask_token_id, "they are decoded as the mean of the codebook")
        return self._output(sample, completion, output_type, return_dict)

    def _output(
        self, tokens: Tensor, completion: ImageCompletion | None, output_type: str, return_dict: bool
    ) -> MaskedImagePipelineOutput | tuple[Any, Tensor]:
        images: Any = tokens
        if output_type != "latent":
            pixels = self.decode(tokens)
            pixels = pixels if completion is None else completion.pasted_into(pixels)
            images = self.image_processor.postprocess(pixels, output_type, [False] * len(pixels))
        self.maybe_free_model_hooks()
        return MaskedImagePipelineOutput(images, tokens) if return_dict else (images, tokens)

    @property
    def mask_token_id(self) -> int:
        return int(self.config.mask_token_id)

    @property
    def side(self) -> int:
        """Tokens in a row, and in a column."""
        return int(self.transformer.config.sample_size)

    @property
    def image_size(self) -> int:
        """Pixels in a row, and in a column."""
        return int(self.side * 2 ** (len(self.vqvae.config.block_out_channels) - 1))

    @property
    def codebook(self) -> Tensor:
        """`(codes, dim)`, one row an id of an image token."""
        return codebook_of(self.vqvae)

    def decode_embeddings(self, embeddings: Tensor) -> Tensor:
        """Pixels `(batch, 3, height, width)` in [0, 1] of codebook entries, or mixtures, `(batch, side**2, dim)`."""
        return to_pixels(self.vqvae, embeddings, self.config.do_normalize)

    def decode(self, tokens: Tensor) -> Tensor:
        """Pixels `(batch, 3, height, width)` in [0, 1] of tokens `(batch, side**2)`, hidden ones as the mean of all."""
        return self.decode_embeddings(embeddings_of(self.vqvae, tokens, self.mask_token_id))

    def encode(self, pixels: Tensor) -> Tensor:
        """Tokens `(batch, side**2)` of pixels `(batch, 3, height, width)` in [0, 1]."""
        return to_tokens(self.vqvae, pixels, self.config.do_normalize)

    def _logits(self, sample: Tensor, condition: dict[str, Tensor]) -> Tensor:
        """`(batch, side**2, codes)`."""
        if not takes_text(self.transformer):
            logits: Tensor = self.transformer(sample, **condition)
            return logits
        square = sample.unflatten(1, (self.side, self.side))
        return self.transformer(square, **condition).flatten(2).transpose(1, 2)  # type: ignore[no-any-return]
