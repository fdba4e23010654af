"""A run that is killed, not asked: another process, `kill -9` in the middle, several times over."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from core.engine.pipeline import can_resume
from tests.core.engine.build import checkpoint_file, digest, leftovers, quantize, weights

# A run in small steps, each journalled at once, that goes slowly enough to be killed anywhere.
SCRIPT = """
import sys, time
from pathlib import Path
from core.engine import pipeline, task, units
from tests.core.engine.build import Watch, quantize
units.UNIT_WEIGHTS = 32 * 256
task.PIECE_WEIGHTS = 8 * 256
pipeline.COMMIT_SECONDS = 0
slow = Watch(lambda watch: time.sleep(float(sys.argv[4])))
report = quantize(Path(sys.argv[1]), Path(sys.argv[2]), "int4-g128", sys.argv[3], workers=2, resume=True, ctx=slow)
print(report.notes.get("resumed", ""))
"""


def start(source: Path, out: Path, target: str, root: Path, delay: float) -> subprocess.Popen[str]:
    args = [sys.executable, "-c", SCRIPT, str(source), str(out), target, str(delay)]
    return subprocess.Popen(args, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finished_units(journal: Path) -> int:
    return max(0, journal.read_bytes().count(b"\n") - 1) if journal.exists() else 0


def test_killed_again_and_again(tmp_path: Path, root: Path) -> None:
    target = "compressed-tensors"
    source = checkpoint_file(tmp_path / "model.safetensors", weights(8))
    out, journal = tmp_path / "out", tmp_path / ".out.journal"
    seen = 0
    for _ in range(3):
        process = start(source, out, target, root, delay=0.01)
        deadline = time.monotonic() + 60
        while finished_units(journal) < seen + 5:
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.005)
        process.kill()
        process.communicate()
        assert finished_units(journal) > seen  # each attempt gets further
        seen = finished_units(journal)
        assert not out.exists()
        assert can_resume(out)
    assert seen < 8 * 6  # it was still in the middle
    # A torn last line, as a power cut leaves it.
    with open(journal, "ab") as file:
        file.write(b'{"unit": 40, "seco')
    last = start(source, out, target, root, delay=0)
    printed, errors = last.communicate(timeout=60)
    assert last.returncode == 0, errors
    assert f"{seen} of " in printed
    assert leftovers(tmp_path) == set()
    quantize(source, tmp_path / "undisturbed", "int4-g128", target)
    assert digest(out) == digest(tmp_path / "undisturbed")


def test_unjournalled_slices_are_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever stands in the partial where the journal is silent is written over."""
    from core.engine import units
    from core.errors import Cancelled
    from tests.core.engine.build import Watch

    monkeypatch.setattr(units, "UNIT_WEIGHTS", 32 * 256)
    source = checkpoint_file(tmp_path / "model.safetensors")
    quantize(source, tmp_path / "whole")
    with pytest.raises(Cancelled):
        quantize(source, tmp_path / "out", workers=1, ctx=Watch(lambda w: len(w.heard) > 12), keep_partial=True)
    journal = tmp_path / ".out.journal"
    lines = journal.read_bytes().splitlines(keepends=True)
    assert len(lines) > 8
    done = {json.loads(line)["unit"] for line in lines[1:]}
    assert len(done) == len(lines) - 1
    (partial,) = (tmp_path / ".out.partial").glob("*.safetensors")
    content = bytearray(partial.read_bytes())
    journal.write_bytes(b"".join(lines[:1]))  # only the first line: nothing counts as finished
    content[2000:] = b"\xa5" * (len(content) - 2000)
    partial.write_bytes(content)
    quantize(source, tmp_path / "out", resume=True)
    assert digest(tmp_path / "out") == digest(tmp_path / "whole")
