"""What a text pipeline returns."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from diffusers.utils import BaseOutput
from torch import Tensor

from redge_guidance.pipelines.drawing import Canvas
from redge_guidance.text import is_in, special_token_ids, text_mask


@dataclass
class TextPipelineOutput(BaseOutput):
    """Output of a text pipeline.

    Attributes:
        sequences: `(batch, length)` int64, left padding, prompt, new tokens, and what follows the end of the text.
        texts: `batch` strings, prompt and continuation up to the end of the text, special tokens left out. Of a chat
            that is the conversation as the template writes it.
        answers: the same without the prompt in front; of a prompt with gaps the whole text.
    """

    sequences: Tensor
    texts: list[str]
    answers: list[str]


def texts_of(
    sequences: Tensor, canvas: Canvas, tokenizer: Any, ends: Sequence[int], answer_only: bool = False
) -> list[str]:
    """The texts that lie on a canvas, each up to the first of `ends` that was drawn, special tokens left out.

    `answer_only`: without the prompts in front.
    """
    mask = text_mask(sequences, tokenizer, canvas.attention_mask, canvas.given, ends)
    mask &= ~is_in(sequences, special_token_ids(tokenizer))  # which a slow tokenizer may write
    if answer_only:
        mask &= ~canvas.lead
    rows = [row[keep].tolist() for row, keep in zip(sequences, mask, strict=True)]
    texts: list[str] = tokenizer.batch_decode(rows, skip_special_tokens=True) if rows else []
    return texts
