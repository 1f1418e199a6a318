"""How discrete diffusion models sample. Nothing here knows of rewards or guidance."""

from redge_guidance.pipelines.masked_scheduler import MaskedDiffusionScheduler, MaskedDiffusionSchedulerOutput
from redge_guidance.pipelines.masked_text import MaskedTextPipeline, MaskedTextPipelineOutput

__all__ = [
    "MaskedDiffusionScheduler",
    "MaskedDiffusionSchedulerOutput",
    "MaskedTextPipeline",
    "MaskedTextPipelineOutput",
]
