"""Cells that are all different, as in a Sudoku, as a reward."""

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from redge_guidance.chats import Prompt
from redge_guidance.checks import as_real, as_whole
from redge_guidance.finished import to_judge
from redge_guidance.reward import Reward
from redge_guidance.rewards.reading.alignment import token_texts
from redge_guidance.samples.tokens import RelaxedTokens


def _units() -> tuple[tuple[int, ...], ...]:
    rows = [range(9 * k, 9 * k + 9) for k in range(9)]
    columns = [range(k, 81, 9) for k in range(9)]
    corners = [27 * (k // 3) + 3 * (k % 3) for k in range(9)]
    boxes = [[corner + 9 * (i // 3) + i % 3 for i in range(9)] for corner in corners]
    return tuple(tuple(unit) for unit in [*rows, *columns, *boxes])


SUDOKU = _units()  # 27 groups of 9 of the 81 cells, row by row: rows, columns, boxes
_DIGITS = tuple("123456789")


def violations(board: str | Sequence[int]) -> int:
    """How many digits are missing in rows, columns and boxes, in all 27 of them; 0 of a Sudoku that is solved.

    Args:
        board: 81 cells row by row, as a text, white space aside, or as numbers; what is no digit from 1 to 9, as an
            empty cell, is none.

    Raises:
        ValueError: another number of cells, or one that is neither a text nor a whole number.

    >>> violations("123456789" * 9)  # the rows are right, of a column 8 digits are missing, of a box 6
    126
    """
    cells = list("".join(board.split())) if isinstance(board, str) else [_cell(one) for one in board]
    if len(cells) != 81:
        raise ValueError(f"`board` must have 81 cells, got {len(cells)} in {board!r:.100}; write empty ones as '.'.")
    return sum(9 - len({cells[i] for i in unit} & set(_DIGITS)) for unit in SUDOKU)


def _cell(given: Any) -> str:
    number = as_real(given)
    if isinstance(given, str):
        return given.strip()
    if number is None or number != int(number):
        raise ValueError(f"`board` must have digits as cells, texts or whole numbers, got {given!r:.80}.")
    return str(int(number))


class AllDifferentReward(Reward):
    """`r(x) = -sum_g sum_v (n_gv - 1)^2`, `n_gv = sum_{i in g} x_i[v]` being how many cells of the group g hold v.

    It is 0 where every group holds every value once, and below it elsewhere: the penalty of the Sudoku experiment of
    the ReDGE paper (arXiv 2601.00781). A group of k cells, fewer than the V values, cannot hold all of them, and has
    V - k less: in groups of any size that is `sum_v n_gv (n_gv - 1)`, the ordered pairs of cells that hold the same,
    and the number of cells that hold none of the values. `x_i[v]` is 0 or 1 in a finished text.

    Of relaxed tokens it is the mean over finished ones, each cell drawn by its weights,

        -sum_g (sum_v sum_{i != j in g} x_i[v] x_j[v] + sum_{i in g} (1 - sum_v x_i[v])),

    which is linear in every cell: soft samples have the exact gradient of `E_q[r]`, hard ones an unbiased one.
    `relaxation="square"` puts the weights into the squares, as the paper does: mixtures then cost less, by
    `sum x_i[v] (1 - x_i[v])`, and nothing drives a cell to decide.

    Cells are counted from 0, a token of the text each: a beginning-of-text token and padding are none, a prompt is a
    part of the text. Of a finished text a cell is the longest value that stands there, or else a single character;
    white space is left out. Cells that a text is too short for hold none of the values; those beyond the groups do not
    matter.

    Args:
        groups: lists of cells, none of them longer than `values`; or `"sudoku"`, the 27 of `SUDOKU`.
        values: what the cells hold, texts that a token of the generator stands for; a string is its characters.
        relaxation: `"mean"` or `"square"`.
        answer_only: leave the prompt in front out of what is judged; None: in a chat it is, elsewhere it is not.

    Raises:
        ValueError: no groups, one that is empty, names a cell twice or is longer than `values`; values that are no
            texts, or equal. When called: a value that no token of the generator stands for, or a canvas that is shorter
            than the groups reach.

    >>> reward = AllDifferentReward([[0, 1, 2], [0, 3]], "abc")
    >>> reward.score(["abcb", "abca", "aaab"])
    tensor([ 0., -2., -6.])
    """

    modality = "text"
    usual_target, highest = 0.0, 0.0
    usual_scale = 2.0  # nats a unit; more makes a sampler decide too early

    def __init__(
        self,
        groups: str | Sequence[Sequence[int]],
        values: str | Sequence[str] = _DIGITS,
        *,
        relaxation: str = "mean",
        answer_only: bool | None = None,
    ):
        if relaxation not in ("mean", "square"):
            raise ValueError(f'`relaxation` must be "mean" or "square", got {relaxation!r}.')
        self.relaxation, self.answer_only = relaxation, answer_only
        self.values = _checked_values(values)
        self.groups = _checked_groups(groups, len(self.values))
        self._cells = 1 + max(cell for group in self.groups for cell in group)
        self._members = torch.zeros(len(self.groups), self._cells)
        for row, group in zip(self._members, self.groups, strict=True):
            row[list(group)] = 1
        longest_first = sorted(self.values, key=len, reverse=True)
        self._cell = re.compile("|".join(map(re.escape, longest_first)) + r"|\S")
        self._tokenizer: Any = None  # the last one, and the tokens that write the values
        self._ids: list[int] = []
        self._value_of = torch.zeros(0, len(self.values))
        self._is_cell = False  # whether every token writes one cell

    def __call__(self, sample: RelaxedTokens) -> Tensor:
        relaxed = self.relaxed(sample)
        if not sample.hard or self._is_cell:
            return relaxed
        exact = self.score(sample.finished(self.answer_only)).to(relaxed)
        return exact + (relaxed - relaxed.detach())

    def relaxed(self, sample: RelaxedTokens) -> Tensor:
        """The value of the relaxed weights, `(batch,)`."""
        sample = sample.judged(self.answer_only)
        ids = self.token_ids(sample.tokenizer)
        if sample.ids.shape[1] < self._cells:
            raise ValueError(
                f"`groups` must fit on the canvas of {sample.ids.shape[1]} tokens, and reach cell {self._cells - 1}; "
                f"draw with `gen_length={self._cells}` or leave out what does not fit."
            )
        text = sample.text_positions()
        first = (~text).to(torch.uint8).argsort(dim=-1, stable=True)[:, : self._cells]  # where the cells are
        held = sample.weights_of(sample.ids.new_tensor(ids)) @ self._value_of.to(sample.weights)
        cells = held.gather(1, first[..., None].expand(-1, -1, held.shape[-1]))
        return self._value(cells * text.gather(1, first)[..., None])

    def score(self, samples: list[str], prompts: Sequence[Prompt] | None = None, batch_size: int = 32) -> Tensor:
        samples, prompts, batch_size = to_judge(samples, prompts, batch_size)
        place = {value: k for k, value in enumerate(self.values)}
        held = torch.zeros(len(samples), self._cells, len(self.values))
        for row, sample in zip(held, samples, strict=True):
            for cell, found in zip(row, self._cell.findall(sample), strict=False):
                if found in place:
                    cell[place[found]] = 1
        return self._value(held)

    def reached(self, samples: list[str], prompts: Sequence[Prompt] | None = None) -> list[bool]:
        """Which texts hold every value once in every group, or different ones in a smaller group."""
        return [value == 0 for value in self.score(samples, prompts).tolist()]

    def token_ids(self, tokenizer: Any) -> list[int]:
        if tokenizer is None:
            raise ValueError("`tokens` must carry the generator's tokenizer, got None; a host passes its pipeline's.")
        if tokenizer is not self._tokenizer:
            place = {value: k for k, value in enumerate(self.values)}
            texts = token_texts(tokenizer)
            found = [(i, place[text.strip()]) for i, text in enumerate(texts) if text.strip() in place]
            missing = set(range(len(self.values))) - {k for _, k in found}
            if missing:
                raise ValueError(
                    f"`values` has {self.values[min(missing)]!r}, for which the generator's tokenizer has no single "
                    "token; take values that are one token each."
                )
            self._value_of = torch.zeros(len(found), len(self.values))
            self._value_of[range(len(found)), [k for _, k in found]] = 1
            self._ids, self._tokenizer = [i for i, _ in found], tokenizer
            self._is_cell = all(len(self._cell.findall(text)) == 1 for text in texts if text)
        return self._ids

    def _value(self, held: Tensor) -> Tensor:
        """`(batch,)` of how much of a cell is each value, `(batch, cells, values)`."""
        members = self._members.to(held)
        count = members @ held  # (batch, groups, values)
        own = count if self.relaxation == "square" else members @ held.square()  # of a cell with itself
        empty = members.sum(-1) - count.sum(-1)
        return 0 - (count.square() - own).sum((1, 2)) - empty.sum(1)  # 0 and not -0


def _checked_values(values: Any) -> tuple[str, ...]:
    found = tuple(values) if isinstance(values, str | Sequence) else ()
    wrong = [v for v in found if not isinstance(v, str) or not v or v.split() != [v]]
    if wrong or not found:
        got = repr(wrong[0]) if wrong else repr(values)
        raise ValueError(f"`values` must be texts without white space, such as '123456789' or ['1', '2'], got {got}.")
    if len(set(found)) < len(found):
        raise ValueError(f"`values` must be different texts, got {list(found)!r:.200}; leave out the second of two.")
    return found


def _checked_groups(groups: Any, most: int) -> tuple[tuple[int, ...], ...]:
    if isinstance(groups, str) and groups == "sudoku":
        groups = SUDOKU
    if isinstance(groups, str) or not isinstance(groups, Sequence) or not len(groups):
        raise ValueError(f'`groups` must be lists of cells, at least one, or "sudoku", got {groups!r:.100}.')
    found = []
    for group in groups:
        cells = [as_whole(cell) for cell in group] if isinstance(group, Sequence) and not isinstance(group, str) else []
        plain = tuple(cell for cell in cells if cell is not None and cell >= 0)
        if not plain or len(plain) != len(cells) or len(set(plain)) != len(plain):
            raise ValueError(
                f"`groups` must be lists of different cells, integers >= 0, got {group!r:.100} among them."
            )
        if len(plain) > most:
            raise ValueError(
                f"`groups` must have at most {most} cells each, as many as there are values, got {len(plain)} in "
                f"{group!r:.100}; more cannot all be different."
            )
        found.append(plain)
    return tuple(found)
