"""The real classes of images, tiny."""

import torch
from diffusers import (
    AmusedImg2ImgPipeline,
    AmusedInpaintPipeline,
    AmusedPipeline,
    AmusedScheduler,
    UVit2DModel,
    VQModel,
)
from tokenizers.processors import TemplateProcessing
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from redge_guidance.pipelines import MaskedDiffusionScheduler, MaskedImagePipeline, MaskedImageTransformer
from tests.helpers.tiny import word_tokenizer

CODES, SIDE = 12, 4


def randomised(model, std=0.3, seed=0):
    """Weights drawn here and not by the class, whose initial ones are too alike for a test."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1 or (parameter.ndim == 1 and not name.endswith("weight")):  # a norm's stays
            parameter.data = std * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def tiny_vqvae(channels=3, **settings):
    """Images of 8 x 8 pixels, 4 x 4 tokens."""
    config = {
        "in_channels": channels,
        "out_channels": channels,
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "block_out_channels": (8, 8),
        "layers_per_block": 1,
        "latent_channels": 8,
        "norm_num_groups": 2,
        "num_vq_embeddings": CODES,
        "vq_embed_dim": 4,
    }
    return randomised(VQModel(**config | settings), std=0.15)


def tiny_transformer(**settings):
    config = {
        "sample_size": SIDE,
        "codebook_size": CODES,
        "num_classes": 3,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 24,
    }
    return randomised(MaskedImageTransformer(**config | settings))


def tiny_uvit():
    model = UVit2DModel(
        hidden_size=16,
        cond_embed_dim=8,
        encoder_hidden_size=8,
        micro_cond_encode_dim=2,
        micro_cond_embed_dim=10,
        vocab_size=CODES + 3,
        codebook_size=CODES,
        in_channels=16,
        block_out_channels=16,
        block_num_heads=2,
        num_res_blocks=1,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        sample_size=SIDE,
    )
    return randomised(model)


def tiny_text_encoder(vocab_size=8):
    config = CLIPTextConfig(
        vocab_size=vocab_size,
        hidden_size=8,
        intermediate_size=8,
        projection_dim=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=8,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=0,
    )
    return randomised(CLIPTextModelWithProjection(config))


def text_tokenizer():
    """As CLIP's: texts end with a token of their own, padding is on the right."""
    tokenizer = word_tokenizer()
    tokenizer.model_max_length, tokenizer.padding_side = 8, "right"
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="$A [EOS]", special_tokens=[("[EOS]", 1)])
    return tokenizer


def tiny_image_pipeline(takes_text=False, vqvae=None, **scheduler):
    parts = {"tokenizer": text_tokenizer(), "text_encoder": tiny_text_encoder()} if takes_text else {}
    pipe = MaskedImagePipeline(
        tiny_uvit() if takes_text else tiny_transformer(),
        tiny_vqvae() if vqvae is None else vqvae,
        MaskedDiffusionScheduler(**scheduler),
        num_inference_steps=4,
        **parts,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def tiny_amused(kind=AmusedPipeline):
    """diffusers' aMUSEd pipelines around the real classes; `kind` is one of the three."""
    assert kind in (AmusedPipeline, AmusedImg2ImgPipeline, AmusedInpaintPipeline)
    vqvae = tiny_vqvae(lookup_from_codebook=True, vq_embed_dim=8)
    pipe = kind(vqvae, text_tokenizer(), tiny_text_encoder(), tiny_uvit(), AmusedScheduler(mask_token_id=CODES + 2))
    pipe.set_progress_bar_config(disable=True)
    return pipe
