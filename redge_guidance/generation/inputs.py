"""Files of prompts: text, JSON lines, CSV, Parquet, a dataset folder, standard input."""

import csv
import importlib.util
import io
import itertools
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from redge_guidance.generation.requests import Line, from_mapping

_READERS = (".txt", ".jsonl", ".csv", ".parquet")
_OTHERS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16", b"\x1f\x8b": "gzip", b"PK\x03\x04": "a zip archive"}
_OTHERS |= {b"PAR1": "Parquet, whose name ends in .parquet"}
_TABLES = "pip install 'redge-guidance[datasets]'"


class Input:
    """The entries of a file, read as they are asked for. A bad one says what is wrong with it, and where it is.

    Args:
        name: a `.txt` file, one prompt a line; a `.jsonl` file of objects or strings; a `.csv` file with a header; a
            `.parquet` file; the folder of a dataset of `datasets`; `"-"`: standard input, JSON lines if the first
            begins with a brace, else prompts.
        prompt_field: which field is the prompt.
        limit: read no more entries than that; None: all.

    Raises:
        ValueError: another kind of file, a column that is not there, no entry, or a package that is missing.
        OSError: it cannot be read. While reading: it was changed since.

    Attributes:
        name: as given.
    """

    def __init__(self, name: str | os.PathLike[str], prompt_field: str = "prompt", limit: int | None = None):
        self.name, self._field, self._limit = os.fspath(name), prompt_field, limit
        self._read = self._reader()
        self._state = self._look()

    def __iter__(self) -> Iterator[Line]:
        line: Line | None = None
        for line in itertools.islice(self._read(), self._limit):
            self.check()
            yield line
        self.check()
        if line is None:
            raise ValueError(f"`input` {self.name} must have a prompt, got none.")

    def count(self) -> int | None:
        """How many entries there are; None of standard input."""
        return None if self.name == "-" else sum(1 for _ in self)

    def check(self) -> None:
        """An OSError if the file is not what it was when it was opened."""
        if self._look() != self._state:
            raise OSError(
                f"`input` {self.name} was changed while it was read; what is done is kept: put it back as it was and "
                "start again, or take another output."
            )

    def _look(self) -> Any:
        if self.name == "-":
            return None
        try:
            found = os.stat(self.name)
        except OSError as error:
            raise OSError(f"`input` {self.name} cannot be read: {error.strerror or error}.") from error
        return found.st_ino, found.st_size, found.st_mtime_ns

    def _reader(self) -> Callable[[], Iterator[Line]]:
        if self.name == "-":
            return self._from_standard_input
        path = Path(self.name)
        if path.is_dir():
            _check_package("datasets", self.name)
            return self._from_dataset
        try:
            with open(path, "rb") as file:
                start = file.read(4)
        except OSError as error:
            raise OSError(f"`input` {self.name} cannot be read: {error.strerror or error}.") from error
        kind = path.suffix.lower()
        if kind not in _READERS:
            raise ValueError(
                f"`input` must be a file {', '.join(_READERS)}, the folder of a dataset, or -, got {self.name}."
            )
        if kind == ".parquet":
            _check_package("pyarrow", self.name)
            return self._from_parquet
        other = next((told for begin, told in _OTHERS.items() if start.startswith(begin)), None)
        if other is not None:
            raise ValueError(f"`input` {self.name} must be text in UTF-8, got {other}; convert it.")
        return {".txt": self._from_text, ".jsonl": self._from_json, ".csv": self._from_csv}[kind]

    def _from_text(self) -> Iterator[Line]:
        with open(self.name, "rb") as file:
            yield from self._texts(file)

    def _texts(self, file: Any) -> Iterator[Line]:
        number = 0
        for place, raw in enumerate(file, 1):
            text, trouble = _decoded(raw, first=place == 1)
            if trouble is not None or text.strip():
                yield Line(number, text, error=trouble, place=f"line {place}")
                number += 1

    def _from_json(self) -> Iterator[Line]:
        with open(self.name, "rb") as file:
            yield from self._objects(file)

    def _objects(self, file: Any) -> Iterator[Line]:
        number, ids = 0, dict[Any, int]()
        for place, raw in enumerate(file, 1):
            text, trouble = _decoded(raw, first=place == 1)
            if trouble is None and not text.strip():
                continue
            entry: Any = None
            if trouble is None:
                try:
                    entry = json.loads(text)
                except (ValueError, RecursionError) as error:
                    trouble = f"is no JSON: {error}"
            where = f"line {place}"
            if trouble is not None:
                yield Line(number, error=trouble, place=where)
            else:
                yield self._line(number, entry, where, place, ids)
            number += 1

    def _line(self, number: int, entry: Any, where: str, place: int, ids: dict[Any, int]) -> Line:
        """An entry that was read; `ids` are those of before, with their places."""
        if isinstance(entry, str):
            entry = {self._field: entry}
        if not isinstance(entry, Mapping):
            return Line(number, error=f"is {type(entry).__name__}, expected an object or a text", place=where)
        told = entry.get("id")
        if isinstance(told, str | int | float) and not isinstance(told, bool) and ids.setdefault(told, place) != place:
            return Line(number, error=f"has the id {told!r} of line {ids[told]} again", place=where)
        return from_mapping(number, entry, self._field, where, empty=False)

    def _from_csv(self) -> Iterator[Line]:
        with open(self.name, "rb") as file:
            text = io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="")
            rows = csv.DictReader(text, strict=True)
            self._check_header(rows)
            if self._field not in (rows.fieldnames or []):
                have = ", ".join(rows.fieldnames or []) or "none"
                raise ValueError(f"`input` {self.name} must have a column {self._field!r}, got {have}.")
            yield from self._rows(rows)

    def _check_header(self, rows: Any) -> None:
        try:
            names = rows.fieldnames or []
        except csv.Error as error:
            raise ValueError(f"`input` {self.name} has a first line that is no header of CSV: {error}.") from error
        twice = next((name for i, name in enumerate(names) if name in names[:i]), None)
        if twice is not None:
            raise ValueError(f"`input` {self.name} must have columns of different names, got {twice!r} twice.")

    def _rows(self, rows: Any) -> Iterator[Line]:
        number, ids = 0, dict[Any, int]()
        while True:
            try:
                row = next(rows, None)
            except csv.Error as error:
                yield Line(number, error=f"is no CSV: {error}", place=f"line {rows.line_num}")
                number += 1
                continue
            if row is None:
                return
            place = f"line {rows.line_num}"
            given = [value for value in row.values() if isinstance(value, str)]
            if None in row or None in row.values():
                line = Line(number, error=f"has not {len(rows.fieldnames)} columns, as the header has", place=place)
            elif any("\udc80" <= sign <= "\udcff" for value in given for sign in value):
                line = Line(number, error="is not UTF-8", place=place)
            else:
                line = self._line(number, row, place, rows.line_num, ids)
            yield line
            number += 1

    def _from_parquet(self) -> Iterator[Line]:
        from pyarrow import ArrowInvalid, parquet

        try:
            file = parquet.ParquetFile(self.name)
        except ArrowInvalid as error:
            raise ValueError(f"`input` {self.name} is no Parquet file: {error}.") from error
        with file:
            self._check_columns(file.schema_arrow.names)
            yield from self._table(row for batch in file.iter_batches(1024) for row in batch.to_pylist())

    def _from_dataset(self) -> Iterator[Line]:
        import datasets

        try:
            found = datasets.load_from_disk(self.name)
        except (FileNotFoundError, ValueError) as error:
            raise ValueError(f"`input` {self.name} is no folder of a dataset, as `save_to_disk` makes it.") from error
        if isinstance(found, datasets.DatasetDict):
            raise ValueError(
                f"`input` {self.name} has splits; name one: {', '.join(f'{self.name}/{k}' for k in found)}."
            )
        self._check_columns(found.column_names)
        yield from self._table(iter(found))

    def _table(self, rows: Iterator[Any]) -> Iterator[Line]:
        ids: dict[Any, int] = {}
        for number, row in enumerate(rows):
            yield self._line(number, row, f"row {number}", number, ids)

    def _check_columns(self, names: Any) -> None:
        if self._field not in names:
            raise ValueError(f"`input` {self.name} must have a column {self._field!r}, got {', '.join(names)}.")

    def _from_standard_input(self) -> Iterator[Line]:
        stream = sys.stdin.buffer
        first = stream.readline()
        rest = itertools.chain([first] if first else [], stream)
        return self._objects(rest) if first.lstrip()[:1] == b"{" else self._texts(rest)


def _decoded(raw: bytes, first: bool) -> tuple[str, str | None]:
    """A line without its end, and what is wrong with it."""
    try:
        text = raw.decode("utf-8-sig" if first else "utf-8")
    except UnicodeDecodeError as error:
        return "", f"is not UTF-8: {error.reason} at byte {error.start}"
    if "\0" in text:
        return "", "holds a NUL character, as text that is not UTF-8 may"
    return text.rstrip("\r\n"), None


def _check_package(package: str, name: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise ValueError(f"`{name}` needs the package {package}: {_TABLES}.")
