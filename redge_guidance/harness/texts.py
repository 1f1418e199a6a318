"""Texts of a request in the tokens of a pipeline, cut to what its model has room for."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from redge_guidance.pipelines.text.prompts import Encoded, encode
from redge_guidance.positions import longest
from redge_guidance.text import special_token_ids


class Words:
    """The tokenizer of a pipeline, as the harness uses one.

    Args:
        pipe: a text pipeline.
        max_length: most tokens that its model is shown; None: what its config says.

    Attributes:
        start: ids that stand before every text, such as a beginning-of-text token.
        longest: most tokens of a text, `start` included; None: any number.
    """

    def __init__(self, pipe: Any, max_length: int | None = None):
        self.tokenizer = pipe.tokenizer
        self.start, _ = encode(pipe.tokenizer, "", "prompt", needs_start=bool(pipe.config.shift_logits))
        known = longest(pipe.model)
        if max_length is not None and known is not None and max_length > known:
            raise ValueError(f"`max_length` must be <= {known}, the positions of the model, got {max_length}.")
        self.longest = known if max_length is None else max_length
        if self.longest is not None and self.longest < len(self.start) + 2:
            raise ValueError(f"`max_length` must leave room for two tokens of a text, got {max_length}.")

    def ids(self, text: str) -> list[int]:
        """Of a text, special tokens in it taken as such, nothing put around it.

        Raises:
            ValueError: the mask token is in it, which stands for no text.
        """
        ids: list[int] = self.tokenizer(text, add_special_tokens=False).input_ids
        mask = getattr(self.tokenizer, "mask_token_id", None)
        if mask is not None and mask in ids:
            raise ValueError(
                f"a text of the task has the model's mask token {self.tokenizer.mask_token!r} in it, {text[:80]!r}; "
                "leave that document out, by `samples`."
            )
        return ids

    def context(self, text: str, room: int | None, rendered: bool) -> Encoded:
        """A context as a prompt that leaves `room` tokens of the model's, the last tokens of it.

        Args:
            text: the context.
            room: tokens that follow; None: as many as there is place for.
            rendered: by a chat template, which has what stands in front.
        """
        start, ids = [] if rendered else self.start, self.ids(text)
        if room is not None and self.longest is not None:
            left = max(self.longest - room - len(start), 0)
            ids = ids[len(ids) - min(left, len(ids)) :]
        return Encoded(text, [*start, *ids], len(start))

    def fits(self, text: str, room: int, rendered: bool) -> bool:
        """Whether nothing of a context is cut off."""
        start = 0 if rendered else len(self.start)
        return self.longest is None or start + len(self.ids(text)) + room <= self.longest

    def windows(self, context: Sequence[int], ids: Sequence[int]) -> Iterator[tuple[list[int], list[int]]]:
        """Parts `(context, tokens)` of a text that follows a context, each of which fits behind `start`.

        Every token is in one part, and follows as much of what comes before as there is room for beside as many tokens
        as possible: one at least, unless nothing comes before. With one part of the context in the place of a prefix
        token these are the disjoint windows of `lm_eval.utils`.
        """
        room = len(context) + len(ids) if self.longest is None else self.longest - len(self.start)
        before, done = list(context), 0
        while done < len(ids):
            size = min(room - bool(before), len(ids) - done)
            kept = min(room - size, len(before))
            part = list(ids[done : done + size])
            yield before[len(before) - kept :], part
            before, done = before + part, done + size


def cut(text: str, until: Sequence[str]) -> str:
    """A text up to the first of the strings that end it.

    >>> cut("one. two; three", [";", "."])
    'one'
    """
    ends = [place for place in (text.find(end) for end in until if end) if place >= 0]
    return text[: min(ends, default=len(text))]


def answers(sequences: torch.Tensor, written: torch.Tensor, tokenizer: Any) -> list[str]:
    """What was drawn, as it follows what stands in front.

    Args:
        sequences: `(batch, length)` int64.
        written: `(batch, length)` int64; 0 is what is left out, 1 the prompt, 2 what was drawn.
        tokenizer: special tokens are left out.
    """
    special, texts = torch.tensor(sorted(special_token_ids(tokenizer)), device=sequences.device), []
    kept = written.masked_fill(torch.isin(sequences, special), 0)
    for row, kind in zip(sequences, kept, strict=True):
        front, whole = (tokenizer.decode(row[where].tolist()) for where in (kind == 1, kind > 0))
        alone = tokenizer.decode(row[kind == 2].tolist())
        texts.append(whole[len(front) :] if whole.startswith(front) else alone)
    return texts


def generator_of(seed: int, device: Any, *request: Any) -> torch.Generator:
    """A generator that is a function of the seed and of the request alone."""
    digest = hashlib.blake2b(json.dumps([seed, *request], default=str).encode(), digest_size=8).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest, "little") >> 1)
