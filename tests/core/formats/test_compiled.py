"""Kernels: who is told that one is being compiled."""

from __future__ import annotations

import numpy as np
import pytest

from core.formats.fitting.compiled import helper, kernel, watch

pytest.importorskip("numba")


@helper
def _twice(v):
    return v + v


def added(x):
    total = np.float32(0)
    for v in x:
        total += _twice(v)
    return total


def test_observers_hear_of_kernels_and_not_of_their_helpers() -> None:
    made = kernel(added)
    made._cache.disable()
    heard: list[tuple[str, bool]] = []
    end = watch(lambda name, begins: heard.append((name, begins)))
    x = np.ones(3, np.float32)
    assert made(x) == 6
    assert heard == [("added", True), ("added", False)]
    assert made(x) == 6
    assert len(heard) == 2
    end()
    assert made(x.astype(np.float64)) == 6
    assert len(heard) == 2
