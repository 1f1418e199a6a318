"""The package as people get it: a wheel, in an environment that has no checkout."""

import os
import shutil
import subprocess
import sys
import time
import venv
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.helpers.started import LIMIT, end, run

ROOT = Path(__file__).parent.parent.parent
_SOURCES = ("pyproject.toml", "README.md", "LICENSE", "redge_guidance", "pipelines", "rewards", "checkpoints")
_COMMANDS = ("python", "redge-guidance", "torchrun", "accelerate")
_WARM = ("redge_guidance.cli.generating", "redge_guidance.pipelines", "redge_guidance.rewards", "torch.distributed.run")


def build(folder: Path) -> Path:
    """A wheel of this checkout, built in a copy of what it is made of."""
    source = folder / "source"
    source.mkdir(parents=True)
    for name in _SOURCES:
        if (ROOT / name).is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=ignored)
        else:
            shutil.copy(ROOT / name, source / name)
    _pip("wheel", "--no-build-isolation", "--wheel-dir", str(folder), str(source))
    (wheel,) = folder.glob("*.whl")
    return wheel


class Installed:
    """An environment with the wheel, and the other packages of the environment that runs the tests.

    Attributes:
        bin: its scripts.
    """

    def __init__(self, folder: Path, wheel: Path):
        self._folder = folder
        venv.create(folder / "venv", symlinks=True)
        self.bin = folder / "venv" / "bin"
        _pip("install", str(wheel), python=str(self.bin / "python"))
        (site,) = (folder / "venv" / "lib").glob("python*/site-packages")
        below = [path for path in sys.path if Path(path).name == "site-packages" and ROOT.as_posix() != path]
        (site / "below.pth").write_text("\n".join(below) + "\n", encoding="utf-8")

    @contextmanager
    def warm(self) -> Iterator[dict[str, str]]:
        """An environment in which its commands start at once, by `tests/helpers/warm.py`."""
        client = self._folder / "warm.py"
        shutil.copy(Path(__file__).parent / "warm.py", client)
        path, commands = self._folder / "socket", self._folder / "commands"
        commands.mkdir()
        for name in _COMMANDS:
            script = f'#!/bin/sh\nexec "{self.bin}/python" -I -S "{client}" "{path}" {name} "$@"\n'
            (commands / name).write_text(script, encoding="utf-8")
            (commands / name).chmod(0o755)
        environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
        environment |= {"PATH": f"{commands}:{os.environ['PATH']}", "WARM_STRICT": "1", "OMP_NUM_THREADS": "1"}
        environment |= {"PYTHON_EXEC": str(commands / "python")}  # what torchrun starts
        command = [str(self.bin / "python"), "-I", str(client), "serve", str(path), *_WARM]
        log = self._folder / "server.log"
        with open(log, "wb") as file:
            how = {"stdin": subprocess.DEVNULL, "stdout": file, "stderr": file, "start_new_session": True}
            server = subprocess.Popen(command, cwd=self._folder, env=environment, **how)
        try:
            last = time.monotonic() + LIMIT
            while not path.exists():
                assert server.poll() is None, log.read_text(encoding="utf-8")
                assert time.monotonic() < last, f"not there after {LIMIT} s\n{log.read_text(encoding='utf-8')}"
                time.sleep(0.05)
            yield environment
        finally:
            server.terminate()  # it ends its children
            with suppress(subprocess.TimeoutExpired):
                server.wait(10)
            end(server.pid)
            server.wait()


def _pip(command: str, *arguments: str, python: str | None = None) -> None:
    target = [] if python is None else ["--python", python]
    options = ["--quiet", "--no-deps", "--no-index", "--disable-pip-version-check"]
    done = run([sys.executable, "-m", "pip", *target, command, *options, *arguments])
    assert done.returncode == 0, done.stdout + done.stderr
