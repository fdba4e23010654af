"""Preflight: each thing that can be wrong with an output, a disk, a device or a plan, and the line that says so."""

from __future__ import annotations

import os
import shutil
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import pytest

from core.engine.plan import make_plan
from core.engine.preflight import preflight, require, working_bytes
from core.errors import PlanError
from core.formats import get_format
from core.methods.base import Statistic
from core.recipes import load
from core.targets.base import Outline
from tests.core.engine.planning import Headers, Row
from tests.core.recipes.outlines import llama, tensor

Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "in" / "model.safetensors"
    path.parent.mkdir()
    path.write_bytes(b"weights")
    return path


class Case:
    def __init__(
        self, source: Path, recipe: str = "q4_k", outline: Outline | None = None, folder: bool = False
    ) -> None:
        outline = outline or llama(2)
        self.checkpoint = Headers(source, outline)
        self.plan = make_plan(self.checkpoint, load(recipe), Row(outline, folder=folder))

    def lines(self, out: Path, severity: str = "", **more) -> list[str]:
        found = preflight(self.plan, self.checkpoint, out, **more)
        return [str(p) for p in found if not severity or p.severity == severity]


def test_nothing_wrong_says_nothing(source: Path, tmp_path: Path) -> None:
    assert Case(source).lines(tmp_path / "out.row") == []
    assert Case(source, folder=True).lines(tmp_path / "out") == []  # a folder's name needs no ending
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in"]


def test_problems_of_the_plan_come_along_errors_first(source: Path, tmp_path: Path) -> None:
    case = Case(source, "q4_k", llama(1, ffn=300))
    assert "blk.0.ffn_down.weight: kept" in case.lines(tmp_path / "missing" / "x")[1]
    severities = [p.severity for p in preflight(case.plan, case.checkpoint, tmp_path / "missing" / "x.row")]
    assert severities == sorted(severities, key=("error", "warning", "note").index)
    nothing = Case(source, "int4-g128")
    assert "nothing to quantize" in nothing.lines(tmp_path / "x.row", "error")[0]


def test_the_input_is_never_the_output(source: Path, tmp_path: Path) -> None:
    case = Case(source)
    link, hard, around = tmp_path / "link.row", tmp_path / "hard.row", tmp_path / "around"
    link.symlink_to(source)
    os.link(source, hard)
    around.symlink_to(source.parent, target_is_directory=True)
    crooked = source.parent / ".." / "in" / "model.safetensors"
    for out in (source, link, hard, around / "model.safetensors", crooked):
        for force in (False, True):
            (line,) = case.lines(out, "error", force=force)
            assert line.endswith("is the input itself; choose another place"), out


def test_a_folder_around_or_inside_the_input_is_refused(source: Path, tmp_path: Path) -> None:
    case = Case(source, folder=True)
    for out in (source.parent, tmp_path):
        (line,) = case.lines(out, "error", force=True)
        assert "holds the input" in line
    inside = Case(source.parent, folder=True)
    (line,) = inside.lines(source.parent / "out", "error")
    assert "lies inside the input folder" in line
    (line,) = inside.lines(source.parent, "error", force=True)
    assert "is the input itself" in line


def test_a_new_file_beside_the_weights_is_fine_and_theirs_are_not(source: Path) -> None:
    case = Case(source.parent)
    config, old = source.parent / "config.json", source.parent / "old.gguf"
    config.write_text("{}")
    old.write_bytes(b"old")
    assert case.lines(source.parent / "new.row", "error") == []
    assert "belongs to the input folder" in case.lines(config, "error", force=True)[0]
    assert case.lines(old, "error", force=True) == []


def test_existing_outputs_need_force(source: Path, tmp_path: Path) -> None:
    out, folder = tmp_path / "out.row", tmp_path / "folder"
    out.write_bytes(b"x")
    folder.mkdir()
    case = Case(source)
    assert case.lines(out, "error") == [f"{out} exists already; choose another name, or --force to replace it"]
    assert case.lines(out, "error", force=True) == []
    for force in (False, True):
        (line,) = case.lines(folder, "error", force=force)
        assert line == f"{folder} is a folder, and row writes a file; name a file that is not there"
    folders = Case(source, folder=True)
    (line,) = folders.lines(out, "error", force=True)
    assert line == f"{out} is a file, and row writes a folder; name a folder that is not there"
    assert folders.lines(folder, "error") == []  # empty
    (folder / "x").write_bytes(b"x")
    assert "exists already" in folders.lines(folder, "error")[0]
    assert folders.lines(folder, "error", force=True) == []


def test_a_dangling_link_counts_as_existing(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.row"
    out.symlink_to(tmp_path / "gone")
    assert "exists already" in Case(source).lines(out, "error")[0]


def test_the_parent_must_be_a_folder_one_can_write_to(source: Path, tmp_path: Path, monkeypatch) -> None:
    case = Case(source)
    (line,) = case.lines(tmp_path / "a" / "out.row", "error")
    assert line == f"the folder {tmp_path / 'a'} does not exist; create it, or choose another place"
    (tmp_path / "file").write_bytes(b"")
    (line,) = case.lines(tmp_path / "file" / "out.row", "error")
    assert "is a file" in line

    def refuse(**_):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    (line,) = case.lines(tmp_path / "out.row", "error")
    assert line == f"the folder {tmp_path} cannot be written to: Read-only file system; choose another place"


def test_the_disk_must_hold_every_byte(source: Path, tmp_path: Path, monkeypatch) -> None:
    case = Case(source)
    free = case.plan.nbytes
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**12, 0, free))
    out = tmp_path / "out.row"
    assert case.lines(out, "error") == []
    free -= 1
    (line,) = case.lines(out, "error")
    assert line.startswith(f"{case.plan.nbytes:,} bytes to write, {free:,} free at {tmp_path}; free 1 bytes")
    # What is replaced is there until the new one is complete.
    out.write_bytes(b"x" * 4096)
    (line,) = case.lines(out, "error", force=True)
    assert "freed only after the new one is complete" in line
    # The rest of a stopped run is taken over, its space with it.
    with (tmp_path / ".out.row.partial").open("wb") as partial:
        partial.write(os.urandom(8192))
        partial.flush()
        os.fsync(partial.fileno())
    assert case.lines(out, "error", force=True) == []

    def unknown(path):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(shutil, "disk_usage", unknown)
    assert "free space" in case.lines(out, "warning", force=True)[0]


