"""Tensors that are never quantized, whatever a rule says: what is no matrix of weights, or is too delicate to touch."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from core.kinds import Shared
from core.recipes.remembering import PerOutline
from core.tensors import DTYPES

if TYPE_CHECKING:
    from core.targets.base import Outline, OutputTensor

_ROLES = {"norm": "norm", "bias": "bias", "position": "position table", "router": "router"}

# Parts of GGUF names that llama-quantize leaves alone. Facts of llama.cpp (src/llama-quant.cpp).
_DELICATE = re.compile(
    r"_norm\.weight|ffn_gate_inp\.weight|ffn_gate_tid2eid\.weight|altup|laurel|per_layer_model_proj|ssm_conv1d"
    r"|shortconv\.conv\.weight|indexer\.[kq]_proj\.weight|attn_rel_b\.weight|\.position_embd"
    r"|sam\.pos_embd|sam\.neck\.|sam\.net_|\.rel_pos|\.patch_embd|\.patch_merger|token_types"
    r"|a\.rvq\.codebook|mm\.a\.code_embd"
    r"|time_mix_(?:first|w0|w1|w2|v0|v1|v2|a0|a1|a2|g1|g2|decay_w1|decay_w2|lerp_fused)\.weight"
)


def is_gguf(outline: Outline) -> bool:
    """Whether the outline's names are those of a GGUF."""
    names = (outline.tensors[i].name for i in outline.kinds.first)
    return any(name.startswith("blk.") or name == "token_embd.weight" for name in names)


def unreal(tensor: OutputTensor) -> str:
    """Why there is nothing to convert at all, or "": no elements, or no real numbers."""
    if not tensor.numel:
        return "empty"
    known = DTYPES.get(tensor.dtype)
    if known is not None and not known.floating:
        return f"{tensor.dtype} holds no real numbers"
    return ""


def protected(tensor: OutputTensor, gguf_names: bool) -> str:
    """Why the tensor stays as it is ("norm", "1-D"), or "". Casts to plain floats ask `unreal` only."""
    why = unreal(tensor)
    if why:
        return why
    if not tensor.shape:
        return "scalar"
    if tensor.role.kind in _ROLES:
        return _ROLES[tensor.role.kind]
    if len(tensor.shape) < 2 or (gguf_names and tensor.rows == 1):
        return "1-D"
    if gguf_names and not tensor.name.endswith("weight"):
        return "not a weight"
    if gguf_names and _DELICATE.search(tensor.name):
        return "llama.cpp needs it unquantized"
    return ""


def _all(outline: Outline) -> Shared[str]:
    gguf_names = is_gguf(outline)
    return outline.kinds.ask(outline.tensors, lambda tensor: protected(tensor, gguf_names))


# `protected` for every output tensor, in the outline's order.
protections: PerOutline[Shared[str]] = PerOutline(_all)
