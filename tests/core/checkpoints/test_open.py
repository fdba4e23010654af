"""The one way in: what is recognised, what is refused and how, how fast it opens and what it imports."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core.checkpoints import READERS, open_checkpoint
from core.errors import CheckpointError, CorruptFile, UnsupportedFormat
from tests.core.checkpoints.build import (
    gguf_bytes,
    gguf_record,
    many_gguf,
    many_sharded,
    many_tensors,
    model_names,
    safetensors_bytes,
)

SUFFIXES = ["", ".safetensors", ".gguf", ".pt", ".bin"]
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 4976698672\n"
STRANGERS = {
    "PNG": (b"\x89PNG\r\n\x1a\n" + bytes(64), "is a PNG image"),
    "LFS": (POINTER, "is a git-lfs pointer, not the file itself; fetch it with git lfs pull"),
    "HTML": (b"\n <!DOCTYPE html><html><body>404</body></html>", "is a web page"),
    "PDF": (b"%PDF-1.7 " + bytes(64), "is a PDF document"),
    "gzip": (b"\x1f\x8b\x08" + bytes(64), "is a gzip archive"),
    "tar": (bytes(257) + b"ustar" + bytes(64), "is a tar archive"),
    "HDF5": (b"\x89HDF\r\n\x1a\n" + bytes(64), "is an HDF5 file"),
    "NumPy": (b"\x93NUMPY\x01\x00" + bytes(64), "is a NumPy array"),
    "program": (b"\x7fELF" + bytes(64), "is a program"),
}


def line(path: Path | str) -> str:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(path)
    text = str(caught.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(("data", "message"), STRANGERS.values(), ids=list(STRANGERS))
def test_strangers_are_named_whatever_they_are_called(tmp_path: Path, data: bytes, message: str, suffix: str) -> None:
    path = tmp_path / f"x{suffix}"
    path.write_bytes(data)
    assert message in line(path)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_content_goes_before_suffix(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x{suffix}"
    path.write_bytes(safetensors_bytes({"a": ("U8", (1,), b"1")}))
    with open_checkpoint(path) as ours:
        assert ours.kind == "safetensors"
    path.write_bytes(gguf_bytes([], [gguf_record("a", (1,), 0, 0)], bytes(4)))
    with open_checkpoint(str(path)) as ours:
        assert ours.kind == "gguf"


def test_text_and_noise(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("Some words about a model, in German: Grüße.")
    assert "is text; open a folder with config.json" in line(tmp_path / "notes.txt")
    (tmp_path / "noise").write_bytes(bytes(range(200, 256)) * 20)
    assert "is no kind of file that is read here" in line(tmp_path / "noise")
    assert isinstance_of(tmp_path / "noise", UnsupportedFormat)


def isinstance_of(path: Path, kind: type[CheckpointError]) -> bool:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(path)
    return isinstance(caught.value, kind)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_empty_and_missing(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x{suffix}"
    assert f"{path}: does not exist" in line(path)
    path.write_bytes(b"")
    assert "is empty" in line(path)
    assert isinstance_of(path, CorruptFile)
    assert "cannot be opened" in line(path / "below" / f"y{suffix}") or os.name == "nt"


def test_names_no_file_can_have(tmp_path: Path) -> None:
    for name in ("a\0b", "x" * 5000, "\ud800"):
        line(tmp_path / name)


def test_dangling_links_and_devices(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").symlink_to(tmp_path / "gone")
    assert "does not exist" in line(tmp_path / "x.gguf")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.safetensors")
        assert "is a device or a pipe" in line(tmp_path / "pipe.safetensors")
        assert "is a device or a pipe" in line("/dev/zero")


def test_readers_are_told_apart() -> None:
    assert len({r.name for r in READERS}) == len(READERS)
    suffixes = [s for r in READERS for s in r.suffixes]
    assert len(set(suffixes)) == len(suffixes)
    assert all(s.startswith(".") and s == s.lower() for s in suffixes)


STARTS = [b"", b"GGUF", b"GGUF\3\0\0\0", b"PK\3\4", b"\x80\2", b"\x80\4"]


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.binary(max_size=600), start=st.sampled_from(STARTS), suffix=st.sampled_from(SUFFIXES))
def test_any_bytes_give_one_line(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, start: bytes, suffix: str
) -> None:
    path = tmp_path_factory.getbasetemp() / f"noise{suffix}"
    path.write_bytes(start + data)
    try:
        open_checkpoint(path).close()
    except CheckpointError as error:
        text = str(error)
        assert text.startswith(str(path))
        assert "\n" not in text
        assert len(text) < 600


PROBE = """
import sys
from core.checkpoints import open_checkpoint
with open_checkpoint(sys.argv[1]) as checkpoint:
    count = len(checkpoint.tensors)
    checkpoint.fingerprint()
print(count, *[m for m in ("torch", "numpy") if m in sys.modules])
"""


@pytest.mark.parametrize("kind", ["file", "folder", "gguf"])
def test_fifty_thousand_tensors(tmp_path: Path, root: Path, kind: str) -> None:
    """Header-only: what it costs is in `python -m benchmarks.headers`."""
    if kind == "file":
        path = many_tensors(tmp_path / "x.safetensors", 50_000)
    elif kind == "folder":
        path = many_sharded(tmp_path / "m", 50_000, 40)
    else:
        path = many_gguf(tmp_path / "x.gguf", 50_000, vocabulary=256_000)
    done = subprocess.run(
        [sys.executable, "-c", PROBE, str(path)], cwd=root, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    count, *imported = done.stdout.split()
    assert int(count) == 50_000
    assert imported == []


def test_many_tensors_are_what_they_say(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    path = many_tensors(tmp_path / "x.safetensors", 500)
    theirs = load_file(path)
    assert set(theirs) == set(model_names(500))
    with open_checkpoint(path) as ours:
        assert all(ours.read(name).eq(t.reshape(-1, 32)).all() for name, t in theirs.items())
        assert all(t.isfinite().all() for t in theirs.values())
