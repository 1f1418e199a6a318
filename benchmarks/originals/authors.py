"""The authors' modules, imported from their repositories as they are. For the reference interpreter only.

Names of modules that several repositories use (`models`, `utils`, ...) are forgotten before and after. What is needed
for training only becomes an empty module, whose names are there to be inherited from and not to be called.
"""

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

EMPTY = {
    "causal_conv1d", "classifier", "custom_datasets", "dataloader", "datasets", "hydra", "lightning", "mamba_ssm",
    "metrics", "scipy", "timm", "torchmetrics", "torchvision",
}  # fmt: skip
SHARED = {
    "algo", "catsample", "data", "diffusion", "generate", "graph_lib", "losses", "model", "models", "noise_lib",
    "noise_schedule", "sampling", "trainer_base", "utils",
}  # fmt: skip


class _Empty(types.ModuleType):
    """A module that has every name: a class without contents, or of one in small letters a module like it."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Empty(name) if name.islower() else type(name, (), {})


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name.partition(".")[0] not in EMPTY:
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: Any) -> types.ModuleType:
        return _Empty(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        pass


def load(repository: Path, *names: str) -> list[Any]:
    """Modules of one repository."""
    finder = _Finder()
    _forget()
    sys.path.insert(0, str(repository))
    sys.meta_path.insert(0, finder)
    try:
        return [importlib.import_module(name) for name in names]
    finally:
        sys.path.remove(str(repository))
        sys.meta_path.remove(finder)
        _forget()


def _forget() -> None:
    for name in list(sys.modules):
        if name.partition(".")[0] in SHARED | EMPTY:
            del sys.modules[name]


def edited(file: Path, **numbers: tuple[str, int]) -> Any:
    """The module in `file` with numbers that it has in its text, ids of a vocabulary, replaced: `name=(old, new)`."""
    source = file.read_text()
    for old, new in numbers.values():
        if old not in source:
            raise RuntimeError(f"{file.name} is not the one that this script knows: no {old}.")
        source = source.replace(old, str(new))
    module = types.ModuleType(file.stem)
    exec(compile(source, str(file), "exec"), vars(module))
    return module


def bare(kind: type, **attributes: Any) -> Any:
    """An object of the authors' class whose `__init__`, made for training, has not run."""
    made = object.__new__(kind)
    vars(made).update(attributes)
    return made


def settings(**values: Any) -> SimpleNamespace:
    """Nested dicts as the attributes that a config has."""
    return SimpleNamespace(**{k: settings(**v) if isinstance(v, dict) else v for k, v in values.items()})


class Captured:
    """Stands for `sample_categorical`: keeps the weights that it is given, and takes the likeliest."""

    def __init__(self) -> None:
        self.weights: torch.Tensor | None = None

    def __call__(self, weights: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        self.weights = weights.detach().clone()
        return weights.argmax(-1)

    def law(self) -> torch.Tensor:
        """The weights, normalised: the law of what would have been drawn."""
        assert self.weights is not None
        return (self.weights / self.weights.sum(-1, keepdim=True)).float()


def kept(law: torch.Tensor, ids: torch.Tensor, mask_id: int) -> torch.Tensor:
    """The law of a step that leaves alone what is not masked."""
    certain = torch.nn.functional.one_hot(ids, law.shape[-1]).to(law.dtype)
    return torch.where((ids == mask_id)[..., None], law, certain)


def changed(model: Any, before: Callable[[Any], Any] | None = None, after: Callable[[Any], Any] | None = None) -> Any:
    """Change keyword arguments before, or the output after `forward` of one object; calling the result undoes it."""
    forward = model.forward

    def call(*args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **(before(kwargs) if before else kwargs))
        return after(output) if after else output

    model.forward = call

    def undo() -> None:
        model.forward = forward

    return undo


def forbid(model: Any, ids: Sequence[int]) -> Any:
    """Forbid tokens: those that the pipelines of this package never draw."""

    def low(output: Any) -> Any:
        output.logits[..., list(ids)] = -1e4  # finite, because guidance takes differences
        return output

    return changed(model, after=low)


def reserved(tokenizer: Any, vocabulary: int, mask_id: int) -> list[int]:
    """Mask, padding, beginning-of-text and unknown tokens and ids beyond the tokenizer, but not the end of text."""
    ids = {mask_id} | {getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "cls", "unk")}
    ids |= set(range(len(tokenizer), vocabulary))
    return sorted(ids - {tokenizer.eos_token_id, None})
