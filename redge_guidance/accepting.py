"""What may be passed as a reward beside a `Reward`: functions, told apart by their signature, and models."""

import functools
import importlib
import inspect
import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from redge_guidance.evaluation import WrongKind, name_of
from redge_guidance.signatures import Arranged, Signature, parameters_of, signature_of, takes_something

# Where rewards are made of functions of strings, and of what other libraries have; imported when one comes.
_FUNCTIONS, _MODELS = "redge_guidance.rewards.functions", "redge_guidance.rewards.foreign"
_LIBRARIES = ("sentence_transformers", "transformers", "peft")
_PROBES = ("Nothing much.", "All is well, as far as I can see.")
_ACCEPTED = (
    "Accepted are f(tokens) and f(pixels), also with `prompts`, to a tensor (batch,); f(text) to a number and f(texts) "
    "to a list of them, also with `prompt` or `prompts`; f(prompts, completions, **columns) to a list, as in TRL; "
    "an object with score(pixels, prompts) or score(texts, prompts); a CrossEncoder or SentenceTransformer; a "
    "text-classification pipeline; and a Reward"
)


def as_reward(reward: Any) -> Any:
    """`reward` itself where guidance can ask it, a `Reward` or a function of samples; else a `Reward` made of it.

    A function of strings, told by the names or types of its parameters, one in the way of TRL, and models of
    sentence-transformers and pipelines of transformers become a `Reward`. What two parameters without telling names are
    is tried, once, on two strings, and said in a warning.

    Raises:
        ValueError: something else, with what was seen and what is accepted.
    """
    if any(kind.__module__ == "redge_guidance.reward" for kind in type(reward).__mro__):
        return reward
    if isinstance(reward, type):
        raise ValueError(f"`reward` must be an object, got the class {reward.__name__}; make one of it. {_ACCEPTED}.")
    if any(kind.__module__.partition(".")[0] in _LIBRARIES for kind in type(reward).__mro__):
        return importlib.import_module(_MODELS).reward_of(reward)
    score = getattr(reward, "score", None)
    if not callable(reward):
        if not callable(score):
            hint = _hint(reward)
            raise ValueError(
                f"`reward` must be a callable from RelaxedTokens, or pixels, to (batch,), got {type(reward).__name__}"
                f"{hint}. {_ACCEPTED}."
            )
        found = signature_of(score)
        return _of_strings(score, found, name_of(reward)) if found.kind == "strings" else reward
    if callable(score):  # of its own, beside the call
        return reward
    inner = reward
    while isinstance(inner, functools.partial):
        inner = inner.func
    asked = inner if inspect.isroutine(inner) else getattr(inner, "__call__", inner)  # noqa: B004
    if inspect.iscoroutinefunction(asked):
        raise ValueError(
            f"`reward` {name_of(reward)} must be a plain function, got an async one; wrap it in one that runs it, by "
            "`asyncio.run`."
        )
    return _of_function(reward)


def as_strings(error: WrongKind) -> Any:
    """A reward made of the function that failed as one of samples; the error itself where it takes no strings either.

    It is tried, once, on two strings; what it is taken for is a warning.
    """
    function, name = error.reward, name_of(error.reward)
    if not callable(function):
        function = function.score
    found, how = signature_of(function), None
    names = tuple(one.name for one in parameters_of(function)[0])
    if found.prompt is not None and names:
        text = next((one for one in names if one != found.prompt), names[0])
        how = _tried(Arranged(function, (text, found.prompt)), True)
    elif len(found.required) == 2:
        how = _tried(Arranged(function), True) or _tried(Arranged(function, prompt_first=True), True)
    else:
        how = _tried(Arranged(function), False)
    if how is None or (error.took and _is_constant(*how)):
        raise error
    arranged, batched, takes_prompt = how
    if error.told:
        _tell(name, how, "since it cannot be shown RelaxedTokens")
    return _make(arranged, batched, takes_prompt, None, name)


