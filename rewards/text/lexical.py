"""Words and phrases as a reward."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from redge_guidance.checks import as_real
from redge_guidance.evaluation import check_prompts, check_samples
from redge_guidance.reward import Reward
from redge_guidance.rewards.reading.alignment import token_texts
from redge_guidance.samples.tokens import RelaxedTokens

_UNIT = re.compile(r"\w+|[^\w\s]")
_MOST_NAMED = 512  # tokens that are added to the support of every position
_CHUNK = 256  # spellings whose occurrences are computed at once


@dataclass(frozen=True)
class LexicalReport:
    """What became of the words of a `LexicalReward` in some texts.

    Attributes:
        share: of the texts, by word or phrase, that have it.
        satisfied: share of the texts that have every wanted one and no banned one.
        violations: for each text, the wanted ones that it lacks and the banned ones that it has.
    """

    share: dict[str, float]
    satisfied: float
    violations: list[list[str]]


class LexicalReward(Reward):
    """`r(x) = sum_w weight_w [w occurs in x]`, or `sum_w weight_w (how often w occurs in x)`.

    Words are found whole, as runs of word characters or single other signs: "cat" is in "the cat's", not in "cats".
    The value is that of the decoded text. Its gradient is that of `1 - prod_i (1 - o_i)`, or of `sum_i o_i`,
    `o_i = prod_k w_{i+k}(t_k)` being the relaxed weight of the tokens t of a word at position i, over its spellings (at
    the beginning of a text and within, capitalised too unless the case matters), times the weight of a word's end after
    it. Guidance considers the tokens of wanted words everywhere, however unlikely, as long as there are no more than
    512. Longer lists steer within `support`.

    Args:
        wanted: a word or phrase, several, or a mapping to weights, such as VADER's lexicon; negative ones are banned.
        banned: words or phrases of weight -1, or a mapping to what each is to cost, > 0.
        count: count occurrences; False: whether there is one.
        case_sensitive: "Will" is not "will".

    Raises:
        ValueError: no word, one without any sign, or a weight that is not a finite number other than 0. When called: a
            wanted word that the generator's tokenizer cannot write.
    """

    modality = "text"

    def __init__(
        self,
        wanted: str | Iterable[str] | Mapping[str, float] = (),
        banned: str | Iterable[str] | Mapping[str, float] = (),
        *,
        count: bool = False,
        case_sensitive: bool = False,
    ):
        self.count, self.case_sensitive = count, case_sensitive
        costs = {word: -cost for word, cost in _weights(banned, "banned").items()}
        self.weights = {**_weights(wanted, "wanted"), **costs}
        if not self.weights:
            raise ValueError("`wanted` or `banned` must name a word, got none.")
        self._words = list(self.weights)
        self._phrases = [tuple(self._units(word)) for word in self._words]
        self._by_first: dict[str, list[int]] = {}
        for k, phrase in enumerate(self._phrases):
            if not phrase:
                raise ValueError(f"`wanted` and `banned` must be words or phrases, got {self._words[k]!r}.")
            self._by_first.setdefault(phrase[0], []).append(k)
        self._tokenizer: Any = None  # the last one, and the words in it
        self._spellings = _Spellings([], [], torch.zeros(0, 2))
        self._groups: list[_Spellings] = []

    def __call__(self, sample: RelaxedTokens) -> Tensor:
        exact = self.score(sample.texts()).to(sample.weights)
        relaxed = self.relaxed(sample)
        return exact + (relaxed - relaxed.detach())

    def score(self, samples: list[str], prompts: Sequence[str] | None = None, batch_size: int = 32) -> Tensor:
        check_prompts(samples, prompts)
        values = []
        for text in samples:
            found = self._found(text)
            values.append(sum(self.weights[self._words[k]] * (n if self.count else 1) for k, n in found.items()))
        return torch.tensor(values, dtype=torch.float)

    def reached(self, samples: list[str], prompts: Sequence[str] | None = None) -> list[bool]:
        """Which texts have every wanted word and no banned one."""
        return [not found for found in self.report(samples).violations]

    def report(self, texts: list[str]) -> LexicalReport:
        """Which of the texts have which of the words, and which keep to all of them."""
        check_samples(texts, "texts")
        found = [self._found(text) for text in texts]
        share = {word: sum(k in f for f in found) / max(len(texts), 1) for k, word in enumerate(self._words)}
        violations = [
            [word for k, word in enumerate(self._words) if (k in f) != (self.weights[word] > 0)] for f in found
        ]
        return LexicalReport(share, sum(not v for v in violations) / max(len(texts), 1), violations)

    def token_ids(self, tokenizer: Any) -> list[int]:
        spellings = self._spelled(tokenizer)
        wanted = {k for k, word in enumerate(self._words) if self.weights[word] > 0}
        named = {i for word, ids in zip(spellings.words, spellings.ids, strict=True) if word in wanted for i in ids}
        return sorted(named) if len(named) <= _MOST_NAMED else []

    def _units(self, text: str) -> list[str]:
        return _UNIT.findall(text if self.case_sensitive else text.lower())

    def _found(self, text: str) -> dict[int, int]:
        """How often each word that is there occurs."""
        units = self._units(text)
        found: dict[int, int] = {}
        for i, unit in enumerate(units):
            for k in self._by_first.get(unit, ()):
                if tuple(units[i : i + len(self._phrases[k])]) == self._phrases[k]:
                    found[k] = found.get(k, 0) + 1
        return found

    def relaxed(self, sample: RelaxedTokens) -> Tensor:
        """The value of the relaxed weights, `(batch,)`."""
        spellings, device = self._spelled(sample.tokenizer), sample.weights.device
        assert sample.attention_mask is not None
        mask = sample.attention_mask.to(sample.weights)
        inside = sample.embed(spellings.inside.to(sample.weights)) * mask[..., None]
        # at i: the token in front does not end within a word; the one at i does not begin within one
        free_before = torch.nn.functional.pad(1 - inside[:, :-1, 1], (1, 0), value=1.0)
        free_after = torch.nn.functional.pad(1 - inside[..., 0], (0, 1), value=1.0)
        weights = torch.tensor([self.weights[word] for word in self._words], device=device)
        total = torch.zeros(len(sample), len(self._words), device=device)
        absent = torch.ones_like(total)
        for group in self._groups:
            occurs = _occurrences(sample, group, mask, free_before, free_after)
            if occurs is None:
                continue
            words = torch.tensor(group.words, device=device)
            total = total.index_add(1, words, occurs.sum(1))
            absent = absent * torch.ones_like(absent).index_copy(1, words, (1 - occurs).prod(1))
        return ((total if self.count else 1 - absent) * weights).sum(-1)

    def _spelled(self, tokenizer: Any) -> "_Spellings":
        if tokenizer is None:
            raise ValueError("`tokens` must carry the generator's tokenizer, got None; a host passes its pipeline's.")
        if tokenizer is not self._tokenizer:
            self._spellings = _Spellings.of(self._words, tokenizer, self.case_sensitive)
            self._groups = self._spellings.groups()
            known = set(self._spellings.words)
            missing = [w for k, w in enumerate(self._words) if self.weights[w] > 0 and k not in known]
            if missing and len(self._words) <= _MOST_NAMED:
                raise ValueError(f"`wanted` has {missing[0]!r}, which the generator's tokenizer cannot write.")
            self._tokenizer = tokenizer
        return self._spellings


@dataclass(frozen=True)
class _Spellings:
    """Token sequences that write words: `ids[n]` writes word number `words[n]`."""

    words: list[int]
    ids: list[tuple[int, ...]]
    inside: Tensor  # (vocabulary, 2): whether a token begins, and ends, with a word character

    @classmethod
    def of(cls, words: list[str], tokenizer: Any, case_sensitive: bool) -> "_Spellings":
        before = tokenizer("a", add_special_tokens=False).input_ids
        texts = [
            [*dict.fromkeys((word,) if case_sensitive else (word, word.lower(), word[:1].upper() + word[1:]))]
            for word in words
        ]
        flat = [text for variants in texts for text in variants]
        alone = tokenizer(flat, add_special_tokens=False).input_ids
        within = tokenizer([f"a {text}" for text in flat], add_special_tokens=False).input_ids
        owners = [k for k, variants in enumerate(texts) for _ in variants]
        found: dict[tuple[int, tuple[int, ...]], None] = {}
        for owner, first, later in zip(owners, alone, within, strict=True):
            found[owner, tuple(first)] = None
            if later[: len(before)] == before:
                found[owner, tuple(later[len(before) :])] = None
        known = [key for key in found if key[1]]
        written = tokenizer.batch_decode([list(ids) for _, ids in known])
        wanted = [re.sub(r"\s", "", word if case_sensitive else word.lower()) for word in words]
        known = [
            key
            for key, text in zip(known, written, strict=True)
            if re.sub(r"\s", "", text if case_sensitive else text.lower()) == wanted[key[0]]
        ]
        edges = [(text[:1], text[-1:]) for text in token_texts(tokenizer)]
        inside = torch.tensor([[bool(re.match(r"\w", sign)) for sign in pair] for pair in edges], dtype=torch.float)
        return cls([word for word, _ in known], [ids for _, ids in known], inside)

    def groups(self) -> "list[_Spellings]":
        """Parts in which all sequences have one length and no word comes twice."""
        parts: dict[tuple[int, int, int], list[int]] = {}
        seen: dict[tuple[int, int], int] = {}
        members: dict[tuple[int, int], int] = {}
        for n, (word, ids) in enumerate(zip(self.words, self.ids, strict=True)):
            rank = seen[word, len(ids)] = seen.get((word, len(ids)), -1) + 1
            number = members[len(ids), rank] = members.get((len(ids), rank), -1) + 1
            parts.setdefault((len(ids), rank, number // _CHUNK), []).append(n)
        return [_Spellings([self.words[n] for n in p], [self.ids[n] for n in p], self.inside) for p in parts.values()]


def _occurrences(
    tokens: RelaxedTokens, group: _Spellings, mask: Tensor, free_before: Tensor, free_after: Tensor
) -> Tensor | None:
    """Weight of each spelling at each position, `(batch, positions, spellings)`; None where the text is too short."""
    sequences = torch.tensor(group.ids, device=mask.device)  # (spellings, n)
    n, length = sequences.shape[1], mask.shape[1]
    if n > length:
        return None
    distinct, columns = sequences.unique(return_inverse=True)
    weights = tokens.weights_of(distinct) * mask[..., None]
    occurs = weights[:, : length - n + 1, columns[:, 0]]
    for k in range(1, n):
        occurs = occurs * weights[:, k : length - n + 1 + k, columns[:, k]]
    begins, ends = group.inside.to(mask)[sequences[:, 0], 0], group.inside.to(mask)[sequences[:, -1], 1]
    before = 1 - begins * (1 - free_before[:, : length - n + 1, None])
    after = 1 - ends * (1 - free_after[:, n:, None])
    return occurs * before * after


def _weights(words: str | Iterable[str] | Mapping[str, float], argument: str) -> dict[str, float]:
    if isinstance(words, str):
        words = [words]
    weights = dict(words) if isinstance(words, Mapping) else dict.fromkeys(words, 1.0)
    plain = {}
    for word, weight in weights.items():
        number = as_real(weight)
        if number is None or not abs(number) < float("inf") or number == 0:
            raise ValueError(f"`{argument}` must have a finite weight other than 0 for {word!r}, got {weight!r}.")
        if argument == "banned" and number < 0:
            raise ValueError(f"`banned` must say what {word!r} costs, > 0, got {weight!r}.")
        plain[word] = float(number)
    return plain
