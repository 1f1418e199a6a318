"""Regular expressions as automata, judged by `re.fullmatch` on all short texts."""

import itertools
import random
import re
import sys
import time

import pytest

from redge_guidance.constraints import RegexConstraint, expression
from redge_guidance.constraints.expression import machine_of
from redge_guidance.constraints.expression_sets import points_of
from redge_guidance.constraints.machine import DEAD, Machine, TooManyStatesError

SIGNS = "ab\n1 _"
NASTY = "ßẞſsSKkKİiIıéÉe\u0301中😀\x85\u2028ǅµμ\u03bcςσΣ٣_ \n\udc80"

PATTERNS = [
    *("", "a", "ab", "a|b", "a|ab|", "(?:)", "()", "(a)(b)?", "(?P<name>a)b", "a||b", "[ab]", "[^ab]", "[a-b1]", "."),
    *(r"\d", r"\D*", r"\w+", r"\W", r"\s*", r"\S+", r"[\w\n]*", r"[^\W\d]+", r"[\d\D]", r"[^\d\D]", r"\n", r"\x61"),
    *("a*", "a+", "a?", "a*?b", "a+?", "a??", "a{2}", "a{1,3}", "a{,2}", "a{2,}", "a{2,3}?", "(?:ab){1,2}", "a{0}"),
    *("(?:a*)*", "(?:a|b*)*", "(?:a?){2,4}", "(?:|a)+b", "(?:a*?)*?b", "(?:(?:ab?)+1)*", "(?:a|ab)(?:1|b1)", "(a*)+"),
    *("^a", "a$", "^$", "a$\n", "a$\n?", "$", "a^b", r"\Aa", r"a\Z", r"a\Z\n", "$\n", "(?:a|$)*\n", "(?:a|^)+", "$^"),
    *("(?m)^a$", "(?m)a$\n^b", "(?m)(?:^a?\n?)*", "(?m)^$\n*", "(?m:a$)\nb", "(?m)$\n^", "a$$\n", "(?:$\n)*"),
    "(?:a$|b)\n*",
    *(r"\ba\b", r"\Ba", r"a\b b", r"\b", r"\B", r"a\B", r".*\bab\b.*", r"(?:\b.)*", r"(?:a\b|\b )+", r"\B\B "),
    r"(?a)\b.\b",
    *("(?s).a", "(?s:.)a.", "(?-s:.)", "(?i)A", "(?i:A)b", "(?i)[^A]", "(?x) a  b # c", "(?x:a b) ", "a(?#no)b"),
    "(?is)A.",
    *("(?!)", "a(?!)|b", "(?:(?!))*", "a(?=)b", "[^\x00-\U0010ffff]a|b", "a(?:b(?:1(?: _)?)?)?", "(?:a|b)*a(?:a|b)"),
    r"a\$|b\^|\.",
]
ATOMIC = [
    *("a*+", "a*+a", "a*+b", "a++b", "a?+a", "a{1,2}+a", "a{2}+a", "[ab]*+1", "(?:a)*+b", "(?i:A)*+a", "(?>a*)b?"),
    "a*+$\n",
    *("(?>ab|1)b", "(?>a)", "(?>a+b)", "(?>(?:ab){2})a", "(?:ab){2}+a", "(?:a*+b)*", "(?:a++|b)*", r"\w*+\b "),
    "(?>(a{1,2}))a",
    *("(?:a{0,2}+b?)*", "(?s).*+", "(?s).*+a", "(?>a|b)*", "(?>1a|1b)?b", "(?:[ab]?+a)+", r"(?>\ba|b)a"),
]
UNICODE = [
    *("(?i)s", "(?i)ß", "(?i)k", "(?i)K", "(?i)i", "(?i)İ", "(?i)ı", "(?i)é", "(?i)µ", "(?i)σ", "(?i)ǆ", "(?ai)k"),
    "(?ai)é",
    *("(?i)[a-z]+", "(?i)[^a-z]+", "(?i)[k-s]", "(?i)[^ſ]", "(?ai)[a-z]", r"(?i)[\W]", r"\w+", r"(?a)\w+", r"\W+"),
    r"(?a)\W+",
    *(r"\d", r"(?a)\d", r"(?a:\d)|\s", r"\s", r"(?a)\s", r"(?a)[\S]", ".", "(?s).", r"\b.", r"(?a)\b.", r".\b."),
    r"(?a).\B.",
    "é|.\u0301",
    *("(?i)(?-i:k)s", "(?a:(?u:\\w))", "(?i:[é-中])", "\U0001f600+", "[\u0300-\u036f]|e", "(?m)^.$", ".$."),
]


