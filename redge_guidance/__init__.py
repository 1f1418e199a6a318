"""Training-free reward guidance for pretrained discrete diffusion models."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from redge_guidance.version import __version__ as __version__

if TYPE_CHECKING:
    from redge_guidance.attach import GuidanceHandle, guide
    from redge_guidance.config import GuidanceConfig
    from redge_guidance.estimators import ReDGE, StraightThrough, redge, straight_through
    from redge_guidance.generation import generate
    from redge_guidance.loop import LogitsGuidance
    from redge_guidance.samples.tokens import RelaxedTokens
    from redge_guidance.setups.setup import load, save

__all__ = [
    "GuidanceConfig",
    "GuidanceHandle",
    "LogitsGuidance",
    "ReDGE",
    "RelaxedTokens",
    "StraightThrough",
    "generate",
    "guide",
    "load",
    "redge",
    "save",
    "straight_through",
]

_HOMES = {  # nothing is imported before it is used, so that the command answers at once
    "GuidanceConfig": "config",
    "GuidanceHandle": "attach",
    "LogitsGuidance": "loop",
    "ReDGE": "estimators",
    "RelaxedTokens": "samples.tokens",
    "StraightThrough": "estimators",
    "generate": "generation",
    "guide": "attach",
    "load": "setups.setup",
    "redge": "estimators",
    "save": "setups.setup",
    "straight_through": "estimators",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
