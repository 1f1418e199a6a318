"""How the families of diffusion language models want to be called, and how their authors draw from them."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from redge_guidance.text import end_token_id, known_token_ids

ATTENTION = ("2d", "4d", "none", "block", "block_bias")
CORRUPTIONS = ("masked", "uniform")


@dataclass(frozen=True)
class ModelFamily:
    """A calling convention, and the authors' own settings of the sampler.

    Attributes:
        shift_logits: the logits at position i are those of the token at i + 1, as in models that began as
            autoregressive ones.
        attention: `"2d"`, an attention mask `(batch, length)` where `forward` takes one; `"4d"`, a boolean one
            `(batch, 1, length, length)`; `"none"`, for a model that ignores its mask: rows are then called without
            their padding; `"block"`, a boolean block-causal one: a token sees its own block of `block_size` and those
            before it; `"block_bias"`, the same as numbers to be added, 0 and -inf.
        time_input: name of the argument of `forward` that takes the noise level `sigma = -log alpha_t` `(batch,)`;
            None for a model that is not told the time.
        mask_token_id: id of the mask token.
        told: the mask token is what the config of a model or a caller says; otherwise it is only what the authors use,
            and taken where the tokenizer agrees.
        corruption: `"masked"`, tokens become the mask token; `"uniform"`, any token with equal probability.
        block_size: positions of a block of attention, counted from the first token of a text; None: the config's.
        leading_token: the first token of a block of attention is drawn before the others, from the block before it.
        scheduler, call: settings of the scheduler and of the pipeline that the authors draw with.
    """

    shift_logits: bool = False
    attention: str = "2d"
    time_input: str | None = None
    mask_token_id: int | None = None
    told: bool = False
    corruption: str = "masked"
    block_size: int | None = None
    leading_token: bool = False
    scheduler: Mapping[str, Any] = field(default_factory=dict)
    call: Mapping[str, Any] = field(default_factory=dict)

    def settings(self) -> dict[str, Any]:
        """What a pipeline stores in its config to call the model in this way."""
        settings = {"shift_logits": self.shift_logits, "attention": self.attention, "time_input": self.time_input}
        if self.is_block:
            settings |= {"block_size": self.block_size, "leading_token": self.leading_token}
        return settings

    @property
    def is_block(self) -> bool:
        """Whether attention is block-causal."""
        return self.attention.startswith("block")

    def __post_init__(self) -> None:
        if self.attention not in ATTENTION:
            raise ValueError(f"`attention` must be one of {', '.join(ATTENTION)}, got {self.attention!r}.")
        if self.corruption not in CORRUPTIONS:
            raise ValueError(f"`corruption` must be one of {', '.join(CORRUPTIONS)}, got {self.corruption!r}.")
        if self.block_size is not None and self.block_size < 1:
            raise ValueError(f"`block_size` must be >= 1, got {self.block_size}.")


_LLADA = {"unmasking_order": "confidence"}
_DREAM = {"unmasking_order": "entropy", "eps": 1e-3, "counting": "share_down"}
_MDLM = {"unmasking_order": "ancestral"}
_DYNAMIC = {"unmasking_order": "maskgit_plus"}

FAMILIES = {
    "masked-lm": ModelFamily(),
    "llada": ModelFamily(attention="none", mask_token_id=126_336, scheduler=_LLADA, call={"temperature": 0.0}),
    "llada-moe": ModelFamily(attention="none", mask_token_id=156_895, scheduler=_LLADA, call={"temperature": 0.0}),
    "dream": ModelFamily(
        shift_logits=True,
        attention="4d",
        mask_token_id=151_666,
        scheduler=_DREAM,
        call={"temperature": 0.2, "top_p": 0.95},
    ),
    "mdlm": ModelFamily(attention="none", time_input="timesteps", scheduler=_MDLM),
    "sedd": ModelFamily(attention="none", time_input="sigma", scheduler=_MDLM),
    "bd3lm": ModelFamily(attention="block", time_input="timesteps", scheduler=_MDLM),
    "sdar": ModelFamily(
        attention="block",
        mask_token_id=151_669,
        scheduler=_DYNAMIC | {"confidence_threshold": 0.85},
    ),
    "llada2": ModelFamily(
        attention="block_bias",
        mask_token_id=156_895,
        block_size=32,
        scheduler=_DYNAMIC | {"confidence_threshold": 0.95},
        call={"temperature": 0.0},
    ),
    "fast-dllm-v2": ModelFamily(
        shift_logits=True,
        attention="block",
        mask_token_id=151_665,
        block_size=32,
        leading_token=True,
        scheduler=_DYNAMIC | {"confidence_threshold": 0.9},
        call={"temperature": 0.0, "block_length": 8},
    ),
    "uniform-lm": ModelFamily(corruption="uniform"),
    "udlm": ModelFamily(attention="none", time_input="timesteps", corruption="uniform"),
    "duo": ModelFamily(attention="none", time_input="timesteps", corruption="uniform"),
}
_TYPES = {"lladamoe": "llada-moe", "llada_moe": "llada-moe", "llada2_moe": "llada2", "fast_dllm_qwen": "fast-dllm-v2"}


def family_of(config: Any, name: str | None = None) -> ModelFamily:
    """The family called `name`, or the one that a model's config tells by its `model_type`.

    What the config says of the mask token and of the size of a block goes before what the family says.

    Raises:
        ValueError: an unknown name, a `model_type` that is not known, or one that is of another family than `name`.
    """
    kind = str(getattr(config, "model_type", "")).lower()
    told = "masked-lm" if kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES else _TYPES.get(kind, kind)
    if name is not None and name not in FAMILIES:
        raise ValueError(f"`family` must be one of {', '.join(FAMILIES)}, got {name!r}.")
    if name is None and told not in FAMILIES:
        raise ValueError(
            f"a model of type {kind!r} is not known; read natively are {', '.join(FAMILIES)}. If its authors call it "
            "as one of these (docs/samplers.md says how each is called), pass that one as `family`."
        )
    if name is not None and told in FAMILIES and told != "masked-lm" and FAMILIES[told] != FAMILIES[name]:
        raise ValueError(f"`family` must fit the model, which is of type {kind!r}, family {told!r}; got {name!r}.")
    return with_config(FAMILIES[name or told], config)


def with_config(family: ModelFamily, config: Any) -> ModelFamily:
    """A family with what the config of a model says of its mask token and of the size of its blocks.

    Raises:
        ValueError: attention is block-causal, and nobody says in which blocks.
    """
    mask_token_id = getattr(config, "mask_token_id", None)
    if family.time_input is not None and family.corruption == "masked" and mask_token_id is None:
        mask_token_id = _last(config)
    if family.is_block:
        sizes = (getattr(config, key, None) for key in ("block_size", "bd_size"))
        size = next((size for size in sizes if size), family.block_size)
        if size is None:
            raise ValueError("the config of a model with blocks of attention must say its `block_size`; got None.")
        family = replace(family, block_size=size)
    return family if mask_token_id is None else replace(family, mask_token_id=mask_token_id, told=True)


def _last(config: Any) -> int | None:
    """The last id of the vocabulary: the mask token where MDLM's authors added one to a tokenizer without."""
    size = getattr(config, "vocab_size", None)
    return None if size is None else size - 1


