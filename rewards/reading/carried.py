"""Relaxed texts for a model that cuts them into other tokens."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from redge_guidance.rewards.reading.alignment import Pieces, character_spans, overlap, token_texts
from redge_guidance.rewards.reading.framing import Row
from redge_guidance.rewards.reading.reading import ModelInput, Reading, end_positions
from redge_guidance.samples.tokens import RelaxedTokens
from redge_guidance.text import end_token_id


class CarriedReader:
    """Reads the decoded texts, and carries the gradient of each token back to the generated ones that wrote it.

    Args:
        model: what is shown them.
        generator: its tokenizer.
    """

    def __init__(self, model: ModelInput, generator: Any):
        self._model, self._generator = model, generator
        self._end = end_token_id(generator)
        self._texts = token_texts(generator)
        pieces = Pieces.of(generator, model.framer.tokenizer, self._texts)
        self._table = pieces.embeddings(model.table)
        self._firsts = pieces.first().to(model.device)

    def __call__(
        self, tokens: RelaxedTokens, positions: Tensor, texts: list[str], rows: list[Row], after: int | None
    ) -> tuple[Reading, Tensor]:
        """What the model is shown, and which of the generated positions have a gradient, `(batch, positions)` bool.

        Args:
            tokens: relaxed texts.
            positions: `(batch, positions)` bool, those of `tokens` that the texts are decoded from.
            texts, rows: decoded, and tokenized in their frames.
            after: the token that the frames go on with after a text; None: nothing.
        """
        written = [row[mask].tolist() for row, mask in zip(tokens.ids, positions, strict=True)]
        finished = self._model.padded(rows)
        spans = self._generated_spans(tokens, positions, written, texts)
        shares = overlap(_spread(rows, finished.mask), spans).to(self._model.device)
        self._end_with(after)
        carried = torch.einsum("bji,bid->bjd", shares.to(self._table.dtype), tokens.embed(self._table))
        embeddings = self._model.table[finished.ids] + (carried - carried.detach())
        reading = replace(
            finished,
            embeddings=embeddings * self._model.scale,
            tokens=tokens,
            source=_source(shares),
            first=self._firsts,
            exact=False,
        )
        return reading, (shares > 0).any(1)

    def _generated_spans(
        self, tokens: RelaxedTokens, positions: Tensor, written: list[list[int]], texts: list[str]
    ) -> Tensor:
        """The characters that each generated position stands for, `(batch, positions, 2)`, on the CPU."""
        of_tokens = [character_spans(self._generator, *pair, self._texts) for pair in zip(written, texts, strict=True)]
        spans = torch.zeros(*tokens.ids.shape, 2, dtype=torch.long)
        spans[positions.cpu()] = torch.cat(of_tokens)
        at_end = torch.tensor([len(text) for text in texts])[:, None, None] + torch.arange(2)
        is_end = end_positions(tokens, self._end).cpu()
        return torch.where(is_end[..., None], at_end, spans)  # as wide as the token after the text

    def _end_with(self, after: int | None) -> None:
        """The generator's end of a text is worth the token that the frame goes on with."""
        if self._end is not None and after is not None:
            self._table[self._end] = self._model.table[after]
            self._firsts[self._end] = after


def _source(shares: Tensor) -> Tensor:
    """The generated position of most of a token, if the token is the first that it wrote on; -1 elsewhere."""
    best = shares.max(-1)
    first = (shares > 0).int().argmax(1)  # of the tokens that a generated one overlaps
    is_first = first.gather(1, best.indices) == torch.arange(shares.shape[1], device=shares.device)
    return best.indices.where((best.values > 0) & is_first, -1)


def _spread(rows: list[Row], mask: Tensor) -> Tensor:
    """Spans of all rows, `(batch, length, 2)`, where `mask` is; on the CPU."""
    result = torch.zeros(*mask.shape, 2, dtype=torch.long)
    result[mask.cpu()] = torch.tensor([pair for row in rows for pair in row.spans], dtype=torch.long).view(-1, 2)
    return result
