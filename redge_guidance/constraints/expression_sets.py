"""Which code points a set of a regular expression has: `re` itself is asked, so that it is the one that says."""

import re
from collections.abc import Iterable
from functools import lru_cache

from redge_guidance.constraints.alphabet import END_OF_UNICODE

Points = tuple[tuple[int, int], ...]
"""Ranges of code points, first and last, ascending and apart."""

NEWLINE: Points = ((10, 10),)

_CATEGORIES = {
    "CATEGORY_DIGIT": r"\d",
    "CATEGORY_NOT_DIGIT": r"\D",
    "CATEGORY_SPACE": r"\s",
    "CATEGORY_NOT_SPACE": r"\S",
    "CATEGORY_WORD": r"\w",
    "CATEGORY_NOT_WORD": r"\W",
}
_CHUNK = 256


def points_of(items: Iterable[tuple[object, object]], flags: int) -> Points:
    r"""The code points of `[...]`.

    Args:
        items: as `re` parses them: `NEGATE`, if at all the first, `LITERAL`, `RANGE` and `CATEGORY`.
        flags: of these only `re.ASCII` and `re.IGNORECASE` matter.

    >>> parser = __import__("re._parser" if hasattr(re, "_parser") else "sre_parse", fromlist=["parse"])
    >>> points_of(parser.parse("[^b-\U0010ffff]")[0][1], 0)
    ((0, 97),)
    """
    parts = tuple((str(kind), argument) for kind, argument in items)
    negated = bool(parts) and parts[0][0] == "NEGATE"
    members = parts[1:] if negated else parts
    if flags & re.IGNORECASE:
        return _ignoring_case(members, negated, bool(flags & re.ASCII))
    ranges: list[tuple[int, int]] = []
    for kind, argument in members:
        if kind == "CATEGORY":
            ranges += _asked(_CATEGORIES[str(argument)], flags & re.ASCII)
        else:
            ranges.append(argument if kind == "RANGE" else (argument, argument))  # type: ignore[arg-type]
    return complement(_merged(ranges)) if negated else _merged(ranges)


def complement(points: Points) -> Points:
    """All other code points."""
    edges = [-1, *(edge for ends in points for edge in ends), END_OF_UNICODE]
    pairs = zip(edges[::2], edges[1::2], strict=True)
    return tuple((last + 1, first - 1) for last, first in pairs if last + 1 <= first - 1)


def words(flags: int) -> Points:
    r"""The code points of `\w`, which `\b` goes by; case does not matter to it."""
    return _asked(r"\w", flags & re.ASCII)


def _merged(ranges: list[tuple[int, int]]) -> Points:
    merged: list[tuple[int, int]] = []
    for first, last in sorted(ranges):
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(last, merged[-1][1]))
        else:
            merged.append((first, last))
    return tuple(merged)


@lru_cache(maxsize=4096)
def _ignoring_case(members: tuple[tuple[str, object], ...], negated: bool, ascii_only: bool) -> Points:
    flags = re.IGNORECASE | (re.ASCII if ascii_only else 0)
    source = "".join(_written(kind, argument) for kind, argument in members)
    if len(members) == 1 and members[0][0] == "LITERAL":
        candidates = _cased() + chr(int(str(members[0][1])))
        found = re.findall(f"[{source}]", candidates, flags)
        alike = _merged([(ord(sign), ord(sign)) for sign in found])
        return complement(alike) if negated else alike
    return _asked(f"[{'^' * negated}{source}]", flags)


def _written(kind: str, argument: object) -> str:
    if kind == "CATEGORY":
        return _CATEGORIES[str(argument)]
    ends = argument if kind == "RANGE" else (argument,)
    return "-".join(f"\\U{point:08x}" for point in ends)  # type: ignore[attr-defined]


@lru_cache(maxsize=1024)
def _asked(one: str, flags: int) -> Points:
    """What `re` says of every code point: `one` is a pattern of one character."""
    return tuple((found.start(), found.end() - 1) for found in re.finditer(f"{one}+", _unicode(), flags))


@lru_cache(maxsize=1)
def _unicode() -> str:
    return "".join(map(chr, range(END_OF_UNICODE)))


@lru_cache(maxsize=1)
def _cased() -> str:
    """All characters that have a case, with their neighbours."""
    text = _unicode()
    chunks = (text[first : first + _CHUNK] for first in range(0, END_OF_UNICODE, _CHUNK))
    return "".join(chunk for chunk in chunks if chunk.lower() != chunk or chunk.upper() != chunk)