def _of_function(function: Any) -> Any:
    name, found = name_of(function), signature_of(function)
    if found.kind == "sample":
        if not takes_something(function):
            raise ValueError(f"`reward` {name} must take what it is to judge, got one without parameters. {_ACCEPTED}.")
        return function
    if found.kind == "strings":
        return _of_strings(function, found, name)
    if found.kind == "completions":
        return importlib.import_module(_FUNCTIONS).CompletionsReward(function, name=name)
    how = None
    if found.text is None and len(found.required) == 2:
        if found.prompt is not None:
            text = next(one for one in found.required if one != found.prompt)
            how = _tried(Arranged(function, (text, found.prompt)), True)
            if how is None:  # a function of samples
                return function
        else:
            how = _tried(Arranged(function, prompt_first=True), True)
    if how is None:
        raise ValueError(
            f"`reward` {name} must be called by what is known of a sample, got a function of "
            f"({', '.join(found.required)}). {_ACCEPTED}."
        )
    _tell(name, how, f"whose parameters are {' and '.join(found.required)}")
    return _make(*how, None, name)


def _of_strings(function: Callable[..., Any], found: Signature, name: str) -> Any:
    kinds = {one.name: one.kind for one in parameters_of(function)[0]}
    names = tuple(one for one in (found.text, found.prompt) if one is not None)
    if any(kinds[one] is inspect.Parameter.POSITIONAL_ONLY for one in names):
        arranged = Arranged(function, prompt_first=list(kinds).index(names[0]) > list(kinds).index(names[-1]))
    else:
        arranged = Arranged(function, names)
    return _make(arranged, found.batched, found.prompt is not None, found.answer_only, name)


def _make(arranged: Arranged, batched: bool, takes_prompt: bool, answer_only: bool | None, name: str) -> Any:
    return importlib.import_module(_FUNCTIONS).of_strings(arranged, batched, takes_prompt, answer_only, name)


def _tried(arranged: Arranged, takes_prompt: bool) -> tuple[Arranged, bool, bool] | None:
    """What a function takes, one text or a list of them, by its values for two; None where it takes neither."""
    for batched in (False, True):
        prompts: Sequence[Any] = ["What is new?"] * 2
        told = (list(_PROBES), list(prompts)) if batched else (_PROBES[0], prompts[0])
        try:
            result = arranged(*told[: 1 + takes_prompt])
            numbers = [float(one) for one in result] if batched else [float(result)]
        except Exception:  # whatever it makes of what it does not take
            continue
        is_text = isinstance(result, str)
        if not is_text and len(numbers) == (2 if batched else 1) and not any(map(math.isnan, numbers)):
            return arranged, batched, takes_prompt
    return None


def _is_constant(arranged: Arranged, batched: bool, takes_prompt: bool) -> bool:
    """Whether a function that takes strings makes no difference between two of them."""
    prompts = ["What is new?"] * takes_prompt
    values = [arranged(*([[text], *([one] for one in prompts)] if batched else [text, *prompts])) for text in _PROBES]
    first, second = ([float(one) for one in value] if batched else float(value) for value in values)
    return first == second


def _tell(name: str, how: tuple[Arranged, bool, bool], why: str) -> None:
    arranged, batched, takes_prompt = how
    names = ["text", "prompt"] if takes_prompt else ["text"]
    names = names[::-1] if arranged.prompt_first else names
    call = f"f({', '.join(one + 's' * batched for one in names)})"
    warnings.warn(
        f"`reward` {name}, {why}, is taken for a function of strings, {call}, by its values for two of them; name the "
        "parameters so, or make it a `BlackBoxReward`, and nothing is guessed.",
        stacklevel=4,
    )


def _hint(reward: Any) -> str:
    if isinstance(reward, str):
        return f" {reward!r}; load a model by the `from_pretrained` of a reward"
    if isinstance(reward, list | tuple):
        return "; add rewards up, `a + 0.5 * b`"
    return ""
