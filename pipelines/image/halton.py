"""The published files of Halton-MaskGIT and its VQ model, read into classes of ours and of diffusers.

The VQ model is LlamaGen's VQ-16, whose parts diffusers' `VQModel` has under other names. Its codebook is used after
normalisation; the nearest unit vector is the same for an encoding of any length, so that a codebook of unit vectors
does without.
"""

import os
import pickle
import re
from pathlib import Path
from typing import Any

import torch
from diffusers import VQModel
from torch import Tensor

from redge_guidance.pipelines.image.transformer import MaskedImageTransformer

_HEADS = {384: 6, 512: 6, 768: 12, 1024: 16, 1152: 16}  # heads of the published sizes, by width

_LAYER = {
    "mlp.1": "modulation",
    "ln1": "norm_1",
    "ln2": "norm_2",
    "attn.wq": "query",
    "attn.wk": "key",
    "attn.wv": "value",
    "attn.wo": "out",
    "ff.w1": "gate",
    "ff.w3": "up",
    "ff.w2": "down",
}
_TOP = {
    "cls_emb.weight": "class_embedding.weight",
    "tok_emb.weight": "token_embedding.weight",
    "pos_emb.weight": "position_embedding.weight",
    "reg_tokens.weight": "registers",
    "last_norm.norm_final.weight": "norm.weight",
    "last_norm.norm_final.bias": "norm_bias",
    "last_norm.mlp.1.weight": "modulation.weight",
    "last_norm.mlp.1.bias": "modulation.bias",
    "head.bias": "logit_bias",
}
_TIED = "head.weight"  # is tok_emb.weight

_VQ_RESNET = {"nin_shortcut": "conv_shortcut"}
_VQ_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}


def convert_transformer(path: str | os.PathLike[str], num_attention_heads: int | None = None) -> MaskedImageTransformer:
    """A `MaskedImageTransformer` of a published file, in eval mode.

    Args:
        path: `.pth` file with a `model_state_dict`.
        num_attention_heads: None: that of the published model of the same width.

    Raises:
        ValueError, FileNotFoundError: as `MaskedImagePipeline.from_halton`, or an unknown width without heads.
    """
    state = _read(path, "transformer", "model_state_dict")
    state = {re.sub(r"^(_orig_mod\.|module\.)+", "", name): value for name, value in state.items()}
    renamed: dict[str, Tensor] = {}
    for name, value in state.items():
        found = re.fullmatch(r"transformer\.layers\.(\d+)\.(.+)\.(weight|bias)", name)
        if found and found[2] in _LAYER:
            renamed[f"layers.{found[1]}.{_LAYER[found[2]]}.{found[3]}"] = value
        elif name in _TOP:
            renamed[_TOP[name]] = value
        elif name != _TIED:
            raise ValueError(f"`transformer` {path} is no Halton-MaskGIT class-to-image model: unexpected `{name}`.")
    needed = {*_TOP.values(), "layers.0.gate.weight"} - {"registers"}
    missing = sorted(needed - set(renamed))
    if missing:
        raise ValueError(f"`transformer` {path} is no Halton-MaskGIT class-to-image model: no `{missing[0]}`.")
    width = renamed["token_embedding.weight"].shape[1]
    heads = num_attention_heads or _HEADS.get(width)
    if heads is None:
        raise ValueError(f"`num_attention_heads` must be given for a transformer of width {width}, got None.")
    renamed.setdefault("registers", torch.zeros(0, width))
    model = MaskedImageTransformer(
        sample_size=round(renamed["position_embedding.weight"].shape[0] ** 0.5),
        codebook_size=renamed["token_embedding.weight"].shape[0] - 1,
        num_classes=renamed["class_embedding.weight"].shape[0] - 1,
        hidden_size=width,
        num_hidden_layers=1 + max(int(name.split(".")[1]) for name in renamed if name.startswith("layers.")),
        num_attention_heads=heads,
        intermediate_size=renamed["layers.0.gate.weight"].shape[0],
        num_registers=renamed["registers"].shape[0],
    )
    return _loaded(model, renamed, "transformer", path)  # type: ignore[no-any-return]


