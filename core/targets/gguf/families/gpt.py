"""GPT-2 and what came from it: layer norms with biases, one fused projection of query, key and value, no gate."""

from __future__ import annotations

from collections.abc import Sequence

from core.targets.gguf import checks, keys
from core.targets.gguf.families.llama import EMBEDDING, attention
from core.targets.gguf.hyper import Hyper
from core.targets.gguf.keys import f32, u32
from core.targets.gguf.record import MAY, MUST, NO, Architecture, Pairs, Part, Source, head, norm, part
from core.targets.gguf.ways import PLUS_ONE, STRAIGHT, TRANSPOSED, Regroup, Way

_N_WORDS = {
    "hidden_size": "n_embd",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "intermediate_size": "n_inner",
    "max_position_embeddings": "n_positions",
}
_MASKS = {r"\.attn\.(?:masked_)?bias$": "a mask, which llama.cpp computes"}
_TIED = {"tie_word_embeddings": True}


def _four(hyper: Hyper) -> int:
    return hyper.whole("intermediate_size", 4 * hyper.whole("hidden_size"))


def _wide(hyper: Hyper) -> Pairs:
    """keys.shape for models whose feed-forward is four times as wide where the config does not say."""
    found = dict(keys.shape(hyper, "hidden_size"))
    return list({**found, "feed_forward_length": u32(_four(hyper))}.items())


def _fused(
    qkv: str, output: str, up: str, down: str, *, way: Way = STRAIGHT, fused: Way | None = None, bias: str = MUST
) -> tuple[tuple[Part, Part], tuple[Part, Part]]:
    """Attention and feed-forward by their stems."""
    return (
        part("attn_qkv", qkv, "qkv", "hidden", bias=bias, way=fused or way),
        part("attn_output", output, "hidden", "heads", bias=bias, way=way),
    ), (
        part("ffn_up", up, "ffn", "hidden", bias=bias, way=way),
        part("ffn_down", down, "hidden", "ffn", bias=bias, way=way),
    )


def _check_gpt2(hyper: Hyper) -> Sequence[str]:
    checks.activation(hyper, key="activation_function", known=checks.GELU, what="gelu")
    why = "which llama.cpp does not do for this architecture"
    checks.fixed(hyper, why, scale_attn_by_inverse_layer_idx=False, add_cross_attention=False)
    checks.fixed(hyper, "which llama.cpp always does", scale_attn_weights=True)
    return ()


def _gpt2_pairs(hyper: Hyper) -> Pairs:
    return [*_wide(hyper), *keys.layer_norm(hyper, "layer_norm_epsilon")]


def _code_attention(output_way: Way = TRANSPOSED) -> tuple[Part, ...]:
    attn, ffn = _fused("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj", way=output_way)
    return (norm("attn_norm", "ln_1", bias=MUST), *attn, norm("ffn_norm", "ln_2", bias=MUST), *ffn)


_GPT2_FIRST = (
    part("token_embd", "wte", "vocabulary", "hidden"),
    part("position_embd", "wpe", "positions", "hidden"),
)
_LN_F = norm("output_norm", "ln_f", bias=MUST)

GPT2 = Architecture(
    name="gpt2",
    classes=("GPT2LMHeadModel",),
    first=_GPT2_FIRST,
    layer=_code_attention(),
    last=(_LN_F, head()),
    check=_check_gpt2,
    pairs=_gpt2_pairs,
    roots=("transformer.", ""),
    layers="h",
    aliases=_N_WORDS,
    defaults=_TIED,
    ignored=_MASKS,
    sizes={"ffn": _four},
)


def _check_starcoder(hyper: Hyper) -> Sequence[str]:
    checks.activation(hyper, key="activation_function", known=checks.GELU, what="gelu")
    checks.fixed(hyper, "and llama.cpp wants one key-value head here", multi_query=True)
    checks.fixed(hyper, "which llama.cpp always does", scale_attn_weights=True)
    return ()


def _one_kv(hyper: Hyper) -> int:
    return (keys.heads(hyper) + 2) * keys.head_dim(hyper)


