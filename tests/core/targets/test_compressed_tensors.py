"""compressed-tensors folders, loaded by transformers with the compressed-tensors package, byte packing against the
package's own, and what the container refuses."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from core.checkpoints import open_checkpoint
from core.errors import TargetError
from core.formats import FORMATS, get_format
from core.formats.uniform import Uniform
from core.targets import folder as folders
from core.targets import get_target
from tests.core.targets.build import assemble, gpt2_like, matrices, save_model, save_tokenizer, size_of

SHAPES = {"hidden_size": 64, "intermediate_size": 96, "vocab_size": 300}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = save_model(tmp_path_factory.mktemp("model"), **SHAPES)
    save_tokenizer(folder, gpt2_like())
    return folder


def dequantized(folder: Path, format_name: str, dtype: str = "BF16") -> dict[str, torch.Tensor]:
    """What the weights must be by our own formats, straight from the source."""
    target = get_target("compressed-tensors")
    found = {}
    with open_checkpoint(folder) as checkpoint:
        for tensor in target.outline(checkpoint).tensors:
            w = tensor.source.read(checkpoint, 0, tensor.rows)
            if matrices(format_name, head=False)(tensor):
                fmt = target.adapt(get_format(format_name.partition("(")[0]), tensor)
                assert isinstance(fmt, Uniform)
                assert fmt.scale_dtype == dtype
                w = fmt.quantize(w).dequantize()
            found[tensor.name] = w.float().reshape(tensor.shape)
    return found


def load(folder: Path, dequantize: bool):
    from transformers import AutoModelForCausalLM
    from transformers.utils.quantization_config import CompressedTensorsConfig

    config = CompressedTensorsConfig(dequantize=True) if dequantize else None
    options = {"quantization_config": config} if dequantize else {}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "You passed `quantization_config`")
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options).eval()


@pytest.mark.parametrize(
    "name",
    [
        "int2-g32",
        "int3-g32-asym",
        "int4-g32",
        "int4-g32-asym",
        "int5",
        "int6-g16-asym",
        "int7-asym",
        "int8",
        "int8-g32",
        "int8-asym",
        "int4-tensor",
        "int8-tensor-asym",
    ],
)
def test_transformers_finds_our_weights(model, tmp_path, name) -> None:
    assemble(model, "compressed-tensors", tmp_path / "m", matrices(name, head=False), slice_rows=32)
    loaded = load(tmp_path / "m", dequantize=True).state_dict()
    expected = dequantized(model, name)
    assert len(expected) == 21
    changed = 0
    source = load_file(model / "model.safetensors")
    for key, w in expected.items():
        # Scales are bf16, and the package multiplies in their type: codes are equal, products rounded once more.
        torch.testing.assert_close(loaded[key], w, rtol=2**-8, atol=1e-6, msg=lambda m, k=key: f"{k}: {m}")
        changed += not torch.equal(w, source[key].float())
    assert changed == 14


def test_float32_scales_leave_no_difference_at_all(tmp_path) -> None:
    folder = save_model(tmp_path / "source", dtype=torch.float32, **SHAPES)
    assemble(folder, "compressed-tensors", tmp_path / "m", matrices("int4-g32", head=False))
    loaded = load(tmp_path / "m", dequantize=True).state_dict()
    for key, w in dequantized(folder, "int4-g32", "F32").items():
        assert torch.equal(loaded[key], w), key


@pytest.mark.parametrize("name", ["int4-g32", "int8", "int3-g16", "int4-tensor"])
def test_runs_compressed_with_the_logits_of_our_weights(tmp_path, name) -> None:
    """The very logits, where scales are float32 as the model is."""
    source = save_model(tmp_path / "source", dtype=torch.float32, **SHAPES)
    assemble(source, "compressed-tensors", tmp_path / "m", matrices(name, head=False))
    ids = torch.tensor([[3, 70, 8, 255, 19, 44]])
    theirs, ours = load(tmp_path / "m", dequantize=False), load(source, dequantize=False)
    with torch.inference_mode():
        before = ours(ids).logits
        ours.load_state_dict(dequantized(source, name, "F32"))
        wanted, got = ours(ids).logits, theirs(ids).logits
    assert torch.equal(got, wanted)
    assert (wanted - before).abs().max() > 0.1


def test_several_schemes_name_their_modules(model, tmp_path) -> None:
    def choose(tensor):
        if tensor.role.kind in ("q", "k", "v"):
            return "int8"
        return "int4-g32" if tensor.role.kind in ("gate", "up", "down") else None

    assemble(model, "compressed-tensors", tmp_path / "m", choose)
    config = json.loads((tmp_path / "m" / "config.json").read_text())["quantization_config"]
    groups = config["config_groups"]
    assert [g["weights"]["num_bits"] for g in groups.values()] == [4, 8]
    assert {len(g["targets"]) for g in groups.values()} == {6}
    assert "model.layers.1.self_attn.k_proj" in groups["group_1"]["targets"]
    assert sorted(config["ignore"]) == [
        "lm_head",
        "model.layers.0.self_attn.o_proj",
        "model.layers.1.self_attn.o_proj",
    ]
    theirs = load(tmp_path / "m", dequantize=False)
    ids = torch.tensor([[3, 70, 8, 255]])
    with torch.inference_mode():
        theirs(ids)  # the first pass decompresses
    source = load_file(model / "model.safetensors")
    target = get_target("compressed-tensors")
    with open_checkpoint(model) as checkpoint:
        for tensor in target.outline(checkpoint).tensors:
            name = choose(tensor)
            w = source[tensor.name].float()
            if name:
                w = target.adapt(get_format(name), tensor).quantize(source[tensor.name]).dequantize()
            torch.testing.assert_close(theirs.state_dict()[tensor.name].float(), w, rtol=2**-8, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "dialect", "codes"),
    [
        ("int8(inputs=dynamic)", "int-quantized", ("weight", torch.int8)),
        ("int8-tensor(inputs=dynamic)", "int-quantized", ("weight", torch.int8)),
        ("int4-g32(inputs=dynamic)", "int-quantized", ("weight", torch.int8)),
        ("int8", "pack-quantized", ("weight_packed", torch.int32)),
        ("int8-g32", "pack-quantized", ("weight_packed", torch.int32)),
        ("int4", "pack-quantized", ("weight_packed", torch.int32)),
    ],
)
def test_integers_are_stored_as_they_are_where_inputs_are_rounded_too(model, tmp_path, name, dialect, codes) -> None:
    from core.checkpoints.dialects import QuantizedCheckpoint

    assemble(model, "compressed-tensors", tmp_path / "m", matrices(name, head=False))
    config = json.loads((tmp_path / "m" / "config.json").read_text())["quantization_config"]
    assert config["format"] == dialect
    stored = load_file(tmp_path / "m" / "model.safetensors")
    assert stored[f"model.layers.0.self_attn.q_proj.{codes[0]}"].dtype == codes[1]
    with open_checkpoint(tmp_path / "m") as again:
        assert isinstance(again, QuantizedCheckpoint)
        for key, w in dequantized(model, name).items():
            assert torch.equal(again.read(key).float().reshape(w.shape), w), key


def test_the_config_says_what_the_package_would_say(model, tmp_path) -> None:
    from compressed_tensors.quantization import QuantizationConfig

    assemble(model, "compressed-tensors", tmp_path / "m", matrices("int4-g32-asym", head=False))
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    source = json.loads((model / "config.json").read_text())
    quantization = config.pop("quantization_config")
    assert config == source
    parsed = QuantizationConfig.model_validate(quantization)
    assert parsed.format == "pack-quantized"
    assert parsed.quantization_status == "compressed"
    assert parsed.ignore == ["lm_head"]
    (scheme,) = parsed.config_groups.values()
    assert scheme.targets == ["Linear"]
    weights = scheme.weights
    assert (weights.num_bits, weights.strategy, weights.group_size, weights.symmetric) == (4, "group", 32, False)


@pytest.mark.parametrize("name", ["int3-g16-asym", "int4-g16-asym", "int5-asym", "int8-g16-asym"])
def test_codes_and_zero_points_are_packed_as_the_package_packs_them(tmp_path, name) -> None:
    """70 rows in slices of 32: zero points run along the rows, over the borders of slices and words."""
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

    torch.manual_seed(3)
    w = (torch.randn(70, 48) + 0.3).bfloat16()
    save_file({"a.q_proj.weight": w}, tmp_path / "w.safetensors")
    assemble(tmp_path / "w.safetensors", "compressed-tensors", tmp_path / "m", lambda t: name, slice_rows=32)
    stored = load_file(tmp_path / "m" / "model.safetensors")
    fmt = get_target("compressed-tensors").adapt(get_format(name), _tensor(tmp_path / "w.safetensors"))
    quantized = fmt.quantize(w)
    bits = fmt.width
    assert torch.equal(stored["a.q_proj.weight_packed"], pack_to_int32(quantized.codes, bits))
    zero = quantized.grid["zero_point"]
    assert torch.equal(stored["a.q_proj.weight_zero_point"], pack_to_int32(zero, bits, packed_dim=0))
    assert stored["a.q_proj.weight_scale"].dtype == torch.bfloat16
    assert torch.equal(stored["a.q_proj.weight_scale"], quantized.grid["scale"])
    assert stored["a.q_proj.weight_shape"].tolist() == [70, 48]
    assert sorted(stored) == [f"a.q_proj.weight_{e}" for e in ("packed", "scale", "shape", "zero_point")]


def _tensor(path: Path):
    with open_checkpoint(path) as checkpoint:
        return get_target("compressed-tensors").outline(checkpoint).tensors[0]


def test_scales_per_column_have_no_place(tmp_path) -> None:
    save_file({"model.layers.0.mlp.up_proj.weight": torch.ones(64, 32)}, tmp_path / "w.safetensors")
    reason = get_target("compressed-tensors").refuses(get_format("int8-col"), _tensor(tmp_path / "w.safetensors"))
    assert reason == "compressed-tensors has no int8-col here; the target dense takes it"


def test_slices_give_the_bytes_of_the_whole(model, tmp_path) -> None:
    for name in ("int3-g32-asym", "int4-tensor-asym"):
        for rows, folder in ((0, "whole"), (32, "slices")):
            assemble(model, "compressed-tensors", tmp_path / name / folder, matrices(name), slice_rows=rows)
        whole, slices = (tmp_path / name / f / "model.safetensors" for f in ("whole", "slices"))
        assert whole.read_bytes() == slices.read_bytes()


def test_kept_tensors_and_side_files_go_over_untouched(model, tmp_path) -> None:
    assemble(model, "compressed-tensors", tmp_path / "m", matrices("int4-g32", head=False))
    source, stored = load_file(model / "model.safetensors"), load_file(tmp_path / "m" / "model.safetensors")
    for name in ("model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"):
        assert stored[name].dtype == torch.bfloat16
        assert torch.equal(source[name], stored[name])
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (tmp_path / "m" / name).read_bytes() == (model / name).read_bytes()
    with safe_open(tmp_path / "m" / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_our_own_reader_finds_the_weights_again(model, tmp_path) -> None:
    for name in ("int4-g32", "int3-g32-asym", "int8", "int8-tensor-asym", "int5-tensor-asym"):
        assemble(model, "compressed-tensors", tmp_path / name, matrices(name, head=False))
        expected = dequantized(model, name)
        with open_checkpoint(tmp_path / name) as checkpoint:
            assert set(checkpoint.tensors) == set(expected)
            for key, w in expected.items():
                assert torch.equal(checkpoint.read(key).float().reshape(w.shape), w), (name, key)


def test_large_models_are_split(model, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(folders, "SHARD_BYTES", 40_000)
    layout = assemble(model, "compressed-tensors", tmp_path / "m", matrices("int4-g32", head=False))
    count = len(layout.files)
    assert count > 2
    assert [f.name for f in layout.files] == [f"model-{n:05d}-of-{count:05d}.safetensors" for n in range(1, count + 1)]
    assert all(f.nbytes <= 40_000 + 4_000 for f in layout.files)
    index = json.loads((tmp_path / "m" / "model.safetensors.index.json").read_text())
    held = {}
    for file in layout.files:
        with safe_open(tmp_path / "m" / file.name, "pt") as opened:
            held |= dict.fromkeys(opened.keys(), file.name)
    assert index["weight_map"] == held
    assert index["metadata"]["total_size"] == sum(p.stored.nbytes for places in layout.places.values() for p in places)
    for module in (n.removesuffix("_packed") for n in held if n.endswith("_packed")):
        assert len({held[f"{module}_{part}"] for part in ("packed", "scale", "shape")}) == 1
    loaded = load(tmp_path / "m", dequantize=True).state_dict()
    for key, w in dequantized(model, "int4-g32").items():
        torch.testing.assert_close(loaded[key], w, rtol=2**-8, atol=1e-6)


def test_nothing_quantized_is_a_plain_model(model, tmp_path) -> None:
    assemble(model, "compressed-tensors", tmp_path / "m")
    assert "quantization_config" not in json.loads((tmp_path / "m" / "config.json").read_text())
    assert load(tmp_path / "m", dequantize=False).lm_head.weight.shape == (300, 64)


def test_a_bare_file_gets_a_config_with_the_quantization_only(tmp_path) -> None:
    save_file({"x.up_proj.weight": torch.randn(32, 64), "x.norm.weight": torch.ones(64)}, tmp_path / "w.safetensors")
    with open_checkpoint(tmp_path / "w.safetensors") as checkpoint:
        outline = get_target("compressed-tensors").outline(checkpoint)
    assert any("config.json" in note for note in outline.notes)
    assert [t.linear for t in outline.tensors] == [False, True]
    assemble(
        tmp_path / "w.safetensors", "compressed-tensors", tmp_path / "m", lambda t: "int4-g32" if t.linear else None
    )
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    assert list(config) == ["quantization_config"]
    assert load_file(tmp_path / "m" / "model.safetensors")["x.up_proj.weight_scale"].dtype == torch.float32


@pytest.mark.parametrize(
    ("name", "shape", "said"),
    [
        ("model.embed_tokens.weight", (64, 64), "embedding"),
        ("transformer.wte.weight", (64, 64), "embedding"),
        ("model.layers.0.input_layernorm.weight", (64,), "1-D"),
        ("model.layers.0.mlp.experts.gate_up_proj", (4, 64, 64), "expert"),
        ("model.layers.0.conv.weight", (64, 4, 3), "Linear"),
        ("model.layers.0.some_table", (64, 64), "Linear"),
        ("lm_head.weight", (64, 64), ""),
        ("model.layers.0.mlp.up_proj.weight", (64, 64), ""),
    ],
)
def test_only_linear_weights_are_quantized(tmp_path, name, shape, said) -> None:
    save_file({name: torch.zeros(shape)}, tmp_path / "w.safetensors")
    reason = get_target("compressed-tensors").refuses(get_format("int4-g32"), _tensor(tmp_path / "w.safetensors"))
    assert (said in reason) if said else reason is None


def test_a_tied_head_is_refused_and_ignored(tmp_path) -> None:
    folder = save_model(tmp_path / "source", tie_word_embeddings=True, **SHAPES)
    weights = load_file(folder / "model.safetensors")
    assert "lm_head.weight" not in weights
    assemble(folder, "compressed-tensors", tmp_path / "a", matrices("int4-g32"))
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    assert config["quantization_config"]["ignore"] == ["lm_head"]
    loaded = load(tmp_path / "a", dequantize=False)
    assert torch.equal(loaded.lm_head.weight, loaded.model.embed_tokens.weight)
    # The same with a copy of its own in the file.
    save_file(weights | {"lm_head.weight": weights["model.embed_tokens.weight"].clone()}, folder / "model.safetensors")
    with open_checkpoint(folder) as checkpoint:
        head = next(t for t in get_target("compressed-tensors").outline(checkpoint).tensors if t.role.kind == "head")
        assert "tied" in (get_target("compressed-tensors").refuses(get_format("int4"), head) or "")


def test_conv1d_models_have_no_linears(tmp_path) -> None:
    save_file({"h.0.attn.c_attn.weight": torch.zeros(64, 192)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    assert "Linear" in (get_target("compressed-tensors").refuses(get_format("int4"), _tensor(tmp_path)) or "")


@pytest.mark.parametrize("fmt", [f for f in FORMATS if f.encodable], ids=lambda f: f.name)
def test_formats_are_taken_by_kind(tmp_path, fmt) -> None:
    save_file({"a.q_proj.weight": torch.zeros(512, 512)}, tmp_path / "w.safetensors")
    reason = get_target("compressed-tensors").refuses(fmt, _tensor(tmp_path / "w.safetensors"))
    floats = fmt.family == "mx" or fmt.name == "mxfp4" or fmt.name.startswith("fp8-e4m3")
    integers = type(fmt) is Uniform and fmt.granularity != "column"
    assert (reason is None) == (fmt.family == "dense" or integers or floats)
    assert reason is None or fmt.name in reason


def test_a_gguf_is_no_source(tmp_path, model) -> None:
    assemble(model, "gguf", tmp_path / "m.gguf")
    with (
        open_checkpoint(tmp_path / "m.gguf") as checkpoint,
        pytest.raises(TargetError, match=r"GGUF.*config\.json"),
    ):
        get_target("compressed-tensors").outline(checkpoint)


def test_sizes_are_exact_for_odd_shapes(tmp_path) -> None:
    save_file(
        {"a.q_proj.weight": torch.randn(5, 50), "b.q_proj.weight": torch.randn(33, 7)}, tmp_path / "w.safetensors"
    )
    for name in ("int3", "int5-asym", "int7-tensor", "int2-tensor-asym"):
        layout = assemble(tmp_path / "w.safetensors", "compressed-tensors", tmp_path / name, lambda t, n=name: n)
        assert size_of(tmp_path / name) == layout.nbytes
        assert load_file(tmp_path / name / "model.safetensors")
