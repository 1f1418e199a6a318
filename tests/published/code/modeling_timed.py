"""A diffusion transformer as MDLM's authors write it: no `post_init`, `import transformers`, flash-attn's rotary."""

import flash_attn
import flash_attn.layers.rotary
import torch
import transformers
from torch import nn
from transformers import modeling_outputs

from .configuration_timed import TimedConfig


class Backbone(nn.Module):
    def __init__(self, config):
        super().__init__()
        size = config.hidden_dim
        self.embedding = nn.Parameter(torch.empty((config.vocab_size, size)))
        torch.nn.init.normal_(self.embedding)
        self.register_buffer("inv_freq", 1.0 / (100.0 ** (torch.arange(0, 8, 2).float() / 8)))
        self.qkv = nn.Linear(size, 3 * size, bias=False)
        self.time = nn.Linear(1, size)
        self.head = nn.Linear(size, config.vocab_size)
        self.head.weight.data.zero_()
        self.positions = torch.arange(config.model_length)  # no buffer, as BD3-LM's mask

    def forward(self, indices, sigma):
        x = self.embedding[indices] + self.time(sigma[:, None].to(self.time.weight))[:, None]
        qkv = self.qkv(x).view(*indices.shape, 3, 2, 8)
        angles = self.positions[: indices.shape[1], None] * self.inv_freq
        qkv = flash_attn.layers.rotary.apply_rotary_emb_qkv_(qkv, angles.cos().to(qkv), angles.sin().to(qkv))
        lengths = torch.arange(0, indices.numel() + 1, indices.shape[1], dtype=torch.int32)
        seen = flash_attn.flash_attn_interface.flash_attn_varlen_qkvpacked_func(
            qkv.flatten(0, 1), lengths, indices.shape[1], 0.0, causal=False
        )
        return self.head(x + seen.reshape(x.shape))


class Timed(transformers.PreTrainedModel):
    config_class = TimedConfig
    base_model_prefix = "timed"

    def __init__(self, config):
        super().__init__(config)
        self.backbone = Backbone(config)

    def forward(self, input_ids=None, timesteps=None, output_hidden_states=None, return_dict=None):
        return_dict = return_dict if return_dict is not None else self.config.use_return_dict
        if not self.config.time_conditioning:
            timesteps = torch.zeros_like(timesteps)
        logits = self.backbone(indices=input_ids, sigma=timesteps)
        return modeling_outputs.MaskedLMOutput(logits=logits) if return_dict else logits