def _starcoder_pairs(hyper: Hyper) -> Pairs:
    found = dict(_gpt2_pairs(hyper))
    return list({**found, "attention.head_count_kv": u32(1)}.items())


STARCODER = Architecture(
    name="starcoder",
    classes=("GPTBigCodeForCausalLM",),
    first=_GPT2_FIRST,
    layer=_code_attention(STRAIGHT),
    last=(_LN_F, head()),
    check=_check_starcoder,
    pairs=_starcoder_pairs,
    roots=("transformer.",),
    layers="h",
    aliases=_N_WORDS,
    defaults={**_TIED, "num_key_value_heads": 1},
    ignored=_MASKS,
    sizes={"ffn": _four, "qkv": _one_kv},
)


def _check_starcoder2(hyper: Hyper) -> Sequence[str]:
    checks.activation(hyper, known=checks.GELU, what="gelu")
    checks.fixed(hyper, "and llama.cpp wants biases", use_bias=True)
    return [*checks.rope(hyper, kinds=("linear", "yarn")), *checks.window(hyper)]


def _starcoder2_pairs(hyper: Hyper) -> Pairs:
    return [*keys.shape(hyper), *keys.layer_norm(hyper, "norm_epsilon"), *keys.rope(hyper)]


STARCODER2 = Architecture(
    name="starcoder2",
    classes=("Starcoder2ForCausalLM",),
    first=(EMBEDDING,),
    layer=(
        norm("attn_norm", "input_layernorm", bias=MUST),
        *attention(bias=MUST, output_bias=MUST),
        norm("ffn_norm", "post_attention_layernorm", bias=MUST),
        part("ffn_up", "mlp.c_fc", "ffn", "hidden", bias=MUST),
        part("ffn_down", "mlp.c_proj", "hidden", "ffn", bias=MUST),
    ),
    last=(norm("output_norm", "norm", bias=MUST), head()),
    check=_check_starcoder2,
    pairs=_starcoder2_pairs,
    defaults=_TIED,
)

# Query, key and value of one head lie beside each other.
_BY_HEAD = Regroup(keys.heads, lambda hyper: 1)


def _check_neox(hyper: Hyper) -> Sequence[str]:
    checks.activation(hyper, known=checks.GELU, what="gelu")
    checks.fixed(hyper, "and llama.cpp wants biases", attention_bias=True)
    return checks.rope(hyper, partial=True, kinds=())


def _neox_pairs(hyper: Hyper) -> Pairs:
    parallel = hyper.get("use_parallel_residual", True) is not False
    return [
        *keys.shape(hyper),
        *keys.layer_norm(hyper, "layer_norm_eps"),
        *keys.rope(hyper),
        ("use_parallel_residual", keys.boolean(parallel)),
    ]


_NEOX_ATTN, _NEOX_FFN = _fused(
    "attention.query_key_value", "attention.dense", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h", fused=_BY_HEAD
)

GPTNEOX = Architecture(
    name="gptneox",
    classes=("GPTNeoXForCausalLM",),
    first=(part("token_embd", "embed_in", "vocabulary", "hidden"),),
    layer=(
        norm("attn_norm", "input_layernorm", bias=MUST),
        *_NEOX_ATTN,
        norm("ffn_norm", "post_attention_layernorm", bias=MUST),
        *_NEOX_FFN,
    ),
    last=(
        norm("output_norm", "final_layer_norm", bias=MUST),
        Part("output", (Source("embed_out"),), ("vocabulary", "hidden")),
    ),
    check=_check_neox,
    pairs=_neox_pairs,
    roots=("gpt_neox.",),
    aliases={"partial_rotary_factor": "rotary_pct", "rope_theta": "rotary_emb_base"},
    defaults={"partial_rotary_factor": 0.25},
    ignored={r"\.attention\.(?:masked_)?bias$": "a mask, which llama.cpp computes"},
)


def _check_bloom(hyper: Hyper) -> Sequence[str]:
    why = "which llama.cpp does not do for this architecture"
    checks.fixed(hyper, why, apply_residual_connection_post_layernorm=False)
    return ()


def _bloom_pairs(hyper: Hyper) -> Pairs:
    return [*_wide(hyper), *keys.layer_norm(hyper, "layer_norm_epsilon")]


