"""Guidance of what a sampler mixes itself: two predictions, with the prompt and without, of which it draws from a mix.

A sampler draws from `m = u + w (c - u)`, c being the model's logits with the prompt and u those without, and guidance
is to move m to `g(m)`; but what it can move are c and u. Since the weights of the mix sum to one,

    u' = c' = g(m)                         gives  u' + w (c' - u') = g(m)            w known, both at hand
    c' = c,  u' = (g(m) - w c) / (1 - w)   gives  u' + w (c  - u') = g(m)            w known, u comes last
    u' = u,  c' = u + (g(m) - u) / w       gives  u  + w (c' - u)  = g(m)            w known, c comes last
    c' = c + d,  u' = u + d, d = g(c) - c  gives  u' + w (c' - u') = m + g(c) - c    whatever w

The last is g(m) where d does not depend on the prediction, as for a reward linear in the tokens without a `support` and
a budget: there `g(m) = m + scale * G` but for a constant. For other rewards it is the shift that guidance finds at
the prediction with the prompt. Guiding c alone would be `m + w (g(c) - c)`, a strength w times as large.
"""

import torch
from torch import Tensor

MODES = ("auto", "doubled", "two_calls")
NEVER = (
    1000.0  # nats below the likeliest token: probability 0 in any precision, and finite, so that a mix is none of NaN
)


def mixed(conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
    """`u + scale * (c - u)`; a token that either side forbids is forbidden."""
    forbidden = conditional.isneginf() | unconditional.isneginf()
    return (unconditional + scale * (conditional - unconditional)).masked_fill(forbidden, -torch.inf)


def finite(guided: Tensor) -> Tensor:
    """Logits `(n, vocabulary)` with `NEVER` nats below the likeliest in the place of -inf, which no mix survives."""
    return guided.where(~guided.isneginf(), guided.amax(-1, keepdim=True) - NEVER)


def last_unconditional(guided: Tensor, conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
    """u' for which the mix with an unchanged c is `guided`; u where one of them forbids a token by itself."""
    moved = (finite(guided) - scale * conditional) / (1 - scale)
    return moved.where(moved.isfinite() & ~unconditional.isneginf(), unconditional)


def last_conditional(guided: Tensor, conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
    """c' for which the mix with an unchanged u is `guided`; c where one of them forbids a token by itself."""
    moved = unconditional + (finite(guided) - unconditional) / scale
    return moved.where(moved.isfinite() & ~conditional.isneginf(), conditional)


def shifted(unconditional: Tensor, conditional: Tensor, guided: Tensor) -> Tensor:
    """u' moved as far as `guided` has moved c; where guidance forbids a token, as low as `finite` puts it in c'."""
    low = guided.isneginf() & ~unconditional.isneginf()
    moved = unconditional + (guided - conditional)
    moved = moved.where(~(guided.isneginf() | conditional.isneginf()), unconditional)
    return torch.where(low & ~conditional.isneginf(), finite(guided), moved)


def kept_forbidden(moved: Tensor, own: Tensor) -> Tensor:
    """`moved`, -inf where the model's own logits are."""
    return moved.masked_fill(own.isneginf(), -torch.inf)


def halves(ids: Tensor, mask: int) -> bool | None:
    """Whether a batch is one half with and one without its prompt, every row with something hidden in the other half.

    True where the half with the prompt comes first, False where it comes last; None where it is something else.

    >>> halves(torch.tensor([[5, 6, 9], [9, 9, 9]]), mask=9), halves(torch.tensor([[5, 6, 9], [5, 7, 9]]), mask=9)
    (True, None)
    """
    if len(ids) % 2 or not len(ids):
        return None
    first, second = ids.chunk(2)
    if is_without_prompt(second, first, mask):
        return True
    return False if is_without_prompt(first, second, mask) else None


def is_without_prompt(ids: Tensor, other: Tensor, mask: int, among: Tensor | None = None) -> bool:
    """Whether `ids` are `other` with some more tokens hidden in every row, all of them `among` these positions."""
    if ids.shape != other.shape:
        return False
    differ = ids != other
    hidden = differ & (ids == mask) & (other != mask)
    allowed = True if among is None else not bool((differ & ~among).any())
    return allowed and torch.equal(differ, hidden) and bool(hidden.any(-1).all())
