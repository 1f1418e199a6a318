"""Adapters: where a pipeline keeps its logits. One small module a host; the rest of the package knows none by name."""

from importlib.metadata import version
from typing import Any

from redge_guidance.hosts.amused import AmusedHost
from redge_guidance.hosts.base import DenoisingStep, Host, is_a
from redge_guidance.hosts.diffusion_gemma import DiffusionGemmaHost
from redge_guidance.hosts.llada2 import LLaDA2Host
from redge_guidance.hosts.masked_image import MaskedImageHost
from redge_guidance.hosts.masked_text import MaskedTextHost
from redge_guidance.hosts.uniform_text import UniformTextHost

__all__ = ["HOSTS", "DenoisingStep", "Host", "find_host", "is_a", "supports", "versions"]

# What a user writes to add a host; a test runs it.
EXAMPLE = """\
from redge_guidance.hosts import HOSTS, DenoisingStep, Host, is_a

class MyHost(Host):
    description = "MyPipeline: hidden positions, at scheduler.step"

    @classmethod
    def matches(cls, pipe):
        return is_a(pipe, "MyPipeline")

    def read(self, seam, arguments):
        ids = arguments["sample"]  # (batch, length)
        free = ids == arguments["mask_token_id"]
        return DenoisingStep(
            logits=arguments["model_output"],
            ids=ids,
            free=free,
            attention_mask=ids != self.pipe.tokenizer.pad_token_id,
            temperature=arguments.get("temperature") or 1.0,
            progress=arguments["timestep"] / self.pipe.scheduler.num_inference_steps,
            tokenizer=self.pipe.tokenizer,
        )

HOSTS.append(MyHost)
"""

HOSTS: list[type[Host]] = [
    MaskedImageHost,
    MaskedTextHost,
    UniformTextHost,
    LLaDA2Host,
    DiffusionGemmaHost,
    AmusedHost,
]


# What the adapters were tested with; the discrete schedulers of diffusers are still changing.
_TESTED = {"diffusers": "0.40 to 0.42", "transformers": "5.0 to 5.23"}


def versions() -> str:
    """Versions that the adapters were tested with, and those that are installed, for errors."""
    parts = [f"{name} {tested} (here {version(name)})" for name, tested in _TESTED.items()]
    return f"tested with {' and '.join(parts)}"


def supports(pipe: Any) -> str | None:
    """What guidance would guide in `pipe`, and at which of its scheduler's methods; None where it cannot.

    >>> supports(object()) is None
    True
    """
    return next((host.description for host in HOSTS if host.matches(pipe)), None)


def find_host(pipe: Any) -> type[Host]:
    """The adapter for `pipe`.

    Raises:
        ValueError: no adapter matches.
    """
    for host in HOSTS:
        if host.matches(pipe):
            return host
    scheduler = type(getattr(pipe, "scheduler", None)).__name__
    raise ValueError(
        f"`pipe` must be a pipeline with a discrete scheduler that guidance knows, got {type(pipe).__name__} with "
        f"scheduler {scheduler}; supported: {'; '.join(host.description for host in HOSTS)}; samplers that take a "
        f"function: `redge_guidance.hosts.callables`; {versions()}. To add a pipeline:\n\n" + EXAMPLE
    )
