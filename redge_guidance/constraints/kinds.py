"""Constraints in words: choices, words that must or must not occur, lengths, beginnings and endings."""

from collections.abc import Iterable, Sequence
from typing import Any

from redge_guidance.checks import whole_number
from redge_guidance.constraints.choices import choices, prefix, suffix
from redge_guidance.constraints.constraint import Constraint
from redge_guidance.constraints.lengths import UNITS, length, length_of
from redge_guidance.constraints.machine import MOST_STATES, Machine
from redge_guidance.constraints.occurrences import occurrences
from redge_guidance.constraints.token_automaton import TokenAutomaton, token_length
from redge_guidance.constraints.tokens import token_bytes
from redge_guidance.constraints.words import Phrases, weights_of_words, without_repetition

_UNITS = (*UNITS, "tokens")


class ChoiceConstraint(Constraint):
    """Texts that are one of some, to the letter.

    Args:
        choices: at least one.
        answer_only, most_states: as for `RegexConstraint`.

    Raises:
        ValueError: none, or what is no text.
    """

    def __init__(self, choices: Iterable[str], *, answer_only: bool | None = None, most_states: int = MOST_STATES):
        self.choices = _texts("choices", choices)
        self.answer_only, self.most_states = answer_only, whole_number("most_states", most_states, 1)
        _ = self.machine

    def build(self) -> Machine:
        return choices(self.choices, most=self.most_states)

    def accepts(self, texts: Sequence[str]) -> list[bool]:
        return [text in self.choices for text in texts]


class WordConstraint(Constraint):
    """Texts in which words or phrases occur, or do not.

    Words are found whole, in either normal form and, unless the case matters, in any case, as by `LexicalReward`:
    "cat" is in "the cat's", not in "cats". In scripts without spaces (Chinese, Japanese, Thai) they are found wherever
    their characters stand.

    Args:
        wanted: a word or phrase, or several; all of them occur, in any order.
        banned: a word or phrase, or several, of which none occurs.
        at_least, at_most: how often each of `wanted` occurs; None: as often as may be.
        case_sensitive: "Will" is not "will".
        answer_only, most_states: as for `RegexConstraint`.

    Raises:
        ValueError: no word, one without any sign, one that is both wanted and banned, or an impossible number.
    """

    def __init__(
        self,
        wanted: str | Iterable[str] = (),
        banned: str | Iterable[str] = (),
        *,
        at_least: int = 1,
        at_most: int | None = None,
        case_sensitive: bool = False,
        answer_only: bool | None = None,
        most_states: int = MOST_STATES,
    ):
        weights = without_repetition(
            weights_of_words(wanted, "wanted"), weights_of_words(banned, "banned"), case_sensitive
        )
        if not weights:
            raise ValueError("`wanted` or `banned` must name a word, got none.")
        self.at_least = whole_number("at_least", at_least, 0)
        self.at_most = None if at_most is None else whole_number("at_most", at_most, 0)
        if self.at_most is not None and self.at_most < self.at_least:
            raise ValueError(f"`at_most` must be >= `at_least`, {self.at_least}, got {self.at_most}.")
        self.wanted = tuple(word for word, weight in weights.items() if weight > 0)
        self.banned = tuple(word for word, weight in weights.items() if weight < 0)
        self.case_sensitive, self.answer_only = case_sensitive, answer_only
        self.most_states = whole_number("most_states", most_states, 1)
        self._phrases = Phrases([*self.wanted, *self.banned], case_sensitive)
        _ = self.machine

    def build(self) -> Machine:
        bounds = dict.fromkeys(self.wanted, (self.at_least, self.at_most)) | dict.fromkeys(self.banned, (0, 0))
        return occurrences(bounds, case_sensitive=self.case_sensitive, most=self.most_states)

    def accepts(self, texts: Sequence[str]) -> list[bool]:
        low, high = self.at_least, float("inf") if self.at_most is None else self.at_most
        found = [self._phrases.found(text) for text in texts]
        return [
            all(low <= counts.get(k, 0) <= high for k in range(len(self.wanted)))
            and not any(counts.get(k, 0) for k in range(len(self.wanted), len(self.wanted) + len(self.banned)))
            for counts in found
        ]


