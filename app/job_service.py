"""The only bridge between worker threads and the window: a QObject on the GUI thread that re-emits a Runner's events as
signals. Rates and ETA come from core.engine.progress; what a task does is the task's business.

Events are gathered and delivered in short turns, so that a job with 50,000 results never holds the event loop.
Progress, and the results of jobs that have many, come at the beat of a timer that runs only while there is something to
tell: being woken beside a Python task costs the window more than what is told.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from pathlib import Path
from typing import Any

from PySide6.QtCore import QObject, Qt, QTimer, Signal, Slot

from app.jobs import (
    Advanced,
    Event,
    Finished,
    JobId,
    JobInfo,
    Lane,
    Outcome,
    Part,
    Paused,
    Progress,
    Queued,
    Runner,
    Started,
    Stopped,
    Task,
    Unit,
)
from core.engine.progress import Meter

# One turn of deliveries takes about this long at most; the rest waits for the next turn of the event loop.
TURN_SECONDS = 0.006
PROGRESS_MS = 50
MEMORY_SECONDS = 1.0


class JobService(QObject):
    """Owns all jobs. Every job emits queued, started, progressed and partial (any number), then exactly one finished.

    A job cancelled while it waits is never started. Nothing of a job arrives after its `finished`.
    """

    queued = Signal(object)  # JobInfo
    started = Signal(object)  # JobId
    progressed = Signal(object)  # Progress
    partial = Signal(object, object)  # JobId, value; of a job submitted with `together`: JobId, tuple of values
    paused = Signal(object, bool)  # JobId, paused
    finished = Signal(object, object)  # JobId, Outcome
    _wake = Signal()

    def __init__(self, parent: QObject | None = None, *, inline: bool = False) -> None:
        super().__init__(parent)
        self._events: deque[Event] = deque()
        self._awake = threading.Event()  # set while a delivery is on its way
        self._advanced: dict[JobId, Advanced] = {}
        self._parts: dict[JobId, deque[Any]] = {}  # of jobs whose results come together, until the next beat
        self._beating = False  # the ticker runs, or is about to
        self._meters: dict[JobId, Meter] = {}
        self._last: dict[JobId, Progress] = {}
        self._infos: dict[JobId, JobInfo] = {}
        self._outcomes: dict[JobId, Outcome] = {}
        self._held: set[JobId] = set()
        self._alive: set[JobId] = set()  # submitted, and its `finished` not yet emitted
        self._heavy: set[JobId] = set()  # those of them that are heavy
        self._stale: set[JobId] = set()
        self._newest: dict[str, JobId] = {}
        self._closed = False
        self._rss = 0
        self._rss_at = 0.0
        self._wake.connect(self._deliver, Qt.ConnectionType.QueuedConnection)
        self._next_turn = QTimer(self)
        self._next_turn.setSingleShot(True)
        self._next_turn.setInterval(0)
        self._next_turn.timeout.connect(self._deliver)
        self._ticker = QTimer(self)
        self._ticker.setInterval(PROGRESS_MS)
        self._ticker.timeout.connect(self._tick)
        self._runner = Runner(self._post, inline)

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
        """Queues `task(request, ctx)`. Its signals come from the event loop, never from inside this call.

        together  partial results are many: `partial` hands them over as tuples, some 20 times a second
        """
        more: dict[str, Any] = {"lane": lane, "key": key, "device": device, "out": out, "unit": unit}
        more["together"] = together
        job = self._runner.submit(task, request, title=title, waited_for=waited_for, **more)
        self._alive.add(job)
        if lane == "heavy":
            self._heavy.add(job)
        if lane == "preview" and key:
            older = self._newest.get(key)
            if older in self._alive:
                self._stale.add(older)
            self._newest[key] = job
        return job

    def cancel(self, id: JobId) -> None:
        """Stops a job at its next check. What it had already handed over and was not yet delivered is dropped."""
        if id in self._alive:
            self._stale.add(id)
        self._runner.cancel(id)

    def pause(self, id: JobId) -> None:
        self._runner.pause(id, True)

    def resume(self, id: JobId) -> None:
        self._runner.pause(id, False)

    def jobs(self) -> tuple[JobInfo, ...]:
        """All heavy jobs of this session, finished ones included, in order."""
        return tuple(self._infos.values())

    def running(self) -> tuple[JobInfo, ...]:
        """Heavy jobs that wait, run or are paused."""
        return self._runner.unfinished("heavy")

    def previews(self) -> tuple[JobInfo, ...]:
        """Preview jobs that wait or run."""
        return self._runner.unfinished("preview")

    @property
    def settled(self) -> bool:
        """Whether the end of every heavy job has been told: who keeps or removes what it left has done so."""
        return not self._heavy

    def outcome(self, id: JobId) -> Outcome | None:
        """How a heavy job ended, or None."""
        return self._outcomes.get(id)

    def progress(self, id: JobId) -> Progress | None:
        """The last progress of a heavy job, or None."""
        return self._last.get(id)

    def is_paused(self, id: JobId) -> bool:
        return id in self._held

    def shutdown(self, timeout: float = 5.0) -> tuple[str, ...]:
        """Cancels all jobs and waits. Returns the titles of those that would not stop."""
        stuck = self._runner.shutdown(timeout)
        self._closed = True
        self._ticker.stop()
        self._next_turn.stop()
        self._events.clear()
        return stuck

    def _post(self, event: Event) -> None:
        """From any thread."""
        if self._closed:
            return  # a job that would not stop in time; this object may be gone already
        if isinstance(event, Advanced):
            self._advanced[event.id] = event  # the ticker looks at the latest only
            self._beat()
            return
        if isinstance(event, Part) and event.id in self._parts:
            self._parts[event.id].append(event.value)
            self._beat()
            return
        if isinstance(event, Queued) and event.info.together:
            self._parts[event.info.id] = deque()
        self._events.append(event)
        self._call()

    def _call(self) -> None:
        if not self._awake.is_set():
            self._awake.set()
            self._wake.emit()

    def _beat(self) -> None:
        """From any thread: there is something to tell at the next beat."""
        if not self._beating:
            self._beating = True
            self._call()

    @Slot()
    def _deliver(self) -> None:
        self._awake.clear()
        if self._beating and not self._ticker.isActive():
            self._ticker.start()
        deadline = time.perf_counter() + TURN_SECONDS
        while self._events:
            self._handle(self._events.popleft())
            if time.perf_counter() > deadline and self._events:
                # A timer, not another queued call, which Qt would run at once: painting and input come in between.
                self._awake.set()
                self._next_turn.start()
                return

    def _handle(self, event: Event) -> None:
        if isinstance(event, Queued):
            if event.info.lane == "heavy":
                self._infos[event.info.id] = event.info
            self.queued.emit(event.info)
        elif isinstance(event, Started):
            self._meters[event.id] = Meter()
            if event.id in self._held:
                self._meters[event.id].pause()
            self.started.emit(event.id)
        elif isinstance(event, Part):
            if event.id not in self._stale:
                self.partial.emit(event.id, event.value)
        elif isinstance(event, Paused):
            self._hold(event.id, event.paused)
            self.paused.emit(event.id, event.paused)
        elif isinstance(event, Finished):
            self._advance(event.id)
            self._hand_over(event.id)
            self._parts.pop(event.id, None)
            self._meters.pop(event.id, None)
            self._advanced.pop(event.id, None)
            self._held.discard(event.id)
            heavy = event.id in self._infos
            # A run that was finished before it saw the cancel is finished; a late preview is of no use to anyone.
            outcome = Stopped() if event.id in self._stale and not heavy else event.outcome
            self._stale.discard(event.id)
            self._alive.discard(event.id)
            self._heavy.discard(event.id)
            if heavy:
                self._outcomes[event.id] = outcome
            self.finished.emit(event.id, outcome)

    def _hold(self, id: JobId, paused: bool) -> None:
        meter = self._meters.get(id)
        if paused:
            self._held.add(id)
        else:
            self._held.discard(id)
        if meter is not None:
            meter.pause() if paused else meter.resume()

    @Slot()
    def _tick(self) -> None:
        # Taken back before looking: what is posted from here on asks for another beat.
        self._beating = False
        told = [told for job in list(self._meters) for told in (self._advance(job), self._hand_over(job))]
        if any(told):
            self._beating = True
        elif not self._beating:
            self._ticker.stop()

    def _hand_over(self, id: JobId) -> bool:
        """Tells results that came together; whether there were any."""
        waiting = self._parts.get(id)
        if not waiting:
            return False
        values = tuple(waiting.popleft() for _ in range(len(waiting)))
        if id not in self._stale:
            self.partial.emit(id, values)
        return True

    def _advance(self, id: JobId) -> bool:
        """Tells how far a job is; whether there was something to tell."""
        event, meter = self._advanced.pop(id, None), self._meters.get(id)
        if event is None or meter is None:
            return False
        speed = meter.update(event.done, event.total)
        progress = Progress(
            id, event.done, event.total, event.note, speed.rate, speed.eta_seconds, speed.elapsed, self._memory()
        )
        if id in self._infos:
            self._last[id] = progress
        self.progressed.emit(progress)
        return True

    def _memory(self) -> int:
        """Resident bytes of this process, looked up once a second."""
        now = time.monotonic()
        if not self._rss or now - self._rss_at > MEMORY_SECONDS:
            import psutil

            self._rss, self._rss_at = psutil.Process().memory_info().rss, now
        return self._rss
