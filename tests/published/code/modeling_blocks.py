"""A block-causal decoder as such code was written for transformers 4, with every habit of it that version 5 dropped.

A list of tied weights, the "default" rotary table, frequencies that are in no file, names that moved or are gone, flash
attention, a cache that is read by index, `store_kv` that the outer class does not name.
"""

import torch
import triton
import triton.language as tl
from flash_attn import flash_attn_func
from flash_attn.ops.triton.layer_norm import rms_norm_fn
from torch import nn
from transformers.cache_utils import Cache, DynamicCache
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import LossKwargs, auto_docstring
from transformers.utils.import_utils import is_torch_fx_available

from .configuration_blocks import BlocksConfig

if is_torch_fx_available():
    raise RuntimeError("torch.fx was last asked for by version 4")

try:
    from not_installed_anywhere import faster
except ImportError:
    faster = None


@triton.autotune(configs=[triton.Config({"BLOCK": 64}, num_warps=4)], key=["n"])
@triton.jit
def kernel(x, n, BLOCK: tl.constexpr):
    tl.store(x, n)


class KwargsForCausalLM(LossKwargs): ...


class Rotary(nn.Module):
    def __init__(self, config, device=None):
        super().__init__()
        kind = "default"
        if config.rope_scaling is not None:
            kind = config.rope_scaling.get("rope_type", config.rope_scaling.get("type"))
        frequencies, self.attention_scaling = ROPE_INIT_FUNCTIONS[kind](config, device)
        self.register_buffer("inv_freq", frequencies, persistent=False)

    def forward(self, x, position_ids):
        angles = position_ids[..., None] * self.inv_freq
        angles = torch.cat([angles, angles], -1)[:, None]
        return angles.cos().to(x.dtype), angles.sin().to(x.dtype)


class Norm(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x):
        return rms_norm_fn(x, weight=self.weight, bias=None, eps=1e-6)


class Attention(nn.Module):
    def __init__(self, config, index):
        super().__init__()
        self.index, self.heads = index, config.num_attention_heads
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=False)
        self.out = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(self, x, cos, sin, attention_mask, past, store_kv):
        batch, length, size = x.shape
        q, k, v = self.qkv(x).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        q, k = (self.turned(y, cos, sin) for y in (q, k))
        if past is not None and store_kv:
            k, v = past.update(k, v, self.index)
        elif past is not None and len(past) > self.index:
            before = past[self.index]
            k, v = torch.cat([before[0], k], -2), torch.cat([before[1], v], -2)
        if attention_mask.bool().all():
            seen = flash_attn_func(*(y.transpose(1, 2) for y in (q, k, v)), causal=False).transpose(1, 2)
        else:
            seen = nn.functional.scaled_dot_product_attention(q, k, v, attention_mask.bool())
        return self.out(seen.transpose(1, 2).reshape(batch, length, size))

    def turned(self, x, cos, sin):
        a, b = x.chunk(2, -1)
        return x * cos + torch.cat([-b, a], -1) * sin


class Layer(nn.Module):
    def __init__(self, config, index):
        super().__init__()
        self.norm, self.attention = Norm(config.hidden_size), Attention(config, index)
        self.mlp = nn.Sequential(nn.Linear(config.hidden_size, 32), nn.SiLU(), nn.Linear(32, config.hidden_size))

    def forward(self, x, *args):
        x = x + self.attention(self.norm(x), *args)
        return x + self.mlp(x)


class BlocksPreTrainedModel(PreTrainedModel):
    config_class = BlocksConfig
    base_model_prefix = "model"
    _no_split_modules = ["Layer"]
    _supports_cache_class = True
    _supports_sdpa = True

    def _init_weights(self, module):
        raise RuntimeError("weights that were read must not be drawn anew")


@auto_docstring
class BlocksModel(BlocksPreTrainedModel):
    def __init__(self, config):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.layers = nn.ModuleList([Layer(config, i) for i in range(2)])
        self.norm, self.rotary_emb = Norm(config.hidden_size), Rotary(config)
        self.post_init()

    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        position_ids=None,
        past_key_values=None,
        use_cache=None,
        store_kv=None,
        return_dict=None,
        **kwargs,
    ):
        use_cache = self.config.use_cache if use_cache is None else use_cache
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache()
        assert past_key_values is None or isinstance(past_key_values, Cache)
        x = self.embed_tokens(input_ids)
        cos, sin = self.rotary_emb(x, position_ids)
        for layer in self.layers:
            x = layer(x, cos, sin, attention_mask, past_key_values, store_kv)
        return BaseModelOutputWithPast(last_hidden_state=self.norm(x), past_key_values=past_key_values)


class BlocksForCausalLM(BlocksPreTrainedModel):
    _tied_weights_keys = ["lm_head.weight"]

    def __init__(self, config):
        super().__init__(config)
        self.model = BlocksModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self):
        return self.model.embed_tokens

    def get_output_embeddings(self):
        return self.lm_head

    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        position_ids=None,
        past_key_values=None,
        use_cache=None,
        return_dict=None,
        **kwargs,
    ):
        assert self.config.use_return_dict
        out = self.model(input_ids, attention_mask, position_ids, past_key_values, use_cache, **kwargs)
        logits = self.lm_head(out.last_hidden_state)
        return CausalLMOutputWithPast(logits=logits, past_key_values=out.past_key_values)
