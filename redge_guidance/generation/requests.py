"""What is asked for: prompts with their fields, several samples each, every one with a seed of its own."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from redge_guidance.chats import is_conversation
from redge_guidance.checks import as_whole, plain

Prompt = str | int | None | list[dict[str, Any]]

_NO_PROMPT = 'texts of no prompt are drawn without an input, or from `[""]` in Python'


@dataclass(frozen=True)
class Line:
    """One entry of an input.

    Attributes:
        number: from 0, its place among all entries, bad ones too.
        prompt: a text, a list of messages, or the class of an image; None for a bad entry.
        fields: what else the entry has.
        error: what is wrong with it; None: nothing.
        place: what people call it, such as `"line 3"`.
    """

    number: int
    prompt: Prompt = None
    fields: Mapping[str, Any] = field(default_factory=dict)
    error: str | None = None
    place: str = ""


@dataclass(frozen=True)
class Request:
    """One sample that is asked for.

    Attributes:
        line: the entry of the input that asks for it.
        sample: number among the samples of that entry, from 0.
        seed: of its generator; a function of the seed of the run, of the prompt, and of how many samples of the same
            prompt came before.
    """

    line: Line
    sample: int
    seed: int

    @property
    def key(self) -> tuple[int, int]:
        """What tells it from all others of a run, and orders them."""
        return self.line.number, self.sample


def as_lines(prompts: Any) -> Iterator[Line]:
    """Entries of what a caller of Python passes: prompts, or mappings with a field `prompt`.

    Raises:
        ValueError: something else.
    """
    if isinstance(prompts, str) or prompts is None or as_whole(prompts) is not None or _is_chat(prompts):
        prompts = [prompts]
    if not isinstance(prompts, Iterable) or isinstance(prompts, Mapping):
        raise ValueError(
            "`prompts` must be a text, a list of messages, or an iterable of these or of mappings with a field "
            f"`prompt`, got {type(prompts).__name__}."
        )
    return _entries(prompts)


def _entries(prompts: Iterable[Any]) -> Iterator[Line]:
    for number, entry in enumerate(prompts):
        place = f"entry {number}"
        if isinstance(entry, Line):
            yield entry
        elif isinstance(entry, Mapping):
            yield from_mapping(number, entry, "prompt", place)
        elif is_prompt(entry):
            yield Line(number, plain(entry), place=place)
        else:
            raise ValueError(
                f"`prompts` must hold texts, lists of messages, classes or mappings, got {entry!r:.80} as {place}."
            )


def from_mapping(number: int, entry: Mapping[str, Any], prompt_field: str, place: str, empty: bool = True) -> Line:
    """An entry with fields; a bad one says what is wrong with it. `empty`: whether its prompt may be."""
    if prompt_field not in entry:
        have = ", ".join(map(repr, entry)) or "none"
        other = "; `prompt_field` names another" if not empty else ""
        return Line(number, error=f"has no field {prompt_field!r}; it has {have}{other}", place=place)
    prompt = plain(entry[prompt_field])
    rest = {key: value for key, value in entry.items() if key != prompt_field}
    if not is_prompt(prompt) or (prompt is None and not empty):
        return Line(
            number,
            error=f"has {prompt!r:.60} as {prompt_field!r}, which is no text and no list of messages",
            place=place,
        )
    if not empty and isinstance(prompt, str) and not prompt.strip():
        return Line(number, error=f"has an empty {prompt_field!r}; {_NO_PROMPT}", place=place)
    return Line(number, prompt, rest, place=place)


def _is_chat(entry: Any) -> bool:
    return is_conversation(entry) and all({"role", "content"} <= set(turn) for turn in entry)


def is_prompt(entry: Any) -> bool:
    return entry is None or isinstance(entry, str) or as_whole(entry) is not None or _is_chat(entry)


def requests_of(lines: Iterable[Line], samples_per_prompt: int, seed: int) -> Iterator[Request]:
    """Every sample of every entry, in order; one for a bad entry.

    The seed of the k-th sample of one prompt in all of the input depends on `seed`, on the prompt and on k alone, so
    that a sample is the same in whatever order prompts come, and two of the same prompt differ.
    """
    seen: Counter[bytes] = Counter()
    for line in lines:
        if line.error is not None:
            yield Request(line, 0, 0)
            continue
        told = json.dumps([seed, line.prompt], sort_keys=True, ensure_ascii=True)
        digest = hashlib.blake2b(told.encode(), digest_size=16).digest()
        for sample in range(samples_per_prompt):
            yield Request(line, sample, _seed(digest, seen[digest]))
            seen[digest] += 1


def _seed(digest: bytes, number: int) -> int:
    """Of 63 bits, which every generator takes."""
    mixed = hashlib.blake2b(digest + number.to_bytes(8, "little"), digest_size=8).digest()
    return int.from_bytes(mixed, "little") >> 1
