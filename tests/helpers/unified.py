"""Pipelines with aMUSEd's step that are none of diffusers' classes: one of images, and one of images and texts.

They have what Meissonic, Monetico and Muddit have: a scheduler of their own, a transformer that returns a pair, a mask
token that the call sets, an image or a question in the call, a text that is read off the logits of the last step.
"""

import math

import torch
from diffusers import ConfigMixin, DiffusionPipeline, ModelMixin, SchedulerMixin
from diffusers.configuration_utils import register_to_config
from diffusers.image_processor import VaeImageProcessor
from diffusers.schedulers.scheduling_amused import AmusedSchedulerOutput
from torch import nn

from tests.helpers.images import CODES, randomised, text_tokenizer, tiny_text_encoder, tiny_vqvae

LENGTH = 8  # of a question and its answer
WORDS = 8  # of `text_tokenizer`; the mask comes after them


class UnifiedScheduler(SchedulerMixin, ConfigMixin):
    """Draws every hidden token, and hides the least confident ones again."""

    order = 1

    @register_to_config
    def __init__(self, mask_token_id: int):
        self.timesteps = None

    def set_timesteps(self, num_inference_steps, temperature=(2, 0), device=None):
        self.timesteps = torch.arange(num_inference_steps - 1, -1, -1, device=device)
        self.heat = torch.linspace(temperature[0], temperature[1], num_inference_steps)

    def step(self, model_output, timestep, sample, starting_mask_ratio=1, generator=None, return_dict=True):
        shape, ids = sample.shape, sample.flatten(1)
        logits = model_output.flatten(2).transpose(1, 2) if model_output.ndim == 4 else model_output
        hidden, probs = ids == self.config.mask_token_id, logits.float().softmax(-1)
        drawn = torch.multinomial(probs.flatten(0, 1), 1, generator=generator).view_as(ids)
        tokens = drawn.where(hidden, ids)
        done = int((self.timesteps == timestep).nonzero()) + 1
        stay = int(starting_mask_ratio * math.cos(done / len(self.timesteps) * math.pi / 2) * ids.shape[1])
        if timestep > 0:
            noise = -torch.rand(ids.shape, generator=generator).log().neg().log()
            sure = probs.gather(-1, tokens[..., None])[..., 0].log() + self.heat[done - 1] * noise
            again = sure.where(hidden, torch.inf).argsort(-1)[:, : max(stay, 1)]
            tokens = tokens.scatter(1, again, self.config.mask_token_id).where(hidden, ids)
        return AmusedSchedulerOutput(tokens.view(shape), drawn.view(shape))


class PairTransformer(ModelMixin, ConfigMixin):
    """`(image logits (b, codes, h, w), text (b, length, words or hidden size))` of image tokens and hidden states."""

    @register_to_config
    def __init__(self, vocab_size: int = CODES + 3, codebook_size: int = CODES, sample_size: int = 4, words: int = 0):
        super().__init__()
        self.embed = nn.Embedding(vocab_size, 16)
        self.context, self.pooled = nn.Linear(8, 16), nn.Linear(8, 16)
        layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.to_codes, self.to_words = nn.Linear(16, codebook_size), nn.Linear(16, words) if words else nn.Identity()

    def forward(self, hidden_states, pooled_projections, encoder_hidden_states, timestep):
        image, text = self.embed(hidden_states), self.context(encoder_hidden_states)
        rows = torch.cat([text, image.flatten(1, 2)], 1) + self.pooled(pooled_projections)[:, None]
        rows = self.layers(rows + 0.1 * timestep)
        codes = self.to_codes(rows[:, text.shape[1] :]).unflatten(1, image.shape[1:3])
        return codes.permute(0, 3, 1, 2), self.to_words(rows[:, : text.shape[1]])


