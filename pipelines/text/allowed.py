"""Which tokens a text pipeline may draw, and where."""

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from redge_guidance.pipelines.sampling import forbid
from redge_guidance.text import end_token_ids, reserved_token_ids


def allowed_logits(
    logits: Tensor,
    tokenizer: Any,
    ends: Sequence[int],
    suppress_tokens: Sequence[int],
    unending: Tensor | None = None,
) -> Tensor:
    """Logits of tokens that may be drawn, -inf for all others.

    Args:
        logits: `(..., vocabulary)`.
        tokenizer: whose reserved tokens are forbidden everywhere.
        ends: token ids that end a text.
        suppress_tokens: further token ids that are forbidden everywhere.
        unending: `(...)` bool, where no text may end, since given text comes after; None: nowhere.

    Raises:
        ValueError: `suppress_tokens` that are no token ids, or leave none to draw.
    """
    vocabulary = logits.shape[-1]
    reserved = reserved_token_ids(tokenizer, vocabulary, ends)
    logits = forbid(logits, suppress_tokens, reserved)
    if unending is None or not unending.any():
        return logits
    ends = [i for i in ends if i < vocabulary]
    if len({*suppress_tokens, *reserved, *ends}) >= vocabulary:
        raise ValueError(
            "`suppress_tokens` must leave a token beside the end of the text, which cannot come before text of the "
            f"prompt; got {list(suppress_tokens)}."
        )
    columns = torch.tensor(ends, dtype=torch.long, device=logits.device)
    values = logits[..., columns].masked_fill(unending[..., None], -torch.inf)
    return logits.index_copy(-1, columns, values)


def check_ends(model: Any, tokenizer: Any) -> None:
    """Warn of an end of the text that the model's generation config names, and that is a word to the tokenizer."""
    named = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    several = named if isinstance(named, list | tuple) else [named]
    taken = end_token_ids(tokenizer, model)
    for i in several:
        if isinstance(i, int) and i not in taken:
            warnings.warn(
                f"the model's `generation_config.eos_token_id` names {i}, which to the tokenizer is "
                f"{tokenizer.convert_ids_to_tokens(i)!r} and no special token: no text ends there. Correct it, or make "
                "the token a special one of the tokenizer.",
                stacklevel=3,
            )
