"""Which token is which, and where a text begins and ends in a row of token ids."""

from collections.abc import Iterable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor


def end_token_id(tokenizer: Any) -> int | None:
    """The end-of-text token of a tokenizer, or its separator where it has none (BERT); None where it has neither."""
    eos: int | None = getattr(tokenizer, "eos_token_id", None)
    return getattr(tokenizer, "sep_token_id", None) if eos is None else eos


def end_token_ids(tokenizer: Any, more: Any = None) -> tuple[int, ...]:
    """All tokens that end a text, `end_token_id` first.

    Args:
        tokenizer: None has none.
        more: a model, whose `generation_config.eos_token_id` is asked, or such an entry: an id, several, or None. Taken
            are those that the tokenizer has as special or added tokens (`<|im_end|>`, `<|eot_id|>`), neither its mask
            nor unknown: what a config says by default may be a word to this tokenizer.

    Returns:
        Distinct ids; empty where nothing ends a text.
    """
    own = end_token_id(tokenizer)
    found = [] if own is None else [own]
    wanted = _named_ends(more)
    if wanted and tokenizer is not None:
        taken = special_token_ids(tokenizer) | set(getattr(tokenizer, "added_tokens_decoder", None) or {})
        taken -= {getattr(tokenizer, f"{name}_token_id", None) for name in ("mask", "unk")}
        found += [i for i in wanted if i in taken]
    return tuple(dict.fromkeys(found))


def _named_ends(more: Any) -> list[int]:
    settings = getattr(more, "generation_config", None)
    named = more if settings is None else getattr(settings, "eos_token_id", None)
    if isinstance(named, Tensor):
        named = named.flatten().tolist()
    several = named if isinstance(named, list | tuple) else [named]
    return [i for i in several if isinstance(i, int)]


def special_token_ids(tokenizer: Any) -> frozenset[int]:
    """Ids that stand for no text: the named special tokens, and added ones that the tokenizer's backend calls special.

    They are refused in prompts, never generated unless they end a text, and left out of texts. None has none.
    """
    named: Iterable[int] = getattr(tokenizer, "all_special_ids", None) or ()
    added: dict[int, Any] = getattr(tokenizer, "added_tokens_decoder", None) or {}
    return frozenset({i for i in named if i is not None} | {i for i, token in added.items() if _is_special(token)})


def _is_special(token: Any) -> bool:
    return bool(getattr(token, "special", False))


_RESERVED: "WeakKeyDictionary[Any, dict[Any, list[int]]]" = WeakKeyDictionary()


def reserved_token_ids(tokenizer: Any, vocabulary: int, ends: Iterable[int] | None = None) -> list[int]:
    """Ids below `vocabulary` that are never generated, in ascending order.

    Special tokens, as of mask, padding and beginning of text, and ids that the tokenizer does not have; not what ends a
    text, whatever else it stands for. A tokenizer of None reserves nothing.

    Args:
        tokenizer: whose special tokens, and whose ids: its vocabulary may have holes.
        vocabulary: number of logits.
        ends: ids that end a text; None: `end_token_ids(tokenizer)`.
    """
    if tokenizer is None:
        return []
    ends = end_token_ids(tokenizer) if ends is None else ends
    special = special_token_ids(tokenizer)
    found = _reserved_before(tokenizer)
    key = (vocabulary, frozenset(ends), special, len(tokenizer))
    if key not in found:  # the vocabulary is large, and asked for in every step
        reserved = (set(range(vocabulary)) - known_token_ids(tokenizer)) | special
        found.clear()
        found[key] = sorted(i for i in reserved - set(ends) if i < vocabulary)
    return found[key]


def _reserved_before(tokenizer: Any) -> dict[Any, list[int]]:
    try:
        return _RESERVED.setdefault(tokenizer, {})
    except TypeError:  # one that cannot be a key
        return {}


def known_token_ids(tokenizer: Any) -> set[int]:
    """Ids that a tokenizer has a token for."""
    return set(tokenizer.get_vocab().values()) | special_token_ids(tokenizer)


def is_in(ids: Tensor, wanted: Iterable[int]) -> Tensor:
    """Where `ids` are one of `wanted`; bool, of the shape of `ids`."""
    return torch.isin(ids, torch.tensor(sorted(wanted), dtype=ids.dtype, device=ids.device))


def fixed_before(free: Tensor) -> Tensor:
    """Positions that are not free and have free ones after them: a prompt; `(batch, length)` bool, both."""
    return _has_later(free) & ~free


def before_text(free: Tensor, written: Tensor) -> Tensor:
    """Free positions with written text somewhere after them, at which no text may end; `(batch, length)` bool, all.

    >>> before_text(torch.tensor([[False, True, False, True]]), torch.tensor([[True, False, True, False]]))
    tensor([[False,  True, False, False]])
    """
    return free & _has_later(written)


def _has_later(positions: Tensor) -> Tensor:
    """True at and before the last of `positions` of every row."""
    return positions.flip(-1).cummax(-1).values.flip(-1)


def text_mask(
    ids: Tensor,
    tokenizer: Any,
    attention_mask: Tensor | None = None,
    given: Tensor | None = None,
    ends: Sequence[int] | None = None,
) -> Tensor:
    """True from the first token that is not padding to the first end-of-text token, that one included.

    Args:
        ids: `(batch, length)` int64.
        tokenizer: its end-of-text and padding tokens are read; None: no token is special.
        attention_mask: `(batch, length)` bool, False on padding. None: padding can only be guessed from the ids, and is
            then a leading run of the tokenizer's padding token, and from such a token on after the text, unless that
            is also its mask, unknown, or beginning-of-text token.
        given: `(batch, length)` bool, tokens of a prompt, among which (between the turns of a chat) nothing ends the
            text; None: none.
        ends: ids that end a text; None: `end_token_ids(tokenizer)`.

    Returns:
        `(batch, length)` bool.
    """
    is_end = is_in(ids, end_token_ids(tokenizer) if ends is None else ends)
    is_pad = torch.zeros_like(is_end)
    if attention_mask is None:
        pad = padding_token_id(tokenizer)
        is_pad = is_pad if pad is None else ids == pad
        text = ~is_pad.cumprod(-1).bool()
    else:
        text = attention_mask
    if given is not None:
        is_end, is_pad = is_end & ~given, is_pad & ~given
    ended = (is_end & text).int()
    after_end = ended.cumsum(-1) > ended  # True strictly after the first end-of-text token
    padded = (is_pad & ~is_end & text).cumsum(-1) > 0
    return text & ~after_end & ~padded


def padding_token_id(tokenizer: Any) -> int | None:
    """What a row without a mask may be taken to be padded with: no token that stands for something in a text."""
    pad: int | None = getattr(tokenizer, "pad_token_id", None)
    others = {getattr(tokenizer, f"{name}_token_id", None) for name in ("mask", "unk", "bos", "cls")}
    return None if pad in others - {end_token_id(tokenizer)} else pad
