"""From image tokens to pixels and back, by a VQ model of diffusers."""

from typing import Any

import torch
from torch import Tensor


def codebook_of(vqvae: Any) -> Tensor:
    """`(codes, dim)`, one row an id of an image token."""
    table: Tensor = vqvae.quantize.embedding.weight
    return table


def embeddings_of(vqvae: Any, tokens: Tensor, mask_token_id: int) -> Tensor:
    """Codebook entries `(batch, length, dim)` of tokens `(batch, length)`; of a hidden one the mean of the codebook."""
    table, hidden = codebook_of(vqvae), tokens == mask_token_id
    return torch.where(hidden[..., None], table.mean(0), table[tokens.masked_fill(hidden, 0)])


def to_pixels(vqvae: Any, embeddings: Tensor, do_normalize: bool, width: int | None = None) -> Tensor:
    """Decode a rectangle of codebook entries, or of mixtures of them; differentiable.

    Args:
        vqvae: a `VQModel`.
        embeddings: `(batch, height * width, dim)`, rows from top to bottom.
        do_normalize: whether the model's pixels lie in [-1, 1] rather than [0, 1].
        width: of the rectangle, in tokens; None: it is a square.

    Returns:
        `(batch, 3, height, width)` in [0, 1], float32; grey images three times the same.
    """
    width = round(embeddings.shape[1] ** 0.5) if width is None else width
    latents = embeddings.transpose(1, 2).unflatten(2, (-1, width)).to(vqvae.dtype)
    hidden = vqvae.post_quant_conv(latents)
    pixels = vqvae.decoder(hidden, latents if vqvae.config.norm_type == "spatial" else None).float()
    pixels = (pixels / 2 + 0.5 if do_normalize else pixels).clamp(0, 1)
    return pixels.expand(-1, 3, -1, -1)  # type: ignore[no-any-return]


@torch.no_grad()
def to_tokens(vqvae: Any, pixels: Tensor, do_normalize: bool) -> Tensor:
    """Nearest codes `(batch, side**2)` of pixels `(batch, 3, height, width)` in [0, 1]; int64."""
    if vqvae.config.in_channels == 1:
        pixels = pixels.mean(1, keepdim=True)
    pixels = 2 * pixels - 1 if do_normalize else pixels
    latents = vqvae.encode(pixels.to(vqvae.dtype)).latents.float()
    rows = latents.flatten(2).transpose(1, 2)
    return torch.cdist(rows, codebook_of(vqvae).float()).argmin(-1)
