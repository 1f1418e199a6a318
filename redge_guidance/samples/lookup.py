"""Embeddings of relaxed tokens without their one-hot vectors."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from redge_guidance.precision import Autocast


def is_dense(support: Tensor, table: Tensor) -> bool:
    """Whether a product with the whole table is cheaper than gathering the rows of every position's support."""
    return 16 * support.shape[1] > len(table)


def mix(weights: Tensor, table: Tensor, support: Tensor) -> Tensor:
    """`sum_s weights[r, s] table[support[r, s]]`, weights `(rows, S)` and table `(known, dim)` to `(rows, dim)`.

    `support` `(n, S)` is that of one sample and serves all `rows / n` of them; an id beyond the table is its last.
    """
    known = support.clamp(max=len(table) - 1).repeat(len(weights) // max(len(support), 1), 1)
    return torch.nn.functional.embedding_bag(known, table, mode="sum", per_sample_weights=weights.to(table.dtype))


class LookUp(torch.autograd.Function):
    """Forward `table[ids]`; backward as if it had been `one_hot(ids) @ table`, for the weights and for the table.

    `support` is that of one sample and serves all of them.
    """

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
            with Autocast.off(grad.device):
                _add_products(grad_weights, grad, table, support)
        if ctx.needs_input_grad[1]:
            grad_table = torch.zeros_like(table).index_add_(0, ids, grad)
        return grad_weights, grad_table, None, None


def _add_products(result: Tensor, grad: Tensor, table: Tensor, support: Tensor | None) -> None:
    """`<grad[n], table[v]>` for every column v of row n, into `result` `(rows, S)`."""
    if support is None:
        columns = min(len(table), result.shape[1])
        result[:, :columns] = grad @ table[:columns].T
    elif is_dense(support, table):
        known = support.clamp(max=len(table) - 1).repeat(len(grad) // len(support), 1)
        result[:] = (grad @ table.T).gather(1, known)
    else:
        by_draw, by_column = grad.view(-1, len(support), grad.shape[-1]), result.view(-1, *support.shape)
        for rows in torch.arange(len(support), device=grad.device).split(256):  # (256, S, dim) at a time
            candidates = table[support[rows].clamp(max=len(table) - 1)]
            by_column[:, rows] = torch.einsum("knd,nsd->kns", by_draw[:, rows], candidates).to(result.dtype)
