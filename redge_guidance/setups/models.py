"""The pipeline of a set-up: loaded by its name, placed, with an adapter, compiled; and its names again."""

import inspect
from pathlib import Path
from typing import Any

import torch

from redge_guidance.checks import plain
from redge_guidance.hub import loading, resolve
from redge_guidance.pipelines import MaskedImagePipeline, TextPipeline
from redge_guidance.recipe import recipe_of
from redge_guidance.remote import load_pipeline, read_index
from redge_guidance.setups.devices import own_device
from redge_guidance.setups.options import Options
from redge_guidance.setups.rewards import unwritable
from redge_guidance.setups.schema import OPTIONS

DEFAULT_MODEL = "builtin:tatoeba-masked"
_OF_DIFFUSERS = ("AmusedPipeline", "DiffusionGemmaPipeline", "LLaDA2Pipeline")  # which have one name for a checkpoint
_OF_TEXTS = ("tokenizer", "family", "mask_token_id", "weights_only")
_IMAGES = ("MaskedImagePipeline", "AmusedPipeline")
_MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")  # of torch.compile
_PLACES = ("device", "device_map", "cpu_offload", "adapter", "compile", "model_kwargs", "model")


def pipeline_class(options: Options) -> str | None:
    """Name of the class of pipelines that a model is; None: it is a model alone, of texts."""
    name, revision = _name(options), options.get("revision")
    path = resolve(name, revision)
    index = Path(path) / "model_index.json"
    if not Path(path).is_dir():
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError

        try:
            index = Path(hf_hub_download(path, "model_index.json", revision=revision))
        except (EntryNotFoundError, OSError):  # no pipeline: whoever loads it says what is wrong
            return None
    if not index.is_file():
        return None
    with loading(name):
        kind: str = read_index(index)["_class_name"]
    return kind


def makes_images(kind: str | None) -> bool:
    """Whether pipelines of that class make images."""
    return kind in _IMAGES


def load_pipe(options: Options, kind: str | None, consent: bool) -> Any:
    """The pipeline that the settings of the model name, where they want it.

    Args:
        options: those of the model among them.
        kind: of `pipeline_class`.
        consent: whether the caller agrees that code of the checkpoint runs, if the settings ask for it.

    Raises:
        ValueError, OSError: as `from_pretrained`; a device that is not there; settings that exclude one another.
    """
    trust = bool(options.get("trust_remote_code"))
    if trust and not consent and "trust_remote_code" in options.places:
        raise ValueError(
            f"{options.spell('trust_remote_code')} asks to run code that comes with `{_name(options)}`; read it, and "
            "pass `trust_remote_code=True` too."
        )
    device = device_of(options.get("device", "cpu"), options.spell("device"))
    placed = [name for name in ("device_map", "cpu_offload") if name in options]
    if len(placed) == 2 or (placed and placed[0] == "device_map" and "device" in options):
        other = "cpu_offload" if len(placed) == 2 else "device"
        raise ValueError(f"{options.spell('device_map')} cannot be used with {options.spell(other)}; leave one out.")
    pipe = _loaded(options, kind, trust)
    if "adapter" in options:
        _adapt(pipe, options)
    if "compile" in options:
        _compile(pipe, options)
    if "cpu_offload" in options:
        return _offload(pipe, options, device)
    return pipe if "device_map" in options else pipe.to(device)


def device_of(name: str, spelled: str = "`device`") -> torch.device:
    """The torch device; ValueError where this machine has none of that name, or it does not compute."""
    try:
        device = torch.device(own_device(name))
        torch.Generator(device)
        (torch.ones(1, device=device) + 1).item()
    except Exception as error:  # whatever the backend of a device raises where there is none
        told = " ".join(str(error).split())[:200]
        raise ValueError(f"{spelled} must be a device of this machine, got {name!r}: {told}") from error
    return device


def generator_of(pipe: Any) -> torch.nn.Module:
    """The model of a pipeline that is guided: what an adapter is for, and what is compiled."""
    for name in ("model", "transformer"):
        found = getattr(pipe, name, None)
        if isinstance(found, torch.nn.Module):
            return found
    raise ValueError(f"`pipe` must have a `model` or a `transformer`, and {type(pipe).__name__} has neither.")