_BLOOM_ATTN, _BLOOM_FFN = _fused(
    "self_attention.query_key_value",
    "self_attention.dense",
    "mlp.dense_h_to_4h",
    "mlp.dense_4h_to_h",
    fused=_BY_HEAD,
)

BLOOM = Architecture(
    name="bloom",
    classes=("BloomForCausalLM", "BloomModel"),
    first=(
        part("token_embd", "word_embeddings", "vocabulary", "hidden"),
        norm("token_embd_norm", "word_embeddings_layernorm", bias=MUST),
    ),
    layer=(
        norm("attn_norm", "input_layernorm", bias=MUST),
        *_BLOOM_ATTN,
        norm("ffn_norm", "post_attention_layernorm", bias=MUST),
        *_BLOOM_FFN,
    ),
    last=(_LN_F, head()),
    check=_check_bloom,
    pairs=_bloom_pairs,
    roots=("transformer.", ""),
    layers="h",
    aliases={"num_hidden_layers": "n_layer", "num_attention_heads": "n_head", "max_position_embeddings": "seq_length"},
    # The position is a slope here: any length works, and the config names none.
    defaults={**_TIED, "max_position_embeddings": 2048},
    sizes={"ffn": _four},
)


def _check_falcon(hyper: Hyper) -> Sequence[str]:
    checks.activation(hyper, key="activation", known=checks.GELU, what="gelu")
    checks.fixed(hyper, "which llama.cpp does not do for this architecture", alibi=False, bias=False)
    if not hyper.flag("new_decoder_architecture"):
        checks.fixed(hyper, "and llama.cpp wants it so for this architecture", parallel_attn=True, multi_query=True)
    _falcon_ratio(hyper)
    return checks.rope(hyper, kinds=())


def _falcon_groups(hyper: Hyper) -> int:
    """Key-value heads: one, unless the newer layout says how many."""
    if hyper.flag("new_decoder_architecture"):
        return hyper.whole("num_kv_heads", keys.heads(hyper))
    return 1


def _falcon_ratio(hyper: Hyper) -> int:
    groups = _falcon_groups(hyper)
    if keys.heads(hyper) % groups:
        raise hyper.error(f"num_attention_heads {keys.heads(hyper)} is not a multiple of num_kv_heads {groups}")
    return keys.heads(hyper) // groups


def _falcon_pairs(hyper: Hyper) -> Pairs:
    found = dict(_wide(hyper))
    return [
        *{**found, "attention.head_count_kv": u32(_falcon_groups(hyper))}.items(),
        *keys.layer_norm(hyper, "layer_norm_epsilon"),
        *keys.rope(hyper),
    ]


_FALCON_ATTN, _FALCON_FFN = _fused(
    "self_attention.query_key_value",
    "self_attention.dense",
    "mlp.dense_h_to_4h",
    "mlp.dense_4h_to_h",
    fused=Regroup(_falcon_groups, _falcon_ratio),
    bias=NO,
)

FALCON = Architecture(
    name="falcon",
    classes=("FalconForCausalLM", "RWForCausalLM"),
    first=(part("token_embd", "word_embeddings", "vocabulary", "hidden"),),
    layer=(
        # The newer layout has a norm for each branch: the feed-forward's is llama.cpp's first.
        Part("attn_norm", (Source("input_layernorm"), Source("ln_mlp")), ("hidden",), bias=MUST),
        Part("attn_norm_2", (Source("ln_attn"),), ("hidden",), MAY, MAY),
        *_FALCON_ATTN,
        *_FALCON_FFN,
    ),
    last=(_LN_F, head()),
    check=_check_falcon,
    pairs=_falcon_pairs,
    roots=("transformer.",),
    layers="h",
    aliases={"intermediate_size": "ffn_hidden_size"},
    defaults={**_TIED, "max_position_embeddings": 2048},
    sizes={
        "ffn": _four,
        "qkv": lambda hyper: (keys.heads(hyper) + 2 * _falcon_groups(hyper)) * keys.head_dim(hyper),
    },
)