def convert_vq_model(path: str | os.PathLike[str]) -> VQModel:
    """diffusers' `VQModel` of a published file of LlamaGen, in eval mode.

    Raises:
        ValueError, FileNotFoundError: as `MaskedImagePipeline.from_halton`.
    """
    state = _read(path, "vqvae", "model")
    for name in ("quantize.embedding.weight", "decoder.conv_in.weight", "encoder.conv_in.weight"):
        if name not in state:
            raise ValueError(f"`vqvae` {path} is no VQ model of LlamaGen: no `{name}`.")
    levels = 1 + max(int(name.split(".")[2]) for name in state if name.startswith("encoder.conv_blocks."))
    renamed = {}
    for name, value in state.items():
        if name == "quantize.codebook_used":
            continue
        new = _vq_name(name)
        # the linear layers of an attention were convolutions of one pixel
        linear = value.ndim == 4 and ".to_" in new
        renamed[new] = value[:, :, 0, 0] if linear else value
    table = "quantize.embedding.weight"
    renamed[table] = torch.nn.functional.normalize(renamed[table].float(), dim=-1)
    widths = [state[f"encoder.conv_blocks.{i}.res.0.conv1.weight"].shape[0] for i in range(levels)]
    resnets = {name.split(".")[4] for name in state if name.startswith("encoder.conv_blocks.0.res.")}
    model = VQModel(
        in_channels=state["encoder.conv_in.weight"].shape[1],
        out_channels=state["decoder.conv_out.weight"].shape[0],
        down_block_types=("DownEncoderBlock2D",) * (levels - 1) + ("AttnDownEncoderBlock2D",),
        up_block_types=("AttnUpDecoderBlock2D",) + ("UpDecoderBlock2D",) * (levels - 1),
        block_out_channels=tuple(widths),
        layers_per_block=len(resnets),
        latent_channels=state["decoder.conv_in.weight"].shape[1],
        num_vq_embeddings=state[table].shape[0],
        vq_embed_dim=state[table].shape[1],
        norm_num_groups=32,
        scaling_factor=1.0,
    )
    return _loaded(model, renamed, "vqvae", path)


def _vq_name(name: str) -> str:
    """A name of LlamaGen's in diffusers' words."""
    part, _, rest = name.partition(".")
    if part not in ("encoder", "decoder"):
        return name
    found = re.fullmatch(r"conv_blocks\.(\d+)\.(res|attn)\.(\d+)\.(.+)", rest)
    blocks = "down_blocks" if part == "encoder" else "up_blocks"
    if found:
        kind = "resnets" if found[2] == "res" else "attentions"
        return f"{part}.{blocks}.{found[1]}.{kind}.{found[3]}.{_inner(found[4], found[2])}"
    found = re.fullmatch(r"conv_blocks\.(\d+)\.(down|up)sample\.conv\.(.+)", rest)
    if found:
        return f"{part}.{blocks}.{found[1]}.{found[2]}samplers.0.conv.{found[3]}"
    found = re.fullmatch(r"mid\.([012])\.(.+)", rest)
    if found:
        place = {"0": "resnets.0", "1": "attentions.0", "2": "resnets.1"}[found[1]]
        return f"{part}.mid_block.{place}.{_inner(found[2], 'attn' if found[1] == '1' else 'res')}"
    return f"{part}.{rest.replace('norm_out', 'conv_norm_out')}"


def _inner(name: str, kind: str) -> str:
    first, _, rest = name.partition(".")
    return f"{(_VQ_RESNET if kind == 'res' else _VQ_ATTENTION).get(first, first)}.{rest}"


def _read(path: str | os.PathLike[str], argument: str, key: str) -> dict[str, Tensor]:
    """The state dict under `key` of a file, which may hold tensors and plain values but no code."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"`{argument}` must be a file, got {os.fspath(path)}; download it first.")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"`{argument}` {os.fspath(path)} cannot be read as weights alone and is refused: {reason}"
        ) from error
    state = content.get(key, content) if isinstance(content, dict) else None
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"`{argument}` {os.fspath(path)} holds no `{key}`; pass the published file.")
    return state


def _loaded(model: Any, state: dict[str, Tensor], argument: str, path: str | os.PathLike[str]) -> Any:
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"`{argument}` {os.fspath(path)} holds other weights than expected: {reason}") from error
    return model.eval()
