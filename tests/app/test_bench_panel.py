"""The strategy bench: rows, front and words without Qt, then the panel in the real window on the demo."""

from __future__ import annotations

import csv
import gc
import io
import weakref
from dataclasses import replace
from pathlib import Path

import pytest
from PySide6.QtCore import QPointF, QRectF, Qt

from app.columns import fitting
from app.edits import SetTarget
from app.job_service import JobService
from app.panels.bench.chart import seems_another
from app.panels.bench.state import EMPTY, BenchState
from app.panels.bench.view import BenchPanel
from app.panels.bench.widths import SPARE
from app.session import Session
from core.analysis.bench import BenchRow, bench
from core.analysis.error import ErrorSums
from core.checkpoints import open_checkpoint
from core.targets import get_target

DOWN = "blk.0.ffn_down.weight"


def row(label: str, nbytes: int, e2: float, weighted: float | None = None) -> BenchRow:
    return BenchRow(label, nbytes, 8, ErrorSums(8, 1.0, e2, 0.1, 1.0, 1.0), weighted, 0.1, False, True)


@pytest.fixture
def panel(opened, qtbot, monkeypatch):
    """The panel of the real window, in front, with one tensor selected and measured under a few strategies: kernels of
    more would be compiled for nothing."""
    monkeypatch.setattr("app.panels.bench.state.CANDIDATES", ("q8_0", "q6_k", "q4_k", "q2_k"))
    opened.show_panel("bench")
    panel = opened.panel("bench")
    opened.session.select((DOWN,))
    qtbot.waitUntil(lambda: finished(panel), timeout=60_000)
    panel.opened = opened
    return panel


def finished(panel: BenchPanel) -> bool:
    state = panel.state
    return (
        state.request is not None
        and not panel.busy
        and all(e.label in state.rows and state.rows[e.label].final for e in state.request.entries)
    )


def test_the_front_and_the_words():
    state = BenchState()
    state.current = "b"
    state.request = _Request("a", "b", "c", "d")
    for made in (row("a", 8, 0.001), row("b", 6, 0.01), row("c", 5, 0.005), row("d", 4, 0.1)):
        state.take(made)
    assert state.front() == {"a", "c", "d"}
    assert state.title() == "c beats b: 5.00 against 6.00 bpw, +3.0 dB"
    state.current = "a"
    assert state.title() == "a is on the front: nothing here is smaller and as good"
    state.current = ""
    assert state.title() == "3 strategies on the front of 4"
    assert [r.label for r in state.listed()] == ["a", "b", "c", "d"]
    for label, weighted in (("a", 0.5), ("b", 0.1), ("c", 0.4), ("d", 0.3)):
        made = state.rows[label]
        state.rows[label] = row(label, made.nbytes, made.sums.e2, weighted)
    assert state.front() == {"b", "d"}, "where importance is known, it decides"
    assert state.weighted
    coarse = BenchRow("a", 8, 8, None, None, None, True, False)
    state.take(coarse)
    assert state.rows["a"].final, "coarse never takes the place of final"
    rows = list(csv.DictReader(io.StringIO(state.csv())))
    assert [r["front"] for r in rows] == ["0", "1", "0", "1"]


class _Request:
    """As much of a request as the words ask for."""

    def __init__(self, *labels: str) -> None:
        self.entries = tuple(type("E", (), {"label": n})() for n in labels)
        self.tensors = ()


@pytest.mark.parametrize(
    ("target", "among", "never"),
    [
        ("gguf", "q4_k", "nf4"),
        ("compressed-tensors", "int4-g128", "q4_k"),
        ("bitsandbytes", "nf4", "int4-g128"),
        ("gptq", "int4-g128", "nf4"),
    ],
)
def test_what_stands_on_the_bench_is_what_the_target_carries(qapp, demo: Path, target, among, never):
    session = Session()
    session.open(open_checkpoint(demo))
    session.apply(SetTarget(target))
    session.set_outline(get_target(target).outline(session.checkpoint))
    name = next(t.name for t in session.outline.tensors if t.role.kind == "down")
    session.select((name,))
    state = BenchState()
    assert state.follow(session)
    labels = [e.label for e in state.request.entries]
    assert among in labels
    assert never not in labels
    assert 3 <= len(labels) <= 12
    for entry in state.request.entries:
        assert not get_target(target).refuses(entry.format, state.request.tensors[0])
    assert "unknown format 'q5_kk'" in state.add("q5_kk")
    assert state.add(" Q5_1 ") == ""
    assert state.follow(session)
    assert [e.label for e in state.request.entries] == [*labels, "q5_1"]


def test_weights_that_no_strategy_takes():
    state = BenchState()
    state.current = "a"
    state.request = _Request("a", "b")
    state.take(replace(row("a", 8, 1.0), sums=None, note="row 0 holds NaN or Inf"))
    assert state.title() == "Measuring …"
    state.take(replace(row("b", 8, 1.0), sums=None, note="row 0 holds NaN or Inf"))
    assert state.title() == "No strategy can take these weights"


def test_opens_empty(qtbot):
    session, jobs = Session(), JobService()
    empty = BenchPanel(session, jobs)
    qtbot.addWidget(empty)
    empty.show()
    assert empty.empty.text() == EMPTY
    assert jobs.shutdown() == ()


