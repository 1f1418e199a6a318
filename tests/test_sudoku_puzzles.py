"""The solver and the generator of `training/sudoku.py`, and the puzzles that come with the model."""

import importlib.util
import itertools
import json
import random
from pathlib import Path

import pytest

from redge_guidance import hub
from redge_guidance.rewards.text.all_different import SUDOKU, violations

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def sudoku():
    spec = importlib.util.spec_from_file_location("sudoku", ROOT / "training" / "sudoku.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def numbers(text):
    return [0 if cell == "." else int(cell) for cell in text]


def test_units(sudoku):
    assert sorted(map(sorted, sudoku.UNITS)) == sorted(map(sorted, SUDOKU))
    assert all(len(peers) == 20 for peers in sudoku.PEERS)


@pytest.mark.parametrize("hidden", [True, False])
def test_all_solutions_are_found(sudoku, hidden):
    """Against every way to fill five cells; of four cells where two digits can change places there are two."""
    rng = random.Random(0)
    for _ in range(4):
        board = sudoku.full_board(rng)
        assert violations(board) == 0
        a, b = board[0], board[9]
        cells = [0, 9, board.index(b, 0, 9), board.index(a, 9, 18), rng.randrange(18, 81)]
        cells = sorted(set(cells))
        puzzle = [0 if i in cells else digit for i, digit in enumerate(board)]
        ways = []
        for digits in itertools.product(range(1, 10), repeat=len(cells)):
            tried = dict(zip(cells, digits, strict=True))
            units = [unit for unit in sudoku.UNITS if any(cell in tried for cell in unit)]
            filled = [tried.get(i, digit) for i, digit in enumerate(puzzle)]
            if all(len({filled[i] for i in unit}) == 9 for unit in units):
                ways.append(filled)
        found = sudoku.solve(puzzle, limit=100, hidden=hidden).solutions
        assert sorted(found) == sorted(ways)
        assert board in found


def test_a_board_with_two_solutions_and_one_with_none(sudoku):
    board = sudoku.full_board(random.Random(0))
    rows = [board[9 * k : 9 * k + 9] for k in range(9)]
    pairs = [
        (r, s, c, d)
        for r, s in itertools.combinations(range(9), 2)
        for c, d in itertools.combinations(range(9), 2)
        if (rows[r][c], rows[r][d]) == (rows[s][d], rows[s][c]) and (r // 3 == s // 3 or c // 3 == d // 3)
    ]
    r, s, c, d = pairs[0]
    puzzle = board.copy()
    for cell in (9 * r + c, 9 * r + d, 9 * s + c, 9 * s + d):
        puzzle[cell] = 0
    assert len(sudoku.solve(puzzle, limit=10).solutions) == 2
    assert len(sudoku.solve(puzzle, limit=1).solutions) == 1
    wrong = board.copy()
    wrong[0], wrong[80] = board[1], 0
    assert sudoku.solve(wrong).solutions == []
    assert len(sudoku.solve([0] * 81, limit=7).solutions) == 7


def test_puzzles_that_come_with_the_model_are_of_their_class(sudoku):
    made = json.loads((Path(hub.resolve("builtin:sudoku-masked")) / "puzzles.json").read_text())
    assert list(made) == list(sudoku.CLASSES)
    seen = set()
    for name, kind in sudoku.CLASSES.items():
        assert len(made[name]) == 64
        for puzzle, solution in made[name]:
            board = numbers(puzzle)
            found = sudoku.solve(board, 2, hidden=kind.hidden)
            assert found.solutions == [numbers(solution)]
            assert kind.givens[0] <= sum(map(bool, board)) <= kind.givens[1]
            assert kind.guesses[0] <= found.guesses <= kind.guesses[1]
            assert all(given in (0, digit) for given, digit in zip(board, numbers(solution), strict=True))
            seen.add(solution)
    assert len(seen) == 256


def test_digging_keeps_one_solution(sudoku):
    rng = random.Random(1)
    board = sudoku.full_board(rng)
    puzzle = sudoku.dig(board, 17, rng)
    assert sudoku.solve(puzzle).solutions == [board]
    for cell, digit in enumerate(puzzle):
        if digit:  # none can be spared
            less = [*puzzle[:cell], 0, *puzzle[cell + 1 :]]
            assert len(sudoku.solve(less).solutions) == 2
