"""Texts of a regular expression, drawn at random from the tree that `re` parses it to."""

import sys
from functools import lru_cache

if sys.version_info >= (3, 11):
    from re import _constants as codes
    from re import _parser as parser
else:
    import sre_constants as codes
    import sre_parse as parser

SIGNS = "aZq09 _-.,:/#'\"\\{}[]~é中ß\U0001f600\x7f\n"


def drawn(pattern, generator, more=2):
    """One text; open repeats go at most `more` beyond their least."""
    return _sequence(_parsed(pattern), generator, more)


@lru_cache(maxsize=1)
def _parsed(pattern):
    return parser.parse(pattern)


def _sequence(items, generator, more):
    return "".join(_item(code, argument, generator, more) for code, argument in items)


def _item(code, argument, generator, more):
    if code is codes.LITERAL:
        return chr(argument)
    if code is codes.IN:
        return _one_of(argument, generator)
    if code is codes.BRANCH:
        return _sequence(generator.choice(argument[1]), generator, more)
    if code is codes.SUBPATTERN:
        return _sequence(argument[3], generator, more)
    assert code is codes.MAX_REPEAT, code
    least, most, what = argument
    times = generator.choice([least, min(most, least + more), generator.randint(least, min(most, least + more))])
    return "".join(_sequence(what, generator, more) for _ in range(times))


def _one_of(members, generator):
    if members[0][0] is codes.NEGATE:
        return generator.choice([sign for sign in SIGNS if not _has(members[1:], sign)])
    code, argument = generator.choice(members)
    if code is codes.LITERAL:
        return chr(argument)
    if code is codes.RANGE:
        return chr(generator.choice([*argument, generator.randint(*argument)]))
    return generator.choice([sign for sign in SIGNS if _has([(code, argument)], sign)])


def _has(members, sign):
    def sign_is(category):
        name = str(category)
        what = {"DIGIT": sign.isdecimal(), "WORD": sign.isalnum() or sign == "_", "SPACE": sign.isspace()}
        return what[name.rpartition("_")[2]] != ("_NOT_" in name)

    return any(
        sign_is(argument)
        if code is codes.CATEGORY
        else ord(sign) == argument
        if code is codes.LITERAL
        else argument[0] <= ord(sign) <= argument[1]
        for code, argument in members
    )
