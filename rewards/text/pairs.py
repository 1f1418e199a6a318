"""A cross-encoder as a reward: a model that reads a prompt and an answer together."""

from collections.abc import Callable, Hashable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification

from redge_guidance.chats import Prompt, as_messages, key_of
from redge_guidance.rewards.reading.framing import Frame
from redge_guidance.rewards.reading.reading import Reading
from redge_guidance.rewards.text.model_reward import TextModelReward, outputs_of

_PROBES = (("What is new?", "Nothing much."), ("Who are you, and why?", "Tom. I do not know."))


class PairReward(TextModelReward):
    """`r(x) = a(m(prompt, x))`, the score of a cross-encoder for a prompt and the answer x, a its activation.

    The model is shown both as its tokenizer writes pairs, `[CLS] prompt [SEP] x [SEP]`, with the types of tokens where
    it takes any. Of a conversation the last turn is the prompt.

    Args:
        model: an `AutoModelForSequenceClassification` with one output.
        tokenizer: the model's.
        prompt: what is answered; None: the prompts of the pipeline, or those that `score` is told.
        activation: of the output, elementwise, such as `torch.nn.Sigmoid()`; None: the output itself.
        padding_side, max_length: as for `TextModelReward`.
        answer_only: as for `TextModelReward`, here True by default.

    Raises:
        ValueError: a model with several outputs, or a tokenizer that writes pairs otherwise than as a text with
            separators. When called: no prompts at all.
    """

    auto_class: ClassVar[Any] = AutoModelForSequenceClassification
    of_tokens: ClassVar[bool | None] = False

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        prompt: str | None = None,
        *,
        activation: Callable[[Tensor], Tensor] | None = None,
        padding_side: str | None = None,
        max_length: int | None = None,
        answer_only: bool | None = True,
    ):
        if getattr(getattr(model, "config", None), "num_labels", 1) != 1:
            raise ValueError(f"`model` must have one output, got {model.config.num_labels}.")
        self._between = _between(tokenizer)
        if any(tokenizer("a", "a").get("token_type_ids", [])):
            model = _Typed(model, tokenizer.sep_token_id)
        super().__init__(model, tokenizer, padding_side, max_length, answer_only)
        self.prompt, self.activation = prompt, activation
        self._frames: dict[Hashable, Frame] = {}

    @classmethod
    def from_cross_encoder(cls, encoder: Any, prompt: str | None = None) -> "PairReward":
        """Of a `sentence_transformers.CrossEncoder`, whose values are compared with those of `predict`.

        Raises:
            ValueError: it has other layers than a model of transformers, or other values.
        """
        model, asked = encoder.transformers_model, getattr(encoder, "default_prompt_name", None)
        if model is None or len(encoder) != 1 or asked is not None:
            what = "no model of transformers" if model is None else "a default prompt" if asked else "further layers"
            raise ValueError(f"`encoder` must be a classifier of transformers, got one with {what}.")
        settings = {"activation": encoder.activation_fn, "max_length": encoder.max_seq_length}
        reward = cls(model, encoder.tokenizer, prompt, **settings)
        theirs = torch.as_tensor(encoder.predict([list(pair) for pair in _PROBES], show_progress_bar=False))
        reward.prompt = None
        ours = torch.cat([reward.score([answer], [asked]) for asked, answer in _PROBES])
        reward.prompt = prompt
        if not torch.allclose(ours, theirs.float(), rtol=1e-3, atol=1e-4):
            raise ValueError(f"`encoder` must be worth its own scores {theirs.tolist()}, got {ours.tolist()}.")
        return reward

    def value(self, reading: Reading) -> Tensor:
        found = outputs_of(self.forward(reading))[:, 0]
        return found if self.activation is None else self.activation(found)

    def frames(self, count: int, draws: int = 1, prompts: Sequence[Prompt] | None = None) -> Sequence[Frame]:
        told: Sequence[Prompt] | None = prompts if self.prompt is None else [self.prompt] * count
        if told is None:
            raise ValueError(
                "`prompt` is None and there are no prompts to the texts; make the reward with `prompt=`, or let "
                "`score` or the pipeline know the `prompts`."
            )
        keys = [key_of(prompt) for prompt in told]
        self._frames = {key: self._frame(prompt) for key, prompt in zip(keys, told, strict=True)}
        return [self._frames[key] for key in keys]

    def _frame(self, prompt: Prompt) -> Frame:
        return Frame(str(as_messages(prompt)[-1]["content"]) + self._between)


class _Typed(torch.nn.Module):
    """A model that is told the types of tokens: 0 up to the first separator, 1 after it."""

    def __init__(self, model: Any, separator: int):
        super().__init__()
        self.model, self.config, self._separator = model, model.config, separator

    def get_input_embeddings(self) -> Any:
        return self.model.get_input_embeddings()

    def forward(self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor | None = None) -> Any:
        is_separator = ((input_ids == self._separator) & attention_mask.bool()).long()
        types = ((is_separator.cumsum(-1) - is_separator) > 0).long() * attention_mask
        more = {} if position_ids is None else {"position_ids": position_ids}
        return self.model(input_ids=input_ids, attention_mask=attention_mask, token_type_ids=types, **more)


def _between(tokenizer: Any) -> str:
    """What a tokenizer writes between the texts of a pair."""
    for first, second in _PROBES:
        pair = tokenizer(first, second).input_ids
        alone, last = (tokenizer(text, add_special_tokens=False).input_ids for text in (first, second))
        start = next((k for k in range(len(pair)) if pair[k : k + len(alone)] == alone), None)
        if start is not None and alone and last:
            rest = pair[start + len(alone) :]
            stop = next((k for k in range(len(rest)) if rest[k : k + len(last)] == last), None)
            between = "" if not stop else "".join(tokenizer.convert_ids_to_tokens(rest[:stop]))
            if between and tokenizer(first + between + second).input_ids == pair:
                continue
        raise ValueError("`tokenizer` must write a pair as two texts with separators between them, and does not.")
    return between
