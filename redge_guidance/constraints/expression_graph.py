"""A parsed regular expression as a graph: a text is a way through it."""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from redge_guidance.constraints.expression_sets import NEWLINE, Points, points_of, words

_KINDS = re.ASCII | re.LOCALE | re.UNICODE
_UNBOUNDED = 2**32 - 1  # what `re` calls MAXREPEAT; a number as large is an error there
_CHARACTERS = ("LITERAL", "NOT_LITERAL", "ANY", "IN")


class TooManyNodesError(ValueError):
    """A graph would have more nodes than its limit."""


class UnsupportedError(ValueError):
    """A construct that has no place in a graph; `construct` is what it is called in a tree of `re`."""

    def __init__(self, construct: str):
        self.construct = construct
        super().__init__(construct)


@dataclass(frozen=True)
class Assertion:
    r"""What must hold between two characters.

    Attributes:
        kind: `"begin"` of the text, `"begin line"`, `"end"` of the text or in front of a newline there, `"end line"`,
            `"end text"`, `"boundary"` or `"no boundary"` of words, `"unless"`: the next one is not of the set.
        set: number of the set that it is about, of newlines, of what words have, or any.
    """

    kind: str
    set: int


@dataclass(eq=False)
class Graph:
    """Nodes with edges that read nothing, at most one that reads a character, and at most one that tests.

    The first node is 0.

    Attributes:
        most: limit of the number of nodes.
        sets: the sets of code points, by number.
        free: of each node the nodes that are reached without reading.
        reads: of each node the number of a set and the node after one of its characters.
        tests: of each node an assertion and the node after it.
        final: the node at which a text may end.
    """

    most: int
    sets: list[Points] = field(default_factory=list)
    free: list[list[int]] = field(default_factory=list)
    reads: list[tuple[int, int] | None] = field(default_factory=list)
    tests: list[tuple[Assertion, int] | None] = field(default_factory=list)
    final: int = 0
    _numbers: dict[Points, int] = field(default_factory=dict)

    @classmethod
    def of_tree(cls, tree: Iterable[Any], flags: int, most: int, is_code: Callable[["Graph"], bool]) -> "Graph":
        """The graph of a tree of `re`.

        Args:
            flags: those of the whole expression.
            is_code: whether no text of a graph is the beginning of another one of it.

        Raises:
            UnsupportedError: what is not a graph's.
            TooManyNodesError: more than `most`.
        """
        graph = cls(most)
        graph.final = _Builder(graph, is_code).sequence(tree, flags, graph.node())
        return graph

    def node(self) -> int:
        """A new node."""
        if len(self.free) >= self.most:
            raise TooManyNodesError(f"more than {self.most} nodes")
        self.free.append([])
        self.reads.append(None)
        self.tests.append(None)
        return len(self.free) - 1

    def number(self, points: Points) -> int:
        """The number of a set."""
        if points not in self._numbers:
            self._numbers[points] = len(self.sets)
            self.sets.append(points)
        return self._numbers[points]

    def read(self, number: int, entry: int) -> int:
        """The node after a character of a set."""
        entry, after = self._unused(entry), self.node()
        self.reads[entry] = (number, after)
        return after

    def test(self, assertion: Assertion, entry: int) -> int:
        """The node after an assertion."""
        entry, after = self._unused(entry), self.node()
        self.tests[entry] = (assertion, after)
        return after

    def link(self, entry: int, after: int) -> None:
        """Leads from one to the other without reading."""
        self.free[entry].append(after)

    def _unused(self, entry: int) -> int:
        if self.reads[entry] is None and self.tests[entry] is None:
            return entry
        fresh = self.node()
        self.link(entry, fresh)
        return fresh


