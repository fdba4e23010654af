"""llama.cpp's mixtures against llama.cpp: sizes of files its own quantizer wrote, decisions its own tests record, and
tables worked out by hand from its rules for shapes those do not cover."""

from __future__ import annotations

import re

import pytest

from core.formats.ggml.types import GGML_TYPES
from core.recipes.presets import PRESETS, get_preset
from core.recipes.presets.llama_cpp import gguf_name, kind_of, substitute
from core.recipes.presets.mixtures import MIXTURES
from core.targets.base import Outline
from tests.core.recipes.outlines import llama, tensor

# Bytes of the files that llama.cpp wrote for the demo model (hidden 256, 4 layers, 8 heads, 4 key-value heads,
# vocabulary 2,048) without and with an imatrix. Its header and tokenizer take the same room in each.
LLAMA_CPP_BYTES = {
    ("Q2_K", False): 1540000,
    ("Q2_K", True): 1540000,
    ("Q3_K_S", False): 1739680,
    ("Q3_K_M", False): 1869728,
    ("Q3_K_M", True): 1869728,
    ("Q3_K_L", False): 1976224,
    ("Q4_0", False): 2122656,
    ("Q4_0", True): 2122656,
    ("Q4_K_S", False): 2139040,
    ("Q4_K_S", True): 2139040,
    ("Q4_K_M", False): 2207136,
    ("Q4_K_M", True): 2207136,
    ("Q5_K_S", False): 2483104,
    ("Q5_K_M", False): 2526624,
    ("Q6_K", False): 2866080,
    ("Q8_0", False): 3691424,
    ("Q8_0", True): 3691424,
    ("IQ4_XS", False): 2032544,
    ("IQ4_XS", True): 2032544,
    ("IQ4_NL", False): 2122656,
    ("IQ4_NL", True): 2122656,
    ("IQ3_S", False): 1739680,
    ("IQ3_S", True): 1739680,
    ("IQ3_XXS", True): 1547168,
    ("IQ2_S", True): 1393568,
}
HEADER_BYTES = 61344


def chosen(preset: str, outline: Outline, importance: bool = False) -> dict[str, str]:
    """Format by tensor name."""
    choices = get_preset(preset).choose(outline, importance)
    return {t.name: c.format for t, c in zip(outline.tensors, choices, strict=True)}


def by_layer(formats: dict[str, str], stem: str) -> list[str]:
    found = {int(m.group(1)): f for n, f in formats.items() if (m := re.fullmatch(rf"blk\.(\d+)\.{stem}\.weight", n))}
    return [found[n] for n in range(len(found))]


