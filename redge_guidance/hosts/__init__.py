"""Adapters: where a pipeline keeps its logits. One small module a host; the rest of the package knows none by name."""

from redge_guidance.hosts import (  # noqa: F401 - they register themselves
    amused,
    diffusion_gemma,
    llada2,
    masked_image,
    masked_text,
    uniform_text,
)
from redge_guidance.hosts.base import Drawn, Host, in_block, is_a, share_done
from redge_guidance.hosts.registry import find_host, register_host, registered_hosts, supports, unregister_host
from redge_guidance.step import DenoisingStep

__all__ = [
    "DenoisingStep",
    "Drawn",
    "Host",
    "find_host",
    "in_block",
    "is_a",
    "register_host",
    "registered_hosts",
    "share_done",
    "supports",
    "unregister_host",
]
