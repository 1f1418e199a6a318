"""Two tokenizers on one text: which tokens are the same, which overlap, what a token is worth in the other's pieces."""

import hashlib
import json
from typing import Any

import torch
from torch import Tensor

from redge_guidance.rewards.reading.cache import cache_folder, read_ragged, write_ragged

_UNKNOWN = "\ufffd"  # what a decoder writes for bytes that are no character


def same_tokens(generator: Any, model: Any) -> Tensor | None:
    """Ids of `model` for the ids of `generator`, where both cut every text alike; None where they do not.

    They do where normalizer, pre-tokenizer and merges are equal and every token of the generator that is not special
    is one of the model's, maybe under another id. Special tokens may differ.

    Returns:
        `(largest id of the generator + 1,)` int64, -1 for a special token that the model does not have.
    """
    ours, theirs = generator.get_vocab(), model.get_vocab()
    special = set(generator.all_special_tokens)
    if any(token not in theirs for token in ours if token not in special) or _cuts(generator) != _cuts(model):
        return None
    ids = torch.full((max(ours.values()) + 1,), -1)
    ids[torch.tensor(list(ours.values()))] = torch.tensor([theirs.get(token, -1) for token in ours])
    return ids


def _cuts(tokenizer: Any) -> Any:
    """What decides, beside the vocabulary, how a text is cut into tokens."""
    if not getattr(tokenizer, "is_fast", False):
        return type(tokenizer)
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    model = {key: value for key, value in state["model"].items() if key != "vocab"}
    return [state["normalizer"], state["pre_tokenizer"], model]


def token_texts(tokenizer: Any) -> list[str]:
    """What each token adds to a text in the middle of it, by id; "" for special tokens and for ids without a token."""
    vocabulary = tokenizer.get_vocab()
    size, special = max(vocabulary.values()) + 1, set(tokenizer.all_special_ids)
    ids = sorted(set(vocabulary.values()) - special)
    anchor = next((i for i in ids if tokenizer.decode([i]).strip().isalpha()), None)
    texts = [""] * size
    if anchor is None:
        return texts
    before = tokenizer.decode([anchor])
    for i, text in zip(ids, tokenizer.batch_decode([[anchor, i] for i in ids]), strict=True):
        texts[i] = text[len(before) :] if text.startswith(before) else ""
    return texts


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
    spans, start = [], 0
    for prefix in tokenizer.batch_decode([ids[: n + 1] for n in range(len(ids))], skip_special_tokens=True):
        end = max(start, _common(prefix, text))
        begun = end == start and prefix.endswith(_UNKNOWN) and end < len(text)  # the character ends in a later token
        spans.append((start, end + 1 if begun else end))
        start = end
    return torch.tensor(spans, dtype=torch.long).view(-1, 2)


def _common(a: str, b: str) -> int:
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
        whole = [lead + text for lead, text in zip(leads, texts, strict=True)]
        cut = model(whole, add_special_tokens=False, return_offsets_mapping=True)
        rows = [
            []
            if not text or _UNKNOWN in text
            else [i for i, (_, end) in zip(ids, spans, strict=True) if end > len(lead)]
            for text, lead, ids, spans in zip(texts, leads, cut.input_ids, cut.offset_mapping, strict=True)
        ]
        offsets = torch.tensor([0, *map(len, rows)]).cumsum(0)
        return cls(torch.tensor([i for row in rows for i in row], dtype=torch.long), offsets)

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


def _fingerprint(*tokenizers: Any) -> str:
    digest = hashlib.sha256(b"1")  # of the way in which a table is made
    for tokenizer in tokenizers:
        fast = getattr(tokenizer, "is_fast", False)
        state = tokenizer.backend_tokenizer.to_str() if fast else json.dumps(sorted(tokenizer.get_vocab().items()))
        digest.update(type(tokenizer).__name__.encode() + state.encode())
    return digest.hexdigest()[:40]
