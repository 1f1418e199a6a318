"""Names of checkpoints: folders, hub ids, and `builtin:NAME` for an embedded one."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from os import PathLike, fspath
from pathlib import Path

_PREFIX = "builtin:"
_ROOT = Path(str(files("redge_guidance.checkpoints")))


def builtin_names() -> list[str]:
    """Names of the checkpoints shipped with the package, such as `builtin:tatoeba-masked`."""
    return sorted(_PREFIX + folder.name for folder in _ROOT.iterdir() if (folder / "README.md").is_file())


def resolve(name: str | PathLike[str]) -> str:
    """What a `from_pretrained` of transformers or diffusers takes: a folder on this machine, or a hub id as it came.

    Raises:
        ValueError: an unknown `builtin:` name.
        FileNotFoundError: neither a folder nor spelled like a hub id; a hub is never asked for it.

    >>> resolve("org/model")
    'org/model'
    """
    name = fspath(name)
    if name.startswith(_PREFIX):
        if name not in builtin_names():
            raise ValueError(f"`{name}` is not an embedded checkpoint; choose one of {', '.join(builtin_names())}.")
        return str(_ROOT / name.removeprefix(_PREFIX))
    path = Path(name).expanduser()
    if path.is_dir():
        return str(path)
    is_hub_id = name.count("/") == 1 and not name.startswith((".", "/", "~")) and not path.parent.is_dir()
    if not is_hub_id:
        raise FileNotFoundError(
            f"`{name}` is not a folder; expected a checkpoint folder, a hub id `organisation/model`, "
            f"or one of {', '.join(builtin_names())}."
        )
    return name


@contextmanager
def loading(name: str | PathLike[str]) -> Iterator[None]:
    """Turn an OSError of a hub library, which may not name what was asked for, into one that does."""
    try:
        yield
    except OSError as error:
        raise OSError(f"`{name}` could not be loaded: {error}") from error
