"""Qwen 2 and 3, dense and with experts."""

from __future__ import annotations

from collections.abc import Sequence

from core.targets.gguf import checks, keys
from core.targets.gguf.families.llama import (
    ATTN_NORM,
    EMBEDDING,
    FFN_NORM,
    LAST,
    NUMBERED,
    attention,
    gated,
    pairs,
    router,
)
from core.targets.gguf.hyper import Hyper
from core.targets.gguf.keys import u32
from core.targets.gguf.record import MAY, MUST, Architecture, Pairs, experts, part


def _check(hyper: Hyper) -> Sequence[str]:
    checks.activation(hyper)
    return [*checks.rope(hyper), *checks.window(hyper)]


def _check_experts(hyper: Hyper, renormalized: bool) -> Sequence[str]:
    what = "does" if renormalized else "does not"
    checks.fixed(hyper, f"and llama.cpp {what} for this architecture", norm_topk_prob=renormalized)
    checks.fixed(hyper, "and llama.cpp wants experts in every layer", decoder_sparse_step=1, mlp_only_layers=[])
    return _check(hyper)


def _moe_pairs(hyper: Hyper) -> Pairs:
    return [*pairs(hyper), ("expert_feed_forward_length", u32(hyper.whole("moe_intermediate_size")))]


def _shared_pairs(hyper: Hyper) -> Pairs:
    shared = hyper.whole("shared_expert_intermediate_size")
    return [*_moe_pairs(hyper), ("expert_shared_feed_forward_length", u32(shared))]


QWEN2 = Architecture(
    name="qwen2",
    classes=("Qwen2ForCausalLM",),
    first=(EMBEDDING,),
    layer=(ATTN_NORM, *attention(bias=MUST), FFN_NORM, *gated()),
    last=LAST,
    check=_check,
    pairs=pairs,
    computed=keys.llama3_factors,
)

QWEN2_MOE = Architecture(
    name="qwen2moe",
    classes=("Qwen2MoeForCausalLM",),
    first=(EMBEDDING,),
    layer=(
        ATTN_NORM,
        *attention(bias=MUST),
        FFN_NORM,
        router("mlp.gate"),
        *experts(NUMBERED),
        part("ffn_gate_inp_shexp", "mlp.shared_expert_gate", "one", "hidden"),
        part("ffn_gate_shexp", "mlp.shared_expert.gate_proj", "shared_ffn", "hidden"),
        part("ffn_up_shexp", "mlp.shared_expert.up_proj", "shared_ffn", "hidden"),
        part("ffn_down_shexp", "mlp.shared_expert.down_proj", "hidden", "shared_ffn"),
    ),
    last=LAST,
    check=lambda hyper: _check_experts(hyper, renormalized=False),
    pairs=_shared_pairs,
)

QWEN3 = Architecture(
    name="qwen3",
    classes=("Qwen3ForCausalLM",),
    first=(EMBEDDING,),
    layer=(ATTN_NORM, *attention(bias=MAY, output_bias=MAY, qk_norms=("head", "head")), FFN_NORM, *gated()),
    last=LAST,
    check=_check,
    pairs=pairs,
)

QWEN3_MOE = Architecture(
    name="qwen3moe",
    classes=("Qwen3MoeForCausalLM",),
    first=(EMBEDDING,),
    layer=(
        ATTN_NORM,
        *attention(qk_norms=("head", "head")),
        FFN_NORM,
        router("mlp.gate"),
        *experts(NUMBERED),
    ),
    last=LAST,
    check=lambda hyper: _check_experts(hyper, renormalized=True),
    pairs=_moe_pairs,
)
