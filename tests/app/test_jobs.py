"""The runner: lanes, order, cancel, pause, outcomes. No Qt."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from app.jobs import Advanced, Done, Event, Failed, Finished, Part, Paused, Queued, Runner, Started, Stopped
from core.errors import RecipeError

WAIT = 5.0


class Recorder:
    """Collects events; safe from any thread."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self._more = threading.Condition()

    def __call__(self, event: Event) -> None:
        with self._more:
            self.events.append(event)
            self._more.notify_all()

    def wait(self, done: Callable[[list[Event]], Any]) -> None:
        with self._more:
            assert self._more.wait_for(lambda: done(self.events), WAIT), self.events

    def outcomes(self) -> dict[int, Any]:
        return {e.id: e.outcome for e in self.events if isinstance(e, Finished)}


def submit(runner: Runner, task, request=None, **kwargs) -> int:
    return runner.submit(task, request, title="job", **kwargs)


@pytest.fixture
def recorder():
    return Recorder()


@pytest.fixture
def runner(recorder):
    made = Runner(recorder)
    yield made
    assert made.shutdown(WAIT) == ()


def test_a_job_goes_through_its_events_in_order(runner, recorder) -> None:
    def task(request, ctx):
        ctx.progress(1, 2, "half")
        ctx.partial("part")
        return request * 2

    job = submit(runner, task, 21)
    recorder.wait(lambda events: job in recorder.outcomes())
    kinds = [type(e) for e in recorder.events]
    assert kinds == [Queued, Started, Advanced, Part, Finished]
    assert recorder.events[2] == Advanced(job, 1, 2, "half")
    assert recorder.outcomes() == {job: Done(42)}


def test_inline_runs_inside_submit(recorder) -> None:
    runner = Runner(recorder, inline=True)
    job = submit(runner, lambda request, ctx: threading.current_thread().name)
    assert recorder.outcomes() == {job: Done(threading.current_thread().name)}


def test_a_failure_keeps_its_traceback(runner, recorder) -> None:
    def breaks(request, ctx):
        raise ValueError("no such thing")

    def ours(request, ctx):
        raise RecipeError("unknown format 'q9'", "see `formats`", "rule 2")

    first, second = submit(runner, breaks), submit(runner, ours)
    recorder.wait(lambda events: len(recorder.outcomes()) == 2)
    outcome = recorder.outcomes()[first]
    assert outcome.line == "ValueError: no such thing"
    assert "in breaks" in outcome.details
    assert recorder.outcomes()[second].line == "rule 2: unknown format 'q9'; see `formats`"


def test_the_heavy_lane_runs_one_at_a_time_in_order(runner, recorder) -> None:
    running, most, order = [0], [0], []

    def task(request, ctx):
        running[0] += 1
        most[0] = max(most[0], running[0])
        time.sleep(0.01)
        order.append(request)
        running[0] -= 1

    for n in range(5):
        submit(runner, task, n)
    recorder.wait(lambda events: len(recorder.outcomes()) == 5)
    assert order == [0, 1, 2, 3, 4]
    assert most == [1]


def test_a_preview_does_not_wait_for_the_heavy_lane(runner, recorder) -> None:
    gate = threading.Event()
    heavy = submit(runner, lambda request, ctx: gate.wait(WAIT))
    preview = submit(runner, lambda request, ctx: "seen", lane="preview", key="a")
    recorder.wait(lambda events: preview in recorder.outcomes())
    assert heavy not in recorder.outcomes()
    gate.set()
    recorder.wait(lambda events: heavy in recorder.outcomes())


