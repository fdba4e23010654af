"""Folders of plain floats: what is stored in which type, shards and side files, and the header against safetensors."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from core.checkpoints import open_checkpoint
from core.errors import OutOfRange, TargetError
from core.formats import FORMATS, get_format
from core.targets import TARGETS, get_target
from core.targets.assignments import Assignments
from core.targets.base import Assignment, StoredTensor
from core.targets.safetensors import header, shards
from tests.core.targets.build import assemble, gpt2_like, matrices, save_model, save_tokenizer, size_of


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """Two shards."""
    from transformers import AutoModelForCausalLM

    root = tmp_path_factory.mktemp("model")
    whole = save_model(root / "whole", hidden_size=256, vocab_size=300, intermediate_size=256)
    AutoModelForCausalLM.from_pretrained(whole, dtype=torch.bfloat16).save_pretrained(
        root / "sharded", max_shard_size="600KB"
    )
    save_tokenizer(root / "sharded", gpt2_like())
    assert len(list((root / "sharded").glob("*.safetensors"))) >= 2
    return root / "sharded"


def weights(folder: Path) -> dict[str, torch.Tensor]:
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        found |= load_file(file)
    return found


def test_keeping_everything_keeps_shards_index_and_values(model, tmp_path) -> None:
    assemble(model, "dense", tmp_path / "m")
    names = sorted(f.name for f in model.iterdir())
    assert sorted(f.name for f in (tmp_path / "m").iterdir()) == names
    for name in names:
        if not name.endswith((".safetensors", "index.json")):
            assert (tmp_path / "m" / name).read_bytes() == (model / name).read_bytes()
    index = "model.safetensors.index.json"
    ours, theirs = (json.loads((f / index).read_text()) for f in (tmp_path / "m", model))
    assert ours["weight_map"] == theirs["weight_map"]
    assert ours["metadata"]["total_size"] == theirs["metadata"]["total_size"]
    before, after = weights(model), weights(tmp_path / "m")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[k], after[k]) and before[k].dtype == after[k].dtype for k in before)


@pytest.mark.parametrize(
    "fmt",
    [f for f in FORMATS if f.encodable and f.family != "dense" and not f.needs_importance],
    ids=lambda f: f.name,
)
def test_any_format_is_stored_as_what_it_decodes_to(tmp_path, fmt) -> None:
    torch.manual_seed(1)
    w = torch.randn(128, 256).bfloat16()
    save_file({"a.up_proj.weight": w}, tmp_path / "w.safetensors")
    assemble(tmp_path / "w.safetensors", "dense", tmp_path / "m", lambda t: fmt.name)
    stored = load_file(tmp_path / "m" / "model.safetensors")["a.up_proj.weight"]
    with open_checkpoint(tmp_path / "w.safetensors") as checkpoint:
        target = get_target("dense")
        tensor = target.outline(checkpoint).tensors[0]
    expected = target.adapt(fmt, tensor).quantize(w).dequantize().bfloat16()
    assert stored.dtype == torch.bfloat16
    assert torch.equal(stored, expected)
    assert not torch.equal(stored, w)


def test_transformers_loads_the_folder(model, tmp_path) -> None:
    from transformers import AutoModelForCausalLM

    assemble(model, "dense", tmp_path / "m", matrices("q4_k"), slice_rows=64)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "m").state_dict()
    source = weights(model)
    name = "model.layers.1.mlp.up_proj.weight"
    assert torch.equal(loaded[name], get_format("q4_k").quantize(source[name]).dequantize().bfloat16())
    assert torch.equal(loaded["model.norm.weight"], source["model.norm.weight"])


@pytest.mark.parametrize(("name", "dtype"), [("f32", "float32"), ("f16", "float16")])
def test_another_float_type_for_all_changes_the_config_too(model, tmp_path, name, dtype) -> None:
    from transformers import AutoModelForCausalLM

    assemble(model, "dense", tmp_path / "m", lambda t: name)
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    assert config == json.loads((model / "config.json").read_text()) | {"dtype": dtype}
    stored = weights(tmp_path / "m")
    assert {str(t.dtype) for t in stored.values()} == {f"torch.{dtype}"}
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "m").state_dict()
    for key, w in weights(model).items():
        assert torch.equal(stored[key], w.to(getattr(torch, dtype)))
        assert torch.equal(loaded[key], stored[key])


def test_numbers_that_are_no_weights_go_over(tmp_path) -> None:
    given = {
        "ids": torch.arange(5),
        "flags": torch.tensor([True, False]),
        "scalar": torch.tensor(3.5, dtype=torch.float64),
        "double": torch.randn(3, 4, dtype=torch.float64),
        "eight": torch.randn(4, 8).to(torch.float8_e5m2),
        "empty": torch.zeros(0, 7),
        "a.up_proj.weight": torch.randn(4, 32, dtype=torch.float64),
    }
    save_file(given, tmp_path / "w.safetensors")
    assemble(tmp_path / "w.safetensors", "dense", tmp_path / "m", lambda t: "q8_0" if t.linear else None)
    stored = load_file(tmp_path / "m" / "model.safetensors")
    assert not (tmp_path / "m" / "config.json").exists()
    for key, value in given.items():
        if key != "a.up_proj.weight":
            assert stored[key].dtype == value.dtype
            assert stored[key].shape == value.shape
            assert stored[key].tolist() == value.tolist()
    assert stored["a.up_proj.weight"].dtype == torch.float32


def test_a_torch_archive_becomes_safetensors(tmp_path) -> None:
    w = torch.randn(8, 16)
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    names = [f"pytorch_model-{n:05d}-of-00002.bin" for n in (1, 2)]
    torch.save({"a.weight": w}, folder / names[0])
    torch.save({"b.weight": w + 1}, folder / names[1])
    index = {"weight_map": {"a.weight": names[0], "b.weight": names[1]}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    layout = assemble(folder, "dense", tmp_path / "m")
    assert [f.name for f in layout.files] == [f"model-{n:05d}-of-00002.safetensors" for n in (1, 2)]
    stored = weights(tmp_path / "m")
    assert torch.equal(stored["a.weight"], w)
    assert torch.equal(stored["b.weight"], w + 1)
    assert sorted(f.name for f in (tmp_path / "m").iterdir()) == [
        "config.json",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
    ]


def test_complex_numbers_are_refused_by_name(tmp_path) -> None:
    torch.save({"waves": torch.zeros(3, dtype=torch.complex128)}, tmp_path / "w.pt")
    for name in ("dense", "compressed-tensors"):
        with open_checkpoint(tmp_path / "w.pt") as checkpoint, pytest.raises(TargetError, match=r"waves.*C128"):
            get_target(name).outline(checkpoint)


def ggml_file(path: Path, kinds: dict[str, np.ndarray]) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    for kind, w in kinds.items():
        blocks = gguf.quants.quantize(w, gguf.GGMLQuantizationType[kind])
        writer.add_tensor(f"blk.0.{kind}.weight", blocks, raw_dtype=gguf.GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_gguf_becomes_floats(tmp_path) -> None:
    w = np.random.default_rng(0).standard_normal((16, 64)).astype(np.float32)
    path = ggml_file(tmp_path / "m.gguf", {"Q8_0": w, "Q4_1": w, "MXFP4": w, "BF16": w})
    layout = assemble(path, "dense", tmp_path / "m")
    assert [f.name for f in layout.files] == ["model.safetensors"]
    assert layout.sides == {}
    stored = load_file(tmp_path / "m" / "model.safetensors")
    for tensor in gguf.GGUFReader(path).tensors:
        decoded = torch.from_numpy(gguf.quants.dequantize(tensor.data, tensor.tensor_type).copy())
        kind = tensor.tensor_type.name
        dtype = torch.float16 if kind.startswith("Q") else torch.bfloat16
        assert stored[tensor.name].dtype == dtype
        assert torch.equal(stored[tensor.name], decoded.to(dtype)), tensor.name
        if kind in ("MXFP4", "BF16"):
            assert torch.equal(stored[tensor.name].float(), decoded), f"{kind} is exact in bf16"


def test_what_f16_cannot_hold_is_an_error_and_no_infinity(tmp_path) -> None:
    w = np.full((3, 32), 1.0, np.float32)
    w[1] = 3e6
    path = ggml_file(tmp_path / "m.gguf", {"Q8_0": w})
    with pytest.raises(OutOfRange, match="row 1"):
        assemble(path, "dense", tmp_path / "kept")
    with pytest.raises(OutOfRange, match=r"row 1.*f16"):
        assemble(path, "dense", tmp_path / "again", lambda t: "q8_0")
    assemble(path, "dense", tmp_path / "f32", lambda t: "f32")


def test_a_compressed_folder_becomes_a_model_again(model, tmp_path) -> None:
    """Through the engine: its weights are read from several pieces and have no bytes of their own."""
    from core.engine.pipeline import run
    from core.engine.plan import make_plan
    from core.recipes import load

    assemble(model, "compressed-tensors", tmp_path / "int4", matrices("int4-g32", head=False))
    with open_checkpoint(tmp_path / "int4") as checkpoint:
        for name, recipe in (("dense", "bf16"), ("gguf", "q8_0"), ("compressed-tensors", "int8")):
            plan = make_plan(checkpoint, load(recipe), get_target(name))
            assert not [p for p in plan.problems if p.severity == "error"]
            again = [p for p in plan.problems if p.severity == "warning" and "is INT4 already" in p.message]
            assert bool(again) == (recipe != "bf16")
            out = tmp_path / f"out-{name}"
            run(plan, checkpoint, out, workers=1)
            assert size_of(out) == plan.nbytes
    config = json.loads((tmp_path / "out-dense" / "config.json").read_text())
    assert config == json.loads((model / "config.json").read_text())
    stored, source = weights(tmp_path / "out-dense"), weights(model)
    assert stored.keys() == source.keys()
    target = get_target("compressed-tensors")
    with open_checkpoint(model) as checkpoint:
        for tensor in target.outline(checkpoint).tensors:
            w = source[tensor.name]
            if matrices("x", head=False)(tensor):
                w = target.adapt(get_format("int4-g32"), tensor).quantize(w).dequantize().bfloat16()
            assert torch.equal(stored[tensor.name], w), tensor.name


def test_headers_are_read_by_safetensors_and_aligned(tmp_path) -> None:
    entries = [
        StoredTensor("wide", "I64", (2,), 16),
        StoredTensor('größe "x"', "F32", (3, 1), 12),
        StoredTensor("half", "BF16", (5,), 10),
        StoredTensor("byte", "U8", (), 1),
    ]
    head, offsets = header(entries)
    assert (len(head)) % 8 == 0
    assert int.from_bytes(head[:8], "little") == len(head) - 8
    assert offsets == [len(head), len(head) + 16, len(head) + 28, len(head) + 38]
    (tmp_path / "x.safetensors").write_bytes(head + bytes(39))
    with safe_open(tmp_path / "x.safetensors", "pt") as file:
        assert set(file.keys()) == {e.name for e in entries}
        assert file.get_tensor('größe "x"').shape == (3, 1)
        assert file.metadata() == {"format": "pt"}


def test_wide_elements_come_first_in_a_file(tmp_path) -> None:
    given = {"a": torch.zeros(3, dtype=torch.uint8), "b": torch.zeros(5, dtype=torch.int64), "c": torch.zeros(3).half()}
    save_file(given, tmp_path / "w.safetensors")
    layout = assemble(tmp_path / "w.safetensors", "dense", tmp_path / "m")
    at = {name: places[0].offset for name, places in layout.places.items()}
    assert at["b"] < at["c"] < at["a"]
    assert at["b"] % 8 == 0


def test_shards_fill_up_in_order() -> None:
    def group(name: str, *sizes: int):
        return name, tuple(StoredTensor(f"{name}{i}", "U8", (n,), n) for i, n in enumerate(sizes))

    tensors = [group("a", 40), group("b", 40, 30), group("c", 300), group("d", 5), group("e", 95)]
    found = shards(tensors, 100)
    assert [found[n].split("-")[1] for n in "abcde"] == ["00001", "00002", "00003", "00004", "00004"]
    assert {n.split("-of-")[1] for n in found.values()} == {"00004.safetensors"}
    assert set(shards(tensors, 10_000).values()) == {"model.safetensors"}
    assert shards([], 100) == {}


def test_targets_are_found_by_name() -> None:
    assert all(get_target(t.name) is t for t in TARGETS)
    assert get_target(" GGUF ").suffix == ".gguf"
    with pytest.raises(TargetError, match=r"gguff.*did you mean gguf"):
        get_target("gguff")


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)
def test_every_stored_size_is_exact(target, model) -> None:
    """For every format a target takes: the sum over `stored` is what the layout places."""
    with open_checkpoint(model) as checkpoint:
        outline = target.outline(checkpoint)
        for fmt in FORMATS:
            assignments = []
            for tensor in outline.tensors:
                given = target.adapt(fmt, tensor)
                fits = fmt.encodable and target.refuses(given, tensor) is None and given.misfit(tensor.shape) is None
                wanted = given if fits and len(tensor.shape) > 1 else target.keeps(tensor)
                assignments.append(Assignment(tensor, wanted))
            layout = target.layout(checkpoint, outline, Assignments(assignments))
            spans: dict[int, list[tuple[int, int]]] = {}
            for assignment in assignments:
                stored = target.stored(assignment)
                places = layout.places[assignment.tensor.name]
                assert sorted(map(repr, stored)) == sorted(repr(p.stored) for p in places)
                for p in places:
                    spans.setdefault(p.file, []).append((p.offset, p.offset + p.stored.nbytes))
            for number, file in enumerate(layout.files):
                at = len(file.head)
                for begin, end in sorted(spans[number]):
                    assert begin >= at
                    at = end
                assert at <= file.nbytes < at + 64


@pytest.mark.parametrize("fmt", [f for f in FORMATS if f.encodable], ids=lambda f: f.name)
def test_every_format_takes_eight_bit_floats(tmp_path, fmt) -> None:
    """A source that torch cannot compute with gives what its float32 copy gives."""
    torch.manual_seed(2)
    w = torch.randn(128, 256).to(torch.float8_e4m3fn)
    save_file({"a.up_proj.weight": w}, tmp_path / "w.safetensors")
    with open_checkpoint(tmp_path / "w.safetensors") as checkpoint:
        tensor = get_target("dense").outline(checkpoint).tensors[0]
        read = tensor.source.read(checkpoint, 0, 128)
        importance = torch.ones(256) if fmt.needs_importance else None
        wide = fmt.quantize(w.float(), importance).dequantize()
        assert torch.equal(fmt.quantize(read, importance).dequantize(), wide)
