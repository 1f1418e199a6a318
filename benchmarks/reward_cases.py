"""Nine rewards for `eight_rewards.py`, the ninth a sum, each with what judges the finished samples.

Everything here is as a user would make it: no weight and no temperature is fitted to guidance, but for the digits,
whose card says a temperature.
"""

import copy
import functools
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from mnist import JUDGE, Judge
from reward_gradients import encoder_path
from text_rewards import TARGETS, WORDS
from torch import Tensor
from transformers import LlamaConfig, LlamaForSequenceClassification, ModernBertForSequenceClassification

from redge_guidance.evaluate.judges import Vader
from redge_guidance.reward import Reward
from redge_guidance.rewards import (
    BlackBoxReward,
    ImageClassifierReward,
    LengthReward,
    LexicalReward,
    SentenceSimilarityReward,
    TextClassifierReward,
    TextPreferenceReward,
)

LABELS = ("negative", "positive")
TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
QUESTIONS = ["{a} {s} {v} {o}?", "{w} {a} {s} {v}?", "{a} {s} {v} {o} {w} {s} {v} {o}?", "{a} {s} {v}?"]
STATEMENTS = ["{s} {v} {o}.", "{s} {a} {v}!", "{s} {v} {w} {s} {a} {v} {o} {o}.", "{v} {o}."]
WORDS_OF = {
    "a": "do does did can will is was are would has have should",
    "w": "what who where when why how which",
    "s": "I you he she they we Tom Mary it this that everybody the.man my.sister your.friend",
    "v": "like likes want know see think go went come help eat give take read tell left sure here happy tired",
    "o": "it me him that home music the.book a.car his.money to.school with.us this.summer very.much again",
}


@dataclass(frozen=True)
class Goal:
    """One reward and what says, of each finished sample, how far it is what was asked for, `judge(samples)`."""

    reward: Reward
    judge: Callable[[Any], list[float]]


@dataclass(frozen=True)
class Case:
    """A kind of reward: its goals, over which the samples are spread, and what is tried as its scale.

    Attributes:
        goals: makes them.
        judged: what the judge's figure is.
        scales: of the sweep.
        settings: of `GuidanceConfig`, beside the scale, where a user has to say something.
        images: whether samples are digits, not texts.
    """

    goals: Callable[[], list[Goal]]
    judged: str
    scales: tuple[float, ...]
    settings: dict[str, Any] = field(default_factory=dict)
    images: bool = False


vader = functools.cache(Vader)
judge_of_digits = functools.cache(lambda: Judge(JUDGE))


def _classifier(label: str) -> TextClassifierReward:
    return TextClassifierReward.from_pretrained("builtin:sentiment", label=label)


def has_word(word: str, texts: list[str]) -> list[bool]:
    return [re.search(rf"\b{re.escape(word)}\b", text, re.IGNORECASE) is not None for text in texts]


def has_length(lowest: int, highest: int, texts: list[str]) -> list[bool]:
    return [lowest <= len(text.split()) <= highest for text in texts]


def all_of(*judges: Callable[[list[str]], list[bool]]) -> Callable[[list[str]], list[float]]:
    """Of every text 1 where all judges say yes, else 0."""
    return lambda texts: [float(all(found)) for found in zip(*(judge(texts) for judge in judges), strict=True)]


def sentiment() -> list[Goal]:
    return [Goal(_classifier(label), all_of(lambda texts, label=label: vader()(texts, label))) for label in LABELS]


def two_labels() -> list[Goal]:
    asks, goals = question_reward(_classifier("positive")), []
    for label in LABELS:
        judge = all_of(
            lambda texts, label=label: vader()(texts, label), lambda texts: [t.rstrip().endswith("?") for t in texts]
        )
        goals.append(Goal(_classifier(label) + asks, judge))
    return goals


def words() -> list[Goal]:
    return [Goal(LexicalReward(word), all_of(functools.partial(has_word, word))) for word in WORDS[:8]]


def length() -> list[Goal]:
    return [Goal(LengthReward(n, n), all_of(functools.partial(has_length, n, n))) for n in (4, 9, 12)]


def similarity() -> list[Goal]:
    first = SentenceSimilarityReward.from_pretrained(encoder_path(), TARGETS[0])
    how = {"pooling": first.pooling, "max_length": 256}
    rewards = [SentenceSimilarityReward(first.model, first.tokenizer, target, **how) for target in TARGETS[:8]]
    return [
        Goal(reward, lambda texts, reward=reward: reward.score(texts, batch_size=64).tolist()) for reward in rewards
    ]


def black_box() -> list[Goal]:
    rewards = [lambda text: -vader().compound(text), lambda text: vader().compound(text)]
    return [
        Goal(BlackBoxReward(reward, name=label), all_of(lambda texts, label=label: vader()(texts, label)))
        for label, reward in zip(LABELS, rewards, strict=True)
    ]


