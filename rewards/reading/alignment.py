"""Two tokenizers on one text: which tokens are the same, which overlap, what a token is worth in the other's pieces."""

import hashlib
import json
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from redge_guidance.rewards.reading.cache import cache_folder, read_ragged, write_ragged
from redge_guidance.text import known_token_ids, special_token_ids

_UNKNOWN = "\ufffd"  # what a decoder writes for bytes that are no character
_MOST_BYTES = 4  # of one character


def same_tokens(generator: Any, model: Any) -> Tensor | None:
    """Ids of `model` for the ids of `generator`, where both are one tokenizer; None where they are not.

    They are where normalizer, pre-tokenizer and the vocabulary with its merges or scores are equal, whatever the ids.
    Special tokens may differ, and the model may have further tokens that were added to its vocabulary.

    Returns:
        `(largest id of the generator + 1,)` int64, -1 for a special token that the model does not have.
    """
    special = _special(generator) | _special(model)
    if generator is not model and _cuts(generator, special) != _cuts(model, special):
        return None
    ours, theirs = generator.get_vocab(), model.get_vocab()
    if any(token not in theirs for token in ours if token not in special):
        return None
    ids = torch.full((max(ours.values()) + 1,), -1)
    ids[torch.tensor(list(ours.values()))] = torch.tensor([theirs.get(token, -1) for token in ours])
    return ids


def _cuts(tokenizer: Any, special: set[str]) -> Any:
    """What decides how a text is cut into tokens, whatever their ids and without those that were added."""
    if not getattr(tokenizer, "is_fast", False):
        settings = {key: repr(value) for key, value in tokenizer.init_kwargs.items() if key not in _NOT_OF_CUTTING}
        settings = {key: value for key, value in settings.items() if not key.endswith(("_token", "_tokens", "_file"))}
        pieces = getattr(getattr(tokenizer, "sp_model", None), "serialized_model_proto", lambda: None)()
        return [type(tokenizer), set(tokenizer.get_vocab()) - special, settings, pieces]
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    model = {key: value for key, value in state["model"].items() if key not in ("unk_id", "unk_token")}
    vocabulary = model.pop("vocab", {})
    scores = vocabulary.items() if isinstance(vocabulary, dict) else vocabulary  # Unigram's are pairs
    scored = {token: None if isinstance(vocabulary, dict) else score for token, score in scores}
    merges = [tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in model.pop("merges", None) or ()]
    known = {token: score for token, score in scored.items() if token not in special}
    return [state["normalizer"], state["pre_tokenizer"], model, known, merges]


def _special(tokenizer: Any) -> set[str]:
    special = special_token_ids(tokenizer)
    return {token for token, i in tokenizer.get_vocab().items() if i in special}


# what a slow tokenizer is made of that has no part in how it cuts
_NOT_OF_CUTTING = {
    "name_or_path", "model_max_length", "padding_side", "truncation_side", "chat_template", "added_tokens_decoder",
    "special_tokens_map_file", "tokenizer_class", "processor_class", "backend", "is_local", "local_files_only",
    "auto_map", "clean_up_tokenization_spaces", "extra_special_tokens", "model_input_names", "pad_to_multiple_of",
}  # fmt: skip


Cut = tuple[list[int], list[tuple[int, int]], list[int]]


