"""Importance matrices: the GGUF form against the gguf package, the .dat form byte by byte, and damaged files."""

from __future__ import annotations

import struct
from pathlib import Path

import gguf
import numpy as np
import pytest

from core.calibration.imatrix import read_imatrix, require_columns, write_imatrix
from core.calibration.statistics import Provenance, Statistic, Statistics, TensorStatistics
from core.errors import CalibrationError, CorruptFile, WorkbenchError

IMPORTANCE = Statistic.IMPORTANCE


def foreign(path: Path, sums: dict[str, np.ndarray], counts: dict[str, np.ndarray], kind: str = "imatrix") -> Path:
    """As llama-imatrix writes it, by the gguf package."""
    writer = gguf.GGUFWriter(path, arch="")
    writer.kv_data[0].pop("general.architecture", None)
    writer.add_type(kind)
    writer.add_array("imatrix.datasets", ["wiki.train.raw", "code.txt"])
    writer.add_uint32("imatrix.chunk_count", 125)
    writer.add_uint32("imatrix.chunk_size", 512)
    for name in sums:
        writer.add_tensor(f"{name}.in_sum2", sums[name].astype(np.float32))
        if name in counts:
            writer.add_tensor(f"{name}.counts", counts[name].astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_what_llama_imatrix_writes_is_read(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    dense, experts = rng.random((1, 64)) * 900, rng.random((4, 32)) * 50
    path = foreign(
        tmp_path / "i.gguf",
        {"blk.0.attn_q.weight": dense, "blk.0.ffn_up_exps.weight": experts},
        {"blk.0.attn_q.weight": np.array([[900.0]]), "blk.0.ffn_up_exps.weight": np.array([[7.0], [0], [1], [99]])},
    )
    found = read_imatrix(path)
    assert (found.provenance.dataset, found.provenance.chunks) == ("wiki.train.raw, code.txt", 125)
    assert (found.provenance.file, found.provenance.entries) == (str(path), 2)
    q = found.tensors["blk.0.attn_q.weight"]
    assert (q.counts, q.stacked) == ((900,), False)
    np.testing.assert_allclose(q.values[IMPORTANCE], dense[0].astype(np.float32) / 900, rtol=1e-6)
    up = found.tensors["blk.0.ffn_up_exps.weight"]
    assert (up.counts, up.stacked) == ((7, 0, 1, 99), True)
    np.testing.assert_array_equal(up.values[IMPORTANCE][1], np.ones(32, np.float32))  # no token came along
    np.testing.assert_allclose(up.values[IMPORTANCE][3], experts[3].astype(np.float32) / 99, rtol=1e-6)
    assert up.values[IMPORTANCE].dtype == np.float32


def some(counts: tuple[int, ...] = (8, 3)) -> Statistics:
    rng = np.random.default_rng(1)
    tensors = {
        "blk.1.attn_v.weight": TensorStatistics({IMPORTANCE: rng.random(48, np.float32)}, (4096,)),
        "blk.0.ffn_down_exps.weight": TensorStatistics(
            {IMPORTANCE: rng.random((2, 16), np.float32)}, counts, stacked=True
        ),
    }
    return Statistics(Provenance("", "my text", 2, 9, "x"), tensors)


def test_what_we_write_is_an_importance_matrix_to_others(tmp_path: Path) -> None:
    statistics = some()
    path = tmp_path / "o.gguf"
    assert write_imatrix(path, statistics, 512) == path.stat().st_size
    assert [p.name for p in tmp_path.iterdir()] == ["o.gguf"]
    reader = gguf.GGUFReader(path)
    assert reader.get_field("general.type").contents() == "imatrix"
    assert reader.get_field("imatrix.datasets").contents() == ["my text"]
    assert reader.get_field("imatrix.chunk_count").contents() == 9
    assert reader.get_field("imatrix.chunk_size").contents() == 512
    tensors = {t.name: t for t in reader.tensors}
    assert set(tensors) == {f"{name}.{part}" for name in statistics.tensors for part in ("in_sum2", "counts")}
    sums = tensors["blk.0.ffn_down_exps.weight.in_sum2"]
    assert (sums.tensor_type, list(sums.shape)) == (gguf.GGMLQuantizationType.F32, [16, 2])
    counts = tensors["blk.0.ffn_down_exps.weight.counts"]
    assert list(counts.shape) == [1, 2]
    importance = statistics.tensors["blk.0.ffn_down_exps.weight"].values[IMPORTANCE]
    np.testing.assert_allclose(sums.data / counts.data, importance, rtol=1e-6)
    back = read_imatrix(path)
    for name, known in statistics.tensors.items():
        np.testing.assert_allclose(back.tensors[name].values[IMPORTANCE], known.values[IMPORTANCE], rtol=1e-6)
        assert back.tensors[name].counts == known.counts
    assert (back.provenance.dataset, back.provenance.chunks) == ("my text", 9)


def test_identity_is_the_content(tmp_path: Path) -> None:
    a, b, c = (tmp_path / f"{n}.gguf" for n in "abc")
    write_imatrix(a, some(), 512)
    b.write_bytes(a.read_bytes())
    write_imatrix(c, some((8, 4)), 512)
    identity = [read_imatrix(p).provenance.identity for p in (a, b, c)]
    assert identity[0] == identity[1] != identity[2]


def dat(entries: list[tuple[str, int, list[float]]], tail: bytes = b"") -> bytes:
    data = struct.pack("<i", len(entries))
    for name, calls, values in entries:
        data += struct.pack("<i", len(name)) + name.encode() + struct.pack("<ii", calls, len(values))
        data += struct.pack(f"<{len(values)}f", *values)
    return data + tail


def test_the_older_form(tmp_path: Path) -> None:
    path = tmp_path / "imatrix.dat"
    dataset = b"wiki.txt"
    tail = struct.pack("<ii", 42, len(dataset)) + dataset
    experts = [2.0 * x for x in (1, 2, 3, 4, 5, 6)]
    path.write_bytes(dat([("blk.0.attn_k.weight", 4, [8.0, 2.0]), ("blk.0.ffn_up_exps.weight", 2, experts)], tail))
    found = read_imatrix(path)
    assert (found.provenance.dataset, found.provenance.chunks) == ("wiki.txt", 42)
    np.testing.assert_array_equal(found.tensors["blk.0.attn_k.weight"].values[IMPORTANCE], [2.0, 0.5])
    flat = found.tensors["blk.0.ffn_up_exps.weight"]
    apart = require_columns("x", flat, columns=2, experts=3)
    np.testing.assert_array_equal(apart.values[IMPORTANCE], [[1, 2], [3, 4], [5, 6]])
    assert apart.stacked
    path.write_bytes(dat([("blk.0.attn_k.weight", 4, [8.0, 2.0])]))
    assert read_imatrix(path).provenance.chunks == 0


def test_another_models_matrix_is_refused() -> None:
    known = TensorStatistics({IMPORTANCE: np.ones(64, np.float32)}, (1,))
    assert require_columns("x", known, 64, 0) is known
    with pytest.raises(CalibrationError, match=r"x: the importance has 64 values and the tensor 32 columns"):
        require_columns("x", known, 32, 0)
    with pytest.raises(CalibrationError, match="8 × 32"):
        require_columns("x", known, 32, 8)


def test_damage_is_one_line(tmp_path: Path) -> None:
    whole = dat([("blk.0.attn_k.weight", 4, [8.0, 2.0])], struct.pack("<ii", 1, 4) + b"text")
    path = tmp_path / "imatrix.dat"
    for length in range(1, len(whole)):
        path.write_bytes(whole[:length])
        if length in (len(whole) - 12, len(whole) - 8):
            continue  # older files end here
        with pytest.raises(WorkbenchError) as error:
            read_imatrix(path)
        assert str(path) in str(error.value)
        assert "\n" not in str(error.value)
    for bad in (float("nan"), float("inf"), -1.0):
        path.write_bytes(dat([("blk.0.attn_k.weight", 4, [8.0, bad])]))
        with pytest.raises(CalibrationError, match=r"attn_k.* holds negative, NaN or infinite"):
            read_imatrix(path)
    path.write_bytes(struct.pack("<i", -5) + bytes(64))
    with pytest.raises(CorruptFile, match="no importance matrix"):
        read_imatrix(path)
    with pytest.raises(WorkbenchError):
        read_imatrix(tmp_path / "missing")


def test_other_ggufs_are_refused(tmp_path: Path) -> None:
    model = foreign(tmp_path / "m.gguf", {"a": np.ones((1, 4))}, {"a": np.ones((1, 1))}, kind="model")
    with pytest.raises(CalibrationError, match="no importance matrix"):
        read_imatrix(model)
    with pytest.raises(CorruptFile, match="sums and no counts"):
        read_imatrix(foreign(tmp_path / "n.gguf", {"a": np.ones((1, 4))}, {}))
    with pytest.raises(CorruptFile, match="do not belong together"):
        read_imatrix(foreign(tmp_path / "o.gguf", {"a": np.ones((2, 4))}, {"a": np.ones((1, 1))}))
    with pytest.raises(CalibrationError, match="holds no importance"):
        read_imatrix(foreign(tmp_path / "p.gguf", {}, {}))


def test_the_older_form_is_written_as_llama_cpp_has_it(tmp_path: Path) -> None:
    """Taken apart by hand after llama.cpp's own, and read back: of two experts no token reached one."""
    rng = np.random.default_rng(1)
    plain, stacked = rng.random(64, np.float32), np.stack([rng.random(32, np.float32), np.ones(32, np.float32)])
    tensors = {
        "blk.0.attn_q.weight": TensorStatistics({Statistic.IMPORTANCE: plain}, (70,)),
        "blk.0.ffn_up_exps.weight": TensorStatistics({Statistic.IMPORTANCE: stacked}, (41, 0), stacked=True),
    }
    path = tmp_path / "older.dat"
    write_imatrix(path, Statistics(Provenance("", "text é", 2, 3, "x"), tensors), 24)
    data, at = path.read_bytes(), 0

    def number() -> int:
        nonlocal at
        at += 4
        return int(struct.unpack_from("<i", data, at - 4)[0])

    def taken(count: int) -> bytes:
        nonlocal at
        at += count
        return data[at - count : at]

    found = {}
    for _ in range(number()):
        name = taken(number()).decode()
        calls, count = number(), number()
        found[name] = (calls, np.frombuffer(taken(4 * count), "<f4") / calls)
    assert number() == 3
    assert taken(number()).decode() == "text é"
    assert at == len(data)
    assert [calls for calls, _ in found.values()] == [3, 2]  # 70 and 41 tokens in samples of 24
    np.testing.assert_allclose(found["blk.0.attn_q.weight"][1], plain, rtol=1e-6)
    np.testing.assert_allclose(found["blk.0.ffn_up_exps.weight"][1], stacked.reshape(-1), rtol=1e-6)
    again = read_imatrix(path)
    assert (again.provenance.dataset, again.provenance.chunks) == ("text é", 3)
    parted = require_columns("e", again.tensors["blk.0.ffn_up_exps.weight"], 32, 2)
    np.testing.assert_allclose(parted.values[Statistic.IMPORTANCE], stacked, rtol=1e-6)
