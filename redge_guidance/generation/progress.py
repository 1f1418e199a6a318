"""One progress bar for all processes of a run."""

import contextlib
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from tqdm.auto import tqdm


class Progress:
    """A bar that the first process shows; what the others have done it reads off the lines in their files.

    Args:
        total: samples of the run; None: not known.
        show: whether there is a bar; None: on a terminal.
    """

    def __init__(self, total: int | None, show: bool | None):
        self._bar = tqdm(total=total, disable=None if show is None else not show, unit="sample")
        self._read: dict[Path, int] = {}

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None and self._bar.total is not None:
            self.update(self._bar.total)  # those of others that failed have no lines
        self._bar.close()

    @property
    def done(self) -> int:
        """Samples, of all processes."""
        return int(self._bar.n)

    def watch(self, files: Sequence[Path]) -> None:
        """Lines that are added to these files from now on count too."""
        self._read = {file: file.stat().st_size if file.exists() else 0 for file in files}

    def update(self, count: int) -> None:
        """So many more are done here."""
        if self._bar.disable:
            return
        count += sum(self._new_lines(file) for file in self._read)
        left = count if self._bar.total is None else self._bar.total - self._bar.n
        self._bar.update(min(count, left))

    def _new_lines(self, path: Path) -> int:
        with contextlib.suppress(OSError), open(path, "rb") as file:
            file.seek(self._read[path])
            new = file.read()
            self._read[path] += len(new)
            return new.count(b"\n")
        return 0
