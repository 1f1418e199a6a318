"""A config that keeps `use_cache` among what it hands on."""

from transformers import PretrainedConfig


class PlainConfig(PretrainedConfig):
    model_type = "llada"

    def __init__(self, use_cache: bool = False, weight_tying: bool = False, **kwargs):
        super().__init__(use_cache=use_cache, weight_tying=weight_tying, **kwargs)
