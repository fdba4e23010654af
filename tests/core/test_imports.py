"""What importing costs and must not pull in. Each case is a process of its own: imports leave traces."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("torch", "numba", "transformers", "PySide6", "pyqtgraph", "distributed")


def loaded_after(code: str, root) -> set[str]:
    probe = f"import sys; {code}; print(*[m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", probe], cwd=root, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "module",
    [
        "core",
        "core.cli",
        "core.checkpoints",
        "core.formats",
        "core.methods",
        "core.recipes",
        "core.targets",
        "core.engine.plan",
    ],
)
def test_core_imports_are_light(module: str, root) -> None:
    assert loaded_after(f"import {module}", root) == set()


def test_window_imports_wait_with_torch(root) -> None:
    assert loaded_after("import app.main", root) <= {"PySide6"}


def test_engine_runs_without_qt_installed(root, demo, tmp_path) -> None:
    """The whole job in an interpreter where PySide6 cannot be imported."""
    code = f"""
import sys
for name in ("PySide6", "pyqtgraph", "qtawesome", "shiboken6"):
    sys.modules[name] = None
sys.argv = ["main.py", "quantize", {str(demo)!r}, "--recipe", "q8_0", "--target", "gguf"]
sys.argv += ["--out", {str(tmp_path / "x.gguf")!r}]
import runpy
runpy.run_path("main.py", run_name="__main__")
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "x.gguf").stat().st_size > 3_000_000
