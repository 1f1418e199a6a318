"""What rewards made of a Hugging Face model of texts have in common."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import AutoTokenizer

from redge_guidance.chats import Prompt
from redge_guidance.finished import to_judge
from redge_guidance.reward import Reward
from redge_guidance.rewards.loading import LoadedReward
from redge_guidance.rewards.reading.framing import Frame
from redge_guidance.rewards.reading.reader import Reader
from redge_guidance.rewards.reading.reading import Reading
from redge_guidance.samples.tokens import RelaxedTokens


class TextModelReward(LoadedReward, Reward):
    """Reward of a model that reads texts; with any tokenizer, see `Reader`.

    Subclasses say what a `Reading` is worth (`value`), and what stands around a text where that is not just the
    tokenizer's special tokens (`frames`).

    Args:
        model: put into eval mode; its parameters are frozen.
        tokenizer: the one that the model was trained with.
        padding_side: of batches, `"left"` or `"right"`; None: left for models that read the last token.
        max_length: in tokens; None: what the tokenizer and the model's config say.
        answer_only: leave the prompt in front out of what the model is shown; None: in a chat it is, elsewhere it is
            not.

    Raises:
        ValueError: as `Reader`, or a model of another kind.

    Attributes:
        reader: what turns texts, finished or relaxed, into the model's input.
    """

    modality = "text"
    of_tokens: ClassVar[bool | None] = None  # whether the model is to have an output for each token, or for each text

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        padding_side: str | None = None,
        max_length: int | None = None,
        answer_only: bool | None = None,
    ):
        if not isinstance(model, torch.nn.Module):
            raise ValueError(f"`model` must be a model of transformers, got {type(model).__name__}.")
        self.model: Any = model.eval().requires_grad_(False)
        self.tokenizer, self.answer_only = tokenizer, answer_only
        if padding_side is None:
            padding_side = "left" if _reads_last_token(model) else "right"
        self.reader = Reader(model, tokenizer, padding_side, max_length)
        found = self.reader.outputs.of_tokens
        if self.of_tokens is not None and found is not None and found != self.of_tokens:
            wanted, other = ("each token", "each text") if self.of_tokens else ("each text", "each token")
            raise ValueError(
                f"`model` must have an output for {wanted}, for {type(self).__name__}, got {type(model).__name__}, "
                f"which has one for {other}; is it the model with the right head?"
            )

    @classmethod
    def processors(cls, path: str, hub: dict[str, Any]) -> list[Any]:
        return [AutoTokenizer.from_pretrained(path, **hub)]

    def value(self, reading: Reading) -> Tensor:
        """Rewards `(batch,)` of what the model is shown."""
        raise NotImplementedError

    def value_for(self, reading: Reading, prompts: Sequence[Prompt] | None) -> Tensor:
        """The same, of a reward that compares with what each text was asked for; None: not known."""
        return self.value(reading)

    def frames(self, count: int, draws: int = 1, prompts: Sequence[Prompt] | None = None) -> Sequence[Frame]:
        """What stands around each of `count` texts.

        Args:
            count: of texts, which are `draws` samples of each of `count / draws`, all texts of a sample together.
            draws: see `count`.
            prompts: what each of the `count` texts was asked for; None: not known.
        """
        return [Frame()] * count

    def __call__(self, sample: RelaxedTokens) -> Tensor:
        """Rewards `(batch,)` of a batch of relaxed texts, differentiable in `sample.weights`."""
        device, here = sample.ids.device, self.reader.device
        sample = sample.judged(self.answer_only)
        sample = sample if device == here else sample.to(here)
        frames = self.frames(len(sample), sample.draws, sample.prompts)
        parts = self.reader(sample, frames)
        told = sample.prompts
        of_rows = [None if told is None else [told[k] for k in rows.tolist()] for rows, _ in parts]
        values = [self.value_for(reading, few) for few, (_, reading) in zip(of_rows, parts, strict=True)]
        if len(parts) == 1:
            return values[0].to(device)
        order = torch.cat([rows for rows, _ in parts]).argsort()
        return torch.cat(values)[order].to(device)

    @torch.no_grad()
    def score(self, samples: list[str], prompts: Sequence[Prompt] | None = None, batch_size: int = 32) -> Tensor:
        samples, prompts, batch_size = to_judge(samples, prompts, batch_size)
        frames, values = self.frames(len(samples), prompts=prompts), torch.zeros(len(samples))
        order = sorted(range(len(samples)), key=lambda k: len(samples[k]))  # alike lengths need little padding
        for first in range(0, len(samples), batch_size):
            chosen = order[first : first + batch_size]
            reading = self.reader.read_texts([samples[k] for k in chosen], [frames[k] for k in chosen])
            told = None if prompts is None else [prompts[k] for k in chosen]
            values[chosen] = self.value_for(reading, told).float().cpu()
        return values

    def forward(self, reading: Reading) -> Tensor:
        """The model's logits, score or hidden states: `(batch, ...)`, or `(batch, length, ...)` of every token."""
        return self.reader.outputs(reading)


def _reads_last_token(model: Any) -> bool:
    """Decoders for classification, which call their head `score`."""
    return isinstance(getattr(model, "score", None), torch.nn.Module)


def outputs_of(found: Tensor) -> Tensor:
    """`(batch, outputs)` float32, of a classifier, or of a reward model that has one score a text, `(batch,)`."""
    return (found[:, None] if found.ndim == 1 else found).float()
