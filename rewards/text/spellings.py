"""Words as tokens: the sequences that write them, and where they are, or could be, in a relaxed text."""

import itertools
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from redge_guidance.constraints.words import joins, units_of
from redge_guidance.rewards.reading.alignment import token_texts
from redge_guidance.samples.tokens import RelaxedTokens
from redge_guidance.text import end_token_ids, is_in

_CHUNK = 256  # spellings whose occurrences are computed at once


@dataclass(frozen=True)
class Spellings:
    """Token sequences that write words: `ids[n]` writes word number `words[n]`.

    Attributes:
        inside: `(vocabulary, 2)`, whether a token begins, and ends, with a character that a word goes on with.
        again: whether another spelling of the word is a part of this one (a space in front), and counts already.
    """

    words: list[int]
    ids: list[tuple[int, ...]]
    inside: Tensor
    again: list[bool]

    @classmethod
    def of(cls, words: list[str], tokenizer: Any, case_sensitive: bool) -> "Spellings":
        """At the beginning of a text and within; in lower case and capitalised too unless the case matters."""
        variants = [list(_variants(word, case_sensitive)) for word in words]
        flat = [text for texts in variants for text in texts]
        before = tokenizer("a", add_special_tokens=False).input_ids
        alone = tokenizer(flat, add_special_tokens=False).input_ids
        within = tokenizer([f"a {text}" for text in flat], add_special_tokens=False).input_ids
        owners = [k for k, texts in enumerate(variants) for _ in texts]
        found: dict[tuple[int, tuple[int, ...]], None] = {}
        for owner, first, later in zip(owners, alone, within, strict=True):
            found[owner, tuple(first)] = None
            if later[: len(before)] == before:
                found[owner, tuple(later[len(before) :])] = None
        known = [key for key in found if key[1]]
        written = tokenizer.batch_decode([list(ids) for _, ids in known])
        wanted = [units_of(word, case_sensitive) for word in words]
        known = [
            key
            for key, text in zip(known, written, strict=True)
            if "".join(units_of(text, case_sensitive)) == "".join(wanted[key[0]])
        ]
        by_word: dict[int, list[tuple[int, ...]]] = {}
        for word_number, ids in known:
            by_word.setdefault(word_number, []).append(ids)
        edges = [(text[:1], text[-1:]) for text in token_texts(tokenizer)]
        signs = {sign: joins(sign) for sign in set(itertools.chain(*edges))}
        inside = torch.tensor([[signs[first], signs[last]] for first, last in edges], dtype=torch.float)
        again = [any(_is_part(other, ids) for other in by_word[word]) for word, ids in known]
        return cls([word for word, _ in known], [ids for _, ids in known], inside, again)

    def __iter__(self) -> Iterator[tuple[int, tuple[int, ...]]]:
        """`(word, ids)` of every spelling."""
        return zip(self.words, self.ids, strict=True)

    def groups(self) -> "list[Spellings]":
        """Parts in which all sequences have one length and no word comes twice."""
        parts: dict[tuple[int, int, int], list[int]] = {}
        seen: dict[tuple[int, int], int] = {}
        members: dict[tuple[int, int], int] = {}
        for n, (word, ids) in enumerate(self):
            rank = seen[word, len(ids)] = seen.get((word, len(ids)), -1) + 1
            number = members[len(ids), rank] = members.get((len(ids), rank), -1) + 1
            parts.setdefault((len(ids), rank, number // _CHUNK), []).append(n)
        return [self._at(part) for part in parts.values()]

    def _at(self, numbers: list[int]) -> "Spellings":
        words, ids, again = self.words, self.ids, self.again
        return Spellings(
            [words[n] for n in numbers], [ids[n] for n in numbers], self.inside, [again[n] for n in numbers]
        )


def _is_part(short: tuple[int, ...], long: tuple[int, ...]) -> bool:
    n = len(short)
    return n < len(long) and any(long[i : i + n] == short for i in range(len(long) - n + 1))


def _variants(word: str, case_sensitive: bool) -> Iterator[str]:
    word = unicodedata.normalize("NFC", word)
    cases = (word,) if case_sensitive else (word, word.lower(), word[:1].upper() + word[1:], word.casefold())
    yield from dict.fromkeys(unicodedata.normalize("NFC", text) for text in cases)


class Places:
    """Where the words of a reward are, and where there would be room for them, in a relaxed text."""

    def __init__(self, sample: RelaxedTokens, inside: Tensor):
        assert sample.attention_mask is not None
        self._sample = sample
        self._mask = sample.attention_mask.to(sample.weights)
        edges = sample.embed(inside.to(sample.weights)) * self._mask[..., None]
        # at i: the token in front does not end within a word; the one at i does not begin within one
        self._free_before = torch.nn.functional.pad(1 - edges[:, :-1, 1], (1, 0), value=1.0)
        self._free_after = torch.nn.functional.pad(1 - edges[..., 0], (0, 1), value=1.0)

    def occurrences(self, group: Spellings) -> Tensor | None:
        """Weight of each spelling at each position, `(batch, positions, spellings)`; None where there is no room."""
        weights = self.weights(group)
        if weights is None:
            return None
        occurs = weights[0]
        for factor in weights[1:]:
            occurs = occurs * factor
        return occurs * self._edges(group)

    def weights(self, group: Spellings) -> list[Tensor] | None:
        """Of each token of a spelling that begins at a position, `(batch, positions, spellings)` each."""
        return _shifted(group, lambda ids: self._sample.weights_of(ids) * self._mask[..., None], self._mask.shape[1])

    def log_placements(self, group: Spellings) -> Tensor | None:
        """`sum_k log q_{i+k}(t_k)`, `(texts, positions, spellings)`, q being what the sample was drawn from.

        -inf where the text has ended, where the spelling would be a part of a longer word, and where it is whole.
        """
        sample = self._sample
        texts, length = len(sample) // sample.draws, self._mask.shape[1]
        logs = _shifted(group, sample.log_probs_of, length)
        if logs is None:
            return None
        edges = self._edges(group).detach().view(sample.draws, texts, *logs[0].shape[1:]).mean(0)
        open_, free = self._open(texts), sample.free[:texts]
        n, positions = len(logs), logs[0].shape[1]
        inside = torch.stack([open_[:, k : k + positions] for k in range(n)]).all(0)
        to_write = torch.stack([free[:, k : k + positions] for k in range(n)]).any(0)
        total = torch.stack(logs).sum(0) + edges.log()
        return total.masked_fill(~(inside & to_write)[..., None], -torch.inf)

    def _open(self, texts: int) -> Tensor:
        """Positions that no fixed end of the text comes before, and that are no padding, `(texts, length)`."""
        sample = self._sample
        assert sample.attention_mask is not None
        fixed = ~sample.free[:texts]
        if sample.given is not None:
            fixed = fixed & ~sample.given[:texts]
        ends = end_token_ids(sample.tokenizer) if sample.ends is None else sample.ends
        ended = is_in(sample.ids[:texts], ends) & fixed
        return ~(ended.cumsum(-1) > 0) & (sample.attention_mask[:texts].cumsum(-1) > 0)

    def _edges(self, group: Spellings) -> Tensor:
        """Whether what is before and after a spelling lets it be a whole word, `(batch, positions, spellings)`."""
        sequences = torch.tensor(group.ids, device=self._mask.device)
        n, length = sequences.shape[1], self._mask.shape[1]
        inside = group.inside.to(self._mask)
        begins, ends = inside[sequences[:, 0], 0], inside[sequences[:, -1], 1]
        before = 1 - begins * (1 - self._free_before[:, : length - n + 1, None])
        return before * (1 - ends * (1 - self._free_after[:, n:, None]))


def _shifted(group: Spellings, of_tokens: Any, length: int) -> list[Tensor] | None:
    """`of_tokens(ids)` `(batch, length, ids)` of the k-th token of each spelling, k positions on, for every k."""
    sequences = torch.tensor(group.ids)
    n = sequences.shape[1]
    if n > length:
        return None
    distinct, columns = sequences.unique(return_inverse=True)
    values = of_tokens(distinct)
    columns = columns.to(values.device)
    return [values[:, k : length - n + 1 + k, columns[:, k]] for k in range(n)]


def all_but_one(factors: list[Tensor]) -> list[Tensor]:
    """For each factor the product of the others."""
    before, after = [torch.ones_like(factors[0])], [torch.ones_like(factors[0])]
    for factor in factors[:-1]:
        before.append(before[-1] * factor)
    for factor in factors[:0:-1]:
        after.append(after[-1] * factor)
    return [b * a for b, a in zip(before, reversed(after), strict=True)]
