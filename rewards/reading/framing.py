"""Texts in what a model is shown around them, in tokens."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from redge_guidance.checks import as_whole
from redge_guidance.positions import longest
from redge_guidance.rewards.reading.alignment import common_length, tokens_of
from redge_guidance.rewards.reading.cache import Recent
from redge_guidance.text import end_token_id


class Written(NamedTuple):
    """A text in its frame: `framed[begin:end]` is `text[lead : lead + end - begin]`, what the frame shows of it."""

    framed: str
    begin: int
    end: int
    lead: int

    def shows(self, text: str) -> bool:
        """Whether the frame has all of the text, white space at its ends aside."""
        return self.framed[self.begin : self.end].strip() == text.strip()


@dataclass(frozen=True)
class Frame:
    """What a model is shown around a text.

    Attributes:
        prefix, suffix: strings, as a chat template writes them.
        special_tokens: whether the tokenizer adds its own special tokens around all of it.
        template: what writes a text between `prefix` and `suffix`, some of it left out, as templates do that strip
            white space; None: the text as it is.
        first, last: tokens that stand in front of all and behind, whether or not the tokenizer puts them there; None:
            its own.
    """

    prefix: str = ""
    suffix: str = ""
    special_tokens: bool = True
    template: Callable[[str], str] | None = None
    first: int | None = None
    last: int | None = None

    def write(self, text: str) -> Written:
        """The text in its frame; `begin == end` where the template shows nothing of it, or another text."""
        if self.template is None:
            begin = len(self.prefix)
            return Written(self.prefix + text + self.suffix, begin, begin + len(text), 0)
        framed = self.template(text)
        begin = common_length(framed, self.prefix)
        end = max(begin, len(framed) - common_length(framed[::-1], self.suffix[::-1]))
        shown = framed[begin:end]
        if begin < len(self.prefix) or end > len(framed) - len(self.suffix):  # the template drops the turn
            shown, end = "", begin
        lead = text.find(shown)
        return Written(framed, begin, end, lead) if lead >= 0 else Written(framed, begin, begin, 0)


class Row(NamedTuple):
    """A tokenized text in its frame: all ids, which of them (`start:stop`) are the text's, and their characters."""

    ids: list[int]
    start: int
    stop: int
    spans: list[tuple[int, int]]


class Around(NamedTuple):
    """A frame in tokens."""

    before: list[int]
    after: list[int]


class Framer:
    """Tokenizes framed texts for one model.

    A text that is too long for the model loses tokens at the tokenizer's `truncation_side`, the frame none. An empty
    one, of which tokenizer and frame make no token at all, becomes an end-of-text token, or token 0.

    Args:
        model: asked for the longest input.
        tokenizer: the model's.
        max_length: in tokens, with the frame; None: the smaller of what the tokenizer and the model say.

    Raises:
        ValueError: what is no tokenizer, or a `max_length` that is no whole number above 0.
    """

    def __init__(self, model: Any, tokenizer: Any, max_length: int | None = None):
        if not callable(tokenizer) or not hasattr(tokenizer, "all_special_ids"):
            raise ValueError(f"`tokenizer` must be a tokenizer of transformers, got {type(tokenizer).__name__}.")
        most = as_whole(max_length)
        if max_length is not None and (most is None or most < 1):
            raise ValueError(f"`max_length` must be >= 1 or None, got {max_length!r}.")
        self.tokenizer = tokenizer
        self.max_length = _longest(model, tokenizer) if most is None else most
        self._frames: Recent[Frame, Around] = Recent()
        self._warned = False

    def stand_in(self) -> int:
        """What an empty text is read as where nothing stands around it: an end-of-text token, or else token 0."""
        return end_token_id(self.tokenizer) or 0

    def around(self, frame: Frame) -> Around:
        """The frame in tokens."""
        found = self._frames.get(frame)
        if found is None:
            (row,) = self._cut(["a"], [frame])
            found = self._frames[frame] = Around(row.ids[: row.start], row.ids[row.stop :])
        return found

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
            written = [frames[k].write(texts[k]) for k in which]
            cut = tokens_of(self.tokenizer, [one.framed for one in written], special)
            for k, one, (ids, spans, added) in zip(which, written, cut, strict=True):
                rows[k] = _ended(_row(ids, spans, added, one, texts[k]), frames[k], len(texts[k]))
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


def _row(ids: list[int], offsets: list[tuple[int, int]], added: list[int], written: Written, text: str) -> Row:
    """Spans are of `text`; the token after it has the place after the text."""
    begin, end = written.begin, written.end
    whole = end - begin == len(written.framed)  # then tokens that stand for no character are the text's, too
    inside = [
        k
        for k, (first, last) in enumerate(offsets)
        if not added[k] and (whole or (first < end and last > begin and last > first))
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
        shown = written.framed[begin:end][first:last]
        blank = len(shown) - len(shown.lstrip())  # a space in front belongs to no letter
        first += blank if blank < last - first else 0
        spans.append((first + written.lead, last + written.lead))
    return Row(ids, start, stop, spans)


def _ended(row: Row, frame: Frame, length: int) -> Row:
    """With the tokens that the frame wants in front and behind."""
    ids, start, stop, spans = row
    if frame.first is not None and (not start or ids[0] != frame.first):
        ids, spans, start, stop = [frame.first, *ids], [(0, 0), *spans], start + 1, stop + 1
    if frame.last is not None and (stop == len(ids) or ids[-1] != frame.last):
        ids, spans = [*ids, frame.last], [*spans, (length, length + 1) if stop == len(ids) else (0, 0)]
    return Row(ids, start, stop, spans)


def _leading(added: list[int]) -> int:
    """Special tokens in front: all of them where there is nothing else but a last one."""
    count = next((k for k, special in enumerate(added) if not special), len(added))
    return count if count < len(added) else max(len(added) - 1, min(len(added), 1))


def _longest(model: Any, tokenizer: Any) -> int | None:
    limits = [getattr(tokenizer, "model_max_length", None), longest(model)]
    known = [int(limit) for limit in limits if limit is not None and 0 < limit < 10**9]
    return min(known, default=None)
