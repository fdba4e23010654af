"""The log: lines, bounds, filter and copying without Qt; then the panel following a session and jobs."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from types import SimpleNamespace

import pytest
from PySide6.QtCore import QItemSelectionModel
from PySide6.QtGui import QGuiApplication

from app.job_service import JobService
from app.panels.log.state import FINDINGS, LEVELS, RANK, LogState
from app.panels.log.view import LogPanel
from app.session import Notice, Session
from app.theme import icon_names
from core.checkpoints import open_checkpoint
from core.engine.model import Problem, Report, TensorReport
from core.errors import OutputError


def texts(state: LogState) -> list[str]:
    return [e.text for e in state.shown]


# --- state ----------------------------------------------------------------------------------------------------------


def test_levels_have_icons():
    assert set(LEVELS) == set(RANK)
    assert {icon for icon, _, _ in LEVELS.values()} <= set(icon_names())


def test_the_oldest_lines_go_first_whatever_the_filter():
    state = LogState(limit=3)
    for i in range(5):
        state.add("warning" if i % 2 else "note", f"line {i}")
    assert texts(state) == ["line 2", "line 3", "line 4"]
    state.filter("", RANK["warning"])
    assert texts(state) == ["line 3"]
    state.add("warning", "line 5")
    state.add("warning", "line 6")
    assert len(state) == 3
    assert texts(state) == ["line 5", "line 6"]


def test_filter_by_words_and_level():
    state = LogState()
    state.add("note", "Opened demo")
    state.add("warning", "Preflight: blk.0: 3-bit without importance")
    state.add("error", "Disk full")
    state.filter("PREFLIGHT importance", 0)
    assert texts(state) == ["Preflight: blk.0: 3-bit without importance"]
    state.add("note", "opened again")
    assert len(state.shown) == 1
    state.filter("", RANK["error"])
    assert texts(state) == ["Disk full"]
    state.filter("", 0)
    assert len(state.shown) == 4


def test_a_line_that_was_just_said_is_not_repeated():
    state = LogState()
    state.add("error", "model.gguf: the disk is full")
    assert state.add("error", "the disk is full") is None
    assert state.add("warning", "the disk is full") is not None
    assert len(state) == 2


def test_lines_are_single_and_copied_with_date_and_level():
    state = LogState(clock=lambda: 0.0)
    state.add("warning", "a\n  b")
    [line] = state.text().splitlines()
    assert line.endswith("  warning  a b")
    assert line[:5] in ("1970-", "1969-")
    assert len(state.shown[0].clock) == 8


def test_preflight_says_only_what_is_new():
    state = LogState()
    one, two = Problem("warning", "low bits", "a"), Problem("error", "misfit", "b", "choose another")
    state.found((one,))
    state.found((one, two))
    state.found((one, two))
    assert texts(state) == ["Preflight: a: low bits", "Preflight: b: misfit; choose another"]
    assert [e.level for e in state.shown] == ["warning", "error"]
    state.found(tuple(Problem("note", f"n{i}") for i in range(FINDINGS + 7)))
    assert texts(state)[-1] == "Preflight: 7 more findings; the toolbar lists them"


def test_fallbacks_of_a_report_are_warnings():
    tensors = (TensorReport("a", "q4_k", 1, 1, 0.0, fallbacks=("rtn: Hessian not positive definite",)),)
    state = LogState()
    state.reported(Report(Path("x"), 1, 1.0, 1, 1, "cpu", tensors, fallbacks=("b: q6_k → q8_0",)))
    assert texts(state) == ["Fallback: b: q6_k → q8_0", "Fallback: a: rtn: Hessian not positive definite"]
    assert {e.level for e in state.shown} == {"warning"}


# --- panel ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def bench(qtbot):
    session, jobs = Session(), JobService()
    panel = LogPanel(session, jobs)
    qtbot.addWidget(panel)
    panel.resize(900, 200)
    panel.show()
    yield SimpleNamespace(session=session, jobs=jobs, panel=panel)
    assert jobs.shutdown() == ()
    panel.close()


def test_empty(bench):
    assert bench.panel._stack.currentIndex() == 0
    assert "appears here" in bench.panel._stack.currentWidget().text()


def test_the_model_is_sound(bench, qtmodeltester):
    for i in range(4):
        bench.panel.log("note", f"line {i}")
    qtmodeltester.check(bench.panel.model)


def test_opening_and_closing(bench, demo: Path):
    bench.session.open(open_checkpoint(demo))
    assert "39 tensors" in texts(bench.panel.state)[0]
    assert "6.5 MiB" in texts(bench.panel.state)[0]
    bench.session.close()
    assert texts(bench.panel.state)[1] == "Closed the checkpoint"


def test_plans_are_told_once(bench, demo: Path):
    from core.engine.plan import make_plan
    from core.targets import get_target

    bench.session.open(open_checkpoint(demo))
    plan = make_plan(bench.session.checkpoint, bench.session.recipe, get_target(bench.session.target))
    for _ in range(2):
        bench.session.set_plan(plan, {t.tensor.name: t for t in plan.tensors})
    planned = [t for t in texts(bench.panel.state) if t.startswith("Planned Q4_K_M for gguf: 39 tensors")]
    assert len(planned) == 1
    assert f"{plan.bpw:.2f} bpw" in planned[0]


def test_jobs_and_their_outcomes(bench, qtbot):
    def fail(request: object, ctx) -> None:
        raise OutputError("the disk is full", where="model.gguf")

    first = bench.jobs.submit(lambda request, ctx: None, None, title="Quantize a")
    second = bench.jobs.submit(fail, None, title="Quantize b")
    bench.jobs.submit(lambda request, ctx: None, None, title="Look", lane="preview", key="k")
    qtbot.waitUntil(lambda: bench.jobs.outcome(second) is not None and not bench.jobs.running())
    assert bench.jobs.outcome(first) is not None
    said = [(e.level, e.text) for e in bench.panel.state.shown]
    assert said == [
        ("note", "Started: Quantize a"),
        ("done", "Finished: Quantize a"),
        ("note", "Started: Quantize b"),
        ("error", "model.gguf: the disk is full"),
    ]


def test_notices_with_details(bench):
    bench.session.notify(Notice("error", "Cannot open: no such file", "Traceback …"))
    bench.session.notify(Notice("note", "nothing more"))
    panel = bench.panel
    panel.table.selectRow(0)
    assert panel.details.isVisible()
    assert panel.details.toPlainText() == "Traceback …"
    panel.table.selectRow(1)
    assert not panel.details.isVisible()


def test_new_lines_leave_the_selection_alone(bench):
    panel = bench.panel
    panel.log("note", "one")
    panel.log("note", "two")
    panel.table.selectRow(0)
    panel.log("note", "three")
    assert [i.row() for i in panel.table.selectionModel().selectedRows()] == [0]
    assert panel.model.rowCount() == 3


def test_copying_selected_lines_or_all(bench):
    panel = bench.panel
    for word in ("one", "two", "three"):
        panel.log("note", word)
    panel.copy()
    assert [line.split()[-1] for line in QGuiApplication.clipboard().text().splitlines()] == ["one", "two", "three"]
    flags = QItemSelectionModel.SelectionFlag
    for row in (2, 0):
        panel.table.selectionModel().select(panel.model.index(row, 0), flags.Select | flags.Rows)
    panel.copy()
    assert [line.split()[-1] for line in QGuiApplication.clipboard().text().splitlines()] == ["one", "three"]


def test_filtering_in_the_panel(bench):
    panel = bench.panel
    panel.log("note", "alpha")
    panel.log("error", "beta")
    panel.filter.choice.setCurrentIndex(2)
    assert panel.model.rowCount() == 1
    panel.filter.words.setText("nothing like this")
    assert panel.model.rowCount() == 0
    panel.filter.words.clear()
    panel.filter.choice.setCurrentIndex(0)
    assert panel.model.rowCount() == 2
    panel.clear()
    assert panel.model.rowCount() == 0
    assert panel._stack.currentIndex() == 0


def test_ten_thousand_lines_stay_bounded(bench):
    panel = bench.panel
    for i in range(6000):
        panel.state.add("note", f"line {i:05}")
    panel.log("note", "last")
    assert panel.model.rowCount() == 5000
    assert panel.model.entry(4999).text == "last"


def test_the_last_line_stays_in_view_until_one_scrolls_away(bench, qtbot):
    panel, bar = bench.panel, bench.panel.table.verticalScrollBar()
    panel.hide()
    for i in range(40):
        panel.log("note", f"line {i}")
    panel.show()
    qtbot.waitUntil(lambda: bar.maximum() > 0 and bar.value() == bar.maximum())
    panel.resize(900, 120)
    panel.log("note", "one more")
    qtbot.waitUntil(lambda: panel.table.viewport().height() < 100 and bar.value() == bar.maximum())
    bar.setValue(0)
    panel.log("note", "and another")
    qtbot.waitUntil(lambda: bar.maximum() > 40 * panel._theme.row - 100)
    assert bar.value() == 0


def test_a_closed_panel_is_collected(qtbot):
    session, jobs = Session(), JobService()
    panel = LogPanel(session, jobs)
    panel.show()
    panel.log("note", "one")
    gone = weakref.ref(panel)
    panel.close()
    panel.deleteLater()
    del panel
    qtbot.waitUntil(lambda: gc.collect() >= 0 and gone() is None, timeout=20_000)
    assert jobs.shutdown() == ()
