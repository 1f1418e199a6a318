"""How a function wants to be called, read off the names and types of its parameters."""

import inspect
import types
import typing
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

_ANSWERS = {"completion", "answer", "response"}
_TEXTS = {"text", "string", "sentence"} | _ANSWERS
_PROMPTS = {"prompt", "question", "query", "instruction"}
_OPEN = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


@dataclass(frozen=True)
class Signature:
    """What a function takes.

    Attributes:
        kind: `"sample"`, of relaxed samples or pixels; `"strings"`; `"completions"`, of a batch by keywords as TRL's
            reward functions are; `"unclear"`.
        text, prompt: names of the parameters for a text, or for what it was asked for; None: there is none, or, of a
            text, it has no telling name.
        batched: whether the text is a list of them.
        answer_only: whether the name of the text says that it is the answer, True; None: it does not.
        required: names of the parameters without a default.
    """

    kind: str
    text: str | None = None
    prompt: str | None = None
    batched: bool = False
    answer_only: bool | None = None
    required: tuple[str, ...] = ()


@dataclass(frozen=True)
class Arranged:
    """`function` called as `(text)` or `(text, prompt)`, whatever the order of its parameters.

    Attributes:
        function: any callable.
        names: of the parameters for the text and for the prompt, which are passed by name; empty: by their places.
        prompt_first: of two without names.
    """

    function: Callable[..., Any]
    names: tuple[str, ...] = ()
    prompt_first: bool = False

    def __call__(self, *told: Any) -> Any:
        if self.names:
            return self.function(**dict(zip(self.names, told, strict=True)))
        return self.function(*(reversed(told) if self.prompt_first else told))


def signature_of(function: Any) -> Signature:
    """What a function takes, as far as names and types tell.

    >>> signature_of(lambda tokens: 0).kind, signature_of(lambda texts: 0).batched
    ('sample', True)
    >>> def right(completions, solution, **kwargs): ...
    >>> signature_of(right).kind, signature_of(right).required
    ('completions', ('completions', 'solution'))
    """
    parameters, takes_all = parameters_of(function)
    required = tuple(one.name for one in parameters if one.default is one.empty)
    names = {one.name for one in parameters}
    by_keyword = takes_all and names <= {"prompts"} and bool(names or not takes_something(function))
    by_keyword |= "completion_ids" in names
    if by_keyword or ("completions" in names and (takes_all or len(required) > 1 or "prompts" in names)):
        return Signature("completions", "completions", "prompts" if "prompts" in names else None, True, True, required)
    roles = {one.name: _role(one) for one in parameters}
    prompt = next((name for name, (role, _) in roles.items() if role == "prompt"), None)
    text = next((name for name, (role, _) in roles.items() if role == "text"), None)
    left = [name for name in required if name not in (text, prompt)]
    if text is not None:
        kind = "unclear" if left else "strings"
        named = True if _base(text) in _ANSWERS else None
        return Signature(kind, text, prompt, roles[text][1], named, required)
    if len(left) == 1 and (prompt is None or roles[prompt][1] or roles[left[0]][0] == "sample"):
        return Signature("sample", None, prompt, required=required)
    if len(required) <= 1:  # of none, of a prompt alone, or of whatever comes
        return Signature("sample", None, prompt if left else None, required=required)
    return Signature("unclear", None, prompt, required=required)


def parameters_of(function: Any) -> tuple[list[inspect.Parameter], bool]:
    """The named parameters of a callable, and whether it takes keywords of any name; none where nothing is known."""
    forward = getattr(function, "forward", None)
    asked = forward if forward is not None and hasattr(function, "state_dict") else function  # of a module
    try:
        found = inspect.signature(asked, eval_str=True)
    except Exception:  # a type in quotation marks that is not there at run time
        try:
            found = inspect.signature(asked)
        except (TypeError, ValueError):
            return [], False
    parameters = list(found.parameters.values())
    return [one for one in parameters if one.kind not in _OPEN], any(one.kind is one.VAR_KEYWORD for one in parameters)


def takes_something(function: Any) -> bool:
    """Whether a callable can be given anything by its place, as far as is known.

    >>> takes_something(len), takes_something(lambda: 0)
    (True, False)
    """
    forward = getattr(function, "forward", None)
    try:
        found = inspect.signature(function if forward is None else forward).parameters.values()
    except (TypeError, ValueError):
        return True
    return any(one.kind not in (one.KEYWORD_ONLY, one.VAR_KEYWORD) for one in found)


def _base(name: str) -> str:
    """A name in the singular."""
    return name.lower().removesuffix("s")


def _role(parameter: inspect.Parameter) -> tuple[str | None, bool]:
    """`"text"`, `"prompt"`, `"sample"` or None, and whether it is a list of these."""
    base, several = _base(parameter.name), parameter.name.lower().endswith("s")
    if base in _PROMPTS:
        return "prompt", several if _strings(parameter.annotation) is None else _strings(parameter.annotation) == "list"
    told = _strings(parameter.annotation)
    if told is not None:
        return "text", told == "list"
    if parameter.annotation not in (parameter.empty, Any):
        return "sample", False
    return ("text", several) if base in _TEXTS else (None, False)


def _strings(annotation: Any) -> str | None:
    """`"one"` for a string, `"list"` for several; None for what is no type of strings."""
    if annotation in (str, "str"):
        return "one"
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        kinds = {_strings(one) for one in inner if one is not type(None)}
        return kinds.pop() if len(kinds) == 1 else None
    listed = origin in (list, tuple, Sequence, Iterable) and bool(inner) and inner[0] is str
    return "list" if listed or annotation in ("list[str]", "List[str]", "Sequence[str]") else None
