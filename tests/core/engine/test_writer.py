"""The growing output: places, names, and what is left behind when things go wrong."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest

from core.engine.writer import Output
from core.errors import OutputError
from core.targets.base import FileLayout, Layout


def single(nbytes: int = 64, head: bytes = b"HEAD") -> Layout:
    return Layout((FileLayout("", head, nbytes),), {})


def folder() -> Layout:
    files = (FileLayout("a.safetensors", b"AA", 16), FileLayout("b.safetensors", b"BB", 8))
    return Layout(files, {}, {"config.json": b"{}"})


def entries(path: Path) -> set[str]:
    return {str(p.relative_to(path)) for p in path.rglob("*")}


def test_bytes_lie_where_they_were_put_and_gaps_are_zero(tmp_path: Path) -> None:
    output = Output(single(), tmp_path / "x.bin", folder=False, inputs=())
    output.create()
    output.files.write(0, 60, b"tail")
    output.files.write(0, 10, memoryview(bytearray(b"middle")))
    assert entries(tmp_path) == {".x.bin.partial"}
    output.publish(force=False)
    assert entries(tmp_path) == {"x.bin"}
    assert (tmp_path / "x.bin").read_bytes() == b"HEAD" + bytes(6) + b"middle" + bytes(44) + b"tail"


def test_folder_appears_at_once(tmp_path: Path) -> None:
    output = Output(folder(), tmp_path / "model", folder=True, inputs=())
    output.create()
    output.files.write(1, 4, b"data")
    assert entries(tmp_path) == {
        ".model.partial",
        ".model.partial/a.safetensors",
        ".model.partial/b.safetensors",
        ".model.partial/config.json",
    }
    output.publish(force=False)
    assert entries(tmp_path) == {"model", "model/a.safetensors", "model/b.safetensors", "model/config.json"}
    assert (tmp_path / "model/b.safetensors").read_bytes() == b"BB\0\0data"


@pytest.mark.parametrize("positional", [True, False], ids=["pwrite", "seek"])
def test_many_threads_write_one_file(tmp_path: Path, positional: bool) -> None:
    """Also without pwrite, as on Windows."""
    count, size = 64, 4096
    output = Output(single(count * size, b""), tmp_path / "x", folder=False, inputs=())
    output.create()
    output.files._positional = positional

    def write(first: int) -> None:
        for i in range(first, count, 4):
            output.files.write(0, i * size, bytes([i]) * size)

    threads = [threading.Thread(target=write, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    output.publish(force=False)
    assert (tmp_path / "x").read_bytes() == b"".join(bytes([i]) * size for i in range(count))


def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: pwrite(fd, data[:3], offset))
    output = Output(single(), tmp_path / "x", folder=False, inputs=())
    output.create()
    output.files.write(0, 20, b"0123456789")
    output.publish(force=False)
    assert (tmp_path / "x").read_bytes()[20:30] == b"0123456789"


def test_full_disk_shows_before_the_first_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OutputError, match="No space left on device; free some space"):
        Output(folder(), tmp_path / "model", folder=True, inputs=()).create()
    assert entries(tmp_path) == set()


@pytest.mark.parametrize("code", [errno.EOPNOTSUPP, errno.EINVAL])
def test_file_systems_that_cannot_reserve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def cannot(*_: object) -> None:
        raise OSError(code, "not here")

    monkeypatch.setattr(os, "posix_fallocate", cannot)
    output = Output(single(1000), tmp_path / "x", folder=False, inputs=())
    output.create()
    output.publish(force=False)
    assert (tmp_path / "x").stat().st_size == 1000


def test_existing_output_needs_force(tmp_path: Path) -> None:
    out = tmp_path / "x"
    out.write_bytes(b"precious")
    output = Output(single(), out, folder=False, inputs=())
    with pytest.raises(OutputError, match="exists already; choose another name, or --force"):
        output.check_free(force=False)
    output.check_free(force=True)
    output.create()
    assert out.read_bytes() == b"precious"  # until the new one is complete
    output.publish(force=True)
    assert out.stat().st_size == 64


def test_output_that_appeared_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    output = Output(single(), tmp_path / "x", folder=False, inputs=())
    output.create()
    (tmp_path / "x").write_bytes(b"precious")
    with pytest.raises(OutputError, match="exists already"):
        output.publish(force=False)
    assert (tmp_path / "x").read_bytes() == b"precious"


def test_force_replaces_a_model_folder_whole(tmp_path: Path) -> None:
    out = tmp_path / "model"
    out.mkdir()
    (out / "old.safetensors").write_bytes(b"old")
    (out / "README.md").write_text("old")
    output = Output(folder(), out, folder=True, inputs=())
    with pytest.raises(OutputError, match="exists already"):
        output.check_free(force=False)
    output.check_free(force=True)
    output.create()
    output.publish(force=True)
    assert entries(tmp_path) == {"model", "model/a.safetensors", "model/b.safetensors", "model/config.json"}


@pytest.mark.parametrize("name", ["photos/cat.jpg", "thesis.docx"])
def test_force_never_removes_what_is_no_model(tmp_path: Path, name: str) -> None:
    out = tmp_path / "home"
    (out / name).parent.mkdir(parents=True)
    (out / name).write_text("precious")
    with pytest.raises(OutputError, match="is no part of a model"):
        Output(folder(), out, folder=True, inputs=()).check_free(force=True)


def test_empty_folder_is_free(tmp_path: Path) -> None:
    out = tmp_path / "model"
    out.mkdir()
    output = Output(folder(), out, folder=True, inputs=())
    output.check_free(force=False)
    output.create()
    output.publish(force=False)
    assert entries(out) == {"a.safetensors", "b.safetensors", "config.json"}


def test_folder_moved_aside_by_a_killed_run_comes_back(tmp_path: Path) -> None:
    (tmp_path / ".model.old").mkdir()
    (tmp_path / ".model.old" / "a.safetensors").write_bytes(b"old")
    output = Output(folder(), tmp_path / "model", folder=True, inputs=())
    with pytest.raises(OutputError, match="exists already"):
        output.check_free(force=False)
    assert entries(tmp_path) == {"model", "model/a.safetensors"}


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_wrong_kind_of_existing_output(tmp_path: Path, kind: str) -> None:
    out = tmp_path / "x"
    if kind == "folder":
        out.mkdir()
        (out / "a.json").write_text("")
    else:
        out.write_text("")
    layout = single() if kind == "folder" else folder()
    with pytest.raises(OutputError, match=f"exists and is a {kind}"):
        Output(layout, out, folder=kind == "file", inputs=()).check_free(force=True)


@pytest.mark.parametrize("way", ["same", "link", "inside", "hard link"])
def test_output_on_top_of_its_input_is_refused(tmp_path: Path, way: str) -> None:
    source = tmp_path / "in" / "model.safetensors"
    source.parent.mkdir()
    source.write_bytes(b"weights")
    out = source
    if way == "link":
        out = tmp_path / "link"
        out.symlink_to(source)
    elif way == "hard link":
        out = tmp_path / "hard"
        os.link(source, out)
    elif way == "inside":
        out = source.parent
    with pytest.raises(OutputError, match="would replace its own input"):
        Output(folder() if way == "inside" else single(), out, folder=way == "inside", inputs=[source])
    assert source.read_bytes() == b"weights"


@pytest.mark.parametrize("name", ["../escape", "/etc/passwd", "a/../../b", "", "c:evil", "a\\b"])
def test_names_stay_inside_the_folder(tmp_path: Path, name: str) -> None:
    layout = Layout((FileLayout(name, b"", 4),), {})
    with pytest.raises(OutputError, match="is no name for a file of the output"):
        Output(layout, tmp_path / "model", folder=True, inputs=())


def test_size_is_checked_before_the_name_is_given(tmp_path: Path) -> None:
    output = Output(single(), tmp_path / "x", folder=False, inputs=())
    output.create()
    os.truncate(output.partial, 63)
    with pytest.raises(OutputError, match="has 63 bytes, not the 64 planned"):
        output.publish(force=False)
    assert not (tmp_path / "x").exists()


def test_reopen_wants_the_full_size(tmp_path: Path) -> None:
    output = Output(single(), tmp_path / "x", folder=False, inputs=())
    assert not output.reopen()
    output.create()
    output.files.write(0, 30, b"kept")
    output.files.close()
    again = Output(single(), tmp_path / "x", folder=False, inputs=())
    assert again.reopen()
    again.publish(force=False)
    assert (tmp_path / "x").read_bytes()[30:34] == b"kept"


def test_a_late_writer_cannot_bring_back_a_removed_file(tmp_path: Path) -> None:
    output = Output(single(), tmp_path / "x", folder=False, inputs=())
    output.create()
    output.discard()
    with pytest.raises(OutputError, match="No such file"):
        output.files.write(0, 0, b"late")
    assert entries(tmp_path) == set()
