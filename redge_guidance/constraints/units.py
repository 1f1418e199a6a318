"""Where a text is cut into units, as `words.units_of` cuts it, read from left to right with a memory of a few bits."""

import functools
import sys
import unicodedata
from typing import NamedTuple

import numpy as np
import regex
from numpy.typing import NDArray

from redge_guidance.constraints.alphabet import END_OF_UNICODE

# Every other code point is unassigned or for private use, as the last one is.
_NAMED = [(0, 0x40000), (0xE0000, 0xE1000)]

_FIELDS: dict[str, dict[str, str]] = {
    "kind": {"word": r"[\w\p{M}\p{Join_Control}]", "sign": r"[^\s\p{C}\w\p{M}]"},
    "word_break": {
        "ignored": r"[\p{WB=Extend}\p{WB=Format}\p{WB=ZWJ}]",
        "letter": r"[\p{WB=ALetter}\p{WB=Hebrew_Letter}]",
        "digit": r"\p{WB=Numeric}",
        "katakana": r"\p{WB=Katakana}",
        "connector": r"\p{WB=ExtendNumLet}",
        "flag": r"\p{WB=Regional_Indicator}",
        "middle": r"[\p{WB=MidLetter}\p{WB=MidNum}\p{WB=MidNumLet}\p{WB=Single_Quote}\p{WB=Double_Quote}]",
    },
    "cluster": {"extend": r"\p{GCB=Extend}", "joiner": r"\p{GCB=ZWJ}", "spacing": r"\p{GCB=SpacingMark}"},
    "pictographic": {"yes": r"\p{Extended_Pictographic}"},
    "conjunct": {"linker": r"\p{InCB=Linker}", "extend": r"\p{InCB=Extend}", "consonant": r"\p{InCB=Consonant}"},
}

_TOGETHER = {("letter", "letter"), ("letter", "digit"), ("digit", "letter"), ("digit", "digit")}
_TOGETHER |= {("katakana", "katakana"), ("connector", "connector")}
_TOGETHER |= {pair for one in ("letter", "digit", "katakana") for pair in ((one, "connector"), ("connector", one))}


class Sign(NamedTuple):
    """What a code point is to the rules; "" where it is nothing of the kind.

    Attributes:
        kind: `"word"`, a part of words; `"sign"`, another one that can be seen; "", white space or nothing to see.
        word_break: of UAX 29, as far as two characters of words next to each other depend on it.
        cluster: what lets a character go on with a grapheme cluster.
        pictographic: "yes" or "".
        conjunct: `Indic_Conjunct_Break`.
        mark: "yes" where canonical order may move it: a combining class that is not 0.
    """

    kind: str
    word_break: str
    cluster: str
    pictographic: str
    conjunct: str
    mark: str


class Place(NamedTuple):
    """What is remembered of a text so far.

    Attributes:
        base: `word_break` of the last character that is not ignored; `"start"` before there is one; `"flag"` after an
            odd number of regional indicators.
        within: the kind of unit that the last character is in; "" outside.
        chain: `"joiner"` after a zero width joiner in a word; of a sign `"picture"`, a pictograph and what extends it,
            `"picture joiner"`, then a zero width joiner, `"flag"`, half a flag, `"unsure"`, what began as an extension.
    """

    base: str = "start"
    within: str = ""
    chain: str = ""

    def joins(self, sign: Sign) -> bool | None:
        """Whether `sign` is in the unit of the character before; None where more than this has to be known."""
        lost = sign.kind == "word" and sign.word_break == "ignored" and self.base == "middle"
        if self.within == "sign":
            if sign.cluster and (sign.word_break == "ignored" or self.base in ("start", "flag")):
                return None if sign.conjunct == "linker" or (self.chain, sign.cluster) == ("unsure", "joiner") else True
            if self.chain == "unsure" and sign.conjunct == "consonant":
                return None
            if sign.pictographic and self.chain == "picture joiner":
                return True
            return None if lost else sign.word_break == "flag" and self.chain == "flag"
        if self.within != "word" or sign.kind != "word":
            return None if lost else False
        if sign.word_break == "ignored" or self.base in ("start", "flag"):
            return True
        if sign.pictographic and self.chain == "joiner":
            return True
        return (self.base, sign.word_break) in _TOGETHER

    def after(self, sign: Sign, joins: bool) -> "Place":
        """The place behind `sign`, which joins the unit before it or not."""
        base = self.base if sign.word_break == "ignored" else sign.word_break
        if sign.word_break == "flag" and self.chain == "flag":
            base = ""
        within = self.within if joins else sign.kind
        return Place(base, within, self._chain(sign, within, joins))

    def _chain(self, sign: Sign, within: str, joins: bool) -> str:
        if within != "sign":
            return "joiner" if within and sign.cluster == "joiner" else ""
        if sign.pictographic:
            return "picture"
        if not joins:
            return "flag" if sign.word_break == "flag" else "unsure" if sign.cluster else ""
        if sign.cluster == "extend" and self.chain in ("picture", "unsure"):
            return self.chain
        return "picture joiner" if sign.cluster == "joiner" and self.chain == "picture" else ""


@functools.lru_cache(maxsize=1)
def signs() -> tuple[list[Sign], NDArray[np.int64]]:
    """The distinct signs, and `(0x110000,)` which one each code point is."""
    points = np.concatenate([np.arange(*named) for named in _NAMED])
    text = "".join(map(chr, points))
    found = np.zeros((len(points), len(_FIELDS) + 1), dtype=np.int8)
    for column, patterns in zip(found.T, _FIELDS.values(), strict=False):
        runs = "|".join(f"({pattern}+)" for pattern in patterns.values())
        for match in regex.finditer(runs, text, regex.V1):
            column[match.start() : match.end()] = match.lastindex
    found[:, -1] = [unicodedata.combining(sign) != 0 for sign in text]
    codes = found @ (8 ** np.arange(found.shape[1]))  # no field has more than 8 values
    _, first, number = np.unique(codes, return_index=True, return_inverse=True)
    names = [["", *patterns] for patterns in _FIELDS.values()] + [["", "yes"]]
    others = Sign("", "", "", "", "", "")
    named = [Sign(*(names[k][n] for k, n in enumerate(row))) for row in found[first]]
    which = np.full(END_OF_UNICODE, named.index(others), dtype=np.int64)
    which[points] = number
    return named, which


@functools.lru_cache(maxsize=2)
def spelled_out(case_sensitive: bool) -> dict[int, str]:
    """What a code point becomes in canonical decomposition and, unless the case matters, case folding.

    Those that stay as they are are left out. U+0345, which folds to a letter after all marks of its own letter, is
    left as it is.
    """
    changed = {}
    for sign in map(chr, range(sys.maxunicode + 1)):
        if not (unicodedata.decomposition(sign) or "\uac00" <= sign <= "\ud7a3" or sign.casefold() != sign):
            continue
        apart = unicodedata.normalize("NFD", sign)
        if not case_sensitive:
            folded = [one if one == "\u0345" else unicodedata.normalize("NFD", one.casefold()) for one in apart]
            apart = "".join(folded)
        if apart != sign:
            changed[ord(sign)] = apart
    return changed
