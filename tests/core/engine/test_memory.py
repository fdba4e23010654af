"""Memory does not grow with the checkpoint. Each run is a process of its own: a peak never goes down again."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = """
import sys
from pathlib import Path
from tests.core.engine.build import quantize
report = quantize(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], "dense", workers=2)
print(report.peak_rss_bytes, report.weights)
"""
MIB = 1 << 20


def sparse_checkpoint(path: Path, mib: int) -> Path:
    """bf16 zeros that occupy no disk: 4 tensors of mib / 4 MiB."""
    rows = mib * MIB // 4 // (2 * 4096)
    header = {
        f"model.layers.{i}.mlp.down_proj.weight": {
            "dtype": "BF16",
            "shape": [rows, 4096],
            "data_offsets": [i * rows * 8192, (i + 1) * rows * 8192],
        }
        for i in range(4)
    }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + 4 * rows * 8192)
    return path


def peak(source: Path, out: Path, recipe: str, root: Path) -> int:
    """Of a whole process that quantizes, in MiB."""
    args = [sys.executable, "-c", SCRIPT, str(source), str(out), recipe]
    done = subprocess.run(args, cwd=root, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found, weights = map(int, done.stdout.split())
    assert 2 * weights == source.stat().st_size - int.from_bytes(source.read_bytes()[:8], "little") - 8
    return found // MIB


def test_peak_is_that_of_the_slices(tmp_path: Path, root: Path) -> None:
    """400 MiB of source, written as 400 MiB: less than 100 MiB more than for 16 MiB, and less than 700 MiB in all, most
    of which is torch. Two workers with a slice of 8 M weights each, pieces of 1 M."""
    small = peak(sparse_checkpoint(tmp_path / "small.safetensors", 16), tmp_path / "small", "f16", root)
    large = peak(sparse_checkpoint(tmp_path / "large.safetensors", 400), tmp_path / "large", "f16", root)
    assert large - small < 100
    assert large < 700
