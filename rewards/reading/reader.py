"""Relaxed texts as the input of a model, whatever tokenizer it has."""

from collections.abc import Sequence
from typing import Any

import torch

from redge_guidance.rewards.reading.alignment import same_tokens
from redge_guidance.rewards.reading.carried import CarriedReader
from redge_guidance.rewards.reading.direct import DirectReader
from redge_guidance.rewards.reading.framing import Frame, Framer
from redge_guidance.rewards.reading.reading import ModelInput, Reading
from redge_guidance.samples.tokens import RelaxedTokens


class Reader:
    """Turns texts, finished or relaxed, into the input of one model.

    A generator with the same tokenizer as the model (special tokens may differ) is read directly: its tokens' relaxed
    embeddings take the place of the text, unless the frame changes how the text is cut. For another one the value is
    exact and the gradient carried: the text is decoded, framed and tokenized as the model expects, and token j of the
    model with embedding e_j gets the gradient of `sum_i a_ji sum_v w_iv b_v`, a_ji the share of its characters that
    generated token i wrote, w_iv the relaxed sample, b_v the mean embedding of the pieces of token v. Which share of
    the generated positions has a gradient is noted as `"coverage"`, and warned about below one half.

    Too long and empty texts are dealt with as `Framer` says.

    Args:
        model: its input embeddings are read.
        tokenizer: the model's.
        padding_side: of the batch, `"left"` or `"right"`.
        max_length: in tokens, with the frame; None: the smaller of what the tokenizer and the model's config say.

    Raises:
        ValueError: as `Framer`, or an unknown `padding_side`.

    Attributes:
        scale: what the model multiplies its embeddings' rows by.
        shortcut: whether a generator with the same tokenizer is read directly; False to compare both ways.
    """

    def __init__(self, model: Any, tokenizer: Any, padding_side: str = "right", max_length: int | None = None):
        if padding_side not in ("left", "right"):
            raise ValueError(f"`padding_side` must be 'left' or 'right', got {padding_side!r}.")
        framer, embedding = Framer(model, tokenizer, max_length), model.get_input_embeddings()
        self.tokenizer, self.padding_side, self.max_length = tokenizer, padding_side, framer.max_length
        self.scale = _embedding_scale(embedding)
        self.shortcut = True
        self._input = ModelInput(framer, embedding, padding_side, self.scale)
        self._generator: Any = None  # the last one, and how it is read
        self._direct: DirectReader | None = None
        self._carried: CarriedReader | None = None

    @property
    def device(self) -> torch.device:
        return self._input.device

    def read_texts(self, texts: list[str], frames: Sequence[Frame]) -> Reading:
        """Finished texts; `frames` is one a text."""
        ids, mask, text = self._input.padded(self._input.framer.tokenize(texts, frames))
        return Reading(self._input.embedding.weight[ids] * self.scale, mask, ids, text)

    def __call__(self, tokens: RelaxedTokens, frames: Sequence[Frame], answer: bool = False) -> Reading:
        """Relaxed texts, `answer` without the prompt in front; `frames` is one a text.

        Raises:
            ValueError: tokens without their tokenizer.
        """
        if tokens.tokenizer is None:
            raise ValueError("`tokens` must carry the generator's tokenizer, got None; a host passes its pipeline's.")
        if tokens.tokenizer is not self._generator:
            same = same_tokens(tokens.tokenizer, self.tokenizer)
            self._direct = None if same is None else DirectReader(self._input, tokens.tokenizer, same)
            self._carried, self._generator = None, tokens.tokenizer
        if self.shortcut and self._direct is not None and self._direct.fits(tokens, frames, answer):
            return self._direct(tokens, frames, answer)
        if self._carried is None:
            self._carried = CarriedReader(self._input, tokens.tokenizer)
        return self._carried(tokens, frames, answer)


def _embedding_scale(embedding: Any) -> float:
    """What a model multiplies its embeddings' rows by, 1 for nearly all; Gemma 3's layer has a factor of its own."""
    weight = embedding.weight.detach()
    row = int(weight[: min(len(weight), 64)].abs().sum(-1).argmax())
    with torch.no_grad():
        seen = embedding(torch.tensor([row], device=weight.device))[0]
    scale = float((seen.float() @ weight[row].float()) / weight[row].float().square().sum())
    if not torch.allclose(seen.float(), weight[row].float() * scale, rtol=1e-2, atol=1e-6):
        raise ValueError(
            f"the input embeddings of `model` must be a look-up, up to a factor, got {type(embedding).__name__}."
        )
    return 1.0 if abs(scale - 1) < 1e-3 else scale
