"""As LLaDA's authors write it: `tie_weights(self)`, a model within a model, `config.use_cache`."""

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from .configuration_plain import PlainConfig


class Inner(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.wte = nn.Embedding(config.vocab_size, config.d_model)
        self.mix = nn.MultiheadAttention(config.d_model, 2, batch_first=True)
        self.ff_out = nn.Linear(config.d_model, config.vocab_size, bias=False)

    def forward(self, ids):
        x = self.wte(ids)
        x = x + torch.sin(torch.arange(ids.shape[1])[:, None] * torch.arange(1, 17) / 4).to(x)
        x = x + self.mix(x, x, x, need_weights=False)[0]
        return x @ self.ff_out.weight.T


class PlainModelLM(PreTrainedModel):
    config_class = PlainConfig
    base_model_prefix = "model"

    def __init__(self, config, model=None):
        super().__init__(config)
        self.model = Inner(config) if model is None else model

    def forward(self, input_ids=None, attention_mask=None, use_cache=None, return_dict=None):
        use_cache = self.config.use_cache if use_cache is None else use_cache
        assert use_cache is False
        assert attention_mask is None
        return CausalLMOutputWithPast(logits=self.model(input_ids))

    def get_input_embeddings(self):
        return self.model.wte

    def get_output_embeddings(self):
        return self.model.ff_out

    def tie_weights(self):
        if self.config.weight_tying:
            self.model.ff_out = self.model.wte
