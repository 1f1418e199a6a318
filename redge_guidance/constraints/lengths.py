"""Automata of texts by their length."""

import functools
import sys
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import regex
from numpy.typing import NDArray

from redge_guidance.constraints.alphabet import END_OF_UNICODE, Alphabet
from redge_guidance.constraints.machine import DEAD, MOST_STATES, Machine, TooManyStatesError

UNITS = ("words", "characters")
_CHARACTER = regex.compile(r"\X")


class Counter(NamedTuple):
    """An automaton that counts: of each state and class the next state, and how much is added to the count on the way.

    Attributes:
        alphabet: what the columns stand for.
        table, adds: `(states, classes)`; state 0 is the first, and nothing leads back to it.
    """

    alphabet: Alphabet
    table: NDArray[np.int32]
    adds: NDArray[np.int32]


def length_of(text: str, unit: str) -> int:
    """Words, as `str.split()` counts them, or characters, grapheme clusters of Unicode (UAX 29).

    >>> length_of("a  cafe\u0301", "words"), length_of("cafe\u0301", "characters")
    (2, 4)
    """
    return len(text.split()) if unit == "words" else len(_CHARACTER.findall(text))


def length(minimum: int, maximum: int | None, unit: str, *, most: int = MOST_STATES) -> Machine:
    """Texts of `minimum` to `maximum` words or characters.

    Args:
        minimum: >= 0.
        maximum: >= minimum; None: no limit.
        unit: `"words"`, what `str.split()` counts, or `"characters"`, extended grapheme clusters of Unicode (UAX 29),
            what `regex.findall(r"\\X", text)` counts.
        most: states.

    Raises:
        ValueError: an impossible range or an unknown unit.
        TooManyStatesError: more than `most` states: two for a word, at most 14 for a character.

    >>> machine = length(2, 3, "words")
    >>> [machine.accepts(text) for text in ("one", " one  two ", "1 2 3", "1 2 3 4")]
    [False, True, True, False]
    """
    low, high = _checked(minimum, maximum, unit)
    top = low if high is None else high
    machine = _counting(unit, top, most, saturates=high is None)
    return Machine(machine.alphabet, machine.table, machine.values[:, 0] >= low, machine.values[:, :0])


def distance_to_length(
    minimum: int, maximum: int | None, unit: str, *, longest: int | None = None, most: int = MOST_STATES
) -> Machine:
    """Every text, of the value `-(how far its length is from [minimum, maximum])`, `values` being `(states, 1)`.

    Args:
        minimum, maximum, unit, most: as for `length`.
        longest: longer texts have the value of a text of this length; None: of one that is too long by
            `max(maximum, 100)`. Where there is no maximum there is no such limit.

    Raises:
        ValueError: as for `length`, and `longest` < `maximum`.
        TooManyStatesError: more than `most` states.

    >>> machine = distance_to_length(2, 3, "words")
    >>> [machine.values[machine.after(text)].item() for text in ("", "1 2", "1 2 3 4 5")]
    [-2.0, 0.0, -2.0]
    """
    low, high = _checked(minimum, maximum, unit)
    if high is not None and longest is not None and longest < high:
        raise ValueError(f"`longest` must be >= `maximum`, {high}, got {longest}; or None.")
    top = low if high is None else high + max(high, 100) if longest is None else longest
    machine = _counting(unit, top, most, saturates=True)
    lengths = machine.values
    over = 0.0 if high is None else np.maximum(lengths - high, 0)
    values = 0.0 - np.maximum(low - lengths, 0) - over
    return Machine(machine.alphabet, machine.table, machine.accepting, values)


def _checked(minimum: int, maximum: int | None, unit: str) -> tuple[int, int | None]:
    if unit not in UNITS:
        raise ValueError(f"`unit` must be one of {', '.join(UNITS)}, got {unit!r}.")
    whole = all(isinstance(n, int) for n in (minimum, 0 if maximum is None else maximum))
    if not whole or minimum < 0 or (maximum is not None and maximum < minimum):
        raise ValueError(
            f"`minimum` and `maximum` must be whole numbers, 0 <= minimum <= maximum, got {minimum}, {maximum}."
        )
    return minimum, maximum


def _counting(unit: str, top: int, most: int, saturates: bool) -> Machine:
    """Counts up to `top`, as `values`: `(states, 1)`; more than that is `top` too, or leads nowhere."""
    counter = _words() if unit == "words" else _characters()
    states = len(counter.table)
    if 1 + states * (top + 1) > most + 2 * states:  # the first count and the last one have fewer
        raise TooManyStatesError(most)
    counts = np.arange(top + 1)[:, None, None] + counter.adds
    table = counts * states + counter.table
    if saturates:  # one state for all that follows
        table = np.where(counts >= top, top * states, table)
        table[top] = top * states
    else:
        table = np.where(counts > top, DEAD, table)
    table = table.reshape(-1, table.shape[-1])
    values = np.repeat(np.arange(top + 1, dtype=np.float64), states)[:, None]
    return _reachable(counter.alphabet, table, values)


