"""Tiny random checkpoints in the layout of the hub, around the authors' own code.

Run in the reference interpreter: the authors' class, as it loads there, makes the names and shapes of the weights. Code
files are copied from `--public` as they are; where the hub has a file that the public repositories lack, NOTES.md says
what stands in its place.

    python benchmarks/originals/checkpoints.py --public PUBLIC --to FOLDER
"""

import argparse
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import stand_ins
from safetensors.torch import save_file
from tokenizers import Tokenizer
from writing import copy, fill, trained, write_fast_tokenizer, write_json, write_slow_tokenizer, write_weights

WRAPPERS = Path(__file__).parent / "wrappers"

LLADA_TOKENS = ["<|startoftext|>", "<|endoftext|>", "[CLS]", "[gMASK]", "<|start_header_id|>", "<|end_header_id|>",
                "<|eot_id|>", "<|mdm_mask|>"]  # fmt: skip
LLADA_CHAT = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header_id|>' + "
    "message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}"
    "{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)


def llada(public: Path, folder: Path) -> str:
    """dllm's modeling_llada.py builds on "cuda" whatever the machine; on the hub the line says "cpu", as here."""
    code = public / "dllm/dllm/pipelines/llada/models"
    copy(folder, code / "configuration_llada.py")
    source = (code / "modeling_llada.py").read_text()
    if source.count('init_device = "cuda"') != 1:
        raise RuntimeError("modeling_llada.py of dllm is not the one that this script knows.")
    (folder / "modeling_llada.py").write_text(source.replace('init_device = "cuda"', 'init_device = "cpu"'))
    tokens = write_fast_tokenizer(
        folder, LLADA_TOKENS, bos_token="<|startoftext|>", eos_token="<|endoftext|>", pad_token="<|endoftext|>",
        cls_token="[CLS]", gmask_token="[gMASK]", add_bos_token=False, add_eos_token=False, chat_template=LLADA_CHAT,
        model_input_names=["input_ids", "attention_mask"],
    )  # fmt: skip
    end, mask = tokens.token_to_id("<|endoftext|>"), tokens.token_to_id("<|mdm_mask|>")
    write_json(folder / "config.json", {
        "activation_type": "silu", "alibi": False, "alibi_bias_max": 8.0, "architectures": ["LLaDAModelLM"],
        "attention_dropout": 0.0, "attention_layer_norm": False, "attention_layer_norm_with_affine": True,
        "auto_map": {"AutoConfig": "configuration_llada.LLaDAConfig", "AutoModel": "modeling_llada.LLaDAModelLM",
                     "AutoModelForCausalLM": "modeling_llada.LLaDAModelLM"},
        "bias_for_layer_norm": False, "block_group_size": 1, "block_type": "llama", "d_model": 64,
        "embedding_dropout": 0.0, "embedding_size": 104, "eos_token_id": end, "flash_attention": False,
        "include_bias": False, "include_qkv_bias": False, "init_cutoff_factor": None, "init_device": "meta",
        "init_fn": "mitchell", "init_std": 0.02, "input_emb_norm": False, "layer_norm_type": "rms",
        "layer_norm_with_affine": True, "mask_token_id": mask, "max_sequence_length": 128, "mlp_hidden_size": 96,
        "mlp_ratio": 4, "model_type": "llada", "multi_query_attention": None, "n_heads": 4, "n_kv_heads": 4,
        "n_layers": 2, "pad_token_id": end, "precision": "amp_bf16", "residual_dropout": 0.0, "rms_norm_eps": 1e-05,
        "rope": True, "rope_full_precision": True, "rope_theta": 500000.0, "scale_logits": False,
        "torch_dtype": "float32", "transformers_version": "4.46.3", "use_cache": False, "vocab_size": 104,
        "weight_tying": False,
    })  # fmt: skip
    write_weights(folder, "modeling_llada.LLaDAModelLM", likely=[end, tokens.token_to_id("<|eot_id|>")])
    return "dllm/pipelines/llada/models, one word changed (see the docstring of `llada`); class LLaDAModelLM"


