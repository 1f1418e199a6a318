"""What each token of a tokenizer writes, in bytes."""

import re
from collections.abc import Iterable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from redge_guidance.text import known_token_ids, special_token_ids

Written = list[bytes | None]

_UNKNOWN = "\ufffd"  # what a decoder writes for bytes that are no character
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_TRIALS = 400
_FEW = 0.1  # of the tokens may write other things in other places
_KNOWN: "WeakKeyDictionary[Any, tuple[Any, tuple[Written, Written]]]" = WeakKeyDictionary()


def token_bytes(tokenizer: Any) -> tuple[Written, Written]:
    """What each token adds to a text, in UTF-8, by id: as the first token of the text, and behind others.

    For all ids that have bytes, in any order, `tokenizer.decode(ids, skip_special_tokens=True)` is
    `(first[ids[0]] + within[ids[1]] + within[ids[2]] + ...).decode()` wherever these bytes are UTF-8. A token may be a
    part of a character. It was tried with random rows of tokens, and is remembered for the tokenizer as it is.

    Returns:
        Two lists, `first` and `within`, up to the largest id. None: the token must not be drawn there, as special
        tokens, ids without a token, and tokens that write one thing here and another there.

    Raises:
        ValueError: what tokens write depends on their neighbours.
    """
    state = (len(tokenizer), special_token_ids(tokenizer), getattr(tokenizer, "clean_up_tokenization_spaces", None))
    try:
        found = _KNOWN.get(tokenizer)
    except TypeError:  # one that cannot be a key
        return _token_bytes(tokenizer)
    if found is None or found[0] != state:
        found = _KNOWN[tokenizer] = (state, _token_bytes(tokenizer))
    return found[1]


def _token_bytes(tokenizer: Any) -> tuple[Written, Written]:
    _check_cleaning(tokenizer)
    ids = sorted(known_token_ids(tokenizer) - special_token_ids(tokenizer))
    first: Written = [None] * (max(ids, default=-1) + 1)
    within: Written = list(first)
    alone = _decoded(tokenizer, [[i] for i in ids])
    anchor = _anchor(tokenizer, ids, alone)
    if anchor is None:
        return first, within
    begins = tokenizer.decode([anchor], skip_special_tokens=True)
    goes_on = tokenizer.decode([anchor, anchor], skip_special_tokens=True).removeprefix(begins)
    between = _decoded(tokenizer, [[anchor, i, anchor] for i in ids])
    front = _decoded(tokenizer, [[i, anchor] for i in ids])
    behind = _decoded(tokenizer, [[anchor, i] for i in ids])
    odd = []
    for i, one, whole, before, after in zip(ids, alone, between, front, behind, strict=True):
        if before != one + goes_on or not after.startswith(begins) or whole != after + goes_on:
            odd.append(i)
            continue
        text = after[len(begins) :]
        bare = text and _UNKNOWN not in text and (one or text.isspace())
        part = None if bare else _part(tokenizer, i, text)
        within[i] = text.encode() if part is None else part
        first[i] = one.encode() if part is None else _without_space(part, one)
    if len(odd) > _FEW * len(ids):
        raise _depends(tokenizer, odd[:1], f"{tokenizer.convert_ids_to_tokens(odd[0])!r} is written in several ways")
    _verify(tokenizer, first, within)
    return first, within


def _decoded(tokenizer: Any, rows: list[list[int]]) -> list[str]:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:  # many times as fast; `_verify` compares with the tokenizer itself
        texts: list[str] = backend.decode_batch(rows, skip_special_tokens=True)
        return texts
    return [tokenizer.decode(row, skip_special_tokens=True) for row in rows]


def _anchor(tokenizer: Any, ids: list[int], alone: list[str]) -> int | None:
    """A token that stays as it is whatever is beside it: of letters, or of letters and digits, or of any signs."""
    best, rank = None, 3
    for i, written in zip(ids, alone, strict=True):
        text = written.strip()
        found = 0 if text.isalpha() else 1 if text.isalnum() else 2
        if found >= rank or not text or not text.isprintable() or _UNKNOWN in text:
            continue
        token = tokenizer.convert_ids_to_tokens(i)
        if isinstance(token, bytes) or not _BYTE.fullmatch(token):  # bytes in a row are decoded as one
            best, rank = i, found
        if rank == 0:
            break
    return best


