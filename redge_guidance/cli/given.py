"""What was asked for: the options of the command line over those of a file, as settings."""

import argparse
import re
from typing import Any

from redge_guidance.setups import constraints
from redge_guidance.setups.documents import read_value
from redge_guidance.setups.forms import MODIFIERS, SOFTENED, forms_given
from redge_guidance.setups.options import Options
from redge_guidance.setups.rewards import READY_MADE, read_entries
from redge_guidance.setups.schema import OPTIONS, names_of
from redge_guidance.setups.setup import read_options
from redge_guidance.setups.shorthand import goals_given, no_goal

_EXAMPLE = "positive"
TOLD = f"nothing was said to steer toward: toward `--label {_EXAMPLE}`, as an example; see `--help`"
EXAMPLE = "the example"  # the place of a goal that nobody gave
_DECODED = ("prompt", "want", "ban", "label", "negative_prompt", "regex", "choices", "prefix", "suffix")


def settings_of(args: argparse.Namespace) -> tuple[Options, bool]:
    """All settings, and whether code of checkpoints may run where they ask for it.

    What a file names is trusted if the file asks for it and `--trust-remote-code` is given; what an option names, if
    that is given.

    Raises:
        ValueError, OSError: of the file, or an option that is no text.
    """
    named = {name: value for name, value in vars(args).items() if name in OPTIONS}
    for name, value in named.items():
        _check_text(name, value)
    for name in _DECODED:
        if name in named:
            named[name] = _decoded(OPTIONS[name].flag, named[name])
    if "reward" in named:
        named["reward"] = [_reward(text) for text in named["reward"]]
        named["reward"] = read_entries(named["reward"], lambda *path: "--reward", in_file=False)
    if "constraints" in named:
        told = [read_value(text, "--constraints") for text in named["constraints"]]
        named["constraints"] = constraints.read_entries(told, lambda *path: "--constraints")
    consent = bool(named.get("trust_remote_code"))
    options = Options(named, dashes=True)
    if hasattr(args, "config"):
        file = read_options(args.config)
        if "model" in file and "model" not in named:  # whose code is run on the file's word too
            options = options.without("trust_remote_code")
        options = options.over(_without_what_is_replaced(options, file))
    return _with_example(options), consent


def _without_what_is_replaced(options: Options, file: Options) -> Options:
    """Of what to steer toward one or the other counts, and of what form texts have."""
    forms = [name for name in options.of("constraint") if name not in MODIFIERS]
    if options.of("reward") or (options.get("soft") and forms):
        file = file.without(*names_of("reward"), *((*SOFTENED, "soft") if file.get("soft") else ()))
    if forms:
        file = file.without(*(name for name in names_of("constraint") if name not in ("answer_only", "most_states")))
    return file


def _with_example(options: Options) -> Options:
    """Without anything to steer toward: the embedded example, where the embedded model is asked for."""
    if goals_given(options, options.get("reward", [])) or forms_given(options) or options.get("scale") == 0:
        return options
    if "model" in options:
        raise no_goal(options)
    return Options({"label": _EXAMPLE}, {"label": EXAMPLE}, dashes=True).over(options)


def _reward(text: str) -> Any:
    """A name, or a mapping from one to arguments."""
    first = re.match(r"\s*\{?\s*(\w+)\s*:(\s|$)", text)
    if first or (text.strip().startswith("{") and any(name in text for name in READY_MADE)):
        return read_value(text, "--reward")
    return text


def _check_text(name: str, value: Any) -> None:
    texts = value if isinstance(value, list) else [value]
    if any(isinstance(text, str) and "\0" in text for text in texts):
        raise ValueError(f"`{OPTIONS[name].flag}` must be text without NUL, got {value!r}.")


def _decoded(flag: str, value: Any) -> Any:
    """UTF-8 is read as such where the locale says ASCII."""
    return [_as_text(flag, text) for text in value] if isinstance(value, list) else _as_text(flag, value)


def _as_text(flag: str, text: str) -> str:
    """Bytes of the command line that its encoding lacks arrive as lone surrogates."""
    if not any("\ud800" <= sign <= "\udfff" for sign in text):
        return text
    try:
        given: str | bytes = text.encode("utf-8", "surrogateescape")
        return text.encode("utf-8", "surrogateescape").decode("utf-8")
    except UnicodeEncodeError:
        given = ascii(text)  # not by way of the command line
    except UnicodeDecodeError:
        pass
    raise ValueError(f"`{flag}` must be text in UTF-8, got {given!r}.")
