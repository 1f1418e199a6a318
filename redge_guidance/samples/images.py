"""What a reward sees of images that are being denoised."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from redge_guidance.samples.tokens import RelaxedTokens


@dataclass(frozen=True, eq=False)
class ImageDecoder:
    """From image tokens to pixels: `decode(sum_v weights[v] * codebook[v])`.

    Attributes:
        codebook: `(codes, dim)`, one row an id of an image token.
        decode: from `(batch, length, dim)` to pixels `(batch, 3, height, width)` in [0, 1], with gradients.
        prompts: what the images are of, one string each; None where the pipeline has no text.
    """

    codebook: Tensor
    decode: Callable[[Tensor], Tensor]
    prompts: list[str] | None = None

    def images(self, tokens: RelaxedTokens, chunk_size: int | None = None) -> "RelaxedImages":
        """The images of relaxed tokens, `chunk_size` of them decoded at a time."""
        return RelaxedImages(tokens, self, chunk_size)


@dataclass(frozen=True, eq=False)
class RelaxedImages:
    """A batch of images whose tokens are relaxed samples; they are decoded once, when a reward asks for `pixels`.

    A callable reward is given `pixels`; one with a method `score`, as the preference models of the field have it, is
    asked for `score(pixels, prompts)`.

    Attributes:
        tokens: `(batch, length)`, image by image, rows from top to bottom.
        decoder: what makes them pixels.
        chunk_size: images that are decoded at a time, and again in the backward pass, so that the memory is that of so
            many images; None: all of them, and what the backward needs is kept.
    """

    tokens: RelaxedTokens
    decoder: ImageDecoder
    chunk_size: int | None = None

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def notes(self) -> dict[str, Any]:
        """Figures for the trace, as in `RelaxedTokens`."""
        return self.tokens.notes

    @property
    def weights(self) -> Tensor:
        return self.tokens.weights

    @property
    def prompts(self) -> list[str] | None:
        """A string an image, or None."""
        known = self.decoder.prompts
        return None if known is None else known * (len(self) // len(known))

    @cached_property
    def pixels(self) -> Tensor:
        """`(batch, 3, height, width)` in [0, 1], differentiable in the weights of the tokens."""
        decode, embeddings = self.decoder.decode, self.tokens.embed(self.decoder.codebook)
        if self.chunk_size is None:
            return decode(embeddings)
        parts = [checkpoint(decode, part, use_reentrant=False) for part in embeddings.split(self.chunk_size)]
        return torch.cat(parts)
