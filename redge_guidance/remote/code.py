"""Running the Python files of a checkpoint, each in its own view of the libraries that it imports."""

import builtins
import hashlib
import importlib
import importlib.machinery
import importlib.util
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from redge_guidance.remote.legacy import REMOTE
from redge_guidance.remote.views import view_of

_RUNNING = threading.RLock()


class RemoteCode:
    """The Python files of a folder, as a package of their own.

    They are read where they are, nothing is written beside them, and the same files are run once in a process.

    Args:
        folder: holds the files that an `auto_map` names.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        content = hashlib.sha256(str(folder.resolve()).encode())
        for file in sorted(folder.rglob("*.py")):
            content.update(file.read_bytes())
        self.package = f"{REMOTE}{content.hexdigest()[:16]}"
        if self.package not in sys.modules:
            module = ModuleType(self.package, f"Code of the checkpoint {folder}.")
            module.__path__ = [str(folder)]
            sys.modules[self.package] = module

    def find(self, reference: str) -> Any:
        """The class that an `auto_map` calls `file.Class`.

        Raises:
            ValueError: no such file or class, or the file imports what is not there; what and which file it names.
        """
        name, _, kind = reference.rpartition(".")
        try:
            module = _load(f"{self.package}.{name}")
        except ImportError as error:
            raise ValueError(self._explain(name, error)) from error
        except Exception as error:
            raise ValueError(
                f"{name}.py of the checkpoint cannot be run: {type(error).__name__}: {error}; see the model's card."
            ) from error
        if module is None or not hasattr(module, kind):
            raise ValueError(f"`auto_map` names {reference}, and {self.folder} has no such class; complete the files.")
        return getattr(module, kind)

    def _explain(self, name: str, error: ImportError) -> str:
        missing = (error.name or "").split(".")[0]
        if isinstance(error, ModuleNotFoundError) and missing not in ("", "transformers", self.package):
            return (
                f"{name}.py of the checkpoint imports `{error.name}`, which is not installed; pip install {missing}, "
                "or what the checkpoint's card says."
            )
        return f"{name}.py of the checkpoint does not run with the libraries here: {error}; see the checkpoint's card."


class _Loader(importlib.machinery.SourceFileLoader):
    """Runs a file with an `__import__` of its own, and leaves no bytecode in the checkpoint."""

    def exec_module(self, module: ModuleType) -> None:
        module.__dict__["__builtins__"] = vars(builtins) | {"__import__": _import}
        super().exec_module(module)

    def set_data(self, path: str, data: Any, *, _mode: int = 0) -> None:
        pass


def _load(name: str) -> ModuleType | None:
    """The module of that name in a package of this file, or None if it has no file; no thread sees it half run."""
    with _RUNNING:
        return _loaded(name)


def _loaded(name: str) -> ModuleType | None:
    if name in sys.modules:
        return sys.modules[name]
    parent, _, last = name.rpartition(".")
    package = sys.modules.get(parent) or _loaded(parent)
    if package is None:
        return None
    folder = Path(package.__path__[0])
    for file, inside in ((folder / f"{last}.py", None), (folder / last / "__init__.py", [str(folder / last)])):
        if file.is_file():
            loader = _Loader(name, str(file))
            spec = importlib.util.spec_from_file_location(name, file, loader=loader, submodule_search_locations=inside)
            assert spec is not None
            module = importlib.util.module_from_spec(spec)
            sys.modules[name] = module
            try:
                loader.exec_module(module)
            except BaseException:
                del sys.modules[name]
                raise
            setattr(package, last, module)
            return module
    return None


def _import(
    name: str,
    names: Mapping[str, Any] | None = None,
    local_names: Mapping[str, Any] | None = None,
    fromlist: Sequence[str] | None = (),
    level: int = 0,
) -> Any:
    """`__import__` for the code of a checkpoint: neighbours run likewise, libraries are seen by `view_of`."""
    if level:
        package = str((names or {}).get("__package__"))
        inner = importlib.util.resolve_name("." * level + name, package)
        module = _load(inner)
        if module is None:
            raise ModuleNotFoundError(f"the checkpoint has no file for {inner.partition('.')[2]}", name=inner)
        for part in fromlist or ():
            if not hasattr(module, part) and hasattr(module, "__path__"):
                _load(f"{inner}.{part}")
        return module
    seen = view_of(name)
    if seen is None:
        neighbour = _neighbour(name, str((names or {}).get("__package__")))
        if neighbour is not None:
            return neighbour
        return builtins.__import__(name, names, local_names, fromlist or (), level)
    return seen if fromlist else view_of(name.partition(".")[0])


def _neighbour(name: str, package: str) -> ModuleType | None:
    """A file beside the importing one that is imported without a dot, unless a library has that name."""
    if "." in name or not package.startswith(REMOTE) or importlib.util.find_spec(name) is not None:
        return None
    return _load(f"{package}.{name}")
