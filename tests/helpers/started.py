"""Processes that a test starts: none is waited for without end, and none outlives its test."""

import contextlib
import os
import signal
import subprocess
import tempfile
import time

LIMIT = 120.0


def run(command, seconds=LIMIT, **how):
    """As `subprocess.run(command, capture_output=True, text=True)`, in a process group that has `seconds`.

    Output goes to files: a pipe stays open for as long as any descendant has it, whoever was ended.
    """
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        how = {"stdin": subprocess.DEVNULL, "start_new_session": True} | how
        process = subprocess.Popen(command, stdout=out, stderr=err, **how)
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            end(process.pid)
            process.wait()
            told = "\n".join(read(file)[-5000:] for file in (out, err))
            raise AssertionError(f"{command} was not done after {seconds} s and was ended. It said:\n{told}") from None
        finally:
            end(process.pid)
        return subprocess.CompletedProcess(command, process.returncode, read(out), read(err))


def read(file):
    file.seek(0)
    return file.read().decode(errors="backslashreplace")


def end(group):
    """Whatever is left of the process group of this number."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGKILL)


def wait(child, seconds=LIMIT):
    """The exit code of a forked child of ours, as `subprocess` has it."""
    last = time.monotonic() + seconds
    while True:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > last:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            raise AssertionError(f"a forked child was not done after {seconds} s and was ended")
        time.sleep(0.005)
