"""Relaxed texts for a model that cuts them into other tokens."""

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from redge_guidance.rewards.reading.alignment import Pieces, character_spans, overlap, token_texts
from redge_guidance.rewards.reading.framing import Frame, Row
from redge_guidance.rewards.reading.reading import ModelInput, Reading, end_positions
from redge_guidance.samples.tokens import RelaxedTokens
from redge_guidance.text import end_token_id

LOW_COVERAGE = 0.5


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
        self._table = pieces.embeddings(model.embedding.weight)
        self._firsts = pieces.first().to(model.device)
        self._warned = False

    def __call__(self, tokens: RelaxedTokens, frames: Sequence[Frame], answer: bool) -> Reading:
        """As `Reader.__call__`."""
        positions = tokens.text_positions(answer)
        written = [row[mask].tolist() for row, mask in zip(tokens.ids, positions, strict=True)]
        texts = self._generator.batch_decode(written, skip_special_tokens=True)
        rows = self._model.framer.tokenize(texts, frames)
        ids, mask, text = self._model.padded(rows)
        spans = self._generated_spans(tokens, positions, written, texts)
        shares = overlap(_spread(rows, mask), spans).to(self._model.device)
        table = self._table_with_end(frames[0])
        carried = torch.einsum("bji,bid->bjd", shares.to(table.dtype), tokens.embed(table))
        embeddings = self._model.embedding.weight[ids] + (carried - carried.detach())
        self._note_coverage(tokens, (shares > 0).any(1), positions)
        return Reading(
            embeddings * self._model.scale, mask, ids, text, tokens, _source(shares), self._firsts, exact=False
        )

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

    def _table_with_end(self, frame: Frame) -> Tensor:
        """Row v: the mean embedding of the pieces of token v; the end of the text is what the frame goes on with."""
        after = self._model.framer.around(frame).after
        if self._end is not None and after:
            self._table[self._end] = self._model.embedding.weight[after[0]]
        return self._table

    def _note_coverage(self, tokens: RelaxedTokens, covered: Tensor, positions: Tensor) -> None:
        generated = positions & tokens.free
        coverage = (covered & generated).sum() / generated.sum().clamp(min=1)
        tokens.notes["coverage"] = coverage.where(generated.any(), torch.ones_like(coverage))
        if not self._warned and float(tokens.notes["coverage"]) < LOW_COVERAGE:
            self._warned = True
            warnings.warn(
                f"only {float(tokens.notes['coverage']):.0%} of the generated tokens get a gradient: the rest has no "
                "characters in the text that the reward reads, or was cut off. Is the tokenizer the generator's?",
                stacklevel=2,
            )


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
