"""Records as tables: CSV, text, Parquet, a dataset folder."""

import csv
import importlib.util
import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Lines = Callable[[], Iterator[bytes]]  # of JSON, to be read more than once


@dataclass(frozen=True)
class Format:
    """One kind of table: what writes it to a path that is not there, and the package that it needs."""

    write: Callable[[Path, Lines], None]
    package: str | None = None

    def check(self) -> None:
        """A ValueError if the package is missing."""
        if self.package is not None and importlib.util.find_spec(self.package) is None:
            raise ValueError(f"`output` needs the package {self.package}: pip install 'redge-guidance[datasets]'.")


def is_dataset(path: Path) -> bool:
    """Whether this is a folder that `datasets` saved."""
    return (path / "dataset_info.json").is_file() and (path / "state.json").is_file()


def write_table(path: Path, lines: Lines, prefix: str) -> None:
    """Write all records in the format of the path's suffix, in place of what is there.

    Args:
        path: of the table.
        lines: the records.
        prefix: begins the name of the folder beside it where it is made.

    Raises:
        OSError: it cannot be written; what was there before is there still.
        ValueError: the format does not hold such records.
    """
    folder: Path | None = None
    try:
        folder = Path(tempfile.mkdtemp(dir=path.absolute().parent, prefix=prefix))
        part = folder / f"whole{path.suffix}"
        FORMATS[path.suffix.lower()].write(part, lines)
        if path.is_dir():
            shutil.rmtree(path)
        os.replace(part, path)
    except OSError as error:
        raise OSError(f"`output` {path} cannot be written: {error.strerror or error}.") from error
    except Exception as error:  # of `datasets` and what it stands on, which have many kinds
        told = " ".join(str(error.__cause__ or error).split())
        raise ValueError(
            f"`output` {path} cannot hold these records, as where a field is a number here and a list there: "
            f"{told:.300}. They are kept as lines of JSON in {path}.part-0 and the like."
        ) from error
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def _write_csv(path: Path, lines: Lines) -> None:
    """Rewards as columns of their own, `rewards.NAME`; what is no plain value as JSON."""
    columns: dict[str, None] = {}
    for line in lines():
        columns |= dict.fromkeys(_flat(json.loads(line)))
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(columns))
        writer.writeheader()
        writer.writerows(_flat(json.loads(line)) for line in lines())


def _flat(record: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in record.items():
        if name == "rewards":
            found |= {f"rewards.{term}": number for term, number in value.items()}
        else:
            found[name] = json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else value
    return found


def _write_text(path: Path, lines: Lines) -> None:
    broken = 0
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        for line in lines():
            text: str = json.loads(line)["text"]
            broken += len(text.splitlines()) > 1
            file.write(" ".join(text.splitlines()) + "\n")
    if broken:
        warnings.warn(
            f"`output` {path.suffix} has one text a line, and {broken} texts had several lines, which are joined by "
            "blanks; take .jsonl to keep them.",
            stacklevel=2,
        )


def _write_parquet(path: Path, lines: Lines) -> None:
    with _as_dataset(path, lines) as found:
        found.to_parquet(str(path))


def _write_dataset(path: Path, lines: Lines) -> None:
    with _as_dataset(path, lines) as found:
        found.save_to_disk(str(path))


@contextmanager
def _as_dataset(path: Path, lines: Lines) -> Iterator[Any]:
    import datasets

    source, cache = path.with_name("lines.jsonl"), path.with_name("cache")
    with open(source, "wb") as file:
        _write_lines(file, lines())
    showed = datasets.utils.logging.is_progress_bar_enabled()
    datasets.utils.logging.disable_progress_bar()
    try:
        empty = source.stat().st_size == 0
        yield datasets.Dataset.from_dict({}) if empty else datasets.Dataset.from_json(str(source), cache_dir=str(cache))
    finally:
        if showed:
            datasets.utils.logging.enable_progress_bar()


def _write_lines(file: Any, lines: Iterable[bytes]) -> None:
    for line in lines:
        file.write(line)


FORMATS = {
    ".csv": Format(_write_csv),
    ".txt": Format(_write_text),
    ".parquet": Format(_write_parquet, "datasets"),
    "": Format(_write_dataset, "datasets"),
}