def tokens_of(tokenizer: Any, texts: list[str], special_tokens: bool = False) -> list[Cut]:
    """For each text its ids, the characters of the text that each stands for, and 1 for tokens that were added.

    A tokenizer that does not tell characters (`is_fast` False) is asked for what each token decodes to, which is looked
    for in the text, one after the other; tokens that are not found have what lies between those that are.
    """
    if not texts:
        return []
    if getattr(tokenizer, "is_fast", False):
        more = {"return_offsets_mapping": True, "return_special_tokens_mask": special_tokens}
        cut = tokenizer(texts, add_special_tokens=special_tokens, **more)
        added = cut.special_tokens_mask if special_tokens else [[0] * len(ids) for ids in cut.input_ids]
        return list(zip(cut.input_ids, cut.offset_mapping, added, strict=True))
    result: list[Cut] = []
    for text in texts:
        bare = tokenizer(text, add_special_tokens=False).input_ids
        ids = tokenizer(text, add_special_tokens=special_tokens).input_ids
        first = next((k for k in range(len(ids)) if ids[k : k + len(bare)] == bare), 0)
        spans = [(0, 0)] * first + _found(tokenizer, bare, text)
        spans += [(0, 0)] * (len(ids) - len(spans))
        result.append((ids, spans, [int(not first <= k < first + len(bare)) for k in range(len(ids))]))
    return result


def _found(tokenizer: Any, ids: list[int], text: str) -> list[tuple[int, int]]:
    """Tokens that are not found, as of letters that were changed, share what lies between those that are."""
    spans: list[tuple[int, int]] = []
    cursor, waiting = 0, 0  # the last so many tokens are not found, alone or as bytes of one character
    lowered = text.lower() if len(text.lower()) == len(text) else text
    for k in range(len(ids)):
        found = ((parts, *_find(one, text, lowered, cursor)) for parts, one in _written(tokenizer, ids, k, waiting))
        parts, begin, end = next((one for one in found if one[1] >= 0), (0, -1, -1))
        if begin < 0:
            spans.append((cursor, cursor))
            waiting += 1
            continue
        spans[k - waiting :] = [(begin, end) if parts else _trimmed(text, cursor, begin)] * waiting
        spans.append((begin, end))
        cursor, waiting = end, 0
    spans[len(ids) - waiting :] = [_trimmed(text, cursor, len(text))] * waiting
    return spans


def _written(tokenizer: Any, ids: list[int], k: int, waiting: int) -> Iterator[tuple[int, str]]:
    """What token k writes: alone, with the `waiting` before it that are bytes of a character, behind another."""
    yield 0, tokenizer.decode([ids[k]])
    if 0 < waiting < _MOST_BYTES:
        yield waiting, tokenizer.decode(ids[k - waiting : k + 1])
    if k:
        yield 0, tokenizer.decode(ids[k - 1 : k + 1]).removeprefix(tokenizer.decode([ids[k - 1]]))


def _find(written: str, text: str, lowered: str, cursor: int) -> tuple[int, int]:
    """Where a text has what a token writes, from `cursor` on, or its small letters; (-1, -1): nowhere."""
    surface = written.strip()
    begin = text.find(surface, cursor) if surface else -1
    small = lowered.find(surface.lower(), cursor) if surface else -1
    begin = small if begin < 0 or 0 <= small < begin else begin
    return (begin, begin + len(surface)) if begin >= 0 else (-1, -1)


def _trimmed(text: str, begin: int, end: int) -> tuple[int, int]:
    """The same characters without the white space around them."""
    shown = text[begin:end].strip()
    first = begin + text[begin:end].find(shown)
    return first, first + len(shown)


def token_texts(tokenizer: Any) -> list[str]:
    """What each token adds to a text in the middle of it, by id; "" for special tokens and for ids without a token.

    It is what comes behind another token: a letter, or where the vocabulary has none a digit or another sign. A token
    that is a part of a character adds "", or what the decoder writes for such a part.
    """
    known, special = known_token_ids(tokenizer), special_token_ids(tokenizer)
    ids = sorted(known - special)
    texts = [""] * (max(known, default=-1) + 1)
    anchor = _anchor(tokenizer, ids)
    before = "" if anchor is None else tokenizer.decode([anchor])
    rows = [[i] if anchor is None else [anchor, i] for i in ids]
    for i, text in zip(ids, tokenizer.batch_decode(rows), strict=True):
        texts[i] = text[len(before) :] if text.startswith(before) else ""
    return texts