def preference() -> list[Goal]:
    """A decoder with one output and random weights, asked about answers to two prompts."""
    tokenizer, goals = _classifier("positive").tokenizer, []
    with torch.random.fork_rng():
        torch.manual_seed(0)
        sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
        ids = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id, "max_position_embeddings": 256}
        config = LlamaConfig(**sizes, **ids, num_labels=1, initializer_range=0.3)
        model = LlamaForSequenceClassification(config)
    for prompt in ("How are you?", "Tell me about your day."):
        reward = TextPreferenceReward(model, tokenizer, prompt, chat_template=TEMPLATE)
        goals.append(Goal(reward, lambda texts, reward=reward: reward.score(texts).tolist()))
    return goals


def digits(temperature: float) -> list[Goal]:
    first = ImageClassifierReward.from_pretrained("builtin:mnist-classifier", "0")
    return [
        Goal(
            ImageClassifierReward(first.model, first.processor, digit, temperature=temperature),
            lambda pixels, digit=digit: (judge_of_digits()(pixels)[0] == digit).float().tolist(),
        )
        for digit in range(10)
    ]


def sum_of_three() -> list[Goal]:
    """A sentiment, a word and a length, added up without weights."""
    goals = []
    for label, word in zip(LABELS * 2, ("school", "music", "money", "house"), strict=True):
        judge = all_of(
            lambda texts, label=label: vader()(texts, label),
            functools.partial(has_word, word),
            functools.partial(has_length, 8, 10),
        )
        goals.append(Goal(_classifier(label) + LexicalReward(word) + LengthReward(8, 10), judge))
    return goals


def cases(digit_temperature: float = 8.0) -> dict[str, Case]:
    """All of them by name, in the order of the table."""
    return {
        "sentiment": Case(sentiment, "VADER", (0.5, 1, 1.5, 2, 3, 4)),
        "two labels": Case(two_labels, "VADER, and ends with ?", (0.5, 1, 2, 4, 8)),
        "words": Case(words, "has the word", (0.25, 0.5, 1, 2, 4, 8, 16, 30)),
        "length": Case(length, "has the length", (0.125, 0.25, 0.5, 1, 2, 4, 8)),
        "similarity": Case(similarity, "cosine", (15, 30, 60, 120, 250)),
        "black box": Case(black_box, "VADER", (8, 16, 32, 64, 128), {"num_draws": 32}),
        "preference": Case(preference, "reward", (0.5, 1, 2, 4, 8, 16, 32)),
        "digits": Case(
            functools.partial(digits, digit_temperature), "other judge", (60, 125, 250, 500, 1000), images=True
        ),
        "sum of three": Case(sum_of_three, "all three", (2, 4, 8, 16, 32)),
    }


def question_reward(sentiment: TextClassifierReward) -> TextClassifierReward:
    """Toward questions: the classifier of sentiments, trained here to tell questions from statements of a few patterns.

    Half of the words are exchanged for any others, so that it goes by order and mark more than by these words; three
    marks at the end of ten too, and a tenth of the labels is spread, so that the mark alone does not make it sure and
    leave no gradient. It takes seconds.
    """
    tokenizer = sentiment.tokenizer
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = copy.deepcopy(sentiment.model.config)
        config.id2label, config.label2id = {0: "statement", 1: "question"}, {"statement": 0, "question": 1}
        model = ModernBertForSequenceClassification(config).train()
        told = {
            name: value for name, value in sentiment.model.state_dict().items() if not name.startswith("classifier")
        }
        model.load_state_dict(told, strict=False)
        words, marks = _words(tokenizer), torch.tensor(tokenizer.convert_tokens_to_ids(list(".!?")))
        optimizer, loss = torch.optim.Adam(model.parameters(), 5e-4), torch.nn.CrossEntropyLoss(label_smoothing=0.1)
        for _ in range(150):
            labels = torch.randint(2, (64,))
            batch = tokenizer([_sentence(int(label)) for label in labels], return_tensors="pt", padding=True)
            ids, mask = batch["input_ids"], batch["attention_mask"]
            change = (torch.rand(ids.shape) < 0.5) & torch.isin(ids, words)
            change |= (torch.rand(len(ids), 1) < 0.3) & torch.isin(ids, marks)
            shown = ids.where(~change, words[torch.randint(len(words), ids.shape)])
            optimizer.zero_grad()
            loss(model(input_ids=shown, attention_mask=mask).logits, labels).backward()
            optimizer.step()
    return TextClassifierReward(model, tokenizer, label="question")


def _words(tokenizer: Any) -> Tensor:
    """Ids of tokens that are words or parts of words."""
    tokens = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    return torch.tensor([i for i, token in enumerate(tokens) if token.lstrip("Ġ").isalpha()])


def _sentence(question: int) -> str:
    kinds = QUESTIONS if question else STATEMENTS
    pattern = kinds[int(torch.randint(len(kinds), ()))]
    words = {name: line.split() for name, line in WORDS_OF.items()}
    chosen = {name: options[int(torch.randint(len(options), ()))] for name, options in words.items()}
    text = pattern.format(**chosen).replace(".", " ").rstrip()
    text = text if text.endswith(("?", "!")) else f"{text}."
    return text[0].upper() + text[1:]
