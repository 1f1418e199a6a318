"""A config of transformers 4: it hands on what it does not know, and relies on fields that every config had."""

from transformers.configuration_utils import PretrainedConfig


class BlocksConfig(PretrainedConfig):
    model_type = "sdar"
    keys_to_ignore_at_inference = ["past_key_values"]

    def __init__(self, hidden_size=16, num_attention_heads=2, rope_theta=100.0, rope_scaling=None, **kwargs):
        self.hidden_size = hidden_size
        self.num_attention_heads = num_attention_heads
        self.max_position_embeddings = 64
        self.rope_theta = rope_theta
        self.rope_scaling = rope_scaling
        super().__init__(tie_word_embeddings=kwargs.pop("tie_word_embeddings", False), **kwargs)
