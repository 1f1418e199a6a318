"""Automata of texts that are one of some, or that begin or end with one."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from redge_guidance.constraints.alphabet import Alphabet
from redge_guidance.constraints.machine import DEAD, MOST_STATES, Machine, TooManyStatesError

_SLACK = 8  # nodes of a tree, for each state of the limit: most of them may go on alike


def choices(texts: Iterable[str], *, most: int = MOST_STATES) -> Machine:
    """Exactly one of `texts`, code point by code point: an accent has to be in the normal form that is given.

    Raises:
        ValueError: no text, or what is not one.
        TooManyStatesError: more than `most` states, or so many characters that this cannot be told soon.

    >>> machine = choices(["yes", "no", "yes, but"])
    >>> machine.accepts("yes"), machine.accepts("yes,"), machine.accepts("Yes")
    (True, False, False)
    """
    if isinstance(texts, str):
        raise ValueError(f"`choices` must be several texts, got one, {texts!r}; put it in a list.")
    texts = list(texts)
    if not texts or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"`choices` must be one or more texts, got {texts!r}.")
    tree: list[dict[str, int]] = [{}]
    ends = set()
    for text in texts:
        node = 0
        for sign in text:
            if sign not in tree[node]:
                if len(tree) >= _SLACK * most:
                    raise TooManyStatesError(most)
                tree[node][sign] = len(tree)
                tree.append({})
            node = tree[node][sign]
        ends.add(node)
    steps, merged_ends = _merged(tree, ends)
    if len(steps) > most:
        raise TooManyStatesError(most)
    return _machine(steps, merged_ends, {})


def prefix(text: str, *, most: int = MOST_STATES) -> Machine:
    """Texts that begin with `text`, as `str.startswith` has it, code point by code point.

    >>> prefix("Once").accepts("Once upon a time"), prefix("Once").accepts("once")
    (True, False)
    """
    _check(text, "prefix", most)
    steps: list[dict[str, int]] = [{sign: n + 1} for n, sign in enumerate(text)]
    return _machine([*steps, {}], {len(text)}, {len(text): len(text)})


def suffix(text: str, *, most: int = MOST_STATES) -> Machine:
    """Texts that end with `text`, as `str.endswith` has it, code point by code point.

    A state is how much of `text` the last characters are the beginning of (Knuth, Morris and Pratt).

    >>> suffix("aab").accepts("aaab"), suffix("aab").accepts("aabb")
    (True, False)
    """
    _check(text, "suffix", most)
    steps: list[dict[str, int]] = []
    fallback = 0  # the state after all but the first of the characters so far
    for n, sign in enumerate(text):
        before = steps[fallback] if n else {}
        steps.append({**before, sign: n + 1})
        fallback = before.get(sign, 0)
    return _machine([*steps, steps[fallback] if text else {}], {len(text)}, dict.fromkeys(range(len(text) + 1), 0))


def _check(text: str, argument: str, most: int) -> None:
    if not isinstance(text, str):
        raise ValueError(f"`{argument}` must be a text, got {type(text).__name__}.")
    if len(text) >= most:
        raise TooManyStatesError(most)


def _merged(tree: Sequence[Mapping[str, int]], ends: set[int]) -> tuple[list[dict[str, int]], set[int]]:
    """Nodes that go on alike put together, from the leaves up; a child has a larger number than its parent."""
    numbers: dict[tuple[bool, tuple[tuple[str, int], ...]], int] = {}
    merged = [0] * len(tree)
    for node in range(len(tree) - 1, -1, -1):
        after = tuple(sorted((sign, merged[child]) for sign, child in tree[node].items()))
        merged[node] = numbers.setdefault((node in ends, after), len(numbers))
    last = len(numbers) - 1  # the root, which becomes 0
    steps = [{sign: last - child for sign, child in after} for _, after in numbers]
    return steps[::-1], {last - k for k, (is_end, _) in enumerate(numbers) if is_end}


def _machine(steps: Sequence[Mapping[str, int]], ends: set[int], otherwise: Mapping[int, int]) -> Machine:
    """From a state by each character that is named, by every other one as `otherwise` says, or nowhere."""
    signs = sorted({sign for step in steps for sign in step})
    alphabet, has = Alphabet.of_sets([[(ord(sign), ord(sign))] for sign in signs])
    table = np.full((len(steps), alphabet.size), DEAD, dtype=np.int32)
    class_of = {sign: int(has[n].argmax()) for n, sign in enumerate(signs)}
    for state, step in enumerate(steps):
        table[state] = otherwise.get(state, DEAD)
        for sign, after in step.items():
            table[state, class_of[sign]] = after
    columns, classes = np.unique(table, axis=1, return_inverse=True)
    accepting = np.isin(np.arange(len(steps)), list(ends))
    return Machine(
        alphabet.merged(classes.reshape(-1)), np.ascontiguousarray(columns), accepting, np.zeros((len(steps), 0))
    )
