"""Settings every test shares: no screen, no network, one torch thread per test process."""

from __future__ import annotations

import os

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("PYQTGRAPH_QT_LIB", "PySide6")

import shutil
import tempfile
from pathlib import Path

import pytest

# Runs are logged, and tests leave no rows in anybody's log.
_LOG = tempfile.mkdtemp(prefix="quantbench-tests-")
os.environ["QUANTBENCH_EXPERIMENTS"] = str(Path(_LOG) / "experiments.sqlite")
os.environ["QUANTBENCH_RUNS"] = str(Path(_LOG) / "runs")
os.environ["QUANTBENCH_ORIGINALS"] = str(Path(_LOG) / "originals")

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture(scope="session")
def demo() -> Path:
    """The demo checkpoint: a small trained Llama in bf16."""
    return ROOT / "resources" / "demo"


def pytest_unconfigure() -> None:
    shutil.rmtree(_LOG, ignore_errors=True)
