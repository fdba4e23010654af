"""The GGUF reader against the gguf package: its files, its values, its blocks; and headers that are wrong."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core.checkpoints import open_checkpoint
from core.checkpoints.gguf import Gguf, Value, ValueType, encode_pair
from core.checkpoints.gguf_values import end_of_value
from core.errors import CheckpointError, CorruptFile, UnsupportedFormat, WorkbenchError
from core.formats.ggml.types import GGML_TYPES
from core.ordering import natural_key
from tests.core.checkpoints.build import gguf_bytes, gguf_pair, gguf_record, gguf_string, many_gguf

T = ValueType
# key → (type, element type, value)
VALUES: dict[str, tuple[ValueType, ValueType | None, Any]] = {
    "t.u8": (T.UINT8, None, 255),
    "t.i8": (T.INT8, None, -128),
    "t.u16": (T.UINT16, None, 65535),
    "t.i16": (T.INT16, None, -32768),
    "t.u32": (T.UINT32, None, 4_294_967_295),
    "t.i32": (T.INT32, None, -2_147_483_648),
    "t.u64": (T.UINT64, None, (1 << 64) - 1),
    "t.i64": (T.INT64, None, -(1 << 63)),
    "t.f32": (T.FLOAT32, None, 0.5),
    "t.f64": (T.FLOAT64, None, 1e-300),
    "t.true": (T.BOOL, None, True),
    "t.false": (T.BOOL, None, False),
    "t.text": (T.STRING, None, "Grüße 🙂\nzweite Zeile"),
    "t.texts": (T.ARRAY, T.STRING, ["", "a", "▁b", "\u0120c"]),
    "t.numbers": (T.ARRAY, T.INT32, [1, -2, 3]),
    "t.floats": (T.ARRAY, T.FLOAT32, [0.25, -1.5]),
    "t.bools": (T.ARRAY, T.BOOL, [True, False, True]),
    "t.bytes": (T.ARRAY, T.UINT8, [0, 255]),
    "t.wide": (T.ARRAY, T.UINT64, [1 << 63, 0]),
}


def write(path: Path, tensors: dict[str, np.ndarray], alignment: int | None = None) -> Path:
    """A file of the gguf package with all of VALUES."""
    writer = gguf.GGUFWriter(path, "llama")
    if alignment:
        writer.add_custom_alignment(alignment)
    for key, (kind, element, value) in VALUES.items():
        sub = None if element is None else gguf.GGUFValueType(element)
        writer.add_key_value(key, value, gguf.GGUFValueType(kind), sub)
    for name, data in tensors.items():
        writer.add_tensor(name, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def tensors() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    return {
        "blk.10.w": random.standard_normal((6, 32)).astype(np.float32),
        "blk.2.w": random.standard_normal((2, 3, 8)).astype(np.float16),
        "vector": random.standard_normal(5).astype(np.float64),
        "i8": random.integers(-128, 128, (3, 4), dtype=np.int8),
        "i16": random.integers(-9999, 9999, (3, 4), dtype=np.int16),
        "i32": random.integers(-9999, 9999, (3, 4), dtype=np.int32),
        "i64": random.integers(-9999, 9999, (3, 4), dtype=np.int64),
    }


@pytest.mark.parametrize("alignment", [None, 8, 64, 4096])
def test_reads_what_the_package_writes(tmp_path: Path, tensors, alignment: int | None) -> None:
    path = write(tmp_path / "x.gguf", tensors, alignment)
    theirs = gguf.GGUFReader(path)
    with open_checkpoint(path) as ours:
        assert isinstance(ours, Gguf)
        assert ours.kind == "gguf"
        assert ours.config is None
        assert ours.files == (path,)
        assert ours.alignment == theirs.alignment == (alignment or 32)
        assert list(ours.tensors) == sorted(tensors, key=natural_key)
        assert list(ours.file_order) == [t.name for t in theirs.tensors]
        for t in theirs.tensors:
            info = ours.tensors[t.name]
            assert info.shape == tensors[t.name].shape == tuple(int(n) for n in t.shape[::-1])
            assert info.dtype == t.tensor_type.name
            assert info.nbytes == t.n_bytes
            assert ours.span(t.name) == (t.data_offset, t.data_offset + t.n_bytes)
            rows = tensors[t.name].reshape(info.rows, info.columns)
            read = ours.read(t.name)
            assert read.dtype == torch.from_numpy(rows).dtype
            assert np.array_equal(read.numpy(), rows), t.name
            for start, stop in ((0, 1), (info.rows - 1, info.rows), (1, info.rows)):
                if start <= stop:
                    assert np.array_equal(ours.read(t.name, start, stop).numpy(), rows[start:stop])
                    assert bytes(ours.raw(t.name, start, stop)) == rows[start:stop].tobytes()
        keys = [key for key in theirs.fields if not key.startswith("GGUF.")]
        assert list(ours.metadata) == keys
        for key in keys:
            contents, value = theirs.fields[key].contents(), ours.metadata[key].value
            assert (value.tolist() if isinstance(value, np.ndarray) else value) == contents, key


def test_values_have_their_types(tmp_path: Path, tensors) -> None:
    with open_checkpoint(write(tmp_path / "x.gguf", tensors)) as ours:
        for key, (kind, element, expected) in VALUES.items():
            value = ours.metadata[key]
            assert (value.type, value.element) == (kind, element)
            assert value.count == (1 if element is None else len(expected))
            got = value.value
            if element not in (None, T.STRING):
                assert isinstance(got, np.ndarray)
                got = got.tolist()
            assert got == expected
            assert type(got) is type(expected)
        assert str(ours.metadata["t.u8"]) == "255"
        assert str(ours.metadata["t.texts"]) == "4 × string"


def test_values_write_back_byte_for_byte(tmp_path: Path, tensors) -> None:
    path = write(tmp_path / "x.gguf", tensors)
    stored = path.read_bytes()
    with open_checkpoint(path) as ours:
        pairs = b"".join(encode_pair(key, value) for key, value in ours.metadata.items())
        assert stored[24 : 24 + len(pairs)] == pairs
        # … and so do values made from their decoded form.
        for value in ours.metadata.values():
            assert Value.of(value.type, value.value, value.element) == value


def test_values_the_package_does_not_write() -> None:
    """Empty arrays, arrays of arrays, text that is no text."""
    inner = [Value.of(T.ARRAY, [1, 2], T.UINT8), Value.of(T.ARRAY, ["x"], T.STRING)]
    values = {
        "empty": Value.of(T.ARRAY, [], T.STRING),
        "none": Value.of(T.ARRAY, [], T.FLOAT32),
        "nested": Value.of(T.ARRAY, inner, T.ARRAY),
        "blank": Value.of(T.STRING, ""),
        "odd": Value(T.STRING, gguf_string(b"a\xffb")),
        "odd bools": Value(T.ARRAY, struct.pack("<IQ", 7, 3) + b"\0\x02\x01"),
        "odd bool": Value(T.BOOL, b"\x02"),
    }
    for value in values.values():
        assert end_of_value(value.data, value.type, 0) == len(value.data)
    assert values["nested"].value == inner
    assert values["odd"].value == "a\ufffdb"
    assert values["odd bools"].value.tolist() == [False, True, True]
    assert values["odd bool"].value is True
    assert values["empty"].value == []
    assert values["none"].value.shape == (0,)
    for wrong in ((T.UINT8, 256), (T.UINT8, -1), (T.INT32, 0.5), (T.UINT32, "7")):
        with pytest.raises((struct.error, OverflowError)):
            Value.of(*wrong)


# The package decodes neither Q8_1 and Q8_K, which never occur in files, nor Q1_0.
DECODED = [t for t in GGML_TYPES.values() if t.quantized and t.name in gguf.GGMLQuantizationType.__members__]


@pytest.mark.parametrize("kind", DECODED, ids=lambda t: t.name)
def test_block_types(tmp_path: Path, kind) -> None:
    """Layout of all, and values of those that the package decodes, in slices of rows."""
    columns = 2 * kind.block
    row = kind.row_bytes(columns)
    data = np.random.default_rng(kind.id).integers(0, 256, (4, row), dtype=np.uint8)
    data[:, -1] &= 0x3B  # mostly sane scales
    path = tmp_path / "x.gguf"
    path.write_bytes(gguf_bytes([], [gguf_record("w", (columns, 2, 2), kind.id, 0)], data.tobytes()))
    with open_checkpoint(path) as ours:
        info = ours.tensors["w"]
        assert (info.shape, info.dtype, info.nbytes) == ((2, 2, columns), kind.name, 4 * row)
        assert bytes(ours.raw("w", 1, 3)) == data[1:3].tobytes()
        try:
            with np.errstate(all="ignore"):
                expected = gguf.quants.dequantize(data, gguf.GGMLQuantizationType(kind.id))
        except NotImplementedError:
            assert kind.name in ("Q8_1", "Q8_K", "Q1_0")
            return
        whole = ours.read("w")
        assert whole.dtype == torch.float32
        assert np.array_equal(whole.numpy(), expected.reshape(4, columns), equal_nan=True)
        for start, stop in ((0, 0), (1, 2), (2, 4)):
            assert np.array_equal(ours.read("w", start, stop).numpy(), whole[start:stop].numpy(), equal_nan=True)
        with pytest.raises(IndexError):
            ours.read("w", 0, 5)


def test_empty_tensors_and_scalars(tmp_path: Path) -> None:
    records = [gguf_record("s", (), 0, 0), gguf_record("e", (32, 0), 8, 32), gguf_record("z", (0, 3), 1, 32)]
    path = tmp_path / "x.gguf"
    path.write_bytes(gguf_bytes([], records, struct.pack("<f", 2.5)))
    with open_checkpoint(path) as ours:
        assert {n: t.shape for n, t in ours.tensors.items()} == {"s": (), "e": (0, 32), "z": (3, 0)}
        assert ours.read("s").tolist() == [[2.5]]
        assert ours.read("e").shape == (0, 32)
        assert ours.read("z").shape == (3, 0)


def test_version_2(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(gguf_bytes([], [gguf_record("w", (2,), 0, 0)], b"\0" * 8, version=2))
    with open_checkpoint(path) as ours:
        assert ours.version == 2
        assert ours.read("w").tolist() == [[0.0, 0.0]]


def split(folder: Path, count: int = 7, per_part: int = 3) -> dict[str, np.ndarray]:
    made = {f"blk.{i}.w": np.full((2, 32), i, np.float32) for i in range(count)}
    writer = gguf.GGUFWriter(folder / "m.gguf", "llama", split_max_tensors=per_part)
    writer.add_string("general.name", "split")
    for name, data in made.items():
        writer.add_tensor(name, data)
    writer.write_header_to_file(folder / "m.gguf")
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return made


def test_split_files_open_as_one(tmp_path: Path) -> None:
    made = split(tmp_path)
    parts = sorted(tmp_path.glob("*.gguf"))
    assert [p.name for p in parts] == [f"m-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    for path in parts:
        with open_checkpoint(path) as ours:
            assert ours.path == path
            assert ours.files == tuple(parts)
            assert list(ours.tensors) == list(made)
            assert ours.metadata["general.name"].value == "split"
            for name, data in made.items():
                assert np.array_equal(ours.read(name).numpy(), data)
            assert ours.file_of("blk.6.w") == parts[2]


def test_split_files_that_do_not_fit_together(tmp_path: Path) -> None:
    def line(path: Path) -> str:
        with pytest.raises(CheckpointError) as caught:
            open_checkpoint(path)
        return str(caught.value)

    split(tmp_path)
    first, second, third = sorted(tmp_path.glob("*.gguf"))
    kept = {p: p.read_bytes() for p in (first, second, third)}
    second.unlink()
    assert "parts are missing: m-00002-of-00003.gguf" in line(first)
    assert "parts are missing" in line(third)
    second.write_bytes(kept[third])
    assert "is not part 2 of 3" in line(first)
    second.write_bytes(kept[second].replace(b"blk.4.w", b"blk.1.w"))
    assert "tensor 'blk.1.w' is in m-00001-of-00003.gguf too" in line(first)
    second.write_bytes(kept[second][:-64])
    assert "m-00002-of-00003.gguf: tensor 'blk.5.w' ends at byte" in line(third)
    alone = tmp_path / "renamed.gguf"
    alone.write_bytes(kept[first])
    assert "one of 3 parts, and its name does not say which" in line(alone)
    second.write_bytes(kept[second])
    promise = struct.pack("<i", 7)
    first.write_bytes(
        kept[first].replace(b"split.tensors.count\x05\0\0\0" + promise, b"split.tensors.count\x05\0\0\0\x09\0\0\0")
    )
    assert "the parts hold 7 tensors, 9 were split" in line(first)


W = gguf_record("w", (32, 2), 0, 0)
V = gguf_record("v", (32, 2), 0, 256)
DATA = bytes(512)
U32 = struct.Struct("<I").pack


def array(element: int, count: int, data: bytes = b"") -> bytes:
    return struct.pack("<IQ", element, count) + data


# (file, what the line says)
REFUSED = {
    "only the magic": (b"GGUF", "ends inside the header"),
    "half a header": (b"GGUF" + U32(3) + bytes(9), "ends inside the header"),
    "version 1": (gguf_bytes(version=1), "version 1"),
    "version 4": (gguf_bytes(version=4), "version 4"),
    "big endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
    "2^60 tensors": (gguf_bytes(record_count=1 << 60), "do not fit"),
    "2^60 keys": (gguf_bytes(pair_count=1 << 60), "do not fit"),
    "one key more": (gguf_bytes([gguf_pair("k", 4, U32(1))], pair_count=2, data=bytes(64)), "a key is empty"),
    "key of 2^60 bytes": (gguf_bytes([struct.pack("<Q", 1 << 60) + bytes(40)]), "a key would be"),
    "key that is no text": (gguf_bytes([gguf_pair(b"\xff", 4, U32(1))]), "a key is not UTF-8"),
    "key twice": (gguf_bytes([gguf_pair("k", 4, U32(1))] * 2), "'k' appears twice"),
    "value type 13": (gguf_bytes([gguf_pair("k", 13, U32(1))]), "key 'k': value type 13"),
    "text of 2^63 bytes": (
        gguf_bytes([gguf_pair("k", 8, struct.pack("<Q", 1 << 63))]),
        "key 'k': a text reaches beyond",
    ),
    "array of type 99": (gguf_bytes([gguf_pair("k", 9, array(99, 1, bytes(8)))]), "element type 99"),
    "array of 2^60 bytes": (gguf_bytes([gguf_pair("k", 9, array(0, 1 << 60))]), "reaches beyond"),
    "array of 2^64-1 texts": (gguf_bytes([gguf_pair("k", 9, array(8, (1 << 64) - 1))]), "reaches beyond"),
    "array of 9 million texts": (gguf_bytes([gguf_pair("k", 9, array(8, 9_000_000, bytes(72_000_000)))]), "vocabulary"),
    "texts beyond the end": (
        gguf_bytes([gguf_pair("k", 9, array(8, 2, struct.pack("<QQ", 999, 0)))]),
        "a text reaches",
    ),
    "arrays in arrays": (gguf_bytes([gguf_pair("k", 9, array(9, 1) * 9 + array(0, 0))]), "nested too deeply"),
    "alignment 24": (gguf_bytes([gguf_pair("general.alignment", 4, U32(24))]), "24, not a power of two"),
    "alignment 0": (gguf_bytes([gguf_pair("general.alignment", 4, U32(0))]), "0, not a power of two"),
    "alignment is text": (gguf_bytes([gguf_pair("general.alignment", 8, gguf_string("32"))]), "no 32-bit number"),
    "name twice": (gguf_bytes([], [W, W], DATA), "tensor 'w' appears twice"),
    "name that is no text": (gguf_bytes([], [gguf_record(b"\xc3", (2,), 0, 0)], DATA), "name is not UTF-8"),
    "name of 2^40 bytes": (gguf_bytes([], [struct.pack("<Q", 1 << 40) + bytes(24)]), "a tensor name would be"),
    "five dimensions": (gguf_bytes([], [gguf_record("w", (1,) * 5, 0, 0)], DATA), "5 dimensions"),
    "4 billion dimensions": (gguf_bytes([], [gguf_string("w") + U32(0xFFFFFFFF) + bytes(20)]), "4294967295 dimensions"),
    "shape overflows": (gguf_bytes([], [gguf_record("w", (1 << 62, 1 << 62), 0, 0)], DATA), "overflows"),
    "shape overflows, empty": (gguf_bytes([], [gguf_record("w", (1 << 62, 1 << 62, 0), 0, 0)], DATA), "overflows"),
    "retired type": (gguf_bytes([], [gguf_record("w", (32,), 4, 0)], DATA), "type 4 is none we know"),
    "unknown type": (gguf_bytes([], [gguf_record("w", (32,), 1000, 0)], DATA), "type 1000 is none we know"),
    "odd block": (
        gguf_bytes([], [gguf_record("w", (100, 2), 12, 0)], DATA),
        "100 columns are no whole Q4_K blocks of 256",
    ),
    "offset off the grid": (gguf_bytes([], [gguf_record("w", (2,), 0, 8)], DATA), "no multiple of 32"),
    "offset of 2^63": (gguf_bytes([], [gguf_record("w", (2,), 0, 1 << 63)], DATA), "ends at byte"),
    "overlap": (gguf_bytes([], [W, gguf_record("v", (32, 2), 0, 224)], DATA), "'v' overlaps 'w'"),
    "same place": (gguf_bytes([], [W, gguf_record("v", (32, 2), 0, 0)], DATA), "overlaps"),
    "data cut off": (gguf_bytes([], [W, V], DATA[:-1]), "tensor 'v' ends at byte"),
    "no data": (gguf_bytes([], [W]), "tensor 'w' ends at byte"),
    "split.count is text": (gguf_bytes([gguf_pair("split.count", 8, gguf_string("2"))]), "not a whole number"),
    "another magic": (b"GGML" + bytes(40), "does not begin with GGUF"),
}


@pytest.mark.parametrize(("data", "message"), REFUSED.values(), ids=list(REFUSED))
def test_wrong_headers(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(data)
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(path)
    assert isinstance(caught.value, CorruptFile | UnsupportedFormat)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 400


SMALL = gguf_bytes(
    [
        gguf_pair("general.alignment", 4, U32(32)),
        gguf_pair("a", 9, array(8, 2, gguf_string("x") + gguf_string("yz"))),
        gguf_pair("b", 9, array(5, 2, bytes(8))),
    ],
    [W, V, gguf_record("q", (32,), 8, 512)],
    DATA + bytes(34),
)


def test_truncation_at_every_byte(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    for length in range(len(SMALL)):
        path.write_bytes(SMALL[:length])
        with pytest.raises(CheckpointError) as caught:
            open_checkpoint(path)
        assert str(path) in str(caught.value)
    path.write_bytes(SMALL)
    open_checkpoint(path).close()


@settings(max_examples=1000, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_any_change_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    changed = bytearray(SMALL)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, 420))
        piece = data.draw(st.binary(max_size=3) | st.sampled_from([b"\xff" * 8, b"\0" * 7 + b"\x10", U32(9), U32(8)]))
        changed[at : at + data.draw(st.sampled_from([len(piece), 0, 1, 4]))] = piece
    path = tmp_path_factory.getbasetemp() / "fuzzed.gguf"
    path.write_bytes(changed)
    try:
        with open_checkpoint(path) as ours:
            for name, info in ours.tensors.items():
                assert len(ours.raw(name)) == info.nbytes
                assert ours.read(name).shape == (info.rows, info.columns)
            for value in ours.metadata.values():
                assert value.value is not None
                assert str(value)
    except WorkbenchError as error:
        line = str(error)
        assert "\n" not in line
        assert str(path) in line


def test_closed_checkpoints_say_so(tmp_path: Path) -> None:
    path = many_gguf(tmp_path / "x.gguf", 20, vocabulary=100)
    ours = open_checkpoint(path)
    kept = ours.read("lm_head.weight")
    same = open_checkpoint(path)
    assert same.fingerprint() == ours.fingerprint()
    same.close()
    ours.close()
    assert kept.eq(0).all()
    with pytest.raises(CheckpointError, match="is closed"):
        ours.read("lm_head.weight")
    assert len(ours.metadata["tokenizer.ggml.tokens"].value) == 100