def texts(signs: str, longest: int) -> list[str]:
    return ["".join(text) for length in range(longest + 1) for text in itertools.product(signs, repeat=length)]


SHORT = texts(SIGNS, 5)


def accepts_all(machine: Machine, candidates: list[str]) -> list[bool]:
    """What `accepts` says of each; every text comes after its beginnings."""
    table, state = [*machine.table.tolist(), [DEAD] * machine.alphabet.size], {"": 0}
    label = {sign: int(machine.alphabet.classes_of(sign)[0]) for sign in set("".join(candidates))}
    for text in candidates[1:]:
        state[text] = table[state[text[:-1]]][label[text[-1]]]
    return [state[text] != DEAD and bool(machine.accepting[state[text]]) for text in candidates]


def judged(pattern: str, candidates: list[str], flags: int = 0) -> None:
    match, machine = re.compile(pattern, flags).fullmatch, machine_of(pattern, flags)
    accepted = accepts_all(machine, candidates)
    wrong = [text for text, accepts in zip(candidates, accepted, strict=True) if (match(text) is not None) != accepts]
    assert not wrong, (pattern, wrong[:5])


def test_every_construct_is_read_as_re_reads_it() -> None:
    for pattern in PATTERNS:
        judged(pattern, SHORT if any(sign in pattern for sign in "^$\\") else texts(SIGNS, 4))


@pytest.mark.skipif(sys.version_info < (3, 11), reason="possession is new in Python 3.11")
@pytest.mark.parametrize("pattern", ATOMIC)
def test_what_is_possessed_is_not_given_back(pattern: str) -> None:
    judged(pattern, texts("ab\n1 ", 5))


@pytest.mark.parametrize("pattern", UNICODE)
def test_letters_of_all_kinds(pattern: str) -> None:
    judged(pattern, texts(NASTY, 2))


@pytest.mark.parametrize("flags", [re.I, re.S, re.M, re.X, re.A, re.A | re.I, re.I | re.M | re.S, re.U, re.DEBUG])
def test_flags(flags: re.RegexFlag) -> None:
    for pattern in (r"^\w .$", "É|k", r"a$\s"):
        match, machine = re.compile(pattern, flags & ~re.DEBUG).fullmatch, machine_of(pattern, flags)
        for text in texts("akéÉK\n ", 4):
            assert machine.accepts(text) == (match(text) is not None), (pattern, text)


def test_a_compiled_pattern_has_its_flags() -> None:
    compiled = re.compile("k .", re.I | re.S | re.X)
    assert machine_of(compiled).equivalent(machine_of("(?isx)k ."))
    assert not machine_of(compiled).equivalent(machine_of("k ."))


@pytest.mark.parametrize("flags", [re.I, re.I | re.A])
def test_sets_without_case_have_exactly_what_re_says(flags: int) -> None:
    everything = "".join(map(chr, range(0x110000)))
    for sign in [*"aZkſßİıµςǅéՙᲀⴀꭰ𞤢中1_", "\u0345", "\u1e9e", "ᾳ", "ﬅ"]:
        for kind in ("LITERAL", "NOT_LITERAL"):
            negated = kind == "NOT_LITERAL"
            items = [("NEGATE", None)] * negated + [("LITERAL", ord(sign))]
            runs = re.finditer(f"[{'^' * negated}{sign}]+", everything, flags)
            assert points_of(items, flags) == tuple((run.start(), run.end() - 1) for run in runs), sign


def grown(draw: random.Random, depth: int) -> str:
    """A random expression."""
    atoms = ["a", "b", "1", ".", "[ab]", "[^a]", r"\w", r"\d", r"\W", r"\s", "^", "$", r"\b", r"\B", r"\A", r"\Z", ""]
    atoms += ["\n", "A"]
    if depth == 0 or draw.random() < 0.15:
        return draw.choice(atoms)
    inner = [grown(draw, depth - 1) for _ in range(draw.choice((1, 2, 2, 3)))]
    kind = draw.randrange(6)
    if kind < 2:
        return "".join(inner)
    if kind == 2:
        return f"(?:{'|'.join(inner)})"
    if kind == 3:
        return f"(?{draw.choice(('i', 's', 'm', 'a', 'im', '-i'))}:{inner[0]})"
    repeat = draw.choice(("*", "+", "?", "{2}", "{1,2}", "{0,3}", "{2,}", "*?", "+?", "??", "{1,3}?"))
    return f"(?:{inner[0]}){repeat}{''.join(inner[1:])}"