MOE_TOKENS = ["<|startoftext|>", "<|endoftext|>", "<role>", "</role>", "<|arithmetic_start|>", "<|role_end|>",
              "<|mask|>"]  # fmt: skip
MOE_CHAT = (
    "{% for message in messages %}{{ '<role>' + message['role'] | upper + '</role>' + message['content'] + "
    "'<|role_end|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<role>ASSISTANT</role>' }}{% endif %}"
)


def write_moe_tokenizer(folder: Path) -> Tokenizer:
    return write_fast_tokenizer(
        folder, MOE_TOKENS, bos_token="<|startoftext|>", eos_token="<|endoftext|>", pad_token="<|endoftext|>",
        mask_token="<|mask|>", chat_template=MOE_CHAT,
    )  # fmt: skip


def llada_moe(public: Path, folder: Path) -> str:
    code = public / "dllm/dllm/pipelines/llada/models"
    copy(folder, code / "configuration_lladamoe.py", code / "modeling_lladamoe.py")
    tokens = write_moe_tokenizer(folder)
    end = tokens.token_to_id("<|endoftext|>")
    write_json(folder / "config.json", {
        "architectures": ["LLaDAMoEModelLM"],
        "auto_map": {"AutoConfig": "configuration_lladamoe.LLaDAMoEConfig",
                     "AutoModel": "modeling_lladamoe.LLaDAMoEModelLM",
                     "AutoModelForCausalLM": "modeling_lladamoe.LLaDAMoEModelLM"},
        "attention_bias": False, "attention_dropout": 0.0, "clip_qkv": None, "dense_intermediate_size": 96,
        "eos_token_id": end, "expert_intermediate_size": 48, "hidden_act": "silu", "hidden_size": 64,
        "initializer_range": 0.02, "max_position_embeddings": 128, "model_type": "lladamoe",
        "moe_layer_freq": [1, 1], "moe_router_enable_expert_bias": False, "moe_router_score_function": "softmax",
        "norm_topk_prob": None, "num_attention_heads": 4, "num_experts": 4, "num_experts_per_tok": 2,
        "num_hidden_layers": 2, "num_key_value_heads": 4, "output_router_logits": False, "pad_token_id": end,
        "partial_rotary_factor": 1, "qk_layernorm": True, "rms_norm_eps": 1e-05, "rope_scaling": None,
        "rope_theta": 50000, "routed_scaling_factor": 1.0, "router_aux_loss_coef": 0.01, "router_num_group": None,
        "router_topk_group": None, "shared_expert_intermediate_size": None, "tie_word_embeddings": False,
        "torch_dtype": "float32", "transformers_version": "4.53.2", "use_cache": False, "vocab_size": 104,
    })  # fmt: skip
    write_weights(folder, "modeling_lladamoe.LLaDAMoEModelLM")
    return "dllm/pipelines/llada/models, unchanged; class LLaDAMoEModelLM; the config names no mask token"


