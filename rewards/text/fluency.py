"""How likely a text is under a language model, as a reward."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM

from redge_guidance.chats import Prompt
from redge_guidance.checks import as_whole
from redge_guidance.positions import bare
from redge_guidance.rewards.reading.framing import Frame
from redge_guidance.rewards.reading.reading import Reading
from redge_guidance.rewards.text.model_reward import TextModelReward
from redge_guidance.text import end_token_id


class FluencyReward(TextModelReward):
    """Log-likelihood of a text under a causal or masked language model, in nats; a pull against fooling other rewards.

    Causal: `r(x) = mean_j log p(x_j | start, x_<j)` over the tokens of the text and the end of the text behind them;
    the start is the tokenizer's beginning-of-text token, or its end-of-text token where it has none. Masked: the
    pseudo-log-likelihood `mean_j log p(x_j | the others)` over the same tokens, where a forward pass hides every
    `num_passes`-th of them at once, and every token once. That the end counts keeps an empty text from being best.

    Gradients go through what the model reads and through the tokens that it predicts.

    Args:
        model: any `AutoModelForCausalLM` or `AutoModelForMaskedLM`.
        tokenizer: the model's.
        per_token: the mean over the tokens, as above; False: the sum, `log p(x, end)`, by which a shorter text is
            better.
        masked: whether the model is a masked one; None: whether its class is for masked language models.
        num_passes: forward passes of a masked model, >= 2.
        padding_side, max_length, answer_only: as for `TextModelReward`.

    Raises:
        ValueError: a masked model whose tokenizer has no mask token, a tokenizer that has no token for the end of a
            text, or `num_passes` below 2.
    """

    of_tokens: ClassVar[bool | None] = True
    of_pipelines = True

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        per_token: bool = True,
        masked: bool | None = None,
        num_passes: int = 4,
        padding_side: str | None = None,
        max_length: int | None = None,
        answer_only: bool | None = None,
    ):
        super().__init__(model, tokenizer, padding_side, max_length, answer_only)
        self.masked = "MaskedLM" in type(bare(model)).__name__ if masked is None else masked
        passes = as_whole(num_passes)
        self.per_token, self.num_passes = per_token, passes or 0
        if self.masked and tokenizer.mask_token_id is None:
            raise ValueError("`tokenizer` must have a mask token for a masked language model, got none.")
        if passes is None or passes < 2:
            raise ValueError(f"`num_passes` must be >= 2, got {num_passes!r}; one pass would hide the whole text.")
        first, last = tokenizer.bos_token_id, end_token_id(tokenizer)
        if self.masked:
            first = tokenizer.cls_token_id if first is None else first
        elif first is None:
            first = last
        if last is None:
            last = first
        if last is None:
            raise ValueError(
                "`tokenizer` must have a token that ends texts, got none; set its `eos_token`, by which an empty text "
                "is not the best one."
            )
        self._frame = Frame(first=first, last=last)

    @classmethod
    def model_class(cls, path: str, hub: dict[str, Any]) -> Any:
        names = AutoConfig.from_pretrained(path, **hub).architectures or []
        return AutoModelForMaskedLM if any("MaskedLM" in name for name in names) else AutoModelForCausalLM

    def frames(self, count: int, draws: int = 1, prompts: Sequence[Prompt] | None = None) -> Sequence[Frame]:
        return [self._frame] * count

    def value(self, reading: Reading) -> Tensor:
        counted = reading.text | reading.end
        values = self._masked(reading, counted) if self.masked else self._causal(reading)
        total = (values * counted).sum(-1)
        return total / counted.sum(-1).clamp(min=1) if self.per_token else total

    def _causal(self, reading: Reading) -> Tensor:
        log_probs = self.forward(reading).float().log_softmax(-1)
        before = torch.nn.functional.pad(log_probs[:, :-1], (0, 0, 1, 0))  # at j: the prediction of token j
        return reading.pick(before)

    def _masked(self, reading: Reading, counted: Tensor) -> Tensor:
        """One log-probability a token, each from the pass that hides it."""
        values = torch.zeros_like(reading.ids, dtype=torch.float)
        rank, mask_id = counted.cumsum(-1) - 1, self.tokenizer.mask_token_id
        embedding = self.model.get_input_embeddings().weight[mask_id] * self.reader.scale
        for group in range(self.num_passes):
            hidden = counted & (rank % self.num_passes == group)
            log_probs = self.forward(reading.hiding(hidden, mask_id, embedding)).float().log_softmax(-1)
            values = torch.where(hidden, reading.pick(log_probs), values)
        return values
