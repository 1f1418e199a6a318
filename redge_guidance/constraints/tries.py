"""Many sequences at once: the tree of their beginnings, and an automaton that reads all of them from all states."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from redge_guidance.constraints.refinement import DEAD

Ints = NDArray[Any]  # of int32 or int64


@dataclass(frozen=True, eq=False)
class Trie:
    """The tree of the beginnings of sequences of symbols. Node 0 is the empty one.

    Attributes:
        symbol: `(nodes,)` int32, the last symbol of each.
        child, children: `(nodes,)` int32, the first of the nodes one symbol longer, and how many there are, in a row.
        ends: `(nodes,)` bool, where a sequence ends.
        node_of: `(sequences,)` int32, where each ends; `DEAD` for empty ones.
    """

    symbol: Ints
    child: Ints
    children: Ints
    ends: NDArray[np.bool_]
    node_of: Ints

    @classmethod
    def of(cls, symbols: Ints, lengths: Ints) -> "Trie":
        """Of sequences that lie in `symbols` one behind the other."""
        starts = np.cumsum(lengths) - lengths
        size = int(symbols.max(initial=0)) + 1
        node_of = np.full(len(lengths), DEAD, dtype=np.int32)
        symbol, child, children = [np.zeros(1, dtype=np.int64)], [], []
        active = np.flatnonzero(lengths > 0)
        here = np.zeros(len(active), dtype=np.int64)
        depth, base, nodes = 0, 0, 1  # `base`: the first node of the level
        while True:
            keys, inverse = np.unique(here * size + symbols[starts[active] + depth], return_inverse=True)
            parents = keys // size
            count = np.bincount(parents - base, minlength=nodes - base)
            child.append(nodes + np.cumsum(count) - count)
            children.append(count)
            if not len(keys):
                break
            symbol.append(keys % size)
            here = nodes + inverse.reshape(-1)
            base, nodes, depth = nodes, nodes + len(keys), depth + 1
            done = lengths[active] == depth
            node_of[active[done]] = here[done]
            active, here = active[~done], here[~done]
        ends = np.zeros(nodes, dtype=bool)
        ends[node_of[node_of >= 0]] = True
        last, begin, several = (np.concatenate(one).astype(np.int32) for one in (symbol, child, children))
        return cls(last, begin, several, ends, node_of)


Step = Callable[[Ints, Ints], Ints]


def walk(trie: Trie, states: Ints, step: Step) -> tuple[Ints, Ints, Ints]:
    """Where an automaton comes by all sequences of a trie, from several states.

    Args:
        states: `(sources,)`.
        step: from states and symbols to the states after them, below 0 where nothing goes on.

    Returns:
        For each sequence that can be read from a source, in no order: the index of the source, the node at which the
        sequence ends, and the state after it.
    """
    found: list[tuple[Ints, Ints, Ints]] = []
    source = np.arange(len(states), dtype=np.int32)
    node = np.zeros(len(states), dtype=np.int32)
    while len(source):
        count = trie.children[node]
        total = int(count.sum())
        parent = np.repeat(np.arange(len(count), dtype=np.int32), count)
        node = np.arange(total, dtype=np.int32) + (trie.child[node] - np.cumsum(count) + count).astype(np.int32)[parent]
        states = step(states[parent], trie.symbol[node])
        live = np.flatnonzero(states >= 0)
        source, node, states = source[parent[live]], node[live], states[live]
        ended = np.flatnonzero(trie.ends[node])
        found.append((source[ended], node[ended], states[ended]))
        going = np.flatnonzero(trie.children[node])
        source, node, states = source[going], node[going], states[going]
    if not found:
        return source, node, states
    one, two, three = (np.concatenate(part) for part in zip(*found, strict=True))
    return one, two, three
