"""Which tokens a text pipeline may draw, and where."""

import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from redge_guidance.pipelines.sampling import forbid
from redge_guidance.text import end_token_ids, reserved_token_ids


def allowed_logits(
    logits: Tensor,
    tokenizer: Any,
    ends: Sequence[int],
    suppress_tokens: Any,
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
    columns = torch.tensor([i for i in ends if i < vocabulary], dtype=torch.long, device=logits.device)
    left = forbid(torch.zeros(vocabulary, device=logits.device), suppress_tokens, reserved)
    if left.index_fill(0, columns, -torch.inf).isneginf().all():
        raise ValueError(
            "`suppress_tokens` must leave a token beside the end of the text, which cannot come before text of the "
            f"prompt; got {suppress_tokens}."
        )
    values = logits[..., columns].masked_fill(unending[..., None], -torch.inf)
    return logits.index_copy(-1, columns, values)


def check_parts(model: Any, tokenizer: Any, scheduler: Any, scheduler_name: str, suppress_tokens: Any) -> None:
    """Of what a pipeline is made of; `scheduler_name` is the class of the scheduler that it wants.

    Raises:
        ValueError: something that is no model, tokenizer or scheduler, such as the name of one, or no token ids.
    """
    if isinstance(model, str | type) or not callable(model):
        raise ValueError(
            f"`model` must be a model that maps ids to logits, got {model!r}; `TextPipeline.from_pretrained` loads one "
            "by its name."
        )
    if isinstance(tokenizer, str | type) or not hasattr(tokenizer, "batch_decode"):
        raise ValueError(
            f"`tokenizer` must be a tokenizer of transformers, got {tokenizer!r}; `AutoTokenizer.from_pretrained` "
            "loads one by its name."
        )
    if isinstance(scheduler, str | type) or not hasattr(scheduler, "set_timesteps"):
        raise ValueError(
            f"`scheduler` must be a {scheduler_name}, got {scheduler!r}; make one, with the settings that are wanted: "
            f"{scheduler_name}(...)."
        )
    several = isinstance(suppress_tokens, Iterable) and not isinstance(suppress_tokens, str)
    for one in suppress_tokens if several else [] if suppress_tokens is None else [suppress_tokens]:
        if isinstance(one, bool) or not hasattr(one, "__index__") or int(one) < 0:
            raise ValueError(f"`suppress_tokens` must be token ids, got {one!r}.")
    _check_ends(model, tokenizer)


def _check_ends(model: Any, tokenizer: Any) -> None:
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
                stacklevel=4,
            )
