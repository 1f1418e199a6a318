"""How sure a model is of the tokens that were drawn: the scores of the orders by confidence."""

from collections.abc import Sequence

import torch
from torch import Tensor

from redge_guidance.pipelines.sampling import plain_token_ids

BY_CONFIDENCE = ("confidence", "maskgit_plus", "entropy", "topk_margin")


def confidence_of(
    order: str, logits: Tensor, kept: Tensor, tokens: Tensor, late_tokens: Sequence[int] | None = None
) -> Tensor:
    """A log-probability (`"confidence"`), a probability, minus an entropy in nats, or a margin, `(n,)`; else 0.

    Args:
        order: of drawing, as in `MaskedDiffusionScheduler`.
        logits: `(n, vocabulary)`, the model's.
        kept: the same, tempered and cut.
        tokens: `(n,)` int64, what was drawn.
        late_tokens: ids of which no position is sure; None: none.

    Raises:
        ValueError: `late_tokens` outside the vocabulary.
    """
    if order not in BY_CONFIDENCE:
        return torch.zeros(len(tokens), device=logits.device)
    rows = logits if order == "confidence" else kept
    if late_tokens is not None:
        late = plain_token_ids("late_tokens", late_tokens, rows.shape[-1])
        rows = rows.index_fill(-1, torch.tensor(late, dtype=torch.long, device=rows.device), -torch.inf)
    log_probs = rows.log_softmax(-1)
    if order == "entropy":
        return torch.neg(torch.special.entr(log_probs.exp()).sum(-1))
    if order == "topk_margin":
        first, second = log_probs.exp().topk(2, -1).values.unbind(-1)
        return torch.sub(first, second)
    chosen: Tensor = log_probs.gather(-1, tokens[:, None])[:, 0]
    return chosen if order == "confidence" else torch.exp(chosen)
