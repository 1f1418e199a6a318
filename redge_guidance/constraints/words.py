"""What a word is: text in one normal form, cut into units that are compared."""

import unicodedata
from collections.abc import Iterable, Mapping, Sequence

import regex

from redge_guidance.checks import as_real

_PIECES = regex.compile(r"(?w)\b", regex.V1)  # default word boundaries of Unicode (UAX 29)
_UNIT = regex.compile(r"[\w\p{M}\p{Join_Control}]+|(?=[^\s\p{C}])\X", regex.V1)
_VISIBLE = regex.compile(r"[^\s\p{M}\p{C}]", regex.V1)
_LONELY_MARK = regex.compile(r"(?:^|[\s\p{C}--\p{Join_Control}])[\p{M}\p{Join_Control}]", regex.V1)


def normal_form(text: str, case_sensitive: bool = False) -> str:
    """NFC; where case does not matter, case folded by Unicode's default rules, which know no language.

    >>> normal_form("STRASSE") == normal_form("Straße"), normal_form("I") == normal_form("\\u0131")  # Turkish
    (True, False)
    """
    if not case_sensitive:
        text = unicodedata.normalize("NFD", unicodedata.normalize("NFD", text).casefold())
    return unicodedata.normalize("NFC", text)


def units_of(text: str, case_sensitive: bool = False) -> tuple[str, ...]:
    """Runs of letters, digits and their marks, and single other signs; no space, and nothing that cannot be seen.

    A run also ends where Unicode's default word boundaries (UAX 29) have one: in scripts that are written without
    spaces (Chinese, Japanese, Thai) nearly every character is a unit.

    >>> units_of("The cat's 東京")
    ('the', 'cat', "'", 's', '東', '京')
    """
    pieces = _PIECES.split(normal_form(text, case_sensitive))
    return tuple(unit for piece in pieces for unit in _UNIT.findall(piece))


def joins(sign: str) -> bool:
    """Whether a character at the edge of a token goes on with the word beside it.

    >>> joins("a"), joins("東"), joins("'"), joins("")
    (True, False, False, False)
    """
    return sign != "" and len(units_of(sign * 2)) == 1 and bool(regex.match(r"[\w\p{M}\p{Join_Control}]", sign))


def weights_of_words(words: str | Iterable[str] | Mapping[str, float], argument: str) -> dict[str, float]:
    """A weight for every word, 1 where there are none given.

    Raises:
        ValueError: what is no word, or a weight that is not a finite number other than 0; of `"banned"`, < 0.
    """
    if isinstance(words, str):
        words = [words]
    if not isinstance(words, Iterable):
        raise ValueError(f"`{argument}` must be a word, several, or a mapping to weights, got {type(words).__name__}.")
    weights = dict(words) if isinstance(words, Mapping) else dict.fromkeys(words, 1.0)
    plain = {}
    for word, weight in weights.items():
        if not isinstance(word, str) or not _VISIBLE.search(word):
            raise ValueError(
                f"`{argument}` must be words or phrases, got {word!r}; each needs a letter or another sign."
            )
        if _LONELY_MARK.search(word):
            raise ValueError(
                f"`{argument}` has {word!r}, in which a combining mark has no letter; write the letter too."
            )
        number = as_real(weight)
        if number is None or not abs(number) < float("inf") or number == 0:
            raise ValueError(f"`{argument}` must have a finite weight other than 0 for {word!r}, got {weight!r}.")
        if argument == "banned" and number < 0:
            raise ValueError(f"`banned` must say what {word!r} costs, > 0, got {weight!r}.")
        plain[word] = float(number)
    return plain


def without_repetition(
    wanted: Mapping[str, float], banned: Mapping[str, float], case_sensitive: bool
) -> dict[str, float]:
    """The weights of both, each word once; `banned` ones negative.

    Raises:
        ValueError: a word that is in both, or one spelled in several ways of different weights.
    """
    kept: dict[tuple[str, ...], tuple[str, float]] = {}
    weights = [*wanted.items(), *((word, -cost) for word, cost in banned.items())]
    for n, (word, weight) in enumerate(weights):
        units = units_of(word, case_sensitive)
        other, before = kept.setdefault(units, (word, weight))
        if other in wanted and n >= len(wanted):
            raise ValueError(f"`banned` has {word!r}, which `wanted` has as {other!r}; leave out one of them.")
        if weight != before:
            raise ValueError(
                f"`{'wanted' if n < len(wanted) else 'banned'}` has {other!r} and {word!r}, the same word"
                f"{'' if case_sensitive else ' unless `case_sensitive=True`'}, with weights {abs(before):g} and "
                f"{abs(weight):g}; leave out one of them."
            )
    return dict(kept.values())


class Phrases:
    """Words and phrases that are looked for in texts, as runs of units.

    Args:
        words: of each at least one unit.
        case_sensitive: "Will" is not "will".
    """

    def __init__(self, words: Sequence[str], case_sensitive: bool = False):
        self._case_sensitive = case_sensitive
        self._phrases = [units_of(word, case_sensitive) for word in words]
        self._by_first: dict[str, list[int]] = {}
        for k, phrase in enumerate(self._phrases):
            self._by_first.setdefault(phrase[0], []).append(k)

    def found(self, text: str) -> dict[int, int]:
        """How often each of those that are there occurs, by its number."""
        units = units_of(text, self._case_sensitive)
        found: dict[int, int] = {}
        for i, unit in enumerate(units):
            for k in self._by_first.get(unit, ()):
                if units[i : i + len(self._phrases[k])] == self._phrases[k]:
                    found[k] = found.get(k, 0) + 1
        return found
