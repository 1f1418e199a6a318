"""What both kinds of samples share on the command line: devices, records, files."""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from redge_guidance.config import GuidanceConfig
from redge_guidance.version import __version__


def quiet() -> None:
    """No log lines and, unless on a terminal, no progress bars: what matters comes back as an exception."""
    import diffusers
    import huggingface_hub
    import transformers

    for library in (diffusers.utils.logging, transformers.utils.logging, huggingface_hub.utils.logging):
        library.set_verbosity_error()
    if not sys.stderr.isatty():
        diffusers.utils.logging.disable_progress_bar()
        transformers.utils.logging.disable_progress_bar()


def device_of(name: str) -> Any:
    """The torch device; ValueError where this machine has none of that name."""
    import torch

    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"`--device` must be a device of this machine, got {name!r}: {error}") from error
    return device


def write_records(runs: list[dict[str, Any]], args: argparse.Namespace, config: GuidanceConfig) -> None:
    """One JSON object a sample, with the settings that made it, to the file that was asked for."""
    if args.json is None:
        return
    settings = vars(args) | {"config": json.loads(config.to_json()), "version": __version__}
    for key in ("json", "out", "prompt", "command"):
        settings.pop(key)
    with replacing(Path(args.json)) as name, open(name, "w", encoding="utf-8") as file:
        for run in runs:
            for record in run["records"]:
                line = record | {"settings": settings | {"guided": run["scale"] > 0, "scale": run["scale"]}}
                file.write(json.dumps(line, ensure_ascii=False) + "\n")


@contextmanager
def replacing(target: Path) -> Iterator[str]:
    """Name of a file that takes the place of `target` when the block ends; nothing stays behind if it fails."""
    descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=target.suffix)
    os.close(descriptor)
    try:
        yield name
        os.chmod(name, 0o666 & ~_umask())
        os.replace(name, target)
    except BaseException:
        os.unlink(name)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
