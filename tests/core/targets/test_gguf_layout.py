"""The container itself: what is refused and how it is said, file types, names, sizes, and how long it takes."""

from __future__ import annotations

import ctypes
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from safetensors.torch import load_file, save_file

from core.checkpoints import open_checkpoint
from core.checkpoints.base import Checkpoint
from core.checkpoints.gguf import Value, ValueType
from core.errors import TargetError
from core.formats import FORMATS, get_format
from core.formats.ggml.format import GgmlFormat
from core.formats.ggml.types import GGML_TYPES
from core.recipes import PRESETS
from core.roles import role_of
from core.targets import get_target
from core.targets.assignments import Assignments
from core.targets.base import Assignment, Outline, OutputTensor, Plain, StoredTensor
from core.targets.gguf.filetype import FILE_TYPES, file_type
from core.targets.gguf.rows import Interleaved, RopeFactors
from core.targets.gguf.writer import build
from core.tensors import TensorInfo
from tests.core.formats import llama
from tests.core.targets.build import assemble, save_model


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"), hidden_size=64, num_hidden_layers=2, vocab_size=300)


def outline_of(path: Path) -> Outline:
    with open_checkpoint(path) as checkpoint:
        return get_target("gguf").outline(checkpoint)


def changed(model: Path, folder: Path, weights: Any = None, **config: Any) -> Path:
    """The model with other config entries (None removes one) and, by `weights`, other tensors."""
    folder.mkdir()
    given = json.loads((model / "config.json").read_text()) | config
    (folder / "config.json").write_text(json.dumps({k: v for k, v in given.items() if v is not None}))
    tensors = load_file(model / "model.safetensors")
    save_file(weights(tensors) if weights else tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def test_a_file_without_a_config_says_what_to_do(model) -> None:
    with pytest.raises(TargetError, match=r"architecture.*open the model's folder with its config\.json"):
        outline_of(model / "model.safetensors")


def test_an_unknown_architecture_names_itself_and_the_known(model, tmp_path) -> None:
    folder = changed(model, tmp_path / "m", architectures=["MambaForCausalLM"])
    with pytest.raises(TargetError, match=r"MambaForCausalLM is not converted.*known: llama, qwen2, .*gemma3.*bert"):
        outline_of(folder)
    nameless = changed(model, tmp_path / "n", architectures=None)
    with pytest.raises(TargetError, match="names no architecture"):
        outline_of(nameless)


def laid_out(path: Path) -> None:
    target = get_target("gguf")
    with open_checkpoint(path) as checkpoint:
        outline = target.outline(checkpoint)
        target.layout(checkpoint, outline, Assignments([Assignment(t, target.keeps(t)) for t in outline.tensors]))


def without(name: str):
    return lambda tensors: {k: v for k, v in tensors.items() if k != name}


def reshaped(name: str, *shape: int):
    return lambda tensors: tensors | {name: torch.zeros(shape, dtype=torch.bfloat16)}


@pytest.mark.parametrize(
    ("config", "weights", "said"),
    [
        ({"hidden_act": "gelu"}, None, "hidden_act is 'gelu'"),
        ({"num_hidden_layers": None}, None, "no num_hidden_layers"),
        ({"num_hidden_layers": "two"}, None, "num_hidden_layers is 'two'"),
        ({"num_hidden_layers": 3}, None, r"model\.layers\.2\.input_layernorm\.weight and 8 more"),
        ({"num_hidden_layers": 2_000_000_000}, None, "more tensors are missing"),
        ({"num_hidden_layers": 1}, None, "no place in a GGUF"),
        ({"hidden_size": 66}, None, "has shape"),
        ({"num_attention_heads": 0}, None, "num_attention_heads is 0"),
        ({"num_key_value_heads": 3}, None, "has shape"),
        ({"rms_norm_eps": "small"}, None, "rms_norm_eps is 'small'"),
        ({"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4}}, None, "rope type 'longrope'"),
        ({"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4}}, None, "has no factor"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": -1}}, None, "rope_theta is -1"),
        ({"partial_rotary_factor": 0.5}, None, "partial_rotary_factor"),
        ({}, without("model.norm.weight"), r"model\.norm\.weight is missing"),
        ({}, without("model.layers.1.mlp.up_proj.weight"), r"layers\.1\.mlp\.up_proj\.weight is missing"),
        ({}, without("model.embed_tokens.weight"), "embed_tokens.weight is missing"),
        ({}, reshaped("model.layers.0.mlp.up_proj.weight", 4, 64), "has shape 4×64"),
        ({}, reshaped("model.layers.0.self_attn.q_norm.weight", 16), "no place in a GGUF"),
        ({}, reshaped("vision.weight", 16), r"vision\.weight.*no place"),
        ({}, lambda t: t | {"lm_head.weight": t["lm_head.weight"].to(torch.int8)}, "holds I8"),
    ],
)
def test_what_llama_cpp_could_not_load_is_refused(model, tmp_path, config, weights, said) -> None:
    folder = changed(model, tmp_path / "m", weights, **config)
    with pytest.raises(TargetError, match=said) as caught:
        laid_out(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"sliding_window": 128}, "sliding window of 128"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0, "beta_fast": 16}}, "beta_fast"),
        ({"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}, "dynamic"),
    ],
)
def test_what_llama_cpp_does_otherwise_is_noted(model, tmp_path, config, said) -> None:
    assert any(said in note for note in outline_of(changed(model, tmp_path / "m", **config)).notes)


