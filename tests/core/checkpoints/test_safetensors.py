"""The safetensors reader against the safetensors package: what it writes we read, what it refuses we refuse."""

from __future__ import annotations

import gc
import json
import mmap
import struct
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import safetensors
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from core.checkpoints import mapped, open_checkpoint
from core.checkpoints.safetensors import parse_header
from core.errors import CheckpointError, CorruptFile, UnsupportedFormat
from core.ordering import natural_key
from core.tensors import DTYPES
from tests.core.checkpoints.build import model_names, safetensors_bytes, with_header

DTYPE_NAMES = [d.name for d in DTYPES.values() if d.torch_name and d.name != "C128"]


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


@pytest.fixture
def every_dtype() -> dict[str, torch.Tensor]:
    """A [3, 4, 5] tensor of random bits in each dtype, and odd shapes."""
    g = torch.Generator().manual_seed(1)
    made = {}
    for name in DTYPE_NAMES:
        dtype = DTYPES[name].torch
        data = torch.randint(0, 2 if name == "BOOL" else 256, (60 * dtype.itemsize,), dtype=torch.uint8, generator=g)
        made[f"layer.{name}"] = data.view(dtype).view(3, 4, 5)
    return made | {
        "scalar": torch.tensor(3.5, dtype=torch.bfloat16),
        "vector": torch.arange(7, dtype=torch.int16),
        "no_rows": torch.empty(0, 5),
        "no_columns": torch.empty(4, 0, dtype=torch.float16),
        "one": torch.ones(1, 1, 1, 1),
    }


def test_reads_what_the_package_writes(tmp_path: Path, every_dtype) -> None:
    path = tmp_path / "x.safetensors"
    save_file(every_dtype, path, metadata={"format": "pt", "ключ": "значение"})
    theirs = load_file(path)
    with open_checkpoint(path) as ours:
        assert ours.kind == "safetensors"
        assert ours.files == (path,)
        assert ours.config is None
        assert ours.metadata == {"format": "pt", "ключ": "значение"}
        assert list(ours.tensors) == sorted(theirs, key=natural_key)
        assert ours.nbytes == sum(t.nbytes for t in theirs.values())
        assert ours.parameters == sum(t.numel() for t in theirs.values())
        for name, t in theirs.items():
            info = ours.tensors[name]
            assert (info.shape, info.nbytes) == (tuple(t.shape), t.nbytes), name
            read = ours.read(name)
            assert read.dtype == t.dtype == DTYPES[info.dtype].torch
            assert read.shape == (info.rows, info.columns)
            assert torch.equal(bits(read), bits(t)), name
            assert bytes(ours.raw(name)) == bits(t).numpy().tobytes()


def test_row_slices_are_those_of_the_flattened_matrix(tmp_path: Path, every_dtype) -> None:
    save_file(every_dtype, tmp_path / "x.safetensors")
    with open_checkpoint(tmp_path / "x.safetensors") as ours:
        for name, t in every_dtype.items():
            rows = t.reshape(ours.tensors[name].rows, ours.tensors[name].columns)
            for start in range(len(rows) + 1):
                for stop in range(start, len(rows) + 1):
                    assert torch.equal(bits(ours.read(name, start, stop)), bits(rows[start:stop]))
                    assert bytes(ours.raw(name, start, stop)) == bits(rows[start:stop]).numpy().tobytes()
            for start, stop in ((-1, 1), (0, len(rows) + 1), (2, 1)):
                with pytest.raises(IndexError):
                    ours.read(name, start, stop)
        with pytest.raises(KeyError):
            ours.read("absent")
        with pytest.raises(KeyError):
            ours.raw("absent")


def test_tensors_at_odd_addresses(tmp_path: Path) -> None:
    """Nothing makes a header end at a multiple of eight."""
    values = torch.randn(4, 3, dtype=torch.float64)
    header = {"a": {"dtype": "F64", "shape": [4, 3], "data_offsets": [0, 96]}}
    for padding in range(8):
        path = tmp_path / f"{padding}.safetensors"
        path.write_bytes(with_header(json.dumps(header).encode() + b" " * padding, values.numpy().tobytes()))
        with open_checkpoint(path) as ours:
            assert ours.read("a").data_ptr() % 8 == 0
            assert torch.equal(ours.read("a"), values)
            assert torch.equal(ours.read("a", 1, 3) * 2, values[1:3] * 2)


