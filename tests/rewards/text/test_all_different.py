import itertools
import random
import re

import numpy as np
import pytest
import torch

from redge_guidance import GuidanceConfig, RelaxedTokens, guide
from redge_guidance.estimators import ESTIMATORS
from redge_guidance.rewards import AllDifferentReward
from redge_guidance.rewards.text.all_different import SUDOKU, violations
from tests.helpers.reward_models import relaxed
from tests.helpers.tiny import WORDS, tiny_pipeline, word_tokenizer
from tests.helpers.tokenizers import tokenizer

PUZZLE = "123456789456789123789123456" + "231564897564897231897231564" + "312645978645978312978312645"
SQUARE = [[0, 1, 2], [3, 4, 5], [0, 3], [1, 4], [2, 5]]  # three values in each row, two of them in each column
LETTERS = ("a", "b", "c")


def plain_value(cells, groups, values):
    """Counted by hand: what the class says of finished texts."""
    total = 0
    for group in groups:
        held = [cells[i] if i < len(cells) else None for i in group]
        counts = [held.count(value) for value in values]
        if len(group) == len(values):
            total -= sum((n - 1) ** 2 for n in counts)
        else:
            total -= sum(n * (n - 1) for n in counts) + sum(one not in values for one in held)
    return total


def soft(batch=3, dtype=torch.float64, given=False):
    """Texts of six cells that are mixtures of all words, the first cell given; no end among the hard ids."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, len(WORDS), (batch, 6), generator=generator)
    free = torch.ones_like(ids).bool()
    free[:, 0] = not given
    weights = torch.randn(int(free.sum()), len(WORDS), generator=generator, dtype=dtype).softmax(-1)
    return RelaxedTokens(ids, free, weights.requires_grad_(), hard=False, tokenizer=word_tokenizer(), given=~free)


def test_units_of_a_sudoku():
    assert len(SUDOKU) == 27
    assert all(len(set(unit)) == 9 for unit in SUDOKU)
    assert all(sum(cell in unit for unit in SUDOKU) == 3 for cell in range(81))
    assert SUDOKU[18 + 4] == (30, 31, 32, 39, 40, 41, 48, 49, 50)


def test_a_solved_board_is_worth_0_and_every_exchange_less():
    reward = AllDifferentReward("sudoku")
    board = list(PUZZLE)
    assert violations(PUZZLE) == 0
    assert reward.score(PUZZLE).tolist() == [0]
    assert reward.reached([PUZZLE, "1" + PUZZLE[1:80] + "2"]) == [True, False]
    rng = random.Random(0)
    for _ in range(20):
        changed = board.copy()
        changed[rng.randrange(81)] = rng.choice("123456789")
        text = "".join(changed)
        assert violations(text) == 0 if text == PUZZLE else violations(text) > 0
        assert reward.score(text).item() == plain_value(changed, SUDOKU, "123456789")


def test_boards_may_be_numbers_of_any_kind():
    digits = [int(digit) for digit in PUZZLE]
    for board in (digits, [float(d) for d in digits], np.array(digits, np.float32), torch.tensor(digits), list(PUZZLE)):
        assert violations(board) == 0
    for wrong in (None, 1.5, [1]):
        with pytest.raises(ValueError, match="`board` must have digits as cells, texts or whole numbers"):
            violations([wrong] * 81)
    with pytest.raises(ValueError, match="must have 81 cells, got 1 in"):
        violations([PUZZLE])


def test_violations_counts_missing_digits():
    assert violations("." * 81) == 27 * 9
    assert violations([0] * 81) == 27 * 9
    assert violations([int(c) for c in PUZZLE]) == 0
    assert violations(f"{PUZZLE[:40]}\n{PUZZLE[40:]} ") == 0
    assert violations("x" + PUZZLE[1:]) == 3
    with pytest.raises(ValueError, match="`board` must have 81 cells, got 80"):
        violations(PUZZLE[1:])


def test_value_of_all_texts_of_six_cells_is_the_plain_count():
    reward, texts = AllDifferentReward(SQUARE, LETTERS), list(itertools.product("abcd", repeat=6))
    expected = [plain_value(cells, SQUARE, LETTERS) for cells in texts]
    assert reward.score(["".join(cells) for cells in texts]).tolist() == expected
    assert reward.score([" ".join(cells) for cells in texts[:50]]).tolist() == expected[:50]
    best = [cells for cells, value in zip(texts, expected, strict=True) if value == 0]
    assert len(best) == 6 * 2  # permutations of a row, and the derangements of it below
    assert max(expected) == 0


def test_hard_tokens_are_worth_what_their_text_is():
    texts = ["a b c b c a", "a a b b c c", "a b c", "d d d d d d", "", "a b c b c a a b"]
    tokens = relaxed(word_tokenizer(), texts, length=9)
    reward = AllDifferentReward(SQUARE, LETTERS)
    assert reward(tokens).tolist() == reward.score(texts).tolist() == reward.score(tokens.texts()).tolist()
    assert reward.score(texts).tolist() == [plain_value(text.split(), SQUARE, LETTERS) for text in texts]
    assert reward(tokens).dtype == torch.float32
    torch.testing.assert_close(reward.relaxed(tokens), reward(tokens))


@pytest.mark.parametrize("kind", ["byte", "wordpiece", "unigram", "fallback"])
def test_cells_are_tokens_whatever_the_tokenizer(kind):
    texts = ["a s t a", "t s a a", "a s"]
    reward = AllDifferentReward([[0, 1, 2], [0, 3]], "ast")
    tokens = relaxed(tokenizer(kind), texts)
    torch.testing.assert_close(reward(tokens), reward.score(tokens.texts()))


def test_relaxed_cells_count_by_the_mean_over_texts():
    """Against all texts of six cells, the first given, each cell drawn by its weights."""
    tokens, reward = soft(batch=2, given=True), AllDifferentReward(SQUARE, LETTERS)
    expected = []
    for row in tokens.weights_of(torch.arange(len(WORDS))):
        total = 0.0
        for cells in itertools.product("abcde", repeat=6):
            which = [WORDS.index(cell) for cell in cells]
            total = total + row[range(6), which].prod() * plain_value(cells, SQUARE, LETTERS)
        expected.append(total)
    kept = tokens.weights_of(torch.arange(3, len(WORDS))).sum(-1).prod(-1)  # of texts without special tokens
    assert (kept < 1 - 1e-3).all()
    rows = tokens.weights.detach().clone()
    rows[:, :3] = 0
    tokens = RelaxedTokens(
        tokens.ids, tokens.free, rows / rows.sum(-1, keepdim=True), hard=False, tokenizer=tokens.tokenizer
    )
    torch.testing.assert_close(reward(tokens), (torch.stack(expected) / kept).detach())


def test_squares_of_relaxed_cells_are_those_of_the_paper():
    tokens = soft(given=True)
    reward = AllDifferentReward(SQUARE, LETTERS, relaxation="square")
    cells = tokens.weights_of([WORDS.index(letter) for letter in LETTERS])
    expected = [sum(-(((row[list(g)].sum(0) - 1) ** 2).sum() - 3 + len(g)) for g in SQUARE) for row in cells]
    torch.testing.assert_close(reward(tokens), torch.stack(expected))
    hard = relaxed(word_tokenizer(), ["a b c b c a", "a a b b c c", "d d d d d d"], length=7)
    assert reward(hard).tolist() == AllDifferentReward(SQUARE, LETTERS)(hard).tolist()


@pytest.mark.parametrize("relaxation", ["mean", "square"])
def test_gradient(relaxation):
    tokens, reward = soft(), AllDifferentReward(SQUARE, LETTERS, relaxation=relaxation)

    def value(weights):
        how = {"hard": False, "tokenizer": tokens.tokenizer, "given": tokens.given}
        return reward(RelaxedTokens(tokens.ids, tokens.free, weights, **how))

    assert torch.autograd.gradcheck(value, (tokens.weights,))


def test_slopes_of_hard_tokens_are_what_an_exchange_of_one_cell_changes():
    texts = ["a a c b c b", "a b c d a a"]
    tokens, reward = relaxed(word_tokenizer(), texts, length=7), AllDifferentReward(SQUARE, LETTERS)
    (grad,) = torch.autograd.grad(reward(tokens).sum(), tokens.weights)
    grad = grad.view(2, 7, -1)
    for row, text in zip(grad, texts, strict=True):
        cells = text.split()
        for i, other in itertools.product(range(6), "abcde"):
            exchanged = [*cells[:i], other, *cells[i + 1 :]]
            change = plain_value(exchanged, SQUARE, LETTERS) - plain_value(cells, SQUARE, LETTERS)
            assert row[i, WORDS.index(other)] - row[i, WORDS.index(cells[i])] == change


def test_padding_and_the_prompt_in_front():
    tokenizer_ = word_tokenizer()
    ids = torch.tensor([[0, 0, 3, 4, 5], [3, 4, 5, 3, 4]])
    given = torch.tensor([[False, False, True, False, False], [True, True, False, False, False]])
    mask = torch.tensor([[False, False, True, True, True], [True] * 5])
    free = mask & ~given
    weights = torch.nn.functional.one_hot(ids[free], len(WORDS)).float()
    tokens = RelaxedTokens(ids, free, weights, attention_mask=mask, tokenizer=tokenizer_, given=given)
    assert AllDifferentReward([[0, 1, 2]], LETTERS)(tokens).tolist() == [0, 0]
    answers = AllDifferentReward([[0, 1]], LETTERS, answer_only=True)
    assert answers(tokens).tolist() == [0, 0] == answers.score(["b c", "c a"]).tolist()
    later = AllDifferentReward([[0, 3]], LETTERS, answer_only=True)  # of whole texts the second has two alike there
    assert later(tokens).tolist() == [-1, -1] == later.score(["b c", "c a b"]).tolist()


@pytest.mark.parametrize("estimator", sorted(ESTIMATORS))
def test_guidance_fills_a_square(estimator):
    pipe, reward = tiny_pipeline(length=7), AllDifferentReward(SQUARE, LETTERS)
    prompts = ["a [MASK] [MASK] [MASK] [MASK] b"] * 16  # which ends behind its last word

    def draw():
        return pipe(prompts, num_inference_steps=5, generator=torch.Generator().manual_seed(0)).texts

    bare = draw()
    with guide(pipe, reward, GuidanceConfig(scale=2.0, estimator=estimator, every=1)):
        texts = draw()
    assert all(text.startswith("a ") and text.endswith(" b") and len(text.split()) == 6 for text in texts)
    assert reward.score(texts).mean() > reward.score(bare).mean() + 1
    assert draw() == bare


def test_the_target_is_0():
    pipe, reward = tiny_pipeline(length=7), AllDifferentReward(SQUARE, LETTERS)
    with guide(pipe, reward) as handle:
        pipe(["[MASK] " * 6], num_inference_steps=3, generator=torch.Generator().manual_seed(0))
    assert handle.trace.target == 0


@pytest.mark.parametrize(
    ("groups", "values", "told"),
    [
        ([], "abc", '`groups` must be lists of cells, at least one, or "sudoku", got []'),
        ("chess", "abc", "`groups` must be lists of cells, at least one, or \"sudoku\", got 'chess'"),
        ([[0, 1], []], "abc", "`groups` must be lists of different cells, integers >= 0, got [] among them"),
        ([[0, 0]], "abc", "`groups` must be lists of different cells, integers >= 0, got [0, 0] among them"),
        ([[-1]], "abc", "`groups` must be lists of different cells, integers >= 0, got [-1] among them"),
        ([[0.5]], "abc", "`groups` must be lists of different cells, integers >= 0, got [0.5] among them"),
        ([["0"]], "abc", "`groups` must be lists of different cells, integers >= 0, got ['0'] among them"),
        ([3], "abc", "`groups` must be lists of different cells, integers >= 0, got 3 among them"),
        ([range(4)], "abc", "`groups` must have at most 3 cells each, as many as there are values, got 4"),
        ("sudoku", "abc", "`groups` must have at most 3 cells each"),
        ([[0]], "", "`values` must be texts without white space, such as '123456789' or ['1', '2'], got ''"),
        (
            [[0]],
            ["a", "b c"],
            "`values` must be texts without white space, such as '123456789' or ['1', '2'], got 'b c'",
        ),
        ([[0]], [1, 2], "`values` must be texts without white space, such as '123456789' or ['1', '2'], got 1"),
        ([[0]], 3, "`values` must be texts without white space, such as '123456789' or ['1', '2'], got 3"),
        ([[0]], "aba", "`values` must be different texts, got ['a', 'b', 'a']; leave out the second of two"),
    ],
)
def test_what_is_refused(groups, values, told):
    with pytest.raises(ValueError, match=re.escape(told)):
        AllDifferentReward(groups, values)


def test_another_relaxation_is_refused():
    with pytest.raises(ValueError, match='`relaxation` must be "mean" or "square", got \'soft\'.'):
        AllDifferentReward("sudoku", relaxation="soft")


def test_a_value_without_a_token_and_a_short_canvas_are_refused():
    pipe = tiny_pipeline()
    with (
        guide(pipe, AllDifferentReward([[0, 1]], ["a", "z"])),
        pytest.raises(ValueError, match="`values` has 'z', for which the generator's tokenizer has no single token"),
    ):
        pipe([""], num_inference_steps=2)
    with (
        guide(pipe, AllDifferentReward([[0, 9]], LETTERS)),
        pytest.raises(
            ValueError, match="`groups` must fit on the canvas of 6 tokens, and reach cell 9; draw with `gen"
        ),
    ):
        pipe([""], num_inference_steps=2)
    with pytest.raises(ValueError, match="`tokens` must carry the generator's tokenizer, got None"):
        AllDifferentReward([[0]], LETTERS).token_ids(None)