def _anchor(tokenizer: Any, ids: list[int]) -> int | None:
    """A token that stays as it is whatever comes behind: of letters, or of letters and digits, or of any signs."""
    best, rank = None, 3
    for i in ids:
        text = tokenizer.decode([i]).strip()
        found = 0 if text.isalpha() else 1 if text.isalnum() else 2
        if text and text.isprintable() and _UNKNOWN not in text and found < rank:
            best, rank = i, found
        if rank == 0:
            break
    return best


def character_spans(tokenizer: Any, ids: list[int], text: str, texts: list[str]) -> Tensor:
    """The characters of `text`, the decoded `ids`, that each token stands for: `(len(ids), 2)`, beginning and end.

    A token that is a part of a character has all of it; one that leaves no trace has an empty span.

    Args:
        texts: `token_texts(tokenizer)`.
    """
    parts = [texts[i] if i < len(texts) else "" for i in ids]
    joined = "".join(parts)
    dropped = len(joined) - len(text)  # a decoder may drop the space in front
    if not ids:
        return torch.zeros(0, 2, dtype=torch.long)
    if dropped >= 0 and _UNKNOWN not in joined and joined[dropped:] == text and not joined[:dropped].strip():
        ends = torch.tensor([len(part) for part in parts], dtype=torch.long).cumsum(0) - dropped
        starts = torch.cat([torch.zeros(1, dtype=torch.long), ends[:-1]])
        return torch.stack([starts, ends], -1).clamp(min=0)
    spans: list[tuple[int, int]] = []
    start, silent = 0, 0  # how many tokens before this one may be parts of a character that it ends
    prefixes = [ids[: n + 1] for n in range(len(ids))]
    for n, prefix in enumerate(tokenizer.batch_decode(prefixes, skip_special_tokens=True)):
        end = max(start, common_length(prefix, text))
        begun = end == start and prefix.endswith(_UNKNOWN) and end < len(text)  # the character ends in a later token
        spans.append((start, end + 1 if begun else end))
        if end > start and not parts[n]:
            spans[n - silent : n] = [(start, start + 1)] * silent
        silent = silent + 1 if spans[n] == (start, start) and not parts[n] else 0
        start = end
    return torch.tensor(spans, dtype=torch.long).view(-1, 2)


