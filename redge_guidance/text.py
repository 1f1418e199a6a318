"""Where a text begins and ends in a row of token ids."""

from typing import Any

import torch
from torch import Tensor


def end_token_id(tokenizer: Any) -> int | None:
    """The end-of-text token of a tokenizer, or its separator where it has none (BERT); None where it has neither."""
    eos: int | None = getattr(tokenizer, "eos_token_id", None)
    return getattr(tokenizer, "sep_token_id", None) if eos is None else eos


def reserved_token_ids(tokenizer: Any, vocabulary: int) -> list[int]:
    """Ids below `vocabulary` that are never generated, in ascending order.

    Mask, padding, beginning-of-text and unknown tokens, and ids that the tokenizer does not have; not the end of the
    text, whatever else it stands for. A tokenizer of None reserves nothing.
    """
    if tokenizer is None:
        return []
    reserved = {getattr(tokenizer, f"{name}_token_id", None) for name in ("mask", "pad", "bos", "cls", "unk")}
    reserved |= set(range(len(tokenizer), vocabulary))
    return sorted(i for i in reserved - {end_token_id(tokenizer)} if i is not None and i < vocabulary)


def fixed_before(free: Tensor) -> Tensor:
    """Positions that are not free and have free ones after them: a prompt; `(batch, length)` bool, both."""
    later = free.flip(-1).cummax(-1).values.flip(-1)
    return later & ~free


def text_mask(ids: Tensor, tokenizer: Any, attention_mask: Tensor | None = None, given: Tensor | None = None) -> Tensor:
    """True from the first token that is not padding to the first end-of-text token, that one included.

    A padding token after the text ends it too, itself not included.

    Args:
        ids: `(batch, length)` int64.
        tokenizer: its end-of-text and padding tokens are read; None: no token is special.
        attention_mask: `(batch, length)` bool, False on left padding; None: a leading run of padding tokens.
        given: `(batch, length)` bool, tokens of a prompt, among which (between the turns of a chat) nothing ends the
            text; None: none.

    Returns:
        `(batch, length)` bool.
    """
    eos, pad = end_token_id(tokenizer), getattr(tokenizer, "pad_token_id", None)
    nothing = torch.zeros_like(ids, dtype=torch.bool)
    is_eos = nothing if eos is None else ids == eos
    is_pad = nothing if pad is None else ids == pad
    text = ~is_pad.cumprod(-1).bool() if attention_mask is None else attention_mask
    if given is not None:
        is_eos, is_pad = is_eos & ~given, is_pad & ~given
    ends = (is_eos & text).int()
    after_end = ends.cumsum(-1) > ends  # True strictly after the first end-of-text token
    padded = (is_pad & ~is_eos & text).cumsum(-1) > 0
    return text & ~after_end & ~padded
