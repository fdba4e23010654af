"""Files of torch.save, plain, nested, tied and hostile. Nothing in them may run."""

from __future__ import annotations

import collections
import io
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core.checkpoints import open_checkpoint
from core.errors import CheckpointError, CorruptFile, UnsupportedFormat, WorkbenchError
from core.tensors import DTYPES

ZIPPED = [True, False]


def save(value: Any, path: Path, *, zipped: bool = True, protocol: int = 2) -> Path:
    torch.save(value, path, _use_new_zipfile_serialization=zipped, pickle_protocol=protocol)
    return path


@pytest.mark.parametrize("zipped", ZIPPED)
def test_reads_a_state_dict(tmp_path: Path, zipped: bool) -> None:
    # The legacy container knows no unsigned 16 … 64 bit integers nor FNUZ floats.
    legacy = {"F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL", "C64", "C128"}
    names = [d.name for d in DTYPES.values() if d.torch_name and (zipped or d.name in legacy)]
    tensors = {n: torch.arange(24).remainder(2).to(DTYPES[n].torch).reshape(2, 3, 4) for n in names}
    tensors |= {"scalar": torch.tensor(2.5), "empty": torch.empty(0, 3), "transposed": torch.randn(4, 6).T}
    path = save(collections.OrderedDict(tensors), tmp_path / "x.pt", zipped=zipped)
    with open_checkpoint(path) as ours:
        assert ours.kind == "torch"
        assert ours.files == (path,)
        assert set(ours.tensors) == set(tensors)
        for name, t in tensors.items():
            info = ours.tensors[name]
            assert (info.shape, info.nbytes) == (tuple(t.shape), t.nbytes)
            rows = t.reshape(info.rows, info.columns).contiguous()
            read = ours.read(name)
            assert read.dtype == t.dtype
            assert torch.equal(read.view(torch.uint8), rows.view(torch.uint8)), name
            if info.rows > 2:
                part = rows[1:3].reshape(-1).view(torch.uint8)
                assert torch.equal(ours.read(name, 1, 3).reshape(-1).view(torch.uint8), part)
                assert bytes(ours.raw(name, 1, 3)) == part.numpy().tobytes()
        with pytest.raises(IndexError):
            ours.read("scalar", 0, 2)
        with pytest.raises(KeyError):
            ours.read("absent")


def test_zip_archives_are_mapped(tmp_path: Path) -> None:
    path = save({"w": torch.randn(64, 64)}, tmp_path / "x.pt")
    with open_checkpoint(path) as ours:
        assert ours.read("w", 3).data_ptr() == ours.read("w").data_ptr() + 3 * 64 * 4
    with pytest.raises(CheckpointError, match="is closed"):
        ours.read("w")


def test_bare_pickle_protocols(tmp_path: Path) -> None:
    for protocol in (2, 3, 4, 5):
        for zipped in ZIPPED:
            path = save({"w": torch.ones(2)}, tmp_path / "x.pt", zipped=zipped, protocol=protocol)
            try:
                with open_checkpoint(path) as ours:
                    assert ours.read("w").tolist() == [[1.0, 1.0]]
            except WorkbenchError:
                assert protocol > 3  # torch's weights_only loader knows these only in part


def test_training_checkpoints_are_unwrapped(tmp_path: Path) -> None:
    w = torch.randn(4, 4)
    value = {
        "epoch": 3,
        "lr": 1e-3,
        "model": {"encoder.w": w, "encoder": {"b": torch.ones(4)}, "version": 2},
        "optimizer": {"state": {0: {"exp_avg": torch.zeros(4, 4)}}},
    }
    with open_checkpoint(save(value, tmp_path / "x.pth")) as ours:
        assert set(ours.tensors) == {"encoder.w", "encoder.b"}
        assert torch.equal(ours.read("encoder.w"), w)
        assert set(ours.metadata) == {"epoch", "lr", "optimizer", "version"}
        assert ours.metadata["epoch"] == "int 3, not used"
        assert "dict" in ours.metadata["optimizer"]
    nested = {"state_dict": {"module": {"w": w}}, "hyper_parameters": {"a": [1, 2]}}
    with open_checkpoint(save(nested, tmp_path / "y.pt")) as ours:
        assert set(ours.tensors) == {"w"}


