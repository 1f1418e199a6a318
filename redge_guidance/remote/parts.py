"""Pipelines of diffusers from a folder, none of whose parts is other than its files say."""

import inspect
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers

# what is about the loading of parts, and has to be left to diffusers
_PLACING = ("device_map", "max_memory", "offload_folder", "offload_state_dict", "low_cpu_mem_usage", "disable_mmap")
_SPECIAL = (*_PLACING, "variant", "quantization_config", "use_flashpack", "custom_pipeline")


def read_index(file: Path) -> dict[str, Any]:
    """What a `model_index.json` says.

    Raises:
        ValueError: it is no JSON object that names the class of a pipeline.
    """
    try:
        index = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} must be JSON, and is not: {error}; download it again.") from error
    if not isinstance(index, dict) or not isinstance(index.get("_class_name"), str):
        found = f"the class {index.get('_class_name')!r}" if isinstance(index, dict) else type(index).__name__
        raise ValueError(f"{file} must be a JSON object that names a pipeline in `_class_name`, got {found}.")
    return index


def load_pipeline(
    kind: Any, path: str, dtype: Any = torch.float32, trust_remote_code: bool = False, **options: Any
) -> Any:
    """What diffusers' `kind.from_pretrained` makes, with no weight at random.

    Args:
        kind: a class of pipelines; its own `from_pretrained` is not used.
        path: a folder, or a hub id.
        dtype: of the models.
        trust_remote_code: run Python code that comes with the parts.
        **options: for `DiffusionPipeline.from_pretrained`. Where they say how parts are placed, quantised or which
            variant is read, the files are compared with the classes first, without memory for weights. Not compared:
            parts that are quantised in the files, or come as flashpack, whose weights have other names.

    Raises:
        ValueError: an index that is none, parts whose weights do not fit them, or code that is not trusted.
        OSError: files are missing.
    """
    folder = Path(path)
    if not folder.is_dir():
        folder = Path(kind.download(path, trust_remote_code=trust_remote_code, **options))
    index = read_index(folder / "model_index.json")
    parts: dict[str, Any] = {}
    plain = not set(options) & set(_SPECIAL) and isinstance(dtype, torch.dtype)
    for name, entry in index.items():
        if name not in options and not name.startswith("_") and _is_part(folder / "model_index.json", name, entry):
            if plain:
                model = _load_part(folder / name, entry, options, dtype=dtype)
                parts |= {} if model is None else {name: model}
            elif not options.get("use_flashpack") and not _is_quantised(folder / name):
                variant = _variant_of(folder / name, options.get("variant"))
                _load_part(folder / name, entry, options, device_map={"": "meta"}, **variant)
    load: Any = diffusers.DiffusionPipeline.from_pretrained.__func__
    return load(kind, str(folder), dtype=dtype, trust_remote_code=trust_remote_code, **parts, **options)


def _is_part(file: Path, name: str, entry: Any) -> bool:
    """Whether an entry of an index is a part: a library and a class; what else is a list is a setting."""
    if not isinstance(entry, list) or len(entry) != 2 or not any(isinstance(word, str) for word in entry):
        return False
    if not all(isinstance(word, str) for word in entry):
        raise ValueError(f"{file} must give library and class of `{name}`, got {entry!r}.")
    return True


def _is_quantised(folder: Path) -> bool:
    config = folder / "config.json"
    return config.is_file() and "quantization_config" in json.loads(config.read_text(encoding="utf-8"))


def _variant_of(folder: Path, variant: str | None) -> dict[str, str]:
    """The variant, of a part that comes in it; diffusers reads the plain files of the others."""
    files = [file.name.split(".") for file in folder.glob("*.*")] if variant is not None else []
    return {"variant": variant} if variant and any(words[1].startswith(variant) for words in files) else {}


def _load_part(folder: Path, entry: list[str], options: Mapping[str, Any], **how: Any) -> Any:
    """A model of diffusers or transformers; None for what is no model, or has its class elsewhere."""
    library, kind_name = entry
    if not folder.is_dir() or (folder / f"{library}.py").is_file():
        return None
    kind: Any = getattr(sys.modules.get(library), kind_name, None)  # as diffusers, which imports nothing for an index
    bases = (diffusers.ModelMixin, transformers.PreTrainedModel)
    if not (inspect.isclass(kind) and any(base in kind.__mro__ for base in bases)):
        return None
    more = {key: options[key] for key in ("use_safetensors",) if options.get(key) is not None}
    loader: Any = kind
    model, found = loader.from_pretrained(folder, output_loading_info=True, **how, **more)
    check_loaded(f"{folder}", model, found)
    return model


def check_loaded(name: str, model: Any, found: Mapping[str, Any], unused: tuple[str, ...] = ()) -> None:
    """A ValueError if weights of a model do not come from its files, and so are random.

    Args:
        name: of the checkpoint.
        model: as a library loaded it.
        found: its `output_loading_info`.
        unused: beginnings of names of weights that nothing reads.
    """
    wrong = [("lacks", key) for key in sorted(found.get("missing_keys") or ()) if not key.startswith(unused or ("\0",))]
    wrong += [("has another shape of", str(key[0])) for key in sorted(found.get("mismatched_keys") or (), key=str)]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        told = ", ".join(key for _, key in wrong[:3])
        raise ValueError(
            f"`{name}` {wrong[0][0]} {told}{more} of {type(model).__name__}, which would be random; is it a checkpoint "
            "of that class, and complete?"
        )