def _reachable(alphabet: Alphabet, table: NDArray[np.int64], values: NDArray[np.float64]) -> Machine:
    reached, waiting = {0: 0}, [0]
    for state in waiting:  # grows as it goes
        for after in dict.fromkeys(table[state].tolist()):
            if after != DEAD and after not in reached:
                reached[after] = len(reached)
                waiting.append(after)
    rank = np.full(len(table) + 1, DEAD, dtype=np.int32)  # the last one for DEAD itself
    rank[waiting] = np.arange(len(waiting))
    columns, classes = np.unique(rank[table[waiting]], axis=1, return_inverse=True)
    return Machine(
        alphabet.merged(classes.reshape(-1)),
        np.ascontiguousarray(columns),
        np.ones(len(waiting), dtype=bool),
        values[waiting],
    )


@functools.lru_cache(maxsize=1)
def _words() -> Counter:
    """Outside of a word and in one."""
    space = [(point, point) for point in range(sys.maxunicode + 1) if chr(point).isspace()]
    alphabet, has = Alphabet.of_sets([space])
    letter = (~has[0]).astype(np.int32)
    return Counter(alphabet, np.stack([letter, letter]), np.stack([letter, np.zeros_like(letter)]))


_CLUSTER = ["CR", "LF", "Control", "Extend", "ZWJ", "Regional_Indicator", "Prepend", "SpacingMark"]
_CLUSTER += ["L", "V", "T", "LV", "LVT"]
_CONJUNCT = ["Linker", "Extend", "Consonant"]


class _Last(NamedTuple):
    """What the rules look back at: the last character's class, whether it is half a flag, and two kinds of chains."""

    cluster: str
    picture: bool = False  # a pictograph and what extends it; with ZWJ as the class: and a joiner
    linker: bool = False  # a virama and what extends it

    def goes_on(self, cluster: str, picture: bool, conjunct: str) -> bool:
        """Whether a character of these classes is of the same grapheme cluster: rules GB3 to GB13."""
        if "start" in (self.cluster, cluster):
            return False
        if {self.cluster, cluster} & {"CR", "LF", "Control"}:
            return (self.cluster, cluster) == ("CR", "LF")
        hangul = {"L": ("L", "V", "LV", "LVT"), "V": ("V", "T"), "LV": ("V", "T"), "T": ("T",), "LVT": ("T",)}
        if cluster in hangul.get(self.cluster, ()) or cluster in ("Extend", "ZWJ", "SpacingMark"):
            return True
        if self.cluster == "Prepend" or (conjunct == "Consonant" and self.linker):
            return True
        if picture and self.picture and self.cluster == "ZWJ":
            return True
        return cluster == self.cluster == "Regional_Indicator"

    def after(self, cluster: str, picture: bool, conjunct: str) -> "_Last":
        """The same after one more character."""
        pictures = picture or (self.picture and self.cluster != "ZWJ" and cluster in ("Extend", "ZWJ"))
        linker = conjunct == "Linker" or (self.linker and conjunct == "Extend")
        if cluster == self.cluster == "Regional_Indicator":
            cluster = ""  # a whole flag
        return _Last({"LF": "Control", "LV": "V", "LVT": "T"}.get(cluster, cluster), pictures, linker)


@functools.lru_cache(maxsize=1)
def _characters() -> Counter:
    """The rules of extended grapheme clusters, over the classes that they are about."""
    sets = [rf"\p{{GCB={name}}}" for name in _CLUSTER]
    sets += [r"\p{Extended_Pictographic}", *(rf"\p{{InCB={name}}}" for name in _CONJUNCT)]
    text = "".join(map(chr, range(END_OF_UNICODE)))
    ranges = [[(m.start(), m.end() - 1) for m in regex.finditer(f"{one}+", text)] for one in sets]
    alphabet, has = Alphabet.of_sets(ranges)

    def only(names: Sequence[str], flags: NDArray[np.bool_]) -> str:
        return next((name for name, flag in zip(names, flags, strict=True) if flag), "")

    n = len(_CLUSTER)
    kinds = [(only(_CLUSTER, c[:n]), bool(c[n]), only(_CONJUNCT, c[n + 1 :])) for c in has.T]
    number, waiting = {_Last("start"): 0}, [_Last("start")]
    table, adds = [], []
    for last in waiting:  # grows as it goes
        row = [last.after(*kind) for kind in kinds]
        for after in row:
            if after not in number:
                number[after] = len(number)
                waiting.append(after)
        table.append([number[after] for after in row])
        adds.append([not last.goes_on(*kind) for kind in kinds])
    return _smallest(Counter(alphabet, np.array(table, dtype=np.int32), np.array(adds, dtype=np.int32)))


def _smallest(counter: Counter) -> Counter:
    """Without states that count alike whatever follows."""
    part, count = np.zeros(len(counter.table), dtype=np.int64), 0
    while True:
        rows = np.column_stack([part, counter.adds, part[counter.table]])
        _, first, part = np.unique(rows, axis=0, return_index=True, return_inverse=True)
        part = part.reshape(-1)
        if len(first) == count:
            break
        count = len(first)
    order = np.argsort(np.argsort(first))  # the first one stays the first
    table = order[part][counter.table[np.sort(first)]]
    return Counter(counter.alphabet, table.astype(np.int32), counter.adds[np.sort(first)])
