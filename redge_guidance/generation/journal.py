"""Finished records on the disk, line by line, so that whatever interrupts a run leaves whole lines."""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from redge_guidance.generation.record import OWN_FIELDS, Key

try:
    import fcntl
except ImportError:  # on Windows
    fcntl = None  # type: ignore[assignment]


class Entry(NamedTuple):
    """A line of a journal: whose it is, what it was made from, and where it stands."""

    key: Key
    stamp: str
    path: Path
    start: int
    size: int


class Journal:
    """A file of JSON lines that only whole lines are added to.

    A half line at its end, as a kill or a full disk leaves it, is cut off when it is opened.

    Args:
        path: of a file that may not be there yet.

    Raises:
        OSError: it cannot be written.
    """

    def __init__(self, path: Path):
        self.path = path
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise OSError(f"`output` {path} cannot be written: {error.strerror or error}.") from error
        self._lock()
        self._size = _whole(path)
        os.ftruncate(self._file, self._size)

    def append(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Add lines, all of them or, where they cannot be written, none.

        Raises:
            OSError: they cannot be written; what was there before is there still.
        """
        content = b"".join(line_of(record) for record in records)
        done = 0
        self._check_there()
        try:
            while done < len(content):
                done += os.pwrite(self._file, content[done:], self._size + done)
            os.fsync(self._file)
        except BaseException as error:
            os.ftruncate(self._file, self._size)
            if not isinstance(error, OSError):
                raise
            raise OSError(f"`output` {self.path} cannot be written: {error.strerror or error}.") from error
        self._size += len(content)

    def close(self) -> None:
        os.close(self._file)

    def _lock(self) -> None:
        """A ValueError while a process of an earlier run, whose others ended, still writes here."""
        if fcntl is None:
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(self._file)
            raise ValueError(
                f"`output` {self.path} is being written by a process of another run; wait, or end it."
            ) from error
        except OSError:  # a file system without locks
            pass

    def _check_there(self) -> None:
        """An OSError if others removed or replaced the file, or wrote to it."""
        try:
            found, own = os.stat(self.path), os.fstat(self._file)
            same = os.path.samestat(found, own) and found.st_size == self._size
        except FileNotFoundError:
            same = False
        if not same:
            raise OSError(
                f"`output` {self.path} was removed, replaced or written to by something else while the run went on; "
                "start again."
            )


def line_of(record: Mapping[str, Any]) -> bytes:
    """One line of JSON, in UTF-8; NaN and infinities, which JSON lacks, are null."""
    return (_dumps(record, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")


def stamp_of(record: Mapping[str, Any]) -> str:
    """A digest of what a record was made from: its prompt, its seed, and the input's own fields."""
    own = {"index", "sample", "prompt", "seed"}
    made_from = {key: value for key, value in record.items() if key in own or key not in OWN_FIELDS}
    told = json.dumps(json.loads(_dumps(made_from)), sort_keys=True)  # as it is read again: keys are texts
    return hashlib.blake2b(told.encode("utf-8", "backslashreplace"), digest_size=12).hexdigest()


def entries(path: Path) -> Iterator[Entry]:
    """The whole lines of a journal, in their order; none where there is no file.

    Raises:
        ValueError: a line that is no record.
    """
    if not path.exists():
        return
    start = 0
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                return
            try:
                record = json.loads(line)
                key = (int(record["index"]), int(record["sample"]))
            except (ValueError, TypeError, KeyError) as error:
                raise ValueError(
                    f"`output` {path} has something else than a record of a run in line {number}; take another name, "
                    "or `overwrite`."
                ) from error
            yield Entry(key, stamp_of(record), path, start, len(line))
            start += len(line)


def lines_in_order(found: Iterable[Entry]) -> Iterator[bytes]:
    """The lines of entries in the order of their keys, each key once."""
    last: Key | None = None
    with ExitStack() as stack:
        files: dict[Path, Any] = {}
        for entry in sorted(found, key=lambda entry: entry.key):
            if entry.key == last:
                continue
            last = entry.key
            if entry.path not in files:
                files[entry.path] = stack.enter_context(open(entry.path, "rb"))
            files[entry.path].seek(entry.start)
            yield files[entry.path].read(entry.size)


def _whole(path: Path) -> int:
    """Bytes up to the end of the last whole line."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        while size > 0:
            first = max(0, size - 65536)
            file.seek(first)
            end = file.read(size - first).rfind(b"\n")
            if end >= 0:
                return first + end + 1
            size = first
    return 0


def _dumps(value: Any, **how: Any) -> str:
    try:
        return json.dumps(value, default=_as_text, allow_nan=False, **how)
    except ValueError:  # NaN somewhere
        told = json.dumps(value, default=_as_text)
        return json.dumps(json.loads(told, parse_constant=lambda name: None), **how)


def _as_text(value: Any) -> Any:
    """Of what JSON lacks, such as dates and numbers of NumPy in a table."""
    return value.item() if hasattr(value, "item") else value.tolist() if hasattr(value, "tolist") else str(value)
