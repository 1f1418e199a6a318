"""Training-free reward guidance for pretrained discrete diffusion models."""

from redge_guidance.attach import GuidanceHandle, guide
from redge_guidance.config import GuidanceConfig
from redge_guidance.estimators import ReDGE, StraightThrough, redge, straight_through
from redge_guidance.loop import LogitsGuidance
from redge_guidance.samples.tokens import RelaxedTokens
from redge_guidance.version import __version__ as __version__

__all__ = [
    "GuidanceConfig",
    "GuidanceHandle",
    "LogitsGuidance",
    "ReDGE",
    "RelaxedTokens",
    "StraightThrough",
    "guide",
    "redge",
    "straight_through",
]
