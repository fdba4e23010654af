"""The jobs panel: what a row says, without Qt; then rows, buttons and disclosure over a real job service."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from pathlib import Path

import pytest
from PySide6.QtCore import Qt
from PySide6.QtWidgets import QLabel

from app.job_service import JobService
from app.jobs import Done, Failed, JobInfo, Progress, Stopped
from app.panels.jobs.state import STAGES, JobRow, JobsState
from app.panels.jobs.view import JobsPanel
from app.reports import report_details, report_line
from app.session import Session
from app.theme import icon_names
from core.engine.model import Report, TensorReport
from core.errors import OutputError

GIB = 2**30


def info(id: int = 1, lane="heavy", out: Path | None = Path("out/model.gguf")) -> JobInfo:
    return JobInfo(id, "Quantize model.gguf", lane, "", "cpu", out, 0.0)


def progress(done: int, total: int, *, id: int = 1, rate=None, eta=None, elapsed=2.0) -> Progress:
    return Progress(id, done, total, "blk.0.attn_q.weight", rate, eta, elapsed, int(1.5 * GIB))


def report(**more) -> Report:
    tensors = tuple(
        TensorReport(f"blk.{i}.attn_k.weight", "q4_k", 10, 20, 0.1, sqnr_db=20.0 + i, fallbacks=("as q5_0",) * (i == 2))
        for i in range(3)
    )
    copied = TensorReport("norm.weight", "keep", 10, 20, 0.1)
    base = {"nbytes": 4 * GIB, "seconds": 75.0, "weights": 900_000_000, "peak_rss_bytes": 2 * GIB}
    return Report(Path("out/model.gguf"), **(base | more), device="cpu", tensors=(*tensors, copied), fallbacks=("one",))


def test_tokens_are_counted_as_tokens():
    made = JobRow(JobInfo(1, "Evaluate q4_0", "heavy", "", "cpu", None, 0.0, "tokens"), "running")
    made.progress = progress(512, 4096, rate=1082.4)
    assert made.read == "512 of 4,096 tokens"
    assert made.rate == "1,082 tok/s"
    made.progress = progress(16_384, 65_536)
    assert made.read == "16 of 66 k tokens"


# --- state ----------------------------------------------------------------------------------------------------------


def test_every_stage_has_an_icon_a_colour_and_a_word():
    assert {icon for icon, _, _ in STAGES.values()} <= set(icon_names())
    assert len({word for _, _, word in STAGES.values()}) == len({icon for icon, _, _ in STAGES.values()}) == 6


@pytest.mark.parametrize(
    ("done", "total", "text"),
    [
        (int(1.2 * GIB), int(4.1 * GIB), "1.2 of 4.1 GiB"),
        (900 * 2**20, int(4.1 * GIB), "900.0 MiB of 4.1 GiB"),
        (int(4.1 * GIB), int(4.1 * GIB), "4.1 GiB"),
        (0, 0, ""),
    ],
)
def test_how_much_is_read(done: int, total: int, text: str):
    assert JobRow(info(), "running", progress(done, total)).read == text


def test_figures_of_a_running_job():
    row = JobRow(info(), "running", progress(GIB, 4 * GIB, rate=131 * 2**20, eta=200.0, elapsed=8.25))
    assert (row.rate, row.left, row.memory, row.elapsed) == ("131.0 MiB/s", "3 min 20 s", "1.50", "8.2 s")
    assert row.permille == 250
    assert row.line == "blk.0.attn_q.weight"
    assert not row.details


def test_no_estimate_before_it_means_something_nor_while_paused():
    assert JobRow(info(), "running", progress(1, 100)).left == ""
    assert JobRow(info(), "paused", progress(1, 100, rate=5.0, eta=7.0)).left == ""
    assert JobRow(info(), "paused", progress(1, 100, rate=5.0, eta=7.0)).rate == ""


def test_a_row_from_queued_to_done():
    state = JobsState()
    assert state.add(info(2, lane="preview")) is None
    row = state.add(info())
    assert row.stage == "waiting"
    assert state.hold(1, True).stage == "paused"
    assert state.hold(1, False).stage == "waiting"
    assert state.start(1).stage == "running"
    state.advance(progress(50, 100))
    assert state.hold(1, True).stage == "paused"
    assert state.hold(1, False).stage == "running"
    assert state.clear() == ()
    state.finish(1, Done(report()))
    assert (row.stage, row.permille, row.over) == ("done", 1000, True)
    assert state.hold(1, True) is None
    assert state.start(1).stage == "done"
    assert state.clear() == (1,)
    assert len(state) == 0
    assert state.advance(progress(1, 2)) is None


def test_the_newest_is_first():
    state = JobsState()
    for number in (1, 2, 3):
        state.add(info(number))
    assert [row.info.id for row in state] == [3, 2, 1]


def test_the_line_of_a_report():
    row = JobRow(info(), "done", outcome=Done(report()))
    assert row.line == (
        "4.0 GiB written · 12 M weights/s · SQNR mean 21.0 dB, worst 20.0 dB (blk.0.attn_k.weight) · 2 fallbacks"
    )
    assert (row.memory, row.elapsed) == ("2.00", "1 min 15 s")
    lines = row.details.splitlines()
    assert lines[0] == str(Path("out/model.gguf"))
    assert "one" in lines
    assert "blk.2.attn_k.weight: as q5_0" in lines
    assert lines[-3].split() == ["20.0", "q4_k", "blk.0.attn_k.weight"]
    copied = Report(Path("x"), 10, 0.0, 0, 0, "cpu", ())
    assert report_line(copied) == "10 B written"
    assert "SQNR" not in report_details(copied)


def test_failed_and_stopped():
    failed = JobRow(info(), "failed", outcome=Failed("disk full", "Traceback …"))
    assert (failed.line, failed.details) == ("disk full", "Traceback …")
    assert JobRow(info(), "stopped", outcome=Stopped()).line == "Stopped before it began"
    assert JobRow(info(), "stopped", progress(1, 2), Stopped()).line == "Stopped before the end"


# --- panel ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def jobs(qtbot):
    service = JobService()
    yield service
    assert service.shutdown() == ()


@pytest.fixture
def panel(jobs, qtbot):
    made = JobsPanel(Session(), jobs)
    qtbot.addWidget(made)
    made.resize(1200, 300)
    made.show()
    yield made
    made.close()


class Work:
    """A task that goes on until it is let go."""

    def __init__(self) -> None:
        self.go = threading.Event()

    def __call__(self, request: object, ctx) -> Report:
        done = 0
        while not self.go.is_set():
            done = min(done + 1, 900)
            ctx.progress(done, 1000, "blk.0.attn_q.weight")
            ctx.check()
            time.sleep(0.002)
        ctx.progress(1000, 1000)
        return report()


def fail(request: object, ctx) -> None:
    ctx.progress(300, 1000)
    raise OutputError("the disk is full", "free 2.9 GiB", Path("out/model.gguf"))


def test_empty(panel):
    assert panel._stack.currentIndex() == 0
    assert "Press Quantize" in panel._stack.currentWidget().text()


def test_titles_of_columns_stand_in_one_line(panel, jobs, qtbot):
    job = jobs.submit(fail, None, title="Quantize model.gguf")
    qtbot.waitUntil(lambda: job in panel.rows and panel.rows[job].stage.text() == "Failed")
    titles = [label for label in panel.findChildren(QLabel) if label.text() in {"job", "progress", "read", "time"}]
    assert len(titles) == 4
    assert len({label.geometry().y() for label in titles}) == 1
    assert len({label.height() for label in titles}) == 1


def test_a_job_from_start_to_end(panel, jobs, qtbot, tmp_path: Path):
    work = Work()
    out = tmp_path / "model.gguf"
    job = jobs.submit(work, None, title="Quantize model.gguf", out=out)
    qtbot.waitUntil(lambda: job in panel.rows and panel.rows[job].bar.value() > 0)
    row = panel.rows[job]
    assert panel._stack.currentIndex() == 1
    assert row.stage.text() == "Running"
    assert row.note.text() == "blk.0.attn_q.weight"
    assert row.pause.isVisible()
    assert row.cancel.isVisible()
    assert not row.reveal.isVisible()
    assert not panel.clear.isEnabled()
    qtbot.mouseClick(row.pause, Qt.MouseButton.LeftButton)
    qtbot.waitUntil(lambda: row.stage.text() == "Paused")
    assert jobs.is_paused(job)
    assert row.pause.toolTip() == "Resume"
    qtbot.mouseClick(row.pause, Qt.MouseButton.LeftButton)
    qtbot.waitUntil(lambda: row.stage.text() == "Running")
    work.go.set()
    qtbot.waitUntil(lambda: row.stage.text() == "Done")
    assert row.bar.value() == 1000
    assert row.line.text().startswith("4.0 GiB written")
    assert not row.pause.isVisible()
    assert not row.cancel.isVisible()
    opened = []
    panel.open_url = opened.append
    qtbot.mouseClick(row.reveal, Qt.MouseButton.LeftButton)
    assert Path(opened[0].toLocalFile()) == tmp_path
    qtbot.mouseClick(panel.clear, Qt.MouseButton.LeftButton)
    assert panel.rows == {}
    assert panel._stack.currentIndex() == 0


def test_cancel(panel, jobs, qtbot):
    work = Work()
    job = jobs.submit(work, None, title="Quantize a", out=Path("a"))
    waiting = jobs.submit(work, None, title="Quantize b", out=Path("b"))
    qtbot.waitUntil(lambda: job in panel.rows and panel.rows[job].stage.text() == "Running")
    assert panel.rows[waiting].stage.text() == "Waiting"
    for each in (waiting, job):
        qtbot.mouseClick(panel.rows[each].cancel, Qt.MouseButton.LeftButton)
        qtbot.waitUntil(lambda each=each: panel.rows[each].stage.text() == "Stopped")
    assert panel.rows[waiting].line.text() == "Stopped before it began"


def test_a_failure_can_be_read_and_copied(panel, jobs, qtbot):
    job = jobs.submit(fail, None, title="Quantize a", out=Path("a"))
    qtbot.waitUntil(lambda: job in panel.rows and panel.rows[job].stage.text() == "Failed")
    row = panel.rows[job]
    assert row.line.text() == f"{Path('out/model.gguf')}: the disk is full; free 2.9 GiB"
    assert row.line.textInteractionFlags() & Qt.TextInteractionFlag.TextSelectableByMouse
    assert not row.details.isVisible()
    qtbot.mouseClick(row.disclosure, Qt.MouseButton.LeftButton)
    assert row.details.isVisible()
    assert "OutputError" in row.details.toPlainText()
    qtbot.mouseClick(row.disclosure, Qt.MouseButton.LeftButton)
    assert not row.details.isVisible()


def test_previews_have_no_row(panel, jobs, qtbot):
    with qtbot.waitSignal(jobs.finished):
        jobs.submit(lambda request, ctx: None, None, title="Look", lane="preview", key="k")
    assert panel.rows == {}


def test_a_panel_that_comes_late_catches_up(jobs, qtbot):
    done = jobs.submit(lambda request, ctx: report(), None, title="Quantize a", out=Path("a"))
    failed = jobs.submit(fail, None, title="Quantize b", out=Path("b"))
    qtbot.waitUntil(lambda: jobs.outcome(failed) is not None)
    work = Work()
    held = jobs.submit(work, None, title="Quantize c", out=Path("c"))
    qtbot.waitUntil(lambda: jobs.progress(held) is not None)
    jobs.pause(held)
    qtbot.waitUntil(lambda: jobs.is_paused(held))
    panel = JobsPanel(Session(), jobs)
    qtbot.addWidget(panel)
    assert [panel.rows[job].stage.text() for job in (done, failed, held)] == ["Done", "Failed", "Paused"]
    work.go.set()
    jobs.cancel(held)


def test_narrow_panels_leave_out_figures(panel, jobs, qtbot):
    job = jobs.submit(fail, None, title="Quantize a", out=Path("a"))
    qtbot.waitUntil(lambda: job in panel.rows)
    row = panel.rows[job]
    assert row.figures["memory"].isVisible()
    panel.resize(600, 300)
    qtbot.waitUntil(lambda: not row.figures["memory"].isVisible())
    assert not panel._titles["memory"].isVisible()
    assert row.figures["left"].isVisible()
    qtbot.waitUntil(lambda: row.title.width() > 60)


def test_a_closed_panel_is_collected(jobs, qtbot):
    job = jobs.submit(fail, None, title="Quantize a", out=Path("a"))
    qtbot.waitUntil(lambda: jobs.outcome(job) is not None)
    panel = JobsPanel(Session(), jobs)
    panel.show()
    assert panel.rows[job].stage.text() == "Failed"
    gone = weakref.ref(panel)
    panel.close()
    panel.deleteLater()
    del panel
    qtbot.waitUntil(lambda: gc.collect() >= 0 and gone() is None, timeout=20_000)