def common_length(a: str, b: str) -> int:
    """How many characters both begin with."""
    return next((k for k, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def overlap(spans: Tensor, generated: Tensor) -> Tensor:
    """Share of the characters of token j of one cut that belong to token i of the other: `a_ji = |j and i| / |j|`.

    Where tokens i share a character, and so would count it more than once, the shares of j are divided by their sum.

    Args:
        spans: `(..., n, 2)`. generated: `(..., m, 2)`. Beginnings and ends, in characters of the same text.

    Returns:
        `(..., n, m)` float32; rows sum to at most 1.

    >>> overlap(torch.tensor([[0, 4]]), torch.tensor([[0, 1], [1, 4]]))
    tensor([[0.2500, 0.7500]])
    """
    first = torch.maximum(spans[..., :, None, 0], generated[..., None, :, 0])
    last = torch.minimum(spans[..., :, None, 1], generated[..., None, :, 1])
    common = (last - first).clamp(min=0).float()
    length = (spans[..., 1] - spans[..., 0]).float()[..., None]
    return common / torch.maximum(length, common.sum(-1, keepdim=True)).clamp(min=1)


class Pieces:
    """The tokens of a generator in the pieces of a model's tokenizer: `pieces[offsets[v] : offsets[v + 1]]` for v."""

    def __init__(self, pieces: Tensor, offsets: Tensor):
        self.pieces, self.offsets = pieces, offsets

    @classmethod
    def of(cls, generator: Any, model: Any, texts: list[str]) -> "Pieces":
        """Looked up in the cache, or made, of `token_texts(generator)`, and put there.

        The cache is the folder `bridges` of `$REDGE_GUIDANCE_CACHE`, by default `redge-guidance` in the cache of
        Hugging Face; a file there is named by both tokenizers, and one that is not as it was written is made anew.
        A cache that cannot be written is done without.
        """
        file = cache_folder() / "bridges" / f"{_fingerprint(generator, model)}.safetensors"
        found = read_ragged(file, len(texts), max(model.get_vocab().values()))
        if found is not None:
            return cls(*found)
        made = cls.make(texts, model)
        write_ragged(file, made.pieces, made.offsets)
        return made

    @classmethod
    def make(cls, texts: list[str], model: Any) -> "Pieces":
        # inside a word there is no telling which; elsewhere the letter in front says that the text goes on
        leads = ["" if not text or text[0].isalnum() else "a" for text in texts]
        rows = _cut_behind(model, leads, texts)
        alone = [n for n, row in enumerate(rows) if row is None]  # their lead is in one piece with them
        again = _cut_behind(model, [""] * len(alone), [texts[n] for n in alone]) if alone else []
        for n, row in zip(alone, again, strict=True):
            rows[n] = row
        known = [[] if _UNKNOWN in text else row or [] for text, row in zip(texts, rows, strict=True)]
        offsets = torch.tensor([0, *map(len, known)]).cumsum(0)
        return cls(torch.tensor([i for row in known for i in row], dtype=torch.long), offsets)

    def embeddings(self, table: Tensor, chunk: int = 8192) -> Tensor:
        """Mean of the rows of `table` for each token's pieces; for a token without any, the mean of the whole table.

        table: `(vocabulary of the model, dim)`. Returns `(vocabulary of the generator, dim)`, same dtype and device.
        """
        result = table.float().mean(0).to(table.dtype).repeat(len(self.offsets) - 1, 1)
        counts = self.offsets.diff()
        for tokens in counts.nonzero()[:, 0].split(chunk):
            first, last = int(self.offsets[tokens[0]]), int(self.offsets[tokens[-1] + 1])
            owner = torch.repeat_interleave(torch.arange(len(tokens)), counts[tokens]).to(table.device)
            rows = table[self.pieces[first:last].to(table.device)].float()
            sums = rows.new_zeros(len(tokens), rows.shape[1]).index_add_(0, owner, rows)
            result[tokens.to(table.device)] = (sums / counts[tokens, None].to(table.device)).to(table.dtype)
        return result

    def first(self) -> Tensor:
        """The first piece of every token, -1 for a token without any: `(vocabulary of the generator,)` int64."""
        some = self.offsets[:-1].clamp(max=max(len(self.pieces) - 1, 0))
        return self.pieces[some].where(self.offsets.diff() > 0, -1) if len(self.pieces) else some - 1


def _cut_behind(model: Any, leads: list[str], texts: list[str]) -> list[list[int] | None]:
    """Pieces of each text behind its lead; None where a piece lies in both."""
    whole = [lead + text for lead, text in zip(leads, texts, strict=True)]
    rows: list[list[int] | None] = []
    for lead, text, (ids, spans, _) in zip(leads, texts, tokens_of(model, whole), strict=True):
        pieces = [(i, begin) for i, (begin, end) in zip(ids, spans, strict=True) if text and end > len(lead)]
        crossing = any(begin < len(lead) for _, begin in pieces)
        rows.append(None if crossing else [i for i, _ in pieces])
    return rows


def _fingerprint(*tokenizers: Any) -> str:
    digest = hashlib.sha256(b"4")  # of the way in which a table is made
    for tokenizer in tokenizers:
        fast = getattr(tokenizer, "is_fast", False)
        state = tokenizer.backend_tokenizer.to_str() if fast else json.dumps(sorted(tokenizer.get_vocab().items()))
        digest.update(type(tokenizer).__name__.encode() + state.encode())
        digest.update(json.dumps(sorted(special_token_ids(tokenizer))).encode())
    return digest.hexdigest()[:40]