def test_mistral_is_written_as_llama(model, tmp_path) -> None:
    folder = changed(model, tmp_path / "m", architectures=["MistralForCausalLM"], sliding_window=None)
    assert outline_of(folder).arch == "llama"


def test_leftover_frequencies_and_tied_heads_are_dropped_with_a_reason(model, tmp_path) -> None:
    extra = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}
    folder = changed(model, tmp_path / "m", lambda t: t | extra, tie_word_embeddings=True)
    outline = outline_of(folder)
    assert set(outline.dropped) == {*extra, "lm_head.weight"}
    assert "tied" in outline.dropped["lm_head.weight"]
    assert outline.tied


def test_eight_bit_floats_become_bf16_with_a_note(model, tmp_path) -> None:
    name = "model.layers.0.mlp.down_proj.weight"
    folder = changed(model, tmp_path / "m", lambda t: t | {name: t[name].to(torch.float8_e4m3fn)})
    assert any("8-bit" in note for note in outline_of(folder).notes)
    assemble(folder, "gguf", tmp_path / "m.gguf")
    tensors = {t.name: t for t in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
    assert tensors["blk.0.ffn_down.weight"].tensor_type.name == "BF16"


@pytest.mark.parametrize(
    ("dtype", "stored"), [(torch.float64, "F32"), (torch.float32, "F32"), (torch.float16, "F16")], ids=str
)
def test_kept_matrices_keep_their_type_where_there_is_one(model, tmp_path, dtype, stored) -> None:
    folder = changed(model, tmp_path / "m", lambda t: {k: v.to(dtype) for k, v in t.items()})
    assemble(folder, "gguf", tmp_path / "m.gguf", slice_rows=5)
    kinds = {t.name: t.tensor_type.name for t in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
    assert {k for n, k in kinds.items() if "norm" not in n} == {stored}
    assert {k for n, k in kinds.items() if "norm" in n} == {"F32"}


@pytest.mark.parametrize("fmt", [f for f in FORMATS if f.encodable], ids=lambda f: f.name)
def test_formats_are_taken_by_kind(model, fmt) -> None:
    tensors = {t.name: t for t in outline_of(model).tensors}
    target = get_target("gguf")
    known = fmt.family in ("dense", "ggml") or fmt.name == "nvfp4"
    assert (target.refuses(fmt, tensors["blk.0.attn_q.weight"]) is None) == known
    assert (target.refuses(fmt, tensors["blk.0.attn_norm.weight"]) is None) == (fmt.name == "f32")
    if isinstance(fmt, GgmlFormat):
        tensor = OutputTensor("blk.0.ffn_up.weight", Plain("w"), (6, 512), "F32", role_of("blk.0.ffn_up.weight"))
        (stored,) = target.stored(Assignment(tensor, fmt))
        if stored.dtype == "Q2_0":  # newer than the gguf package
            row = llama.library().ggml_row_size(GGML_TYPES["Q2_0"].id, ctypes.c_int64(512))
        else:
            row = gguf.quants.quant_shape_to_byte_shape((512,), gguf.GGMLQuantizationType[stored.dtype])[0]
        assert stored.nbytes == 6 * row


def test_file_types_are_llama_cpps() -> None:
    for preset in PRESETS:
        if preset.target == "gguf":
            assert preset.name in FILE_TYPES, preset.name
    theirs = {t.name.removeprefix("MOSTLY_").removeprefix("ALL_"): t.value for t in gguf.LlamaFileType}
    for name, number in FILE_TYPES.items():
        assert theirs.get(name, number) == number, name
    assert len(set(FILE_TYPES) & set(theirs)) > 30


@pytest.mark.parametrize(
    ("label", "dtypes", "number"),
    [
        ("Q4_K_M", ["Q8_0"], 15),
        ("q4_k_m+gptq", ["Q8_0"], 15),
        ("BF16", ["F32"], 32),
        ("mine", ["Q4_K", "Q4_K", "Q6_K"], 15),
        ("q5_k", ["Q5_K", "F16"], 17),
        ("", ["Q3_K"], 12),
        ("", ["F16", "F16", "Q8_0"], 1),
        ("", ["MXFP4"], 38),
        ("", ["I32"], 0),
        ("", [], 0),
    ],
)
def test_file_type_of_a_label_or_of_the_most_common_type(label, dtypes, number) -> None:
    stored = [StoredTensor(str(n), dtype, (1, 256), 1) for n, dtype in enumerate(dtypes)]
    norms = [StoredTensor(f"norm{n}", "F32", (256,), 1) for n in range(9)] if dtypes else []
    assert file_type(label, stored + norms) == number


def test_names_are_checked() -> None:
    def stored(name: str) -> StoredTensor:
        return StoredTensor(name, "F32", (1,), 4)

    with pytest.raises(TargetError, match="two tensors"):
        build([], [stored("a"), stored("a")])
    with pytest.raises(TargetError, match="63 bytes"):
        build([], [stored("ä" * 32)])
    assert build([], [stored("ä" * 31 + "b")])
    assert build([], [stored("a" * 200)], max_name_bytes=None)


def test_an_empty_file_is_a_file(tmp_path) -> None:
    head, offsets, nbytes = build([("general.architecture", Value.of(ValueType.STRING, "none"))], [])
    assert len(head) == nbytes == 96
    assert offsets == []
    (tmp_path / "m.gguf").write_bytes(head)
    assert gguf.GGUFReader(tmp_path / "m.gguf").tensors == []


def test_names_of_models() -> None:
    from core.targets.gguf.convert import model_name, size_label

    assert model_name(Path("/a/Llama-3.1-8B")) == "Llama-3.1-8B"
    assert model_name(Path("/hub/models--meta-llama--Llama-3.1-8B/snapshots/0e9e39f2")) == "Llama-3.1-8B"
    for count in (1, 950, 12_345, 999_999, 1_000_001, 135_000_000, 8_030_261_248, 70_553_706_496, 1_000_000_000_001):
        assert size_label(count) == gguf.size_label(count, 0, 0, 0), count


def test_same_input_same_bytes(model, tmp_path) -> None:
    for name in ("a", "b"):
        assemble(model, "gguf", tmp_path / f"{name}.gguf", slice_rows=3 if name == "a" else 0)
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


def test_row_sources_read_any_slice(model) -> None:
    with open_checkpoint(model) as checkpoint:
        source = Interleaved("model.layers.0.self_attn.q_proj.weight", 4)
        whole = source.read(checkpoint, 0, 64)
        for start, stop in ((0, 1), (5, 6), (7, 40), (15, 17), (63, 64), (64, 64)):
            assert torch.equal(source.read(checkpoint, start, stop), whole[start:stop]), (start, stop)
        factors = RopeFactors(1e4, 32, 8.0, 1.0, 4.0, 8192)
        assert factors.read(checkpoint, 0, 1).shape == (1, 16)
        assert factors.names() == ()


class Many(Checkpoint):
    """50,000 tensors that are only headers."""

    kind = "safetensors"
    config = None
    metadata: Mapping[str, Any]

    def __init__(self, path: Path, outline: Outline) -> None:
        self.path = path
        self.files = (path,)
        self.metadata = {}
        self.tensors = {t.name: TensorInfo(t.name, t.shape, t.dtype, 2 * t.numel) for t in outline.tensors}

    def raw(self, name: str, start: int = 0, stop: int | None = None) -> memoryview:
        raise NotImplementedError

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Any:
        raise NotImplementedError

    def fingerprint(self) -> str:
        return ""


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("name", "fmt"),
    [
        ("compressed-tensors", "int4-g32"),
        ("gptq", "int4-g32"),
        ("awq", "int4-g32"),
        ("fp8", "fp8-e4m3-b128"),
        ("bitsandbytes", "nf4"),
        ("torchao", "int4-g32"),
        ("mlx", "int4-g32"),
        ("dense", "int4-g32"),
        ("gguf", "q4_0"),
    ],
)
def test_fifty_thousand_tensors_are_laid_out_at_once(tmp_path, monkeypatch, name, fmt) -> None:
    names = [f"model.layers.{n // 500}.experts.{n % 500}.up_proj.weight" for n in range(50_000)]
    tensors = tuple(OutputTensor(n, Plain(n), (64, 64), "BF16", role_of(n)) for n in names)
    outline = Outline(tensors)
    target = get_target(name)
    if name == "gguf":
        monkeypatch.setattr("core.targets.gguf.convert.pairs", lambda *_: [])
    wanted = target.adapt(get_format(fmt), tensors[0])
    # Some are left out, which settings have to say.
    assignments = Assignments([Assignment(t, wanted if n % 3 else target.keeps(t)) for n, t in enumerate(tensors)])
    checkpoint = Many(tmp_path, outline)
    # Seconds on any machine; anything that grows with the square of the tensors runs into the time limit.
    layout = target.layout(checkpoint, outline, assignments)
    assert len(layout.places) == 50_000
