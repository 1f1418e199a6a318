"""Checkpoints with code of their own, as their authors publish them, and what their models are worth.

The values do not come from the loader: the same files are run with a base class of a few lines in the place of that of
transformers, as version 4 was to such code.
"""

import json
import math
import shutil
import sys
import types
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from tests.helpers.tiny import word_tokenizer

CODE = Path(__file__).parent / "code"
WORDS = ["[PAD]", "[EOS]", "[MASK]", *"abcdefghi"]
MASK = WORDS.index("[MASK]")
KINDS = {
    "blocks": {
        "architectures": ["BlocksForCausalLM"],
        "auto_map": {
            "AutoConfig": "configuration_blocks.BlocksConfig",
            "AutoModel": "modeling_blocks.BlocksModel",
            "AutoModelForCausalLM": "modeling_blocks.BlocksForCausalLM",
        },
        "model_type": "sdar",
        "block_size": 4,
        "mask_token_id": MASK,
        "use_cache": False,
        "rope_scaling": None,
    },
    "timed": {
        "architectures": ["Timed"],
        "auto_map": {
            "AutoConfig": "configuration_timed.TimedConfig",
            "AutoModelForMaskedLM": "modeling_timed.Timed",
        },
        "model_type": "mdlm",
        "model_length": 16,
        "return_dict": False,
    },
    "plain": {
        "architectures": ["PlainModelLM"],
        "auto_map": {
            "AutoConfig": "configuration_plain.PlainConfig",
            "AutoModel": "modeling_plain.PlainModelLM",
            "AutoModelForCausalLM": "modeling_plain.PlainModelLM",
        },
        "model_type": "llada",
        "mask_token_id": MASK,
        "d_model": 16,
        "max_sequence_length": 32,
    },
}
HEADS = {"blocks": "BlocksForCausalLM", "timed": "Timed", "plain": "PlainModelLM"}
_BUFFERS = {"timed": ["backbone.inv_freq"]}


def write(folder: Path, kind: str, tokenizer: bool = True, **config) -> Path:
    """A checkpoint of one of `KINDS`: code, config, weights, tokenizer; `config` changes what the config says."""
    folder.mkdir(exist_ok=True)
    for file in CODE.glob(f"*_{kind}.py"):
        shutil.copy(file, folder)
    fields = {"vocab_size": len(WORDS), "torch_dtype": "float32", "transformers_version": "4.46.3"} | KINDS[kind]
    (folder / "config.json").write_text(json.dumps(fields | config))
    save_file(weights(kind, **config), folder / "model.safetensors", {"format": "pt"})
    if tokenizer:
        words = word_tokenizer(WORDS)
        if kind == "timed":
            words.mask_token = None
        words.save_pretrained(folder)
    return folder


def weights(kind: str, **config) -> dict[str, torch.Tensor]:
    """Of the file: without the frequencies of "timed", which older checkpoints lack, and without what is tied."""
    model = reference(kind, **config)
    tied = {"blocks": "lm_head.weight", "plain": "model.ff_out.weight"} if is_tied(config) else {}
    left_out = {tied.get(kind), *_BUFFERS.get(kind, [])}
    return {name: value.clone() for name, value in model.state_dict().items() if name not in left_out}


def is_tied(config: dict) -> bool:
    return bool(config.get("tie_word_embeddings") or config.get("weight_tying"))


def reference(kind: str, **config) -> nn.Module:
    """The model of a checkpoint, built without transformers' loader and without ours; weights are seeded."""
    fields = {"vocab_size": len(WORDS), "hidden_size": 16, "num_attention_heads": 2, "pad_token_id": None}
    fields |= {"rope_theta": 100.0, "hidden_dim": 16, "time_conditioning": True, "use_return_dict": True}
    said = types.SimpleNamespace(**fields | KINDS[kind] | {"use_cache": False} | config)
    said.use_return_dict = kind != "timed"
    model = getattr(_plainly(kind), HEADS[kind])(said).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * (0.5 if parameter.ndim > 1 else 0.2))
        if is_tied(config) and kind == "blocks":
            model.lm_head.weight = model.model.embed_tokens.weight
        if is_tied(config) and kind == "plain":
            model.tie_weights()
    return model