def test_nested_dictionaries_have_dotted_names(tmp_path: Path) -> None:
    value = {"encoder": {"layer": {0: torch.ones(2)}}, "decoder": {"w": torch.zeros(2)}, "tag": ["x"]}
    with open_checkpoint(save(value, tmp_path / "x.pt")) as ours:
        assert list(ours.tensors) == ["decoder.w", "encoder.layer.0"]
        assert ours.metadata == {"tag": "list of 1, not used"}
    with pytest.raises(CorruptFile, match=r"two tensors are named 'a\.b'"):
        open_checkpoint(save({"a.b": torch.ones(1), "a": {"b": torch.ones(1)}}, tmp_path / "y.pt"))


@pytest.mark.parametrize("zipped", ZIPPED)
def test_tied_tensors_are_aliases(tmp_path: Path, zipped: bool) -> None:
    w = torch.randn(8, 4)
    value = {"embed": w, "a.head": w, "part": w[2:4], "param": torch.nn.Parameter(w.clone())}
    with open_checkpoint(save(value, tmp_path / "x.pt", zipped=zipped)) as ours:
        assert {n: t.alias for n, t in ours.tensors.items()} == {
            "a.head": "embed",
            "embed": "",
            "param": "",
            "part": "",
        }
        assert torch.equal(ours.read("a.head"), w)
        assert torch.equal(ours.read("param"), w)
        assert not ours.read("param").requires_grad
        assert ours.parameters == 32 + 8 + 32
        assert ours.nbytes == 4 * ours.parameters