def test_the_latest_preview_of_a_key_wins(runner, recorder) -> None:
    gate = threading.Event()

    def task(request, ctx):
        gate.wait(WAIT)
        ctx.partial(request)
        return request

    first = submit(runner, task, 1, lane="preview", key="plan")
    recorder.wait(lambda events: any(isinstance(e, Started) for e in events))
    middle = submit(runner, task, 2, lane="preview", key="plan")
    last = submit(runner, task, 3, lane="preview", key="plan")
    other = submit(runner, lambda request, ctx: "other", lane="preview", key="else")
    gate.set()
    recorder.wait(lambda events: len(recorder.outcomes()) == 4)
    assert recorder.outcomes() == {first: Stopped(), middle: Stopped(), last: Done(3), other: Done("other")}
    assert [e.value for e in recorder.events if isinstance(e, Part)] == [3]
    assert middle not in [e.id for e in recorder.events if isinstance(e, Started)]


def test_cancel_stops_at_the_next_check(runner, recorder) -> None:
    def task(request, ctx):
        for _ in range(10_000):
            ctx.check()
            time.sleep(0.001)

    job = submit(runner, task)
    recorder.wait(lambda events: any(isinstance(e, Started) for e in events))
    runner.cancel(job)
    recorder.wait(lambda events: job in recorder.outcomes())
    assert recorder.outcomes()[job] == Stopped()


def test_a_waiting_job_that_is_cancelled_never_starts(runner, recorder) -> None:
    gate = threading.Event()
    submit(runner, lambda request, ctx: gate.wait(WAIT))
    waiting = submit(runner, lambda request, ctx: pytest.fail("started"))
    runner.cancel(waiting)
    assert recorder.outcomes() == {waiting: Stopped()}
    gate.set()


def test_pause_holds_at_a_check_and_cancel_frees_it(runner, recorder) -> None:
    reached = threading.Semaphore(0)

    def task(request, ctx):
        for _ in range(100_000):
            ctx.check()
            reached.release()
            time.sleep(0.001)

    job = submit(runner, task)
    assert reached.acquire(timeout=WAIT)
    runner.pause(job)
    recorder.wait(lambda events: Paused(job, True) in events)
    time.sleep(0.02)
    while reached.acquire(blocking=False):
        pass
    assert not reached.acquire(timeout=0.05), "it went on while paused"
    runner.pause(job, False)
    assert reached.acquire(timeout=WAIT)
    runner.pause(job)
    runner.cancel(job)
    recorder.wait(lambda events: job in recorder.outcomes())
    assert recorder.outcomes()[job] == Stopped()


def test_exactly_one_finish_per_job_under_a_storm(runner, recorder) -> None:
    def task(request, ctx):
        ctx.check()
        return request

    jobs = [submit(runner, task, n, lane="preview", key=str(n % 3)) for n in range(200)]
    for job in jobs[::7]:
        runner.cancel(job)
    recorder.wait(lambda events: len(recorder.outcomes()) == 200)
    finished = [e.id for e in recorder.events if isinstance(e, Finished)]
    assert sorted(finished) == jobs
    # The last of each key was cancelled by nobody, or by us.
    assert all(isinstance(recorder.outcomes()[j], Done) for j in jobs[-3:] if j not in jobs[::7])


def test_shutdown_cancels_and_names_what_will_not_stop(recorder) -> None:
    runner = Runner(recorder)
    gate = threading.Event()
    runner.submit(lambda request, ctx: gate.wait(WAIT), None, title="stubborn")
    recorder.wait(lambda events: any(isinstance(e, Started) for e in events))
    assert runner.shutdown(0.1) == ("stubborn",)  # while it still waits at the gate
    gate.set()
    assert runner.shutdown(WAIT) == ()
    late = submit(runner, lambda request, ctx: pytest.fail("started"))
    assert recorder.outcomes()[late] == Stopped()


def test_a_failure_after_cancel_is_still_a_stop_for_previews(recorder) -> None:
    runner = Runner(recorder)
    gate = threading.Event()

    def task(request, ctx):
        gate.wait(WAIT)
        raise ValueError("too late to matter")

    job = submit(runner, task, lane="preview", key="a")
    runner.cancel(job)
    gate.set()
    recorder.wait(lambda events: job in recorder.outcomes())
    assert recorder.outcomes()[job] == Stopped()
    assert not any(isinstance(o, Failed) for o in recorder.outcomes().values())
    runner.shutdown(WAIT)