def test_half_bytes_are_listed_and_raw(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    data = bytes(range(12))
    path.write_bytes(safetensors_bytes({"even": ("F4", (4, 4), data[:8]), "odd": ("F4", (2, 3), data[8:11])}))
    assert [name for name, _ in safetensors.deserialize(path.read_bytes())]
    with open_checkpoint(path) as ours:
        assert ours.tensors["even"].nbytes == 8
        assert bytes(ours.raw("even", 1, 3)) == data[2:6]
        assert bytes(ours.raw("odd")) == data[8:11]
        with pytest.raises(UnsupportedFormat, match="whole bytes"):
            ours.raw("odd", 0, 1)
        with pytest.raises(UnsupportedFormat, match="F4"):
            ours.read("even")


def test_reading_copies_nothing(tmp_path: Path) -> None:
    save_file({"w": torch.randn(8, 8)}, tmp_path / "x.safetensors")
    with open_checkpoint(tmp_path / "x.safetensors") as ours:
        a, b = ours.read("w"), ours.read("w", 2)
        assert b.data_ptr() == a.data_ptr() + 2 * 8 * 4
        view = ours.raw("w", 2)
        assert isinstance(view.obj, mmap.mmap)  # core.engine.pages gives its hints to it
        assert view.readonly


def test_what_was_read_outlives_the_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    w = torch.randn(64, 64)
    save_file({"w": w}, path)
    ours = open_checkpoint(path)
    tensor, view = ours.read("w", 8), ours.raw("w", 8)
    ours.close()
    ours.close()
    del ours
    gc.collect()
    path.unlink()
    assert torch.equal(tensor, w[8:])
    assert bytes(view) == w[8:].numpy().tobytes()


def test_closed_and_changed_files_say_so(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"w": torch.randn(4, 4)}, path)
    ours = open_checkpoint(path)
    before = ours.fingerprint()
    ours.close()
    with pytest.raises(CheckpointError, match="is closed"):
        ours.raw("w")
    ours = open_checkpoint(path)
    assert ours.fingerprint() == before
    save_file({"w": torch.randn(8, 4)}, path)
    assert ours.fingerprint() != before
    with pytest.raises(CorruptFile, match="has changed since"):
        ours.read("w")
    path.unlink()
    with pytest.raises(CheckpointError, match="cannot be read any more"):
        ours.fingerprint()


