"""Tests of what a whole process shares: in a process of their own, where no earlier test's threads are at work."""

from __future__ import annotations

import functools
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def alone(test: Callable[..., None]) -> Callable[..., None]:
    """The test, run in a new process. It takes keyword arguments that `repr` writes as Python, and no fixtures."""
    code = f"import {test.__module__} as tests; tests.{test.__name__}.__wrapped__(**{{arguments!r}})"

    @functools.wraps(test)
    def run(**arguments: object) -> None:
        done = subprocess.run(
            [sys.executable, "-c", code.format(arguments=arguments)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr

    return run
