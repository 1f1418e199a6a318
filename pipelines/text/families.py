"""How the families of diffusion language models want to be called: shifted logits, attention masks, time."""

import inspect
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

ATTENTION = ("2d", "4d", "none")
CORRUPTIONS = ("masked", "uniform")
_SMALLEST_ALPHA = 1e-3  # sigma = -log alpha is infinite when nothing is left


@dataclass(frozen=True)
class ModelFamily:
    """A calling convention.

    Attributes:
        shift_logits: the logits at position i are those of the token at i + 1, as in models that began as
            autoregressive ones.
        attention: `"2d"`, an attention mask `(batch, length)` where `forward` takes one; `"4d"`, a boolean one
            `(batch, 1, length, length)`; `"none"`, for a model that ignores its mask: rows are then called without
            their padding.
        time_input: name of the argument of `forward` that takes the noise level `sigma = -log alpha_t` `(batch,)`;
            None for a model that is not told the time.
        mask_token_id: id of the mask token where the tokenizer does not name it.
        corruption: `"masked"`, tokens become the mask token; `"uniform"`, any token with equal probability.
    """

    shift_logits: bool = False
    attention: str = "2d"
    time_input: str | None = None
    mask_token_id: int | None = None
    corruption: str = "masked"

    def settings(self) -> dict[str, Any]:
        """What a pipeline stores in its config to call the model in this way."""
        return {"shift_logits": self.shift_logits, "attention": self.attention, "time_input": self.time_input}

    def __post_init__(self) -> None:
        if self.attention not in ATTENTION:
            raise ValueError(f"`attention` must be one of {', '.join(ATTENTION)}, got {self.attention!r}.")
        if self.corruption not in CORRUPTIONS:
            raise ValueError(f"`corruption` must be one of {', '.join(CORRUPTIONS)}, got {self.corruption!r}.")


FAMILIES = {
    "masked-lm": ModelFamily(),
    "llada": ModelFamily(attention="none", mask_token_id=126_336),
    "dream": ModelFamily(shift_logits=True, attention="4d", mask_token_id=151_666),
    "mdlm": ModelFamily(attention="none", time_input="timesteps", mask_token_id=50_257),
    "uniform-lm": ModelFamily(corruption="uniform"),
    "udlm": ModelFamily(attention="none", time_input="timesteps", corruption="uniform"),
    "duo": ModelFamily(attention="none", time_input="timesteps", corruption="uniform"),
}


def family_of(config: Any, name: str | None = None) -> ModelFamily:
    """The family called `name`, or the one that a model's config tells by its `model_type`.

    A `mask_token_id` in the config goes before the family's.

    Raises:
        ValueError: an unknown name, or a `model_type` that says nothing.
    """
    kind = str(getattr(config, "model_type", "")).lower()
    known = name if name is not None else "masked-lm" if kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES else kind
    if known not in FAMILIES:
        got = f"{name!r}" if name is not None else f"None for a model of type {kind!r}, which is not known"
        raise ValueError(
            f"`family` must be one of {', '.join(FAMILIES)}, got {got}; does the model shift its logits (dream), "
            "ignore its attention mask (llada), take the time (mdlm), or none of these (masked-lm)? "
            "Of uniform diffusion: does it take the time (udlm, duo) or not (uniform-lm)?"
        )
    family = FAMILIES[known]
    mask_token_id = getattr(config, "mask_token_id", None)
    return family if mask_token_id is None else replace(family, mask_token_id=mask_token_id)


def set_mask_token(tokenizer: Any, mask_token_id: int | None) -> None:
    """Name the mask token of a tokenizer that has none; one beyond its vocabulary is added as `[MASK]`.

    Raises:
        ValueError: the id is not known, or lies further beyond the vocabulary.
    """
    if tokenizer.mask_token_id is not None:
        return
    if mask_token_id is None or mask_token_id > len(tokenizer):
        raise ValueError(
            f"`tokenizer` must have a `mask_token_id`, got None, and the model's config says {mask_token_id}; set it "
            "on the tokenizer."
        )
    token = "[MASK]" if mask_token_id == len(tokenizer) else tokenizer.convert_ids_to_tokens(mask_token_id)
    tokenizer.add_special_tokens({"mask_token": token})


def clean_logits(model: Any, family: ModelFamily, ids: Tensor, attention_mask: Tensor, alpha: Tensor) -> Tensor:
    """Logits `(batch, length, vocabulary)` of the clean tokens, each at its own position.

    Positions are counted from the first token that is not padding, and padding does not change what a row gets.

    Args:
        ids: `(batch, length)` int64, padding on the left.
        attention_mask: `(batch, length)` bool, False on padding.
        alpha: `(batch,)`, share of tokens that the corruption has left at the time of the row.
    """
    if family.attention != "none" or attention_mask.all():
        return _call(model, family, ids, attention_mask, alpha)
    padding = (~attention_mask).sum(-1)
    logits: Tensor | None = None
    for amount in padding.unique().tolist():
        rows = padding == amount
        part = _call(model, family, ids[rows, amount:], attention_mask[rows, amount:], alpha[rows])
        logits = part.new_zeros(*ids.shape, part.shape[-1]) if logits is None else logits
        logits[rows, amount:] = part
    assert logits is not None
    return logits


def _call(model: Any, family: ModelFamily, ids: Tensor, attention_mask: Tensor, alpha: Tensor) -> Tensor:
    inputs: dict[str, Tensor] = {"input_ids": ids}
    accepted = inspect.signature(model.forward).parameters
    if family.attention != "none" and "attention_mask" in accepted:
        inputs["attention_mask"] = _square(attention_mask) if family.attention == "4d" else attention_mask.long()
    if "position_ids" in accepted:
        inputs["position_ids"] = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)
    if family.time_input is not None:
        conditioned = getattr(getattr(model, "config", None), "time_conditioning", True)
        inputs[family.time_input] = -alpha.clamp(min=_SMALLEST_ALPHA).log() * float(conditioned)
    output = model(**inputs)
    logits: Tensor = output if isinstance(output, Tensor) else getattr(output, "logits", output[0])
    return _shifted(logits, attention_mask) if family.shift_logits else logits


def _square(attention_mask: Tensor) -> Tensor:
    """`(batch, 1, length, length)`: text sees text; padding sees itself, so that no row is empty."""
    both = attention_mask[:, None, :, None] & attention_mask[:, None, None, :]
    return both | torch.eye(attention_mask.shape[1], dtype=torch.bool, device=attention_mask.device)


def _shifted(logits: Tensor, attention_mask: Tensor) -> Tensor:
    """Logits moved one position to the right; the first token of a text keeps its own."""
    first = attention_mask.int().argmax(-1, keepdim=True)
    source = (torch.arange(logits.shape[1], device=logits.device) - 1).maximum(first)
    return logits.gather(1, source[..., None].expand_as(logits))