def test_devices_are_looked_for(source: Path, tmp_path: Path) -> None:
    case = Case(source)
    assert case.lines(tmp_path / "out.row", device="cpu") == []
    assert "unknown device 'tpu'" in case.lines(tmp_path / "out.row", "error", device="tpu")[0]
    assert case.lines(tmp_path / "out.row", "error", device="cuda:99")[0].startswith("cuda:99")


def test_a_changed_source_is_noticed(source: Path, tmp_path: Path) -> None:
    case = Case(source)
    case.checkpoint.stamp = "2"
    assert case.lines(tmp_path / "out.row") == [f"{source} has changed since it was planned; open it again"]

    def gone():
        raise FileNotFoundError(2, "No such file or directory")

    case.checkpoint.fingerprint = gone  # type: ignore[method-assign]
    assert "cannot be read any more" in case.lines(tmp_path / "out.row", "error")[0]


def test_few_bits_without_importance_are_a_warning(source: Path, tmp_path: Path) -> None:
    case = Case(source, "Q3_K_S", llama(4))
    (line,) = case.lines(tmp_path / "out.row")
    assert line.startswith("token_embd.weight: q3_k without importance data (and 28 more tensors); give --imatrix")
    case.plan = replace(case.plan, kinds=frozenset({Statistic.IMPORTANCE}))
    assert case.lines(tmp_path / "out.row") == []
    assert Case(source, "Q4_K_M").lines(tmp_path / "out.row") == []
    already = Outline((tensor("blk.0.attn_q.weight", (256, 256), dtype="Q2_K"),))
    assert Case(source, "q2_k", already).lines(tmp_path / "out.row") == []


def test_presets_that_need_importance_are_an_error_without(source: Path, tmp_path: Path) -> None:
    case = Case(source, "IQ3_XS", llama(4))
    errors = [line for line in case.lines(tmp_path / "out.row") if "llama.cpp" in line]
    assert errors == [
        "IQ3_XS needs importance data: llama.cpp does not make it without; "
        "give --imatrix or --calibration, or take Q2_K or a larger preset"
    ]
    assert any(p.severity == "error" and "IQ3_XS needs" in p.message for p in case.plan.problems)
    for preset in ("IQ2_M", "Q2_K_S"):
        known = make_plan(case.checkpoint, load(preset), case.plan.target, statistics=frozenset({Statistic.IMPORTANCE}))
        assert not any("does not make it" in p.message for p in known.problems)


def test_memory_is_asked_for_by_whole_tensors_only(source: Path, tmp_path: Path, monkeypatch) -> None:
    import psutil

    Memory = namedtuple("Memory", "total available")
    sliced = Case(source, "q4_k", Outline((tensor("blk.0.ffn_up.weight", (1 << 22, 1 << 12)),)))
    assert working_bytes(sliced.plan) < 1 << 30
    whole = Case(source, "q4_k", Outline((tensor("blk.0.ffn_up.weight", (1 << 14, 1 << 12)),)))
    (only,) = whole.plan.tensors
    per_tensor = replace(only.fate, format=get_format("int8-tensor"))
    whole.plan = replace(whole.plan, tensors=(replace(only, fate=per_tensor),))
    needed = working_bytes(whole.plan)
    assert needed > (1 << 26) * 8
    out = tmp_path / "out.row"
    monkeypatch.setattr(psutil, "virtual_memory", lambda: Memory(needed, needed))
    assert whole.lines(out) == []
    monkeypatch.setattr(psutil, "virtual_memory", lambda: Memory(needed, needed - 1))
    assert "close other programs" in whole.lines(out, "warning")[0]
    monkeypatch.setattr(psutil, "virtual_memory", lambda: Memory(needed - 1, needed - 1))
    (line,) = whole.lines(out, "error")
    assert line.startswith("blk.0.ffn_up.weight: int8-tensor takes the tensor as a whole")


def test_errors_become_one_plan_error(source: Path, tmp_path: Path) -> None:
    case = Case(source, "int4-g128")
    problems = preflight(case.plan, case.checkpoint, tmp_path / "missing" / "out.row", device="tpu")
    with pytest.raises(PlanError) as error:
        require(problems)
    assert "(and 2 more)" in str(error.value)
    assert error.value.problems == problems
    good = Case(source)
    require(preflight(good.plan, good.checkpoint, tmp_path / "out.row"))


def test_an_unusual_ending_is_a_note(source: Path, tmp_path: Path) -> None:
    assert Case(source).lines(tmp_path / "out.bin", "note") == [
        "out.bin does not end in .row, by which programs know such files"
    ]
