"""What the window's thread does with its time: used by window_stall.py."""

from __future__ import annotations

import cProfile
import io
import os
import pstats
import statistics
import threading
import time
from collections.abc import Callable
from pathlib import Path

TICK_MS = 5
START, BETWEEN = "libraries and plots", "between the actions"
# What an action shows is on the screen this long after it is settled; what comes later refines it.
SHOWN_SECONDS = 0.03
SAFETY_MS = 400


class Watch:
    """Runs the event loop until something is so, and measures what the window's thread does meanwhile: whole actions,
    or the gaps between the ticks of a timer."""

    def __init__(self, profile: bool = False) -> None:
        from PySide6.QtCore import QAbstractEventDispatcher, QEventLoop, Qt, QTimer

        self.actions: dict[str, list[tuple[float, float]]] = {}  # (all, the most in one go) in ms, by action
        self.gaps: dict[str, list[float]] = {}
        self.own: dict[str, float] = {}
        self.sum: dict[str, float] = {}
        self.worst: dict[str, str] = {}
        self.phase = START
        self._profile = cProfile.Profile(time.thread_time) if profile else None
        self._done: Callable[[], bool] = lambda: True
        self._loop = QEventLoop()
        self._last = time.perf_counter()
        self._last_own = time.thread_time()
        # Of the longest gap of a phase: what the thread itself took, and how long it waited for a core, in ms.
        self.within: dict[str, tuple[float, float]] = {}
        self.stolen: dict[str, float] = {}  # ms that the host kept both cores to itself, over a phase
        self._waits = _Waits()
        self._last_wait, self._last_stolen = self._waits.for_a_core(), self._waits.stolen()
        self._go = 0.0
        self._timer = QTimer()
        self._timer.setTimerType(Qt.TimerType.PreciseTimer)
        self._timer.setInterval(TICK_MS)
        self._timer.timeout.connect(self._tick)
        self._timer.start()
        self._safety = QTimer()  # should the last event of an action come before what it waits for
        self._safety.setInterval(SAFETY_MS)
        self._safety.timeout.connect(lambda: None)
        self._dispatcher = QAbstractEventDispatcher.instance()
        self._dispatcher.aboutToBlock.connect(self._idle)
        if self._profile is not None:
            self._profile.enable()

    def begin(self, phase: str) -> None:
        """From now on, ticks belong to this phase."""
        if not self._timer.isActive():
            self._last, self._last_own = time.perf_counter(), time.thread_time()
            self._timer.start()
        else:
            self._tick()
        stolen = self._waits.stolen()
        self.stolen[self.phase] = self.stolen.get(self.phase, 0.0) + stolen - self._last_stolen
        self._last_stolen = stolen
        self.phase = phase

    def act(self, name: str, action: Callable[[], object], done: Callable[[], bool]) -> bool:
        """Does something and waits until it is done and shown; False when that took too long."""
        self.begin(BETWEEN)
        self._timer.stop()
        self._safety.start()
        self._go = 0.0
        began = self._last_own = time.thread_time()
        action()
        in_time = self.wait(done)
        self._safety.stop()
        self.rest(SHOWN_SECONDS)
        self.actions.setdefault(name, []).append((1000 * (time.thread_time() - began), 1000 * self._go))
        self.begin(BETWEEN)
        return in_time

    def wait(self, done: Callable[[], bool], seconds: float = 900.0) -> bool:
        """Runs the event loop until done() is true; False when that took too long."""
        deadline = time.monotonic() + seconds
        self._done = lambda: done() or time.monotonic() > deadline
        self._loop.exec()
        self._done = lambda: False
        return time.monotonic() <= deadline

    def rest(self, seconds: float) -> None:
        from PySide6.QtCore import QTimer

        QTimer.singleShot(int(1000 * seconds), self._loop.quit)
        self._loop.exec()

    def _idle(self) -> None:
        """The loop is about to wait for events."""
        if not self._timer.isActive():
            now = time.thread_time()
            self._go = max(self._go, now - self._last_own)
            self._last_own = now
        if self._done():
            self._loop.quit()

    def _tick(self) -> None:
        now, own = time.perf_counter(), 1000 * (time.thread_time() - self._last_own)
        phase, gap, waited = self.phase, 1000 * (now - self._last), self._waits.for_a_core()
        if gap > max(self.gaps.get(phase, ()), default=0.0):
            self.within[phase] = own, waited - self._last_wait
        self._last_wait = waited
        self.gaps.setdefault(phase, []).append(gap)
        self.sum[phase] = self.sum.get(phase, 0.0) + own
        if own > self.own.get(phase, 0.0):
            self.own[phase] = own
            if self._profile is not None and own > 10:
                self.worst[phase] = self._described()
        if self._profile is not None:
            self._profile.disable()
            self._profile.clear()
            self._profile.enable()
        self._last, self._last_own = time.perf_counter(), time.thread_time()

    def _described(self) -> str:
        """What was called since the last tick, the longest first."""
        assert self._profile is not None
        self._profile.disable()
        text = io.StringIO()
        pstats.Stats(self._profile, stream=text).sort_stats("cumulative").print_stats(28)
        lines = [line for line in text.getvalue().splitlines() if line.strip()]
        start = next((i for i, line in enumerate(lines) if "ncalls" in line), 0)
        return "\n".join(lines[start:])

    def report_actions(self) -> None:
        heads = ("least, ms", "median, ms", "worst, ms", "in one go", "times")
        print(f"{'action':<36}" + "".join(f"{head:>12}" for head in heads))
        for name, found in self.actions.items():
            sums = sorted(whole for whole, _ in found)
            # Of all its repetitions: what it takes in one go is what the least disturbed one took.
            figures = (sums[0], statistics.median(sums), sums[-1], min(go for _, go in found), len(sums))
            print(f"{name:<36}" + "".join(f"{figure:>12.0f}" for figure in figures))

    def report_phases(self) -> None:
        heads = f"{'longest, ms':>12}{'its own':>9}{'core':>6}{'p99, ms':>10}{'own, ms':>10}{'sum, ms':>10}{'ticks':>8}"
        print(f"\n{'beside a job':<36}{heads}{'stolen, ms':>12}")
        for phase, gaps in self.gaps.items():
            ordered = sorted(gaps)
            p99 = ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]
            print(
                f"{phase:<36}{ordered[-1]:>12.1f}{self.within[phase][0]:>9.1f}{self.within[phase][1]:>6.1f}"
                f"{p99:>10.1f}{self.own.get(phase, 0):>10.1f}{self.sum[phase]:>10.0f}{len(ordered):>8}"
                f"{self.stolen.get(phase, 0.0):>12.0f}"
            )
        for phase, text in self.worst.items():
            print(f"\n{phase}, {self.own[phase]:.0f} ms in one go:\n{text}")


