"""Commands of an installed package without its start each time: a server imports it once, and forks for every command.

    python -I warm.py serve SOCKET MODULE...            # imports the modules, then answers
    python -I -S warm.py SOCKET python script.py        # a client: as `python script.py`, with its folder and streams
    python -I -S warm.py SOCKET redge-guidance generate # as the script of that name

A command with `WARM_STRICT` in its environment has warnings for errors.
"""

import importlib
import json
import os
import signal
import socket
import sys


def ask(path: str, name: str, arguments: list[str]) -> int:
    """The exit code of a command that the server runs, with this process's streams, folder and environment."""
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(path)
        socket.send_fds(server, [b" "], [0, 1, 2])
        told = {"name": name, "arguments": arguments, "folder": os.getcwd(), "environment": dict(os.environ)}
        server.sendall(json.dumps(told).encode())
        server.shutdown(socket.SHUT_WR)
        return int(server.makefile().read() or 1)


def serve(path: str, modules: list[str]) -> None:
    """Answer until the process is ended."""
    for module in modules:
        importlib.import_module(module)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for them
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)
        listening.listen()
        while True:
            client, _ = listening.accept()
            if os.fork() == 0:
                listening.close()
                _answer(client)
            client.close()


def _answer(client: socket.socket) -> None:
    """In a process of its own, which ends here."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    code = 1
    try:
        _, streams, *_ = socket.recv_fds(client, 1, 3)
        told = json.loads(client.makefile().read())
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
            os.close(stream)
        os.chdir(told["folder"])
        os.environ.clear()
        os.environ.update(told["environment"])
        code = _run(told["name"], told["arguments"])
    finally:
        client.sendall(str(code).encode())
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


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(sys.argv[2], sys.argv[3:])
    else:
        sys.exit(ask(sys.argv[1], sys.argv[2], sys.argv[3:]))
