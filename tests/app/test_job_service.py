"""The bridge to the GUI thread: order of signals, throttling, stale results, rates."""

from __future__ import annotations

import threading
import time

import pytest
from PySide6.QtCore import QThread

from app.job_service import JobService
from app.jobs import Done, Stopped

WAIT = 5000


@pytest.fixture
def jobs(qapp):
    made = JobService()
    yield made
    assert made.shutdown() == ()


def test_signals_come_in_order_on_the_gui_thread(jobs, qtbot) -> None:
    seen = []
    for name in ("queued", "started", "partial", "finished"):
        getattr(jobs, name).connect(lambda *args, name=name: seen.append((name, QThread.currentThread())))

    def task(request, ctx):
        ctx.partial(5_000_000_000)
        return request

    with qtbot.waitSignal(jobs.finished, timeout=WAIT) as done:
        job = jobs.submit(task, "x", title="t")
        assert not seen, "a signal from inside submit"
    assert [name for name, _ in seen] == ["queued", "started", "partial", "finished"]
    assert {thread for _, thread in seen} == {QThread.currentThread()}
    assert done.args == [job, Done("x")]
    assert jobs.outcome(job) == Done("x")


def test_large_numbers_arrive_whole(jobs, qtbot) -> None:
    with qtbot.waitSignal(jobs.partial, timeout=WAIT) as part:
        jobs.submit(lambda request, ctx: ctx.partial(5_000_000_000), None, title="t")
    assert part.args[1] == 5_000_000_000
    qtbot.waitUntil(lambda: not jobs.running(), timeout=WAIT)


def test_progress_is_throttled_and_the_last_one_is_delivered(jobs, qtbot) -> None:
    seen = []
    jobs.progressed.connect(seen.append)

    def task(request, ctx):
        for n in range(3001):
            ctx.progress(n, 3000, f"row {n}")
            if n % 10 == 0:
                time.sleep(0.001)

    began = time.monotonic()
    with qtbot.waitSignal(jobs.finished, timeout=WAIT):
        jobs.submit(task, None, title="t")
    seconds = time.monotonic() - began
    assert 1 <= len(seen) <= 25 * seconds + 2
    assert (seen[-1].done, seen[-1].total, seen[-1].permille) == (3000, 3000, 1000)
    assert seen[-1].rss_bytes > 1 << 20
    assert seen[-1].rate is None or seen[-1].rate > 0


def test_stale_previews_are_never_delivered(jobs, qtbot) -> None:
    parts, ends = [], {}
    jobs.partial.connect(lambda job, value: parts.append(value))
    jobs.finished.connect(lambda job, outcome: ends.__setitem__(job, outcome))

    def task(request, ctx):
        ctx.partial(request)
        return request

    # All of it has run in the threads before the event loop turns: only the newest may arrive.
    ids = [jobs.submit(task, n, title="t", lane="preview", key="k") for n in range(20)]
    time.sleep(0.1)
    qtbot.waitUntil(lambda: len(ends) == 20, timeout=WAIT)
    assert parts == [19]
    assert ends[ids[-1]] == Done(19)
    assert all(ends[i] == Stopped() for i in ids[:-1])


def test_a_cancelled_preview_delivers_nothing_more(jobs, qtbot) -> None:
    parts = []
    jobs.partial.connect(lambda job, value: parts.append(value))
    gate = threading.Event()

    def task(request, ctx):
        ctx.partial(1)
        gate.wait(5)

    job = jobs.submit(task, None, title="t", lane="preview", key="k")
    time.sleep(0.05)
    jobs.cancel(job)
    with qtbot.waitSignal(jobs.finished, timeout=WAIT) as done:
        gate.set()
    assert parts == []
    assert done.args[1] == Stopped()


def test_pause_is_told_and_kept(jobs, qtbot) -> None:
    gate = threading.Event()

    def task(request, ctx):
        while not gate.is_set():
            ctx.check()
            time.sleep(0.001)

    job = jobs.submit(task, None, title="t")
    with qtbot.waitSignal(jobs.paused, timeout=WAIT) as told:
        jobs.pause(job)
    assert told.args == [job, True]
    assert jobs.is_paused(job)
    with qtbot.waitSignal(jobs.paused, timeout=WAIT):
        jobs.resume(job)
    assert not jobs.is_paused(job)
    with qtbot.waitSignal(jobs.finished, timeout=WAIT):
        gate.set()


