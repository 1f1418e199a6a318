"""Stands in for the hub's file of this name: the same interface and names of weights around the authors' backbone."""

from types import SimpleNamespace

import torch
import transformers
from transformers import modeling_outputs

from .configuration_mdlm import MDLMConfig
from .dit import DIT


class Backbone(DIT):
    def __init__(self, config):
        model = SimpleNamespace(hidden_size=config.hidden_dim, cond_dim=config.cond_dim, n_blocks=config.n_blocks,
                                n_heads=config.n_heads, dropout=config.dropout, scale_by_sigma=True)  # fmt: skip
        super().__init__(SimpleNamespace(model=model), config.vocab_size)


class MDLM(transformers.PreTrainedModel):
    config_class = MDLMConfig
    base_model_prefix = "mdlm"

    def __init__(self, config):
        super().__init__(config)
        self.backbone = Backbone(config)

    def forward(self, input_ids=None, timesteps=None, output_hidden_states=None, return_dict=None):
        if not self.config.time_conditioning:
            timesteps = torch.zeros_like(timesteps)
        logits = self.backbone(input_ids, timesteps)
        return_dict = return_dict if return_dict is not None else self.config.use_return_dict
        return modeling_outputs.MaskedLMOutput(logits=logits) if return_dict else logits
