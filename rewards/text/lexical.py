"""Words and phrases as a reward."""

import functools
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from redge_guidance.chats import Prompt
from redge_guidance.constraints.machine import TooManyStatesError
from redge_guidance.constraints.occurrences import worth_of_words
from redge_guidance.constraints.valued import Valued
from redge_guidance.constraints.words import Phrases, weights_of_words, without_repetition
from redge_guidance.finished import as_samples, to_judge
from redge_guidance.reward import Reward
from redge_guidance.rewards.text.spellings import Places, Spellings, all_but_one
from redge_guidance.samples.tokens import RelaxedTokens

_MOST_NAMED = 512  # tokens that are added to the support of every position
_MOST_WORDS = 64  # of which there are automata
_MOST_STATES, _MOST_TOGETHER = 4000, 500  # states of a word, and of some words together
_MOST_COUNTED = 8  # occurrences of a word


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

    Words are found whole, as runs of letters, digits and their marks, or as single other signs: "cat" is in
    "the cat's", not in "cats"; "cafe" is not in "café". In scripts without spaces (Chinese, Japanese, Thai) a word is
    found wherever its characters stand. Both are compared in NFC and, unless the case matters, case folded: "Straße" is
    "STRASSE".

    The value is that of the decoded text. Its gradient is that of `1 - prod_i (1 - o_i)`, or of `sum_i o_i`,
    `o_i = prod_k w_{i+k}(t_k)` being the relaxed weight of the tokens t of a word at position i, over its spellings (at
    the beginning of a text and within, capitalised too unless the case matters), times the weight of a word's end after
    it. Of a wanted word of several tokens nearly every factor is 0 at first. So its slope in `w_{i+k}(t_k)`,
    `e = prod_{l != k} w_{i+l}(t_l)`, becomes `e + (1 - e) c_i (1 - o)`, o being whether the word occurs already
    (left out where occurrences are counted) and

        c_i = softmax_i sum_k log q_{i+k}(t_k)

    the posterior of where the word is, given that it is there once, q being the distribution that the sample was drawn
    from: all of its tokens are pulled to one place, by at most the weight of the word each. Where the word is there, or
    has one token, that is the gradient above. Guidance considers the tokens of wanted words everywhere, however
    unlikely, as long as there are no more than 512. Longer lists steer within `support`, by the gradient above alone.

    Args:
        wanted: a word or phrase, several, or a mapping to weights, such as VADER's lexicon; negative ones are banned.
        banned: words or phrases of weight -1, or a mapping to what each is to cost, > 0.
        count: count occurrences; False: whether there is one.
        case_sensitive: "Will" is not "will".
        answer_only: leave the prompt in front out of what is judged; None: in a chat it is, elsewhere it is not.

    Raises:
        ValueError: no word, one without any sign, one that is both wanted and banned or has two weights, or a weight
            that is not a finite number other than 0. When called: a wanted word that the generator's tokenizer cannot
            write; of more than 512 words that is a warning.
    """

    modality = "text"

    def __init__(
        self,
        wanted: str | Iterable[str] | Mapping[str, float] = (),
        banned: str | Iterable[str] | Mapping[str, float] = (),
        *,
        count: bool = False,
        case_sensitive: bool = False,
        answer_only: bool | None = None,
    ):
        self.answer_only = answer_only
        self.count, self.case_sensitive = count, case_sensitive
        self.weights = without_repetition(
            weights_of_words(wanted, "wanted"), weights_of_words(banned, "banned"), case_sensitive
        )
        if not self.weights:
            raise ValueError("`wanted` or `banned` must name a word, got none.")
        self._words = list(self.weights)
        self._phrases = Phrases(self._words, case_sensitive)
        self._tokenizer: Any = None  # the last one, and the words in it
        self._spellings = Spellings([], [], torch.zeros(0, 2), [])
        self._groups: list[Spellings] = []
        self._named: list[int] = []  # tokens of wanted words

    def __call__(self, sample: RelaxedTokens) -> Tensor:
        sample = sample.judged(self.answer_only)
        exact = self.score(sample.texts()).to(sample.weights)
        relaxed, pull = self._relaxed_and_pull(sample)
        return exact + (relaxed - relaxed.detach()) + (pull - pull.detach())

    def score(self, samples: list[str], prompts: Sequence[Prompt] | None = None, batch_size: int = 32) -> Tensor:
        samples, prompts, batch_size = to_judge(samples, prompts, batch_size)
        values = []
        for text in samples:
            found = self._phrases.found(text)
            values.append(sum(self.weights[self._words[k]] * (n if self.count else 1) for k, n in found.items()))
        return torch.tensor(values, dtype=torch.float)

    def reached(self, samples: list[str], prompts: Sequence[Prompt] | None = None) -> list[bool]:
        """Which texts have every wanted word and no banned one."""
        return [not found for found in self.report(samples).violations]

    def report(self, texts: list[str]) -> LexicalReport:
        """Which of the texts have which of the words, and which keep to all of them."""
        texts = as_samples(texts, "texts")
        found = [self._phrases.found(text) for text in texts]
        share = {word: sum(k in f for f in found) / max(len(texts), 1) for k, word in enumerate(self._words)}
        violations = [
            [word for k, word in enumerate(self._words) if (k in f) != (self.weights[word] > 0)] for f in found
        ]
        return LexicalReport(share, sum(not v for v in violations) / max(len(texts), 1), violations)

    def token_ids(self, tokenizer: Any) -> list[int]:
        self.spellings(tokenizer)
        return self._named

    def valued(self) -> list[Valued]:
        """How often each word is there, a few words to an automaton; none of long lists."""
        return self._valued

    @functools.cached_property
    def _valued(self) -> list[Valued]:
        found: list[Valued] = []
        for word in self._words if len(self._words) <= _MOST_WORDS else ():
            count = _MOST_COUNTED if self.count else 1
            try:
                one = worth_of_words({word: 1.0}, count=count, case_sensitive=self.case_sensitive, most=_MOST_STATES)
            except TooManyStatesError:  # a very long phrase
                return []
            alone = Valued(one, (self.weights[word],), (repr(word),), self.count)
            together = found[-1].with_(alone, _MOST_TOGETHER) if found else None
            found = [*found, alone] if together is None else [*found[:-1], together]
        return found

    def relaxed(self, sample: RelaxedTokens) -> Tensor:
        """The value of the relaxed weights, `(batch,)`."""
        return self._relaxed_and_pull(sample)[0]

    def _relaxed_and_pull(self, sample: RelaxedTokens) -> tuple[Tensor, Tensor]:
        """The value of the relaxed weights, and what adds `(1 - e) c_i (1 - o)` to its slope, `(batch,)` each."""
        places = Places(sample, self.spellings(sample.tokenizer).inside)
        device = sample.weights.device
        weights = torch.tensor([self.weights[word] for word in self._words], device=device)
        nothing = sample.weights[:0].sum()  # 0, whose slope is 0: there may be no word that this text has room for
        total = torch.zeros(len(sample), len(self._words), device=device) + nothing
        absent = torch.ones_like(total) - nothing
        for group in self._groups:
            occurs = places.occurrences(group)
            if occurs is None:
                continue
            words = torch.tensor(group.words, device=device)
            occurs = occurs.masked_fill(torch.tensor(group.again, device=device), 0.0)
            total = total.index_add(1, words, occurs.sum(1))
            absent = absent * torch.ones_like(absent).index_copy(1, words, (1 - occurs).prod(1))
        missing = torch.ones_like(absent) if self.count else absent.detach()
        pull = _Upward.apply(self._pull(sample, places, missing))
        return (((total if self.count else 1 - absent) * weights).sum(-1)), (pull * weights).sum(-1)

    def _pull(self, sample: RelaxedTokens, places: Places, missing: Tensor) -> Tensor:
        """`sum_i sum_k (1 - e) c_i (1 - o) w_{i+k}(t_k)`, of every word, `(batch, words)`; linear in the weights w."""
        pull = torch.zeros_like(missing)
        if not self._named or all(len(group.ids[0]) == 1 for group in self._groups):
            return pull
        scores = [places.log_placements(group) for group in self._groups]
        texts = len(sample) // sample.draws
        log_z = torch.full((texts, len(self._words)), -torch.inf, device=missing.device)
        for group, score in zip(self._groups, scores, strict=True):
            if score is not None:
                log_z[:, group.words] = torch.logaddexp(log_z[:, group.words], score.logsumexp(1))
        log_z = log_z.masked_fill(log_z == -torch.inf, torch.inf)  # nowhere
        for group, score in zip(self._groups, scores, strict=True):
            factors = None if score is None or len(group.ids[0]) == 1 else places.weights(group)
            if score is None or factors is None:
                continue
            place = (score - log_z[:, None, group.words]).exp().repeat(sample.draws, 1, 1)
            place = place * missing[:, None, group.words]
            others = all_but_one([factor.detach() for factor in factors])
            lifted = torch.stack([place * (1 - e) * w for e, w in zip(others, factors, strict=True)]).sum((0, 2))
            pull = pull.index_add(1, torch.tensor(group.words, device=pull.device), lifted)
        return pull

    def spellings(self, tokenizer: Any) -> Spellings:
        """The token sequences that write the words; raises as the class says."""
        if tokenizer is None:
            raise ValueError("`tokens` must carry the generator's tokenizer, got None; a host passes its pipeline's.")
        if tokenizer is not self._tokenizer:
            self._spellings = Spellings.of(self._words, tokenizer, self.case_sensitive)
            self._groups = self._spellings.groups()
            known = set(self._spellings.words)
            missing = [w for k, w in enumerate(self._words) if self.weights[w] > 0 and k not in known]
            if missing and len(self._words) <= _MOST_NAMED:
                raise ValueError(f"`wanted` has {missing[0]!r}, which the generator's tokenizer cannot write.")
            if missing:
                shown = ", ".join(map(repr, missing[:3]))
                warnings.warn(
                    f"`wanted` has {len(missing)} words that the generator's tokenizer cannot write, such as {shown}; "
                    "nothing is steered toward them.",
                    stacklevel=2,
                )
            named = {i for k, ids in self._spellings if self.weights[self._words[k]] > 0 for i in ids}
            self._named = sorted(named) if len(named) <= _MOST_NAMED else []
            self._tokenizer = tokenizer
        return self._spellings


class _Upward(torch.autograd.Function):
    """`x`, whose gradient is let through where it is positive: what pulls to one place has no use for pushing away."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad.clamp(min=0)