def test_only_heavy_jobs_are_listed(jobs, qtbot) -> None:
    with qtbot.waitSignals([jobs.finished, jobs.finished], timeout=WAIT):
        jobs.submit(lambda r, c: None, None, title="preview", lane="preview", key="k")
        jobs.submit(lambda r, c: None, None, title="heavy", device="cpu")
    assert [info.title for info in jobs.jobs()] == ["heavy"]


def test_many_results_do_not_hold_the_event_loop(jobs, qtbot) -> None:
    count = [0]
    jobs.partial.connect(lambda job, value: count.__setitem__(0, count[0] + 1))
    gaps, last = [], [time.perf_counter()]

    def beat() -> None:
        now = time.perf_counter()
        gaps.append(now - last[0])
        last[0] = now

    from PySide6.QtCore import QTimer

    timer = QTimer()
    timer.setInterval(1)
    timer.timeout.connect(beat)

    def task(request, ctx):
        for n in range(50_000):
            ctx.partial(n)

    timer.start()
    with qtbot.waitSignal(jobs.finished, timeout=20_000):
        jobs.submit(task, None, title="t")
    timer.stop()
    assert count[0] == 50_000
    assert len(gaps) > 10  # the loop turned meanwhile; benchmarks/window_stall.py measures for how long it does not


def test_results_that_come_together_are_all_there_and_in_order(jobs, qtbot) -> None:
    told: list[tuple[str, object]] = []
    jobs.started.connect(lambda job: told.append(("started", job)))
    jobs.partial.connect(lambda job, values: told.append(("partial", values)))
    jobs.finished.connect(lambda job, outcome: told.append(("finished", job)))

    def task(request, ctx):
        for n in range(20_000):
            ctx.partial(n)

    with qtbot.waitSignal(jobs.finished, timeout=20_000):
        jobs.submit(task, None, title="t", together=True)
    assert (told[0][0], told[-1][0]) == ("started", "finished")
    batches = [value for what, value in told if what == "partial"]
    assert [n for batch in batches for n in batch] == list(range(20_000))
    assert len(batches) < 2_000


def test_results_that_come_together_are_told_while_the_job_goes_on(jobs, qtbot) -> None:
    gate = threading.Event()

    def task(request, ctx):
        for n in (1, 2):
            ctx.partial(n)
            gate.wait(WAIT)

    seen: list[int] = []
    jobs.partial.connect(lambda job, values: seen.extend(values))
    jobs.submit(task, None, title="t", together=True)
    qtbot.waitUntil(lambda: seen == [1], timeout=WAIT)
    qtbot.wait(200)  # the beat stops when there is nothing to tell, and must come again
    assert not jobs._ticker.isActive()
    with qtbot.waitSignal(jobs.finished, timeout=WAIT):
        gate.set()
    assert seen == [1, 2]


def test_what_a_cancelled_job_had_together_is_dropped(jobs, qtbot) -> None:
    began, gate = threading.Event(), threading.Event()
    seen: list[object] = []
    jobs.partial.connect(lambda job, values: seen.append(values))

    def task(request, ctx):
        began.set()
        gate.wait(5)
        ctx.partial("late")

    job = jobs.submit(task, None, title="t", together=True)
    assert began.wait(5)
    with qtbot.waitSignal(jobs.finished, timeout=WAIT):
        jobs.cancel(job)
        gate.set()
    assert not seen


def test_inline_delivers_from_the_event_loop_too(qapp, qtbot) -> None:
    jobs = JobService(inline=True)
    with qtbot.waitSignal(jobs.finished, timeout=WAIT) as done:
        job = jobs.submit(lambda r, c: r, 7, title="t")
    assert done.args == [job, Done(7)]
    assert jobs.shutdown() == ()


def test_what_a_stubborn_job_says_after_the_end_is_nobodys_business(qapp) -> None:
    jobs = JobService()
    began, gate, over = threading.Event(), threading.Event(), threading.Event()

    def task(request, ctx):
        began.set()
        gate.wait(5)
        ctx.partial("late")
        over.set()

    jobs.submit(task, None, title="stubborn")
    assert began.wait(5)  # one that has not begun is simply taken back
    assert jobs.shutdown(0.05) == ("stubborn",)
    jobs.deleteLater()
    qapp.sendPostedEvents(jobs, 52)  # DeferredDelete
    gate.set()
    assert over.wait(5)
