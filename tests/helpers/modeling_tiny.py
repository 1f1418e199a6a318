"""A model with code of its own, as a checkpoint of Dream brings it; tests copy this file beside its weights."""

import torch
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import MaskedLMOutput


class TinyConfig(PretrainedConfig):
    model_type = "Dream"

    def __init__(self, vocab_size=8, **kwargs):
        self.vocab_size = vocab_size
        super().__init__(**kwargs)


class TinyModel(PreTrainedModel):
    config_class = TinyConfig

    def __init__(self, config):
        super().__init__(config)
        self.embed = torch.nn.Embedding(config.vocab_size, 16)
        self.attend = torch.nn.MultiheadAttention(16, 1, batch_first=True)
        self.head = torch.nn.Linear(16, config.vocab_size)
        self.post_init()

    def forward(self, input_ids, attention_mask=None, position_ids=None):
        if position_ids is None:
            position_ids = torch.arange(input_ids.shape[1], device=input_ids.device)[None]
        x = self.embed(input_ids) + torch.sin(position_ids[..., None] * torch.arange(1, 17) / 4)
        forbidden = None if attention_mask is None else ~attention_mask[:, 0]
        x = x + self.attend(x, x, x, attn_mask=forbidden, need_weights=False)[0]
        return MaskedLMOutput(logits=self.head(x))
