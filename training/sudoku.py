"""Sudoku: an exact solver, full boards, puzzles with one solution, the symmetries of the rules.

A board is a list of 81 numbers row by row, 1 to 9, and 0 for an empty cell.

How hard a puzzle is, is told by its givens and by what the solver needs (`solve`), see `CLASSES`.

    python training/sudoku.py --output sudoku-pool.npz  # boards to train on, by `train_sudoku.py`
"""

import argparse
import random
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

FULL = 0b111111111


def _units() -> list[list[int]]:
    rows = [[9 * r + c for c in range(9)] for r in range(9)]
    columns = [[9 * r + c for r in range(9)] for c in range(9)]
    boxes = [[9 * (3 * (b // 3) + i // 3) + 3 * (b % 3) + i % 3 for i in range(9)] for b in range(9)]
    return rows + columns + boxes


UNITS = _units()  # rows, columns, boxes
PEERS = [sorted({j for unit in UNITS if i in unit for j in unit} - {i}) for i in range(81)]
DIGITS = {1 << (d - 1): d for d in range(1, 10)}


@dataclass(frozen=True)
class Kind:
    """A class of puzzles: how many givens, and what the solver needs for them.

    Attributes:
        givens: fewest and most; the puzzle is dug until it has the fewest, or no given can be spared.
        guesses: fewest and most cells that the solver had to guess, in all of its search; 0 means singles suffice.
        hidden: whether a digit with one place left in a unit may be filled in; False: cells with one digit left alone.
    """

    givens: tuple[int, int]
    guesses: tuple[int, int]
    hidden: bool = True


CLASSES = {
    "easy": Kind((36, 40), (0, 0), hidden=False),
    "medium": Kind((30, 33), (0, 0)),
    "hard": Kind((25, 28), (1, 2)),
    "expert": Kind((17, 25), (4, 10**6)),
}


@dataclass
class Search:
    """What a search has found.

    Attributes:
        solutions: the first ones, at most as many as asked for.
        guesses: cells that were guessed where no single was left, dead ends included.
    """

    solutions: list[list[int]] = field(default_factory=list)
    guesses: int = 0


def solve(board: list[int], limit: int = 2, rng: random.Random | None = None, hidden: bool = True) -> Search:
    """All solutions of a board, or the first `limit` of them, exactly.

    Cells with one digit left are filled in first, then (`hidden`) digits with one place left in a row, column or box;
    where there is neither, the cell with the fewest digits left is guessed.

    Args:
        board: 81 numbers, 0 for an empty cell.
        limit: stop at so many solutions.
        rng: shuffles the digits that are tried; None: in ascending order.
        hidden: look for hidden singles.
    """
    found, masks = Search(), [FULL] * 81
    for cell, digit in enumerate(board):
        if digit and not _place(masks, cell, 1 << (digit - 1), hidden):
            return found
    if _settle(masks, hidden):
        _search(masks, limit, rng, hidden, found)
    return found


def _search(masks: list[int], limit: int, rng: random.Random | None, hidden: bool, found: Search) -> None:
    open_cells = [(m.bit_count(), i) for i, m in enumerate(masks) if m & (m - 1)]
    if not open_cells:
        found.solutions.append([DIGITS[m] for m in masks])
        return
    found.guesses += 1
    fewest = min(open_cells)[0]
    cell = min(open_cells)[1] if rng is None else rng.choice([i for n, i in open_cells if n == fewest])
    digits = [d for d in DIGITS if masks[cell] & d]
    if rng is not None:
        rng.shuffle(digits)
    for digit in digits:
        tried = masks.copy()
        if _place(tried, cell, digit, hidden) and _settle(tried, hidden):
            _search(tried, limit, rng, hidden, found)
            if len(found.solutions) >= limit:
                return


def _place(masks: list[int], cell: int, digit: int, hidden: bool) -> bool:
    """Fill a cell, and every cell that has one digit left then; False if some cell has none."""
    if not masks[cell] & digit:
        return False
    masks[cell], filled = digit, [cell]
    while filled:
        at = filled.pop()
        digit = masks[at]
        for peer in PEERS[at]:
            left = masks[peer]
            if left & digit:
                left ^= digit
                if not left:
                    return False
                masks[peer] = left
                if not left & (left - 1):
                    filled.append(peer)
    return True


def _settle(masks: list[int], hidden: bool) -> bool:
    """Fill hidden singles until there is none; False if some digit has no place in some unit."""
    changed = True
    while changed:
        changed = False
        for unit in UNITS:
            once = twice = done = 0
            for cell in unit:
                m = masks[cell]
                twice |= once & m
                once |= m
                if not m & (m - 1):
                    done |= m
            if once != FULL:
                return False
            single = once & ~twice & ~done
            if not single or not hidden:
                continue
            for cell in unit:
                digit = masks[cell] & single
                if digit:
                    if digit & (digit - 1) or not _place(masks, cell, digit, hidden):
                        return False
                    changed = True
    return True


def full_board(rng: random.Random) -> list[int]:
    """A full board by the solver, from three random boxes on the diagonal."""
    board = [0] * 81
    for box in (18, 22, 26):
        for cell, digit in zip(UNITS[box], rng.sample(range(1, 10), 9), strict=True):
            board[cell] = digit
    return solve(board, 1, rng).solutions[0]


def dig(board: list[int], fewest: int, rng: random.Random, hidden: bool = True) -> list[int]:
    """A puzzle with that one solution: cells are emptied in random order while it stays the only one.

    Args:
        board: a full one.
        fewest: givens at which digging stops.
        hidden: False: only while cells with one digit left are enough to solve it.
    """
    puzzle, givens = board.copy(), 81
    for cell in rng.sample(range(81), 81):
        if givens <= fewest:
            break
        digit, puzzle[cell] = puzzle[cell], 0
        found = solve(puzzle, 2, hidden=hidden)
        if len(found.solutions) != 1 or (not hidden and found.guesses):
            puzzle[cell] = digit
        else:
            givens -= 1
    return puzzle


def puzzles(name: str, rng: random.Random) -> Iterator[tuple[list[int], list[int]]]:
    """Puzzles of a class with their solutions, without end."""
    kind = CLASSES[name]
    while True:
        board = full_board(rng)
        puzzle = dig(board, kind.givens[0], rng, kind.hidden)
        guesses = solve(puzzle, 2, hidden=kind.hidden).guesses
        if sum(map(bool, puzzle)) <= kind.givens[1] and kind.guesses[0] <= guesses <= kind.guesses[1]:
            yield puzzle, board


def written(board: list[int]) -> str:
    """81 characters, `.` for an empty cell."""
    return "".join(str(d) if d else "." for d in board)


def pool(number: int, boards: int, rng: random.Random) -> tuple[np.ndarray, np.ndarray]:
    """Full boards `(number + boards, 81)` and, of the first `number`, where a minimal puzzle has givens."""
    full = [full_board(rng) for _ in range(number + boards)]
    given = [[bool(d) for d in dig(board, 17, rng)] for board in full[:number]]
    return np.array(full, dtype=np.uint8), np.array(given, dtype=bool)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pool", type=int, default=2000, help="boards with a puzzle")
    parser.add_argument("--boards", type=int, default=6000, help="boards without")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--output", required=True)
    args = parser.parse_args()
    full, given = pool(args.pool, args.boards, random.Random(args.seed))
    np.savez_compressed(args.output, boards=full, given=given)
    print(f"{len(full)} boards; puzzles have {given.sum(1).mean():.1f} givens")


if __name__ == "__main__":
    main()
