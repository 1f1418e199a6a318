"""Pipeline, reward and config of an evaluation from its options."""

import importlib
from dataclasses import dataclass
from typing import Any

import torch

from redge_guidance.config import GuidanceConfig
from redge_guidance.constraints.constraint import Constrained, Constraint, parted
from redge_guidance.harness.options import GUIDANCE, Options
from redge_guidance.pipelines import TextPipeline
from redge_guidance.rewards import TextClassifierReward

_OF_REWARDS = ("label", *GUIDANCE)


@dataclass(frozen=True, eq=False)
class Setup:
    """What is evaluated: a text pipeline, and what guides it, a reward, a constraint, both, or None."""

    pipe: Any
    reward: Any
    config: GuidanceConfig | None


def load_setup(options: Options, pipe: Any = None, reward: Any = None, config: GuidanceConfig | None = None) -> Setup:
    """Objects that are given, or else what the options name; a constraint of the set-up's file holds in any case.

    Raises:
        ValueError: no pipeline, or several; options of guidance without a reward; what loading raises.
    """
    ways = [pipe is not None, options.pretrained is not None, options.setup is not None]
    if sum(ways) != 1:
        raise ValueError(
            "`model_args` must name what to evaluate by one of `pretrained=NAME` and `setup=FILE.yaml` (in Python also "
            f"`RedgeLM(pipe=...)`), got {sum(ways)} of them."
        )
    if options.setup is not None:
        found = _from_file(options.setup, options.trust_remote_code)
        constraint = parted(found.reward)[1]
        reward = found.reward if reward is None else _under(reward, constraint)
        pipe, config = found.pipe, config or found.config
    elif pipe is None:
        pipe = _pipeline(options)
    if not isinstance(pipe, TextPipeline):
        raise ValueError(f"`pipe` must be a TextPipeline, got {type(pipe).__name__}.")
    if options.peft is not None:
        pipe.register_modules(model=_adapted(pipe.model, options.peft))
    if options.reward is not None:
        named = TextClassifierReward.from_pretrained(
            options.reward,
            options.label,
            temperature=options.reward_temperature,
            device=pipe.device,
            trust_remote_code=options.trust_remote_code,
        )
        reward = _under(named, parted(reward)[1])
    told = options.given(GUIDANCE)
    if parted(reward)[0] is None and options.given(_OF_REWARDS):
        name = next(iter(options.given(_OF_REWARDS)))
        raise ValueError(f"`{name}` is for guidance, which needs a `reward`, got none; name a classifier of texts.")
    if told:
        config = GuidanceConfig(**told)
    _set_scheduler(pipe, options.given(("unmasking_order", "choice_temperature")))
    pipe.set_progress_bar_config(disable=True)
    return Setup(pipe, reward, config)


def _under(reward: Any, constraint: Constraint | None) -> Any:
    """The reward and the constraint, unless the reward has one of its own."""
    return reward if constraint is None or parted(reward)[1] is not None else Constrained(reward, constraint)


def _pipeline(options: Options) -> Any:
    dtype = getattr(torch, str(options.dtype), None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"`dtype` must be float32, bfloat16 or float16, got {options.dtype!r}.")
    names = ("tokenizer", "family", "mask_token_id", "revision")
    more = options.given(names) | ({"trust_remote_code": True} if options.trust_remote_code else {})
    pipe = TextPipeline.from_pretrained(str(options.pretrained), dtype=dtype, **more)
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    return pipe.to(device)


def _from_file(name: str, trust_remote_code: bool) -> Any:
    load = getattr(importlib.import_module("redge_guidance"), "load", None)
    if load is None:
        raise ValueError(
            "`setup` needs a version of redge-guidance that loads set-ups; pass `pretrained` and `reward`."
        )
    return load(name, trust_remote_code=True) if trust_remote_code else load(name)


def _adapted(model: Any, name: str) -> Any:
    try:
        peft = importlib.import_module("peft")
    except ModuleNotFoundError as error:
        raise ValueError("`peft` needs the package of that name; pip install redge-guidance[peft].") from error
    return peft.PeftModel.from_pretrained(model, name).eval()


def _set_scheduler(pipe: Any, told: dict[str, Any]) -> None:
    if not told:
        return
    known = set(pipe.scheduler.config)
    wrong = sorted(set(told) - known)
    if wrong:
        raise ValueError(
            f"`{wrong[0]}` cannot be used with {type(pipe).__name__}, whose {type(pipe.scheduler).__name__} does not "
            "have it."
        )
    pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, **told)
