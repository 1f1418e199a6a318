"""Config and weights of a checkpoint with code of its own."""

import sys
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import dispatch_model, infer_auto_device_map, init_empty_weights
from huggingface_hub import snapshot_download
from transformers import AutoConfig, GenerationConfig, PretrainedConfig

from redge_guidance.remote.code import RemoteCode
from redge_guidance.remote.weights import load_weights, weight_files

_HEADS = ("AutoModelForMaskedLM", "AutoModelForCausalLM", "AutoModel")
_BUILDING = threading.Lock()
_CODE = ["*.py", "*.json"]


def load_config(path: str, trust_remote_code: bool | None = None, **hub: Any) -> Any:
    """The config of a model: by its own class where one comes with the checkpoint and is trusted.

    Args:
        path: a folder, or a hub id.
        trust_remote_code: run Python code that comes with the checkpoint.
        **hub: `revision`, `token` and `cache_dir`.

    Raises:
        ValueError: there is code of its own, which nobody trusts, or which does not run.
        OSError: there is no config.
    """
    raw, _ = PretrainedConfig.get_config_dict(path, **hub)
    if not raw.get("model_type") and not raw.get("auto_map"):
        raise ValueError(
            f"{path}/config.json must say the `model_type`, and does not; a model whose class is elsewhere, as SEDD's, "
            "goes into `from_model`."
        )
    reference = _reference((raw.get("auto_map") or {}).get("AutoConfig"))
    if not trust_remote_code and is_remote(raw):
        raise ValueError(
            f"`{path}` comes with Python code of its own; read it, and pass `trust_remote_code=True` to run it."
        )
    if reference is None or not trust_remote_code:
        return AutoConfig.from_pretrained(path, trust_remote_code=False, **hub)  # None asks on the terminal
    kind = _code(path, reference, hub).find(reference.rpartition("--")[2])
    with _without_advice():
        return kind.from_dict(raw)


def is_remote(config: Any) -> bool:
    """Whether a config, or what its file says, names model code that comes with the checkpoint."""
    auto_map = config.get("auto_map") if isinstance(config, Mapping) else getattr(config, "auto_map", None)
    return any(name.startswith("AutoModel") for name in auto_map or {})


def load_model(
    path: str,
    config: Any,
    dtype: torch.dtype,
    device_map: Any = None,
    weights_only: bool = False,
    attn_implementation: str | None = None,
    **hub: Any,
) -> Any:
    """The model whose class `config.auto_map` names, with the head that `config.architectures` names.

    Parameters are those of the file, checked by name and shape; buffers that are not in it are what the class computes.

    Args:
        path: a folder, or a hub id.
        config: of `load_config`.
        dtype: of the parameters; buffers keep that of the class.
        device_map: None: on the CPU; a device; or as in accelerate, `"auto"` or a dictionary of modules.
        weights_only: also read `pytorch_model.bin`, by `torch.load(weights_only=True)`.
        attn_implementation: as in transformers.
        **hub: `revision`, `token` and `cache_dir`.

    Raises:
        ValueError: the code does not run, or the weights do not fit.
        OSError: there are no weights that can be read.
    """
    reference = _choose(config)
    code = _code(path, reference, hub)
    kind = code.find(reference.rpartition("--")[2])
    folder = _folder(path, hub, ["*.safetensors", *["*.bin"] * weights_only])
    files = weight_files(folder, weights_only)
    if attn_implementation is not None:
        config._attn_implementation = attn_implementation
    with _BUILDING:  # two threads would each take what the other changes for what there was
        model = _build(kind, config, dtype)
        load_weights(model, files, dtype)
    device = None if device_map is None or isinstance(device_map, dict) or device_map in ("auto",) else device_map
    if device is not None:
        model.to(device)
    elif device_map is not None:
        keep = list(getattr(model, "_no_split_modules", None) or [])
        spread = device_map if isinstance(device_map, dict) else infer_auto_device_map(model, None, keep, dtype)
        model = dispatch_model(model, spread)
    if (folder / "generation_config.json").is_file():
        model.generation_config = _generation_config(kind).from_pretrained(folder)
    return model.eval()


def _generation_config(kind: Any) -> Any:
    """The class of the settings that a model is drawn from with: its own (Dream's), where its file has one."""
    names = vars(sys.modules[kind.__module__]).values()
    own = {one for one in names if isinstance(one, type) and issubclass(one, GenerationConfig)} - {GenerationConfig}
    return own.pop() if len(own) == 1 else GenerationConfig


def _build(kind: Any, config: Any, dtype: torch.dtype) -> Any:
    """The model with parameters that have no memory yet, and buffers that have their values."""
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ValueError(f"`dtype` must be a floating-point torch.dtype, such as torch.bfloat16, got {dtype!r}.")
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with _without_advice(), init_empty_weights(include_buffers=False):
            model = kind(config)
    except Exception as error:
        raise ValueError(
            f"{kind.__name__} of the checkpoint cannot be built with the libraries here: {type(error).__name__}: "
            f"{error}; is its config complete?"
        ) from error
    finally:
        torch.set_default_dtype(before)
    if "all_tied_weights_keys" not in vars(model) and hasattr(model, "post_init"):
        model.post_init()
    return model


@contextmanager
def _without_advice() -> Iterator[None]:
    """What transformers tells the authors of such code about its age is nothing that a user can follow."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield


def _choose(config: Any) -> str:
    """The entry of `auto_map` for the class that the config is of, or else for one with a head."""
    auto_map = {name: _reference(entry) for name, entry in config.auto_map.items()}
    architectures = getattr(config, "architectures", None) or []
    for reference in auto_map.values():
        if reference is not None and reference.rpartition(".")[2] in architectures:
            return reference
    for name in _HEADS:
        found = auto_map.get(name)
        if found is not None:
            return found
    raise ValueError(f"`auto_map` must name one of {', '.join(_HEADS)}, got {', '.join(auto_map)}.")


def _reference(entry: Any) -> str | None:
    """`file.Class` of an entry of an `auto_map`, which may be a pair (of slow and fast tokenizers)."""
    return next((one for one in entry if one), None) if isinstance(entry, list | tuple) else entry


def _code(path: str, reference: str, hub: Mapping[str, Any]) -> RemoteCode:
    """The code of a reference, which may name another repository: `organisation/model--file.Class`."""
    other, separator, name = reference.rpartition("--")
    here = _folder(path, hub)
    if separator and not (here / f"{name.partition('.')[0]}.py").is_file():
        return RemoteCode(_folder(other, {key: value for key, value in hub.items() if key != "revision"}))
    return RemoteCode(here)


def _folder(path: str, hub: Mapping[str, Any], more: Sequence[str] = ()) -> Path:
    """Where code and configs lie, and files of `more` patterns."""
    return Path(path) if Path(path).is_dir() else Path(snapshot_download(path, allow_patterns=[*_CODE, *more], **hub))
