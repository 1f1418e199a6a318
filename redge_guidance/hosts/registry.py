"""Which adapter is for which pipeline."""

from importlib.metadata import version
from typing import Any, TypeVar

from redge_guidance.hosts.base import Host

_HOSTS: list[type[Host]] = []  # the newest first
_Kind = TypeVar("_Kind", bound=type[Host])


def register_host(kind: _Kind) -> _Kind:
    """Class decorator: guidance asks this adapter before all that were registered before it, ours included.

    A class of the same module and name, as when a notebook's cell runs again, is replaced.
    """
    if not (isinstance(kind, type) and issubclass(kind, Host)):
        raise ValueError(f"`register_host` takes a class derived from Host, got {kind!r}.")
    unregister_host(kind)
    _HOSTS.insert(0, kind)
    return kind


def unregister_host(kind: type[Host]) -> None:
    """Forget an adapter; does nothing where it is not registered."""
    name = (kind.__module__, kind.__qualname__)
    _HOSTS[:] = [host for host in _HOSTS if (host.__module__, host.__qualname__) != name]


def registered_hosts() -> tuple[type[Host], ...]:
    """In the order in which they are asked."""
    return tuple(_HOSTS)


def supports(pipe: Any) -> str | None:
    """What guidance would guide in `pipe`, and at which of its scheduler's methods; None where it cannot.

    >>> supports(object()) is None
    True
    """
    return next((host.description for host in _HOSTS if host.matches(pipe)), None)


def makes_images(pipe: Any) -> bool:
    """Whether the adapter for `pipe` says so; False where there is none."""
    return next((host.makes_images for host in _HOSTS if host.matches(pipe)), False)


def find_host(pipe: Any) -> type[Host]:
    """The adapter for `pipe`.

    Raises:
        ValueError: no adapter matches.
    """
    for host in _HOSTS:
        if host.matches(pipe):
            return host
    kind = getattr(getattr(pipe, "config", None), "model_type", None)
    if kind is not None and callable(getattr(pipe, "forward", None)):
        raise ValueError(
            f"`pipe` must be a pipeline, got the model {type(pipe).__name__} of type {kind!r}, which has no scheduler "
            f"whose steps could be guided; {_pipeline_for(pipe, str(kind))}; or pass its `tokenizer`, to guide its "
            "forward."
        )
    scheduler = type(getattr(pipe, "scheduler", None)).__name__
    raise ValueError(
        f"`pipe` must be a pipeline with a discrete scheduler that guidance knows, got {type(pipe).__name__} with "
        f"scheduler {scheduler}; supported: {'; '.join(host.description for host in reversed(_HOSTS))}; samplers that "
        f"take a function: `redge_guidance.hosts.callables`. A pipeline is added by one small class with "
        f"`@register_host`, as CONTRIBUTING.md shows."
    )


def _pipeline_for(model: Any, kind: str) -> str:
    """What to do with a model of transformers."""
    ours = "redge_guidance.pipelines"
    if kind.startswith("llada2"):
        return "guide `diffusers.LLaDA2Pipeline(model, scheduler=BlockRefinementScheduler(), tokenizer=tokenizer)`"
    if kind.startswith("diffusion_gemma"):
        return (
            "guide `diffusers.DiffusionGemmaPipeline(model, scheduler, processor)`, or give "
            "`redge_guidance.hosts.callables.GuidanceLogitsProcessor` to `model.generate(logits_processor=[...])`"
        )
    if hasattr(model, "diffusion_generate"):
        return (
            f'guide `{ours}.MaskedTextPipeline.from_pretrained(name, family="dream")`, or give '
            "`redge_guidance.hosts.callables.DreamLogitsHook` to "
            "`model.diffusion_generate(generation_logits_hook_func=...)`"
        )
    return (
        f"guide `{ours}.TextPipeline.from_pretrained(name)`, or `MaskedTextPipeline(model, tokenizer, "
        "MaskedDiffusionScheduler())` of the same module around the model that you have (of uniform diffusion "
        "`UniformTextPipeline`)"
    )


def explain(host: Host, seam: str, error: Exception) -> Exception:
    """What to raise for an error of `host.read`: one about versions where it was tested with some, else the error."""
    reader = next(kind for kind in type(host).__mro__ if "read" in vars(kind))
    tested = vars(reader).get("tested_with", {})
    if not tested or not isinstance(error, KeyError | AttributeError):
        return error
    known = " and ".join(f"{name} {tested[name]} (here {version(name)})" for name in tested)
    scheduler = type(host.pipe.scheduler).__name__
    return RuntimeError(
        f"{reader.__name__} cannot read a denoising step off {scheduler}.{seam}: {type(error).__name__} {error}; "
        f"tested with {known}. Install a version that was."
    )