def dream(public: Path, folder: Path) -> str:
    code = public / "dllm/dllm/pipelines/dream/models"
    copy(folder, *(code / f"{kind}.py" for kind in ("configuration_dream", "modeling_dream", "generation_utils")))
    copy(folder, public / "Fast-dLLM/dream/model/tokenization_dream.py")
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|beginoftext|>", "<|mask|>"]
    tokens = write_slow_tokenizer(folder, special, {
        "add_prefix_space": False, "additional_special_tokens": special,
        "auto_map": {"AutoTokenizer": ["tokenization_dream.DreamTokenizer", None]}, "bos_token": "<|beginoftext|>",
        "chat_template": "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content']"
                         " + '<|im_end|>' + '\\n' }}{% endfor %}{% if add_generation_prompt %}"
                         "{{ '<|im_start|>assistant\\n' }}{% endif %}",
        "clean_up_tokenization_spaces": False, "eos_token": "<|endoftext|>", "errors": "replace",
        "mask_token": "<|mask|>", "model_max_length": 131072, "pad_token": "<|endoftext|>",
        "split_special_tokens": False, "tokenizer_class": "DreamTokenizer", "unk_token": None,
    })  # fmt: skip
    end, mask = tokens.token_to_id("<|endoftext|>"), tokens.token_to_id("<|mask|>")
    write_json(folder / "config.json", {
        "architectures": ["DreamModel"], "attention_dropout": 0.0,
        "auto_map": {"AutoConfig": "configuration_dream.DreamConfig", "AutoModel": "modeling_dream.DreamModel"},
        "bos_token_id": end, "eos_token_id": end, "hidden_act": "silu", "hidden_size": 64, "initializer_range": 0.02,
        "intermediate_size": 96, "mask_token_id": mask, "max_position_embeddings": 128, "max_window_layers": 2,
        "model_type": "Dream", "num_attention_heads": 4, "num_hidden_layers": 2, "num_key_value_heads": 2,
        "pad_token_id": end, "rms_norm_eps": 1e-06, "rope_scaling": None, "rope_theta": 1000000.0,
        "sliding_window": None, "tie_word_embeddings": False, "torch_dtype": "float32",
        "transformers_version": "4.46.2", "use_cache": True, "use_mrope": False, "use_sliding_window": False,
        "vocab_size": 104,
    })  # fmt: skip
    write_json(folder / "generation_config.json", {
        "_from_model_config": True, "bos_token_id": end, "eos_token_id": end, "pad_token_id": end,
        "transformers_version": "4.46.2",
    })  # fmt: skip
    write_weights(folder, "modeling_dream.DreamModel")
    return ("dllm/pipelines/dream/models, tokenizer Fast-dLLM/dream/model, unchanged; class DreamModel; rotary "
            "frequencies are not in the file; a slow tokenizer of its own")  # fmt: skip


DIT = {"cond_dim": 32, "dropout": 0.1, "hidden_dim": 64, "model_length": 32, "n_blocks": 2, "n_heads": 4,
       "return_dict": False, "torch_dtype": "float32", "transformers_version": "4.38.2"}  # fmt: skip


HUB_FILE = (
    "the hub's {} is not in the public repository: {}/models/dit.py without its hub mixin, behind a wrapper of ours "
    "with the hub's interface and names (class {})"
)


def without_hub(source: str) -> str:
    """The authors' models/dit.py without the classes of huggingface_hub and omegaconf, which the hub's file lacks."""
    for old, new in (
        ("import huggingface_hub\n", ""),
        ("import omegaconf\n", ""),
        ("class DIT(nn.Module, huggingface_hub.PyTorchModelHubMixin):", "class DIT(nn.Module):"),
        ("    if type(config) == dict:\n      config = omegaconf.OmegaConf.create(config)\n", ""),
    ):
        if source.count(old) != 1:
            raise RuntimeError(f"models/dit.py is not the one that this script knows: {old!r}.")
        source = source.replace(old, new)
    return source


def write_dit(public: Path, folder: Path, repository: str, kind: str, config: dict) -> None:
    """The authors' training class behind a wrapper of ours with the interface of the hub's class."""
    (folder / "dit.py").write_text(without_hub((public / repository / "models/dit.py").read_text()))
    copy(folder, WRAPPERS / f"configuration_{kind}.py", WRAPPERS / f"modeling_{kind}.py")
    write_json(folder / "config.json", DIT | config)


def mdlm(public: Path, folder: Path, conditioned: bool = False) -> str:
    write_dit(public, folder, "mdlm", "mdlm", {
        "architectures": ["MDLM"], "model_type": "mdlm", "time_conditioning": conditioned, "vocab_size": 91,
        "auto_map": {"AutoConfig": "configuration_mdlm.MDLMConfig", "AutoModelForMaskedLM": "modeling_mdlm.MDLM"},
    })  # fmt: skip
    write_weights(folder, "modeling_mdlm.MDLM")
    return HUB_FILE.format("modeling_mdlm.py", "mdlm", "MDLM") + "; no tokenizer; the mask is the last id"


