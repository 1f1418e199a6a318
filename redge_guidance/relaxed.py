"""What a reward sees of a text that is being denoised."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from redge_guidance.text import text_mask


@dataclass(frozen=True, eq=False)
class RelaxedTokens:
    """A batch of token sequences, some positions of which are differentiable one-hot samples.

    Attributes:
        ids: `(batch, length)` int64. Hard token ids everywhere; at the free positions those of the sample.
        free: `(batch, length)` bool. The positions being denoised; all others are fixed.
        weights: `(free positions, S)` float. The relaxed sample of the free positions in row-major order, rows on the
            simplex. One column a token of the vocabulary, or of `support`. The path of every gradient.
        support: `(free positions, S)` int64, the token ids that the columns of `weights` stand for; None: column = id.
        hard: whether the rows of `weights` are exactly one-hot, so that an embedding is a look-up.
        attention_mask: `(batch, length)` bool, what counts as text; left padding and all that follows the first
            end-of-text token do not. None: computed from `ids` and the tokenizer by `text_mask`.
        tokenizer: the generator's tokenizer.
    """

    ids: Tensor
    free: Tensor
    weights: Tensor
    support: Tensor | None = None
    hard: bool = True
    attention_mask: Tensor | None = None
    tokenizer: Any = None

    def __post_init__(self) -> None:
        num_free = int(self.free.sum())
        if self.ids.shape != self.free.shape or self.ids.ndim != 2:
            raise ValueError(
                f"`ids` and `free` must both be (batch, length), got {tuple(self.ids.shape)} and "
                f"{tuple(self.free.shape)}."
            )
        if self.weights.ndim != 2 or len(self.weights) != num_free:
            raise ValueError(
                f"`weights` must be (free positions, S) with {num_free} rows, one for every True in `free`, "
                f"got {tuple(self.weights.shape)}."
            )
        if self.support is not None and self.support.shape != self.weights.shape:
            raise ValueError(
                f"`support` must have the shape of `weights` {tuple(self.weights.shape)}, "
                f"got {tuple(self.support.shape)}."
            )
        if self.attention_mask is None:
            object.__setattr__(self, "attention_mask", text_mask(self.ids, self.tokenizer))

    def __len__(self) -> int:
        return len(self.ids)

    def embed(self, table: Tensor) -> Tensor:
        """`sum_v weights[v] * table[v]` at the free positions, `table[ids]` elsewhere.

        A hard sample is looked up, never multiplied with the table; the gradient is that of the sum all the same:
        `d loss / d weights[v] = <d loss / d embedding, table[v]>`.

        Args:
            table: `(vocabulary, dim)`, one row a token id of the generator's tokenizer. Rows for ids that the
                generator does not know are left alone; it may lack rows for ids that are never sampled.

        Returns:
            `(batch, length, dim)` of the dtype of `table`.

        Raises:
            ValueError: a token id without a row.
        """
        if self.ids.numel() and int(self.ids.max()) >= len(table):
            raise ValueError(
                f"`table` must have a row for every token id, got {len(table)} rows and the id {int(self.ids.max())}; "
                "use the input embeddings of a model with the generator's tokenizer."
            )
        fixed = table[self.ids]
        if self.hard:
            relaxed = _LookUp.apply(self.weights, table, self.ids[self.free], self.support)
        elif self.support is None:
            columns = min(len(table), self.weights.shape[1])
            relaxed = self.weights[:, :columns].to(table.dtype) @ table[:columns]
        else:
            relaxed = torch.einsum("ns,nsd->nd", self.weights.to(table.dtype), table[self.support])
        return fixed.masked_scatter(self.free[..., None], relaxed)

    def texts(self) -> list[str]:
        """The hard ids as strings, special tokens left out and nothing after the end of the text."""
        if self.tokenizer is None:
            raise ValueError("`tokenizer` is None: texts() needs the generator's tokenizer.")
        assert self.attention_mask is not None
        rows = [row[mask].tolist() for row, mask in zip(self.ids, self.attention_mask, strict=True)]
        texts: list[str] = self.tokenizer.batch_decode(rows, skip_special_tokens=True)
        return texts


class _LookUp(torch.autograd.Function):
    """Forward `table[ids]`; backward as if it had been `one_hot(ids) @ table`, for the weights and for the table."""

    @staticmethod
    def forward(ctx: Any, weights: Tensor, table: Tensor, ids: Tensor, support: Tensor | None) -> Tensor:
        ctx.save_for_backward(table, ids, support)
        ctx.weights_shape, ctx.weights_dtype = weights.shape, weights.dtype
        return table[ids]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        table, ids, support = ctx.saved_tensors
        grad_weights = grad_table = None
        if ctx.needs_input_grad[0]:
            grad_weights = grad.new_zeros(ctx.weights_shape, dtype=ctx.weights_dtype)
            if support is None:
                columns = min(len(table), grad_weights.shape[1])
                grad_weights[:, :columns] = grad @ table[:columns].T
            else:
                for rows in torch.arange(len(grad), device=grad.device).split(1024):  # (1024, S, dim) at a time
                    candidates = table[support[rows].clamp(max=len(table) - 1)]
                    grad_weights[rows] = torch.einsum("nd,nsd->ns", grad[rows], candidates).to(ctx.weights_dtype)
        if ctx.needs_input_grad[1]:
            grad_table = torch.zeros_like(table).index_add_(0, ids, grad)
        return grad_weights, grad_table, None, None