class Runs:
    """A pickle that would write a file where it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize(
    "write", [lambda v, p: save(v, p), lambda v, p: save(v, p, zipped=False)], ids=["zip", "legacy"]
)
@pytest.mark.parametrize("name", ["x.pt", "x.bin", "x", "x.gguf"])
def test_pickles_that_run_code_do_not(tmp_path: Path, write: Callable[[Any, Path], Path], name: str) -> None:
    path = write({"w": torch.ones(2), "x": Runs(tmp_path / "ran")}, tmp_path / name)
    with pytest.raises(CheckpointError, match=r"asks to run \w+\.mkdir; nothing of it was run"):
        open_checkpoint(path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("zipped", ZIPPED)
def test_pickles_do_not_pass_as_safetensors(tmp_path: Path, zipped: bool) -> None:
    with pytest.raises(UnsupportedFormat, match="under the name of a safetensors file"):
        open_checkpoint(save({"w": torch.ones(2)}, tmp_path / "x.safetensors", zipped=zipped))


def test_plain_pickles_that_run_code_do_not(tmp_path: Path) -> None:
    for protocol in range(2, 6):
        path = tmp_path / "x.bin"
        path.write_bytes(pickle.dumps({"x": Runs(tmp_path / "ran")}, protocol))
        with pytest.raises(CheckpointError):
            open_checkpoint(path)
    assert not (tmp_path / "ran").exists()


def opens_as(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(path)
    line = str(caught.value)
    assert str(path) in line
    assert len(line) < 500
    return line


def test_other_objects(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    assert "one tensor without a name" in opens_as(save(torch.ones(2), path))
    assert "a list, not a dict" in opens_as(save([torch.ones(2)], path))
    assert "holds no tensors" in opens_as(save({"a": 1}, path))
    assert "holds no tensors" in opens_as(save({}, path))
    assert "asks to run torch.nn.modules.linear.Linear" in opens_as(save(torch.nn.Linear(1, 1), path))
    assert "sparse_coo" in opens_as(save({"a": torch.eye(3).to_sparse()}, path))
    assert "meta" in opens_as(save({"a": torch.empty(3, device="meta")}, path))
    loop: dict[str, Any] = {"w": torch.ones(1)}
    loop["again"] = loop
    with open_checkpoint(save(loop, path)) as ours:
        assert set(ours.tensors) == {"again." * i + "w" for i in range(32)}
        assert {t.alias for t in ours.tensors.values()} == {"", "w"}


def test_dictionaries_that_multiply(tmp_path: Path) -> None:
    value: dict[str, Any] = {"w": 1}
    for _ in range(30):
        value = {"a": value, "b": value}
    assert "more than 500,000 entries" in opens_as(save(value, tmp_path / "x.pt"))


def test_views_that_multiply(tmp_path: Path) -> None:
    line = opens_as(save({"w": torch.zeros(1).expand(1 << 40)}, tmp_path / "x.pt"))
    assert "repeats its memory" in line
    with open_checkpoint(save({"w": torch.ones(1).expand(3, 5)}, tmp_path / "y.pt")) as ours:
        assert torch.equal(ours.read("w"), torch.ones(3, 5))


def test_torchscript_is_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    with zipfile.ZipFile(path, "w") as z:
        z.writestr("x/data.pkl", b"\x80\x02}.")
        z.writestr("x/constants.pkl", b"\x80\x02).")
    assert "TorchScript" in opens_as(path)


def test_other_zip_files(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    with zipfile.ZipFile(path, "w") as z:
        z.writestr("word/document.xml", b"<x/>")
    assert "not one of torch.save" in opens_as(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as z:
        z.writestr("x/data.pkl", b"\x80\x02}." + b"\0" * 100_000)
    assert "is compressed" in opens_as(path)


def rezipped(path: Path, changed: dict[str, bytes]) -> None:
    """The archive with entries replaced (by the end of their names)."""
    with zipfile.ZipFile(path) as z:
        entries = {e.filename: z.read(e) for e in z.infolist()}
    with zipfile.ZipFile(path, "w") as z:
        for name, data in entries.items():
            z.writestr(name, next((new for end, new in changed.items() if name.endswith(end)), data))


def test_storage_that_is_too_short(tmp_path: Path) -> None:
    path = save({"w": torch.arange(1000.0), "z": torch.zeros(9999)}, tmp_path / "x.pt")
    rezipped(path, {"/data/0": b"short"})
    with pytest.raises(CorruptFile, match="claims 4,000 bytes that no entry"):
        open_checkpoint(path)


def test_shape_larger_than_its_storage(tmp_path: Path) -> None:
    path = save({"w": torch.arange(200.0)}, tmp_path / "x.pt")
    with zipfile.ZipFile(path) as z:
        pickled = next(z.read(e) for e in z.infolist() if e.filename.endswith("data.pkl"))
    for claimed in (30_000, 1 << 40, 1 << 62):
        # K\xc8 is the number 200: the storage's size, and the tensor's shape.
        assert pickled.count(b"K\xc8") == 2
        number = b"\x8a\x08" + struct.pack("<q", claimed)
        for changed in (pickled.replace(b"K\xc8", number), number.join(pickled.rsplit(b"K\xc8", 1))):
            other = tmp_path / "y.pt"
            other.write_bytes(path.read_bytes())
            rezipped(other, {"data.pkl": changed})
            opens_as(other)


@pytest.mark.parametrize("zipped", ZIPPED)
def test_truncation(tmp_path: Path, zipped: bool) -> None:
    whole = save({"w": torch.arange(30.0)}, tmp_path / "x.pt", zipped=zipped).read_bytes()
    path = tmp_path / "y.pt"
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        opens_as(path)


def small(zipped: bool) -> bytes:
    stream = io.BytesIO()
    value = {"w": torch.arange(6.0).reshape(2, 3), "n": {"v": torch.ones(2, dtype=torch.bfloat16)}, "e": 1}
    torch.save(value, stream, _use_new_zipfile_serialization=zipped)
    return stream.getvalue()


SMALL = (small(True), small(False))


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data(), whole=st.sampled_from(SMALL))
def test_any_change_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, whole: bytes
) -> None:
    changed = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, min(len(changed), 700)))
        changed[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    path = tmp_path_factory.getbasetemp() / "fuzzed.pt"
    path.write_bytes(changed)
    try:
        with open_checkpoint(path) as ours:
            for name in ours.tensors:
                ours.read(name)
    except WorkbenchError as error:
        line = str(error)
        assert "\n" not in line
    finally:
        path.unlink()
