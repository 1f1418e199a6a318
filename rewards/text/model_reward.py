"""What rewards made of a Hugging Face model have in common."""

import inspect
import os
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import AutoTokenizer

from redge_guidance.hub import loading, resolve
from redge_guidance.reward import Reward
from redge_guidance.rewards.reading.framing import Frame
from redge_guidance.rewards.reading.reader import Reader, Reading
from redge_guidance.samples.tokens import RelaxedTokens

HUB_ARGUMENTS = ("trust_remote_code", "revision", "token", "cache_dir")


class ModelReward(Reward):
    """Reward of a model that reads texts; with any tokenizer, see `Reader`.

    Subclasses say what a `Reading` is worth (`value`), and what stands around a text where that is not just the
    tokenizer's special tokens (`frames`).

    Args:
        model: put into eval mode; its parameters are frozen.
        tokenizer: the one that the model was trained with.
        padding_side: of batches, `"left"` or `"right"`; None: left for models that read the last token.
        max_length: in tokens; None: what the tokenizer and the model's config say.
    """

    modality = "text"
    auto_class: ClassVar[Any]
    answer_only: bool = False

    def __init__(self, model: Any, tokenizer: Any, padding_side: str | None = None, max_length: int | None = None):
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        if padding_side is None:
            padding_side = "left" if _reads_last_token(model) else "right"
        self._reader = Reader(model, tokenizer, padding_side, max_length)
        takes = inspect.signature(model.forward).parameters
        self._positions = padding_side == "left" and "position_ids" in takes

    @classmethod
    def from_pretrained(
        cls,
        name: str | os.PathLike[str],
        *args: Any,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        device_map: Any = None,
        trust_remote_code: bool = False,
        model_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Load a model and its tokenizer from a folder or a hub id, or an embedded checkpoint, `"builtin:..."`.

        Args:
            name: embedded checkpoint, folder, or hub id.
            *args, **kwargs: what the constructor takes after model and tokenizer; `revision`, `token` and `cache_dir`
                go to the hub.
            device, dtype: of the model.
            device_map: as in transformers; `device` is then not used.
            trust_remote_code: run Python code that comes with the checkpoint.
            model_kwargs: for the `from_pretrained` of the model alone, such as `quantization_config`.

        Raises:
            ValueError, FileNotFoundError: `name` is unknown, or what the constructor raises.
            OSError: `name` is a hub id that cannot be loaded.
        """
        path = resolve(name)
        hub = {key: kwargs.pop(key) for key in HUB_ARGUMENTS if key in kwargs} | {
            "trust_remote_code": trust_remote_code
        }
        placed = {} if device_map is None else {"device_map": device_map}
        with loading(name):
            tokenizer = AutoTokenizer.from_pretrained(path, **hub)
            auto = cls._auto_class(path, hub)
            model = auto.from_pretrained(path, dtype=dtype, **hub, **placed, **(model_kwargs or {}))
        return cls(model if placed else model.to(device), tokenizer, *args, **kwargs)

    def value(self, reading: Reading) -> Tensor:
        """Rewards `(batch,)` of what the model is shown."""
        raise NotImplementedError

    def frames(self, count: int, draws: int = 1) -> Sequence[Frame]:
        """What stands around each of `count` texts, which are `draws` samples of each of `count / draws`."""
        return [Frame()] * count

    def __call__(self, tokens: RelaxedTokens) -> Tensor:
        """Rewards `(batch,)` of a batch of relaxed texts, differentiable in `tokens.weights`."""
        device, here = tokens.ids.device, self._reader.device
        tokens = tokens if device == here else tokens.to(here)
        reading = self._reader(tokens, self.frames(len(tokens), tokens.draws), self.answer_only)
        return self.value(reading).to(device)

    @torch.no_grad()
    def score(self, texts: list[str], batch_size: int = 32) -> Tensor:
        """Rewards `(len(texts),)` of finished texts, on the CPU: what `__call__` gives for the same hard tokens."""
        frames, values = self.frames(len(texts)), torch.zeros(len(texts))
        order = sorted(range(len(texts)), key=lambda k: len(texts[k]))  # alike lengths need little padding
        for first in range(0, len(texts), batch_size):
            chosen = order[first : first + batch_size]
            reading = self._reader.read_texts([texts[k] for k in chosen], [frames[k] for k in chosen])
            values[chosen] = self.value(reading).float().cpu()
        return values

    def forward(self, reading: Reading) -> Any:
        """The model's output."""
        mask = reading.mask.long()
        more = {"position_ids": (mask.cumsum(-1) - 1).clamp(min=0)} if self._positions else {}
        return self.model(inputs_embeds=reading.embeddings, attention_mask=mask, **more)

    @classmethod
    def _auto_class(cls, path: str, hub: dict[str, Any]) -> Any:
        return cls.auto_class


def _reads_last_token(model: Any) -> bool:
    """Decoders for classification, which call their head `score`."""
    return isinstance(getattr(model, "score", None), torch.nn.Module)


def outputs_of(output: Any) -> Tensor:
    """`(batch, outputs)`: the logits of a classifier, or the score of a reward model that calls it so."""
    found = getattr(output, "logits", None)
    found = getattr(output, "score", None) if found is None else found
    if not isinstance(found, Tensor):
        raise ValueError(f"`model` must return `logits` or `score`, got {type(output).__name__} without either.")
    return (found[:, None] if found.ndim == 1 else found).float()
