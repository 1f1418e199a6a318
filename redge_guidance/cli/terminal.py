"""Standard output and error, signals and exit codes of the command."""

import contextlib
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

PROGRAM = "redge-guidance"
FAULT, BAD_INPUT, SOME_FAILED = 1, 2, 3
_PATIENCE = 10.0  # seconds in which a launcher ends all processes after the first
INTERRUPTED, READER_GONE, TERMINATED = 128 + 2, 128 + 13, 128 + 15

# arguments that errors of the library name as remedies
_PROPOSED = ["overwrite", "prompt_field", "gen_length", "num_inference_steps", "batch_size", "use_chat_template"]
_PROPOSED += ["most_states", "json_schema"]


class ReaderGoneError(Exception):
    """Nobody reads standard output any more."""


class Terminated(BaseException):
    """SIGTERM came."""


def say(text: str) -> None:
    """Write lines to standard output, and see to it that they arrive; what its encoding lacks is written as `\\u....`.

    Raises:
        ReaderGoneError: the pipe is closed.
        OSError: it cannot be written.
    """
    if sys.stdout is None:  # closed by whoever started the command
        return
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    text = text.encode(encoding, "backslashreplace").decode(encoding)
    with _arriving():
        print(text)
        sys.stdout.flush()


def flush_output() -> None:
    """As `say`, of what others have written there."""
    if sys.stdout is not None:
        with _arriving():
            sys.stdout.flush()


def in_options(message: str) -> str:
    """What an error proposes, as it is spelled here."""
    message = message.replace(" (of `nll`: shorten `texts`)", "")
    for name in ("trust_remote_code", "answer_only"):
        message = message.replace(f"`{name}=True`", f"`--{name.replace('_', '-')}`")
    known = "|".join(_PROPOSED)
    return re.sub(rf"`({known})`", lambda found: f"`--{found[1].replace('_', '-')}`", message)


def complain(program: str, message: str) -> None:
    """One line on standard error, if that can be written."""
    with contextlib.suppress(OSError, AttributeError):
        print(f"{program}: {' '.join(message.split())}", file=sys.stderr, flush=True)


def rank() -> int:
    """Which of several processes of a run this is; 0: the first, or the only one."""
    return int(os.environ.get("RANK", "0")) if is_shared() else 0


def is_shared() -> bool:
    """Whether a launcher started several processes for one run."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def is_elsewhere(error: Exception) -> bool:
    """Whether another process of the run says it."""
    if not is_shared():
        return False
    from redge_guidance.generation.processes import ElsewhereError

    return isinstance(error, ElsewhereError)


def remark(program: str, message: str) -> None:
    """As `complain`, by the first process alone."""
    if rank() == 0:
        complain(program, message)


def complain_once(program: str, message: str) -> None:
    """As `complain`, of an error that ends this process.

    Where it ends the first process too, that one says it, and the launcher ends the others while they wait.
    """
    if rank() > 0:
        with contextlib.suppress(KeyboardInterrupt):
            time.sleep(_PATIENCE)
        message = f"process {rank()}: {message}"
    complain(program, message)


@contextmanager
def terminable() -> Iterator[None]:
    """SIGTERM is `Terminated` inside, so that nothing half done stays behind; only in the main thread can it be."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    if before != signal.SIG_DFL:  # ignored, or somebody else's
        yield
        return
    signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _terminate(number: int, frame: Any) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once is enough
    raise Terminated


@contextmanager
def _arriving() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError as error:
        forget_output()
        raise ReaderGoneError from error
    except OSError as error:
        forget_output()
        raise OSError(f"standard output could not be written: {error.strerror or error}.") from error


def forget_output() -> None:
    """What is still to be written would be a second error when the process ends."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        number = os.open(os.devnull, os.O_WRONLY)
        os.dup2(number, sys.stdout.fileno())
        os.close(number)
