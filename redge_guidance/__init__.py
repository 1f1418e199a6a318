"""Training-free reward guidance for pretrained discrete diffusion models."""

from typing import TYPE_CHECKING

from redge_guidance.lazy import lazily
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

__getattr__, __dir__ = lazily(__name__, _HOMES)
