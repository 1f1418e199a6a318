"""Automata of texts by the words and phrases in them."""

import unicodedata
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from redge_guidance.constraints.alphabet import Alphabet
from redge_guidance.constraints.machine import MOST_STATES, Machine
from redge_guidance.constraints.units import Place, Sign, signs, spelled_out
from redge_guidance.constraints.words import units_of

_IOTA, _IOTA_BELOW = "\u03b9", "\u0345"

Bounds = tuple[int, int | None]


def occurrences(bounds: Mapping[str, Bounds], *, case_sensitive: bool = False, most: int = MOST_STATES) -> Machine:
    """Texts in which every word or phrase occurs at least and at most so often, as `words.units_of` finds them.

    A wanted word has the bounds `(1, None)`, a banned one `(0, 0)`. Phrases may overlap: "a b a" is twice in
    "a b a b a". Texts of which this is not told are not accepted, whatever the bounds:

    - U+0345 (iota below) in front of another mark, which is not where Unicode's normal forms have it, unless the case
      matters;
    - a virama on a sign ("!", U+094D);
    - a skin tone without anything that has it, and then a zero width joiner, or a consonant of a script with conjuncts;
    - an apostrophe, full stop, comma or the like, and then a mark that does not combine with it.

    Args:
        bounds: from words, as `words.weights_of_words` takes them, to `(at_least, at_most)`; None: no limit.
        case_sensitive: "Will" is not "will".
        most: states before the automaton is made as small as it can be.

    Raises:
        ValueError: bounds that no number is in.
        TooManyStatesError: more than `most` states.

    >>> machine = occurrences({"New York": (1, None), "café": (0, 0)})
    >>> machine.accepts("in new  york!"), machine.accepts("a CAFE\\u0301 in New York"), machine.accepts("New Yorkers")
    (True, False, False)
    """
    merged: dict[tuple[str, ...], Bounds] = {}
    for word, (low, high) in bounds.items():
        units = units_of(word, case_sensitive)
        other_low, other_high = merged.get(units, (0, None))
        low, limits = max(low, other_low), [limit for limit in (high, other_high) if limit is not None]
        if limits and not 0 <= low <= min(limits):
            raise ValueError(f"`bounds` of {word!r} must be 0 <= at_least <= at_most, got {low} and {min(limits)}.")
        merged[units] = (low, min(limits, default=None))
    merged = {units: bound for units, bound in merged.items() if bound != (0, None)}
    reader = _Reader(list(merged), list(merged.values()), case_sensitive, guesses=False)

    def accepts(state: _State) -> bool:
        ended = reader.ended(state)
        return ended is not None and all(n >= low for n, (low, _) in zip(ended, merged.values(), strict=True))

    return Machine.explored(reader.alphabet, reader.first, reader.step, accepts, most=most)


def worth_of_words(
    weights: Mapping[str, float], *, count: int = 1, case_sensitive: bool = False, most: int = MOST_STATES
) -> Machine:
    """Every text, of the value `sum_w weight_w min(how often w occurs, count)`, `values` being `(states, 1)`.

    Where `occurrences` does not tell, a mark goes with its sign and stays where it is.

    Args:
        weights: of words, as `words.weights_of_words` takes them; spellings of one word add up.
        count: occurrences of a word that are counted, >= 1.
        case_sensitive, most: as for `occurrences`.

    Raises:
        TooManyStatesError: more than `most` states.

    >>> machine = worth_of_words({"cat": 1.0, "dog": -2.0})
    >>> [machine.values[machine.after(text)].item() for text in ("a cat, a cat", "cats", "CAT and dog")]
    [1.0, 0.0, -1.0]
    """
    merged: dict[tuple[str, ...], float] = {}
    for word, weight in weights.items():
        units = units_of(word, case_sensitive)
        merged[units] = merged.get(units, 0.0) + weight
    reader = _Reader(list(merged), [(count, None)] * len(merged), case_sensitive, guesses=True)

    def values(state: _State) -> list[float]:
        counts = reader.ended(state) or ()
        return [float(sum(n * weight for n, weight in zip(counts, merged.values(), strict=True)))]

    return Machine.explored(reader.alphabet, reader.first, reader.step, lambda state: True, values, most)


class _Partial(NamedTuple):
    """A phrase of which a part has been read: units before `unit`, of that one `segment` with some of its `marks`.

    A segment of -1: the unit has not begun. `marks` is a set of bits.
    """

    phrase: int
    unit: int
    segment: int
    marks: int


class _State(NamedTuple):
    place: Place
    iota: bool  # whether U+0345 came last, which folds to a letter
    partial: frozenset[_Partial]
    counts: tuple[int, ...]


_Symbol = tuple[int, str]  # number of the sign, and the character where a phrase has it