class LengthConstraint(Constraint):
    """Texts of a length.

    Args:
        minimum: >= 0.
        maximum: >= minimum; None: no limit.
        unit: `"words"`, which are what white space separates; `"characters"`, as a reader counts them (grapheme
            clusters of Unicode); or `"tokens"`, those that are drawn before the end, of which a text does not tell.
        answer_only, most_states: as for `RegexConstraint`.

    Raises:
        ValueError: no limit, an impossible range or an unknown unit.
    """

    def __init__(
        self,
        minimum: int = 0,
        maximum: int | None = None,
        unit: str = "words",
        *,
        answer_only: bool | None = None,
        most_states: int = MOST_STATES,
    ):
        self.minimum = whole_number("minimum", minimum, 0)
        self.maximum = None if maximum is None else whole_number("maximum", maximum, 0)
        if self.maximum is not None and self.maximum < self.minimum:
            raise ValueError(f"`maximum` must be >= `minimum`, {self.minimum}, got {self.maximum}.")
        if self.minimum == 0 and self.maximum is None:
            raise ValueError("`minimum` or `maximum` must be given, got 0 and None, which any text satisfies.")
        if unit not in _UNITS:
            raise ValueError(f"`unit` must be one of {', '.join(_UNITS)}, got {unit!r}.")
        self.unit, self.answer_only = unit, answer_only
        self.most_states = whole_number("most_states", most_states, 1)

    @property
    def over_tokens(self) -> bool:
        return self.unit == "tokens"

    def build(self) -> Machine:
        return length(self.minimum, self.maximum, self.unit, most=self.most_states)

    def compiled(self, tokenizer: Any, vocabulary: int, ends: Sequence[int]) -> TokenAutomaton:
        if not self.over_tokens:
            return super().compiled(tokenizer, vocabulary, ends)
        written = [i for i, part in enumerate(token_bytes(tokenizer)[1][:vocabulary]) if part and i not in ends]
        return token_length(self.minimum, self.maximum, vocabulary, ends, written)

    def accepts(self, texts: Sequence[str]) -> list[bool] | None:
        if self.over_tokens:
            return None
        high = float("inf") if self.maximum is None else self.maximum
        return [self.minimum <= length_of(text, self.unit) <= high for text in texts]


class PrefixConstraint(Constraint):
    """Texts that begin with one, `text.startswith(prefix)`, to the letter.

    Args:
        prefix: at least one character.
        answer_only, most_states: as for `RegexConstraint`.
    """

    def __init__(self, prefix: str, *, answer_only: bool | None = None, most_states: int = MOST_STATES):
        (self.prefix,) = _texts("prefix", [prefix])
        self.answer_only, self.most_states = answer_only, whole_number("most_states", most_states, 1)

    def build(self) -> Machine:
        return prefix(self.prefix, most=self.most_states)

    def accepts(self, texts: Sequence[str]) -> list[bool]:
        return [text.startswith(self.prefix) for text in texts]


class SuffixConstraint(Constraint):
    """Texts that end with one, `text.endswith(suffix)`, to the letter.

    Args:
        suffix: at least one character.
        answer_only, most_states: as for `RegexConstraint`.
    """

    def __init__(self, suffix: str, *, answer_only: bool | None = None, most_states: int = MOST_STATES):
        (self.suffix,) = _texts("suffix", [suffix])
        self.answer_only, self.most_states = answer_only, whole_number("most_states", most_states, 1)

    def build(self) -> Machine:
        return suffix(self.suffix, most=self.most_states)

    def accepts(self, texts: Sequence[str]) -> list[bool]:
        return [text.endswith(self.suffix) for text in texts]


def _texts(argument: str, texts: Iterable[str]) -> tuple[str, ...]:
    """Distinct texts, each of at least a character.

    Raises:
        ValueError: none, or something else among them; `argument` says what.
    """
    found = [texts] if isinstance(texts, str) else list(texts)
    wrong = [one for one in found if not isinstance(one, str) or not one]
    if wrong or not found:
        got = repr(wrong[0]) if wrong else "none"
        raise ValueError(f"`{argument}` must be text, at least one character, got {got}.")
    return tuple(dict.fromkeys(found))
