"""Running tasks in threads: jobs, lanes, pause and cancel. No Qt here (job_service.py brings events to the GUI thread),
and no knowledge of what a task does.

A task is `task(request, ctx) -> result`: it gets a frozen request and a JobContext, and touches nothing else. The heavy
lane runs one job at a time, in order. The preview lane runs one job per key: a new one with the same key cancels the
one before, whose results are then never delivered.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from core.context import JobContext
from core.errors import Cancelled, one_line

JobId = int
# Of 19 steps. What somebody waits for at the screen comes right after the window itself; runs, and what is computed in
# case it is wanted, stand back, and still go on at a fair pace beside other programs.
PREVIEW_NICENESS, BACKGROUND_NICENESS = 1, 5
Lane = Literal["heavy", "preview"]
Unit = Literal["bytes", "tokens"]
Task = Callable[[Any, JobContext], Any]


@dataclass(frozen=True, slots=True)
class JobInfo:
    """What a job is. out: the path it writes, or None; created: seconds since the epoch; unit: of its progress;
    together: its partial results are many, and handed over as tuples."""

    id: JobId
    title: str
    lane: Lane
    key: str
    device: str
    out: Path | None
    created: float
    unit: Unit = "bytes"
    together: bool = False


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a job is. done and total in bytes of source (or what the task says); rate per second.

    eta_seconds  None until it means something
    rss_bytes    resident memory of this process
    """

    id: JobId
    done: int
    total: int
    note: str
    rate: float | None
    eta_seconds: float | None
    elapsed: float
    rss_bytes: int

    @property
    def permille(self) -> int:
        return min(1000, self.done * 1000 // self.total) if self.total > 0 else 0


@dataclass(frozen=True, slots=True)
class Done:
    result: Any


@dataclass(frozen=True, slots=True)
class Failed:
    """line: what, where, what to try; details: the traceback."""

    line: str
    details: str


@dataclass(frozen=True, slots=True)
class Stopped:
    """Cancelled, or replaced by a newer preview. An outcome, never shown as a failure."""


Outcome = Done | Failed | Stopped


@dataclass(frozen=True, slots=True)
class Queued:
    info: JobInfo


@dataclass(frozen=True, slots=True)
class Started:
    id: JobId


@dataclass(frozen=True, slots=True)
class Advanced:
    id: JobId
    done: int
    total: int
    note: str


@dataclass(frozen=True, slots=True)
class Part:
    id: JobId
    value: Any


@dataclass(frozen=True, slots=True)
class Paused:
    id: JobId
    paused: bool


@dataclass(frozen=True, slots=True)
class Finished:
    id: JobId
    outcome: Outcome


Event = Queued | Started | Advanced | Part | Paused | Finished


class _Job:
    """One job, and the context its task talks to."""

    def __init__(self, info: JobInfo, task: Task, request: Any, post: Callable[[Event], None]) -> None:
        self.info = info
        self.task = task
        self.request = request
        self._post = post
        self._state = threading.Condition()
        self._cancelled = False
        self._paused = False
        self.finished = False

    def progress(self, done: int, total: int, note: str = "") -> None:
        if not self._cancelled:
            self._post(Advanced(self.info.id, done, total, note))

    def partial(self, value: Any) -> None:
        if not self._cancelled:
            self._post(Part(self.info.id, value))

    def check(self) -> None:
        if self._paused:
            with self._state:
                while self._paused and not self._cancelled:
                    self._state.wait()
        if self._cancelled:
            raise Cancelled

    def cancel(self) -> None:
        with self._state:
            self._cancelled = True
            self._state.notify_all()

    def set_paused(self, paused: bool) -> bool:
        """Whether that changed anything."""
        with self._state:
            if self._paused == paused or self._cancelled or self.finished:
                return False
            self._paused = paused
            self._state.notify_all()
            return True

    def run(self) -> None:
        """The one place that catches everything: whatever a task raises becomes an outcome."""
        outcome: Outcome
        try:
            self.check()
            self._post(Started(self.info.id))
            outcome = Done(self.task(self.request, self))
        except Cancelled:
            outcome = Stopped()
        except Exception as error:
            outcome = Failed(one_line(error), traceback.format_exc())
        if self._cancelled and self.info.lane == "preview":
            outcome = Stopped()  # replaced while its last line ran: stale results are never delivered
        self.finished = True
        self.task = self.request = None  # type: ignore[assignment]  # a finished job holds no tensors
        self._post(Finished(self.info.id, outcome))


class Runner:
    """Runs jobs and posts their events, from any thread. Exactly one Finished follows each Queued.

    post    called from the submitting thread and from worker threads; must be quick and thread-safe
    inline  tasks run inside `submit` (tests)
    """

    def __init__(self, post: Callable[[Event], None], inline: bool = False) -> None:
        self._post = post
        self._inline = inline
        self._ids = itertools.count(1)
        self._lock = threading.Lock()
        self._jobs: dict[JobId, _Job] = {}
        self._waiting: dict[str, deque[_Job]] = {}
        self._current: dict[str, _Job] = {}
        self._threads: dict[str, threading.Thread] = {}
        self._closed = False

    def submit(
        self,
        task: Task,
        request: Any,
        *,
        title: str,
        lane: Lane = "heavy",
        key: str = "",
        device: str = "cpu",
        out: Path | None = None,
        unit: Unit = "bytes",
        waited_for: bool = True,
        together: bool = False,
    ) -> JobId:
        """Queues a job. Preview jobs with the same key replace each other; heavy ones wait for their turn. After
        `shutdown`, a job is stopped before it starts.

        waited_for  False for a preview (of a key) that stands back as a heavy job does
        """
        info = JobInfo(next(self._ids), title, lane, key, device, out, time.time(), unit, together)
        job = _Job(info, task, request, self._post)
        track = "heavy" if lane == "heavy" else f"preview {key or info.id}"
        with self._lock:
            # Inside the lock, so that no worker can post Started before this.
            self._post(Queued(info))
            if self._closed:
                self._post(Finished(info.id, Stopped()))
                return info.id
            self._jobs[info.id] = job
            if lane == "preview":
                self._replace(track)
            self._waiting.setdefault(track, deque()).append(job)
            if not self._inline and track not in self._threads:
                niceness = PREVIEW_NICENESS if lane == "preview" and waited_for else BACKGROUND_NICENESS
                name = f"quantbench {track}"
                thread = threading.Thread(target=self._work, args=(track, niceness), name=name, daemon=True)
                self._threads[track] = thread
                thread.start()
        if self._inline:
            self._work(track, 0)
        return info.id

    def cancel(self, id: JobId) -> None:
        """Stops a job at its next check, or takes it out of the queue. Unknown and finished ids are ignored."""
        with self._lock:
            job = self._jobs.get(id)
            if job is None:
                return
            job.cancel()
            for queue in self._waiting.values():
                if job in queue:
                    queue.remove(job)
                    del self._jobs[id]
                    self._post(Finished(id, Stopped()))
                    return

    def pause(self, id: JobId, paused: bool = True) -> None:
        """Holds a job at its next check, or lets it go on. A waiting job starts held."""
        with self._lock:
            job = self._jobs.get(id)
            if job is not None and job.set_paused(paused):
                self._post(Paused(id, paused))

    def unfinished(self, lane: Lane = "heavy") -> tuple[JobInfo, ...]:
        """Jobs of a lane that wait, run or are paused."""
        with self._lock:
            return tuple(job.info for job in self._jobs.values() if job.info.lane == lane)

    def shutdown(self, timeout: float = 5.0) -> tuple[str, ...]:
        """Cancels everything and waits, in all `timeout` seconds. Returns the titles of jobs that would not stop."""
        with self._lock:
            self._closed = True
            present = list(self._jobs)
        for job in present:
            self.cancel(job)
        deadline = time.monotonic() + timeout
        with self._lock:
            threads = list(self._threads.values())
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        with self._lock:
            return tuple(left.info.title for left in self._jobs.values())

    def _replace(self, track: str) -> None:
        """Cancels all of a preview key (lock held)."""
        for job in self._waiting.pop(track, ()):
            job.cancel()
            self._jobs.pop(job.info.id, None)
            self._post(Finished(job.info.id, Stopped()))
        running = self._current.get(track)
        if running is not None:
            running.cancel()

    def _work(self, track: str, niceness: int) -> None:
        """Runs a track's jobs until none waits."""
        if not self._inline:
            _yield_to_the_window(niceness)
        while True:
            with self._lock:
                queue = self._waiting.get(track)
                if not queue:
                    self._waiting.pop(track, None)
                    self._threads.pop(track, None)
                    return
                job = queue.popleft()
                self._current[track] = job
            try:
                job.run()
            finally:
                with self._lock:
                    self._current.pop(track, None)
                    self._jobs.pop(job.info.id, None)


def _yield_to_the_window(niceness: int) -> None:
    """Lets the GUI thread go first when all cores are busy. On Linux a priority belongs to the thread, and threads that
    it starts inherit it; elsewhere it belongs to the whole process, and is left alone."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), niceness)