class _Reader:
    """Reads code points, decomposed and case folded, and keeps what phrases have occurred how often.

    Args:
        phrases: their units.
        bounds: how often each may occur; without an upper one it is counted up to the lower one.
        guesses: whether it goes on where it cannot know.
    """

    def __init__(
        self, phrases: Sequence[tuple[str, ...]], bounds: Sequence[Bounds], case_sensitive: bool, guesses: bool
    ):
        self.bounds, self.guesses = bounds, guesses
        self.phrases = [[_segments(unit) for unit in phrase] for phrase in phrases]
        self.signs, which = signs()
        self.folds = not case_sensitive
        letters = {sign for phrase in phrases for unit in phrase for sign in unicodedata.normalize("NFD", unit)}
        letters |= {_IOTA_BELOW, _IOTA} if self.folds else set()
        self._iota: _Symbol = (int(which[ord(_IOTA)]), _IOTA)
        symbols: dict[tuple[_Symbol, ...], int] = {((k, ""),): k for k in range(len(self.signs))}
        labels = which.copy()
        apart = {ord(letter): letter for letter in letters} | spelled_out(case_sensitive)
        for point, spelled in apart.items():
            word = tuple((int(which[ord(sign)]), sign if sign in letters else "") for sign in spelled)
            labels[point] = symbols.setdefault(self._shortened(word), len(symbols))
        used = np.flatnonzero(np.bincount(labels))  # every class has a code point
        labels = np.searchsorted(used, np.arange(len(symbols)))[labels]
        words = list(symbols)
        self.words = [words[k] for k in used.tolist()]
        starts = np.flatnonzero(np.diff(labels, prepend=-1))
        self.alphabet = Alphabet(starts, labels[starts])
        self.first = _State(Place(), False, frozenset(), (0,) * len(phrases))
        self._read: dict[tuple[_State, _Symbol], _State | None] = {}

    def _shortened(self, word: tuple[_Symbol, ...]) -> tuple[_Symbol, ...]:
        """Without marks that no phrase has: a letter with one is no letter of a phrase."""
        kept: list[_Symbol] = []
        for number, letter in word:
            sign = self.signs[number]
            if kept and sign.mark and not letter and sign.conjunct != "linker":
                kept[-1] = (kept[-1][0], "")
            else:
                kept.append((number, letter))
        return tuple(kept)

    def step(self, state: _State) -> list[_State | None]:
        """The states after a character of each class."""
        row: list[_State | None] = []
        for word in self.words:
            after: _State | None = state
            for symbol in word:
                after = None if after is None else self._after(after, symbol)
            row.append(after)
        return row

    def ended(self, state: _State) -> tuple[int, ...] | None:
        """How often each phrase occurs in a text that ends here; None: too often."""
        whole = self._unit_ends(state)
        return None if whole is None else whole[1]

    def _after(self, state: _State, symbol: _Symbol) -> _State | None:
        key = (state, symbol)
        if key not in self._read:
            self._read[key] = self._symbol(state, symbol)
        return self._read[key]

    def _symbol(self, state: _State, symbol: _Symbol) -> _State | None:
        if all(self._is_full(k, state.counts) for k in range(len(state.counts))):
            return state  # whatever follows
        if self.folds and symbol[1] == _IOTA_BELOW:
            after = self._plain(state, self._iota)
            return None if after is None else after._replace(iota=True)
        if state.iota and self.signs[symbol[0]].mark and not self.guesses:
            return None
        return self._plain(state, symbol)

    def _plain(self, state: _State, symbol: _Symbol) -> _State | None:
        sign = self.signs[symbol[0]]
        joins = state.place.joins(sign)
        if joins is None:
            if not self.guesses:
                return None
            joins = state.place.within == "sign" and sign.cluster != ""
        place, partial, counts = state.place.after(sign, joins), state.partial, state.counts
        if not joins:
            whole = self._unit_ends(state)
            if whole is None:
                return None
            partial, counts = whole
        if joins or sign.kind:
            if not joins:
                partial |= {_Partial(k, 0, -1, 0) for k in range(len(self.phrases))}
            reached = [self._further(one, symbol[1], sign) for one in partial]
            partial = frozenset(one for one in reached if one is not None and not self._is_full(one.phrase, counts))
        return _State(place, False, partial, counts)

    def _unit_ends(self, state: _State) -> tuple[frozenset[_Partial], tuple[int, ...]] | None:
        """What is waited for behind the unit, and how often each phrase has occurred; None: one too often."""
        counts, waiting = list(state.counts), set()
        for one in state.partial:
            units = self.phrases[one.phrase]
            if one.segment == -1:
                waiting.add(one)
            elif one.segment == len(units[one.unit]) - 1 and one.marks == _all_marks(units[one.unit][-1]):
                if one.unit < len(units) - 1:
                    waiting.add(_Partial(one.phrase, one.unit + 1, -1, 0))
                else:
                    counts[one.phrase] += 1
        for k, (_, high) in enumerate(self.bounds):
            if high is not None and counts[k] > high:
                return None
        new = tuple(counts)
        return frozenset(one for one in waiting if not self._is_full(one.phrase, new)), new

    def _is_full(self, phrase: int, counts: tuple[int, ...]) -> bool:
        low, high = self.bounds[phrase]
        return high is None and counts[phrase] >= low

    def _further(self, one: _Partial, letter: str, sign: Sign) -> _Partial | None:
        if not letter:
            return None
        segments = self.phrases[one.phrase][one.unit]
        marks = segments[max(one.segment, 0)][1]
        if sign.mark:
            left = [n for n in range(len(marks)) if not one.marks >> n & 1]
            of_class = [n for n in left if unicodedata.combining(marks[n]) == unicodedata.combining(letter)]
            if one.segment == -1 or not of_class or marks[of_class[0]] != letter:
                return None
            return one._replace(marks=one.marks | 1 << of_class[0])
        if one.segment >= 0 and one.marks != _all_marks(segments[one.segment]):
            return None
        if one.segment == len(segments) - 1 or segments[one.segment + 1][0] != letter:
            return None
        return one._replace(segment=one.segment + 1, marks=0)


_Segment = tuple[str, str]  # a character and the marks on it, in canonical order


def _segments(unit: str) -> list[_Segment]:
    """
    >>> _segments("e\\u0301te")
    [('e', '\\u0301'), ('t', ''), ('e', '')]
    """
    found: list[_Segment] = []
    for sign in unicodedata.normalize("NFD", unit):
        if found and unicodedata.combining(sign):
            found[-1] = (found[-1][0], found[-1][1] + sign)
        else:
            found.append((sign, ""))
    return found


def _all_marks(segment: _Segment) -> int:
    return (1 << len(segment[1])) - 1
