"""GGUF to GGUF: key-values byte for byte, order, blocks copied, for architectures nobody has heard of."""

from __future__ import annotations

import struct
from pathlib import Path

import gguf
import numpy as np
import pytest

from core.checkpoints import open_checkpoint
from core.checkpoints.gguf import Gguf
from core.formats import get_format
from core.targets import get_target
from tests.core.targets.build import assemble, save_model
from tests.core.targets.llama_cpp import ask


def strange(path: Path, *, alignment: int = 0, file_type: bool = True) -> Path:
    """Every value type, nested and empty arrays, odd tensor types; names and architecture are invented."""
    writer = gguf.GGUFWriter(path, "hyperloop")
    if alignment:
        writer.add_custom_alignment(alignment)
    for name in ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64"):
        getattr(writer, f"add_{name}")(f"x.{name}", 100)
    writer.add_float32("x.float32", 0.1)
    writer.add_float64("x.float64", 0.1)
    writer.add_bool("x.bool", True)
    writer.add_string("x.string", 'Größe\n\t"quoted" 東京')
    writer.add_array("x.strings", ["a", "bc", "東"])
    writer.add_array("x.numbers", [1, -2, 3])
    writer.add_array("x.floats", [1.5, -2.25])
    writer.add_array("x.flags", [True, False])
    writer.add_uint32("hyperloop.block_count", 3)
    writer.add_array("hyperloop.attention.head_count", [8, 8, 16])
    if file_type:
        writer.add_file_type(7)
        writer.add_quantization_version(2)
    random = np.random.default_rng(5)
    for name in ("zeta.weight", "blk.1.attn_q.weight", "blk.0.attn_q.weight"):
        writer.add_tensor(name, random.standard_normal((8, 256), np.float32))
    w = random.standard_normal((4, 3, 256), np.float32)
    blocks = gguf.quants.quantize(w, gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("blk.0.ffn_down_exps.weight", blocks, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("half", random.standard_normal((5, 32)).astype(np.float16))
    writer.add_tensor("blk.0.attn_norm.weight", random.standard_normal(256).astype(np.float32))
    writer.add_tensor("positions", np.arange(7, dtype=np.int32))
    writer.add_tensor("double", random.standard_normal((3, 5)))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def pairs_of(path: Path) -> list[tuple[str, bytes]]:
    """Keys and the bytes of their values, by gguf's own reader."""
    found = []
    for key, field in gguf.GGUFReader(path).fields.items():
        if not key.startswith("GGUF."):
            # Key length, key, type, then the value.
            parts = field.parts[2:]
            found.append((key, b"".join(np.ascontiguousarray(p).tobytes() for p in parts)))
    return found


def quantizing(name: str):
    return lambda t: name if t.name.endswith(("attn_q.weight", "zeta.weight")) else None


def test_keeping_everything_gives_the_same_bytes(tmp_path) -> None:
    """gguf's writer and ours lay the same file out to the byte."""
    source = strange(tmp_path / "a.gguf")
    assemble(source, "gguf", tmp_path / "b.gguf")
    assert (tmp_path / "b.gguf").read_bytes() == source.read_bytes()


def test_quantizing_changes_the_two_keys_that_must(tmp_path) -> None:
    source = strange(tmp_path / "a.gguf")
    assemble(source, "gguf", tmp_path / "b.gguf", quantizing("q4_0"), label="Q4_0")
    before, after = pairs_of(source), pairs_of(tmp_path / "b.gguf")
    assert [k for k, _ in before] == [k for k, _ in after]
    changed = [k for (k, x), (_, y) in zip(before, after, strict=True) if x != y]
    assert changed == ["general.file_type"]
    assert dict(after)["general.file_type"] == struct.pack("<II", 4, 2)


def test_missing_keys_are_added_at_the_end(tmp_path) -> None:
    source = strange(tmp_path / "a.gguf", file_type=False)
    assemble(source, "gguf", tmp_path / "b.gguf", quantizing("q8_0"), label="my own mixture")
    before, after = pairs_of(source), pairs_of(tmp_path / "b.gguf")
    assert after[: len(before)] == before
    assert dict(after[len(before) :]) == {
        "general.quantization_version": struct.pack("<II", 4, 2),
        "general.file_type": struct.pack("<II", 4, 7),
    }
    assemble(source, "gguf", tmp_path / "c.gguf")
    assert pairs_of(tmp_path / "c.gguf") == before


def test_kept_tensors_keep_their_bytes_and_place(tmp_path) -> None:
    source = strange(tmp_path / "a.gguf")
    assemble(source, "gguf", tmp_path / "b.gguf", quantizing("q4_0"), slice_rows=3)
    before, after = gguf.GGUFReader(source).tensors, gguf.GGUFReader(tmp_path / "b.gguf").tensors
    assert [t.name for t in before] == [t.name for t in after]
    changed = []
    for x, y in zip(before, after, strict=True):
        assert x.shape.tolist() == y.shape.tolist()
        if x.tensor_type != y.tensor_type:
            changed.append(x.name)
            decoded = gguf.quants.dequantize(y.data, y.tensor_type)
            reference = gguf.quants.quantize(x.data, gguf.GGMLQuantizationType.Q4_0)
            assert np.array_equal(decoded, gguf.quants.dequantize(reference, gguf.GGMLQuantizationType.Q4_0))
        else:
            assert np.array_equal(x.data, y.data), x.name
    assert changed == ["zeta.weight", "blk.1.attn_q.weight", "blk.0.attn_q.weight"]


@pytest.mark.parametrize("alignment", [64, 256])
def test_the_files_own_alignment_is_kept(tmp_path, alignment) -> None:
    source = strange(tmp_path / "a.gguf", alignment=alignment)
    layout = assemble(source, "gguf", tmp_path / "b.gguf", quantizing("q4_0"))
    assert all(place.offset % alignment == 0 for (place,) in layout.places.values())
    reader = gguf.GGUFReader(tmp_path / "b.gguf")
    assert reader.alignment == alignment
    assert len(reader.tensors) == 8


def test_outline_speaks_of_the_model(tmp_path) -> None:
    with open_checkpoint(strange(tmp_path / "a.gguf")) as checkpoint:
        outline = get_target("gguf").outline(checkpoint)
    assert (outline.arch, outline.layers, outline.heads, outline.kv_heads) == ("hyperloop", 3, 16, 0)
    assert not outline.tied
    assert [t.name for t in outline.tensors][:2] == ["zeta.weight", "blk.1.attn_q.weight"]


def test_what_is_refused(tmp_path) -> None:
    target = get_target("gguf")
    with open_checkpoint(strange(tmp_path / "a.gguf")) as checkpoint:
        tensors = {t.name: t for t in target.outline(checkpoint).tensors}
    assert "f32" in (target.refuses(get_format("q8_0"), tensors["blk.0.attn_norm.weight"]) or "")
    assert target.refuses(get_format("f32"), tensors["blk.0.attn_norm.weight"]) is None
    assert "I32" in (target.refuses(get_format("f16"), tensors["positions"]) or "")
    assert "int4" in (target.refuses(get_format("int4"), tensors["zeta.weight"]) or "")
    assert target.refuses(get_format("q4_k"), tensors["zeta.weight"]) is None


def test_a_split_file_becomes_one(tmp_path) -> None:
    names = [tmp_path / f"m-{n:05d}-of-00002.gguf" for n in (1, 2)]
    random = np.random.default_rng(1)
    weights = [random.standard_normal((4, 64), np.float32) for _ in names]
    for number, (path, w) in enumerate(zip(names, weights, strict=True)):
        writer = gguf.GGUFWriter(path, "hyperloop")
        writer.add_uint16("split.no", number)
        writer.add_uint16("split.count", 2)
        writer.add_int32("split.tensors.count", 2)
        writer.add_tensor(f"blk.{number}.attn_q.weight", w)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    with open_checkpoint(names[0]) as checkpoint:
        assert isinstance(checkpoint, Gguf)
        assemble(checkpoint, "gguf", tmp_path / "one.gguf")
    reader = gguf.GGUFReader(tmp_path / "one.gguf")
    assert [k for k in reader.fields if k.startswith("split.")] == []
    for tensor, w in zip(reader.tensors, weights, strict=True):
        assert np.array_equal(tensor.data, w)


def test_llama_cpp_loads_what_was_quantized_twice_over(tmp_path) -> None:
    """Folder → bf16 GGUF → q8_0 GGUF equals folder → q8_0 GGUF in every block and key."""
    from tests.core.targets.build import matrices

    folder = save_model(tmp_path / "model", hidden_size=64, num_hidden_layers=1, vocab_size=320)
    assemble(folder, "gguf", tmp_path / "bf16.gguf", label="BF16")
    assemble(folder, "gguf", tmp_path / "direct.gguf", matrices("q8_0"), label="Q8_0")
    assemble(tmp_path / "bf16.gguf", "gguf", tmp_path / "again.gguf", matrices("q8_0"), label="Q8_0")
    assert (tmp_path / "again.gguf").read_bytes() == (tmp_path / "direct.gguf").read_bytes()
    (answer,) = ask((tmp_path / "again.gguf", [], [1, 2]))
    assert not answer.error
