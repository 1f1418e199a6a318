"""What `--model_args` of lm-evaluation-harness may say, under our names, LLaDA's and Dream's."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from redge_guidance.checks import as_real, as_whole, real_number

# how LLaDA's and Dream's evaluation scripts, and the harness, call what has another name here
_ALIASES = {
    "model_path": "pretrained",
    "mask_id": "mask_token_id",
    "mc_num": "num_corruptions",
    "steps": "num_inference_steps",
    "diffusion_steps": "num_inference_steps",
    "max_new_tokens": "gen_length",
    "max_gen_toks": "gen_length",
    "classifier_free_guidance": "guidance_scale",
    "cfg": "guidance_scale",
    "cfg_scale": "guidance_scale",
    "remasking": "unmasking_order",
    "alg": "unmasking_order",
    "alg_temp": "choice_temperature",
}
_FROM_ZERO = ("cfg", "cfg_scale")  # LLaDA's scale, at which 0 is none
_ORDERS = {"low_confidence": "confidence", "origin": "ancestral"}
_ONLY = {"nll_type": "mc", "add_bos_token": True}  # options of Dream's that have one value here
SAMPLING = ("gen_length", "num_inference_steps", "block_length", "temperature", "top_k", "top_p", "guidance_scale")
GUIDANCE = (
    "scale",
    "target",
    "estimator",
    "update",
    "num_draws",
    "every",
    "schedule",
    "warm_start",
    "start",
    "stop",
    "kl_budget",
    "max_tilt",
    "support",
)
_COUNTS = ("gen_length", "num_inference_steps", "block_length", "top_k", "num_corruptions", "max_length")
_FLAGS = ("trust_remote_code", "is_check_greedy", "escape_until")


@dataclass(frozen=True)
class Options:
    """Settings of an evaluation. None: what the pipeline, the reward or `GuidanceConfig` say.

    Attributes:
        pretrained: name of a text pipeline or model, as in `TextPipeline.from_pretrained`.
        setup: a YAML file of `redge_guidance.save`, with pipeline, reward and config, instead of `pretrained`. Its
            constraints hold for what the pipeline writes, before a task's strings `until` cut it; contexts are no part
            of what is judged where they say `answer_only: true`, and have to be if they do not.
        device, dtype, tokenizer, family, mask_token_id, revision, trust_remote_code: of the pipeline.
        peft: a folder or hub id of an adapter for the pipeline's model.
        reward: name of a text classifier; its label by `label`, its `reward_temperature`.
        scale, target, estimator, update, num_draws, every, schedule, warm_start, start, stop, kl_budget, max_tilt,
            support: as in `GuidanceConfig`.
        seed: of sampler, guidance and corruptions.
        gen_length, num_inference_steps, block_length, temperature, top_k, top_p, guidance_scale: as in a call of the
            pipeline; they go before what a task says.
        unmasking_order, choice_temperature: of the scheduler.
        num_corruptions: of a text, in the bound on its probability.
        is_check_greedy: whether to decode, to see if a continuation is the greedy one; False says that it never is.
        batch_size: a number, or `"auto"`, which is 64, and half of it wherever memory does not suffice.
        max_batch_size: of `"auto"`.
        max_length: most tokens that the model is shown; None: what its config says.
        escape_until: leave texts whole, whatever a task says that they are to be cut at.
    """

    pretrained: str | None = None
    setup: str | None = None
    device: str | None = None
    dtype: str = "float32"
    tokenizer: str | None = None
    family: str | None = None
    mask_token_id: int | None = None
    revision: str | None = None
    trust_remote_code: bool = False
    peft: str | None = None
    reward: str | None = None
    label: str | int | None = None
    reward_temperature: float = 1.0
    scale: float | None = None
    target: float | None = None
    estimator: str | None = None
    update: str | None = None
    num_draws: int | None = None
    every: int | None = None
    schedule: str | None = None
    warm_start: float | None = None
    start: float | None = None
    stop: float | None = None
    kl_budget: float | None = None
    max_tilt: float | None = None
    support: int | None = None
    seed: int = 0
    gen_length: int | None = None
    num_inference_steps: int | None = None
    block_length: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    guidance_scale: float | None = None
    unmasking_order: str | None = None
    choice_temperature: float | None = None
    num_corruptions: int = 128
    is_check_greedy: bool = True
    batch_size: int | str = 16
    max_batch_size: int | None = None
    max_length: int | None = None
    escape_until: bool = False

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> "Options":
        """Those that are not None, checked.

        Raises:
            ValueError: an unknown name, with the nearest known one; two names for one thing; a value of a wrong kind.
        """
        known = [f.name for f in fields(cls)]
        found: dict[str, Any] = {}
        told: dict[str, str] = {}
        for name, value in given.items():
            if value is None:
                continue
            if name in _ONLY:
                if value != _ONLY[name]:
                    raise ValueError(f"`{name}` can only be {_ONLY[name]!r} here, got {value!r}; leave it out.")
                continue
            plain = plain_name(name)
            if plain not in known:
                near = difflib.get_close_matches(name, [*known, *_ALIASES], 1)
                hint = f"; is it `{near[0]}`?" if near else f"; known are {', '.join(known)}."
                raise ValueError(f"`{name}` is no argument of the model `redge`{hint}")
            if plain in told:
                raise ValueError(f"`{told[plain]}` and `{name}` are the same setting; pass one of them.")
            told[plain], found[plain] = name, plain_value(name, value)
        return cls(**found)

    def __post_init__(self) -> None:
        for name in _COUNTS:
            value = getattr(self, name)
            if value is not None and ((number := as_whole(value)) is None or number < 1):
                raise ValueError(f"`{name}` must be a whole number >= 1, got {value!r}.")
        for name in _FLAGS:
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"`{name}` must be True or False, got {getattr(self, name)!r}.")
        size = self.batch_size
        if not str(size).startswith("auto") and ((number := as_whole(_as_number(size))) is None or number < 1):
            raise ValueError(f"`batch_size` must be a whole number >= 1, or 'auto', got {size!r}.")
        if as_whole(self.seed) is None:
            raise ValueError(f"`seed` must be a whole number, got {self.seed!r}.")

    def most_at_once(self) -> int:
        """The batch size to begin with."""
        if str(self.batch_size).startswith("auto"):
            return as_whole(self.max_batch_size) or 64
        return int(_as_number(self.batch_size))

    def given(self, names: tuple[str, ...]) -> dict[str, Any]:
        """Of `names` those that are not None, with their values."""
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}


def plain_name(name: str) -> str:
    """Our name of a setting."""
    return _ALIASES.get(name, name)


def plain_value(name: str, value: Any) -> Any:
    """The value as our name of the setting has it."""
    if name in _FROM_ZERO:
        return real_number(name, value) + 1
    if name in ("remasking", "alg"):
        return _ORDERS.get(value, value)
    return value


def _as_number(value: Any) -> Any:
    """The number that a string spells, as command lines pass them."""
    if isinstance(value, str) and value.isdecimal():
        return int(value)
    return value if as_real(value) is not None else 0
