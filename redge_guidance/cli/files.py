"""What the command writes: all of it or nothing, and nothing that was there becomes something else."""

import contextlib
import os
import shutil
import signal
import stat
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path


class Target:
    """A file that is asked for by an option: replaced as a whole, or, where it is no regular file, written through.

    A link stays a link, and what it leads to is replaced. A file that is replaced keeps its permissions. Devices, pipes
    and sockets, and whatever standard output or standard error are, are written to as they are.

    Args:
        option: names it in errors, such as `--json`.
        name: as it was given.

    Raises:
        ValueError: it cannot be written.

    Attributes:
        place: `Path` of the file that is replaced; None: it is written through.
    """

    def __init__(self, option: str, name: str):
        self.option, self.name = option, name
        self.place: Path | None = None
        try:
            self.place = _place(option, name)
            if self.place is not None:
                _try_folder(self.place.parent)
        except OSError as error:
            raise ValueError(
                f"`{option}` must name a file that can be written, got {name}: {reason(error)}."
            ) from error

    def is_same(self, other: "Target") -> bool:
        """Whether both are one file, of which one content would be lost."""
        if self.place is None or other.place is None:
            return False
        if self.place.exists() and other.place.exists():
            return self.place.samefile(other.place)
        return self.place == other.place

    def open_through(self) -> int:
        """A descriptor of what is written through."""
        for stream in _streams():
            if os.path.samestat(os.stat(self.name), os.fstat(stream)):
                return os.dup(stream)  # which knows how far it was written
        return os.open(self.name, os.O_WRONLY)


def check_targets(targets: Sequence[Target]) -> None:
    """A ValueError if two of them are one file."""
    for i, one in enumerate(targets):
        for other in targets[:i]:
            if one.is_same(other):
                raise ValueError(
                    f"`{other.option}` and `{one.option}` must name different files, got {other.name} and {one.name}."
                )


def write_all(contents: Sequence[tuple[Target, bytes]]) -> None:
    """Write all targets, or none: nothing is replaced before everything is on the disk.

    Raises:
        OSError: naming the option; what was there before is there still.
    """
    parts: list[tuple[Path, Path]] = []  # a whole file, and whose place it takes
    try:
        for target, content in contents:
            with _naming(target):
                if target.place is not None:
                    _write_part(target.place, content, parts)
        for target, content in contents:
            with _naming(target):
                if target.place is None:
                    _write_through(target, content)
        with undisturbed():
            _replace(parts)
    finally:
        for part, _ in parts:
            part.unlink(missing_ok=True)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Ctrl-C and SIGTERM wait until the block is done."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def reason(error: OSError) -> str:
    """Why, in words, without the name of a file that nobody asked for."""
    return error.strerror or str(error)


def _place(option: str, name: str) -> Path | None:
    """The regular file to be replaced, which may not be there yet; None where the name leads to something else."""
    if os.path.basename(name) in ("", os.curdir, os.pardir) or "\0" in name:
        raise ValueError(f"`{option}` must name a file, got {name!r}.")
    try:
        found = os.stat(name)
    except FileNotFoundError:
        place = Path(os.path.realpath(name))
        if not place.parent.is_dir():
            raise ValueError(
                f"`{option}` must name a file in an existing folder, got {name}; create {place.parent}."
            ) from None
        return place
    for is_kind, kind in ((stat.S_ISDIR, "folder"), (stat.S_ISBLK, "disk"), (stat.S_ISSOCK, "socket")):
        if is_kind(found.st_mode):
            raise ValueError(f"`{option}` must name a file, got the {kind} {name}.")
    if not os.access(name, os.W_OK):
        raise PermissionError(0, "it is write-protected")
    if stat.S_ISCHR(found.st_mode):
        os.close(os.open(name, os.O_WRONLY | os.O_NOCTTY))
    opened = os.path.realpath(os.path.dirname(os.path.abspath(name))).startswith("/proc/")  # /dev/fd and its like
    if opened or not stat.S_ISREG(found.st_mode) or any(os.path.samestat(found, os.fstat(s)) for s in _streams()):
        return None
    return Path(os.path.realpath(name))


def _streams() -> list[int]:
    """Descriptors of standard output and standard error, where there are any."""
    found = []
    for number in (1, 2):
        with contextlib.suppress(OSError):
            os.fstat(number)
            found.append(number)
    return found


def _try_folder(folder: Path) -> None:
    """An OSError if no file can be made there."""
    with undisturbed(), tempfile.NamedTemporaryFile(dir=folder, prefix=".redge-"):
        pass


def _write_part(place: Path, content: bytes, parts: list[tuple[Path, Path]]) -> None:
    with undisturbed():
        descriptor, name = tempfile.mkstemp(dir=place.parent, prefix=".redge-", suffix=place.suffix[:16])
        parts.append((Path(name), place))
    with open(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    try:
        before = os.stat(place)
    except FileNotFoundError:
        os.chmod(name, 0o666 & ~_umask())
        return
    if hasattr(os, "chown"):
        with contextlib.suppress(PermissionError):
            os.chown(name, before.st_uid, before.st_gid)
    os.chmod(name, stat.S_IMODE(before.st_mode))


def _write_through(target: Target, content: bytes) -> None:
    if sys.stdout is not None:
        sys.stdout.flush()
    with open(target.open_through(), "wb", buffering=0) as file:
        rest = memoryview(content)
        while rest:
            rest = rest[file.write(rest) or 0 :]


def _replace(parts: Sequence[tuple[Path, Path]]) -> None:
    """Put all parts in place; if one fails, those before it are undone."""
    kept: dict[Path, Path] = {}
    done: list[Path] = []
    try:
        for part, place in parts:
            if place.exists() and len(parts) > 1:
                kept[place] = part.with_name(f"{part.name}.old")
                shutil.copy2(place, kept[place])
        for part, place in parts:
            os.replace(part, place)
            done.append(place)
    except BaseException:
        for place in done:
            if place in kept:
                os.replace(kept[place], place)
            else:
                place.unlink()
        raise
    finally:
        for copy in kept.values():
            copy.unlink(missing_ok=True)


@contextmanager
def _naming(target: Target) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OSError(f"`{target.option}` {target.name} could not be written: {reason(error)}.") from error


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
