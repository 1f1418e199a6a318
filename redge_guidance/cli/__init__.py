"""The `redge-guidance` command."""

import logging
import sys
from collections.abc import Sequence

from redge_guidance.cli.parser import build_parser
from redge_guidance.cli.terminal import (
    BAD_INPUT,
    FAULT,
    INTERRUPTED,
    READER_GONE,
    TERMINATED,
    ReaderGoneError,
    Terminated,
    complain_once,
    flush_output,
    in_options,
    is_elsewhere,
    remark,
    terminable,
)

_BAD = (ValueError, OSError, RuntimeError)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code, and says on one line of standard error why it is not 0.

    2: bad input, or something that cannot be read or written. 3: some prompts failed, the rest is
    done. 130, 143: Ctrl-C and SIGTERM, as shells count them, and 141, without a word: nobody reads standard output any
    more. 1: a fault of the command, see `python -X dev`.
    """
    parser = build_parser()
    written: list[str] = []
    on_with: list[str] = []
    try:
        with terminable():
            try:
                args = parser.parse_args(argv)
            finally:
                flush_output()
            for name in ("torchao", "torch.utils._pytree", "diffusers.quantizers"):  # what these say when imported
                logging.getLogger(name).setLevel(logging.CRITICAL)
            if args.command == "evaluate":
                from redge_guidance.cli.evaluating import evaluate  # which imports torch

                return evaluate(args, written, on_with)
            from redge_guidance.cli.generating import generate

            return generate(args, written, on_with)
    except ReaderGoneError:
        return READER_GONE
    except (KeyboardInterrupt, Terminated) as stop:
        by_key = isinstance(stop, KeyboardInterrupt)
        done = f"after {' and '.join(written)} had been written" if written else "nothing was written"
        if on_with:
            done = f"what is done is in {on_with[0]}, and the same command goes on there"
        remark(parser.prog, f"{'interrupted' if by_key else 'terminated'}, {done}")
        return INTERRUPTED if by_key else TERMINATED
    except Exception as error:
        if sys.flags.dev_mode and not isinstance(error, (*_BAD, MemoryError)):
            raise
        return _ended(parser.prog, error)


def _ended(program: str, error: Exception) -> int:
    """The exit code of an error, which is said."""
    code, message = (
        BAD_INPUT,
        in_options(f"error: {error}").replace("`trust_remote_code=True`", "`--trust-remote-code`"),
    )
    if isinstance(error, MemoryError):
        message = f"error: out of memory; ask for fewer `--samples-per-prompt`, or shorter texts. {error}"
    elif not isinstance(error, _BAD):
        told = f"{type(error).__name__}: {error}"
        code = FAULT
        message = f"fault: {told}; `python -X dev -m redge_guidance` shows where, please report it"
    if is_elsewhere(error):
        remark(program, message)
        return code
    try:
        with terminable():
            complain_once(program, message)
    except Terminated:  # by a launcher, since the first process ended too
        return TERMINATED
    return code