@dataclass(frozen=True)
class _Builder:
    """Every method leads from an entry to the node after what it builds."""

    graph: Graph
    is_code: Callable[[Graph], bool]
    sets: dict[Any, int] = field(default_factory=dict)

    def sequence(self, tree: Iterable[Any], flags: int, entry: int) -> int:
        for kind, argument in tree:
            entry = self.one(str(kind), argument, flags, entry)
        return entry

    def one(self, kind: str, argument: Any, flags: int, entry: int) -> int:
        if kind in _CHARACTERS:
            return self.graph.read(self.set_of(kind, argument, flags), entry)
        if kind == "SUBPATTERN":
            _, added, removed, tree = argument
            return self.sequence(tree, _scoped(flags, added, removed), entry)
        if kind == "BRANCH":
            return self.branch(argument[1], flags, entry)
        if kind in ("MAX_REPEAT", "MIN_REPEAT"):  # as much or as little as possible: the same whole texts
            least, most, tree = argument
            return self.repeat(least, most, tree, flags, entry)
        if kind == "POSSESSIVE_REPEAT":
            least, most, tree = argument
            return self.possessive(least, most, tree, flags, entry)
        if kind == "ATOMIC_GROUP":
            return self.atomic(argument, flags, entry)
        if kind == "AT":
            return self.graph.test(self.assertion(str(argument), flags), entry)
        if kind == "ASSERT" and not len(argument[1]):  # (?=), which always holds
            return entry
        if kind == "FAILURE" or (kind == "ASSERT_NOT" and not len(argument[1])):  # (?!), which never does
            return self.graph.read(self.graph.number(()), entry)
        raise UnsupportedError(kind)

    def set_of(self, kind: str, argument: Any, flags: int) -> int:
        relevant = flags & (re.ASCII | re.IGNORECASE | re.DOTALL)
        key = (kind, tuple(argument) if kind == "IN" else argument, relevant)
        if key not in self.sets:
            items: list[Any] = [("NEGATE", None)] if kind in ("NOT_LITERAL", "ANY") else []
            if kind == "IN":
                items = argument
            elif kind == "ANY":
                items += [] if flags & re.DOTALL else [("LITERAL", 10)]
            else:
                items.append(("LITERAL", argument))
            self.sets[key] = self.graph.number(points_of(items, 0 if kind == "ANY" else relevant))
        return self.sets[key]

    def branch(self, trees: Iterable[Any], flags: int, entry: int) -> int:
        after = self.graph.node()
        for tree in trees:
            way = self.graph.node()
            self.graph.link(entry, way)
            self.graph.link(self.sequence(tree, flags, way), after)
        return after

    def repeat(self, least: int, most: int, tree: Any, flags: int, entry: int, leave: Assertion | None = None) -> int:
        """`leave`: what must hold where it ends before it has to."""
        for _ in range(least):
            entry = self.sequence(tree, flags, entry)
        after, hub = self.graph.node(), self.graph.node()
        self.graph.link(entry, hub)
        if int(most) >= _UNBOUNDED:
            self.graph.link(self.sequence(tree, flags, hub), hub)
        for _ in range(least, 0 if int(most) >= _UNBOUNDED else int(most)):
            self.leave(hub, after, leave)
            beyond, hub = self.sequence(tree, flags, hub), self.graph.node()
            self.graph.link(beyond, hub)
        self.leave(hub, after, leave if int(most) >= _UNBOUNDED else None)
        return after

    def leave(self, entry: int, after: int, condition: Assertion | None) -> None:
        self.graph.link(entry if condition is None else self.graph.test(condition, entry), after)

    def possessive(self, least: int, most: int, tree: Any, flags: int, entry: int) -> int:
        character = self.character(tree, flags)
        if character is not None:
            return self.repeat(least, most, tree, flags, entry, Assertion("unless", character))
        return self.code([("MAX_REPEAT", (least, most, tree))], flags, entry, "POSSESSIVE_REPEAT")

    def atomic(self, tree: Any, flags: int, entry: int) -> int:
        while len(tree) == 1 and str(tree[0][0]) == "SUBPATTERN":
            _, added, removed, inner = tree[0][1]
            flags, tree = _scoped(flags, added, removed), inner
        if len(tree) == 1 and str(tree[0][0]) == "MAX_REPEAT" and self.character(tree[0][1][2], flags) is not None:
            least, most, inner = tree[0][1]
            return self.possessive(least, most, inner, flags, entry)
        return self.code(tree, flags, entry, "ATOMIC_GROUP")

    def code(self, tree: Any, flags: int, entry: int, construct: str) -> int:
        """Where none of its texts is the beginning of another, there is one way at most, and nothing to give back."""
        if not self.is_code(Graph.of_tree(tree, flags, self.graph.most, self.is_code)):
            raise UnsupportedError(construct)
        return self.sequence(tree, flags, entry)

    def character(self, tree: Any, flags: int) -> int | None:
        """The number of the set of a tree that reads one character of it."""
        if len(tree) != 1:
            return None
        kind, argument = str(tree[0][0]), tree[0][1]
        if kind == "SUBPATTERN":
            return self.character(argument[3], _scoped(flags, argument[1], argument[2]))
        return self.set_of(kind, argument, flags) if kind in _CHARACTERS else None

    def assertion(self, kind: str, flags: int) -> Assertion:
        newline = self.graph.number(NEWLINE)
        lines = bool(flags & re.MULTILINE)
        if kind in ("AT_BOUNDARY", "AT_NON_BOUNDARY"):
            return Assertion("boundary" if kind == "AT_BOUNDARY" else "no boundary", self.graph.number(words(flags)))
        if kind in ("AT_BEGINNING", "AT_BEGINNING_STRING"):
            return Assertion("begin line" if lines and kind == "AT_BEGINNING" else "begin", newline)
        if kind == "AT_END":
            return Assertion("end line" if lines else "end", newline)
        if kind == "AT_END_STRING":
            return Assertion("end text", newline)
        raise UnsupportedError(kind)


def _scoped(flags: int, added: int, removed: int) -> int:
    if added & _KINDS:
        flags &= ~_KINDS
    return (flags | added) & ~removed
