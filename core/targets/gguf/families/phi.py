"""Phi 2 and 3."""

from __future__ import annotations

import math
from collections.abc import Sequence

from core.targets.gguf import checks, keys
from core.targets.gguf.families.llama import ATTN_NORM, EMBEDDING, FFN_NORM, LAST
from core.targets.gguf.hyper import Hyper
from core.targets.gguf.keys import f32, u32
from core.targets.gguf.record import MUST, Architecture, Computed, Pairs, Part, Source, norm, part
from core.targets.gguf.rows import Listed

_LONG = ("longrope", "su")


def _check_phi2(hyper: Hyper) -> Sequence[str]:
    checks.activation(hyper, known=checks.GELU, what="gelu")
    checks.fixed(hyper, "whose norms are not converted", qk_layernorm=False)
    return checks.rope(hyper, partial=True, kinds=())


def _phi2_pairs(hyper: Hyper) -> Pairs:
    return [
        *keys.shape(hyper),
        *keys.layer_norm(hyper, "layer_norm_eps"),
        *keys.rope(hyper),
    ]


PHI2 = Architecture(
    name="phi2",
    classes=("PhiForCausalLM",),
    first=(EMBEDDING,),
    layer=(
        norm("attn_norm", "input_layernorm", bias=MUST),
        part("attn_q", "self_attn.q_proj", "heads", "hidden", bias=MUST),
        part("attn_k", "self_attn.k_proj", "kv_heads", "hidden", bias=MUST),
        part("attn_v", "self_attn.v_proj", "kv_heads", "hidden", bias=MUST),
        part("attn_output", "self_attn.dense", "hidden", "heads", bias=MUST),
        part("ffn_up", "mlp.fc1", "ffn", "hidden", bias=MUST),
        part("ffn_down", "mlp.fc2", "hidden", "ffn", bias=MUST),
    ),
    last=(
        norm("output_norm", "final_layernorm", bias=MUST),
        Part("output", (Source("lm_head"),), ("vocabulary", "hidden"), bias=MUST),
    ),
    check=_check_phi2,
    pairs=_phi2_pairs,
    defaults={"partial_rotary_factor": 0.5},
)


def _check_phi3(hyper: Hyper) -> Sequence[str]:
    checks.activation(hyper)
    return [*checks.rope(hyper, partial=True, kinds=_LONG), *checks.window(hyper)]


def _original(hyper: Hyper) -> int:
    """The context before it was stretched."""
    within = hyper.rope.settings.get("original_max_position_embeddings")
    return int(hyper.number("original_max_position_embeddings", within or hyper.whole("max_position_embeddings")))


def _phi3_pairs(hyper: Hyper) -> Pairs:
    found = [
        *keys.shape(hyper),
        *keys.rms(hyper),
        *keys.rope(hyper),
        ("rope.scaling.original_context_length", u32(_original(hyper))),
        # Read and not used: llama.cpp attends to the whole context.
        ("attention.sliding_window", u32(0)),
    ]
    if hyper.rope.kind in _LONG:
        found.append(("rope.scaling.attn_factor", f32(_stretch(hyper))))
    return found


def _stretch(hyper: Hyper) -> float:
    """By how much attention grows with the context. source: transformers' rope type "longrope" """
    given = hyper.rope.settings.get("attention_factor")
    if given is not None:
        return hyper.number("attention_factor", within=hyper.rope.settings)
    original = _original(hyper)
    scale = hyper.whole("max_position_embeddings") / original
    if hyper.rope.settings.get("factor") is not None:
        scale = hyper.number("factor", within=hyper.rope.settings)
    return math.sqrt(1 + math.log(scale) / math.log(original)) if scale > 1 and original > 1 else 1.0


def _long_factors(hyper: Hyper) -> Sequence[Computed]:
    """The divisors of the frequencies for long and short contexts."""
    if hyper.rope.kind not in _LONG:
        return ()
    half = keys.rotated(hyper) // 2
    return [
        Computed(f"rope_factors_{word}.weight", Listed(_factors(hyper, f"{word}_factor", half)), (half,))
        for word in ("long", "short")
    ]


def _factors(hyper: Hyper, key: str, count: int) -> tuple[float, ...]:
    given = hyper.rope.settings.get(key)
    if not isinstance(given, list) or len(given) != count:
        raise hyper.error(f"{key} is not a list of {count} numbers, one for each pair that is turned")
    return tuple(hyper.number(key, within={key: value}) for value in given)


PHI3 = Architecture(
    name="phi3",
    classes=("Phi3ForCausalLM",),
    first=(EMBEDDING,),
    layer=(
        ATTN_NORM,
        part("attn_qkv", "self_attn.qkv_proj", "qkv", "hidden"),
        part("attn_output", "self_attn.o_proj", "hidden", "heads"),
        FFN_NORM,
        part("ffn_up", "mlp.gate_up_proj", "ffn_pair", "hidden"),
        part("ffn_down", "mlp.down_proj", "hidden", "ffn"),
    ),
    last=LAST,
    check=_check_phi3,
    pairs=_phi3_pairs,
    computed=_long_factors,
)
