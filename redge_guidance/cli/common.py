"""What both kinds of samples share on the command line: devices, records."""

import argparse
import json
import logging
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

from redge_guidance.config import GuidanceConfig
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


def device_of(name: str) -> Any:
    """The torch device; ValueError where this machine has none of that name, or it does not compute."""
    import torch

    try:
        device = torch.device(name)
        torch.Generator(device)
        (torch.ones(1, device=device) + 1).item()
    except Exception as error:  # whatever the backend of a device raises where there is none
        told = " ".join(str(error).split())[:200]
        raise ValueError(f"`--device` must be a device of this machine, got {name!r}: {told}") from error
    return device


@contextmanager
def naming(option: str) -> Iterator[None]:
    """Errors about the argument `name` are about an option here."""
    try:
        yield
    except ValueError as error:
        if not str(error).startswith("`name` "):
            raise
        raise ValueError(f"`{option}` {str(error).removeprefix('`name` ')}") from error


def running(args: argparse.Namespace, reward: str) -> AbstractContextManager[None]:
    """Around sampling: what the content of a checkpoint makes fail is bad input, unless the checkpoint is ours."""
    from redge_guidance.hub import builtin_names, using

    if {args.model, reward} <= set(builtin_names()):
        return nullcontext()
    return using(f"`--model` {args.model} under `--reward` {reward}", (RuntimeError,))


class Made(NamedTuple):
    """What a command made: the report for standard output, and the files that were asked for, by `json`, `out`..."""

    report: str
    files: dict[str, bytes]


def records(runs: list[dict[str, Any]], args: argparse.Namespace, config: GuidanceConfig) -> bytes:
    """One line of JSON a sample, with the settings that made it."""
    settings = vars(args) | {"config": json.loads(config.to_json()), "version": __version__}
    for key in ("json", "out", "prompt", "command"):
        settings.pop(key)
    lines = [
        json.dumps(record | {"settings": settings | {"guided": run["scale"] > 0, "scale": run["scale"]}}, **_AS_IT_IS)
        for run in runs
        for record in run["records"]
    ]
    return "".join(f"{line}\n" for line in lines).encode("utf-8", "backslashreplace")  # JSON's way, too
