"""How long a core of the machine stood still. On each core, a process of its own with nothing to do asks to be woken
every two milliseconds and writes down when it was not. The host of a virtual machine stops single cores, often for a
tenth of a second, and with one of them whatever thread was running there: programs have gaps then that none of them
made. Used by loop_watch.py.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

BEAT_SECONDS = 0.002
LATE_SECONDS = 0.006  # less than that is a kernel's everyday
_SPAN = struct.Struct("dd")


class Metronome:
    """Runs until `end`. Times are those of time.perf_counter, which all processes of a machine share."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="metronome-"))
        cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [-1]
        self._paths = [self._folder / str(core) for core in cores]
        self._processes = [subprocess.Popen([sys.executable, __file__, str(path)]) for path in self._paths]

    def end(self) -> list[tuple[float, float]]:
        """Stops it. When any core stood still: from, to, in seconds, in order and apart from each other."""
        found: list[tuple[float, float]] = []
        for process in self._processes:
            process.terminate()
            process.wait()
        for path in self._paths:
            data = path.read_bytes() if path.exists() else b""
            found += _SPAN.iter_unpack(data[: len(data) // _SPAN.size * _SPAN.size])
        shutil.rmtree(self._folder)
        apart: list[tuple[float, float]] = []
        for since, until in sorted(found):
            if apart and since <= apart[-1][1]:
                apart[-1] = apart[-1][0], max(until, apart[-1][1])
            else:
                apart.append((since, until))
        return apart


def standstill(spans: list[tuple[float, float]], begin: float, end: float) -> float:
    """Seconds of [begin, end] in which a core stood still."""
    return sum(max(0.0, min(end, until) - max(begin, since)) for since, until in spans)


def _beat(path: str) -> None:
    core = int(Path(path).name)
    if core >= 0:
        os.sched_setaffinity(0, {core})
    # Before everything else in the machine, where that is allowed: a core that is merely busy is not standing still.
    with contextlib.suppress(OSError, AttributeError):
        os.nice(-20)
    parent = os.getppid()
    with open(path, "wb", buffering=0) as file:
        last = time.perf_counter()
        while os.getppid() == parent:
            time.sleep(BEAT_SECONDS)
            now = time.perf_counter()
            if now - last > BEAT_SECONDS + LATE_SECONDS:
                file.write(_SPAN.pack(last + BEAT_SECONDS, now))
            last = now


if __name__ == "__main__":
    _beat(sys.argv[1])