def test_measures_the_selected_tensor(panel):
    labels = [r.label for r in panel.model.rows]
    assert {"q8_0", "q6_k", "q4_k", "q2_k"} <= set(labels)
    assert panel.state.current == "q4_k"
    sizes = [r.nbytes for r in panel.model.rows]
    assert sizes == sorted(sizes, reverse=True)
    q4 = next(r for r in panel.model.rows if r.label == "q4_k")
    assert q4.bpw == 4.5
    assert 21 < q4.sqnr_db < 25
    assert "q8_0" in panel.state.front()
    assert panel.table.isColumnHidden(5)
    assert panel.chart.label_at(panel.chart.place(panel.state.points()[0]).toPoint()) == panel.state.points()[0].label
    image = panel.chart.grab().toImage()
    colors = {image.pixelColor(x, y).name() for x in range(image.width()) for y in range(image.height())}
    assert panel._theme.color_for("q8_0").name() in colors


def test_a_low_chart_has_room_for_a_label_under_its_lowest_mark(panel):
    chart = panel.chart
    label = chart.fontMetrics().height()
    for height in (170, 800):
        chart.resize(480, height)
        places = [chart.place(p).y() for p in panel.state.points()]
        assert max(places) + label <= chart.field().bottom()
        assert min(places) >= chart.field().top()


def test_names_have_room_and_what_sqnr_says_too_goes_first(panel, qtbot, monkeypatch):
    monkeypatch.setattr(BenchState, "weighted", property(lambda state: True))
    table, widths = panel.table, panel.widths
    need = table.fontMetrics().horizontalAdvance(max(panel.model.words(0), key=len))
    panel.opened.resize(1280, 800)
    widths.fit(weighted=True)
    qtbot.waitUntil(lambda: table.isColumnHidden(4))
    widths.fit(weighted=True)
    assert not table.isColumnHidden(5)
    assert table.columnWidth(0) > need
    panel.opened.resize(2560, 1440)
    qtbot.waitUntil(lambda: not table.isColumnHidden(4))
    assert table.columnWidth(0) > need
    titles = [panel.model.headerData(section, Qt.Orientation.Horizontal) for section in range(7)]
    for section, title in enumerate(titles):
        assert table.columnWidth(section) > table.fontMetrics().horizontalAdvance(title) + 8, (
            "also of one that was hidden"
        )


def test_columns_are_given_up_in_turn():
    needed = {0: 100, 1: 50, 4: 60, 6: 40}
    assert fitting(needed, 250, SPARE) == {0, 1, 4, 6}
    assert fitting(needed, 249, SPARE) == {0, 1, 6}
    assert fitting(needed, 100, SPARE) == {0, 1}


def test_typing_adds_and_delete_removes(panel, qtbot):
    before = panel.model.rowCount()
    panel.edit.setText("q5_0")
    panel.edit.returnPressed.emit()
    qtbot.waitUntil(lambda: finished(panel) and "q5_0" in panel.state.rows, timeout=60_000)
    assert panel.model.rowCount() == before + 1
    assert panel.edit.text() == ""
    panel.edit.setText("q5_nonsense")
    panel.edit.returnPressed.emit()
    assert panel.note.isVisible()
    assert "q5_nonsense" in panel.note.text()
    panel._point_at("q5_0")
    assert panel.remove.isEnabled()
    panel.remove.click()
    assert panel.model.rowCount() == before


def test_a_double_click_applies_and_undo_takes_it_back(panel, qtbot, settled):
    session = panel.opened.session
    point = next(p for p in panel.state.points() if p.label == "q6_k")
    qtbot.mouseDClick(panel.chart, Qt.MouseButton.LeftButton, pos=panel.chart.place(point).toPoint())
    qtbot.mouseRelease(
        panel.chart, Qt.MouseButton.LeftButton, pos=panel.chart.place(point).toPoint()
    )  # which the click leaves out
    settled()
    assert session.tensor(DOWN).format.name == "q6_k"
    qtbot.waitUntil(lambda: panel.state.current == "q6_k" and finished(panel), timeout=30_000)
    index = next(i for i, r in enumerate(panel.model.rows) if r.label == "q2_k")
    panel.table.doubleClicked.emit(panel.model.index(index, 0))
    settled()
    assert session.tensor(DOWN).format.name == "q2_k"
    session.undo()
    session.undo()
    settled()
    assert session.tensor(DOWN).format.name == "q4_k"


def test_another_selection_never_shows_the_rows_of_the_one_before(panel, qtbot):
    session = panel.opened.session
    names = ["blk.1.attn_q.weight", "blk.2.ffn_up.weight", "blk.3.attn_v.weight"]
    for name in names:
        session.select((name,))
        assert panel.state.request.tensors[0].name == name
        assert name in panel.heading.subtitle.text()
        qtbot.wait(10)
    qtbot.waitUntil(lambda: finished(panel), timeout=60_000)
    alone = bench(panel.state.request)
    assert {r.label: r.sums for r in alone} == {r.label: r.sums for r in panel.model.rows}
    session.select(tuple(names))
    qtbot.waitUntil(lambda: finished(panel), timeout=60_000)
    assert panel.heading.subtitle.text().startswith("3 tensors → GGUF")
    session.select(("output_norm.weight",))
    assert panel._stack.currentIndex() == 0
    assert "None of the selected" in panel.empty.text()


def test_a_closed_panel_is_collected(qtbot, tmp_path: Path):
    session, jobs = Session(), JobService()
    panel = BenchPanel(session, jobs)
    panel.show()
    gone = weakref.ref(panel)
    panel.close()
    panel.deleteLater()
    del panel
    assert jobs.shutdown() == ()
    qtbot.waitUntil(lambda: gc.collect() >= 0 and gone() is None, timeout=20_000)


def test_a_label_is_not_put_beside_another_mark():
    own, other, left_above = QPointF(100, 100), QPointF(78, 108), QRectF(58, 84, 32, 14)
    assert seems_another(left_above, own, [other]), "right above the other"
    assert not seems_another(QRectF(110, 100, 32, 14), own, [other])
    assert not seems_another(left_above, own, [QPointF(78, 140)])
