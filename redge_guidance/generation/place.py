"""Where a run writes: its output, the parts of it while it is not finished, its settings, its lock."""

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from redge_guidance.generation.differences import differences
from redge_guidance.generation.finished import Finished
from redge_guidance.generation.formats import FORMATS, is_dataset, write_table
from redge_guidance.generation.journal import Entry, entries, lines_in_order
from redge_guidance.generation.record import Key

_LINES, _IMAGES = ".jsonl", "images"
_IMAGE = re.compile(r"\d{6,}-\d+\.png")
_PART = ".redge-"  # begins the name of a file that is not whole


class Place:
    """The files of one run.

    `out.jsonl` is added to while the run goes on, in the order in which batches are ready; of several processes every
    further one writes `out.jsonl.part-1`, ... When all is done the lines are put in the order of the input. Other
    formats are made of such parts in the end; a folder of images has its lines in `metadata.jsonl`, as `datasets` reads
    it. `out.jsonl.run.json` holds settings and versions. Of a link that is what it leads to, which is written.

    Args:
        name: the output: `.jsonl`, `.csv`, `.txt` or `.parquet`, or a folder, of a dataset of texts or of images.
        images: whether images are made.

    Raises:
        ValueError: another kind of file, a folder that is not there, or a package that is missing.
    """

    def __init__(self, name: str | os.PathLike[str], images: bool):
        self.path = Path(os.path.realpath(name)) if os.path.islink(name) else Path(name)
        if not self.path.name or "\0" in str(name):
            raise ValueError(f"`output` must name a file or a folder, got {str(name)!r}.")
        suffix = self.path.suffix.lower()
        self.kind = _IMAGES if images else suffix
        if images and (suffix in (*filter(None, FORMATS), _LINES) or self.path.is_file()):
            raise ValueError(f"`output` must be a folder for images, got {name}.")
        if not images and suffix not in (_LINES, *FORMATS):
            raise ValueError(
                f"`output` must be a file {', '.join((_LINES, *(s for s in FORMATS if s)))}, or a folder, got {name}."
            )
        if self.kind not in (_LINES, _IMAGES):
            FORMATS[self.kind].check()
        parent = self.path.absolute().parent
        if not parent.is_dir():
            raise ValueError(f"`output` must be in an existing folder, got {name}; create {parent}.")
        if self.path.is_dir() != (self.kind in ("", _IMAGES)) and self.path.exists():
            raise ValueError(
                f"`output` {name} is a {'folder' if self.path.is_dir() else 'file'} already; take another."
            )
        self._lock = FileLock(self._beside(".lock"), timeout=0)

    def journal(self, rank: int) -> Path:
        """The file that a process adds its lines to."""
        if rank == 0 and self.kind in (_LINES, _IMAGES):
            return self.path / "metadata.jsonl" if self.kind == _IMAGES else self.path
        return self._beside(f".part-{rank}")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """A ValueError if another run writes here."""
        try:
            self._lock.acquire()
        except Timeout as error:
            raise ValueError(f"`output` {self.path} is being written by another run; wait, or take another.") from error
        except OSError as error:
            raise OSError(f"`output` {self.path} cannot be written: {error.strerror or error}.") from error
        try:
            yield
        finally:
            self._beside(".lock").unlink(missing_ok=True)
            self._lock.release()

    def begin(
        self, settings: Mapping[str, Any], versions: Mapping[str, str], overwrite: bool
    ) -> dict[Key, str] | Finished:
        """Say once what is going to be made here; what is there already, by key.

        Raises:
            ValueError: something else is there, or the records of other settings.
            OSError: it cannot be written.
        """
        before = None if overwrite else self._settings_before()
        if overwrite:
            self._remove_all()
        elif before is None and (self.path.is_file() or self._has_records()):
            raise ValueError(f"`output` {self.path} is there and not from such a run; take another, or `overwrite`.")
        told = json.loads(json.dumps(settings, default=str))
        if before is not None and before["settings"] != told:
            was = ", ".join(differences(before["settings"], told))
            raise ValueError(
                f"`output` {self.path} was begun with other settings ({was}); take another, or `overwrite`."
            )
        if before is None:
            self._write(self._run_file, json.dumps({"settings": told, "versions": dict(versions)}, indent=2) + "\n")
            before = {}
        if self.kind == _IMAGES:
            self.path.mkdir(exist_ok=True)
        self._remove_unfinished()
        if "finished" in before and self.kind not in (_LINES, _IMAGES):
            if not self.path.exists():
                raise ValueError(
                    f"`output` {self.path} was finished, and is not there any more; put it back, or `overwrite`."
                )
            for part in self._parts():  # which a kill left behind the whole table
                part.unlink()
            return Finished(**before["finished"])
        return {entry.key: entry.stamp for entry in self._entries() if self._has_image(entry)}

    def forget(self) -> None:
        """Remove what `begin` and journals have made, where there is no record: the next run may be another."""
        if any(True for _ in self._entries()):
            return
        for file in (self._run_file, self.journal(0), *self._parts()):
            file.unlink(missing_ok=True)
        if self.kind == _IMAGES and not any(self.path.iterdir()):
            self.path.rmdir()

    def save_image(self, image: Any, name: str) -> None:
        """Whole or not at all."""
        with self._replacing(self.path / name) as part:
            image.save(part, "png")

    def finish(self, asked: str, failed: int) -> None:
        """Put all lines in the order of the input, into the format that was asked for, and remove the parts.

        Args:
            asked, failed: see `Finished`.
        """
        found = list(self._entries())
        main, parts = self.journal(0), self._parts()
        if self.kind not in (_LINES, _IMAGES):
            write_table(self.path, lambda: lines_in_order(found), self._prefix)
            run = json.loads(self._run_file.read_text(encoding="utf-8"))
            finished = {"made": len({entry.key for entry in found}), "failed": failed, "asked": asked}
            self._write(self._run_file, json.dumps(run | {"finished": finished}, indent=2) + "\n")
        elif [entry.key for entry in found] != sorted({entry.key for entry in found}) or parts:
            with self._replacing(main) as part, open(part, "wb") as file:
                file.writelines(lines_in_order(found))
        for part in parts:
            part.unlink()

    def is_made_of(self, name: str) -> bool:
        """Whether a file is one of those that are written or removed here."""
        known = [self.path, self.journal(0), self._run_file, *self._parts()]
        return name != "-" and any(path.exists() and path.samefile(name) for path in known)

    @property
    def _run_file(self) -> Path:
        return self._beside(".run.json")

    def _beside(self, ending: str) -> Path:
        return self.path.with_name(self.path.name + ending)

    def _parts(self) -> list[Path]:
        return sorted(p for p in self.path.absolute().parent.iterdir() if p.name.startswith(f"{self.path.name}.part-"))

    def _entries(self) -> Iterable[Entry]:
        files = [self.journal(0), *(part for part in self._parts() if part.absolute() != self.journal(0).absolute())]
        for file in files:
            yield from entries(file)

    def _has_records(self) -> bool:
        return self.journal(0).exists() or bool(self._parts()) or (self.path.is_dir() and any(self.path.iterdir()))

    def _has_image(self, entry: Entry) -> bool:
        return self.kind != _IMAGES or (self.path / image_name(entry.key)).is_file()

    def _settings_before(self) -> dict[str, Any] | None:
        if not self._run_file.exists():
            return None
        try:
            found: dict[str, Any] = json.loads(self._run_file.read_text(encoding="utf-8"))
            found["settings"].items()
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"`output` {self._run_file} holds no settings of a run; remove it, or `overwrite`."
            ) from error
        return found

    def _remove_all(self) -> None:
        known = self._run_file.exists() or (self.kind == "" and is_dataset(self.path))
        if self.path.is_dir() and any(self.path.iterdir()) and not known:
            raise ValueError(f"`output` {self.path} is a folder with other things in it; take another, or empty it.")
        images = [p for p in self.path.iterdir() if _IMAGE.fullmatch(p.name)] if self.path.is_dir() else []
        for file in (self._run_file, self.journal(0), *self._parts(), *images):
            file.unlink(missing_ok=True)
        if self.path.is_file():
            self.path.unlink()

    def _write(self, path: Path, text: str) -> None:
        with self._replacing(path) as part:
            part.write_text(text, encoding="utf-8")

    @property
    def _prefix(self) -> str:
        return f".{self.path.name[:100]}{_PART}"

    def _remove_unfinished(self) -> None:
        """What a kill left of files that were to take the place of others."""
        folders = [self.path.absolute().parent, *([self.path] if self.kind == _IMAGES else [])]
        for left in [path for folder in folders for path in folder.iterdir() if path.name.startswith(self._prefix)]:
            shutil.rmtree(left) if left.is_dir() else left.unlink()

    @contextmanager
    def _replacing(self, path: Path) -> Iterator[Path]:
        """A file to write, which takes the place of `path` when it is whole. An OSError names `path`."""
        part: Path | None = None
        try:
            descriptor, name = tempfile.mkstemp(dir=path.absolute().parent, prefix=self._prefix, suffix=path.suffix)
            part = Path(name)
            os.close(descriptor)
            yield part
            os.chmod(part, path.stat().st_mode & 0o777 if path.exists() else 0o666 & ~_umask())
            with open(part, "rb") as file:
                os.fsync(file.fileno())
            os.replace(part, path)
        except OSError as error:
            raise OSError(f"`output` {path} cannot be written: {error.strerror or error}.") from error
        finally:
            if part is not None:
                part.unlink(missing_ok=True)


def image_name(key: Key) -> str:
    """Of the image of a record, in its folder."""
    return f"{key[0]:06d}-{key[1]}.png"


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
