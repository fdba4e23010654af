"""Gemma 1 to 3 (text). Their norms are stored as the distance from one, and the embedding always serves as head."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from core.targets.gguf import checks, keys
from core.targets.gguf.families.llama import EMBEDDING, attention, gated
from core.targets.gguf.hyper import Hyper, Rope
from core.targets.gguf.keys import f32, u32
from core.targets.gguf.record import Architecture, Pairs, Part, norm
from core.targets.gguf.ways import PLUS_ONE

_VISION = "llama.cpp keeps vision in a file of its own"
# Layers of the models whose attention is scaled by hidden_size / num_attention_heads: llama.cpp knows them by this.
_LAYERS_27B = {"gemma2": 46, "gemma3": 62}
# Every sixth layer of Gemma 3 attends to the whole context, every second of Gemma 2.
_PERIOD = {"gemma2": 2, "gemma3": 6}


def _norm(name: str, stem: str, size: str = "hidden") -> Part:
    return norm(name, stem, way=PLUS_ONE, size=size)


_LAST = (_norm("output_norm", "norm"),)
_SANDWICH = (
    _norm("post_attention_norm", "post_attention_layernorm"),
    _norm("ffn_norm", "pre_feedforward_layernorm"),
    *gated(),
    _norm("post_ffw_norm", "post_feedforward_layernorm"),
)


def _activation(hyper: Hyper) -> None:
    # The first Gemma's files say "gelu" in hidden_act and mean the tanh formula, as its code does.
    key = "hidden_activation" if hyper.get("hidden_activation") is not None else "hidden_act"
    checks.activation(hyper, key=key, known=(*checks.GELU_TANH, "gelu"), what="gelu")
    checks.fixed(hyper, "and llama.cpp ties them for this architecture", tie_word_embeddings=True)


def _check(hyper: Hyper) -> Sequence[str]:
    _activation(hyper)
    return checks.rope(hyper, kinds=())


def _check_windows(hyper: Hyper, arch: str) -> None:
    """Which layers attend to a window, and the scale of attention: llama.cpp takes both from the architecture."""
    _activation(hyper)
    checks.fixed(hyper, "which llama.cpp does not do for this architecture", use_bidirectional_attention=False)
    layers, period = hyper.whole("num_hidden_layers"), _PERIOD[arch]
    checks.fixed(hyper, f"and llama.cpp takes {period} for granted", sliding_window_pattern=period)
    checks.fixed(hyper, f"and llama.cpp takes {period} for granted", _sliding_window_pattern=period)
    types = hyper.get("layer_types")
    if isinstance(types, list) and len(types) == layers:
        usual = ["full_attention" if (i + 1) % period == 0 else "sliding_attention" for i in range(layers)]
        if types != usual:
            raise hyper.error(f"layer_types is not full attention in every {period}th layer, as llama.cpp computes it")
    scalar = hyper.number("query_pre_attn_scalar", 256)
    large = layers == _LAYERS_27B[arch]
    wanted = hyper.whole("hidden_size") / keys.heads(hyper) if large else keys.head_dim(hyper)
    if not math.isclose(scalar, wanted):
        raise hyper.error(f"query_pre_attn_scalar is {scalar:g}, and llama.cpp scales attention by {wanted:g}")


def _check_gemma2(hyper: Hyper) -> Sequence[str]:
    _check_windows(hyper, "gemma2")
    for key in ("attn_logit_softcapping", "final_logit_softcapping"):
        hyper.number(key)
    return checks.rope(hyper, kinds=())


def _check_gemma3(hyper: Hyper) -> Sequence[str]:
    _check_windows(hyper, "gemma3")
    for key in ("attn_logit_softcapping", "final_logit_softcapping"):
        if hyper.get(key) is not None:
            raise hyper.error(f"{key} is set, which llama.cpp does not do for this architecture")
    whole, windows = _ropes(hyper)
    if whole.kind not in ("default", "linear"):
        raise hyper.error(f"rope type {whole.kind!r} has no counterpart in GGUF", "known: default, linear")
    if windows.kind != "default":
        raise hyper.error("the rotary embedding of windows is scaled, which llama.cpp does not do")
    return ()


def _ropes(hyper: Hyper) -> tuple[Rope, Rope]:
    """Of layers that see the whole context, and of those with a window."""
    given: Any = hyper.get("rope_parameters")
    if isinstance(given, dict) and "full_attention" in given:
        return hyper.rope_of(given["full_attention"]), hyper.rope_of(given.get("sliding_attention"))
    return hyper.rope, Rope(hyper.number("rope_local_base_freq", 10000.0), "default", {})


def _pairs(hyper: Hyper) -> Pairs:
    return [*keys.shape(hyper), *keys.head_sizes(hyper), *keys.rms(hyper), *keys.rope(hyper)]


def _gemma2_pairs(hyper: Hyper) -> Pairs:
    return [
        *_pairs(hyper),
        ("attn_logit_softcapping", f32(hyper.number("attn_logit_softcapping"))),
        ("final_logit_softcapping", f32(hyper.number("final_logit_softcapping"))),
        ("attention.sliding_window", u32(hyper.whole("sliding_window"))),
    ]


def _gemma3_pairs(hyper: Hyper) -> Pairs:
    whole, windows = _ropes(hyper)
    return [
        *keys.shape(hyper),
        *keys.head_sizes(hyper),
        *keys.rms(hyper),
        ("attention.sliding_window", u32(hyper.whole("sliding_window"))),
        ("rope.freq_base", f32(whole.theta)),
        ("rope.freq_base_swa", f32(windows.theta)),
        *keys.rope_scaling(hyper, whole),
    ]


_TIED = {"tie_word_embeddings": True}

GEMMA = Architecture(
    name="gemma",
    classes=("GemmaForCausalLM",),
    first=(EMBEDDING,),
    layer=(
        _norm("attn_norm", "input_layernorm"),
        *attention(),
        _norm("ffn_norm", "post_attention_layernorm"),
        *gated(),
    ),
    last=_LAST,
    check=_check,
    pairs=_pairs,
    defaults={**_TIED, "head_dim": 256},
)

GEMMA2 = Architecture(
    name="gemma2",
    classes=("Gemma2ForCausalLM",),
    first=(EMBEDDING,),
    layer=(_norm("attn_norm", "input_layernorm"), *attention(), *_SANDWICH),
    last=_LAST,
    check=_check_gemma2,
    pairs=_gemma2_pairs,
    defaults={
        **_TIED,
        "head_dim": 256,
        "sliding_window": 4096,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
    },
)

_NORMED = (
    *attention(),
    _norm("attn_q_norm", "self_attn.q_norm", "head"),
    _norm("attn_k_norm", "self_attn.k_norm", "head"),
)

# Larger ones come with vision, and leave out of config.json what their code takes for granted.
GEMMA3 = Architecture(
    name="gemma3",
    classes=("Gemma3ForCausalLM", "Gemma3ForConditionalGeneration"),
    first=(EMBEDDING,),
    layer=(_norm("attn_norm", "input_layernorm"), *_NORMED, *_SANDWICH),
    last=_LAST,
    check=_check_gemma3,
    pairs=_gemma3_pairs,
    roots=("model.", "model.language_model.", "language_model.model."),
    defaults={
        **_TIED,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "sliding_window": 4096,
        "max_position_embeddings": 131072,
        "rope_theta": 1e6,
    },
    inner="text_config",
    ignored={r"^(?:model\.)?(?:vision_tower|multi_modal_projector)\.": _VISION},
)
