r"""A graph as a deterministic automaton: a state is the set of nodes in which one can be.

Assertions are about the neighbours of the place between two characters. What comes before is kept in the state, where a
node of it tests; what comes after is known when the next character is read. `$` in front of a newline obliges the text
to end after it: such a node is written `~node`.
"""

import re
from collections.abc import Iterable
from functools import lru_cache

from redge_guidance.constraints.alphabet import Alphabet
from redge_guidance.constraints.expression_graph import Assertion, Graph
from redge_guidance.constraints.machine import Machine

_BEGIN = -1  # what comes before the first character, and where a state does not need to know
_ANY = -2
_END = -1  # what comes after the last one

_EMPTY_HAS_NO_BOUNDARY = re.fullmatch(r"\B", "") is not None  # what `\B` says of the empty text changed in Python 3.14

_Nodes = frozenset[int]
_State = tuple[_Nodes, int]


class TooMuchWorkError(ValueError):
    """The sets of nodes that are met have more nodes together than the limit."""


class Subsets:
    """The states of a graph.

    Args:
        most_nodes: limit of the nodes of all states together, each as often as it is looked at.
    """

    def __init__(self, graph: Graph, most_nodes: int):
        self._graph, self._left = graph, most_nodes
        self._alphabet, has = Alphabet.of_sets(graph.sets)
        self._has = has.tolist()
        self._classes = [row.nonzero()[0].tolist() for row in has]
        self._size = self._alphabet.size
        self._union = lru_cache(maxsize=None)(self._united)
        self._closed = lru_cache(maxsize=None)(self._closure)
        self._kept: dict[int, int] = {}
        lookback = {test[0].set for test in graph.tests if test is not None and test[0].kind != "unless"}
        signatures: dict[tuple[bool, ...], int] = {}
        for label in range(self._size):  # one class stands for all that the assertions do not tell apart
            signature = tuple(self._has[number][label] for number in sorted(lookback))
            self._kept[label] = signatures.setdefault(signature, label)

    def machine(self, most: int) -> Machine:
        """The smallest automaton of the texts of the graph.

        Raises:
            TooManyStatesError: more than `most` are met.
            TooMuchWorkError: of more than `most_nodes` nodes.
        """
        first = self._state(self._closed(0), _BEGIN)
        return Machine.explored(self._alphabet, first, self._step, self._accepts, most=most)

    def _state(self, nodes: _Nodes, before: int) -> _State:
        tests = self._graph.tests
        if not any(tests[node if node >= 0 else ~node] for node in nodes):
            return nodes, _ANY
        return nodes, before if before == _BEGIN else self._kept[before]

    def _step(self, state: _State) -> list[_State | None]:
        nodes, before = state
        self._left -= len(nodes) * (1 if before == _ANY else self._size)
        if self._left < 0:
            raise TooMuchWorkError
        after: list[list[int]] = [[] for _ in range(self._size)]
        if before == _ANY:
            for node in nodes:
                read = self._graph.reads[node] if node >= 0 else None
                if read is not None:
                    for label in self._classes[read[0]]:
                        after[label].append(read[1])
        else:
            for label in range(self._size):
                after[label] = self._targets(nodes, before, label)
        return [self._state(self._union(tuple(to)), label) if to else None for label, to in enumerate(after)]

    def _targets(self, nodes: _Nodes, before: int, label: int) -> list[int]:
        targets = []
        for node in self._passed(nodes, before, label):
            read = self._graph.reads[node if node >= 0 else ~node]
            if read is not None and self._has[read[0]][label]:
                targets.append(read[1] if node >= 0 else ~read[1])
        return targets

    def _accepts(self, state: _State) -> bool:
        nodes, before = state
        if before != _ANY:
            nodes = self._passed(nodes, before, _END)
        return self._graph.final in nodes or ~self._graph.final in nodes

    def _passed(self, nodes: Iterable[int], before: int, after: int) -> _Nodes:
        """The nodes that are reached through assertions that hold, those that were there included."""
        free = [node for node in nodes if node >= 0 or after == _END]
        passed = set(free)
        for node in free:  # grows as it goes
            test = self._graph.tests[node if node >= 0 else ~node]
            if test is None or not self._holds(test[0], before, after):
                continue
            obliged = node < 0 or (test[0].kind == "end" and after != _END)
            more = {~to if obliged else to for to in self._closed(test[1])} - passed
            passed |= more
            free += more
        return frozenset(passed)

    def _holds(self, assertion: Assertion, before: int, after: int) -> bool:
        is_of = self._has[assertion.set]
        earlier, later = before != _BEGIN and is_of[before], after != _END and is_of[after]
        if assertion.kind == "begin":
            return before == _BEGIN
        if assertion.kind == "begin line":
            return before == _BEGIN or earlier
        if assertion.kind in ("end", "end line"):
            return after == _END or later
        if assertion.kind == "end text":
            return after == _END
        if assertion.kind == "unless":
            return not later
        if before == _BEGIN and after == _END:
            return assertion.kind == "no boundary" and _EMPTY_HAS_NO_BOUNDARY
        return (earlier != later) == (assertion.kind == "boundary")

    def _united(self, nodes: tuple[int, ...]) -> _Nodes:
        if len(nodes) == 1:
            return self._reached(nodes[0])
        return frozenset().union(*map(self._reached, nodes))

    def _reached(self, node: int) -> _Nodes:
        return self._closed(node) if node >= 0 else frozenset(~to for to in self._closed(~node))

    def _closure(self, node: int) -> _Nodes:
        """The nodes that are reached without reading and that something depends on."""
        graph, way, seen = self._graph, [node], {node}
        for at in way:  # grows as it goes
            fresh = [to for to in graph.free[at] if to not in seen]
            way += fresh
            seen.update(fresh)
        return frozenset(at for at in way if graph.reads[at] or graph.tests[at] or at == graph.final)