def _part(tokenizer: Any, i: int, text: str) -> bytes | None:
    """The bytes of a token that is a part of a character, which is decoded to `text`; None: it is not one."""
    token = tokenizer.convert_ids_to_tokens(i)
    for found in _readings(token):
        try:
            found.decode()
        except UnicodeDecodeError:
            if text in (found.decode(errors="replace"), found.decode(errors="ignore"), _UNKNOWN * len(found)):
                return found
    return None


def _readings(token: Any) -> Iterable[bytes]:
    """The bytes that the name of a token may stand for."""
    if isinstance(token, bytes):
        yield token
        return
    if match := _BYTE.fullmatch(token):  # of SentencePiece
        yield bytes([int(match[1], 16)])
    if all(sign in _ALPHABET for sign in token):  # of GPT-2
        yield bytes(_ALPHABET[sign] for sign in token)
    if all(ord(sign) < 256 for sign in token):  # of ByT5
        yield token.encode("latin-1")


def _alphabet() -> dict[str, int]:
    """The letters by which byte-level tokenizers name bytes: those that print are themselves."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in shown]
    return {chr(b): b for b in shown} | {chr(256 + n): b for n, b in enumerate(others)}


_ALPHABET = _alphabet()


def _without_space(part: bytes, text: str) -> bytes | None:
    """The end of `part` that is decoded to `text` where a decoder drops spaces in front."""
    for k in range(len(part) - len(part.lstrip(b" ")) + 1):
        if text in (part[k:].decode(errors="replace"), part[k:].decode(errors="ignore"), _UNKNOWN * len(part[k:])):
            return part[k:]
    return None


def _check_cleaning(tokenizer: Any) -> None:
    """BERT's spaces before signs, which are removed from whole texts, whatever the tokens."""
    model = getattr(getattr(tokenizer, "backend_tokenizer", None), "model", None)
    spared = type(model).__name__ == "BPE" and not getattr(
        tokenizer, "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output", False
    )
    if getattr(tokenizer, "clean_up_tokenization_spaces", False) and not spared:
        raise ValueError(
            "`tokenizer.clean_up_tokenization_spaces` is True: spaces before signs are removed from what its tokens "
            "write, so that no token stands for a text of its own, and no constraint can be put on texts. Set "
            "`tokenizer.clean_up_tokenization_spaces = False`."
        )


def _verify(tokenizer: Any, first: Written, within: Written) -> None:
    """Compare with `tokenizer.decode`, on random rows of tokens."""
    rng = np.random.default_rng(0)
    ids = np.array([i for i, part in enumerate(within) if part and first[i] is not None])
    if not len(ids):
        return
    blank = [i for i in ids if not (first[i] or b"").strip() or not (within[i] or b"").strip()]
    byte = {part: i for i, part in enumerate(within) if part is not None and len(part) == 1 and part >= b"\x80"}
    for trial in range(_TRIALS):
        row = rng.choice(ids, rng.integers(1, 9)).tolist()
        if blank and trial % 4 == 0:
            row = [*rng.choice(blank, 1 + trial // 4 % 2).tolist(), *row]
        if byte and trial % 2:
            signs = "".join(chr(int(rng.choice([0xE9, 0x416, 0x4E2D, 0x1F600]) + rng.integers(0, 9))) for _ in range(2))
            spelled = [byte[bytes([b])] for b in signs.encode() if bytes([b]) in byte]
            cut = rng.integers(0, len(row) + 1)
            row = [*row[:cut], *spelled, *row[cut:]]
        expected = _joined(row, first, within)
        if expected is not None and (text := tokenizer.decode(row, skip_special_tokens=True)) != expected:
            raise _depends(tokenizer, row, f"the tokens write {expected!r} and are decoded to {text!r}")


def _joined(row: Sequence[int], first: Written, within: Written) -> str | None:
    head, rest = first[row[0]], [within[i] for i in row[1:]]
    if head is None:
        return None
    try:
        return b"".join([head, *(part or b"" for part in rest)]).decode()
    except UnicodeDecodeError:
        return None


def _depends(tokenizer: Any, row: list[int], what: str) -> ValueError:
    return ValueError(
        f"`tokenizer` ({type(tokenizer).__name__}) writes a token in different ways beside different neighbours, so "
        f"that no constraint can be put on its texts: {what} (ids {row}). Use a tokenizer whose decoder joins its "
        "tokens, with `clean_up_tokenization_spaces = False`."
    )
