"""Finished samples, and what they were asked for, as `Reward.score` is told them."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from redge_guidance.chats import Prompt, is_conversation
from redge_guidance.checks import whole_number


def to_judge(
    samples: Any, prompts: str | Sequence[Prompt] | None = None, batch_size: Any = 1
) -> tuple[Any, list[Prompt] | None, int]:
    """Samples as a list or pixels of several, a prompt for each of them or None, and a plain number.

    Args:
        samples: strings, or pixels `(n, 3, height, width)`; a single string, or pixels `(3, height, width)`, is one
            sample.
        prompts: as many, each a text or a conversation; of a single sample also its own without a list around it.
        batch_size: an integer >= 1.

    Raises:
        ValueError: something else.
    """
    single = isinstance(samples, str) or (isinstance(samples, Tensor) and samples.ndim == 3)
    found = as_samples(samples)
    size = whole_number("batch_size", batch_size, 1)
    told: Any = prompts
    if told is None:
        return found, None, size
    if isinstance(told, str) or is_conversation(told):
        if not single:
            kind = f"the string {told!r:.60}" if isinstance(told, str) else "one conversation"
            raise ValueError(f"`prompts` must be one a sample, {len(found)}, got {kind}; put it into a list.")
        told = [told]
    if isinstance(told, Mapping) or not isinstance(told, Sequence):
        raise ValueError(f"`prompts` must be a list of strings or conversations, got {type(told).__name__}.")
    wrong = [one for one in told if not isinstance(one, str) and not is_conversation(one)]
    if wrong:
        raise ValueError(f"`prompts` must be strings, or lists of messages; got {wrong[0]!r:.60} among them.")
    _check_signs([one for one in told if isinstance(one, str)], "prompts")
    if len(told) != len(found):
        raise ValueError(f"`prompts` must be one a sample, {len(found)}, got {len(told)}.")
    return found, list(told), size


def as_samples(samples: Any, argument: str = "samples") -> Any:
    """Several strings, or pixels of several images; one string is one text, never read letter by letter.

    >>> as_samples("one text"), as_samples(("one", "two"))
    (['one text'], ['one', 'two'])

    Raises:
        ValueError: something else; `argument` says what.
    """
    if isinstance(samples, Tensor):
        return samples[None] if samples.ndim == 3 else samples
    if isinstance(samples, str):
        samples = [samples]
    if isinstance(samples, Mapping) or not (hasattr(samples, "__len__") and hasattr(samples, "__getitem__")):
        raise ValueError(f"`{argument}` must be a list of strings, or pixels, got {type(samples).__name__}.")
    wrong = [one for one in samples if not isinstance(one, str)]
    if wrong:
        raise ValueError(f"`{argument}` must be strings, or pixels in a tensor; got {wrong[0]!r:.60} among them.")
    _check_signs(samples, argument)
    return list(samples)


def _check_signs(texts: Sequence[str], argument: str) -> None:
    """A ValueError for half of a sign, a surrogate, as a broken decoding leaves it: no tokenizer takes it."""
    for text in texts:
        if not text.isascii() and any("\ud800" <= sign <= "\udfff" for sign in text):
            raise ValueError(
                f"`{argument}` must be text, got half of a sign (a surrogate) in {text!r:.60}; decode it with "
                '`errors="replace"`.'
            )


def in_words(prompts: Sequence[Prompt] | None) -> list[str] | None:
    """Prompts that are texts; a ValueError if there is a conversation among them."""
    if prompts is None:
        return None
    words = [prompt for prompt in prompts if isinstance(prompt, str)]
    if len(words) < len(prompts):
        raise ValueError(
            "`prompts` must be strings for images, got a list of messages; pass what the image is to show."
        )
    return words
