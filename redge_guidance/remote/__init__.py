"""Models whose Python code comes with their checkpoint, as most published diffusion language models do.

Such code was mostly written for transformers 4. It is run in a view of transformers that shows what version 4 had, so
that nothing is patched for anybody else, and its weights are loaded here, by name, onto a model whose buffers were
computed.
"""

from redge_guidance.remote.legacy import REMOTE, LegacyCache
from redge_guidance.remote.loading import is_remote, load_config, load_model
from redge_guidance.remote.parts import check_loaded, load_pipeline, read_index
from redge_guidance.remote.weights import weight_files

__all__ = [
    "REMOTE",
    "LegacyCache",
    "check_loaded",
    "is_remote",
    "load_config",
    "load_model",
    "load_pipeline",
    "read_index",
    "weight_files",
]