class _Base(nn.Module):
    """What version 4's class is to a model that is built and filled by hand."""

    def __init__(self, config):
        super().__init__()
        self.config = config

    def post_init(self):
        """Nothing."""


def _frequencies(config, device=None):
    size = config.hidden_size // config.num_attention_heads
    powers = [2 * i / size for i in range(size // 2)]
    return torch.tensor([config.rope_theta**-power for power in powers]), 1.0


class _Norms:
    @staticmethod
    def rms_norm_fn(x, weight, bias, eps):
        return nn.functional.rms_norm(x, (x.shape[-1],), weight, eps)


class _Rotary:
    @staticmethod
    def apply_rotary_emb_qkv_(qkv, cos, sin):
        """By complex numbers."""
        turn = torch.complex(cos, sin)[: qkv.shape[1], None, None]
        half = qkv.shape[-1] // 2
        turned = torch.complex(qkv[:, :, :2, :, :half], qkv[:, :, :2, :, half:]) * turn
        return torch.cat([torch.cat([turned.real, turned.imag], -1), qkv[:, :, 2:]], 2)


class _Attention:
    @staticmethod
    def flash_attn_func(q, k, v, causal):
        scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(q.shape[-1])
        return torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), v)

    @classmethod
    def flash_attn_varlen_qkvpacked_func(cls, qkv, lengths, longest, dropout, causal):
        q, k, v = qkv.view(-1, longest, *qkv.shape[1:]).unbind(2)
        return cls.flash_attn_func(q, k, v, causal).flatten(0, 1)


class _Anything(types.ModuleType):
    """A module in which every name is something that does nothing."""

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return {
            "PreTrainedModel": _Base,
            "ROPE_INIT_FUNCTIONS": {"default": _frequencies},
            "auto_docstring": lambda kind: kind,
            "autotune": lambda **kwargs: lambda function: function,
            "Config": lambda *args, **kwargs: None,
            "jit": lambda function: function,
            "language": types.SimpleNamespace(constexpr=int),
            "is_torch_fx_available": lambda: False,
            "rms_norm_fn": _Norms.rms_norm_fn,
            "flash_attn_func": _Attention.flash_attn_func,
            "flash_attn_interface": _Attention,
            "layers": types.SimpleNamespace(rotary=_Rotary),
            "modeling_outputs": types.SimpleNamespace(MaskedLMOutput=types.SimpleNamespace),
        }.get(name, type(name, (types.SimpleNamespace,), {}))


def _plainly(kind: str) -> types.ModuleType:
    """The modeling file of a kind, run with `_Anything` for all that it imports but torch."""
    source = (CODE / f"modeling_{kind}.py").read_text()
    names = [line.split()[1] for line in source.splitlines() if line.startswith(("import ", "from "))]
    names += ["transformers.utils.import_utils"]
    replaced = {name for name in names if name.partition(".")[0] in ("transformers", "flash_attn", "triton")}
    replaced |= {parent for name in replaced for parent in (name.partition(".")[0],)}
    before = {name: sys.modules.get(name) for name in replaced}
    module = types.ModuleType(f"plain_{kind}")
    module.__package__ = "plainly"
    try:
        sys.modules |= {name: _Anything(name) for name in replaced}
        for name in replaced:  # `import a.b` looks for b in a
            sys.modules[name].__dict__["__path__"] = []
        sys.modules["plainly"] = types.ModuleType("plainly")
        sys.modules[f"plainly.configuration_{kind}"] = _Anything("configuration")
        exec(compile(source, f"modeling_{kind}.py", "exec"), module.__dict__)
    finally:
        for name, old in before.items():
            if old is None:
                del sys.modules[name]
            else:
                sys.modules[name] = old
        del sys.modules["plainly"], sys.modules[f"plainly.configuration_{kind}"]
    return module
