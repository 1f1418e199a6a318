"""What finished samples are judged by, none of which takes part in guidance.

The grammar judge is `link-parser` of the Debian package link-grammar (Sleator and Temperley's parser, with its own
dictionary of English): a text is grammatical where it has a complete linkage, one without a null link and without a
violation of the parser's rules of post-processing.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

CORRUPTIONS = 8  # of a text in the bound on its probability
_FOUND = re.compile(r"Found \d+ linkages? \((\d+) (?:of \d+ random linkages? )?had no P\.P\. violations\)")
_FIRST = 1_000_000  # above any width that the parser has by itself
_LONGEST = 2000  # bytes of a line; the parser ends at 2046
_SETTINGS = ("-graphics=0", "-null=0", "-panic=0")  # no drawings; complete linkages alone; no second try in haste


class Grammar:
    """Which texts `link-parser` parses with no null link.

    Every text is a line, and behind it stands a command with the text's number that the parser repeats, so that
    answers line up whatever it says of a text, and if it says nothing. White space is one space; a text that begins
    with a sign that the parser takes for a command or a comment is moved to the right. An empty text, and one of more
    than 2,000 bytes or 254 words, which the parser does not take, or not within 30 seconds, is not grammatical.

    Args:
        program: name or path of the parser.

    Raises:
        RuntimeError: there is no such program. When called: it fails, or answers for other texts than it was asked
            about.
    """

    def __init__(self, program: str = "link-parser"):
        path = shutil.which(program)
        if path is None:
            raise RuntimeError(
                f"`{program}` is not installed, which judges the grammar; it is in Debian's package link-grammar: "
                "`apt-get install link-grammar`."
            )
        self._program = path

    def __call__(self, texts: Sequence[str]) -> list[bool]:
        """Of every text, in order."""
        lines = [line_of(text) for text in texts]
        asked = [k for k, line in enumerate(lines) if line and len(line.encode()) <= _LONGEST]
        script = "".join(f"{lines[k]}\n!width={_FIRST + k}\n" for k in asked)
        found = dict(zip(asked, self._answers(script, asked), strict=True)) if asked else {}
        return [found.get(k, False) for k in range(len(texts))]

    def _answers(self, script: str, asked: list[int]) -> list[bool]:
        command = [self._program, "en", "--quiet", *_SETTINGS]
        environment = os.environ | {"LC_ALL": "C.UTF-8"}
        run = subprocess.run(command, input=script.encode(), capture_output=True, env=environment, check=False)
        output = run.stdout.decode(errors="replace")
        parts = re.split(r"^width set to (\d+)$", output, flags=re.MULTILINE)
        if run.returncode != 0 or [int(number) - _FIRST for number in parts[1::2]] != asked:
            last = " ".join((run.stderr.decode(errors="replace").strip() or output.strip())[-300:].split())
            raise RuntimeError(
                f"`{self._program}` of Debian's package link-grammar failed, with status {run.returncode}, after "
                f"{len(parts) // 2} of {len(asked)} texts: {last}"
            )
        answers = [_FOUND.search(part) for part in parts[0:-1:2]]
        return [answer is not None and int(answer[1]) > 0 for answer in answers]


def line_of(text: str) -> str:
    """A text as a line that the parser takes for a sentence; empty where nothing is left."""
    clean = "".join(sign if sign.isprintable() or sign.isspace() else " " for sign in text)
    line = " ".join(clean.encode(errors="replace").decode().split())
    return f" {line}" if line.startswith(("!", "%")) else line


class Vader:
    """VADER's compound score of texts, in [-1, 1], and which of them it finds of a label.

    Raises:
        RuntimeError: the package vaderSentiment is not installed.
    """

    def __init__(self) -> None:
        try:
            from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer
        except ImportError as error:
            raise RuntimeError(
                "`vaderSentiment` is not installed, which judges sentiments; `pip install vaderSentiment`."
            ) from error
        self._analyzer = SentimentIntensityAnalyzer()

    def compound(self, text: str) -> float:
        return float(self._analyzer.polarity_scores(text)["compound"])

    def __call__(self, texts: Sequence[str], label: str) -> list[bool]:
        """Whether the score is beyond 0.2 on the side of `label`, "negative" or "positive"."""
        sign = {"negative": -1, "positive": 1}[label]
        return [sign * self.compound(text) > 0.2 for text in texts]


def nats_and_tokens(pipe: Any, texts: Sequence[str]) -> tuple[list[float], list[int]]:
    """The model's own bound on -log p of every text, and the tokens that it has, one for the end."""
    tokens = [len(ids) + 1 for ids in pipe.tokenizer(list(texts), add_special_tokens=False).input_ids]
    return pipe.nll(list(texts), num_corruptions=CORRUPTIONS).tolist(), tokens


def nats_a_token(pipe: Any, texts: Sequence[str]) -> float:
    """Of all texts together, their nats by their tokens."""
    nats, tokens = nats_and_tokens(pipe, texts)
    return sum(nats) / sum(tokens)


@torch.no_grad()
def image_nats(pipe: Any, tokens: Tensor, num_corruptions: int = CORRUPTIONS, batch_size: int = 256) -> Tensor:
    """`(n,)`, the bound of images without class, `(n, length)` tokens: `(length / k) sum -log p(x_i | visible)`.

    The sum is over k hidden positions, k uniform on 1..length (arXiv 2406.03736, equation 5), stratified; the mean of
    `num_corruptions`.
    """
    source, found, length = torch.Generator().manual_seed(0), [], tokens.shape[1]
    for part in tokens.split(batch_size):
        total = torch.zeros(len(part))
        for stratum in range(num_corruptions):
            level = (stratum + torch.rand(len(part), 1, generator=source)) / num_corruptions
            count = (level * length).long().clamp(max=length - 1) + 1
            hidden = torch.rand(part.shape, generator=source).argsort(-1).argsort(-1) < count
            logits = pipe.transformer(part.masked_fill(hidden, pipe.mask_token_id)).float()
            losses = -logits.log_softmax(-1).gather(-1, part[..., None])[..., 0]
            total += ((losses * hidden).sum(-1) * length / count[:, 0]).cpu()
        found.append(total / num_corruptions)
    return torch.cat(found) if found else torch.zeros(0)


def image_nats_a_token(pipe: Any, tokens: Tensor, num_corruptions: int = CORRUPTIONS, batch_size: int = 256) -> float:
    """Their mean by a token."""
    return float(image_nats(pipe, tokens, num_corruptions, batch_size).sum()) / tokens.numel()


def distinct_n(texts: Sequence[str], n: int) -> float:
    """Different n-grams of words by all there are (arXiv 1510.03055); NaN where there is none.

    >>> distinct_n(["a b a", "a b"], 1), distinct_n(["a b a", "a b"], 2)
    (0.4, 0.6666666666666666)
    """
    words = [text.split() for text in texts]
    found = [tuple(one[i : i + n]) for one in words for i in range(len(one) - n + 1)]
    return len(set(found)) / len(found) if found else float("nan")


def distinct(texts: Sequence[str]) -> float:
    """Share of different texts."""
    return len(set(texts)) / len(texts)