def mdlm_time(public: Path, folder: Path) -> str:
    return mdlm(public, folder, conditioned=True)


def udlm(public: Path, folder: Path, **config: object) -> str:
    code = public / "discrete-diffusion-guidance/models/hf"
    copy(folder, code / "configuration_udlm.py", code / "modeling_udlm.py")
    write_json(folder / "config.json", DIT | {
        "architectures": ["UDLM"], "cfg": False, "cfg_num_classes": -1, "model_type": "udlm",
        "time_conditioning": True, "vocab_size": 90,
        "auto_map": {"AutoConfig": "configuration_udlm.UDLMConfig", "AutoModelForMaskedLM": "modeling_udlm.UDLM"},
    } | config)  # fmt: skip
    write_weights(folder, "modeling_udlm.UDLM")
    return (
        "discrete-diffusion-guidance/models/hf, unchanged; class UDLM; no tokenizer; head autocast to bfloat16 on GPUs"
    )


def udlm_no_time(public: Path, folder: Path) -> str:
    return udlm(public, folder, time_conditioning=False)


def udlm_classes(public: Path, folder: Path) -> str:
    return udlm(public, folder, cfg=True, cfg_num_classes=3)


def duo(public: Path, folder: Path) -> str:
    write_dit(public, folder, "duo", "duo", {
        "architectures": ["DUO"], "causal": False, "model_type": "DUO", "var_min": True, "vocab_size": 90,
        "auto_map": {"AutoConfig": "configuration_duo.DUOConfig", "AutoModelForMaskedLM": "modeling_duo.DUO"},
    })  # fmt: skip
    write_weights(folder, "modeling_duo.DUO")
    return HUB_FILE.format("model.py", "duo", "DUO") + "; no tokenizer; model_type in capitals"


def bd3lm(public: Path, folder: Path, **config: object) -> str:
    code = public / "bd3lms/models/hf"
    copy(folder, code / "configuration_bd3lm.py", code / "modeling_bd3lm.py")
    write_json(folder / "config.json", DIT | {
        "adaln": True, "architectures": ["BD3LM"], "attn_backend": "sdpa", "block_size": 4, "causal": False,
        "cross_attn": True, "model_type": "bd3lm", "time_conditioning": False, "var_min": False, "vocab_size": 91,
        "auto_map": {"AutoConfig": "configuration_bd3lm.BD3LMConfig", "AutoModelForMaskedLM": "modeling_bd3lm.BD3LM"},
    } | config)  # fmt: skip
    write_weights(folder, "modeling_bd3lm.BD3LM")
    return ("bd3lms/models/hf, unchanged; class BD3LM; no tokenizer; the mask is the last id; blocks of 4; "
            "`self.mask` is a plain attribute that __init__ computes (meta tensor under a meta device)")  # fmt: skip


def bd3lm_var_min(public: Path, folder: Path) -> str:
    note = bd3lm(public, folder, var_min=True, sampling_eps_min=0.001, sampling_eps_max=0.999)
    return note + "; var_min: two scalar buffers"


