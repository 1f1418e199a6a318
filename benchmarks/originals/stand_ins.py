"""Stands in for what the authors' code imports and the reference interpreter lacks. Not part of the package.

flash_attn: `install()` puts modules of the functions below where `import flash_attn` finds them. None of them is an
approximation: full attention without dropout, rotation of the halves of a head, root mean square normalisation.

transformers.utils.LossKwargs: a type for annotations that SDAR's code imports and that transformers dropped after 4.53.

triton: SDAR's code decorates the kernels of its training loss; `triton_names()` provides the decorators while it loads.
"""

import contextlib
import importlib.machinery
import sys
import types
from collections.abc import Iterator
from typing import Any, TypedDict

import torch
import transformers.utils
from torch import Tensor


def _halves(x: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat([-second, first], dim=-1)


def apply_rotary_emb_torch(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool = False) -> Tensor:
    """Rotate `x` `(batch, length, heads, size)` by angles whose `cos` and `sin` are `(length, rotated / 2)`."""
    if interleaved:
        raise NotImplementedError("interleaved")
    rotated = 2 * cos.shape[-1]
    cos, sin = (torch.cat([part, part], dim=-1)[:, None, :] for part in (cos, sin))
    turned, rest = x[..., :rotated], x[..., rotated:]
    return torch.cat([turned * cos + _halves(turned) * sin, rest], dim=-1)


def apply_rotary_emb_qkv_(qkv: Tensor, cos: Tensor, sin: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Rotate queries and keys of `qkv` `(batch, length, 3, heads, size)`; the values stay."""
    query, key, value = qkv.unbind(2)
    return torch.stack([apply_rotary_emb_torch(query, cos, sin), apply_rotary_emb_torch(key, cos, sin), value], dim=2)


def flash_attn_func(
    q: Tensor, k: Tensor, v: Tensor, dropout_p: float = 0.0, softmax_scale: float | None = None, causal: bool = False
) -> Tensor:
    """Attention of `(batch, length, heads, size)`; fewer heads of keys and values are shared."""
    if causal or dropout_p:
        raise NotImplementedError("causal, dropout")
    heads = [part.transpose(1, 2) for part in (q, k, v)]
    return torch.nn.functional.scaled_dot_product_attention(*heads, scale=softmax_scale, enable_gqa=True).transpose(
        1, 2
    )


def flash_attn_varlen_qkvpacked_func(
    qkv: Tensor, cu_seqlens: Tensor, max_seqlen: int, dropout_p: float = 0.0, causal: bool = False
) -> Tensor:
    """Attention within each of the sequences that `qkv` `(total, 3, heads, size)` holds one after another."""
    parts = qkv.split(cu_seqlens.diff().tolist())
    return torch.cat([flash_attn_func(*part[None].unbind(2), dropout_p, None, causal)[0] for part in parts])


def rms_norm_fn(x: Tensor, weight: Tensor, bias: Tensor | None = None, eps: float = 1e-6) -> Tensor:
    """`x` over its root mean square, computed in float32, times `weight`."""
    normed = x.float() * torch.rsqrt(x.float().square().mean(-1, keepdim=True) + eps)
    return (normed * weight.float() + (0.0 if bias is None else bias.float())).to(x.dtype)


_MODULES = {
    "flash_attn": {"flash_attn_func": flash_attn_func, "flash_attn_varlen_func": None},
    "flash_attn.flash_attn_interface": {"flash_attn_varlen_qkvpacked_func": flash_attn_varlen_qkvpacked_func},
    "flash_attn.layers": {},
    "flash_attn.layers.rotary": {
        "apply_rotary_emb_torch": apply_rotary_emb_torch,
        "apply_rotary_emb_qkv_": apply_rotary_emb_qkv_,
    },
    "flash_attn.bert_padding": {"index_first_axis": None, "pad_input": None, "unpad_input": None},
    "flash_attn.ops": {},
    "flash_attn.ops.triton": {},
    "flash_attn.ops.triton.layer_norm": {"rms_norm_fn": rms_norm_fn},
}


def _add(name: str, **contents: Any) -> None:
    module = types.ModuleType(name)
    module.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=True)
    module.__path__ = []
    vars(module).update(contents)
    sys.modules[name] = module
    parent, _, child = name.rpartition(".")
    if parent:
        setattr(sys.modules[parent], child, module)


def _missing(name: str) -> bool:
    return importlib.machinery.PathFinder.find_spec(name) is None


def install() -> None:
    """Provide flash_attn and LossKwargs, each unless the real one is there."""
    if not hasattr(transformers.utils, "LossKwargs"):
        transformers.utils.LossKwargs = TypedDict("LossKwargs", {}, total=False)
    if _missing("flash_attn"):
        for name, functions in _MODULES.items():
            _add(name, **functions)


@contextlib.contextmanager
def installed() -> Iterator[None]:
    """`install` for a while: code that loads meanwhile keeps what it imported, nothing else sees it."""
    before = set(sys.modules)
    install()
    try:
        yield
    finally:
        for name in set(sys.modules) - before:
            if name.partition(".")[0] == "flash_attn":
                del sys.modules[name]


@contextlib.contextmanager
def triton_names() -> Iterator[None]:
    """Decorators called as triton's, which leave the kernels as plain functions, unless triton is there."""
    if not _missing("triton"):
        yield
        return

    torch.compile(lambda: None)  # torch looks for triton now, and does not find the names below

    def leave(*args: Any, **kwargs: Any) -> Any:
        return args[0] if args and callable(args[0]) else leave

    _add("triton", jit=leave, heuristics=leave, autotune=leave, Config=lambda *args, **kwargs: None)
    _add("triton.language", constexpr=int)
    try:
        yield
    finally:
        del sys.modules["triton"], sys.modules["triton.language"]