@pytest.mark.parametrize("seed", range(3))
def test_random_expressions(seed: int) -> None:
    draw, candidates = random.Random(seed), texts("ab\n1 ", 4)
    for _ in range(30):
        judged(grown(draw, 4), candidates, draw.choice((0, 0, re.I, re.M, re.S, re.A)))


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("a(?=b)", r"lookahead.*at position 1.*not supported"),
        ("a(?<=b)", r"lookbehind.*at position 1"),
        (r"\(?![(?!]a(?!b)", r"negative lookahead.*at position 10"),
        ("a(?<!b)", r"negative.*at position 1"),
        (r"(a)\1", r"backreference at position 3.*not regular"),
        (r"(a)(\\1)\101\1", r"backreference at position 12"),
        ("(?P<x>a)(?P=x)", r"backreference at position 8"),
        ("(a)?(?(1)b|c)", r"conditional.*at position 4.*alternatives"),
        ("(?x)a # (?=\n(?=a)", r"lookahead.*at position 12"),
        ("a(b", r"`pattern` is not a regular.*unterminated subpattern at position 1"),
        ("a**", r"multiple repeat at position 2"),
        ("[b-a]", r"bad character range b-a at position 1"),
        ("a{99999999999}", r"repetition number is too large"),
        ("(?i", r"position 3"),
        ("(" * 5000 + ")" * 5000, r"too many groups|not a regular expression"),
    ],
)
def test_what_is_no_regular_language_is_an_error(pattern: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"(?s)`pattern`.*{message}|{message}"):
        machine_of(pattern)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="possession is new in Python 3.11")
@pytest.mark.parametrize(("pattern", "at"), [("b(?>a|ab)c", 1), ("(?:ab)*+a", 6), ("(?:a|ab){2}+", 8)])
def test_possession_of_what_may_be_longer_is_an_error(pattern: str, at: int) -> None:
    with pytest.raises(ValueError, match=f"at position {at}.*is supported only"):
        machine_of(pattern)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((b"a",), "`pattern` must be a regular expression of text, got one of bytes"),
        ((re.compile(b"a"),), "got one of bytes"),
        ((None,), "got NoneType"),
        ((re.compile("a"), re.I), "`flags` are part of a compiled"),
        (("a", "i"), "`flags` must be flags of `re`"),
        (("a", re.L), "LOCALE"),
        (("a", re.A | re.U), "incompatible"),
    ],
)
def test_what_is_no_expression_is_an_error(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        machine_of(*arguments)


@pytest.mark.parametrize(
    ("pattern", "most", "count"),
    [
        ("(?:a|b)*a(?:a|b){20}", 500, "more than 500"),
        ("a{3000}", 3000, "at least 3001"),
        ("a{0,60}", 60, "61"),
        ("(?:a{0,3000}b?){0,3000}", 900, "more than 900"),
    ],
)
def test_too_many_states_are_an_error_that_counts_them(pattern: str, most: int, count: str) -> None:
    with pytest.raises(TooManyStatesError, match=f"needs {count} states.*limit is {most}.*raise `most_states`"):
        machine_of(pattern, most=most)


def test_as_many_states_as_the_limit_are_none_too_many() -> None:
    assert len(machine_of("a{0,60}", most=61).table) == 61


def test_large_expressions_are_quick() -> None:
    string = r'"(?:[^"\\\x00-\x1f]|\\["\\/bfnrt]|\\u[0-9a-fA-F]{4})*"'
    number = r"-?(?:0|[1-9]\d*)(?:\.\d+)?(?:e[+-]?\d+)?"
    kinds = (string, number, '"(?:positive|negative|neutral)"', '"[^"]{0,50}"')
    record = r"\{" + ", ".join(f'"the name of a field {i}": {kinds[i % 4]}' for i in range(20)) + r"\}"
    for pattern in (record, "long" * 500, r"\w{1,200}", r"(?s).{0,2000}", r"(?:\w{1,99} )+"):
        begin = time.process_time()
        machine_of(pattern)
        assert time.process_time() - begin < 5, pattern  # 0.3


def test_work_without_end_is_an_error(monkeypatch):
    """Of few states, each of a great many nodes: how a text is divided over counts inside counts."""
    pattern = r"(?:(?:\w{1,9} ?){0,9}\n?){0,9}"
    monkeypatch.setattr(expression, "_WORK", 1)
    with pytest.raises(ValueError, match="counts inside counts.*raise `most_states`"):
        RegexConstraint(pattern)
    with pytest.raises(ValueError, match="counts inside counts"):
        machine_of(rf"\b{pattern}")
    machine_of(r"[\w.]{1,99}@\w+(\.\w{1,20}){1,3}")
