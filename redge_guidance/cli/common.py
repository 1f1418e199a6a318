"""What both kinds of samples share on the command line: records, and what libraries may say."""

import json
import logging
import sys
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

from redge_guidance.setups.models import DEFAULT_MODEL
from redge_guidance.setups.options import Options
from redge_guidance.setups.setup import Setup
from redge_guidance.version import __version__

_AS_IT_IS: dict[str, Any] = {"ensure_ascii": False}


def quiet() -> None:
    """No log lines and, unless on a terminal, no progress bars: what matters comes back as an exception."""
    import diffusers
    import huggingface_hub
    import transformers

    for library in (diffusers.utils.logging, transformers.utils.logging, huggingface_hub.utils.logging):
        library.set_verbosity(logging.CRITICAL)  # what they call an error comes back as an exception, too
    if not sys.stderr.isatty():
        diffusers.utils.logging.disable_progress_bar()
        transformers.utils.logging.disable_progress_bar()


def running(setup: Setup) -> AbstractContextManager[None]:
    """Around sampling: what the content of a checkpoint makes fail is bad input, unless the checkpoint is ours."""
    from redge_guidance.hub import builtin_names, using

    model = setup.resolved.get("model", DEFAULT_MODEL)
    rewards = [told.get("name") for entry in setup.resolved.get("reward", []) for told in entry.values()]
    names = [str(name) for name in (model, *rewards) if name is not None]
    if set(names) <= set(builtin_names()):
        return nullcontext()
    return using(f"`--model` {model} under `--reward` {', '.join(names[1:])}", (RuntimeError,))


class Made(NamedTuple):
    """What a command made: the report for standard output, and the files that were asked for, by `json`, `out`..."""

    report: str
    files: dict[str, bytes]


def records(runs: list[dict[str, Any]], setup: Setup, options: Options) -> bytes:
    """One line of JSON a sample, with the settings that made it."""
    settings = {name: value for name, value in setup.resolved.items() if name not in ("json", "out", "prompt")}
    settings |= {"seed": options.get("seed", 0), "version": __version__}
    lines = [
        json.dumps(record | {"settings": settings | {"guided": run["scale"] > 0, "scale": run["scale"]}}, **_AS_IT_IS)
        for run in runs
        for record in run["records"]
    ]
    return "".join(f"{line}\n" for line in lines).encode("utf-8", "backslashreplace")  # JSON's way, too
