"""How discrete diffusion models sample. Nothing here knows of rewards or guidance."""

from redge_guidance.pipelines.image.masked import MaskedImagePipeline, MaskedImagePipelineOutput
from redge_guidance.pipelines.image.transformer import MaskedImageTransformer
from redge_guidance.pipelines.scheduler import MaskedDiffusionScheduler, MaskedDiffusionSchedulerOutput
from redge_guidance.pipelines.text.base import TextPipeline
from redge_guidance.pipelines.text.masked import MaskedTextPipeline
from redge_guidance.pipelines.text.output import TextPipelineOutput
from redge_guidance.pipelines.text.uniform import UniformTextPipeline

__all__ = [
    "MaskedDiffusionScheduler",
    "MaskedDiffusionSchedulerOutput",
    "MaskedImagePipeline",
    "MaskedImagePipelineOutput",
    "MaskedImageTransformer",
    "MaskedTextPipeline",
    "TextPipeline",
    "TextPipelineOutput",
    "UniformTextPipeline",
]