def test_a_file_that_changes_while_it_is_mapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading beyond the new end of a mapped file ends the process: it is noticed before."""
    path = tmp_path / "x.safetensors"
    w = torch.randn(1024, 1024)
    save_file({"v": w[:1].clone(), "w": w}, path)
    whole, ours = path.read_bytes(), open_checkpoint(path)
    assert torch.equal(ours.read("v"), w[:1])
    with path.open("r+b") as file:
        file.truncate(len(whole) // 4)
    for read in (ours.read, ours.raw):
        with pytest.raises(CorruptFile, match="has changed since it was opened; open it again"):
            read("w", 1000, 1024)
    path.write_bytes(whole)
    monkeypatch.setattr(mapped, "LOOK_SECONDS", 0.0)
    ours = open_checkpoint(path)
    assert torch.equal(ours.read("w"), w)
    with path.open("r+b") as file:
        file.seek(-8, 2)
        file.write(bytes(8))
    with pytest.raises(CorruptFile, match="has changed"):
        ours.read("w")
    path.write_bytes(whole)
    ours = open_checkpoint(path)
    assert torch.equal(ours.read("v"), w[:1])
    path.unlink()
    assert torch.equal(ours.read("w"), w), "what is mapped can be read when its name is gone"


def test_many_threads_read_alike(tmp_path: Path) -> None:
    tensors = {f"w.{i}": torch.full((16, 16), float(i)) for i in range(40)}
    save_file(tensors, tmp_path / "x.safetensors")
    with open_checkpoint(tmp_path / "x.safetensors") as ours, ThreadPoolExecutor(8) as pool:

        def right(i: int) -> bool:
            name = f"w.{i % 40}"
            return torch.equal(ours.read(name), tensors[name]) and len(ours.raw(name, 3, 5)) == 128

        assert all(pool.map(right, range(400)))


def entry(dtype: object = "U8", shape: object = (2,), offsets: object = (0, 2)) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


# (file, what the line says). The package refuses all of them as well.
REFUSED = {
    "too short": (b"\x01\0\0", "too few"),
    "length beyond the file": (struct.pack("<Q", 1000) + b"{}", "header ends at byte"),
    "length of 2^60": (struct.pack("<Q", 1 << 60) + b"{}" * 9, "more than safetensors allows"),
    "length above 100 MB": (struct.pack("<Q", 100_000_001) + b"{}" * 9, "more than safetensors allows"),
    "no JSON": (with_header(b"{" + b"?" * 9), "not valid JSON"),
    "not UTF-8": (with_header(b'{"\xff":1}'), "not UTF-8"),
    "a list": (with_header([]), "not an object"),
    "bytes behind the JSON": (with_header(b"{}\0\0"), "Extra data"),
    "nested deeply": (with_header(b'{"a":' + b"[" * 200_000 + b"]" * 200_000 + b"}"), "nested too deeply"),
    "NaN": (with_header(b'{"a":NaN}'), "NaN"),
    "half a surrogate": (with_header(b'{"\\ud800":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}'), "surrogate"),
    "a field twice": (with_header(b'{"a":{"dtype":"U8","dtype":"U8","shape":[0],"data_offsets":[0,0]}}'), "twice"),
    "a field missing": (with_header({"a": {"dtype": "U8", "shape": [0]}}), "missing"),
    "entry is text": (with_header({"a": "dtype"}), "missing"),
    "unknown dtype": (with_header({"a": entry("Q4_K")}, b"12"), "unknown dtype 'Q4_K'"),
    "complex128": (with_header({"a": entry("C128", (1,), (0, 16))}, b"1" * 16), "unknown dtype"),
    "dtype is a number": (with_header({"a": entry(8)}, b"12"), "not what they must be"),
    "shape is text": (with_header({"a": entry(shape="12")}, b"12"), "not what they must be"),
    "shape of floats": (with_header({"a": entry(shape=[2.0])}, b"12"), "not what they must be"),
    "shape of booleans": (with_header({"a": entry(shape=[2, True])}, b"12"), "not what they must be"),
    "negative shape": (with_header({"a": entry(shape=[-1, -2])}, b"12"), "not what they must be"),
    "minus zero": (with_header(b'{"a":{"dtype":"U8","shape":[-0],"data_offsets":[0,0]}}'), "-0"),
    "shape overflows": (with_header({"a": entry(shape=[1 << 62, 1 << 62])}, b"12"), "overflows"),
    "huge number": (with_header(b'{"a":{"dtype":"U8","shape":[' + b"9" * 5000 + b'],"data_offsets":[0,2]}}'), "digits"),
    "three offsets": (with_header({"a": entry(offsets=[0, 1, 2])}, b"12"), "not what they must be"),
    "offsets reversed": (with_header({"a": entry(offsets=[2, 0])}, b"12"), "not what they must be"),
    "negative offset": (with_header({"a": entry(offsets=[-2, 0])}, b"12"), "not what they must be"),
    "offsets against the shape": (with_header({"a": entry(shape=[3])}, b"12"), "2 bytes stored, but U8 [3] takes 3"),
    "half a byte": (with_header({"a": entry("F4", [3])}, b"12"), "takes 1.5"),
    "data beyond the file": (with_header({"a": entry()}, b"1"), "tensors end at byte"),
    "bytes behind the data": (with_header({"a": entry()}, b"123"), "1 bytes follow the last tensor"),
    "a gap": (with_header({"a": entry(), "b": entry(offsets=[3, 5])}, b"12345"), "'b' leaves 1 bytes unused"),
    "an overlap": (with_header({"a": entry(), "b": entry(offsets=[1, 3])}, b"123"), "'b' overlaps"),
    "the same bytes twice": (with_header({"a": entry(), "b": entry()}, b"12"), "overlaps"),
    "empty tensor inside another": (with_header({"a": entry(), "b": entry(shape=[0], offsets=[1, 1])}, b"12"), "overl"),
    "metadata of numbers": (with_header({"__metadata__": {"a": 1}}), "must map text to text"),
    "metadata is a list": (with_header({"__metadata__": []}), "must map text to text"),
}


@pytest.mark.parametrize(("data", "message"), REFUSED.values(), ids=list(REFUSED))
def test_refuses_what_the_package_refuses(tmp_path: Path, data: bytes, message: str) -> None:
    with pytest.raises(safetensors.SafetensorError):
        safetensors.deserialize(data)
    path = tmp_path / "x.safetensors"
    path.write_bytes(data)
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 400
    assert caught.value.__class__ in (CorruptFile, UnsupportedFormat)


def test_refuses_a_tensor_named_twice(tmp_path: Path) -> None:
    """The package keeps the last one; which one was meant nobody knows."""
    one = b'{"dtype":"U8","shape":[1],"data_offsets":[0,1]}'
    path = tmp_path / "x.safetensors"
    path.write_bytes(with_header(b'{"w":' + one + b',"w":' + one + b"}", b"1"))
    with pytest.raises(CorruptFile, match="'w' appears twice"):
        open_checkpoint(path)


def test_six_bit_floats_are_unsupported_not_corrupt(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(safetensors_bytes({"a": ("F6_E2M3", (4,), b"123")}))
    with pytest.raises(UnsupportedFormat, match="F6_E2M3 is not read here"):
        open_checkpoint(path)


def test_an_empty_header_is_an_empty_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(with_header({}))
    with open_checkpoint(tmp_path / "x.safetensors") as ours:
        assert not ours.tensors
        assert ours.nbytes == 0


def test_truncation_at_every_byte(tmp_path: Path) -> None:
    whole = safetensors_bytes({"a": ("F16", (2, 2), b"12345678"), "b": ("U8", (3,), b"123")}, {"format": "pt"})
    path = tmp_path / "x.safetensors"
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(CorruptFile) as caught:
            open_checkpoint(path)
        assert str(path) in str(caught.value)


SMALL = safetensors_bytes(
    {"a.0": ("F16", (2, 2), b"12345678"), "b": ("U8", (), b"1"), "c": ("F32", (0, 3), b"")}, {"k": "v"}
)


@st.composite
def mutations(draw: st.DrawFn) -> bytes:
    """A valid file with bytes replaced, cut out or put in; the header's length sometimes follows."""
    data = bytearray(SMALL)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        piece = draw(
            st.sampled_from([b"0", b"9", b"-", b"-0", b"1e1", b",", b'"', b"[", b"}", b"null", b"\0"])
            | st.binary(max_size=3)
        )
        data[at : at + draw(st.integers(0, 3))] = piece
    if draw(st.booleans()):
        end = data.rfind(b"}") + 1
        data[:8] = struct.pack("<Q", max(0, end - 8))
    return bytes(data)