@pytest.mark.parametrize(("preset", "importance"), LLAMA_CPP_BYTES)
def test_sizes_are_those_of_llama_cpps_files(preset: str, importance: bool) -> None:
    outline = llama(4, vocab=2048)
    total = 0
    for t, choice in zip(outline.tensors, get_preset(preset).choose(outline, importance), strict=True):
        nbytes = 4 * t.numel if choice.format == "keep" else GGML_TYPES[choice.format.upper()].nbytes(t.shape)
        total += -(-nbytes // 32) * 32
    assert LLAMA_CPP_BYTES[preset, importance] - total == HEADER_BYTES


def layers(text: str) -> list[int]:
    """ "0-2,5" → [0, 1, 2, 5]."""
    found = []
    for part in text.split(","):
        low, _, high = part.partition("-")
        found += range(int(low), int(high or low) + 1)
    return found


# What llama.cpp's own test of type selection records for Llama-3.1-70B (80 layers, 64 heads, 8 key-value heads): the
# default, then per kind of tensor the layers that get something else.
THIRDS_80 = "0-9,12,15,18,21,24,27,30,33,36,39,42,45,48,51,54,57,60,63,66,69-79"
ALL_80 = "0-79"
LLAMA_70B = {
    "Q4_0": ("q4_0", "q6_k", {}),
    "Q4_1": ("q4_1", "q6_k", {}),
    "Q5_0": ("q5_0", "q6_k", {}),
    "Q5_1": ("q5_1", "q6_k", {}),
    "Q8_0": ("q8_0", "q8_0", {}),
    "Q2_K": (
        "q2_k",
        "q6_k",
        {"attn_output": {"q3_k": ALL_80}, "attn_v": {"q5_k": ALL_80}, "ffn_down": {"q3_k": ALL_80}},
    ),
    "Q2_K_S": ("q2_k", "q6_k", {"attn_v": {"q5_k": ALL_80}, "ffn_down": {"q4_k": "0-9"}}),
    "Q3_K_S": ("q3_k", "q6_k", {"attn_v": {"q5_k": ALL_80}}),
    "Q3_K_M": (
        "q3_k",
        "q6_k",
        {
            "attn_output": {"q4_k": ALL_80},
            "attn_v": {"q5_k": ALL_80},
            "ffn_down": {"q5_k": "0-4", "q4_k": "5-79"},
        },
    ),
    "Q3_K_L": (
        "q3_k",
        "q6_k",
        {"attn_output": {"q5_k": ALL_80}, "attn_v": {"q5_k": ALL_80}, "ffn_down": {"q5_k": ALL_80}},
    ),
    "Q4_K_S": ("q4_k", "q6_k", {"attn_v": {"q5_k": ALL_80}, "ffn_down": {"q5_k": "0-9"}}),
    "Q4_K_M": ("q4_k", "q6_k", {"attn_v": {"q5_k": ALL_80, "q6_k": THIRDS_80}, "ffn_down": {"q6_k": THIRDS_80}}),
    "Q5_K_S": ("q5_k", "q6_k", {}),
    "Q5_K_M": ("q5_k", "q6_k", {"attn_v": {"q6_k": THIRDS_80}, "ffn_down": {"q6_k": THIRDS_80}}),
    "Q6_K": ("q6_k", "q6_k", {}),
    "IQ4_NL": ("iq4_nl", "q6_k", {"attn_v": {"q5_k": ALL_80}, "ffn_down": {"q5_k": "0-9"}}),
    "IQ4_XS": ("iq4_xs", "q6_k", {"attn_v": {"q5_k": ALL_80}, "ffn_down": {"q5_k": "0-9"}}),
    "IQ3_S": ("iq3_s", "q6_k", {"attn_v": {"q5_k": ALL_80}}),
    "IQ3_M": (
        "iq3_s",
        "q6_k",
        {"attn_output": {"q4_k": ALL_80}, "attn_v": {"q5_k": ALL_80}, "ffn_down": {"q4_k": "0-9"}},
    ),
    "IQ3_XS": (
        "iq3_s",
        "q6_k",
        {
            "attn_q": {"iq3_xxs": ALL_80},
            "attn_k": {"iq3_xxs": ALL_80},
            "attn_v": {"q5_k": ALL_80},
            "ffn_gate": {"iq3_xxs": "10-69"},
            "ffn_up": {"iq3_xxs": "10-69"},
        },
    ),
    "IQ3_XXS": (
        "iq3_xxs",
        "q5_k",
        {
            "token_embd": "iq3_s",
            "attn_q": {"iq2_s": ALL_80},
            "attn_k": {"iq2_s": ALL_80},
            "attn_output": {"iq3_s": ALL_80},
            "attn_v": {"q5_k": ALL_80},
            "ffn_down": {"q4_k": "0-9", "q3_k": "10-79"},
        },
    ),
    "IQ2_XXS": (
        "iq2_xxs",
        "q5_k",
        {"token_embd": "q2_k", "attn_v": {"q4_k": ALL_80}, "ffn_down": {"q2_k": "0-9"}},
    ),
    "IQ2_XS": ("iq2_xs", "q5_k", {"token_embd": "q2_k", "attn_v": {"q4_k": ALL_80}, "ffn_down": {"q2_k": "0-9"}}),
    "IQ2_S": (
        "iq2_xs",
        "q5_k",
        {
            "token_embd": "iq3_s",
            "attn_output": {"iq3_s": ALL_80},
            "attn_v": {"q4_k": ALL_80},
            "ffn_down": {"iq3_s": "0-9"},
        },
    ),
    "IQ2_M": (
        "iq2_s",
        "q5_k",
        {
            "token_embd": "iq3_s",
            "attn_output": {"iq3_s": ALL_80},
            "attn_v": {"q4_k": ALL_80},
            "ffn_down": {"iq3_s": "0-9"},
        },
    ),
    "IQ1_S": (
        "iq1_s",
        "q5_k",
        {
            "token_embd": "q2_k",
            "attn_output": {"iq2_xxs": ALL_80},
            "attn_v": {"q4_k": ALL_80},
            "ffn_down": {"q2_k": "0-9"},
        },
    ),
    "IQ1_M": (
        "iq1_m",
        "q5_k",
        {
            "token_embd": "q2_k",
            "attn_output": {"iq2_xxs": ALL_80},
            "attn_v": {"q4_k": ALL_80},
            "ffn_down": {"q2_k": "0-9"},
        },
    ),
    "TQ1_0": ("tq1_0", "q6_k", {"token_embd": "q4_k"}),
    "TQ2_0": ("tq2_0", "q6_k", {"token_embd": "q4_k"}),
    "MXFP4_MOE": ("q8_0", "q8_0", {}),
}
STEMS = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")


@pytest.mark.parametrize("preset", LLAMA_70B)
def test_decisions_for_a_70b_model(preset: str) -> None:
    formats = chosen(preset, llama(80, heads=64, kv_heads=8, hidden=1024, ffn=2048))
    default, head, others = LLAMA_70B[preset]
    assert formats["output.weight"] == head
    assert formats["token_embd.weight"] == others.get("token_embd", default)
    for stem in STEMS:
        expected = [default] * 80
        for given, where in others.get(stem, {}).items():
            for n in layers(where):
                expected[n] = given
        assert by_layer(formats, stem) == expected, stem


# The same record for gpt-oss-120b: 36 layers, 128 experts, 64 heads on 8, and columns of 2,880, which no super-block
# divides; attn_output alone has 4,096 columns.
THIRDS_36 = "0-3,6,9,12,15,18,21,24,27,30-35"
GPT_OSS = {
    # preset: (most tensors, head, attn_output, {kind: {format: layers}})
    "Q4_K_M": ("q5_0", "q8_0", "q4_k", {"attn_v": {"q8_0": THIRDS_36}, "ffn_down_exps": {"q8_0": THIRDS_36}}),
    "Q4_K_S": ("q5_0", "q8_0", "q4_k", {"attn_v": {"q5_1": "0-3"}, "ffn_down_exps": {"q5_1": "0-3"}}),
    "Q5_K_M": ("q5_1", "q8_0", "q5_k", {"attn_v": {"q8_0": THIRDS_36}, "ffn_down_exps": {"q8_0": THIRDS_36}}),
    "Q6_K": ("q8_0", "q8_0", "q6_k", {}),
    "Q4_0": ("q4_0", "q8_0", "q4_0", {}),
    "Q3_K_S": ("q4_0", "q8_0", "q3_k", {}),
    "Q3_K_L": ("q4_0", "q8_0", "q5_k", {"attn_v": {"q5_1": "0-35"}, "ffn_down_exps": {"q5_1": "0-35"}}),
    "Q2_K_S": ("q4_0", "q8_0", "q2_k", {"attn_v": {"q5_0": "0-35"}, "ffn_down_exps": {"q5_0": "0-3"}}),
}


def odd_moe() -> Outline:
    base = llama(36, hidden=2880, ffn=2880, heads=64, kv_heads=8, experts=128)
    wide = tuple(
        tensor(t.name, (2880, 4096), t.source.names()[0]) if ".attn_output." in t.name else t for t in base.tensors
    )
    return Outline(wide, layers=36, heads=64, kv_heads=8, experts=128)


@pytest.mark.parametrize("preset", GPT_OSS)
def test_decisions_for_odd_columns_and_many_experts(preset: str) -> None:
    outline = odd_moe()
    formats = chosen(preset, outline)
    most, head, attn_output, others = GPT_OSS[preset]
    assert formats["output.weight"] == head
    assert formats["token_embd.weight"] == most
    assert by_layer(formats, "attn_output") == [attn_output] * 36
    for stem in ("attn_q", "attn_k", "attn_v", "ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"):
        expected = [most] * 36
        for given, where in others.get(stem, {}).items():
            for n in layers(where):
                expected[n] = given
        assert by_layer(formats, stem) == expected, stem
    assert {formats[t.name] for t in outline.tensors if "ffn_gate_inp" in t.name or "norm" in t.name} == {"keep"}


# Worked out by hand from the rules: i < n/8, or i ≥ 7n/8, or (i − n/8) mod 3 = 2, all divisions whole.
MORE_BITS = {
    4: [2, 3],  # n/8 = 0, 7n/8 = 3; i mod 3 = 2 → 2; i ≥ 3 → 3
    7: [2, 5, 6],  # n/8 = 0, 7n/8 = 6
    22: [0, 1, 4, 7, 10, 13, 16, 19, 20, 21],  # n/8 = 2, 7n/8 = 19
    32: [0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 28, 29, 30, 31],  # n/8 = 4, 7n/8 = 28
}


@pytest.mark.parametrize("count", MORE_BITS)
def test_four_bits_medium_by_hand(count: int) -> None:
    formats = chosen("Q4_K_M", llama(count))
    expected = ["q6_k" if n in MORE_BITS[count] else "q4_k" for n in range(count)]
    assert by_layer(formats, "attn_v") == expected
    assert by_layer(formats, "ffn_down") == expected
    for stem in ("attn_q", "attn_k", "attn_output", "ffn_gate", "ffn_up"):
        assert set(by_layer(formats, stem)) == {"q4_k"}
    assert formats["output.weight"] == "q6_k"
    assert formats["token_embd.weight"] == "q4_k"


@pytest.mark.parametrize(("count", "eighth"), [(4, 0), (7, 0), (22, 2), (32, 4)])
def test_four_bits_small_by_hand(count: int, eighth: int) -> None:
    formats = chosen("Q4_K_S", llama(count))
    assert by_layer(formats, "attn_v") == ["q5_k"] * 4 + ["q4_k"] * (count - 4)
    assert by_layer(formats, "ffn_down") == ["q5_k"] * eighth + ["q4_k"] * (count - eighth)
    assert set(by_layer(formats, "ffn_up") + by_layer(formats, "attn_output")) == {"q4_k"}


def test_eight_experts_by_hand() -> None:
    """Mixtral: v and k in 8 bits, output in 5, stacked experts by the layer in their name."""
    formats = chosen("Q4_K_M", llama(32, heads=32, kv_heads=8, experts=8))
    assert set(by_layer(formats, "attn_v") + by_layer(formats, "attn_k")) == {"q8_0"}
    assert set(by_layer(formats, "attn_output")) == {"q5_k"}
    assert set(by_layer(formats, "attn_q")) == {"q4_k"}
    expected = ["q6_k" if n in MORE_BITS[32] else "q4_k" for n in range(32)]
    assert by_layer(formats, "ffn_down_exps") == expected
    assert set(by_layer(formats, "ffn_gate_exps")) == {"q4_k"}
    assert set(by_layer(chosen("Q3_K_L", llama(8, experts=8)), "attn_output")) == {"q3_k"}
    low = chosen("IQ2_XS", llama(16, heads=8, kv_heads=8, experts=8))
    assert set(by_layer(low, "attn_v") + by_layer(low, "attn_k")) == {"q4_k"}
    assert set(by_layer(low, "attn_output")) == {"q5_k"}
    assert by_layer(low, "ffn_down_exps") == ["q2_k"] * 2 + ["iq2_xs"] * 14


def test_floats_for_stacked_experts_only() -> None:
    formats = chosen("MXFP4_MOE", llama(4, experts=4))
    assert set(by_layer(formats, "ffn_up_exps") + by_layer(formats, "ffn_down_exps")) == {"mxfp4"}
    assert {formats[n] for n in ("output.weight", "token_embd.weight", "blk.0.attn_q.weight")} == {"q8_0"}


def test_importance_changes_what_llama_cpp_lets_it_change() -> None:
    outline = llama(32)
    assert by_layer(chosen("IQ4_XS", outline), "ffn_down") == ["q5_k"] * 4 + ["iq4_xs"] * 28
    assert set(by_layer(chosen("IQ4_XS", outline, True), "ffn_down")) == {"iq4_xs"}
    assert set(by_layer(chosen("Q4_0", outline), "ffn_down")) == {"q4_0"}
    assert by_layer(chosen("Q4_0", outline, True), "ffn_down") == ["q4_1"] * 4 + ["q4_0"] * 28
    assert by_layer(chosen("Q5_0", outline, True), "ffn_down") == ["q5_1"] * 4 + ["q5_0"] * 28
    assert set(by_layer(chosen("IQ3_XXS", outline), "attn_v")) == {"iq3_s"}
    assert set(by_layer(chosen("IQ3_XXS", outline, True), "attn_v")) == {"iq3_xxs"}


@pytest.mark.parametrize(
    ("preset", "head"), [("Q4_K_M", "q6_k"), ("Q4_0", "q6_k"), ("Q8_0", "q8_0"), ("IQ2_M", "q5_k")]
)
def test_a_tied_embedding_gets_the_heads_format(preset: str, head: str) -> None:
    assert chosen(preset, llama(4, tied=True))["token_embd.weight"] == head


def test_falcon_by_hand() -> None:
    """32 layers: n/16 = 2 in six bits, then five where others have six; the head in eight."""
    formats = chosen("Q4_K_M", llama(32, arch="falcon"))
    expected = ["q6_k" if n < 2 else "q5_k" if n in MORE_BITS[32] else "q4_k" for n in range(32)]
    assert by_layer(formats, "ffn_down") == expected
    assert formats["output.weight"] == "q8_0"


@pytest.mark.parametrize(
    ("type_name", "columns", "expected"),
    [
        ("Q4_K", 512, "Q4_K"),
        ("Q4_K", 96, "Q5_0"),
        ("Q5_K", 96, "Q5_1"),
        ("Q6_K", 96, "Q8_0"),
        ("Q2_K", 96, "Q4_0"),
        ("Q3_K", 96, "Q4_0"),
        ("TQ1_0", 96, "Q4_0"),
        ("IQ4_XS", 96, "IQ4_NL"),
        ("IQ3_S", 96, "IQ4_NL"),
        ("IQ1_M", 96, "IQ4_NL"),
        ("Q4_K", 100, "F16"),
        ("Q8_0", 100, "F16"),
        ("IQ4_NL", 100, "F16"),
    ],
)
def test_substitutes_for_odd_columns(type_name: str, columns: int, expected: str) -> None:
    assert substitute(type_name, columns) == expected


def test_substitutes_are_said() -> None:
    outline = llama(4, hidden=288, ffn=100)
    choices = dict(zip([t.name for t in outline.tensors], get_preset("Q4_K_M").choose(outline, False), strict=True))
    q, down, head = choices["blk.0.attn_q.weight"], choices["blk.2.ffn_down.weight"], choices["output.weight"]
    assert (q.format, q.reason, q.fallback) == ("q5_0", "columns 288: q4_k → q5_0", True)
    assert (down.format, down.reason, down.fallback) == ("f16", "columns 100: q6_k → f16", True)
    assert (head.format, head.reason, head.fallback) == ("q8_0", "head, columns 288: q6_k → q8_0", True)
    plain = get_preset("Q4_K_M").choose(llama(4), False)
    assert not any(c.fallback for c in plain)
    assert {c.reason for c in plain} == {"", "head: q4_k → q6_k", "attn_v: q4_k → q6_k", "ffn_down: q4_k → q6_k"}


@pytest.mark.parametrize("preset", [m.name for m in MIXTURES])
def test_hugging_face_names_get_the_same_choices(preset: str) -> None:
    there, here = llama(22), llama(22, gguf=False)
    assert list(chosen(preset, there).values()) == list(chosen(preset, here).values())


def test_counting_goes_by_block_not_by_order() -> None:
    outline = llama(32)
    shuffled = Outline(outline.tensors[::-1], layers=32, heads=8, kv_heads=4)
    assert chosen("Q4_K_M", shuffled) == chosen("Q4_K_M", outline)


def test_layers_are_counted_where_the_outline_does_not_say() -> None:
    outline = llama(32)
    assert chosen("Q4_K_M", Outline(outline.tensors)) == chosen("Q4_K_M", outline)


def test_kinds_and_names() -> None:
    assert kind_of("blk.3.ffn_gate_exps.weight") == "gate"
    assert kind_of("blk.3.attn_q_a.weight") == "other"
    assert kind_of("output.weight") == "head"
    assert kind_of("blk.0.attn_output.weight") == "o"
    assert gguf_name(tensor("model.layers.7.self_attn.q_proj.weight", (4, 4))) == "blk.7.attn_q.weight"
    assert gguf_name(tensor("lm_head.weight", (4, 4))) == "output.weight"
    assert gguf_name(tensor("model.vision.patch", (4, 4))) == "model.vision.patch"


def test_what_llama_cpp_never_quantizes() -> None:
    names = [
        "blk.0.attn_norm.weight",
        "blk.0.ffn_gate_inp.weight",
        "blk.0.attn_q.bias",
        "position_embd.weight",
        "token_types.weight",
        "blk.0.ssm_conv1d.weight",
        "blk.0.time_mix_w1.weight",
        "v.patch_embd.weight",
        "blk.0.ssm_a",
        "rope_freqs.weight",
    ]
    shapes = {"rope_freqs.weight": (64,), "blk.0.ssm_a": (256, 256)}
    outline = Outline((tensor("token_embd.weight", (512, 256)), *(tensor(n, shapes.get(n, (512, 256))) for n in names)))
    formats = chosen("Q4_0", outline)
    assert formats.pop("token_embd.weight") == "q6_k"
    assert set(formats.values()) == {"keep"}


def test_presets_that_llama_quantize_refuses_without_importance_say_so() -> None:
    """It refuses tensors of these types, embedding and head excepted, and the mixture Q2_K_S."""
    refused = {"IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS"}
    model = llama(16)
    for mixture in MIXTURES:
        preset = get_preset(mixture.name)
        assert preset.available
        given = {t.name: c.format.upper() for t, c in zip(model.tensors, preset.choose(model, False), strict=True)}
        matrices = {f for name, f in given.items() if name not in ("token_embd.weight", "output.weight")}
        assert preset.needs_importance == (bool(matrices & refused) or mixture.name == "Q2_K_S"), mixture.name
    assert not any((name, False) in LLAMA_CPP_BYTES for name in (m.name for m in MIXTURES if m.needy))


def test_every_type_of_every_mixture_exists() -> None:
    for mixture in MIXTURES:
        assert set(mixture.types) <= set(GGML_TYPES)
    names = [p.name.lower() for p in PRESETS]
    assert len(set(names)) == len(names)
