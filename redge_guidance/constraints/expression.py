"""Regular expressions as automata over characters: exactly the texts that `re.fullmatch` matches."""

import importlib
import re
import sys
from typing import Any

from redge_guidance.constraints.expression_graph import Graph, TooManyNodesError, UnsupportedError
from redge_guidance.constraints.expression_states import Subsets, TooMuchWorkError
from redge_guidance.constraints.machine import DEAD, MOST_STATES, Machine, TooManyStatesError

# The tree comes from `re`'s own parser: whoever judges the texts reads the expression in the same way.
_PARSER: Any = importlib.import_module("re._parser" if sys.version_info >= (3, 11) else "sre_parse")

_SLACK = 8  # a state met on the way may be equal to another one: the smallest automaton is what is limited
_NODES = 10  # of a graph, for each state of the limit
_WORK = 1000  # nodes of all states met, for each state of the limit: tens of seconds

_LOOKAROUND = "is not supported: a text is read once from left to right. Describe the whole text instead, or intersect"
_ATOMIC = (
    "is supported only around one character, or where no match is the beginning of a longer one. Write it without"
    " possession: for a text as a whole that is nearly always the same"
)
_CONSTRUCTS = {
    "ASSERT": ("a lookahead or lookbehind (`(?=...)`, `(?<=...)`)", _LOOKAROUND + " two constraints with `&`."),
    "ASSERT_NOT": ("a negative lookahead or lookbehind (`(?!...)`, `(?<!...)`)", _LOOKAROUND + " two constraints."),
    "GROUPREF": (
        "a backreference",
        "is not regular: no automaton remembers an arbitrary text. Write the possible texts out as alternatives.",
    ),
    "GROUPREF_EXISTS": (
        "a conditional (`(?(group)...)`)",
        "is not supported. Write the two cases out as alternatives.",
    ),
    "ATOMIC_GROUP": ("an atomic group (`(?>...)`)", f"{_ATOMIC}: `(?:...)`."),
    "POSSESSIVE_REPEAT": ("a possessive repeat (`*+`, `++`, `?+`, `{...}+`)", f"{_ATOMIC}."),
}
_SIGHT = {
    "ASSERT": r"\(\?<?=",
    "ASSERT_NOT": r"\(\?<?!(?!\))",
    "GROUPREF": r"\\(?![0-7]{3})[1-9][0-9]?|\(\?P=",
    "GROUPREF_EXISTS": r"\(\?\(",
    "ATOMIC_GROUP": r"\(\?>",
    "POSSESSIVE_REPEAT": r"(?:[*+?]|\{[0-9]*,?[0-9]*\})\+",
}
_OTHERWISE = r"\\[0-7]{3}|\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|\(\?#[^)]*\)"


def machine_of(pattern: str | re.Pattern[str], flags: int = 0, most: int = MOST_STATES) -> Machine:
    r"""The smallest automaton that accepts a text if and only if `re.fullmatch(pattern, text, flags)` matches it.

    Args:
        pattern: a regular expression of Python, for `str`, as text or compiled.
        flags: of `re`; those of a compiled expression are its own.
        most: limit of the number of states.

    Raises:
        ValueError: an invalid expression; one of bytes; lookaround, backreferences and conditionals; atomic groups
            and possessive repeats that would have to forget a match.
        TooManyStatesError: the automaton would have more than `most` states.

    >>> date = machine_of(r"\d{4}-\d{2}(-\d{2})?")
    >>> date.accepts("2024-06"), date.accepts("2024-6"), date.shortest()
    (True, False, 7)
    """
    source, flags = _checked(pattern, flags)
    tree, flags = _parsed(source, flags)
    least = int(tree.getwidth()[0])
    if least >= most:
        raise _too_large(source, most, f"at least {least + 1}")
    try:
        graph = Graph.of_tree(tree, flags, _NODES * max(most, MOST_STATES), _is_code)
        machine = Subsets(graph, _WORK * max(most, MOST_STATES)).machine(_SLACK * most)
    except UnsupportedError as error:
        raise ValueError(_unsupported(error.construct, source, flags)) from None
    except (TooManyStatesError, TooManyNodesError):
        raise _too_large(source, most, f"more than {most}") from None
    except TooMuchWorkError:
        raise TooManyStatesError(
            most,
            f"`pattern` has too many ways to read a text, by counts inside counts: {_shown(source)}. Make it simpler"
            " (`+` or `*` for a count whose limit does not matter), or raise `most_states`.",
        ) from None
    if len(machine.table) > most:
        raise _too_large(source, most, str(len(machine.table)))
    return machine


def _checked(pattern: Any, flags: Any) -> tuple[str, int]:
    if isinstance(pattern, re.Pattern):
        if flags:
            raise ValueError("`flags` are part of a compiled `pattern`: leave them out, or give the pattern as text.")
        pattern, flags = pattern.pattern, pattern.flags
    if isinstance(flags, bool) or not isinstance(flags, int):
        raise ValueError(f"`flags` must be flags of `re`, as re.IGNORECASE is, got {flags!r}.")
    if not isinstance(pattern, str):
        what = "one of bytes" if isinstance(pattern, bytes) else f"{type(pattern).__name__}"
        raise ValueError(
            f"`pattern` must be a regular expression of text, got {what}: {pattern!r}. Give a `str`, or what"
            " `re.compile` makes of one."
        )
    return pattern, int(flags) & ~re.DEBUG


def _parsed(source: str, flags: int) -> tuple[Any, int]:
    try:
        tree = _PARSER.parse(source, flags)
    except re.error as error:
        raise ValueError(
            f"`pattern` is not a regular expression of Python: {error}, in {_shown(source)}. A sign that is meant as"
            " itself is written with a backslash, or by `re.escape`."
        ) from None
    except (ValueError, OverflowError) as error:
        raise ValueError(f"`pattern` or `flags` are not what `re` takes: {error}, in {_shown(source)}.") from None
    except RecursionError:
        raise ValueError(f"`pattern` has too many groups inside groups: {_shown(source)}.") from None
    return tree, int(tree.state.flags)


def _is_code(graph: Graph) -> bool:
    """Whether no text of it is the beginning of another; whatever assertions it has are taken to hold."""
    for node, test in enumerate(graph.tests):
        if test is not None:
            graph.link(node, test[1])
    graph.tests = [None] * len(graph.tests)
    machine = Subsets(graph, _WORK * MOST_STATES).machine(MOST_STATES)
    return not (machine.table[machine.accepting] != DEAD).any()


def _unsupported(construct: str, source: str, flags: int) -> str:
    name, advice = _CONSTRUCTS.get(construct, (f"`{construct}`", "is not supported."))
    at = _position(construct, source, flags)
    where = "" if at is None else f" at position {at}"
    return f"`pattern` has {name}{where}, in {_shown(source)}: it {advice}"


def _position(construct: str, source: str, flags: int) -> int | None:
    """Where it is first written; trees do not say."""
    if construct not in _SIGHT:
        return None
    comments = r"|#[^\n]*" if flags & re.VERBOSE else ""
    for found in re.finditer(f"({_SIGHT[construct]})|{_OTHERWISE}{comments}", source, re.DOTALL):
        if found.group(1):
            return found.start()
    return None


def _too_large(source: str, most: int, count: str) -> TooManyStatesError:
    return TooManyStatesError(
        most,
        f"`pattern` needs {count} states, and the limit is {most}: {_shown(source)}. Make it simpler (large counts"
        " inside counts are what costs most), or raise `most_states`.",
    )


def _shown(source: str) -> str:
    return repr(source if len(source) <= 200 else f"{source[:200]}...")
