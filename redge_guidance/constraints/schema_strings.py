"""Regular expressions of JSON strings: of some length, of a pattern, of a format."""

import re
import sys
import warnings
from typing import Any

if sys.version_info >= (3, 11):  # how `re` itself reads a pattern, which is how `jsonschema` judges it
    from re import _constants as codes  # type: ignore[attr-defined]
    from re import _parser as parser  # type: ignore[attr-defined]
else:
    import sre_constants as codes
    import sre_parse as parser

_NOT_BARE = r'"\\\x00-\x1f\x7f-\x9f\ud800-\udfff'  # what a string of ours has no character of, as itself
_ESCAPES = {'"': '"', "\\": r"\\", "/": "/", "\b": "b", "\f": "f", "\n": "n", "\r": "r", "\t": "t"}
CHARACTER = rf'(?:[^{_NOT_BARE}]|\\["\\/bfnrt])'
_ONCE = {codes.IN, codes.LITERAL, codes.NOT_LITERAL, codes.ANY}

_LEAP = "(?:0[48]|[2468][048]|[13579][26])"
_YEAR = "(?:[0-9]{3}[1-9]|[0-9]{2}[1-9]0|[0-9][1-9]00|[1-9]000)"
_DAY = (
    f"(?:{_YEAR}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)"
    f"|02-(?:0[1-9]|1[0-9]|2[0-8]))|(?:[0-9]{{2}}{_LEAP}|{_LEAP}00)-02-29)"
)
_CLOCK = "(?:[01][0-9]|2[0-3]):[0-5][0-9]"
_TIME = rf"{_CLOCK}:[0-5][0-9](?:\.[0-9]{{1,6}})?(?:Z|[+-]{_CLOCK})"
_OCTET = "(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_LABEL = "[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?"

FORMATS = {
    "date": _DAY,
    "time": _TIME,
    "date-time": f"{_DAY}T{_TIME}",
    "uuid": "[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}",
    "email": rf"[A-Za-z0-9_]+(?:[.+-][A-Za-z0-9_]+)*@(?:{_LABEL}\.)+[A-Za-z]{{2,}}",
    "ipv4": rf"{_OCTET}(?:\.{_OCTET}){{3}}",
}


def string_of(low: int, high: int | None) -> str:
    """A JSON string of low to high characters, an escape being one."""
    count = "*" if (low, high) == (0, None) else f"{{{low},{'' if high is None else high}}}"
    return f'"{CHARACTER}{count}"'


def string_of_format(name: str, low: int, high: int | None) -> str:
    """A JSON string of one of `FORMATS`.

    Raises:
        ValueError: it may have fewer than `low` characters, or more than `high`; what would do.
    """
    _check_width(parser.parse(FORMATS[name]), low, high, "the format")
    return f'"{FORMATS[name]}"'


def string_matching(pattern: str, low: int, high: int | None) -> str:
    """A JSON string in which `re.search` finds `pattern`, of low to high characters.

    Characters outside the pattern's match may be any; anchors `^` and `$` stand at the beginning and the end of it, or
    of an alternative.

    Raises:
        ValueError: not a pattern, not one that is supported, or one that does not settle the length; why.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of sets that a later Python may read as differences
            tree = parser.parse(pattern)
    except re.error as error:
        raise ValueError(f"it is not a regular expression of Python's `re`: {error}") from None
    if tree.state.flags & ~re.UNICODE.value:
        raise ValueError("flags are not supported; write out what they stand for")
    items = list(tree)
    if low or high is not None:
        if [item[1] for item in items[:1] + items[-1:] if item[0] is codes.AT] not in _WHOLE:
            raise ValueError("without `^` and `$` it says nothing about the length; anchor it, and count in it")
        inner = items[1:-1]
        if len(inner) == 1 and inner[0][0] in (codes.MAX_REPEAT, codes.MIN_REPEAT):
            inner = [_counted(inner[0], low, high)]
        _check_width(parser.SubPattern(tree.state, inner), low, high, "the pattern")
        items = [items[0], *inner, items[-1]]
    return f'"{_sequence(items, True, True)}"'


_WHOLE = [
    [first, last]
    for first in (codes.AT_BEGINNING, codes.AT_BEGINNING_STRING)
    for last in (codes.AT_END, codes.AT_END_STRING)
]


def _counted(item: Any, low: int, high: int | None) -> Any:
    """One character of a kind, repeated, as often as the length allows."""
    least, most, what = item[1]
    if len(what) != 1 or what[0][0] not in _ONCE:
        return item
    least, most = max(least, low), most if high is None else min(most, high)
    if least > most:
        raise ValueError("no text of it has the length that is asked for")
    return item[0], (least, most, what)


def _check_width(tree: Any, low: int, high: int | None, what: str) -> None:
    shortest, longest = tree.getwidth()
    if shortest < low or (high is not None and longest > high):
        raise ValueError(
            f"{what} allows {shortest} to {'any number of' if longest >= codes.MAXREPEAT else longest} characters and "
            f"the lengths {low} to {'any' if high is None else high}; write the length into a pattern, `^[a-z]{{3,8}}$`"
        )


def _sequence(items: list[Any], head: bool, tail: bool) -> str:
    """What follows one another; `head`: anything may stand before unless it says `^`, `tail`: after, unless `$`."""
    items = list(items)
    before = after = ""
    if head and items and items[0] in _AT_BEGINNING:
        items, head = items[1:], False
    if tail and items and items[-1] in _AT_END:
        items, tail = items[:-1], False
    if head and not (items and items[0][0] in _NESTED):
        before, head = f"{CHARACTER}*", False
    if tail and not (items and items[-1][0] in _NESTED):
        after, tail = f"{CHARACTER}*", False
    last = len(items) - 1
    return before + "".join(_item(one, head and i == 0, tail and i == last) for i, one in enumerate(items)) + after


_AT_BEGINNING = [(codes.AT, codes.AT_BEGINNING), (codes.AT, codes.AT_BEGINNING_STRING)]
_AT_END = [(codes.AT, codes.AT_END), (codes.AT, codes.AT_END_STRING)]
_NESTED = {codes.BRANCH, codes.SUBPATTERN}


def _item(item: Any, head: bool, tail: bool) -> str:
    code, argument = item
    if code is codes.BRANCH:
        return f"(?:{'|'.join(_sequence(one, head, tail) for one in argument[1])})"
    if code is codes.SUBPATTERN:
        if argument[1] or argument[2]:
            raise ValueError("flags are not supported; write out what they stand for")
        return f"(?:{_sequence(argument[3], head, tail)})"
    if code in (codes.MAX_REPEAT, codes.MIN_REPEAT):
        least, most, what = argument
        count = f"{{{least},{'' if most >= codes.MAXREPEAT else most}}}"
        return f"(?:{_sequence(what, False, False)}){count}"
    if code in (codes.LITERAL, codes.IN):
        return _one_of(argument if code is codes.IN else [item])
    if code is codes.NOT_LITERAL:
        return _one_of([(codes.NEGATE, None), (codes.LITERAL, argument)])
    if code is codes.ANY:
        return _one_of([(codes.NEGATE, None), (codes.LITERAL, ord("\n"))])
    if code is codes.AT:
        raise ValueError("anchors are supported at the beginning and the end of the pattern or of an alternative only")
    raise ValueError(f"{_NAMES.get(code, 'what `re` calls ' + str(code).lower())} is not supported; write it without")


_NAMES = {
    codes.GROUPREF: "a backreference",
    codes.ASSERT: "a lookaround",
    codes.ASSERT_NOT: "a lookaround",
    codes.GROUPREF_EXISTS: "a conditional",
}


def _one_of(members: list[Any]) -> str:
    """One character of a set of `re`, as itself or as an escape."""
    negated = members[0][0] is codes.NEGATE
    if len(members) == 1 and members[0][0] is codes.LITERAL and _bare(*members[0]):
        return _bare(*members[0])
    members = members[negated:]
    inner = "".join(_member(*one) for one in members)
    escapes = "".join(
        escape for sign, escape in _ESCAPES.items() if re.fullmatch(f"[{'^' * negated}{inner}]", sign) is not None
    )
    if negated:
        bare = [f"[^{inner}{_NOT_BARE}]"]
    else:
        without = [what for code, what in members if code is codes.CATEGORY and what in _COMPLEMENTS]
        positive = "".join(_bare(*one) for one in members)
        bare = [f"[{positive}]"] * bool(positive) + [f"[^{_COMPLEMENTS[one]}{_NOT_BARE}]" for one in without]
    pieces = bare + [rf"\\[{escapes}]"] * bool(escapes)
    if not pieces:
        raise ValueError(f"no string here has a character of [{inner}], which JSON writes by its number")
    return pieces[0] if len(pieces) == 1 else f"(?:{'|'.join(pieces)})"


def _member(code: Any, argument: Any) -> str:
    if code is codes.LITERAL:
        return re.escape(chr(argument))
    if code is codes.RANGE:
        return f"{re.escape(chr(argument[0]))}-{re.escape(chr(argument[1]))}"
    return _CATEGORIES[argument]


def _bare(code: Any, argument: Any) -> str:
    """Inside a set, what of a member a string has as itself."""
    if code is codes.CATEGORY:
        if argument in _COMPLEMENTS:
            return ""
        return _SPACES if argument is codes.CATEGORY_SPACE else _CATEGORIES[argument]
    first, last = argument if code is codes.RANGE else (argument, argument)
    pieces = [(max(first, a), min(last, b)) for a, b in _BARE if max(first, a) <= min(last, b)]
    return "".join(_member(codes.LITERAL, a) if a == b else _member(codes.RANGE, (a, b)) for a, b in pieces)


_BARE = [(0x20, 0x21), (0x23, 0x5B), (0x5D, 0x7E), (0xA0, 0xD7FF), (0xE000, 0x10FFFF)]
_SPACES = r" \xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
_COMPLEMENTS = {
    codes.CATEGORY_NOT_DIGIT: r"\d",
    codes.CATEGORY_NOT_SPACE: r"\s",
    codes.CATEGORY_NOT_WORD: r"\w",
}
_CATEGORIES = {
    codes.CATEGORY_DIGIT: r"\d",
    codes.CATEGORY_NOT_DIGIT: r"\D",
    codes.CATEGORY_SPACE: r"\s",
    codes.CATEGORY_NOT_SPACE: r"\S",
    codes.CATEGORY_WORD: r"\w",
    codes.CATEGORY_NOT_WORD: r"\W",
}
