"""Relaxed texts as the input of a model, whatever tokenizer it has."""

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from redge_guidance.rewards.reading.alignment import same_tokens
from redge_guidance.rewards.reading.call import ModelCall
from redge_guidance.rewards.reading.carried import CarriedReader
from redge_guidance.rewards.reading.direct import DirectReader
from redge_guidance.rewards.reading.framing import Frame, Framer, Row
from redge_guidance.rewards.reading.reading import ModelInput, Reading
from redge_guidance.samples.tokens import RelaxedTokens

LOW_COVERAGE = 0.5


class Reader:
    """Turns texts, finished or relaxed, into the input of one model, and calls it.

    What the model is shown of a relaxed text are the ids that its own tokenizer makes of the decoded text in its frame,
    so that the value is that of the finished text. Where a generator with the same tokenizer (special tokens may
    differ) has made just those tokens, its relaxed embeddings take the place of theirs. For all other texts, and other
    tokenizers, the gradient is carried: token j of the model with embedding e_j gets that of
    `sum_i a_ji sum_v w_iv b_v`, a_ji the share of its characters that generated token i wrote, w_iv the relaxed sample,
    b_v the mean embedding of the pieces of token v. Which share of the generated positions has a gradient is noted as
    `"coverage"`, and warned about below one half.

    Too long and empty texts are dealt with as `Framer` says, padding as `ModelCall` says.

    Args:
        model: its input embeddings are replaced when it is called.
        tokenizer: the model's.
        padding_side: of batches, `"left"` or `"right"`, unless the model needs the other.
        max_length: in tokens, with the frame; None: the smaller of what the tokenizer and the model say.

    Raises:
        ValueError: as `Framer` and `ModelCall`, or an unknown `padding_side`.

    Attributes:
        scale: what the model multiplies its embeddings' rows by.
        shortcut: whether the generator's own tokens are shown where they are the model's; False to compare both ways.
        outputs: from a `Reading` to what the model makes of it.
    """

    def __init__(self, model: Any, tokenizer: Any, padding_side: str = "right", max_length: int | None = None):
        if padding_side not in ("left", "right"):
            raise ValueError(f"`padding_side` must be 'left' or 'right', got {padding_side!r}.")
        framer, embedding = Framer(model, tokenizer, max_length), _embedding_of(model)
        self.tokenizer, self.max_length = tokenizer, framer.max_length
        self.scale = _embedding_scale(embedding)
        self.shortcut = True
        self._input = ModelInput(framer, embedding, padding_side, self.scale, _padding_id(model, tokenizer, embedding))
        self.outputs = ModelCall(model, self._input)
        self._generator: Any = None  # the last one, and how it is read
        self._direct: DirectReader | None = None
        self._carried: CarriedReader | None = None
        self._warned = False

    @property
    def device(self) -> torch.device:
        return self._input.device

    @property
    def padding_side(self) -> str:
        return self._input.padding_side

    def read_texts(self, texts: list[str], frames: Sequence[Frame]) -> Reading:
        """Finished texts; `frames` is one a text."""
        return self._input.padded(self._input.framer.tokenize(texts, frames))

    def __call__(self, tokens: RelaxedTokens, frames: Sequence[Frame]) -> list[tuple[Tensor, Reading]]:
        """Relaxed texts; `frames` is one a text.

        Returns:
            Parts of the batch, numbers of texts `(n,)` int64 with what the model is shown of them.

        Raises:
            ValueError: tokens without their tokenizer.
        """
        if tokens.tokenizer is None:
            raise ValueError("`tokens` must carry the generator's tokenizer, got None; a host passes its pipeline's.")
        if tokens.tokenizer is not self._generator:
            same = same_tokens(tokens.tokenizer, self.tokenizer)
            self._direct = None if same is None else DirectReader(self._input, tokens.tokenizer, same)
            self._carried, self._generator = None, tokens.tokenizer
        positions, texts = tokens.text_positions(), tokens.texts()
        rows = self._input.framer.tokenize(texts, frames)
        parts, direct = self._read_directly(tokens, positions, frames, rows)
        groups: dict[int | None, list[int]] = {}
        for k in sorted(set(range(len(rows))) - set(direct)):
            after = self._input.framer.around(frames[k]).after
            groups.setdefault(after[0] if after else None, []).append(k)
        covered = positions & tokens.free
        for after_text, members in groups.items():
            where = torch.tensor(members, device=tokens.ids.device)
            if self._carried is None:
                self._carried = CarriedReader(self._input, tokens.tokenizer)
            own = tokens if len(members) == len(tokens) else tokens.rows(where)
            few = [texts[k] for k in members], [rows[k] for k in members]
            reading, reached = self._carried(own, positions[where], *few, after_text)
            covered[where] &= reached
            parts.append((where, reading))
        if groups:
            self._note_coverage(tokens, covered, positions)
        return parts

    def _read_directly(
        self, tokens: RelaxedTokens, positions: Tensor, frames: Sequence[Frame], rows: list[Row]
    ) -> tuple[list[tuple[Tensor, Reading]], list[int]]:
        """The part of texts whose generated tokens are those that the model's tokenizer makes of them, and which."""
        if not self.shortcut or self._direct is None:
            return [], []
        laid = self._direct.lay(tokens, positions, frames)
        own = [(row.ids, row.stop - row.start) for row in rows]
        members = [k for k, (mine, theirs) in enumerate(zip(laid.rows(), own, strict=True)) if mine == theirs]
        if not members:
            return [], []
        where = torch.tensor(members, device=tokens.ids.device)
        return [(where, self._direct(tokens, laid, where))], members

    def _note_coverage(self, tokens: RelaxedTokens, covered: Tensor, positions: Tensor) -> None:
        generated = positions & tokens.free
        coverage = covered.sum() / generated.sum().clamp(min=1)
        coverage = coverage.where(generated.any(), torch.ones_like(coverage))
        if self._direct is None:  # of the same tokenizer nearly all is read directly
            tokens.notes["coverage"] = coverage
        if not self._warned and float(coverage) < LOW_COVERAGE:
            self._warned = True
            warnings.warn(
                f"only {float(coverage):.0%} of the generated tokens get a gradient: the rest has no "
                "characters in the text that the reward reads, or was cut off. Is the tokenizer the generator's?",
                stacklevel=2,
            )


