"""Kernels: who is told that one is being compiled, and kernels of different processes in one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from core.formats.fitting.compiled import helper, kernel, named, watch


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


@helper
def _scaled(v, n):
    return v * np.float32(n)


@helper
def _first(x):
    return x[0]


@helper
def _nothing(x):
    return np.float32(-1)


def chosen(x, w):
    if w is None:
        return _nothing(x)
    return _scaled(_first(w), 2) + _scaled(_first(x), 3)


def test_helpers_are_compiled_once_for_all_constants_and_only_where_they_are_called() -> None:
    """Both are what a first use is waited for; numba by itself does neither."""
    made = kernel(chosen)
    made._cache.disable()
    x = np.ones(3, np.float32)
    assert made(x, x) == 5
    assert len(_scaled.signatures) == 1
    assert _nothing.signatures == []
    assert made(x, None) == -1
    assert len(_nothing.signatures) == 1


def test_helpers_are_made_no_machine_code_of() -> None:
    from core.formats.fitting.parts import Part, Whole

    made = kernel(added)
    made._cache.disable()
    made(np.ones(3, np.float32))
    assert [type(result.library) for result in _twice.overloads.values()] == [Part] * len(_twice.signatures)
    (whole,) = made.overloads.values()
    assert isinstance(whole.library, Whole)
    # Nothing of it is seen outside: what another kernel has of the same name cannot take its place.
    names = [f.name for f in whole.library.get_defined_functions() if f.linkage.name == "external"]
    assert names
    assert not any("_twice" in name for name in names)


# Quantizes 256 zeros with each kernel named on the command line, and prints the bytes, a frame of 96 untouched ones
# behind them included.
_PROBE = """
import sys
import numpy as np
from core.formats.fitting import lanes_best_scaled
for name, size in (word.split(":") for word in sys.argv[1:]):
    room = np.full(int(size) + 96, 0xEE, np.uint8)
    getattr(lanes_best_scaled, name)(np.zeros((1, 256), np.float32), None, room[: int(size)].reshape(1, -1))
    print(room.tobytes().hex())
"""


def test_kernels_of_different_processes_are_not_mixed_up(tmp_path: Path) -> None:
    """Compiled code finds its parts by name. Two of one name, each the first of its process, were taken for each other
    when a third process loaded both: it wrote one type's blocks into the other's, and beyond their end."""
    env = {**os.environ, "QUANTBENCH_KERNELS": str(tmp_path)}

    def probed(*kernels: str) -> list[str]:
        command = [sys.executable, "-c", _PROBE, *kernels]
        return subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout.split()

    q4, ternary = probed("q4_0:144"), probed("tq2_0:66")
    frame = "ee" * 96
    assert q4 == [("0080" + "88" * 16) * 8 + frame]
    assert ternary == ["55" * 64 + "0000" + frame]
    assert probed("q4_0:144", "tq2_0:66") == q4 + ternary
    assert probed("tq2_0:66", "q4_0:144") == ternary + q4


def test_functions_made_inside_others_need_names_of_their_own() -> None:
    def nameless(v):
        return v

    for decorate in (helper, kernel):
        with pytest.raises(ValueError, match="needs a name of its own"):
            decorate(nameless)
    assert helper(named("_only_here")(nameless)).py_func.__qualname__ == "_only_here"
    with pytest.raises(ValueError, match=r"_only_here of .* exists"):
        named("_only_here")(nameless)


# Calls one kernel, and prints how many objects the collector will never look at again.
_ASIDE = """
import gc
import numpy as np
from core.analysis.count_kernel import count_into
count_into(np.zeros(1, np.float32), np.array([0.0, 1.0]), np.zeros(3, np.int64))
print(gc.get_freeze_count())
"""


def test_what_was_loaded_is_set_aside_and_what_a_compiler_leaves_is_not(tmp_path: Path) -> None:
    env = {**os.environ, "QUANTBENCH_KERNELS": str(tmp_path)}

    def aside() -> int:
        command = [sys.executable, "-c", _ASIDE]
        return int(subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout)

    assert aside() == 0, "compiled"
    assert aside() > 10_000, "loaded"
