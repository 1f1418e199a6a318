"""Automata over tokens that were built before, on the disk.

They are kept in the folder `automata` of `$REDGE_GUIDANCE_CACHE`, by default of `$HF_HOME/redge-guidance`, which is
`~/.cache/huggingface/redge-guidance`, one file each, 256 MiB at most in all. `REDGE_GUIDANCE_CACHE=` (set to nothing)
switches the cache off; the folder may be deleted at any time. A file is found by a hash of what its automaton is made
of and of `FORMAT`, so that a version that builds other automata does not find those of this one.
"""

import contextlib
import hashlib
import os
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from huggingface_hub.constants import HF_HOME

from redge_guidance.constraints.machine import Machine
from redge_guidance.constraints.refinement import DEAD
from redge_guidance.constraints.token_automaton import TokenAutomaton
from redge_guidance.constraints.tokens import Written
from redge_guidance.logging import get_logger

# Of the files, and of what is built: another number, and all is built anew. Whoever changes what `compile_tokens` gives
# for the same arguments raises it; tests/constraints/test_cache.py says when.
FORMAT = 2
MOST_BYTES = 256 * 2**20
_log = get_logger(__name__)
_told: set[str] = set()

Made = tuple[Machine, Written, Written, int, Sequence[int]]


def cache_folder() -> Path | None:
    """The folder `automata` of `$REDGE_GUIDANCE_CACHE`, by default of `redge-guidance` in the cache of Hugging Face.

    None where the variable is set to nothing, which switches the cache off.
    """
    chosen = os.environ.get("REDGE_GUIDANCE_CACHE")
    if chosen == "":
        return None
    return Path(chosen or os.path.join(HF_HOME, "redge-guidance")).expanduser() / "automata"


def cached(made_of: Made, make: Callable[[], TokenAutomaton]) -> TokenAutomaton:
    """What `make()` gives, or gave before for the same machine, first and further bytes, vocabulary and ends.

    A file that is not as it was written is made anew; where none can be written, the log says so once. The files that
    were used least lately are deleted when all have more than `MOST_BYTES`.
    """
    folder = cache_folder()
    if folder is None:
        return make()
    file = folder / f"{key_of(made_of)}.npz"
    found = read(file)
    if found is None:
        found = make()
        write(file, found)
    return found


def key_of(made_of: Made) -> str:
    """A name for what an automaton is made of, and for how: `FORMAT`."""
    machine, first, within, vocabulary, ends = made_of
    digest = hashlib.sha256(repr((FORMAT, vocabulary, sorted(ends))).encode())
    arrays = (machine.alphabet.starts, machine.alphabet.labels, machine.table, machine.accepting, machine.values)
    for array in arrays:
        digest.update(repr((array.shape, array.dtype.str)).encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    for written in (first, within):
        lengths = [-1 if part is None else len(part) for part in written]
        digest.update(np.array([len(lengths), *lengths], dtype=np.int64).tobytes())
        digest.update(b"".join(part or b"" for part in written))
    return digest.hexdigest()


def read(file: Path) -> TokenAutomaton | None:
    """What `write` wrote; None where there is no such file, or another."""
    try:
        with open(file, "rb") as opened, np.load(opened, allow_pickle=False) as found:
            states, classes = found["shape"].tolist()
            table = np.full(states * classes, DEAD, dtype=np.int32)
            table[found["places"]] = found["after"]
            automaton = TokenAutomaton(
                table.reshape(states, classes), found["class_of"], found["accepting"], found["values"]
            )
        with contextlib.suppress(OSError):
            os.utime(file)  # used now
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, IndexError, EOFError, zipfile.BadZipFile) as error:
        _log.warning("%s cannot be read (%s): the automaton is built anew", file, error)
        return None
    return automaton


def write(file: Path, automaton: TokenAutomaton) -> None:
    """Whole or not at all, whoever else writes the same file; not at all where it cannot be written."""
    flat = automaton.table.reshape(-1)
    places = np.flatnonzero(flat != DEAD)  # most entries are `DEAD`
    part = None
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=file.parent, suffix=".part", delete=False) as part:
            np.savez(
                part,
                shape=np.array(automaton.table.shape),
                places=places if len(flat) >= 2**31 else places.astype(np.int32),
                after=flat[places],
                class_of=automaton.class_of,
                accepting=automaton.accepting,
                values=automaton.values,
            )
        os.replace(part.name, file)
        _bound(file.parent)
    except OSError as error:
        if part is not None:
            with contextlib.suppress(OSError):
                os.unlink(part.name)
        if str(file.parent) not in _told:
            _told.add(str(file.parent))
            _log.warning("%s cannot be written (%s): automata are built anew in every process", file.parent, error)


def _bound(folder: Path) -> None:
    """Delete what was used least lately, so that what stays has no more than `MOST_BYTES`."""
    ages = []
    for file in [*folder.glob("*.npz"), *folder.glob("*.part")]:
        with contextlib.suppress(OSError):  # deleted by another process
            stat = file.stat()
            ages.append((stat.st_mtime, stat.st_size, file))
    total = 0
    for _, size, file in sorted(ages, reverse=True):
        total += size
        if total > MOST_BYTES:
            with contextlib.suppress(OSError):
                file.unlink()
