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
# First match wins. Each pattern is searched in the name without its ".weight" ending.
_PATTERNS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("bias", (r"(?:^|\.|_)bias$",)),
    ("norm", (r"norm(?:_?\d|_f$|$|\.)", r"_norm", r"layernorm", r"LayerNorm", r"(?:^|\.)ln_\w+$", r"(?:^|\.)ln\d?$")),
    (
        "position",
        (r"position_embd", r"embed_positions", r"(?:^|\.)wpe$", r"position_embeddings", r"token_type(?:s|_embeddings)"),
    ),
    (
        "embedding",
        (r"embed_tokens$", r"token_embd$", r"(?:^|\.)wte$", r"word_embeddings$", r"embed_in$", r"tok_embeddings$"),
    ),
    ("head", (r"(?:^|\.)lm_head$", r"^output$", r"embed_out$", r"^head$")),
    (
        "router",
        (r"ffn_gate_inp", r"block_sparse_moe\.gate$", r"mlp\.gate$", r"router", r"shared_expert_gate$"),
    ),
    ("qkv", (r"qkv", r"c_attn$", r"query_key_value", r"Wqkv", r"in_proj$")),
    ("gate_up", (r"gate_up_proj", r"ffn_gate_up")),
    ("q", (r"q_proj$", r"attn_q$", r"(?:^|\.)wq$", r"\.query$", r"q_a_proj$", r"q_b_proj$")),
    ("k", (r"k_proj$", r"attn_k$", r"(?:^|\.)wk$", r"\.key$")),
    ("v", (r"v_proj$", r"attn_v$", r"(?:^|\.)wv$", r"\.value$")),
    (
        "o",
        (
            r"o_proj$",
            r"attn_output$",
            r"attn\.c_proj$",
            r"(?:^|\.)wo$",
            r"self_attn\.dense$",
            r"attention\.(?:output\.)?dense$",
            r"out_proj$",
        ),
    ),
    ("gate", (r"gate_proj$", r"ffn_gate(?:_exps|_shexp)?$", r"experts\.\d+\.w1$", r"feed_forward\.w1$")),
    (
        "up",
        (
            r"up_proj$",
            r"ffn_up(?:_exps|_shexp)?$",
            r"experts\.\d+\.w3$",
            r"feed_forward\.w3$",
            r"c_fc$",
            r"fc1$",
            r"fc_in$",
            r"dense_h_to_4h$",
            r"intermediate\.dense$",
        ),
    ),
    (
        "down",
        (
            r"down_proj$",
            r"ffn_down(?:_exps|_shexp)?$",
            r"experts\.\d+\.w2$",
            r"feed_forward\.w2$",
            r"mlp\.c_proj$",
            r"fc2$",
            r"fc_out$",
            r"dense_4h_to_h$",
            r"output\.dense$",
        ),
    ),
)
_KINDS = tuple((kind, re.compile("|".join(patterns))) for kind, patterns in _PATTERNS)


@lru_cache(maxsize=262_144)
def role_of(name: str) -> Role:
    """The role of a tensor by its name; kind "other" when nothing matches."""
    layer = _LAYER.search(name)
    expert = _EXPERT.search(name)
    stem = name.removesuffix(".weight")
    kind = next((k for k, pattern in _KINDS if pattern.search(stem)), "other")
    return Role(kind, int(layer.group(1)) if layer else None, int(expert.group(1)) if expert else None)
