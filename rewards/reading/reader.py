"""Relaxed texts as the input of a model, whatever tokenizer it has."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from redge_guidance.rewards.reading.alignment import Pieces, character_spans, overlap, same_tokens, token_texts
from redge_guidance.rewards.reading.framing import Frame, Framer, Row
from redge_guidance.samples.tokens import RelaxedTokens
from redge_guidance.text import end_token_id

LOW_COVERAGE = 0.5


@dataclass(frozen=True, eq=False)
class Reading:
    """A batch of texts in their frames, as a model's input.

    Attributes:
        embeddings: `(batch, length, dim)`, of the hard tokens, or of relaxed ones; gradients go through them.
        mask: `(batch, length)` bool, False on padding.
        ids: `(batch, length)` int64, the hard tokens.
        text: `(batch, length)` bool, the tokens that are the text's and not the frame's.
    """

    embeddings: Tensor
    mask: Tensor
    ids: Tensor
    text: Tensor
    _tokens: RelaxedTokens | None = None
    _source: Tensor | None = None  # (batch, length), the generated position that a token is, or -1
    _first: Tensor | None = None  # (vocabulary of the generator,), the model's token for one of the generator's, or -1
    _exact: bool = True

    def showing(self, embeddings: Tensor) -> "Reading":
        """The same with other embeddings, such as with some of them masked."""
        return replace(self, embeddings=embeddings)

    def pick(self, log_probs: Tensor) -> Tensor:
        """`log_probs[..., ids]`, `(batch, length, vocabulary)` to `(batch, length)`, with the gradient of the tokens.

        A relaxed token of the model's own tokenizer gives the mean of its candidates' log-probabilities; one of
        another tokenizer the value of the hard token, with the gradient of the mean over the candidates' first pieces.
        """
        picked = log_probs.gather(-1, self.ids[..., None])[..., 0]
        if self._tokens is None:
            return picked
        assert self._source is not None
        assert self._first is not None
        tokens, source = self._tokens, self._source.clamp(min=0)
        relaxed = (self._source >= 0) & tokens.free.gather(1, source)
        number = tokens.free.flatten().cumsum(0).view(tokens.free.shape) - 1
        rows = number.gather(1, source)[relaxed]
        columns = torch.arange(tokens.weights.shape[1], device=self.ids.device)
        columns = columns.expand(len(rows), -1) if tokens.support is None else tokens.support[rows]
        candidates = self._first[columns.clamp(max=len(self._first) - 1)].masked_fill(columns >= len(self._first), -1)
        values = log_probs[relaxed].gather(-1, candidates.clamp(min=0))
        mean = (tokens.weights[rows].to(values) * values.masked_fill(candidates < 0, 0)).sum(-1)
        if not self._exact:
            mean = picked[relaxed] + (mean - mean.detach())
        return picked.masked_scatter(relaxed, mean)


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
    """

    def __init__(self, model: Any, tokenizer: Any, padding_side: str = "right", max_length: int | None = None):
        if padding_side not in ("left", "right"):
            raise ValueError(f"`padding_side` must be 'left' or 'right', got {padding_side!r}.")
        self._framer = Framer(model, tokenizer, max_length)
        self.tokenizer, self.padding_side, self.max_length = tokenizer, padding_side, self._framer.max_length
        self._embedding = model.get_input_embeddings()
        self.scale = _embedding_scale(self._embedding)
        self._generator: Any = None  # the last one, and what was found out about it
        self._same: Tensor | None = None
        self._own_table: Tensor | None = None  # rows for the generator's tokens, where both tokenizers are the same
        self._table: Tensor | None = None  # and where they are not
        self._pieces: Pieces | None = None
        self._warned = False

    @property
    def device(self) -> torch.device:
        device: torch.device = self._embedding.weight.device
        return device

    def read_texts(self, texts: list[str], frames: Sequence[Frame]) -> Reading:
        """Finished texts; `frames` is one a text."""
        rows = self._framer.tokenize(texts, frames)
        ids, mask, text = self._padded(rows)
        return Reading(self._embedding.weight[ids] * self.scale, mask, ids, text)

    def __call__(self, tokens: RelaxedTokens, frames: Sequence[Frame], answer: bool = False) -> Reading:
        """Relaxed texts, `answer` without the prompt in front; `frames` is one a text.

        Raises:
            ValueError: tokens without their tokenizer.
        """
        if tokens.tokenizer is None:
            raise ValueError("`tokens` must carry the generator's tokenizer, got None; a host passes its pipeline's.")
        if tokens.tokenizer is not self._generator:
            same = same_tokens(tokens.tokenizer, self.tokenizer)
            self._same = None if same is None else same.to(self.device)
            self._end = end_token_id(tokens.tokenizer)
            self._generator, self._own_table, self._pieces = tokens.tokenizer, None, None
        read = self._direct if self._fits(tokens, frames, answer) else self._carried
        return read(tokens, frames, answer)

    def _fits(self, tokens: RelaxedTokens, frames: Sequence[Frame], answer: bool) -> bool:
        """Whether the generator's tokens are those that the model's tokenizer would make of the framed text."""
        if self._same is None or any(self._framer.around(frame).merges for frame in set(frames)):
            return False
        if not any(frame.strips for frame in frames):
            return True
        return all(text == text.strip() for text in (tokens.answers() if answer else tokens.texts()))

    def _direct(self, tokens: RelaxedTokens, frames: Sequence[Frame], answer: bool) -> Reading:
        assert self._same is not None
        same = self._same
        kinds = list(dict.fromkeys(frames))
        kind = torch.tensor([kinds.index(frame) for frame in frames], device=self.device)
        around = [self._framer.around(frame)[:2] for frame in kinds]
        lengths = torch.tensor([[len(before), len(after)] for before, after in around], device=self.device)[kind]
        text, ends = self._text(tokens, answer, lengths.sum(-1)), self._ends(tokens, around, kind)

        # every row: tokens of the frame (first in `source`), of the text, of the frame, padding
        of_frames = [i for before, after in around for i in (*before, *after)]
        extra = torch.tensor([*of_frames, self._framer.stand_in()], device=self.device)
        begins = torch.tensor([0, *(len(b) + len(a) for b, a in around)], device=self.device).cumsum(0)[:-1][kind]
        before, after = lengths[:, :1], lengths[:, 1:]
        count = text.sum(-1, keepdim=True)
        total = (before + count + after).clamp(min=1)
        slot = torch.arange(int(total.max()), device=self.device).expand(len(tokens), -1)
        if self.padding_side == "left":
            slot = slot - (slot.shape[1] - total)
        order = text.int().argsort(dim=-1, descending=True, stable=True)
        generated = order.gather(1, (slot - before).clamp(0, order.shape[1] - 1))
        in_text = (slot >= before) & (slot < before + count)
        in_end = (slot == before + count) & (ends >= 0)[:, None]
        generated = torch.where(in_end, ends.clamp(min=0)[:, None], generated)
        mask = (slot >= 0) & (slot < total)
        of_frame = begins[:, None] + torch.where(slot < before, slot, slot - count)
        row = torch.arange(len(tokens), device=self.device)[:, None] * tokens.ids.shape[1]
        of_frame = torch.where(before + count + after > 0, of_frame, len(extra) - 1).clamp(0, len(extra) - 1)
        index = torch.where(in_text | in_end, len(extra) + row + generated, of_frame)
        index = index.masked_fill(~mask, 0)

        weight = self._embedding.weight
        relaxed = tokens.embed(self._direct_table())
        embeddings = torch.nn.functional.embedding(index, torch.cat([weight[extra], relaxed.flatten(0, 1)]))
        ids = torch.cat([extra, same[tokens.ids].clamp(min=0).flatten()])[index]
        source = torch.where(in_text, generated, -1)
        return Reading(embeddings * self.scale, mask, ids, in_text, tokens, source, same)

    def _carried(self, tokens: RelaxedTokens, frames: Sequence[Frame], answer: bool) -> Reading:
        if self._pieces is None:
            self._texts = token_texts(tokens.tokenizer)
            self._pieces = Pieces.of(tokens.tokenizer, self.tokenizer, self._texts)
            self._table = self._pieces.embeddings(self._embedding.weight)
            self._firsts = self._pieces.first().to(self.device)
        positions = tokens.text_positions(answer)
        written = [row[mask].tolist() for row, mask in zip(tokens.ids, positions, strict=True)]
        texts = tokens.tokenizer.batch_decode(written, skip_special_tokens=True)
        rows = self._framer.tokenize(texts, frames)
        ids, mask, text = self._padded(rows)
        spans = _spread([row.spans for row in rows], mask)
        of_tokens = [character_spans(tokens.tokenizer, *pair, self._texts) for pair in zip(written, texts, strict=True)]
        generated = torch.zeros(*tokens.ids.shape, 2, dtype=torch.long)
        generated[positions.cpu()] = torch.cat(of_tokens)
        is_end = self._is_end(tokens)
        at_end = torch.tensor([len(text) for text in texts])[:, None, None] + torch.arange(2)
        generated = torch.where(is_end.cpu()[..., None], at_end, generated)  # as wide as the token after the text
        shares = overlap(spans, generated).to(self.device)
        table = self._table_with_end(frames[0])
        carried = torch.einsum("bji,bid->bjd", shares.to(table.dtype), tokens.embed(table))
        embeddings = self._embedding.weight[ids] + (carried - carried.detach())
        self._note_coverage(tokens, (shares > 0).any(1), positions)
        best = shares.max(-1)
        first = (shares > 0).int().argmax(1)  # of the tokens that a generated one overlaps
        is_first = first.gather(1, best.indices) == torch.arange(ids.shape[1], device=self.device)
        source = best.indices.where((best.values > 0) & is_first, -1)
        return Reading(embeddings * self.scale, mask, ids, text, tokens, source, self._firsts, _exact=False)

    def _note_coverage(self, tokens: RelaxedTokens, reached: Tensor, positions: Tensor) -> None:
        generated = positions & tokens.free
        coverage = (reached & generated).sum() / generated.sum().clamp(min=1)
        tokens.notes["coverage"] = coverage.where(generated.any(), torch.ones_like(coverage))
        if not self._warned and float(tokens.notes["coverage"]) < LOW_COVERAGE:
            self._warned = True
            warnings.warn(
                f"only {float(tokens.notes['coverage']):.0%} of the generated tokens get a gradient: the rest has no "
                "characters in the text that the reward reads, or was cut off. Is the tokenizer the generator's?",
                stacklevel=2,
            )

    def _text(self, tokens: RelaxedTokens, answer: bool, frame: Tensor) -> Tensor:
        """Positions of the text, cut to what the model can take beside a frame of that many tokens."""
        text = tokens.text_positions(answer)
        if self.max_length is None:
            return text
        room = (self.max_length - frame).clamp(min=0)[:, None]
        rank = text.cumsum(-1)
        count = rank[:, -1:]
        if (count > room).any():
            self._framer.warn_of_length()
        return text & (rank > count - room if self.tokenizer.truncation_side == "left" else rank <= room)

    def _ends(self, tokens: RelaxedTokens, around: list[tuple[list[int], list[int]]], kind: Tensor) -> Tensor:
        """Where each text's own end token is, if the frame goes on with just that; -1 elsewhere; `(batch,)`."""
        assert self._same is not None
        is_end = self._is_end(tokens)
        if self._end is None:
            return torch.full_like(kind, -1)
        after = torch.tensor([after[0] if after else -2 for _, after in around], device=self.device)[kind]
        return is_end.int().argmax(-1).where(is_end.any(-1) & (after == self._same[self._end]), -1)

    def _is_end(self, tokens: RelaxedTokens) -> Tensor:
        """The end-of-text token of each text, `(batch, length)` bool, one a row at most."""
        assert tokens.attention_mask is not None
        return tokens.attention_mask & (tokens.ids == (-1 if self._end is None else self._end))

    def _direct_table(self) -> Tensor:
        """Row v: the embedding of the generator's token v."""
        assert self._same is not None
        weight: Tensor = self._embedding.weight
        if self._own_table is None:
            known = self._same[: len(weight)]
            alike = (known == torch.arange(len(known), device=known.device)) | (known < 0)
            fits = bool(alike.all()) and len(self._same) <= len(weight)
            self._own_table = weight if fits else weight[self._same.clamp(min=0)]
        return self._own_table

    def _table_with_end(self, frame: Frame) -> Tensor:
        """Row v: the mean embedding of the pieces of token v; the end of the text is what the frame goes on with."""
        assert self._table is not None
        after = self._framer.around(frame).after
        if self._end is not None and after:
            self._table[self._end] = self._embedding.weight[after[0]]
        return self._table

    def _padded(self, rows: list[Row]) -> tuple[Tensor, Tensor, Tensor]:
        """Ids, mask and the text's part of it, each `(batch, length)`."""
        lengths = torch.tensor([len(row.ids) for row in rows])
        slot = torch.arange(int(lengths.max())).expand(len(rows), -1)
        if self.padding_side == "left":
            slot = slot - (slot.shape[1] - lengths[:, None])
        mask = (slot >= 0) & (slot < lengths[:, None])
        ids = torch.zeros_like(slot).masked_scatter(mask, torch.tensor([i for row in rows for i in row.ids]))
        start = torch.tensor([row.start for row in rows])[:, None]
        text = (slot >= start) & (slot < torch.tensor([row.stop for row in rows])[:, None])
        return ids.to(self.device), mask.to(self.device), text.to(self.device)


def _spread(spans: list[list[tuple[int, int]]], mask: Tensor) -> Tensor:
    """Spans of all rows, `(batch, length, 2)`, where `mask` is."""
    result = torch.zeros(*mask.shape, 2, dtype=torch.long)
    result[mask.cpu()] = torch.tensor([pair for row in spans for pair in row], dtype=torch.long).view(-1, 2)
    return result


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