def _embedding_of(model: Any) -> Any:
    try:
        embedding = model.get_input_embeddings()
        embedding.weight.shape  # noqa: B018
    except (AttributeError, NotImplementedError) as error:
        raise ValueError(
            f"`model` {type(model).__name__} has no table of input embeddings, by `get_input_embeddings()`, through "
            "which it could be differentiated; use it in a `BlackBoxReward`."
        ) from error
    return embedding


def _padding_id(model: Any, tokenizer: Any, embedding: Any) -> int:
    """The token that fills up rows: the model's own, by which some count positions, or else the tokenizer's."""
    for owner in (getattr(model, "config", None), tokenizer):
        found = getattr(owner, "pad_token_id", None)
        if isinstance(found, int) and 0 <= found < len(embedding.weight):
            return found
    return 0


def _embedding_scale(embedding: Any) -> float:
    """What a model multiplies its embeddings' rows by, 1 for nearly all; Gemma 3's layer has a factor of its own."""
    weight = embedding.weight.detach()
    row = int(weight[: min(len(weight), 64)].abs().sum(-1).argmax())
    with torch.no_grad():
        seen = embedding(torch.tensor([row], device=weight.device))[0]
    scale = float((seen.float() @ weight[row].float()) / weight[row].float().square().sum())
    if not torch.allclose(seen.float(), weight[row].float() * scale, rtol=1e-2, atol=1e-6):
        raise ValueError(
            f"the input embeddings of `model` must be a look-up, up to a factor, got {type(embedding).__name__}."
        )
    return 1.0 if abs(scale - 1) < 1e-3 else scale
