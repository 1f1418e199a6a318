"""How the bytes of UTF-8 spell classes of characters."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from redge_guidance.constraints.alphabet import END_OF_UNICODE, Alphabet
from redge_guidance.constraints.refinement import DEAD

NODE = -2  # in tables of bytes: n <= NODE is the node `NODE - n`, others are classes of characters, or `DEAD`
_CONTINUATIONS = 64


@dataclass(frozen=True, eq=False)
class Utf8:
    """The tree of the bytes of a character, of which equal branches are one node.

    Attributes:
        begins: `(256,)` int32, after the first byte: a class, a node, or `DEAD` (no character begins so).
        follows: `(nodes, 64)` int32, after the byte 0x80 + c.
        below: `(nodes, classes)` bool, the classes of characters that a node leads to.
    """

    begins: NDArray[np.int32]
    follows: NDArray[np.int32]
    below: NDArray[np.bool_]

    @classmethod
    def of(cls, alphabet: Alphabet) -> "Utf8":
        """Of valid UTF-8: the shortest spelling of each character, and no surrogates."""
        ends = np.append(alphabet.starts[1:], END_OF_UNICODE)
        labels = np.repeat(alphabet.labels, ends - alphabet.starts).astype(np.int32)
        ascii_labels = labels[:128].copy()
        labels[0xD800:0xE000] = DEAD
        rows: list[NDArray[np.int32]] = []
        begins = np.full(256, DEAD, dtype=np.int32)
        begins[:128] = ascii_labels
        two = _nodes(labels.reshape(-1, _CONTINUATIONS), rows)  # of each 64 characters
        begins[0xC2:0xE0] = two[2:32]
        begins[0xE0:0xF0] = _nodes(_without(two[: 16 * 64], 32), rows)
        three = np.concatenate([_nodes(two.reshape(-1, _CONTINUATIONS), rows), np.full(48, DEAD, dtype=np.int32)])
        begins[0xF0:0xF5] = _nodes(_without(three, 16), rows)
        follows = np.concatenate(rows)
        return cls(begins, follows, _below(follows, alphabet.size))

    def after(self, part: bytes) -> int:
        """The class or node after bytes from the beginning of a character, or `DEAD`."""
        found = int(self.begins[part[0]])
        for byte in part[1:]:
            if found > NODE or not 0x80 <= byte < 0xC0:
                return DEAD
            found = int(self.follows[NODE - found, byte - 0x80])
        return found


def _without(blocks: NDArray[np.int32], first: int) -> NDArray[np.int32]:
    """In rows of 64, the first of which are spelled by fewer bytes."""
    blocks = blocks.copy()
    blocks[:first] = DEAD
    return blocks.reshape(-1, _CONTINUATIONS)


def _nodes(found: NDArray[np.int32], rows: list[NDArray[np.int32]]) -> NDArray[np.int32]:
    """A node for each distinct row, which is put to `rows`; `DEAD` for those of nothing else."""
    known = sum(map(len, rows))
    number: dict[bytes, int] = {}
    which = np.array([number.setdefault(row.tobytes(), len(number)) for row in found])
    rows.append(found[np.unique(which, return_index=True)[1]])
    numbers = (NODE - known - which).astype(np.int32)
    return np.where((found == DEAD).all(axis=1), np.int32(DEAD), numbers)


def _below(follows: NDArray[np.int32], classes: int) -> NDArray[np.bool_]:
    below = np.zeros((len(follows), classes), dtype=bool)
    for row, children in zip(below, follows, strict=True):  # which come before their parents
        children = np.unique(children)
        row[children[children >= 0]] = True
        for node in children[children <= NODE]:
            row |= below[NODE - node]
    return below
