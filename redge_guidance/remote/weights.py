"""Weights by name, from safetensors onto a model that was built for them."""

import json
import pickle
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

_CONVERT = (
    "python -c \"import torch; from safetensors.torch import save_file; w = torch.load('{file}', weights_only=True); "
    "save_file({{k: v.clone().contiguous() for k, v in w.items()}}, 'model.safetensors', {{'format': 'pt'}})\""
)


def weight_files(folder: Path, weights_only: bool = False) -> list[Path]:
    """The files that hold the weights of a model.

    Args:
        folder: of the checkpoint.
        weights_only: where there is no safetensors file, take pickles, which are then read as weights only.

    Raises:
        OSError: there are none, or a shard is missing.
        ValueError: there are only pickles; with the command that converts them.
    """
    kinds = [("model.safetensors", "*.safetensors")] + [("pytorch_model.bin", "*.bin")] * weights_only
    for single, pattern in kinds:
        index = folder / f"{single}.index.json"
        if index.is_file():
            names = _names_in(index, Path(single).suffix)
            missing = [name for name in names if not (folder / name).is_file()]
            if missing:
                raise OSError(f"{folder} lacks {', '.join(missing[:3])}, which {index.name} names; download it again.")
            return [folder / name for name in names]
        if (folder / single).is_file():
            return [folder / single]
        found = sorted(folder.glob(pattern))
        if found:
            return found
    pickles = [file.name for end in ("bin", "pt", "pth", "ckpt") for file in sorted(folder.glob(f"*.{end}"))]
    if pickles:
        raise ValueError(
            f"{folder} has its weights in {pickles[0]}, a pickle, which may run code when it is read; convert it by "
            f"`{_CONVERT.format(file=pickles[0])}`, or pass `weights_only=True`."
        )
    raise OSError(f"{folder} has no weights: no model.safetensors, nor shards with their index.")


def _names_in(index: Path, end: str) -> list[str]:
    """The files that an index names, which lie beside it and are of its kind."""
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ValueError(f"{index} must map weights to files, and does not; download it again.") from error
    wrong = [name for name in names if Path(name).name != name or not name.endswith(end)]
    if wrong or not names:
        raise ValueError(f"{index} must name {end} files beside it, got {wrong[0] if wrong else 'none'}.")
    return names


def load_weights(model: Any, files: Sequence[Path], dtype: torch.dtype) -> None:
    """Put the weights of the files into the model, whose parameters have no memory yet, and tie those to be tied.

    Args:
        model: its floating-point parameters become `dtype`, its buffers stay what they are or take the file's values.
        files: of `weight_files`.

    Raises:
        ValueError: a name or a shape that does not fit.
    """
    wanted = dict(model.state_dict(keep_vars=True))
    known = wanted.keys() | {name for name, _ in model.named_buffers()}
    unknown, wrong, state = [], [], {}
    for name, tensor in _tensors(files):
        if name not in known:
            if not any(re.search(pattern, name) for pattern in model._keys_to_ignore_on_load_unexpected or ()):
                unknown.append(name)
        elif name in wanted:
            here = wanted[name]
            if here.shape != tensor.shape:
                wrong.append(f"{name} {list(tensor.shape)} for {list(here.shape)}")
            if here.is_floating_point() and not tensor.is_floating_point():
                wrong.append(f"{name} as {tensor.dtype}, which needs more than its weights to be read")
            is_parameter = isinstance(here, torch.nn.Parameter)
            state[name] = tensor.to(dtype if is_parameter and tensor.is_floating_point() else here.dtype)
    if not (unknown or wrong):
        model.load_state_dict(state, strict=False, assign=True)
        if hasattr(model, "tie_weights"):
            model.tie_weights()
    missing = [] if wrong else [name for name, tensor in model.state_dict().items() if tensor.is_meta]
    if unknown:
        missing = [name for name in missing if name not in state]
    if unknown or wrong or missing:
        found = [f"it has {_few(unknown)} too many"] * bool(unknown) + [f"it lacks {_few(missing)}"] * bool(missing)
        found += [f"it has {_few(wrong)}"] * bool(wrong)
        raise ValueError(
            f"the weights in {files[0].parent} do not fit {type(model).__name__}, the class that the config names: "
            f"{'; '.join(found)}."
        )


def _tensors(files: Sequence[Path]) -> Iterator[tuple[str, Tensor]]:
    for file in files:
        if file.suffix != ".safetensors":
            try:
                yield from torch.load(file, map_location="cpu", weights_only=True).items()
            except (pickle.UnpicklingError, EOFError, RuntimeError) as error:
                raise ValueError(f"{file} holds more than weights, or is cut off, and was not read.") from error
            continue
        try:
            with safe_open(file, framework="pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118  # not a dictionary
                    yield name, tensors.get_tensor(name)
        except SafetensorError as error:
            raise ValueError(f"{file} cannot be read: {error}; download it again.") from error


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
