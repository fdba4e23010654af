"""How far a job is, how fast it goes and how long it will take: computed here once, shown by the command line and the
window. Also sizes and durations in words.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

# Speed is smoothed over about this many seconds: a slow slice must not make the ETA jump.
SMOOTHING_SECONDS = 4.0
# Before this much time and this share of the work, an ETA would be a guess.
ETA_AFTER_SECONDS = 1.0
ETA_AFTER_SHARE = 0.01


@dataclass(frozen=True, slots=True)
class Speed:
    """done and total as given; rate per second, None until known; eta_seconds None until meaningful; elapsed without
    pauses."""

    done: int
    total: int
    rate: float | None
    eta_seconds: float | None
    elapsed: float

    @property
    def share(self) -> float:
        """0 … 1; 1 when there is nothing to do."""
        return min(1.0, self.done / self.total) if self.total > 0 else 1.0


class Meter:
    """Turns a sequence of `done` counts into rate and ETA. Not thread-safe: one caller, or a lock around it.

    Speed is measured from the first step of progress on: what was done before (by a resumed run) is no speed, and the
    first step itself carries the start-up (kernels that are compiled).
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._began = clock()
        self._paused_since: float | None = None
        self._paused = 0.0
        self._first: int | None = None
        self._last_time = 0.0
        self._last_done = 0
        self._rate: float | None = None
        self._moving = False

    @property
    def elapsed(self) -> float:
        """Seconds since the start, pauses left out."""
        now = self._paused_since if self._paused_since is not None else self._clock()
        return now - self._began - self._paused

    def pause(self) -> None:
        if self._paused_since is None:
            self._paused_since = self._clock()

    def resume(self) -> None:
        if self._paused_since is not None:
            self._paused += self._clock() - self._paused_since
            self._paused_since = None

    def update(self, done: int, total: int) -> Speed:
        """The state after `done` of `total` (bytes of source, by convention)."""
        now = self.elapsed
        if self._first is None or done < self._last_done:
            self._first, self._last_time, self._last_done, self._rate = done, now, done, None
            self._moving = False
        elif not self._moving and done > self._first:
            self._last_time, self._last_done, self._moving = now, done, True
        step = now - self._last_time
        # Updates that come in a burst are taken together: their single steps say nothing about speed.
        if self._moving and step >= 0.05 and done > self._last_done:
            sample = (done - self._last_done) / step
            if self._rate is None:
                self._rate = sample
            else:
                weight = 1 - math.exp(-step / SMOOTHING_SECONDS)
                self._rate += weight * (sample - self._rate)
            self._last_time, self._last_done = now, done
        return Speed(done, total, self._rate, self._eta(done, total, now), now)

    def _eta(self, done: int, total: int, now: float) -> float | None:
        if done >= total:
            return 0.0
        assert self._first is not None
        early = now < ETA_AFTER_SECONDS or done - self._first < ETA_AFTER_SHARE * (total - self._first)
        if early or not self._rate:
            return None
        return (total - done) / self._rate


def bytes_text(n: float) -> str:
    """4300000 → "4.1 MiB". Three figures, binary units."""
    size = float(n)
    if abs(size) < 1024:
        return f"{size:.0f} B"
    for unit in ("KiB", "MiB", "GiB", "TiB"):
        size /= 1024
        # 1023.95 would print as "1024.0": go to the next unit instead.
        if abs(size) < 1023.95 or unit == "TiB":
            return f"{size:.1f} {unit}"
    raise AssertionError("unreachable")


def duration_text(seconds: float) -> str:
    """75 → "1 min 15 s"."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min"
