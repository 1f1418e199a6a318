"""The functions of flash-attn that models import for rotary embeddings, attention and norms, in plain torch.

Used where flash-attn is not installed. Same arguments and results up to rounding; what has no counterpart here is an
ImportError when it is imported.
"""

import itertools
from types import ModuleType
from typing import Any

import torch
from torch import Tensor


def apply_rotary_emb(
    x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool = False, inplace: bool = False, **kwargs: Any
) -> Tensor:
    """Rotate pairs of the first `2 r` features of `x` `(batch, length, heads, d)` by angles `(>= length, r)`.

    Pairs are feature i and i + r, or where `interleaved` 2 i and 2 i + 1.
    """
    _refuse(kwargs)
    r = cos.shape[-1]
    cos, sin = cos[: x.shape[1], None], sin[: x.shape[1], None]
    turned, rest = x[..., : 2 * r], x[..., 2 * r :]
    if interleaved:
        a, b = turned[..., ::2], turned[..., 1::2]
        rotated = torch.stack([a * cos - b * sin, b * cos + a * sin], -1).flatten(-2)
    else:
        a, b = turned.chunk(2, -1)
        rotated = torch.cat([a * cos - b * sin, b * cos + a * sin], -1)
    result = torch.cat([rotated, rest], -1)
    return x.copy_(result) if inplace else result


def apply_rotary_emb_torch(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool = False) -> Tensor:
    """`apply_rotary_emb`, under the name of the reference implementation of flash-attn."""
    return apply_rotary_emb(x, cos, sin, interleaved)


def apply_rotary_emb_qkv_(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    cos_k: Tensor | None = None,
    sin_k: Tensor | None = None,
    interleaved: bool = False,
    **kwargs: Any,
) -> Tensor:
    """Rotate queries and keys of `qkv` `(batch, length, 3, heads, d)` in place, and return it."""
    _refuse(kwargs)
    for index, c, s in ((0, cos, sin), (1, cos if cos_k is None else cos_k, sin if sin_k is None else sin_k)):
        qkv[:, :, index] = apply_rotary_emb(qkv[:, :, index], c, s, interleaved)
    return qkv


def flash_attn_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    **kwargs: Any,
) -> Tensor:
    """Attention `(batch, length, heads, d)`; fewer heads of keys than of queries are shared, causal is bottom right."""
    _refuse(kwargs)
    length, keys = q.shape[1], k.shape[1]
    mask = torch.ones(length, keys, dtype=torch.bool, device=q.device).tril(keys - length) if causal else None
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    out = torch.nn.functional.scaled_dot_product_attention(
        q, k, v, mask, dropout_p, scale=softmax_scale, enable_gqa=q.shape[1] != k.shape[1]
    )
    return out.transpose(1, 2)


def flash_attn_qkvpacked_func(qkv: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """`flash_attn_func` of `qkv` `(batch, length, 3, heads, d)`."""
    q, k, v = qkv.unbind(2)
    return flash_attn_func(q, k, v, *args, **kwargs)


def flash_attn_varlen_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    *args: Any,
    **kwargs: Any,
) -> Tensor:
    """`flash_attn_func` of texts that lie one behind the other, `(total, heads, d)`, cut at the cumulated lengths."""
    cuts = zip(cu_seqlens_q.tolist(), cu_seqlens_k.tolist(), strict=True)
    parts = [
        flash_attn_func(q[a:b][None], k[c:d][None], v[c:d][None], *args, **kwargs)[0]
        for (a, c), (b, d) in itertools.pairwise(cuts)
    ]
    return torch.cat(parts)


def flash_attn_varlen_qkvpacked_func(
    qkv: Tensor, cu_seqlens: Tensor, max_seqlen: int, *args: Any, **kwargs: Any
) -> Tensor:
    """`flash_attn_varlen_func` of `qkv` `(total, 3, heads, d)`."""
    q, k, v = qkv.unbind(1)
    return flash_attn_varlen_func(q, k, v, cu_seqlens, cu_seqlens, max_seqlen, max_seqlen, *args, **kwargs)


def rms_norm_fn(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None = None, eps: float = 1e-6
) -> Any:
    """`x / sqrt(mean(x^2) + eps) * weight + bias` over the last axis, of `x + residual` where there is one."""
    x = x if residual is None else x + residual
    wide = x.float()
    normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps) * weight.float()
    return (normed if bias is None else normed + bias.float()).to(x.dtype)


_ATTENTION = [
    flash_attn_func,
    flash_attn_qkvpacked_func,
    flash_attn_varlen_func,
    flash_attn_varlen_qkvpacked_func,
]
_MODULES: dict[str, list[Any]] = {
    "flash_attn": _ATTENTION,
    "flash_attn.flash_attn_interface": _ATTENTION,
    "flash_attn.layers": [],
    "flash_attn.layers.rotary": [apply_rotary_emb, apply_rotary_emb_torch, apply_rotary_emb_qkv_],
    "flash_attn.ops": [],
    "flash_attn.ops.triton": [],
    "flash_attn.ops.triton.layer_norm": [rms_norm_fn],
}


def module(name: str) -> ModuleType:
    """The stand-in for a module of flash-attn.

    Raises:
        ModuleNotFoundError: there is none.
    """
    if name not in _MODULES:
        raise ModuleNotFoundError(f"{name} is not installed, and has no stand-in", name=name)
    made = ModuleType(name, "A stand-in in torch.")
    for function in _MODULES[name]:
        setattr(made, function.__name__, function)
    for inner in _MODULES:
        parent, _, last = inner.rpartition(".")
        if parent == name:
            setattr(made, last, module(inner))
    return made


def _refuse(options: dict[str, Any]) -> None:
    """Options that were given, and that nothing here follows, would be ignored otherwise."""
    defaults = {"window_size": (-1, -1), "softcap": 0.0, "seqlen_offsets": 0, "deterministic": False}
    given = [name for name, value in options.items() if value not in (None, False) and value != defaults.get(name)]
    if given:
        raise ImportError(f"`{given[0]}` of flash-attn has no stand-in; pip install flash-attn.")