class ImagesPipeline(DiffusionPipeline):
    """The shape of Meissonic: images only, the sizes in pixels."""

    def __init__(self, vqvae, tokenizer, text_encoder, transformer, scheduler):
        super().__init__()
        self.register_modules(
            vqvae=vqvae, tokenizer=tokenizer, text_encoder=text_encoder, transformer=transformer, scheduler=scheduler
        )
        self.vae_scale_factor = 2
        self.image_processor = VaeImageProcessor(vae_scale_factor=2, do_normalize=False)

    def encode_text(self, texts):
        settings = {"padding": "max_length", "truncation": True, "max_length": LENGTH, "return_tensors": "pt"}
        outputs = self.text_encoder(self.tokenizer(texts, **settings).input_ids, output_hidden_states=True)
        return outputs.text_embeds, outputs.hidden_states[-2]

    def conditions(self, prompt, prompt_embeds, encoder_hidden_states, guidance_scale, number):
        if prompt_embeds is None:
            prompt = [prompt] if isinstance(prompt, str) else prompt
            prompt_embeds, encoder_hidden_states = self.encode_text(prompt)
        pooled, states = prompt_embeds.repeat(number, 1), encoder_hidden_states.repeat(number, 1, 1)
        if guidance_scale > 1:
            nothing, blank = self.encode_text([""] * len(pooled))
            pooled, states = torch.cat([nothing, pooled]), torch.cat([blank, states])
        return pooled, states

    def draw_images(self, pooled, states, guidance_scale, size, steps, generator):
        batch = len(pooled) // (2 if guidance_scale > 1 else 1)
        latents = torch.full((batch, *size), self.scheduler.config.mask_token_id)
        self.scheduler.set_timesteps(steps, (2, 0), None)
        for timestep in self.scheduler.timesteps:
            given = torch.cat([latents] * 2) if guidance_scale > 1 else latents
            logits, _ = self.transformer(given, pooled, states, timestep / steps)
            if guidance_scale > 1:
                without, with_text = logits.chunk(2)
                logits = without + guidance_scale * (with_text - without)
            latents = self.scheduler.step(
                model_output=logits, timestep=timestep, sample=latents, generator=generator
            ).prev_sample
        return latents

    def finished(self, latents, output_type):
        if output_type == "latent":
            return latents
        shape = (*latents.shape, self.vqvae.config.latent_channels)
        pixels = self.vqvae.decode(latents, force_not_quantize=True, shape=shape).sample.clip(0, 1)
        return self.image_processor.postprocess(pixels, output_type)

    @torch.no_grad()
    def __call__(
        self,
        prompt=None,
        height=8,
        width=8,
        num_inference_steps=4,
        guidance_scale=3.0,
        num_images_per_prompt=1,
        generator=None,
        prompt_embeds=None,
        encoder_hidden_states=None,
        output_type="pt",
    ):
        conditions = self.conditions(
            prompt, prompt_embeds, encoder_hidden_states, guidance_scale, num_images_per_prompt
        )
        size = (height // self.vae_scale_factor, width // self.vae_scale_factor)
        return self.finished(
            self.draw_images(*conditions, guidance_scale, size, num_inference_steps, generator), output_type
        )


class UnifiedPipeline(ImagesPipeline):
    """The shape of Muddit: an image of a prompt, or, given images, a text about each: `(images, texts)`."""

    @torch.no_grad()
    def __call__(
        self, prompt=None, image=None, guidance_scale=3.0, num_inference_steps=4, generator=None, output_type="pt"
    ):
        if image is not None:
            return self.draw_texts(prompt, image, num_inference_steps, generator)
        self.scheduler.config.mask_token_id = self.transformer.config.vocab_size - 1
        conditions = self.conditions(prompt, None, None, guidance_scale, 1)
        latents = self.draw_images(*conditions, guidance_scale, (4, 4), num_inference_steps, generator)
        return self.finished(latents, output_type), None

    def draw_texts(self, prompt, image, steps, generator):
        self.tokenizer.add_tokens("<mask>", special_tokens=False)
        mask = self.tokenizer.convert_tokens_to_ids("<mask>")
        self.scheduler.config.mask_token_id = mask
        latents, lengths = torch.full((len(image), LENGTH), mask), [0] * len(image)
        questions = [prompt] * len(image) if isinstance(prompt, str) else prompt or []
        for row, question in enumerate(questions):
            ids = self.tokenizer(question).input_ids[:-1]  # without the end
            latents[row, : len(ids)], lengths[row] = torch.tensor(ids), len(ids)
        codes = self.vqvae.quantize(self.vqvae.encode(image).latents)[2][2].view(len(image), 4, 4)
        self.scheduler.set_timesteps(steps, (2, 0), None)
        for timestep in self.scheduler.timesteps:
            outputs = self.text_encoder(latents, output_hidden_states=True)
            _, logits = self.transformer(codes, outputs.text_embeds, outputs.hidden_states[-2], timestep / steps)
            states = logits.clone()
            latents = self.scheduler.step(
                model_output=states, timestep=timestep, sample=latents, generator=generator
            ).prev_sample
        answers = [row[length:] for row, length in zip(states.argmax(-1), lengths, strict=True)]
        return codes, [self.tokenizer.decode(answer, skip_special_tokens=True) for answer in answers]


def tiny_unified(kind=ImagesPipeline):
    """`kind` is one of the two."""
    torch.manual_seed(0)
    words = WORDS + 1 if kind is UnifiedPipeline else 0
    pipe = kind(
        tiny_vqvae(lookup_from_codebook=True, vq_embed_dim=8),
        text_tokenizer(),
        tiny_text_encoder(vocab_size=WORDS + 1),
        randomised(PairTransformer(words=words)),
        UnifiedScheduler(mask_token_id=CODES + 2),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe
