"""What part of a transformer a tensor is, read from its name alone (Hugging Face and GGUF spellings).

Recipes, presets, targets and the window all ask here, so a tensor has one role everywhere.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

# Chip texts of the window, words of recipe files.
ROLES = (
    "embedding",
    "head",
    "q",
    "k",
    "v",
    "qkv",
    "o",
    "gate",
    "up",
    "gate_up",
    "down",
    "router",
    "norm",
    "bias",
    "position",
    "other",
)


@dataclass(frozen=True, slots=True)
class Role:
    """kind is one of ROLES; layer and expert are None where the name carries none."""

    kind: str
    layer: int | None = None
    expert: int | None = None


_LAYER = re.compile(r"(?:^|\.)(?:layers|blk|h|blocks|layer|block)\.(\d+)(?:\.|$)")
_EXPERT = re.compile(r"\.experts\.(\d+)\.")
# First match wins. Patterns are searched in the name without its ".weight" ending.
_KINDS: tuple[tuple[str, re.Pattern[str]], ...] = tuple(
    (kind, re.compile(pattern))
    for kind, pattern in (
        ("bias", r"(?:^|\.|_)bias$"),
        ("norm", r"norm(?:\d|$|\.)|_norm|layernorm|LayerNorm|(?:^|\.)ln_[\w]+$|(?:^|\.)ln\d?$"),
        ("position", r"position_embd|embed_positions|(?:^|\.)wpe$|position_embeddings|token_types"),
        ("embedding", r"embed_tokens$|^token_embd$|(?:^|\.)wte$|word_embeddings$|embed_in$|tok_embeddings$|token_embd$"),
        ("head", r"(?:^|\.)lm_head$|^output$|embed_out$|^head$"),
        ("router", r"ffn_gate_inp|block_sparse_moe\.gate$|mlp\.gate$|router|shared_expert_gate$"),
        ("qkv", r"qkv|c_attn$|query_key_value|Wqkv|in_proj$"),
        ("gate_up", r"gate_up_proj|ffn_gate_up"),
        ("q", r"q_proj$|attn_q$|(?:^|\.)wq$|\.query$|q_a_proj$|q_b_proj$"),
        ("k", r"k_proj$|attn_k$|(?:^|\.)wk$|\.key$"),
        ("v", r"v_proj$|attn_v$|(?:^|\.)wv$|\.value$"),
        ("o", r"o_proj$|attn_output$|attn\.c_proj$|(?:^|\.)wo$|self_attn\.dense$|attention\.(?:output\.)?dense$|out_proj$"),
        ("gate", r"gate_proj$|ffn_gate(?:_exps|_shexp)?$|experts\.\d+\.w1$|feed_forward\.w1$"),
        ("up", r"up_proj$|ffn_up(?:_exps|_shexp)?$|experts\.\d+\.w3$|feed_forward\.w3$|c_fc$|fc1$|fc_in$|dense_h_to_4h$|intermediate\.dense$"),
        ("down", r"down_proj$|ffn_down(?:_exps|_shexp)?$|experts\.\d+\.w2$|feed_forward\.w2$|mlp\.c_proj$|fc2$|fc_out$|dense_4h_to_h$|output\.dense$"),
    )
)


@lru_cache(maxsize=262_144)
def role_of(name: str) -> Role:
    """The role of a tensor by its name; kind "other" when nothing matches."""
    layer = _LAYER.search(name)
    expert = _EXPERT.search(name)
    stem = name.removesuffix(".weight")
    kind = next((k for k, pattern in _KINDS if pattern.search(stem)), "other")
    return Role(
        kind, int(layer.group(1)) if layer else None, int(expert.group(1)) if expert else None
    )
