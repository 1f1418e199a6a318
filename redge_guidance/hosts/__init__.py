"""Adapters: where a pipeline keeps its logits. One small module a host; the rest of the package knows none by name."""

from typing import Any

from redge_guidance.hosts.base import DenoisingStep, Host
from redge_guidance.hosts.diffusion_gemma import DiffusionGemmaHost
from redge_guidance.hosts.llada2 import LLaDA2Host
from redge_guidance.hosts.masked_text import MaskedTextHost

__all__ = ["HOSTS", "DenoisingStep", "Host", "find_host", "supports"]

HOSTS: list[type[Host]] = [MaskedTextHost, LLaDA2Host, DiffusionGemmaHost]


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
        f"scheduler {scheduler}; supported: {'; '.join(host.description for host in HOSTS)}. For another pipeline, "
        "derive an adapter from `redge_guidance.hosts.Host` and append it to `redge_guidance.hosts.HOSTS`."
    )
