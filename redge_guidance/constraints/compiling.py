"""From automata over characters to automata over the tokens of a tokenizer."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from redge_guidance.constraints.cache import cached
from redge_guidance.constraints.machine import MOST_STATES, Machine
from redge_guidance.constraints.reader import TokenReader, tries_of
from redge_guidance.constraints.refinement import DEAD, TooManyStatesError
from redge_guidance.constraints.token_automaton import TokenAutomaton, mixed
from redge_guidance.constraints.tokens import Written, token_bytes
from redge_guidance.constraints.tries import Ints, Trie, walk
from redge_guidance.logging import get_logger

_AT_ONCE = 128  # states from which the tokens are read together
# States within characters that there may be in any case, before `alike` ones alone are kept: so many, and as many as
# have a table of so many entries at most, which lets small vocabularies write everything.
_LEAST_WITHIN, _LEAST_ENTRIES = 64, 2**20
_log = get_logger(__name__)


def compile_tokens(
    machine: Machine, tokenizer: Any, vocabulary: int, ends: Sequence[int], most_states: int = MOST_STATES
) -> TokenAutomaton:
    """The canvases whose text `machine` accepts: tokens that write it, then nothing or tokens of `ends` alone.

    A canvas of n tokens that write a text, followed by any number of `ends`, is accepted if and only if
    `machine.accepts(tokenizer.decode(tokens, skip_special_tokens=True))`, and worth the same. Tokens may end within a
    character. Where that would take many more states than the machine itself has, as in patterns that tell letters from
    other signs, they may only where all characters that begin with the same bytes lead to one state, and on the way to
    characters that have a class nearly of their own, as those that a word is written with: rows of tokens that cut
    others are not accepted. With a vocabulary of a few hundred tokens that is rare. Never accepted are special tokens,
    those that write nothing, and ids without a token. What was built once is read from the disk afterwards
    (`constraints.cache`).

    Args:
        machine: `minimal`.
        tokenizer: see `token_bytes`.
        vocabulary: number of logits; ids of the tokenizer from there on do not count.
        ends: ids that end a text.
        most_states: of the result.

    Raises:
        ValueError: the tokenizer cannot write any text that is accepted; or a bad argument.
        TooManyStatesError: more than `most_states`.
    """
    if wrong := [i for i in ends if not 0 <= i < vocabulary]:
        raise ValueError(f"`ends` must be ids from 0 to {vocabulary - 1}, got {wrong}; `vocabulary` counts all logits.")
    first, within = (part[:vocabulary] for part in token_bytes(tokenizer))
    ends = sorted(set(ends))
    found = cached(
        (machine, first, within, vocabulary, ends),
        lambda: _compiled(machine, first, within, vocabulary, ends, most_states),
    )
    if len(found.table) > most_states:
        raise TooManyStatesError(most_states)
    if found.is_empty:
        raise ValueError(
            f"the tokenizer ({type(tokenizer).__name__}) cannot write any text that the constraint accepts: its tokens "
            "do not spell the characters of one, or no text is accepted at all. Ask for a text that it can write."
        )
    return found


def _compiled(
    machine: Machine, first: Written, within: Written, vocabulary: int, ends: list[int], most: int
) -> TokenAutomaton:
    drawable = [None if i in set(ends) or not part else part for i, part in enumerate(within)]
    fronts: Written = [None if part is None else front for front, part in zip(first, drawable, strict=True)]
    most_within = len(machine.table) + max(_LEAST_WITHIN, _LEAST_ENTRIES // max(vocabulary, 1), len(machine.table))
    try:
        edges, tries, starts = _followed(TokenReader.of(machine), drawable, fronts, most_within)
    except TooManyStatesError:
        _log.info("tokens that end within a character are drawn only where all characters that begin so mean the same")
        edges, tries, starts = _followed(TokenReader.of(machine, alike=True), drawable, fronts, 4 * most)
    starts[[i for i, part in enumerate(fronts) if part == b""]] = 1  # a space that is dropped: still the empty text
    table, columns = edges.table(tries)
    pairs, class_of = np.unique(np.stack([columns, starts]), axis=1, return_inverse=True)
    table = table[:, pairs[0]]
    table[0] = pairs[1]
    padded = np.full(vocabulary, DEAD, dtype=np.int32)
    padded[: len(class_of.reshape(-1))] = class_of.reshape(-1)
    return _with_ends(machine, table, padded, ends).reduced()


def _followed(
    reader: TokenReader, drawable: Written, fronts: Written, most: int
) -> tuple["_Edges", tuple[Trie, Trie], Ints]:
    tries, front = tries_of(reader, drawable), tries_of(reader, fronts)[0]
    edges = _Edges(reader, most)
    return edges, tries, edges.follow(tries, front)


def _with_ends(machine: Machine, table: Ints, class_of: Ints, ends: list[int]) -> TokenAutomaton:
    """With a state for each worth of an accepted text, in which only `ends` follow, of a class of their own."""
    inner = len(table) - 1 - len(machine.table)
    accepting = np.concatenate([machine.accepting[:1], machine.accepting, np.zeros(inner, dtype=bool)])
    values = np.concatenate([machine.values[:1], machine.values, np.zeros((inner, machine.values.shape[1]))])
    if ends:
        rows = np.flatnonzero(accepting)
        if values.shape[1]:
            worth, kind = np.unique(values[rows], axis=0, return_inverse=True)
        else:
            worth, kind = np.zeros((min(len(rows), 1), 0)), np.zeros(len(rows), dtype=np.int64)
        states = len(table)
        table = np.pad(table, ((0, len(worth)), (0, 1)), constant_values=DEAD)
        table[rows, -1] = states + kind.reshape(-1)
        table[states:, -1] = np.arange(states, states + len(worth))
        class_of = class_of.copy()
        class_of[ends] = table.shape[1] - 1
        accepting = np.concatenate([accepting, np.ones(len(worth), dtype=bool)])
        values = np.concatenate([values, worth])
    return TokenAutomaton(table.astype(np.int32), class_of.astype(np.int32), accepting, values)


class _Edges:
    """Which state follows which by which token: 0 the beginning, then those of the machine, then those in characters.

    Tokens that write the same have one column: the node of `Trie` at which they end, those of the second after those of
    the first.
    """

    def __init__(self, reader: TokenReader, most: int):
        self._reader, self._most = reader, most
        self._states = 1 + len(reader.machine.table)
        self._numbers: dict[int, int] = {}  # of states within a character
        self._equal: dict[tuple[int, int], int] = {}
        self._waiting: list[tuple[int, int]] = []
        self._found: list[tuple[Ints, Ints, Ints]] = []

    def follow(self, tries: tuple[Trie, Trie], front: Trie) -> Ints:
        """All of them, and returns for each token the state after it where it is the first."""
        total = len(self._reader.machine.table)
        for low in range(0, total, _AT_ONCE):
            sources = np.arange(low, min(low + _AT_ONCE, total))
            self._add(sources + 1, tries[0], 0, sources)
        _, node, states = walk(front, np.zeros(1, dtype=np.int64), self._reader.step)
        after = np.full(len(front.ends), DEAD, dtype=np.int64)
        after[node] = self._numbered(states)
        while self._waiting:
            numbers, sources = (np.array(part) for part in zip(*self._waiting[:_AT_ONCE], strict=True))
            del self._waiting[:_AT_ONCE]
            self._add(numbers, tries[1], len(tries[0].ends), sources)
        return np.where(front.node_of >= 0, after[front.node_of], DEAD)

    def _add(self, numbers: Ints, trie: Trie, offset: int, sources: Ints) -> None:
        source, node, states = walk(trie, sources, self._reader.step)
        self._found.append((numbers[source].astype(np.int32), node + np.int32(offset), self._numbered(states)))

    def _numbered(self, states: Ints) -> Ints:
        """The numbers of a reader's states: within characters one for all with the same future."""
        total = len(self._reader.machine.table)
        numbers = states.astype(np.int32) + 1
        inside = np.flatnonzero(states >= total)
        if not len(inside):
            return numbers
        distinct, which = np.unique(states[inside], return_inverse=True)
        for state in distinct.tolist():
            if state not in self._numbers:
                self._number(state)
        numbers[inside] = np.array([self._numbers[state] for state in distinct.tolist()])[which.reshape(-1)]
        return numbers

    def _number(self, state: int) -> None:
        outer, node = divmod(state - len(self._reader.machine.table), self._reader.nodes)
        future = hash(self._reader.machine.table[outer, self._reader.utf8.below[node]].tobytes())
        number = self._equal.setdefault((node, future), self._states)
        if number == self._states:
            if len(self._equal) > self._most:
                raise TooManyStatesError(self._most)
            self._states += 1
            self._waiting.append((number, state))
        self._numbers[state] = number

    def table(self, tries: tuple[Trie, Trie]) -> tuple[Ints, Ints]:
        """`(states, columns)`, the next state, and `(tokens,)`, the column of each, equal ones once."""
        offset, nodes = len(tries[0].ends), len(tries[0].ends) + len(tries[1].ends)
        prints = np.zeros(nodes, dtype=np.uint64)
        for source, node, target in self._found:
            np.add.at(
                prints, node, mixed(source.astype(np.uint64) * np.uint64(self._states) + target.astype(np.uint64))
            )
        at = np.where(
            tries[0].node_of >= 0, tries[0].node_of, np.where(tries[1].node_of >= 0, tries[1].node_of + offset, 0)
        )
        _, representatives, columns = np.unique(prints[at], return_index=True, return_inverse=True)
        column_of = np.full(nodes, DEAD)
        column_of[at[representatives]] = np.arange(len(representatives))
        table = np.full((self._states, len(representatives)), DEAD, dtype=np.int32)
        for source, node, target in self._found:
            kept = np.flatnonzero(column_of[node] >= 0)
            table[source[kept], column_of[node[kept]]] = target[kept]
        return table, columns.reshape(-1)
