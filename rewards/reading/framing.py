"""Texts in what a model is shown around them, in tokens."""

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

from redge_guidance.checks import as_whole
from redge_guidance.text import end_token_id


class Frame(NamedTuple):
    """What a model is shown around a text.

    Attributes:
        prefix, suffix: strings, as a chat template writes them.
        special_tokens: whether the tokenizer adds its own special tokens around all of it.
        strips: whether white space at both ends of the text is left out, as some templates do.
    """

    prefix: str = ""
    suffix: str = ""
    special_tokens: bool = True
    strips: bool = False


class Row(NamedTuple):
    """A tokenized text in its frame: all ids, which of them (`start:stop`) are the text's, and their characters."""

    ids: list[int]
    start: int
    stop: int
    spans: list[tuple[int, int]]


class Around(NamedTuple):
    """A frame in tokens; `merges` where its ends make other tokens of the text than the text alone has."""

    before: list[int]
    after: list[int]
    merges: bool


class Framer:
    """Tokenizes framed texts for one model.

    A text that is too long for the model loses tokens at the tokenizer's `truncation_side`, the frame none. An empty
    one, of which tokenizer and frame make no token at all, becomes an end-of-text token, or token 0.

    Args:
        model: its config is asked for the longest input.
        tokenizer: the model's.
        max_length: in tokens, with the frame; None: the smaller of what the tokenizer and the model's config say.

    Raises:
        ValueError: a tokenizer that does not tell which characters a token stands for, or a `max_length` below 1.
    """

    def __init__(self, model: Any, tokenizer: Any, max_length: int | None = None):
        if not getattr(tokenizer, "is_fast", False):
            raise ValueError(
                f"`tokenizer` must tell which characters a token stands for, got {type(tokenizer).__name__}, which "
                "does not; load a fast one with AutoTokenizer, which needs `pip install sentencepiece tiktoken` to "
                "convert some."
            )
        longest = as_whole(max_length)
        if max_length is not None and (longest is None or longest < 1):
            raise ValueError(f"`max_length` must be >= 1 or None, got {max_length!r}.")
        self.tokenizer = tokenizer
        self.max_length = _longest(model, tokenizer) if longest is None else longest
        self._frames: dict[Frame, Around] = {}
        self._warned = False

    def stand_in(self) -> int:
        """What an empty text is read as where nothing stands around it: an end-of-text token, or else token 0."""
        return end_token_id(self.tokenizer) or 0

    def around(self, frame: Frame) -> Around:
        """The frame in tokens."""
        if frame not in self._frames:
            (row,) = self._cut(["a"], [frame])
            alone = self.tokenizer("a", add_special_tokens=False).input_ids
            merges = row.ids[row.start : row.stop] != alone
            self._frames[frame] = Around(row.ids[: row.start], row.ids[row.stop :], merges)
        return self._frames[frame]

    def tokenize(self, texts: list[str], frames: Sequence[Frame]) -> list[Row]:
        """Texts in their frames, one each, no longer than `max_length` and never empty."""
        rows = self._cut(texts, frames)
        if self.max_length is not None:
            rows = [self._shortened(row) if len(row.ids) > self.max_length else row for row in rows]
        return [row if row.ids else Row([self.stand_in()], 0, 0, [(0, 0)]) for row in rows]

    def _cut(self, texts: list[str], frames: Sequence[Frame]) -> list[Row]:
        rows: list[Row | None] = [None] * len(texts)
        for special in {frame.special_tokens for frame in frames}:
            which = [k for k, frame in enumerate(frames) if frame.special_tokens == special]
            bodies = [texts[k].strip() if frames[k].strips else texts[k] for k in which]
            framed = [frames[k].prefix + body + frames[k].suffix for k, body in zip(which, bodies, strict=True)]
            cut = self.tokenizer(
                framed, add_special_tokens=special, return_offsets_mapping=True, return_special_tokens_mask=special
            )
            for n, k in enumerate(which):
                added = cut.special_tokens_mask[n] if special else [0] * len(cut.input_ids[n])
                rows[k] = _row(cut.input_ids[n], cut.offset_mapping[n], added, frames[k], bodies[n], texts[k])
        return rows  # type: ignore[return-value]

    def _shortened(self, row: Row) -> Row:
        self.warn_of_length()
        assert self.max_length is not None
        excess = min(len(row.ids) - self.max_length, row.stop - row.start)
        start = row.start if self.tokenizer.truncation_side == "left" else row.stop - excess
        keep = [k for k in range(len(row.ids)) if not start <= k < start + excess]
        return Row([row.ids[k] for k in keep], row.start, row.stop - excess, [row.spans[k] for k in keep])

    def warn_of_length(self) -> None:
        """Say once that texts are cut."""
        if not self._warned:
            self._warned = True
            warnings.warn(
                f"texts longer than the {self.max_length} tokens that the reward's model can take are cut on the "
                f"{self.tokenizer.truncation_side}, which its tokenizer's `truncation_side` says.",
                stacklevel=2,
            )


def _row(ids: list[int], offsets: list[tuple[int, int]], added: list[int], frame: Frame, body: str, text: str) -> Row:
    """Spans are of `text`, of which `body` is what the frame shows; the token after it has the place after the text."""
    lead = len(text) - len(text.lstrip()) if frame.strips else 0
    begin, end = len(frame.prefix), len(frame.prefix) + len(body)
    inside = [
        k for k, (first, last) in enumerate(offsets) if not added[k] and first < end and last > begin and last > first
    ]
    if inside:
        start, stop = inside[0], inside[-1] + 1
    else:  # an empty body stands where the suffix begins
        start = stop = sum(last <= begin and not added[k] for k, (_, last) in enumerate(offsets)) + _leading(added)
    spans = []
    for k, (first, last) in enumerate(offsets):
        first, last = max(first, begin) - begin, min(last, end) - begin
        if not start <= k < stop or last <= first:
            spans.append((len(text), len(text) + 1) if k == stop else (0, 0))
            continue
        blank = len(body[first:last]) - len(body[first:last].lstrip())  # a space in front belongs to no letter
        first += blank if blank < last - first else 0
        spans.append((first + lead, last + lead))
    return Row(ids, start, stop, spans)


def _leading(added: list[int]) -> int:
    """Special tokens in front: all of them where there is nothing else but a last one."""
    count = next((k for k, special in enumerate(added) if not special), len(added))
    return count if count < len(added) else max(len(added) - 1, min(len(added), 1))


def _longest(model: Any, tokenizer: Any) -> int | None:
    limits = [getattr(tokenizer, "model_max_length", None), getattr(model.config, "max_position_embeddings", None)]
    known = [int(limit) for limit in limits if limit is not None and 0 < limit < 10**9]
    return min(known, default=None)
