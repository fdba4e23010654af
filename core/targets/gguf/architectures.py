"""The models that are converted, one record each: names, what is permuted, and the key-values of their shape.

Adding one is a record in ARCHITECTURES; what all of them share is in convert.py.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from core.checkpoints.gguf import Value, ValueType
from core.targets.base import RowSource
from core.targets.gguf.hyper import Hyper
from core.targets.gguf.rows import RopeFactors

Pairs = list[tuple[str, Value]]


@dataclass(frozen=True)
class Computed:
    """A tensor that no checkpoint holds."""

    name: str
    source: RowSource
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Architecture:
    """One architecture of GGUF and the Hugging Face classes that are written as it.

    outer, inner  stem of a name in the checkpoint → stem in the GGUF; inner ones stand behind `model.layers.N.`
    interleaved   inner stem in the GGUF → "heads" or "kv_heads": rows that are permuted head by head
    shapes        stem in the GGUF → the weight's shape in words of `sizes`
    optional      inner stems of the GGUF that a layer may lack
    ignored       patterns of names that have no place and need none
    check         raises TargetError for what llama.cpp would compute otherwise; returns notes
    pairs         key-values under the architecture's prefix
    computed      tensors made from the config
    """

    name: str
    classes: tuple[str, ...]
    outer: Mapping[str, str]
    inner: Mapping[str, str]
    interleaved: Mapping[str, str]
    shapes: Mapping[str, tuple[str, ...]]
    check: Callable[[Hyper], Sequence[str]]
    pairs: Callable[[Hyper, int], Pairs]
    computed: Callable[[Hyper], Sequence[Computed]]
    optional: frozenset[str] = frozenset()
    ignored: Sequence[re.Pattern[str]] = field(default=(re.compile(r"rotary_emb\.inv_freq$"),))


def u32(value: int) -> Value:
    return Value.of(ValueType.UINT32, value)


def f32(value: float) -> Value:
    return Value.of(ValueType.FLOAT32, value)


def text(value: str) -> Value:
    return Value.of(ValueType.STRING, value)


def head_dim(hyper: Hyper) -> int:
    heads = hyper.whole("num_attention_heads")
    hidden = hyper.whole("hidden_size")
    if hyper.config.get("head_dim") is None and hidden % heads:
        raise hyper.error(f"hidden_size {hidden} is not a multiple of num_attention_heads {heads}")
    return hyper.whole("head_dim", hidden // heads)


def kv_heads(hyper: Hyper) -> int:
    return hyper.whole("num_key_value_heads", hyper.whole("num_attention_heads"))


def sizes(hyper: Hyper, vocabulary: int) -> dict[str, int]:
    """The words in which shapes are given."""
    size = head_dim(hyper)
    return {
        "hidden": hyper.whole("hidden_size"),
        "ffn": hyper.whole("intermediate_size"),
        "heads": hyper.whole("num_attention_heads") * size,
        "kv_heads": kv_heads(hyper) * size,
        "vocabulary": vocabulary,
    }


_OUTER = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
_LLAMA_INNER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_LLAMA_SHAPES = {
    "token_embd": ("vocabulary", "hidden"),
    "output_norm": ("hidden",),
    "output": ("vocabulary", "hidden"),
    "attn_norm": ("hidden",),
    "attn_q": ("heads", "hidden"),
    "attn_k": ("kv_heads", "hidden"),
    "attn_v": ("kv_heads", "hidden"),
    "attn_output": ("hidden", "heads"),
    "ffn_norm": ("hidden",),
    "ffn_gate": ("ffn", "hidden"),
    "ffn_up": ("ffn", "hidden"),
    "ffn_down": ("hidden", "ffn"),
}


def _check_llama(hyper: Hyper) -> Sequence[str]:
    notes = []
    act = hyper.config.get("hidden_act", "silu")
    if act not in ("silu", "swish"):
        raise hyper.error(f"hidden_act is {act!r}, and llama.cpp computes silu for this architecture")
    if hyper.config.get("partial_rotary_factor", 1) not in (1, None):
        raise hyper.error("partial_rotary_factor is not 1, which llama.cpp does not do for this architecture")
    kind = hyper.rope.kind
    if kind not in ("default", "linear", "llama3", "yarn", "dynamic"):
        raise hyper.error(f"rope type {kind!r} has no counterpart in GGUF", "known: default, linear, llama3, yarn")
    if kind == "dynamic":
        notes.append(
            "dynamic rope scaling is not carried over: beyond the trained context llama.cpp computes otherwise"
        )
    if kind == "yarn":
        notes += _yarn_notes(hyper.rope.settings)
    window = hyper.config.get("sliding_window")
    if isinstance(window, int) and window < hyper.whole("max_position_embeddings"):
        notes.append(f"the sliding window of {window:,} is not carried over: llama.cpp attends to the whole context")
    return notes


def _yarn_notes(settings: Mapping[str, Any]) -> list[str]:
    """Settings of YaRN that llama.cpp takes from no file of this architecture."""
    usual = {"beta_fast": 32, "beta_slow": 1, "truncate": True}
    odd = [key for key, value in usual.items() if settings.get(key, value) not in (value, None)]
    return [f"yarn's {', '.join(odd)} not carried over: llama.cpp computes slightly otherwise"] if odd else []


def _llama_pairs(hyper: Hyper, vocabulary: int) -> Pairs:
    size = head_dim(hyper)
    found: Pairs = [
        ("block_count", u32(hyper.whole("num_hidden_layers"))),
        ("context_length", u32(hyper.whole("max_position_embeddings"))),
        ("embedding_length", u32(hyper.whole("hidden_size"))),
        ("feed_forward_length", u32(hyper.whole("intermediate_size"))),
        ("attention.head_count", u32(hyper.whole("num_attention_heads"))),
        ("attention.head_count_kv", u32(kv_heads(hyper))),
        ("attention.key_length", u32(size)),
        ("attention.value_length", u32(size)),
        ("attention.layer_norm_rms_epsilon", f32(hyper.number("rms_norm_eps", 1e-6))),
        ("vocab_size", u32(vocabulary)),
        ("rope.dimension_count", u32(size)),
        ("rope.freq_base", f32(hyper.rope.theta)),
    ]
    return found + _rope_scaling(hyper)


def _rope_scaling(hyper: Hyper) -> Pairs:
    rope = hyper.rope
    if rope.kind not in ("linear", "yarn"):
        return []
    factor = _factor(hyper)
    found = [("rope.scaling.type", text(rope.kind)), ("rope.scaling.factor", f32(factor))]
    if rope.kind == "linear":
        return found
    settings = rope.settings
    original = hyper.number("original_max_position_embeddings", hyper.whole("max_position_embeddings"), settings)
    found.append(("rope.scaling.original_context_length", u32(int(original))))
    # llama.cpp multiplies YaRN's usual stretch of the attention by a factor; transformers is told the product.
    usual = _stretch(factor, 1.0)
    product = hyper.number("attention_factor", usual, settings)
    if settings.get("attention_factor") is None and settings.get("mscale") and settings.get("mscale_all_dim"):
        part, whole = (hyper.number(key, within=settings) for key in ("mscale", "mscale_all_dim"))
        product = _stretch(factor, part) / _stretch(factor, whole)
    if product != usual:
        found.append(("rope.scaling.attn_factor", f32(product / usual)))
    return found


def _stretch(factor: float, scale: float) -> float:
    return 0.1 * scale * math.log(factor) + 1 if factor > 1 else 1.0


def _factor(hyper: Hyper) -> float:
    return hyper.number("factor", within=hyper.rope.settings)


def _llama3_factors(hyper: Hyper) -> Sequence[Computed]:
    rope, size = hyper.rope, head_dim(hyper)
    if rope.kind != "llama3":
        return ()
    settings = rope.settings
    low = hyper.number("low_freq_factor", 1.0, settings)
    high = hyper.number("high_freq_factor", 4.0, settings)
    if high <= low:
        raise hyper.error(f"high_freq_factor {high:g} is not above low_freq_factor {low:g}")
    original = hyper.number("original_max_position_embeddings", 8192, settings)
    source = RopeFactors(rope.theta, size, hyper.number("factor", 8.0, settings), low, high, int(original))
    return (Computed("rope_freqs.weight", source, (size // 2,)),)


LLAMA = Architecture(
    name="llama",
    classes=("LlamaForCausalLM", "LLaMAForCausalLM", "MistralForCausalLM"),
    outer=_OUTER,
    inner=_LLAMA_INNER,
    interleaved={"attn_q": "heads", "attn_k": "kv_heads"},
    shapes=_LLAMA_SHAPES,
    check=_check_llama,
    pairs=_llama_pairs,
    computed=_llama3_factors,
)

ARCHITECTURES: tuple[Architecture, ...] = (LLAMA,)
