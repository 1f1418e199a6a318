"""Tiny models of many kinds, as transformers has them: what holds for one of them does not for all."""

import pytest
import torch
import transformers

_SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
_GROUPED = _SIZES | {"num_key_value_heads": 1, "head_dim": 8}
_LONG = {"max_position_embeddings": 64}

# name of the classes, what their config is told
CLASSIFIERS = {
    "Bert": _SIZES | _LONG,
    "Roberta": _SIZES | _LONG,
    "XLMRoberta": _SIZES | _LONG,
    "Camembert": _SIZES | _LONG,
    "DebertaV2": _SIZES
    | _LONG
    | {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_biased_input": False},
    "Electra": _SIZES | _LONG | {"embedding_size": 8},
    "Albert": _SIZES | _LONG | {"embedding_size": 8},
    "MPNet": _SIZES | _LONG,
    "ModernBert": _SIZES | _LONG,
    "DistilBert": {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 16} | _LONG,
    "Esm": _SIZES | _LONG | {"token_dropout": True, "position_embedding_type": "rotary"},
    "Esmc": _SIZES | _LONG,
    "BigBird": _SIZES | _LONG | {"attention_type": "original_full"},
    "FNet": _SIZES | _LONG | {"tpu_short_seq_length": 64},
    "Longformer": _SIZES | _LONG | {"attention_window": 4},
    "XLNet": {"d_model": 16, "n_layer": 2, "n_head": 2, "d_inner": 16},
    "GPT2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64},
    "GPTNeoX": _SIZES | _LONG,
    "Llama": _SIZES | _LONG,
    "Mistral": _SIZES | _LONG | {"num_key_value_heads": 1},
    "Qwen3": _GROUPED | _LONG,
    "Gemma": _GROUPED | _LONG,
    "OPT": _SIZES | _LONG | {"ffn_dim": 16, "word_embed_proj_dim": 16},
    "Phi": _SIZES | _LONG,
    "CTRL": {"n_embd": 16, "dff": 16, "n_layer": 2, "n_head": 2, "n_positions": 64},
    "Bart": {
        "d_model": 16,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "encoder_ffn_dim": 16,
        "decoder_ffn_dim": 16,
    }
    | _LONG,
}
MASKED = ("Bert", "Roberta", "XLMRoberta", "Camembert", "DebertaV2", "Electra", "Albert", "MPNet", "ModernBert")
MASKED += ("DistilBert", "Esm", "Esmc", "BigBird", "FNet", "Longformer")


def model(kind, head, tokenizer, pad=True, **config):
    """`kind` as in `CLASSIFIERS`, with `head` as transformers names it; weights that make every token count."""
    torch.manual_seed(0)
    known = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("mask", "bos", "cls", "sep")}
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id if pad else None}
    settings = CLASSIFIERS[kind] | {"vocab_size": len(tokenizer)} | known | ends | config
    name = {"MaskedLM": {"Electra": "ElectraForMaskedLM"}.get(kind)}.get(head) or f"{kind}For{head}"
    if not hasattr(transformers, name):
        pytest.skip(f"transformers {transformers.__version__} has no {name}")
    made = getattr(transformers, name)(getattr(transformers, f"{kind}Config")(**settings)).eval()
    for parameter in made.parameters():
        parameter.data.normal_(0, 0.3)
    for module in made.modules():
        if isinstance(module, torch.nn.Embedding) and module.padding_idx is not None:
            module.weight.data[module.padding_idx] = 0
    return made
