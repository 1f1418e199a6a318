"""What a reward sees of images that are being denoised."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from redge_guidance.chats import Prompt
from redge_guidance.checks import as_whole
from redge_guidance.evaluation import check_modality, of_pixels
from redge_guidance.reward import Reward
from redge_guidance.samples.tokens import RelaxedTokens


@dataclass(frozen=True, eq=False)
class ImageDecoder:
    """From image tokens to pixels: `decode(sum_v weights[v] * codebook[v])`.

    Attributes:
        codebook: `(codes, dim)`, one row an id of an image token.
        decode: from `(batch, length, dim)` to pixels `(batch, 3, height, width)` in [0, 1], with gradients.
        chunk_size: images that are decoded at a time, and once more in the backward pass (gradient checkpointing), so
            that the memory is that of so many images; None: all at once, and what the backward needs is kept.
    """

    codebook: Tensor
    decode: Callable[[Tensor], Tensor]
    chunk_size: int | None = None

    def __post_init__(self) -> None:
        size = as_whole(self.chunk_size)
        if self.chunk_size is not None and (size is None or size < 1):
            raise ValueError(f"`decode_chunk_size` must be an integer >= 1 or None, got {self.chunk_size!r}.")
        object.__setattr__(self, "chunk_size", size)

    def pixels(self, tokens: RelaxedTokens) -> Tensor:
        """`(batch, 3, height, width)` in [0, 1], differentiable in the weights of the tokens."""
        embeddings = tokens.embed(self.codebook)
        if self.chunk_size is None:
            return self.decode(embeddings)
        parts = [checkpoint(self.decode, part, use_reentrant=False) for part in embeddings.split(self.chunk_size)]
        return torch.cat(parts)


@dataclass(frozen=True, eq=False)
class RelaxedImages:
    """A batch of images whose tokens are relaxed samples; they are decoded once, when a reward asks for `pixels`.

    Attributes:
        tokens: `(batch, length)`, image by image, rows from top to bottom.
        decoder: what makes them pixels.
    """

    tokens: RelaxedTokens
    decoder: ImageDecoder
    modality: ClassVar[str] = "image"

    def __len__(self) -> int:
        return len(self.tokens)

    def evaluate(self, reward: Any) -> Tensor:
        """The reward of these images, `(batch,)`.

        A `Reward` is given the sample; what has a method `score`, as the preference models of the field do, is asked
        for `score(pixels, prompts)`; any other callable is given the pixels.

        Raises:
            ValueError: a reward of texts.
        """
        check_modality(reward, self.modality)
        return reward(self) if isinstance(reward, Reward) else of_pixels(reward, self.pixels, self.prompts)

    def finished(self, answer_only: bool | None = None) -> Tensor:
        """The pixels without gradient; `answer_only` is about texts."""
        return self.pixels.detach()

    @property
    def notes(self) -> dict[str, Any]:
        """Figures for the trace, as in `RelaxedTokens`."""
        return self.tokens.notes

    @property
    def weights(self) -> Tensor:
        return self.tokens.weights

    @property
    def prompts(self) -> Sequence[Prompt] | None:
        """What each image is to show, or None."""
        return self.tokens.prompts

    @cached_property
    def pixels(self) -> Tensor:
        """`(batch, 3, height, width)` in [0, 1], differentiable in the weights of the tokens."""
        return self.decoder.pixels(self.tokens)
