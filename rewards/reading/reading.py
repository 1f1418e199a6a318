"""What a model is shown of a batch of texts."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from redge_guidance.rewards.reading.framing import Framer, Row
from redge_guidance.rewards.reading.table import Table
from redge_guidance.samples.tokens import RelaxedTokens


@dataclass(frozen=True, eq=False)
class Reading:
    """A batch of texts in their frames, as a model's input.

    Attributes:
        ids: `(batch, length)` int64, the hard tokens.
        mask: `(batch, length)` bool, False on padding.
        text: `(batch, length)` bool, the tokens that are the text's and not the frame's.
        end: `(batch, length)` bool, the token of the frame after the text, one a row at most.
        embeddings: `(batch, length, dim)`, what takes the place of the embeddings of `ids`; gradients go through them.
            None: nothing does, the texts are finished.
        tokens: the relaxed texts; None for finished ones, which need nothing of what follows.
        source: `(batch, length)` int64, the generated position that a token is, or -1.
        first: `(vocabulary of the generator,)` int64, the model's (first) token for one of the generator's, or -1.
        exact: whether the model's tokens are the generator's, one by one.
    """

    ids: Tensor
    mask: Tensor
    text: Tensor
    end: Tensor
    embeddings: Tensor | None = None
    tokens: RelaxedTokens | None = None
    source: Tensor | None = None
    first: Tensor | None = None
    exact: bool = True

    def hiding(self, hidden: Tensor, token_id: int, embedding: Tensor) -> "Reading":
        """The same with another token, of that `(dim,)` embedding, where `hidden` `(batch, length)` is."""
        shown = None if self.embeddings is None else torch.where(hidden[..., None], embedding, self.embeddings)
        return replace(self, ids=self.ids.masked_fill(hidden, token_id), embeddings=shown)

    def pick(self, log_probs: Tensor) -> Tensor:
        """`log_probs[..., ids]`, `(batch, length, vocabulary)` to `(batch, length)`, with the gradient of the tokens.

        A relaxed token of the model's own tokenizer gives the mean of its candidates' log-probabilities; one of
        another tokenizer the value of the hard token, with the gradient of the mean over the candidates' first pieces.
        """
        picked = log_probs.gather(-1, self.ids[..., None])[..., 0]
        if self.tokens is None:
            return picked
        assert self.source is not None
        assert self.first is not None
        tokens, source = self.tokens, self.source.clamp(min=0)
        relaxed = (self.source >= 0) & tokens.free.gather(1, source)
        number = tokens.free.flatten().cumsum(0).view(tokens.free.shape) - 1
        rows = number.gather(1, source)[relaxed]
        columns = torch.arange(tokens.weights.shape[1], device=self.ids.device)
        columns = columns.expand(len(rows), -1) if tokens.support is None else tokens.support[rows]
        candidates = self.first[columns.clamp(max=len(self.first) - 1)].masked_fill(columns >= len(self.first), -1)
        values = log_probs[relaxed].gather(-1, candidates.clamp(min=0))
        mean = (tokens.weights[rows].to(values) * values.masked_fill(candidates < 0, 0)).sum(-1)
        if not self.exact:
            mean = picked[relaxed] + (mean - mean.detach())
        return picked.masked_scatter(relaxed, mean)


@dataclass(eq=False)
class ModelInput:
    """What there is to know of how a model reads.

    Attributes:
        framer: tokenizes for it.
        lookup: the table of its input embeddings, which it multiplies by `scale`.
        padding_side: of the batch, `"left"` or `"right"`.
        scale: see `embedding`.
        padding_id: the token that fills up rows.
    """

    framer: Framer
    lookup: Table
    padding_side: str
    scale: float
    padding_id: int

    @property
    def device(self) -> torch.device:
        return self.table.device

    @property
    def embedding(self) -> Any:
        """The layer that looks ids up."""
        return self.lookup.embedding

    @property
    def table(self) -> Tensor:
        """`(vocabulary, dim)`, without `scale`."""
        return self.lookup.weight

    def slots(self, lengths: Tensor) -> Tensor:
        """Places of rows of `lengths` `(batch,)`, numbered from 0; below 0 and from `lengths` on padding."""
        slot = torch.arange(int(lengths.max()), device=lengths.device).expand(len(lengths), -1)
        return slot - (slot.shape[1] - lengths[:, None]) if self.padding_side == "left" else slot

    def padded(self, rows: list[Row]) -> Reading:
        """Finished texts."""
        lengths = torch.tensor([len(row.ids) for row in rows])
        slot = self.slots(lengths)
        mask = (slot >= 0) & (slot < lengths[:, None])
        ids = torch.full_like(slot, self.padding_id)
        ids = ids.masked_scatter(mask, torch.tensor([i for row in rows for i in row.ids]))
        start, stop = torch.tensor([[row.start, row.stop] for row in rows])[..., None].unbind(1)
        text, end = (slot >= start) & (slot < stop), (slot == stop) & mask
        ids, mask, text, end = (one.to(self.device) for one in (ids, mask, text, end))
        return Reading(ids, mask, text, end)


def end_positions(tokens: RelaxedTokens, end: int | None) -> Tensor:
    """The end-of-text token of each text, `(batch, length)` bool, one a row at most."""
    assert tokens.attention_mask is not None
    return tokens.attention_mask & (tokens.ids == (-1 if end is None else end))