def sdar(public: Path, folder: Path) -> str:
    code = public / "SDAR/training/model/SDAR-4B-Chat"
    kinds = ("configuration_sdar", "modeling_sdar", "fused_linear_diffusion_cross_entropy", "tokenization_qwen2",
             "tokenization_qwen2_fast")  # fmt: skip
    copy(folder, *(code / f"{kind}.py" for kind in kinds))
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|MASK|>"]
    settings = json.loads((code / "tokenizer_config.json").read_text()) | {"additional_special_tokens": special[1:]}
    tokens = write_slow_tokenizer(folder, special, settings)
    end, stop, mask = (tokens.token_to_id(token) for token in ("<|endoftext|>", "<|im_end|>", "<|MASK|>"))
    config = json.loads((code / "config.json").read_text()) | {
        "bos_token_id": end, "eos_token_id": end, "mask_token_id": mask, "head_dim": 16, "hidden_size": 64,
        "intermediate_size": 96, "max_position_embeddings": 128, "max_window_layers": 2, "num_attention_heads": 4,
        "num_hidden_layers": 2, "num_key_value_heads": 2, "torch_dtype": "float32", "vocab_size": 104,
    }  # fmt: skip
    write_json(folder / "config.json", config)
    generation = json.loads((code / "generation_config.json").read_text())
    write_json(folder / "generation_config.json", generation | {
        "bos_token_id": end, "eos_token_id": [stop, end], "pad_token_id": end,
    })  # fmt: skip
    with stand_ins.triton_names():
        write_weights(folder, "modeling_sdar.SDARForCausalLM", attn_implementation="sdpa")
    return (
        "SDAR/training/model/SDAR-4B-Chat, unchanged, its config and tokenizer_config with small sizes; class "
        "SDARForCausalLM; AutoModel is the headless SDARModel; imports flash_attn (rms_norm_fn, flash_attn_func), "
        "triton and LossKwargs; blocks of 4"
    )


def fast_dllm_v2(public: Path, folder: Path) -> str:
    """From a folder like the hub's Efficient-Large-Model/Fast_dLLM_v2_7B; its code is in no public repository."""
    code = public / "Fast_dLLM_v2_7B"
    copy(folder, code / "configuration.py", code / "modeling.py")
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "|<MASK>|"]
    tokens = write_slow_tokenizer(folder, special, json.loads((code / "tokenizer_config.json").read_text()))
    end, pad = tokens.token_to_id("<|im_end|>"), tokens.token_to_id("<|endoftext|>")
    write_json(folder / "config.json", json.loads((code / "config.json").read_text()) | {
        "bos_token_id": pad, "eos_token_id": end, "pad_token_id": end, "hidden_size": 64, "intermediate_size": 96,
        "layer_types": ["full_attention"] * 2, "max_position_embeddings": 128, "max_window_layers": 2,
        "num_attention_heads": 4, "num_hidden_layers": 2, "num_key_value_heads": 2, "torch_dtype": "float32",
        "vocab_size": 104,
    })  # fmt: skip
    write_weights(folder, "modeling.Fast_dLLM_QwenForCausalLM")
    return (
        "a public copy of the hub's folder, whose generate got an option `steps` that is not used; its config and "
        "tokenizer_config with small sizes; class Fast_dLLM_QwenForCausalLM; AutoModel is the headless class; neither "
        "config nor tokenizer name the mask token; blocks of 32"
    )


def llada2(public: Path, folder: Path) -> str:
    code = public / "dllm/dllm/pipelines/llada2/models"
    copy(folder, code / "configuration_llada2_moe.py", code / "modeling_llada2_moe.py")
    tokens = write_moe_tokenizer(folder)
    end = tokens.token_to_id("<|endoftext|>")
    write_json(folder / "config.json", {
        "architectures": ["LLaDA2MoeModelLM"],
        "auto_map": {"AutoConfig": "configuration_llada2_moe.LLaDA2MoeConfig",
                     "AutoModel": "modeling_llada2_moe.LLaDA2MoeModel",
                     "AutoModelForCausalLM": "modeling_llada2_moe.LLaDA2MoeModelLM"},
        "attention_dropout": 0.0, "embedding_dropout": 0.0, "first_k_dense_replace": 1, "head_dim": 16,
        "hidden_act": "silu", "hidden_size": 64, "initializer_range": 0.02, "intermediate_size": 96,
        "max_position_embeddings": 128, "max_window_layers": 2, "model_type": "llada2_moe",
        "moe_intermediate_size": 48, "n_group": 2, "norm_head": False, "num_attention_heads": 4, "num_experts": 4,
        "num_experts_per_tok": 2, "num_hidden_layers": 2, "num_key_value_heads": 2, "num_shared_experts": 1,
        "output_dropout": 0.0, "output_router_logits": False, "pad_token_id": end, "partial_rotary_factor": 0.5,
        "rms_norm_eps": 1e-06, "rope_scaling": None, "rope_theta": 600000, "routed_scaling_factor": 2.5,
        "tie_word_embeddings": False, "topk_group": 1, "torch_dtype": "float32", "transformers_version": "4.52.3",
        "use_bias": False, "use_cache": False, "use_qk_norm": True, "use_qkv_bias": False,
        "use_sliding_window": False, "vocab_size": 104,
    })  # fmt: skip
    write_weights(folder, "modeling_llada2_moe.LLaDA2MoeModelLM")
    return ("dllm/pipelines/llada2/models, unchanged; class LLaDA2MoeModelLM; AutoModel is the headless class; the "
            "config names no mask token, the tokenizer does; is_torch_fx_available")  # fmt: skip


