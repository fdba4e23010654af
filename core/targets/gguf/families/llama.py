"""Llama and what is built like it: two norms before attention and a gated feed-forward, rotary embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from core.targets.gguf import checks, keys
from core.targets.gguf.hyper import Hyper
from core.targets.gguf.keys import f32
from core.targets.gguf.record import MAY, NO, Architecture, Pairs, Part, Source, experts, head, norm, part
from core.targets.gguf.ways import STRAIGHT, Interleave, Way

EMBEDDING = part("token_embd", "embed_tokens", "vocabulary", "hidden")
Q_HEADS, KV_HEADS = Interleave(keys.heads), Interleave(keys.kv_heads)


def attention(
    *, bias: str = NO, output_bias: str = NO, qk_norms: tuple[str, str] | None = None, interleaved: bool = False
) -> tuple[Part, ...]:
    """Four projections. qk_norms: sizes of the norms of query and key, where there are such."""
    q: Way = Q_HEADS if interleaved else STRAIGHT
    k: Way = KV_HEADS if interleaved else STRAIGHT
    norms: tuple[Part, ...] = ()
    if qk_norms:
        norms = (
            norm("attn_q_norm", "self_attn.q_norm", size=qk_norms[0]),
            norm("attn_k_norm", "self_attn.k_norm", size=qk_norms[1]),
        )
    return (
        part("attn_q", "self_attn.q_proj", "heads", "hidden", bias=bias, way=q),
        part("attn_k", "self_attn.k_proj", "kv_heads", "hidden", bias=bias, way=k),
        part("attn_v", "self_attn.v_proj", "kv_heads", "hidden", bias=bias),
        part("attn_output", "self_attn.o_proj", "hidden", "heads", bias=output_bias),
        *norms,
    )


def gated(*, bias: str = NO) -> tuple[Part, ...]:
    return (
        part("ffn_gate", "mlp.gate_proj", "ffn", "hidden", bias=bias),
        part("ffn_up", "mlp.up_proj", "ffn", "hidden", bias=bias),
        part("ffn_down", "mlp.down_proj", "hidden", "ffn", bias=bias),
    )


def router(*stems: str) -> Part:
    return Part("ffn_gate_inp", tuple(Source(stem) for stem in stems), ("experts", "hidden"))


NUMBERED = ("mlp.experts.{}.gate_proj", "mlp.experts.{}.up_proj", "mlp.experts.{}.down_proj")
ATTN_NORM = norm("attn_norm", "input_layernorm")
FFN_NORM = norm("ffn_norm", "post_attention_layernorm")
LAST = (norm("output_norm", "norm"), head())


def _check(hyper: Hyper) -> Sequence[str]:
    checks.activation(hyper)
    return [*checks.rope(hyper), *checks.window(hyper)]


def pairs(hyper: Hyper) -> Pairs:
    return [
        *keys.shape(hyper),
        *keys.head_sizes(hyper),
        *keys.rms(hyper),
        *keys.rope(hyper),
        *keys.experts(hyper),
    ]


LLAMA = Architecture(
    name="llama",
    classes=("LlamaForCausalLM", "LLaMAForCausalLM", "MistralForCausalLM"),
    first=(EMBEDDING,),
    layer=(
        ATTN_NORM,
        *attention(bias=MAY, output_bias=MAY, interleaved=True),
        FFN_NORM,
        *gated(bias=MAY),
    ),
    last=LAST,
    check=_check,
    pairs=pairs,
    computed=keys.llama3_factors,
)

# llama.cpp has no architecture of this name: a Llama with experts.
MIXTRAL = replace(
    LLAMA,
    classes=("MixtralForCausalLM",),
    layer=(
        ATTN_NORM,
        *attention(interleaved=True),
        FFN_NORM,
        router("block_sparse_moe.gate", "mlp.gate"),
        *experts(
            tuple(f"block_sparse_moe.experts.{{}}.{w}" for w in ("w1", "w3", "w2")),  # type: ignore[arg-type]
            NUMBERED,
            ffn="ffn",
        ),
    ),
)


def _check_granite(hyper: Hyper) -> Sequence[str]:
    checks.activation(hyper)
    return checks.rope(hyper)


def _granite_pairs(hyper: Hyper) -> Pairs:
    scales = {
        "attention.scale": "attention_multiplier",
        "embedding_scale": "embedding_multiplier",
        "residual_scale": "residual_multiplier",
        "logit_scale": "logits_scaling",
    }
    return [*pairs(hyper), *((key, f32(hyper.number(word, 1.0))) for key, word in scales.items())]


GRANITE = replace(
    LLAMA,
    name="granite",
    classes=("GraniteForCausalLM",),
    check=_check_granite,
    pairs=_granite_pairs,
)


def _check_smollm3(hyper: Hyper) -> Sequence[str]:
    checks.activation(hyper)
    every = (
        [int((number + 1) % 4 != 0) for number in range(hyper.whole("num_hidden_layers"))] if _listed(hyper) else None
    )
    if every is not None and hyper.get("no_rope_layers") != every:
        raise hyper.error("no_rope_layers is not every fourth layer, which llama.cpp takes for granted")
    checks.fixed(hyper, "and llama.cpp leaves every fourth layer without", no_rope_layer_interval=4)
    return [*checks.rope(hyper), *checks.window(hyper)]


def _listed(hyper: Hyper) -> bool:
    given = hyper.get("no_rope_layers")
    return isinstance(given, list) and len(given) == hyper.whole("num_hidden_layers")


SMOLLM3 = replace(
    LLAMA,
    name="smollm3",
    classes=("SmolLM3ForCausalLM",),
    layer=(ATTN_NORM, *attention(interleaved=True), FFN_NORM, *gated()),
    check=_check_smollm3,
    defaults={"tie_word_embeddings": True},
)


def _check_olmo(hyper: Hyper) -> Sequence[str]:
    checks.activation(hyper)
    return checks.rope(hyper)


def _olmo_pairs(hyper: Hyper) -> Pairs:
    found = [
        *keys.shape(hyper),
        ("attention.layer_norm_epsilon", f32(1e-5)),
        *keys.rope(hyper),
    ]
    if hyper.get("clip_qkv") is not None:
        found.append(("attention.clamp_kqv", f32(hyper.number("clip_qkv"))))
    return found


OLMO = Architecture(
    name="olmo",
    classes=("OlmoForCausalLM",),
    first=(EMBEDDING,),
    layer=(*attention(interleaved=True), *gated()),
    last=(head(),),
    check=_check_olmo,
    pairs=_olmo_pairs,
)

OLMO2 = Architecture(
    name="olmo2",
    classes=("Olmo2ForCausalLM",),
    first=(EMBEDDING,),
    layer=(
        *attention(qk_norms=("heads", "kv_heads")),
        norm("post_attention_norm", "post_attention_layernorm"),
        *gated(),
        norm("post_ffw_norm", "post_feedforward_layernorm"),
    ),
    last=LAST,
    check=_check_olmo,
    pairs=pairs,
)


def _check_olmoe(hyper: Hyper) -> Sequence[str]:
    checks.fixed(hyper, "which llama.cpp does not do for this architecture", norm_topk_prob=False)
    if hyper.get("clip_qkv") is not None:
        raise hyper.error("clip_qkv is set, which llama.cpp does not do for this architecture")
    if keys.kv_heads(hyper) != keys.heads(hyper):
        raise hyper.error("num_key_value_heads is not num_attention_heads, which llama.cpp does not do here")
    return _check_olmo(hyper)


OLMOE = replace(
    OLMO2,
    name="olmoe",
    classes=("OlmoeForCausalLM",),
    layer=(
        ATTN_NORM,
        *attention(qk_norms=("heads", "kv_heads")),
        FFN_NORM,
        router("mlp.gate"),
        *experts(NUMBERED, ffn="ffn"),
    ),
    check=_check_olmoe,
)


def _check_cohere(hyper: Hyper) -> Sequence[str]:
    checks.activation(hyper)
    checks.fixed(hyper, "and llama.cpp ties them for this architecture", tie_word_embeddings=True)
    return checks.rope(hyper)


def _cohere_pairs(hyper: Hyper) -> Pairs:
    return [
        *keys.shape(hyper),
        *keys.layer_norm(hyper, "layer_norm_eps"),
        ("logit_scale", f32(hyper.number("logit_scale", 0.0625))),
        *keys.rope(hyper),
    ]


COHERE = Architecture(
    name="command-r",
    classes=("CohereForCausalLM",),
    first=(EMBEDDING,),
    layer=(ATTN_NORM, *attention(), *gated()),
    last=(norm("output_norm", "norm"),),
    check=_check_cohere,
    pairs=_cohere_pairs,
    defaults={"tie_word_embeddings": True},
)


def _check_stablelm(hyper: Hyper) -> Sequence[str]:
    checks.activation(hyper)
    checks.fixed(hyper, "whose norms are not converted", qk_layernorm=False)
    return checks.rope(hyper, partial=True)


def _stablelm_pairs(hyper: Hyper) -> Pairs:
    return [
        *keys.shape(hyper),
        *keys.layer_norm(hyper, "layer_norm_eps"),
        ("use_parallel_residual", keys.boolean(hyper.flag("use_parallel_residual"))),
        *keys.rope(hyper),
    ]


STABLELM = Architecture(
    name="stablelm",
    classes=("StableLmForCausalLM", "StableLMEpochForCausalLM"),
    first=(EMBEDDING,),
    layer=(
        norm("attn_norm", "input_layernorm", bias=MAY),
        *attention(bias=MAY),
        norm("ffn_norm", "post_attention_layernorm", weight=MAY, bias=MAY),
        *gated(),
    ),
    last=(norm("output_norm", "norm", bias=MAY), head()),
    check=_check_stablelm,
    pairs=_stablelm_pairs,
    defaults={"partial_rotary_factor": 0.25},
)