def settings_of(pipe: Any) -> dict[str, Any]:
    """The settings that `load_pipe` makes an equal pipeline from.

    Raises:
        ValueError: a pipeline around a model in memory, or made with an argument that no file holds.
    """
    recipe, name = recipe_of(pipe), type(pipe).__name__
    if recipe is None:
        stored = getattr(pipe, "config", {}).get("_name_or_path") if name in _OF_DIFFUSERS else None
        if not stored:
            raise ValueError(
                f"`pipe` is a {name} that no checkpoint was named for; save it by `pipe.save_pretrained(folder)`, and "
                "load it by `from_pretrained(folder)`."
            )
        found: dict[str, Any] = {"model": str(stored)}
    else:
        found = {"model": recipe.arguments["name"]}
        more: dict[str, Any] = {}
        for key, value in recipe.arguments.items():
            if key in ("name", "dtype", "token") or value is None or value is False:
                continue
            if (lost := unwritable(value)) is not None:
                raise ValueError(
                    f"`{key}` of `pipe` is {lost}, which no file holds; load the pipeline with names and plain values."
                )
            known = key in OPTIONS and OPTIONS[key].group == "model" and key not in _PLACES
            (found if known or key == "device_map" else more)[key] = plain(value)
        if more:
            found["model_kwargs"] = more
    dtype = str(getattr(generator_of(pipe), "dtype", torch.float32)).removeprefix("torch.")
    if dtype in OPTIONS["dtype"].choices and dtype != "float32":
        found["dtype"] = dtype
    device = str(pipe.device)
    if "device_map" not in found and device != "cpu":
        found["device"] = device
    return found


def _name(options: Options) -> str:
    name: str = options.get("model", DEFAULT_MODEL)
    return name


def _loaded(options: Options, kind: str | None, trust: bool) -> Any:
    name, dtype = _name(options), getattr(torch, options.get("dtype", "float32"))
    more: dict[str, Any] = dict(_mapping(options, "model_kwargs"))
    more |= {key: options.get(key) for key in ("revision", "device_map") if key in options}
    if trust:
        more["trust_remote_code"] = True
    if kind in _OF_DIFFUSERS or makes_images(kind):
        for key in _OF_TEXTS:
            if key in options:
                raise ValueError(f"{options.spell(key)} cannot be used with {name}, which is a {kind}.")
    if kind == "MaskedImagePipeline":
        return MaskedImagePipeline.from_pretrained(name, dtype=dtype, **more)
    if kind in _OF_DIFFUSERS:
        import diffusers

        with loading(name):
            return load_pipeline(getattr(diffusers, kind or ""), resolve(name, options.get("revision")), dtype, **more)
    more |= {key: options.get(key) for key in _OF_TEXTS if key in options}
    return TextPipeline.from_pretrained(name, dtype=dtype, **more)


def _mapping(options: Options, name: str) -> dict[str, Any]:
    value = options.get(name, {})
    if not isinstance(value, dict):
        raise ValueError(f"{options.spell(name)} must be names and values, '{{name: value}}', got {value!r:.80}.")
    return value


def _adapt(pipe: Any, options: Options) -> None:
    """PEFT puts its layers into the model itself, whose class stays as it is."""
    name = options.get("adapter")
    try:
        from peft import PeftModel
    except ImportError as error:
        raise ValueError(f"{options.spell('adapter')} needs peft: pip install peft.") from error
    model = generator_of(pipe)
    with loading(name):
        adapted = PeftModel.from_pretrained(model, resolve(name))
    if adapted.get_base_model() is not model:
        raise ValueError(
            f"{options.spell('adapter')} must be of a kind that PEFT puts into the layers of a model, such as LoRA, "
            f"got {name}."
        )
    model.eval().requires_grad_(False)


def _compile(pipe: Any, options: Options) -> None:
    how = options.get("compile")
    if how is False:
        return
    if how is not True and not isinstance(how, str):
        raise ValueError(f"{options.spell('compile')} must be true or a mode of torch.compile, got {how!r:.80}.")
    model = generator_of(pipe)
    if isinstance(how, str) and how not in _MODES:
        raise ValueError(f"{options.spell('compile')} must be true or one of {', '.join(_MODES)}, got {how!r:.80}.")
    model.compile(**({} if how is True else {"mode": how}))


def _offload(pipe: Any, options: Options, device: torch.device) -> Any:
    how = options.get("cpu_offload")
    if device.type == "cpu" and "device" in options:
        raise ValueError(f"{options.spell('cpu_offload')} is for an accelerator, got {options.spell('device')} cpu.")
    offload = pipe.enable_model_cpu_offload if how == "model" else pipe.enable_sequential_cpu_offload
    try:
        if "device" not in options and (found := torch.accelerator.current_accelerator()) is not None:
            device = torch.device(own_device(found.type))
            offload(**({"device": device} if device.index is not None else {}))
        else:
            offload(**({"device": device} if "device" in options else {}))
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"{options.spell('cpu_offload')} is not possible here: {error}") from error
    return pipe


def call_settings(pipe: Any, options: Options) -> dict[str, Any]:
    """Settings for the call of the pipeline, all of which it takes.

    Raises:
        ValueError: one that it does not take, with those that it does.
    """
    taken = inspect.signature(type(pipe).__call__).parameters
    found = options.of("call")
    for name in found:
        if name not in taken:
            known = ", ".join(key for key, option in OPTIONS.items() if option.group == "call" and key in taken)
            raise ValueError(
                f"{options.spell(name)} cannot be used with {options.get('model', DEFAULT_MODEL)}, whose pipeline "
                f"{type(pipe).__name__} takes {known}."
            )
    return found
