"""Commands of an installed package without its start each time: a server imports it once, and forks for every command.

    python -I warm.py serve SOCKET MODULE...            # imports the modules, then answers
    python -I -S warm.py SOCKET python script.py        # a client: as `python script.py`, with its folder and streams
    python -I -S warm.py SOCKET redge-guidance generate # as the script of that name

A command with `WARM_STRICT` in its environment has warnings for errors. Where it says nothing of the number of steps,
our pipelines take `FEW`: what is asked here is whether it runs. It is a process group of its own, which is
ended when the command is done, when its client is gone, and after `LIMIT` seconds; its stacks are then on its standard
error. The server has one thread, without which a fork may wait for ever for a lock that a thread of its parent holds.
"""

import contextlib
import faulthandler
import importlib
import inspect
import json
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator

LIMIT = 120.0
FEW = 4
OVERDUE = 124  # as of coreutils' `timeout`


def ask(path: str, name: str, arguments: list[str]) -> int:
    """The exit code of a command that the server runs, with this process's streams, folder and environment."""
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(path)
        socket.send_fds(server, [b" "], [0, 1, 2])
        told = {"name": name, "arguments": arguments, "folder": os.getcwd(), "environment": dict(os.environ)}
        server.sendall(json.dumps(told).encode() + b"\n")
        code, _, message = server.makefile().readline().partition(" ")
    if message.strip():
        print(message.strip(), file=sys.stderr)
    return int(code or 1)


class Server:
    """Answers until the process is ended."""

    def __init__(self, path: str):
        self._listening = socket.socket(socket.AF_UNIX)
        self._listening.bind(path)
        self._listening.listen()
        self._running: dict[int, tuple[socket.socket, float]] = {}

    def run(self) -> None:
        try:
            while True:
                clients = [client for client, _ in self._running.values()]
                ready, _, _ = select.select([self._listening, *clients], [], [], 0.02 if clients else None)
                for child, (client, end) in list(self._running.items()):
                    self._look_after(child, client in ready, time.monotonic() > end)
                if self._listening in ready:
                    self._start(self._listening.accept()[0])
        finally:
            for child in self._running:
                _end(child)

    def _look_after(self, child: int, gone: bool, late: bool) -> None:
        """A client says nothing after its command, so that one that can be read from is gone."""
        client, _ = self._running[child]
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            answer = f"{os.waitstatus_to_exitcode(status)} "
        elif gone or late:
            answer = f"{OVERDUE} warm.py: ended after {LIMIT:.0f} s"
        else:
            return
        _end(child, bool(found))
        del self._running[child]
        with contextlib.suppress(OSError):
            client.sendall(answer.encode() + b"\n")
        client.close()

    def _start(self, client: socket.socket) -> None:
        client.settimeout(10.0)
        streams, told = [], ""
        with contextlib.suppress(OSError):  # it may be gone already
            _, streams, *_ = socket.recv_fds(client, 1, 3)
            told = client.makefile().readline()
        trouble = threads_beside_the_first()
        if not trouble and told:
            child = os.fork()
            if child == 0:
                _answer([self._listening, client, *(other for other, _ in self._running.values())], streams, told)
            with contextlib.suppress(OSError):  # the child does so too, whichever is first
                os.setpgid(child, child)
            self._running[child] = client, time.monotonic() + LIMIT
        else:
            with contextlib.suppress(OSError):
                client.sendall(f"1 warm.py: not forked, for {trouble or 'nothing was asked'}\n".encode())
            client.close()
        for stream in streams:
            os.close(stream)


def threads_beside_the_first() -> str:
    """What is known of them, or nothing where there are none."""
    known = [thread.name for thread in threading.enumerate() if thread is not threading.main_thread()]
    try:
        count = len(os.listdir("/proc/self/task"))
    except OSError:  # not Linux
        count = 1 + len(known)
    return f"the server has {count} threads, of Python's {known}" if count > 1 else ""


def _end(child: int, waited: bool = False) -> None:
    """The child and all of its group; one that is not done prints its stacks."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if not waited:
            os.killpg(child, signal.SIGABRT)
            time.sleep(0.5)
        os.killpg(child, signal.SIGKILL)
    if not waited:
        os.waitpid(child, 0)


def _answer(sockets: list[socket.socket], streams: list[int], line: str) -> None:
    """In a process of its own, which ends here."""
    code = 1
    try:
        os.setpgid(0, 0)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        for one in sockets:
            one.close()
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
            os.close(stream)
        told = json.loads(line)
        os.chdir(told["folder"])
        os.environ.clear()
        os.environ.update(told["environment"])
        code = _run(told["name"], told["arguments"])
    finally:
        os._exit(code)


def _run(name: str, arguments: list[str]) -> int:
    import traceback
    import warnings

    if "WARM_STRICT" in os.environ:
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", ".*torch.jit.script.*", DeprecationWarning)
    try:
        _call(name, arguments)
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        if isinstance(ended.code, str):
            print(ended.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return code


def _call(name: str, arguments: list[str]) -> None:
    import runpy
    from importlib.metadata import entry_points

    while arguments and arguments[0] == "-u":
        arguments = arguments[1:]
    if name != "python":
        sys.argv = [name, *arguments]
        (script,) = entry_points(group="console_scripts", name=name)
        sys.exit(script.load()())
    if arguments[0] == "-m":
        sys.argv = arguments[1:]
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = arguments
        runpy.run_path(arguments[0], run_name="__main__")


def few_steps(number: int) -> Iterator[tuple[dict[str, object], str, int]]:
    """What to change so that our pipelines take `number` steps where a call says nothing of it: mapping, key, value."""
    from redge_guidance.pipelines import MaskedImagePipeline, MaskedTextPipeline, UniformTextPipeline

    for kind in (MaskedImagePipeline, MaskedTextPipeline, UniformTextPipeline):
        yield inspect.unwrap(kind.__call__).__kwdefaults__, "num_inference_steps", number


def serve(path: str, modules: list[str]) -> None:
    for module in modules:
        importlib.import_module(module)
    for defaults, name, number in few_steps(FEW):
        defaults[name] = number
    faulthandler.enable()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    Server(path).run()


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(sys.argv[2], sys.argv[3:])
    else:
        sys.exit(ask(sys.argv[1], sys.argv[2], sys.argv[3:]))
