"""Key-values that many architectures have in common, and the sizes in words that shapes are given in."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NoReturn

from core.checkpoints.gguf import Value, ValueType
from core.targets.gguf.hyper import Hyper, Rope
from core.targets.gguf.record import Computed, Pairs
from core.targets.gguf.rows import RopeFactors


def u32(value: int) -> Value:
    return Value.of(ValueType.UINT32, value)


def f32(value: float) -> Value:
    return Value.of(ValueType.FLOAT32, value)


def text(value: str) -> Value:
    return Value.of(ValueType.STRING, value)


def boolean(value: bool) -> Value:
    return Value.of(ValueType.BOOL, value)


def heads(hyper: Hyper) -> int:
    return hyper.whole("num_attention_heads")


def kv_heads(hyper: Hyper) -> int:
    return hyper.whole("num_key_value_heads", heads(hyper))


def head_dim(hyper: Hyper) -> int:
    hidden = hyper.whole("hidden_size")
    if hyper.get("head_dim") is None and hidden % heads(hyper):
        raise hyper.error(f"hidden_size {hidden} is not a multiple of num_attention_heads {heads(hyper)}")
    return hyper.whole("head_dim", hidden // heads(hyper))


def expert_count(hyper: Hyper) -> int:
    """0 for a model without experts."""
    for key in ("num_local_experts", "num_experts", "n_routed_experts"):
        if hyper.get(key) is not None:
            return hyper.whole(key)
    return 0


def _no_experts(hyper: Hyper) -> NoReturn:
    raise hyper.error("there is no number of experts")


# The words of shapes.
SIZES: Mapping[str, Callable[[Hyper], int]] = {
    "hidden": lambda h: h.whole("hidden_size"),
    "ffn": lambda h: h.whole("intermediate_size"),
    "ffn_pair": lambda h: 2 * h.whole("intermediate_size"),
    "head": head_dim,
    "heads": lambda h: heads(h) * head_dim(h),
    "kv_heads": lambda h: kv_heads(h) * head_dim(h),
    "qkv": lambda h: (heads(h) + 2 * kv_heads(h)) * head_dim(h),
    "positions": lambda h: h.whole("max_position_embeddings"),
    "types": lambda h: h.whole("type_vocab_size"),
    "experts": lambda h: expert_count(h) or _no_experts(h),
    "expert_ffn": lambda h: h.whole("moe_intermediate_size"),
    "shared_ffn": lambda h: h.whole("shared_expert_intermediate_size"),
    "one": lambda h: 1,
}


def shape(hyper: Hyper, feed_forward: str = "intermediate_size") -> Pairs:
    """Layers, context, widths and heads: asked for by every architecture."""
    return [
        ("block_count", u32(hyper.whole("num_hidden_layers"))),
        ("context_length", u32(hyper.whole("max_position_embeddings"))),
        ("embedding_length", u32(hyper.whole("hidden_size"))),
        ("feed_forward_length", u32(hyper.whole(feed_forward))),
        ("attention.head_count", u32(heads(hyper))),
        ("attention.head_count_kv", u32(kv_heads(hyper))),
    ]


def head_sizes(hyper: Hyper) -> Pairs:
    size = head_dim(hyper)
    return [("attention.key_length", u32(size)), ("attention.value_length", u32(size))]


def rms(hyper: Hyper, key: str = "rms_norm_eps") -> Pairs:
    return [("attention.layer_norm_rms_epsilon", f32(hyper.number(key, 1e-6)))]


def layer_norm(hyper: Hyper, key: str) -> Pairs:
    return [("attention.layer_norm_epsilon", f32(hyper.number(key, 1e-5)))]


def rotated(hyper: Hyper) -> int:
    """Dimensions of a head that the rotary embedding turns."""
    given = {"partial_rotary_factor": hyper.get("partial_rotary_factor"), **hyper.rope.settings}
    share = hyper.number("partial_rotary_factor", 1.0, given)
    size = int(head_dim(hyper) * share)
    if not 0 < size <= head_dim(hyper) or size % 2:
        raise hyper.error(f"partial_rotary_factor {share:g} of a head of {head_dim(hyper)} is no even number")
    return size


def rope(hyper: Hyper) -> Pairs:
    return [
        ("rope.dimension_count", u32(rotated(hyper))),
        ("rope.freq_base", f32(hyper.rope.theta)),
        *rope_scaling(hyper, hyper.rope),
    ]


def rope_scaling(hyper: Hyper, rope: Rope) -> Pairs:
    """Of the kinds linear and yarn; llama3 is a tensor (see llama3_factors)."""
    if rope.kind not in ("linear", "yarn"):
        return []
    settings = rope.settings
    factor = hyper.number("factor", within=settings)
    found = [("rope.scaling.type", text(rope.kind)), ("rope.scaling.factor", f32(factor))]
    if rope.kind == "linear":
        return found
    original = hyper.number("original_max_position_embeddings", hyper.whole("max_position_embeddings"), settings)
    found.append(("rope.scaling.original_context_length", u32(int(original))))
    # llama.cpp multiplies YaRN's usual stretch of the attention by a factor; transformers is told the product.
    usual = _stretch(factor, 1.0)
    product = hyper.number("attention_factor", usual, settings)
    if settings.get("attention_factor") is None and settings.get("mscale") and settings.get("mscale_all_dim"):
        one, whole = (hyper.number(key, within=settings) for key in ("mscale", "mscale_all_dim"))
        product = _stretch(factor, one) / _stretch(factor, whole)
    if product != usual:
        found.append(("rope.scaling.attn_factor", f32(product / usual)))
    return found


def _stretch(factor: float, scale: float) -> float:
    return 0.1 * scale * math.log(factor) + 1 if factor > 1 else 1.0


def llama3_factors(hyper: Hyper) -> Sequence[Computed]:
    """The divisors of Llama 3.1's frequencies, a tensor in GGUF."""
    rope, size = hyper.rope, rotated(hyper)
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


def experts(hyper: Hyper) -> Pairs:
    """Counts of experts; nothing for a model without them."""
    if not expert_count(hyper):
        return []
    used = hyper.whole("num_experts_per_tok")
    if used > expert_count(hyper):
        raise hyper.error(f"num_experts_per_tok is {used}, of {expert_count(hyper)} experts")
    return [("expert_count", u32(expert_count(hyper))), ("expert_used_count", u32(used))]
