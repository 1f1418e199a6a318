"""Processes as a launcher starts them, forked from this one, which has loaded everything."""

import contextlib
import os
import signal
import socket
import sys
import time
import traceback
import warnings

import torch

LIMIT = 120.0


def launch(work, count=1, kill_after=None, errors=None, number=signal.SIGKILL):
    """Run `work()` in `count` processes; like `torchrun`, when one fails the others are ended.

    Args:
        work: returns an exit code, or None for 0.
        count: of processes, which know of each other by the variables of the environment.
        kill_after: seconds, after which all get the signal `number`.
        errors: path of a file that gets their standard error.

    Returns:
        Exit codes, as `subprocess` has them.

    Raises:
        AssertionError: they were not done after `LIMIT` seconds, and were ended.
    """
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    shared = {"WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    children = [_fork(work, shared | {"RANK": rank, "LOCAL_RANK": rank}, errors) for rank in range(count)]
    started, codes, sent = time.monotonic(), {}, False
    while len(codes) < count:
        for child in children:
            if child not in codes:
                found, status = os.waitpid(child, os.WNOHANG)
                if found:
                    codes[child] = os.waitstatus_to_exitcode(status)
        late = kill_after is not None and time.monotonic() - started > kill_after
        if not sent and (late or any(codes.values())):
            sent = True
            for child in set(children) - set(codes):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child, number if late else signal.SIGTERM)
        if time.monotonic() - started > LIMIT:
            for child in set(children) - set(codes):
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
            raise AssertionError(f"of {count} processes {count - len(codes)} were not done after {LIMIT} s")
        time.sleep(0.005)
    return [codes[child] for child in children]


def _fork(work, variables, errors):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of threads, which the child does not use
        child = os.fork()
    if child:
        return child
    code = 99
    try:
        torch.set_num_threads(1)  # those of the parent are not here, and GNU's OpenMP would wait for them
        os.environ |= {name: str(value) for name, value in variables.items()}
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if errors is not None:
            os.dup2(os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
            sys.stderr = open(2, "w", errors="backslashreplace", closefd=False)  # noqa: SIM115
        code = work() or 0
    except SystemExit as stop:
        code = stop.code
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 1)
