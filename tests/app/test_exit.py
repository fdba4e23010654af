"""The end of the program: after all work is done, the process leaves in peace."""

from __future__ import annotations

import subprocess
import sys


def test_pictures_of_a_run_and_a_clean_exit(root, demo, tmp_path) -> None:
    """Opens, plots, quantizes, closes. Widgets that outlive Qt would end this process with a signal."""
    done = subprocess.run(
        [sys.executable, "-m", "app.screenshot", "--out", str(tmp_path), "--theme", "dark", str(demo)],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    pictures = sorted(p.name for p in tmp_path.iterdir())
    assert [p.split("-")[1] for p in pictures] == ["open", "quantized"]
    assert all((tmp_path / p).stat().st_size > 50_000 for p in pictures)
