"""Opening and planning a checkpoint far larger than memory: headers are read, weights are neither read nor mapped."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.opening import write_sparse

LAYERS, SHARDS = 555, 4


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="only Linux tells what a process has read and mapped")
def test_only_headers_are_read_and_nothing_is_mapped(root: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    headers, total = write_sparse(folder, LAYERS, SHARDS)
    assert total > 10e9
    assert sum(p.stat().st_blocks for p in folder.iterdir()) * 512 < 20e6, "the weights are holes"
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.opening", "--child", str(folder)],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=100,
        env={**os.environ, "PYTHONPATH": str(root)},
        check=True,
    )
    found = json.loads(done.stdout)
    assert found["tensors"] == 9 * LAYERS + 2
    # Read once, and at most twice: a shard's header is checked when it is found and again when it is opened.
    assert headers / 1e6 <= found["open: read, MB"] < 2 * headers / 1e6 + 1
    # Planning imports modules, and reads nothing else.
    assert found["open and plan: read, MB"] - found["open: read, MB"] < 10
    assert found["open and plan: mapped, MB"] == 0
    # 5,000 tensors: 5 MB of records each for the checkpoint and its outline, twice that for the plan, and the modules.
    assert found["open: resident, MB"] < 30
    assert found["open and plan: resident, MB"] < 120