def _mpt_attention(hyper: Hyper, key: str, default: object = None) -> object:
    table = hyper.get("attn_config")
    found = table.get(key) if isinstance(table, dict) else None
    return default if found is None else found


def _check_mpt(hyper: Hyper) -> Sequence[str]:
    checks.fixed(hyper, "and biases are not converted", no_bias=True)
    for key, usual in (("alibi", True), ("qk_ln", False), ("prefix_lm", False), ("softmax_scale", None)):
        if _mpt_attention(hyper, key, usual) != usual:
            raise hyper.error(f"attn_config.{key} is not {usual}, which llama.cpp does not do for this architecture")
    if _mpt_attention(hyper, "attn_type", "multihead_attention") != "multihead_attention":
        raise hyper.error("attn_config.attn_type is not multihead_attention, which is not converted")
    if hyper.get("logit_scale") is not None:
        raise hyper.error("logit_scale is set, which llama.cpp does not do for this architecture")
    return ()


def _mpt_ffn(hyper: Hyper) -> int:
    return hyper.whole("expansion_ratio", 4) * hyper.whole("hidden_size")


def _mpt_pairs(hyper: Hyper) -> Pairs:
    found = dict(keys.shape(hyper, "hidden_size"))
    pairs = [
        *{**found, "feed_forward_length": u32(_mpt_ffn(hyper))}.items(),
        ("attention.layer_norm_epsilon", f32(1e-5)),
        ("attention.max_alibi_bias", f32(_positive(hyper, "alibi_bias_max", 8.0))),
    ]
    if _mpt_attention(hyper, "clip_qkv"):
        pairs.append(("attention.clamp_kqv", f32(_positive(hyper, "clip_qkv"))))
    return pairs


def _positive(hyper: Hyper, key: str, default: object = None) -> float:
    return hyper.number(key, within={key: _mpt_attention(hyper, key, default)})


_MPT_ATTN, _MPT_FFN = _fused("attn.Wqkv", "attn.out_proj", "ffn.up_proj", "ffn.down_proj", bias=NO)

MPT = Architecture(
    name="mpt",
    classes=("MptForCausalLM", "MPTForCausalLM"),
    first=(part("token_embd", "wte", "vocabulary", "hidden"),),
    layer=(norm("attn_norm", "norm_1"), *_MPT_ATTN, norm("ffn_norm", "norm_2"), *_MPT_FFN),
    last=(norm("output_norm", "norm_f"), head()),
    check=_check_mpt,
    pairs=_mpt_pairs,
    roots=("transformer.",),
    layers="blocks",
    aliases={
        "hidden_size": "d_model",
        "num_hidden_layers": "n_layers",
        "num_attention_heads": "n_heads",
        "max_position_embeddings": "max_seq_len",
    },
    defaults=_TIED,
    sizes={"ffn": _mpt_ffn},
)


def _check_nemotron(hyper: Hyper) -> Sequence[str]:
    checks.activation(hyper, known=("relu2",), what="relu²")
    return checks.rope(hyper, partial=True, kinds=("linear",))


def _nemotron_pairs(hyper: Hyper) -> Pairs:
    return [
        *keys.shape(hyper),
        *keys.head_sizes(hyper),
        *keys.layer_norm(hyper, "norm_eps"),
        *keys.rope(hyper),
    ]


NEMOTRON = Architecture(
    name="nemotron",
    classes=("NemotronForCausalLM",),
    first=(EMBEDDING,),
    layer=(
        norm("attn_norm", "input_layernorm", bias=MUST, way=PLUS_ONE),
        *attention(bias=MAY, output_bias=MAY),
        norm("ffn_norm", "post_attention_layernorm", bias=MUST, way=PLUS_ONE),
        part("ffn_up", "mlp.up_proj", "ffn", "hidden", bias=MAY),
        part("ffn_down", "mlp.down_proj", "hidden", "ffn", bias=MAY),
    ),
    last=(
        norm("output_norm", "norm", bias=MUST, way=PLUS_ONE),
        Part("output", (Source("lm_head"),), ("vocabulary", "hidden")),
    ),
    check=_check_nemotron,
    pairs=_nemotron_pairs,
    defaults={"partial_rotary_factor": 0.5},
)
