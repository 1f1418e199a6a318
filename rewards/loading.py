"""Models of transformers as rewards, loaded together with what prepares their input."""

import inspect
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import torch

from redge_guidance.hub import loading, resolve, using
from redge_guidance.recipe import remembered
from redge_guidance.remote import check_loaded

_HUB_ARGUMENTS = ("revision", "token", "cache_dir")


class LoadedReward:
    """Mixin of rewards whose constructor takes a model, its processors, and then what is the reward's own.

    Subclasses say which class loads the model, `auto_class` or `model_class`, and which `processors` go with it.
    """

    auto_class: ClassVar[Any]
    of_pipelines: ClassVar[bool] = False  # whether it can be made of the model of a pipeline
    unread_weights: ClassVar[tuple[str, ...]] = ()  # beginnings of names of weights that the reward does without

    @classmethod
    @remembered
    def from_pretrained(
        cls,
        name: str | os.PathLike[str],
        *args: Any,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        device_map: Any = None,
        trust_remote_code: bool = False,
        model_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Load a model and its processors from a folder or a hub id, or an embedded checkpoint, `"builtin:..."`.

        Args:
            name: embedded checkpoint, folder, or hub id; for `FluencyReward` also the folder of a
                `MaskedTextPipeline`, such as `"builtin:tatoeba-masked"`.
            *args, **kwargs: what the constructor takes after model and processors; `revision`, `token` and `cache_dir`
                go to the hub, for the model and for the processors.
            device, dtype: of the model.
            device_map: as in transformers; `device` is then not used.
            trust_remote_code: run Python code that comes with the checkpoint.
            model_kwargs: for the `from_pretrained` of the model alone, such as `quantization_config`.

        Raises:
            ValueError, FileNotFoundError: `name` is unknown, or what the constructor raises.
            OSError: `name` is a hub id that cannot be loaded.
        """
        hub = {key: kwargs.pop(key) for key in _HUB_ARGUMENTS if key in kwargs}
        path = resolve(name, hub.get("revision"), hub.get("cache_dir"))
        hub["trust_remote_code"] = trust_remote_code
        placed = {} if device_map is None else {"device_map": device_map}
        weights, reading = _parts_of(path) if cls.of_pipelines else (path, path)
        with _telling(cls, name, weights), loading(name):
            processors = cls.processors(reading, hub)
            model, found = cls.model_class(weights, hub).from_pretrained(
                weights, dtype=dtype, output_loading_info=True, **hub, **placed, **(model_kwargs or {})
            )
            check_loaded(f"{name}", model, found, cls.unread_weights)
        make: Any = cls
        parts = (model if placed else model.to(device), *processors)
        inspect.signature(make).bind(*parts, *args, **kwargs)  # a TypeError is about the arguments
        with using(f"{cls.__name__} of `{name}`"):
            return make(*parts, *args, **kwargs)

    @classmethod
    def model_class(cls, path: str, hub: dict[str, Any]) -> Any:
        """The class whose `from_pretrained` loads the model.

        Args:
            path: a folder, or a hub id.
            hub: `trust_remote_code`, and `revision`, `token` and `cache_dir` where they were passed.
        """
        return cls.auto_class

    @classmethod
    def processors(cls, path: str, hub: dict[str, Any]) -> list[Any]:
        """What the constructor takes after the model: tokenizer, image processor; `path` and `hub` as above."""
        raise NotImplementedError


def _parts_of(path: str) -> tuple[str, str]:
    """Where the model is, and what prepares its input: in one place, or in two folders of a pipeline's.

    The latter where a pipeline says that it calls a masked model as transformers does: no shift, no time.
    """
    folder, index = Path(path), Path(path) / "model_index.json"
    if index.is_file() and not (folder / "config.json").is_file():
        told = json.loads(index.read_text())
        whole = (folder / "model").is_dir() and (folder / "tokenizer").is_dir()
        plain = not told.get("shift_logits") and told.get("time_input") is None
        if told.get("_class_name") == "MaskedTextPipeline" and plain and whole:
            return str(folder / "model"), str(folder / "tokenizer")
    return path, path


def _kind_of(folder: Path) -> str:
    """What a folder without a config of a model is, in words."""
    files = {
        "model_index.json": "a pipeline of diffusers",
        "adapter_config.json": "an adapter without its model",
        "tokenizer_config.json": "a tokenizer alone",
        "tokenizer.json": "a tokenizer alone",
    }
    return next((kind for file, kind in files.items() if (folder / file).is_file()), "a folder without config.json")


@contextmanager
def _telling(kind: type, name: Any, path: str) -> Iterator[None]:
    """What transformers says at length of a checkpoint that is none for such a reward, in a few words."""
    told = {
        "Unrecognized configuration class": "a model of another kind",
        "Unrecognized model": "one whose config.json has no `model_type` that transformers knows",
        "instantiate the backend tokenizer": "one without a tokenizer",
        "load image processor": "one without an image processor",
    }
    try:
        yield
    except (ValueError, OSError) as error:
        found = next((words for sign, words in told.items() if sign in str(error)), None)
        if os.path.isdir(path) and not os.path.isfile(os.path.join(path, "config.json")):
            found = _kind_of(Path(path))
        if found is None:
            raise
        raise ValueError(f"`name` must be a checkpoint that {kind.__name__} can read, got {name}, {found}.") from error
