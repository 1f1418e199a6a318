"""Automata over characters, judged by enumeration of all short texts."""

import itertools
import time

import numpy as np
import pytest

from redge_guidance.constraints.alphabet import Alphabet
from redge_guidance.constraints.expression import machine_of
from redge_guidance.constraints.machine import DEAD, Machine, TooManyStatesError
from redge_guidance.constraints.refinement import coarsest

TEXTS = ["".join(text) for length in range(6) for text in itertools.product("ab1 ", repeat=length)]
PATTERNS = ["", "a*", "(?:ab)+", r"\w*1", "[^a]*", "a?b?1? ?", ".{2,3}", "(?:a|b)*a(?:a|b)", "(?!)", r"\d| a|b+"]


def random_machine(seed: int, states: int = 12, terms: int = 1) -> Machine:
    draw = np.random.default_rng(seed)
    alphabet, _ = Alphabet.of_sets([[(97, 97)], [(98, 98)], [(49, 49)]])
    table = draw.integers(-1, states, (states, alphabet.size)).astype(np.int32)
    return Machine(alphabet, table, draw.random(states) < 0.4, draw.integers(0, 2, (states, terms)).astype(float))


def worth(machine: Machine, text: str) -> tuple[float, ...] | None:
    state = machine.after(text)
    return None if state == DEAD or not machine.accepting[state] else tuple(machine.values[state])


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_complement_accepts_all_else(pattern: str) -> None:
    machine = machine_of(pattern)
    other = machine.complement()
    assert all(machine.accepts(text) != other.accepts(text) for text in TEXTS)
    assert other.complement().equivalent(machine)


@pytest.mark.parametrize(("one", "two"), list(itertools.combinations(PATTERNS, 2)))
def test_an_intersection_accepts_what_both_do(one: str, two: str) -> None:
    first, second = machine_of(one), machine_of(two)
    both = first.intersection(second)
    assert all(both.accepts(text) == (first.accepts(text) and second.accepts(text)) for text in TEXTS[:400])
    assert both.equivalent(second.intersection(first))


@pytest.mark.parametrize("seed", range(20))
def test_products_and_small_automata_keep_values(seed: int) -> None:
    one, two = random_machine(seed), random_machine(seed + 100, terms=2)
    small, both = one.minimal(), one.intersection(two)
    for text in TEXTS[:400]:
        mine, others = worth(one, text), worth(two, text)
        assert worth(small, text) == mine
        assert worth(both, text) == (None if mine is None or others is None else mine + others)


def parts_of_moore(table: np.ndarray, part: np.ndarray) -> np.ndarray:
    """The textbook's: rounds of all states until nothing splits."""
    while True:
        rows = np.column_stack([part, np.append(part, DEAD)[table]])
        finer = np.unique(rows, axis=0, return_inverse=True)[1].reshape(-1)
        if finer.max() == part.max():
            return finer
        part = finer


@pytest.mark.parametrize("seed", range(40))
def test_equal_states_are_those_of_moores_refinement(seed: int) -> None:
    draw = np.random.default_rng(seed)
    states, classes = int(draw.integers(1, 60)), int(draw.integers(1, 4))
    table = draw.integers(-1, max(1, states // 2), (states, classes))
    table[draw.random(table.shape) < 0.3 * (seed % 3)] = DEAD
    start = np.unique(draw.integers(0, 2, states), return_inverse=True)[1]
    ours, theirs = coarsest(table, start), parts_of_moore(table, start)
    assert ((ours[:, None] == ours) == (theirs[:, None] == theirs)).all()


@pytest.mark.parametrize("seed", range(10))
def test_equal_automata_have_equal_arrays_however_they_are_numbered(seed: int) -> None:
    draw, machine = np.random.default_rng(seed), random_machine(seed)
    order = np.append(0, draw.permutation(np.arange(1, 12)))
    rank, classes = np.append(np.argsort(order), DEAD), draw.permutation(machine.alphabet.size)
    table = rank[machine.table[order]][:, np.argsort(classes)].astype(np.int32)
    alphabet = machine.alphabet.merged(classes)
    shuffled = Machine(alphabet, table, machine.accepting[order], machine.values[order])
    assert shuffled.equivalent(machine)
    assert np.array_equal(shuffled.minimal().table, machine.minimal().table)


def test_other_texts_or_values_are_not_equivalent() -> None:
    machine = random_machine(3).minimal()
    priced = Machine(machine.alphabet, machine.table, machine.accepting, machine.values + 1)
    assert machine.equivalent(machine.minimal())
    assert not machine.equivalent(priced)
    assert machine_of("a{2,}").equivalent(machine_of("aa+"))
    assert not machine_of("a{2,}").equivalent(machine_of("a+"))
    assert not machine_of("a").equivalent(machine_of("b"))


SHORTEST = [("", 0), ("a*", 0), ("ab|abc|1{9}", 2), ("(?!)", None), ("a+b$\n1", None)]


@pytest.mark.parametrize(("pattern", "least"), SHORTEST)
def test_the_shortest_accepted_text(pattern: str, least: int | None) -> None:
    machine = machine_of(pattern)
    assert machine.shortest() == least
    assert machine.is_empty == (least is None)


def test_a_product_of_too_many_states_is_an_error() -> None:
    with pytest.raises(TooManyStatesError, match="more than 50 states"):
        machine_of("(?:a{7}|b)*").intersection(machine_of("(?:a{11}|b)*"), most=50)


def test_products_and_long_chains_are_quick() -> None:
    words, length = machine_of(r"(?:\w+ ){0,400}\w+"), machine_of(".{0,40}")
    begin = time.process_time()
    assert len(words.intersection(length).table) == 79
    assert len(machine_of("long" * 1000).table) == 4001
    assert time.process_time() - begin < 8  # 1.1