class _Waits:
    """What keeps a thread that wants to run from running, in ms, as Linux counts it; 0 elsewhere."""

    def __init__(self) -> None:
        # Read again and again at their beginning: opening them anew would cost more than what is measured.
        self._files = [
            os.open(path, os.O_RDONLY) if Path(path).exists() else -1
            for path in (f"/proc/self/task/{threading.get_native_id()}/schedstat", "/proc/stat")
        ]
        self._hertz = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100

    def for_a_core(self) -> float:
        """Of this thread, while others had the cores."""
        return int(os.pread(self._files[0], 64, 0).split()[1]) / 1e6 if self._files[0] >= 0 else 0.0

    def stolen(self) -> float:
        """Of all cores, while the host ran something else."""
        return 1000 * int(os.pread(self._files[1], 256, 0).split()[8]) / self._hertz if self._files[1] >= 0 else 0.0


def disturbance(seconds: float = 3.0) -> str:
    """How much of a thread's processor time others take here: a fixed piece of Python, over and over."""
    found: list[float] = []
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        began = time.thread_time()
        sum(range(100_000))
        found.append(1000 * (time.thread_time() - began))
        time.sleep(0.005)
    return f"{min(found):.2f} ms at least, {statistics.median(found):.2f} in the middle, {max(found):.1f} at most"
