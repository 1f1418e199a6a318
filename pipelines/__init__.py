"""How discrete diffusion models sample. Nothing here knows of rewards or guidance."""

from redge_guidance.pipelines.image_transformer import MaskedImageTransformer
from redge_guidance.pipelines.masked_image import MaskedImagePipeline, MaskedImagePipelineOutput
from redge_guidance.pipelines.masked_scheduler import MaskedDiffusionScheduler, MaskedDiffusionSchedulerOutput
from redge_guidance.pipelines.masked_text import MaskedTextPipeline
from redge_guidance.pipelines.text import TextPipeline, TextPipelineOutput
from redge_guidance.pipelines.uniform_text import UniformTextPipeline

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
