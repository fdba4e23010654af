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
from dataclasses import dataclass
from pathlib import Path

from benchmarks.metronome import Metronome, standstill

TICK_MS = 5
LONG_MS = 15.0  # gaps that are looked at one by one
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
        self._long: dict[str, list[Gap]] = {}
        self._waits = _Waits()
        self._last_wait = self._waits.for_a_core()
        self._metronome = Metronome()
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
        if gap > LONG_MS:
            self._long.setdefault(phase, []).append(Gap(self._last, now, own, waited - self._last_wait))
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
        spans = self._metronome.end()
        heads = (
            "longest, ms",
            "stood still",
            "without, ms",
            "its own",
            "core",
            "p99, ms",
            "own, ms",
            "sum, ms",
            "ticks",
        )
        print(f"\n{'beside a job':<36}" + "".join(f"{head:>12}" for head in heads))
        for phase, gaps in self.gaps.items():
            ordered = sorted(gaps)
            p99 = ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]
            long = [(gap, 1000 * standstill(spans, gap.begin, gap.end)) for gap in self._long.get(phase, ())]
            still = max(long, key=lambda found: found[0].ms)[1] if long else 0.0
            gap, without = max(
                ((g, g.ms - s) for g, s in long), key=lambda found: found[1], default=(None, ordered[-1])
            )
            print(
                f"{phase:<36}{ordered[-1]:>12.1f}{still:>12.1f}{without:>12.1f}"
                f"{gap.own if gap else 0.0:>12.1f}{gap.core if gap else 0.0:>12.1f}"
                f"{p99:>12.1f}{self.own.get(phase, 0):>12.1f}{self.sum[phase]:>12.0f}{len(ordered):>12}"
            )
        for phase, text in self.worst.items():
            print(f"\n{phase}, {self.own[phase]:.0f} ms in one go:\n{text}")


@dataclass(frozen=True, slots=True)
class Gap:
    """Between two ticks, in seconds. own, core: what the thread itself took of it, and how long it waited for a core,
    in ms."""

    begin: float
    end: float
    own: float
    core: float

    @property
    def ms(self) -> float:
        return 1000 * (self.end - self.begin)


class _Waits:
    """How long this thread wanted to run while others had the cores, in ms, as Linux counts it; 0 elsewhere."""

    def __init__(self) -> None:
        # Read again and again at its beginning: opening it anew would cost more than what is measured.
        path = f"/proc/self/task/{threading.get_native_id()}/schedstat"
        self._file = os.open(path, os.O_RDONLY) if Path(path).exists() else -1

    def for_a_core(self) -> float:
        return int(os.pread(self._file, 64, 0).split()[1]) / 1e6 if self._file >= 0 else 0.0


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
