"""Names of checkpoints: folders, hub ids, and `builtin:NAME` for an embedded one."""

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from os import PathLike, fspath
from os.path import expanduser
from pathlib import Path
from ssl import SSLError
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError
from torch import OutOfMemoryError

_PREFIX = "builtin:"
_ROOT = Path(str(files("redge_guidance.checkpoints")))
_PATIENCE = 5  # seconds until a hub that does not answer counts as out of reach
_FILES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".json", ".gguf", ".py", ".zip", ".git")
_LONGEST = 500  # characters of a message of a library
_ASKING = threading.Lock()
_ASKED: list[Any] = []  # how long transformers would wait for an answer, by whoever is loading


def builtin_names() -> list[str]:
    """Names of the checkpoints shipped with the package, such as `builtin:tatoeba-masked`."""
    return sorted(_PREFIX + folder.name for folder in _ROOT.iterdir() if (folder / "README.md").is_file())


def resolve(name: str | PathLike[str], revision: str | None = None, cache_dir: str | Path | None = None) -> str:
    """What a `from_pretrained` of transformers or diffusers takes: a folder on this machine, or a hub id as it came.

    A hub id becomes the folder of its cached files where the hub is out of reach, so that nothing waits for it.

    Raises:
        ValueError: an unknown `builtin:` name, or no name.
        FileNotFoundError: neither a folder nor spelled like a hub id; a hub is never asked for it.
        OSError: the hub is out of reach, and nothing of this id is in the cache.

    >>> resolve("builtin:sentiment").endswith("sentiment")
    True
    """
    if not isinstance(name, str | PathLike) or not fspath(name):
        raise ValueError(f"`name` must name a checkpoint: a folder, a hub id or {_PREFIX}NAME, got {name!r}.")
    name = fspath(name)
    if name.startswith(_PREFIX):
        if name not in builtin_names():
            raise ValueError(f"`{name}` is not an embedded checkpoint; choose one of {', '.join(builtin_names())}.")
        return str(_ROOT / name.removeprefix(_PREFIX))
    path = Path(expanduser(name))
    if path.is_dir():
        return str(path)
    if not _is_hub_id(name) or path.exists() or (path.parent != Path() and path.parent.is_dir()):
        raise FileNotFoundError(
            f"`{name}` is not a folder; expected a checkpoint folder, a hub id `organisation/model` or `model`, "
            f"or one of {', '.join(builtin_names())}."
        )
    trouble = _out_of_reach()
    if trouble is None:
        return name
    try:
        return snapshot_download(name, revision=revision, cache_dir=cache_dir, local_files_only=True)
    except (LocalEntryNotFoundError, FileNotFoundError) as error:
        raise OSError(
            f"`{name}` could not be loaded: {trouble}, and nothing of it is in the cache; pass a folder, or one of "
            f"{', '.join(builtin_names())}."
        ) from error


def _is_hub_id(name: str) -> bool:
    """Whether a name is spelled like a hub id, of one word (`gpt2`) or two; what ends like a file is none."""
    spelled = re.fullmatch(r"(\w[\w.-]*/)?\w([\w.-]*\w)?", name, re.ASCII) and not re.search(r"--|\.\.", name)
    return bool(spelled) and len(name) <= 96 and Path(name).suffix not in _FILES


def _out_of_reach() -> str | None:
    """Why the hub cannot be asked, in words; None: it answers."""
    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    try:
        urlopen(Request(constants.ENDPOINT, method="HEAD"), timeout=_PATIENCE).close()
    except HTTPError:
        return None  # it answers, if only with an error
    except URLError as error:
        return None if isinstance(error.reason, SSLError) else f"{constants.ENDPOINT} cannot be reached: {error.reason}"
    except OSError as error:
        return f"{constants.ENDPOINT} cannot be reached: {error}"
    return None


@contextmanager
def loading(name: str | PathLike[str]) -> Iterator[None]:
    """Whatever fails inside, while a library loads `name`, becomes an error that says what was asked for.

    Nobody is asked on the terminal whether code of a checkpoint may run; without consent it is an error.

    Raises:
        OSError: from an OSError: there is no such checkpoint, or a file is missing or cannot be read.
        ValueError: from anything else: code of its own that nobody trusts, or content that is none of a checkpoint.
    """
    try:
        with _unasked():
            yield
    except OSError as error:
        raise OSError(f"`{name}` could not be loaded: {_line(error)}") from error
    except (MemoryError, OutOfMemoryError):
        raise
    except Exception as error:
        message = _line(error)
        if "trust_remote_code=True" in message:
            raise ValueError(
                f"`{name}` comes with Python code of its own; read it, and pass `trust_remote_code=True` to run it."
            ) from error
        if isinstance(error, ValueError) and not isinstance(error, UnicodeError) and f"{name}" in message:
            raise
        kind = "" if isinstance(error, ValueError | RuntimeError) else f"{type(error).__name__}: "
        raise ValueError(f"`{name}` could not be loaded: {kind}{message}") from error


@contextmanager
def using(what: str, passing: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """What a library raises inside where the content of a checkpoint is wrong becomes a ValueError that says of what.

    Errors that are meant for a reader pass: ValueError, OSError, MemoryError, and those of `passing`.
    """
    meant: tuple[type[Exception], ...] = (ValueError, OSError, MemoryError, OutOfMemoryError, *passing)
    try:
        with _unasked():
            yield
    except meant:
        raise
    except Exception as error:
        raise ValueError(
            f"{what} failed: {type(error).__name__}: {_line(error)}; do its configs and files fit one another?"
        ) from error


@contextmanager
def _unasked() -> Iterator[None]:
    """A time of 0 is how transformers is told not to ask on the terminal; its concrete classes have no argument."""
    from transformers import dynamic_module_utils as module

    with _ASKING:
        _ASKED.append(module.TIME_OUT_REMOTE_CODE)
        module.TIME_OUT_REMOTE_CODE = 0
    try:
        yield
    finally:
        with _ASKING:
            last = _ASKED.pop()
            if not _ASKED:
                module.TIME_OUT_REMOTE_CODE = last


def _line(error: BaseException) -> str:
    """Its message on one line that is not endless."""
    text = " ".join(str(error).split())
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} ..."
