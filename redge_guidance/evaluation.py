"""How a reward is asked for its value, and what is checked of the answer."""

import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

from redge_guidance.chats import Prompt
from redge_guidance.signatures import signature_of


class WrongKind(ValueError):  # noqa: N818 - it says what a reward is
    """A function of samples that was shown what it does not take, and may be one of strings.

    Attributes:
        reward: the function, or an object with a `score`.
        told: whether that it is taken for one of strings is worth saying.
        took: whether it took what it was shown, so that only values that differ say that it takes strings.
    """

    def __init__(self, message: str, reward: Any, told: bool = True, took: bool = False):
        super().__init__(message)
        self.reward, self.told, self.took = reward, told, took


_MAY_BE_INFINITE: ContextVar[bool] = ContextVar("may_be_infinite", default=False)


@contextmanager
def infinite_allowed() -> Iterator[None]:
    """Functions of finished samples may say -inf, or NaN, of one: where several compete it is out, and no error."""
    token = _MAY_BE_INFINITE.set(True)
    try:
        yield
    finally:
        _MAY_BE_INFINITE.reset(token)


def is_allowed(value: float) -> bool:
    """Whether a function of a finished sample may say so."""
    return math.isfinite(value) or _MAY_BE_INFINITE.get()


def of_pixels(reward: Any, pixels: Tensor, prompts: Sequence[Prompt] | None) -> Tensor:
    """The value of a reward that is no `Reward`: `score(pixels, prompts)` as preference models have it, or a call."""
    score = getattr(reward, "score", None)
    value: Tensor = call_plain(reward, pixels, "image", prompts) if score is None else score(pixels, prompts)
    return value


def call_plain(reward: Any, shown: Any, modality: str, prompts: Sequence[Prompt] | None = None) -> Tensor:
    """`reward(shown)`, with a word on the kind of reward where it asks `shown` for what only another kind has.

    A function with a parameter for prompts behind that for the sample is told `prompts`, a list or None.

    Raises:
        ValueError: `reward` is not callable, or is a function of texts that is shown images, the other way round, or
            one of strings that is shown either; where it is shown texts that is a `WrongKind`, and so is a function
            that makes something else than a tensor of them.
    """
    wanted = "pixels" if modality == "image" else "RelaxedTokens"
    if not callable(reward):
        message = f"`reward` must be a callable from {wanted}, got {type(reward).__name__}."
        raise (
            WrongKind(message, reward, told=False) if callable(getattr(reward, "score", None)) else ValueError(message)
        )
    name = signature_of(reward).prompt
    told = {} if name is None else {name: prompts}
    try:
        value: Tensor = reward(shown, **told)
    except (AttributeError, TypeError, RuntimeError) as error:
        kinds = _kinds_asked_for(error, shown, modality)
        if not kinds:
            raise
        message = (
            f"`reward` {name_of(reward)} was shown {type(shown).__name__}, since the pipeline makes {modality}s, and "
            f"failed: {error}. Is it {' or '.join(kinds)}?"
        )
        raise (WrongKind(message, reward) if _STRINGS in kinds else ValueError(message)) from error
    if modality == "text" and not isinstance(value, Tensor) and not hasattr(reward, "answer_only"):
        raise WrongKind(_no_tensor(value, "reward"), reward, took=True)  # as `len`, which takes anything
    return value


_OF_TEXTS = {"answers", "attention_mask", "draws", "embed", "finished", "free", "given", "ids", "judged", "log_probs"}
_OF_TEXTS |= {"log_probs_of", "notes", "prompts", "support", "text_positions", "texts", "tokenizer"}
_OF_TEXTS |= {"weights", "weights_of"}
_IMAGES, _TEXTS = "a reward of images", "a reward of texts"
_STRINGS = "a function of strings, which `BlackBoxReward(function)` makes a reward"


def _kinds_asked_for(error: Exception, shown: Any, modality: str) -> list[str]:
    """The kinds of rewards that would have asked `shown` for what it has not; none for an error of the reward's own."""
    kind, of_images, of_strings = type(shown).__name__, False, False
    if isinstance(error, AttributeError):
        if error.obj is not shown:
            return []
        if modality == "image" and error.name in _OF_TEXTS:
            return [_TEXTS]
        of_images, of_strings = hasattr(Tensor, str(error.name)), hasattr(str, str(error.name))
    elif isinstance(error, TypeError) and re.search(rf"(?<![\w.]){kind}(?!\.)", str(error)) is not None:
        of_strings = re.search(r"\bTensor\b", str(error).replace(f"'{kind}'", "")) is None and "torch" not in str(error)
        of_images = "string" not in str(error)
    elif "__contains__" in str(error):
        of_strings = True
    if modality == "image":
        return [_TEXTS] if of_strings and not (of_images and isinstance(error, TypeError)) else []
    return [_IMAGES] * of_images + [_STRINGS] * of_strings


def check_modality(reward: Any, modality: str) -> None:
    """A ValueError if `reward` says that it is for the other kind of samples than `modality`."""
    found = getattr(reward, "modality", None)
    if found not in (None, modality):
        raise ValueError(f"`reward` {name_of(reward)} is for {found}s, and the pipeline makes {modality}s.")


def checked(rewards: Any, batch: int, name: str) -> Tensor:
    """`rewards` if they are `(batch,)`, floating point and finite.

    Raises:
        ValueError: they are not; `name` says whose they are.
    """
    if not isinstance(rewards, Tensor) or not torch.is_floating_point(rewards):
        raise ValueError(_no_tensor(rewards, name))
    if rewards.shape != (batch,):
        hint = "do not sum or average over the batch" if rewards.ndim == 0 else "return one number a sequence"
        raise ValueError(f"`{name}` must return shape ({batch},), got {tuple(rewards.shape)}; {hint}.")
    if not (rewards.isfinite().all() or _MAY_BE_INFINITE.get()):
        raise ValueError(f"`{name}` returned NaN or infinity; make it finite for every sequence.")
    return rewards


def _no_tensor(value: Any, name: str) -> str:
    is_tensor = isinstance(value, Tensor)
    kind = f"a tensor of {value.dtype}" if is_tensor else type(value).__name__
    hint = "" if is_tensor else "; make a function of strings a `BlackBoxReward(function)`"
    return f"`{name}` must return a floating point tensor, got {kind}{hint}."


def name_of(reward: Any) -> str:
    """What errors and the trace call a reward: its `name`, or that of the function or class."""
    found = getattr(reward, "name", None)
    return found if isinstance(found, str) else str(getattr(reward, "__name__", type(reward).__name__))
