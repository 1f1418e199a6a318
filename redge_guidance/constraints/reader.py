"""Tokens as symbols that an automaton over characters reads."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from redge_guidance.constraints.machine import Machine
from redge_guidance.constraints.refinement import DEAD
from redge_guidance.constraints.tokens import Written
from redge_guidance.constraints.tries import Ints, Trie
from redge_guidance.constraints.utf8 import NODE, Utf8

_FEW = 8  # characters of a class, up to which they are taken for those that somebody wrote down


@dataclass(frozen=True, eq=False)
class TokenReader:
    """A machine that reads symbols: classes of characters, then nodes of `utf8` (a character begun), then bytes.

    Its states are those of the machine, s, and within a character, at node v, `states + s * nodes + v`.
    """

    machine: Machine
    utf8: Utf8
    alive: NDArray[np.bool_]  # (states, nodes), whether some character of the node goes on
    narrow: NDArray[np.bool_]  # (states, nodes), whether only characters that are `named` go on
    named: NDArray[np.bool_]  # (classes,), classes of a few characters
    names: NDArray[np.bool_]  # (nodes,), whether there are such below

    @classmethod
    def of(cls, machine: Machine, alike: bool = False) -> "TokenReader":
        """The reader of a machine.

        `alike`: reads a part of a character only where all characters that begin so lead to one state, or toward a
        character that has a class nearly of its own, as those that a pattern or a word is written with.
        """
        utf8 = Utf8.of(machine.alphabet)
        named = machine.alphabet.sizes() <= _FEW
        leads = (machine.table != DEAD).astype(np.float32)
        alive = leads @ utf8.below.T.astype(np.float32) > 0
        narrow = np.zeros_like(alive)
        if alike:
            for node in range(len(utf8.follows)):
                after = machine.table[:, utf8.below[node]]
                narrow[:, node] = (after != after[:, :1]).any(axis=1)
            alive &= ~narrow | (leads[:, named] @ utf8.below[:, named].T.astype(np.float32) > 0)
        return cls(machine, utf8, alive, narrow, named, np.asarray((utf8.below & named).any(axis=1)))

    @property
    def classes(self) -> int:
        return int(self.machine.table.shape[1])

    @property
    def nodes(self) -> int:
        return len(self.utf8.follows)

    def within(self, states: Ints, nodes: Ints) -> Ints:
        """The state within a character."""
        found = len(self.machine.table) + states.astype(np.int64) * self.nodes + nodes
        return np.where(self.alive[states, nodes], found, DEAD)

    def step(self, states: Ints, symbols: Ints) -> Ints:
        """The states after symbols, `DEAD` where none."""
        table, classes, total = self.machine.table, self.classes, len(self.machine.table)
        if not len(symbols) or (symbols.max() < classes and states.max() < total):
            return table[states, symbols]
        found = np.full(len(states), DEAD, dtype=np.int64)
        at_character = states < total
        whole = np.flatnonzero(at_character & (symbols < classes))
        found[whole] = table[states[whole], symbols[whole]]
        begun = np.flatnonzero(at_character & (symbols >= classes) & (symbols < classes + self.nodes))
        found[begun] = self.within(states[begun], symbols[begun] - classes)
        more = np.flatnonzero(~at_character & (symbols >= classes + self.nodes))
        outer, node = np.divmod(states[more] - total, self.nodes)
        after = self.utf8.follows[node, symbols[more] - classes - self.nodes]
        below, label, narrow = np.where(after <= NODE, NODE - after, 0), np.maximum(after, 0), self.narrow[outer, node]
        deeper = np.where(narrow & ~self.names[below], DEAD, self.within(outer, below))
        whole = np.where(narrow & ~self.named[label], DEAD, table[outer, label])
        found[more] = np.where(after >= 0, whole, np.where(after <= NODE, deeper, DEAD))
        return found

    def symbols_of(self, part: bytes) -> list[int] | None:
        """Of a token that is not all whole characters; None: no character is spelled so."""
        head = next((k for k, byte in enumerate(part) if not 0x80 <= byte < 0xC0), len(part))
        try:
            whole, tail = part[head:].decode(), b""
        except UnicodeDecodeError as error:
            whole, tail = part[head : head + error.start].decode(), part[head + error.start :]
        found = [self.classes + self.nodes + byte - 0x80 for byte in part[:head]]
        found += self.machine.alphabet.classes_of(whole).tolist()
        if tail:
            after = self.utf8.after(tail)
            if after > NODE:
                return None
            found.append(self.classes + NODE - after)
        return found if head < 4 else None


def tries_of(reader: TokenReader, parts: Written) -> tuple[Trie, Trie]:
    """The tokens that begin with a character, and those that go on with one."""
    texts: list[str] = []
    odd: dict[int, list[int] | None] = {}
    for i, part in enumerate(parts):
        try:
            texts.append((part or b"").decode())
        except UnicodeDecodeError:
            odd[i] = reader.symbols_of(part or b"")
            texts.append("")
    points = np.frombuffer("".join(texts).encode("utf-32-le"), dtype=np.uint32)
    alphabet = reader.machine.alphabet
    labels = alphabet.labels[np.searchsorted(alphabet.starts, points, side="right") - 1]
    lengths = np.array([len(text) for text in texts], dtype=np.int64)
    inside = reader.classes + reader.nodes
    tries = []
    for begun in (False, True):
        chosen = {i: row for i, row in odd.items() if row and (row[0] >= inside) == begun}
        flat, sizes = ([], 0 * lengths) if begun else (labels, lengths.copy())
        more = np.array([symbol for row in chosen.values() for symbol in row], dtype=np.int64)
        where: list[int] | NDArray[np.int64]
        where = np.repeat(np.cumsum(sizes)[list(chosen)], [len(row) for row in chosen.values()]) if chosen else []
        sizes[list(chosen)] = [len(row) for row in chosen.values()]
        tries.append(
            Trie.of(np.insert(np.asarray(flat, dtype=np.int64), np.asarray(where, dtype=np.int64), more), sizes)
        )
    return tries[0], tries[1]