@settings(max_examples=1500, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(mutations() | st.binary(max_size=200))
def test_never_more_lenient_than_the_package(data: bytes) -> None:
    try:
        theirs = {name: (t["dtype"], tuple(t["shape"]), bytes(t["data"])) for name, t in safetensors.deserialize(data)}
    except safetensors.SafetensorError:
        theirs = None
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or 8 + length > len(data):
        return  # read_header's part; the file itself is not written here
    try:
        infos, spans, _ = parse_header(data[8 : 8 + length], len(data), Path("x"))
    except (CorruptFile, UnsupportedFormat):
        return
    ours = {t.name: (t.dtype, t.shape, data[slice(*spans[t.name])]) for t in infos}
    assert ours == theirs


@settings(max_examples=200, deadline=None)
@given(st.lists(st.text(max_size=12), max_size=8, unique=True))
def test_any_name_is_read_as_written(tmp_path_factory: pytest.TempPathFactory, names: list[str]) -> None:
    path = tmp_path_factory.mktemp("names") / "x.safetensors"
    names = [name for name in names if name != "__metadata__"]
    save_file({name: torch.tensor([i]) for i, name in enumerate(names)}, path)
    with open_checkpoint(path) as ours:
        assert {name: ours.read(name).item() for name in ours.tensors} == {name: i for i, name in enumerate(names)}


def test_natural_order(tmp_path: Path) -> None:
    names = [*model_names(1000), "layer.10", "layer.9", "9" * 5000]
    path = tmp_path / "x.safetensors"
    path.write_bytes(safetensors_bytes(dict.fromkeys(names, ("U8", (1,), b"1"))))
    with open_checkpoint(path) as ours:
        found = list(ours.tensors)
    assert set(found) == set(names)
    assert found.index("layer.9") < found.index("layer.10")
    assert found.index("model.layers.2.mlp.gate.weight") < found.index("model.layers.4.input_layernorm.weight")
    experts = [n for n in found if n.startswith("model.layers.1.mlp.experts.") and "gate_proj" in n]
    assert [int(n.split(".")[5]) for n in experts] == list(range(64))