def prepare_config(config: Any) -> None:
    """Settings without which a model can be trained, but not be drawn from."""
    if getattr(config, "attn_backend", None) == "flex" and hasattr(config, "cross_attn"):  # BD3-LM samples by SDPA
        config.attn_backend = "sdpa"


def set_mask_token(tokenizer: Any, family: ModelFamily, mask_token_id: int | None = None) -> None:
    """Name the mask token of a tokenizer that has none; one right behind its vocabulary is added as `[MASK]`.

    Args:
        tokenizer: changed in place.
        family: says which token it is; where only its authors do, a special token that is called a mask.
        mask_token_id: what the caller says, which goes before all; None: nothing.

    Raises:
        ValueError: the id is not known, lies further beyond the vocabulary, is an ordinary word, or is another one than
            the tokenizer's.
    """
    own, wanted, told = tokenizer.mask_token_id, family.mask_token_id, family.told
    if mask_token_id is not None:
        own, wanted, told = None, mask_token_id, True
    if own is not None and (wanted is None or not told or own == wanted):
        return
    if own is not None:
        raise ValueError(
            f"`tokenizer` says that the mask token is {own} ({tokenizer.mask_token!r}), and the model {wanted}; "
            "pass `mask_token_id` to say which one is meant."
        )
    masks, known = _masks_of(tokenizer), known_token_ids(tokenizer)
    is_new = wanted == max(known, default=-1) + 1
    if wanted is None or (wanted not in known and not is_new) or (not told and wanted not in masks):
        raise ValueError(
            f"`tokenizer` must have a `mask_token_id`, got None, and the model's config says "
            f"{wanted if told else None}; pass `mask_token_id`"
            + (f", which may be {', '.join(f'{i} ({token!r})' for i, token in masks.items())}." if masks else ".")
        )
    token = tokenizer.convert_ids_to_tokens(wanted)
    if is_new:
        token = "[MASK]" if "[MASK]" not in tokenizer.get_vocab() else f"[MASK {wanted}]"
    if wanted == end_token_id(tokenizer):
        raise ValueError(f"`mask_token_id` must not be the end of the text, got {wanted} ({token!r}); pass the mask's.")
    tokenizer.add_special_tokens({"mask_token": token})
    if tokenizer.mask_token_id != wanted:
        raise ValueError(
            f"`mask_token_id` must be an id that the tokenizer has, got {wanted}, and {token!r} became "
            f"{tokenizer.mask_token_id}; add the token to the tokenizer under its id, and save it."
        )


def _masks_of(tokenizer: Any) -> dict[int, str]:
    """Special or added tokens whose name says mask, by id."""
    added = tokenizer.added_tokens_decoder
    return {i: str(token) for i, token in sorted(added.items()) if "mask" in str(token).lower()}
