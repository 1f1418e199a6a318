"""Relaxed texts whose tokens are those of the model."""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from redge_guidance.rewards.reading.framing import Around, Frame
from redge_guidance.rewards.reading.reading import ModelInput, Reading, end_positions
from redge_guidance.samples.tokens import RelaxedTokens
from redge_guidance.text import end_token_id


class Layout(NamedTuple):
    """Where each token of the input comes from, all `(batch, length)`."""

    mask: Tensor  # no padding
    in_text: Tensor
    after: Tensor  # the first of the frame after the text
    in_end: Tensor  # the first of the frame after the text, where that is the generator's own end of the text
    generated: Tensor  # the position in the generator's text, of those two
    of_frame: Tensor  # the number in the frame, of all others; -1 for what stands in for a row without any token


class Laid(NamedTuple):
    """Framed texts in the generator's own tokens, `ids` `(batch, length)`, and what they are taken from."""

    layout: Layout
    extra: Tensor
    places: Tensor
    ids: Tensor

    def rows(self) -> list[tuple[list[int], int]]:
        """Of each text its ids, in their frame, and how many of them are its own."""
        counts = self.layout.in_text.sum(-1).tolist()
        rows = zip(self.ids.tolist(), self.layout.mask.tolist(), counts, strict=True)
        return [(list(itertools.compress(ids, mask)), n) for ids, mask, n in rows]


class DirectReader:
    """Puts the relaxed embeddings of the generator's tokens in the place of the text.

    Args:
        model: what is shown them.
        generator: its tokenizer.
        same: `(vocabulary of the generator,)` int64, the model's ids of its tokens, as `same_tokens` has them.
    """

    def __init__(self, model: ModelInput, generator: Any, same: Tensor):
        self._model, self._same = model, same.to(model.device)
        self._end = end_token_id(generator)
        self._table = self._embeddings()

    def lay(self, tokens: RelaxedTokens, positions: Tensor, frames: Sequence[Frame]) -> "Laid":
        """The tokens of the framed texts: those of the frames, and the generator's own.

        Args:
            tokens: relaxed texts, with frames, one each.
            positions: `(batch, positions)` bool, those of `tokens` that are shown.
        """
        device, framer = self._model.device, self._model.framer
        kinds = list(dict.fromkeys(frames))
        kind = torch.tensor([kinds.index(frame) for frame in frames], device=device)
        around = [framer.around(frame) for frame in kinds]
        lengths = torch.tensor([[len(before), len(after)] for before, after in around], device=device)[kind]
        text, ends = self._text(positions, lengths.sum(-1)), self._ends(tokens, around, kind)
        layout = self._layout(text, ends, lengths)

        # what tokens are taken from: the frames one after the other, what stands in for nothing, the generator's rows
        of_frames = [i for before, after in around for i in (*before, *after)]
        extra = torch.tensor([*of_frames, framer.stand_in(), self._model.padding_id], device=device)
        begins = torch.tensor([0, *(len(b) + len(a) for b, a in around)], device=device).cumsum(0)[:-1][kind]
        of_frame = (begins[:, None] + layout.of_frame).where(layout.of_frame >= 0, len(of_frames))
        row = torch.arange(len(tokens), device=device)[:, None] * tokens.ids.shape[1]
        is_generated = layout.in_text | layout.in_end
        index = torch.where(is_generated, len(extra) + row + layout.generated, of_frame.clamp(0, len(of_frames)))
        index = index.masked_fill(~layout.mask, len(extra) - 1)
        ids = torch.cat([extra, self._same[tokens.ids].clamp(min=0).flatten()])[index]
        return Laid(layout, extra, index, ids)

    def __call__(self, tokens: RelaxedTokens, laid: "Laid", rows: Tensor) -> Reading:
        """What the model is shown of some of the texts.

        Args:
            tokens, laid: of all of them.
            rows: `(n,)` int64, which.
        """
        relaxed = tokens.embed(self._table)  # of all: draws of one text share what is looked up
        table = torch.cat([self._model.table[laid.extra], relaxed.flatten(0, 1)])
        columns = slice(None)
        if len(rows) < len(tokens):
            tokens, width = tokens.rows(rows), int(laid.layout.mask[rows].sum(-1).max())
            columns = slice(-width, None) if self._model.padding_side == "left" else slice(width)
        layout = Layout(*(field[rows][:, columns] for field in laid.layout))
        embeddings = torch.nn.functional.embedding(laid.places[rows][:, columns], table) * self._model.scale
        ids = laid.ids[rows][:, columns]
        source = torch.where(layout.in_text | layout.in_end, layout.generated, -1)
        return Reading(ids, layout.mask, layout.in_text, layout.after, embeddings, tokens, source, self._same)

    def _layout(self, text: Tensor, ends: Tensor, lengths: Tensor) -> Layout:
        """Every row: tokens of the frame, of the text, of the frame; padding beside them.

        Args:
            text: `(batch, positions)` bool, what is shown of the generator's rows.
            ends: `(batch,)` int64, the position of each text's own end token, or -1.
            lengths: `(batch, 2)` int64, tokens of the frame before and after.
        """
        before, after = lengths[:, :1], lengths[:, 1:]
        count = text.sum(-1, keepdim=True)
        total = (before + count + after).clamp(min=1)
        slot = self._model.slots(total[:, 0])
        order = text.int().argsort(dim=-1, descending=True, stable=True)
        generated = order.gather(1, (slot - before).clamp(0, order.shape[1] - 1))
        in_text = (slot >= before) & (slot < before + count)
        in_end = (slot == before + count) & (ends >= 0)[:, None]
        generated = torch.where(in_end, ends.clamp(min=0)[:, None], generated)
        of_frame = torch.where(slot < before, slot, slot - count).where(before + count + after > 0, -1)
        mask = (slot >= 0) & (slot < total)
        return Layout(mask, in_text, (slot == before + count) & mask, in_end, generated, of_frame)

    def _text(self, text: Tensor, frame: Tensor) -> Tensor:
        """Positions of the text, cut to what the model can take beside a frame of that many tokens."""
        framer = self._model.framer
        if framer.max_length is None:
            return text
        room = (framer.max_length - frame).clamp(min=0)[:, None]
        rank = text.cumsum(-1)
        count = rank[:, -1:]
        if (count > room).any():
            framer.warn_of_length()
        return text & (rank > count - room if framer.tokenizer.truncation_side == "left" else rank <= room)

    def _ends(self, tokens: RelaxedTokens, around: Sequence[Around], kind: Tensor) -> Tensor:
        """Where each text's own end token is, if the frame goes on with just that; -1 elsewhere; `(batch,)`."""
        if self._end is None:
            return torch.full_like(kind, -1)
        is_end = end_positions(tokens, self._end)
        after = torch.tensor([after[0] if after else -2 for _, after in around], device=kind.device)[kind]
        return is_end.int().argmax(-1).where(is_end.any(-1) & (after == self._same[self._end]), -1)

    def _embeddings(self) -> Tensor:
        """Row v: the embedding of the generator's token v; the model's own table where that has them in its order."""
        weight: Tensor = self._model.table
        known = self._same[: len(weight)]
        alike = (known == torch.arange(len(known), device=known.device)) | (known < 0)
        fits = bool(alike.all()) and len(self._same) <= len(weight)
        return weight if fits else weight[self._same.clamp(min=0)]