def sedd(public: Path, folder: Path) -> str:
    repository = public / "Score-Entropy-Discrete-Diffusion"
    config = {
        "tokens": 90, "ngpus": 8, "graph": {"type": "absorb", "file": "data", "report_all": False},
        "noise": {"type": "loglinear", "sigma_min": 1e-4, "sigma_max": 20},
        "sampling": {"predictor": "euler", "steps": 128, "noise_removal": True},
        "model": {"name": "small", "type": "ddit", "hidden_size": 64, "cond_dim": 32, "length": 32, "n_blocks": 2,
                  "n_heads": 4, "scale_by_sigma": True, "dropout": 0.1},
    }  # fmt: skip
    write_json(folder / "config.json", config)
    sys.path.insert(0, str(repository))
    try:
        from model import SEDD  # the name of the authors' package
    finally:
        sys.path.remove(str(repository))
    score = SEDD(config)
    fill(score)
    save_file({name: tensor.contiguous() for name, tensor in score.state_dict().items()}, folder / "model.safetensors")
    return (
        "config.json and weights as PyTorchModelHubMixin writes them; neither code nor auto_map on the hub: class SEDD "
        "of the repository, on the import path; no tokenizer; the mask is the last id"
    )


FAMILIES: dict[str, Callable[[Path, Path], str]] = {
    "llada": llada, "llada-moe": llada_moe, "dream": dream, "mdlm": mdlm, "mdlm-time": mdlm_time, "udlm": udlm,
    "udlm-no-time": udlm_no_time, "udlm-classes": udlm_classes, "duo": duo, "bd3lm": bd3lm,
    "bd3lm-var-min": bd3lm_var_min, "sdar": sdar, "llada2": llada2, "fast-dllm-v2": fast_dllm_v2, "sedd": sedd,
}  # fmt: skip


def build(public: Path, to: Path) -> None:
    """Write every checkpoint to `to`, with NOTES.md on what each is."""
    stand_ins.install()
    notes = ["# Tiny random checkpoints of the authors' code", ""]
    (to / "tokenizer").mkdir(parents=True, exist_ok=True)
    end = "<|endoftext|>"
    tokens = trained([end], size=89)
    tokens.save(str(to / "tokenizer/tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": end, "eos_token": end, "unk_token": end}
    write_json(to / "tokenizer/tokenizer_config.json", config)
    notes.append(f"- **tokenizer**: for those that ship none, after gpt2's: {tokens.get_vocab_size()} ids, no mask.")
    for name, write in FAMILIES.items():
        folder = to / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        try:
            notes.append(f"- **{name}**: {write(public, folder)}.")
        except Exception as error:  # one family must not hide the others
            shutil.rmtree(folder)
            notes.append(f"- **{name}**: impossible, {type(error).__name__}: {str(error).splitlines()[0]}")
        print(notes[-1], flush=True)
    (to / "NOTES.md").write_text("\n".join(notes) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--public", type=Path, required=True)
    parser.add_argument("--to", type=Path, required=True)
    arguments = parser.parse_args()
    build(arguments.public.resolve(), arguments.to.resolve())
