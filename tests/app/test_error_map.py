"""The error map: places, cells, texts and the list without Qt; 50,000 tensors; the panel on the demo."""

from __future__ import annotations

import csv
import gc
import io
import math
import weakref
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PySide6.QtCore import QPoint, Qt

from app.job_service import JobService
from app.panels.errormap.lasso import inside
from app.panels.errormap.layout import KEPT, MEASURED, METRICS, OPEN, make_layout, map_task
from app.panels.errormap.state import EMPTY, PLANNING, ErrorMapState
from app.panels.errormap.view import ErrorMapPanel
from app.session import Session, ShownError
from core.context import SILENT
from core.engine.model import Fate, Planned, PlannedTensor
from core.formats import get_format
from core.recipes.model import Strategy
from core.targets.base import Outline
from tests.app.outlines import large_outline, small_outline

BY_ID = {metric.id: metric for metric in METRICS}


def plan_of(outline: Outline, strategy: str = "q8_0", kept: tuple[str, ...] = ()):
    """As much of a plan as the map asks for."""
    tensors = tuple(
        PlannedTensor(
            t, Fate(Strategy("keep" if t.name in kept or len(t.shape) < 2 else strategy), get_format(strategy),
            t.name in kept, 0, "", "", False, 0),
        )
        for t in outline.tensors
    )  # fmt: skip
    return SimpleNamespace(tensors=tensors, planned=Planned(tensors))


class Errors:
    """As much of a session as the state asks for."""

    def __init__(self, outline: Outline | None, plan=None) -> None:
        self.checkpoint = object() if outline is not None else None
        self.outline, self.plan = outline, plan
        self.planned_tensors = {t.tensor.name: t for t in plan.tensors} if plan is not None else {}
        self.known: dict = {}
        self.selection: tuple[str, ...] = ()
        self.plan_error = ""
        self.left: list[object] = []

    def let_go(self, *things: object) -> None:
        self.left += [thing for thing in things if thing is not None]

    def known_errors(self):
        return dict(self.known)

    def error(self, name: str):
        planned = self.planned_tensors.get(name)
        return self.known.get((name, planned.strategy)) if planned is not None else None

    def put(self, name: str, sqnr: float, mse: float = 0.01) -> None:
        strategy = self.planned_tensors[name].strategy
        self.known[name, strategy] = ShownError(sqnr, mse, 0.5, 0.99, exact=False)


def made(session: Errors) -> ErrorMapState:
    state = ErrorMapState()
    assert state.follow(session)  # type: ignore[arg-type]
    state.take(map_task(state.request, SILENT), session)  # type: ignore[arg-type]
    return state


def test_the_map_waits_for_the_first_plan():
    outline = small_outline(2)
    state = made(Errors(outline, plan_of(outline)))
    layout, other = state.layout, Errors(small_outline(3))
    assert not state.follow(other)  # type: ignore[arg-type]
    assert (state.request, state.layout, state.empty) == (None, None, PLANNING)
    assert other.left[0] is layout, "the map before is large: somebody else takes it apart"
    revision = state.revision
    assert not state.follow(other)  # type: ignore[arg-type]
    assert state.revision == revision, "nothing to draw anew"
    other.plan_error = "no such architecture"
    assert state.follow(other), "there will be no plan"  # type: ignore[arg-type]
    planned = Errors(other.outline, plan_of(other.outline))
    assert state.follow(planned)  # type: ignore[arg-type]


def test_layers_run_along_x_and_roles_down_y():
    layout = make_layout(small_outline(12))
    assert layout.columns == ["", *map(str, range(12))]
    assert layout.lines == ["embedding", "q", "k", "v", "o", "gate", "up", "down"]
    at = layout.cell[layout.index["blk.7.attn_v.weight"]]
    assert divmod(at, 13) == (3, 8)
    assert layout.cell[layout.index["token_embd.weight"]] == 0
    assert layout.cell[layout.index["blk.3.attn_norm.weight"]] == -1
    assert not layout.experts


def test_cells_hold_their_worst_and_say_what_is_open():
    outline = small_outline(3)
    session = Errors(outline, plan_of(outline, kept=("blk.2.ffn_up.weight",)))
    state = made(session)
    assert "No error is known yet" in state.title()
    assert (state.cells().kind[1:, 1:] != MEASURED).all()
    session.put("blk.1.attn_q.weight", 17.5)
    session.put("blk.2.ffn_down.weight", 30.0, 0.001)
    session.put("blk.0.ffn_down.weight", math.inf, 0.0)
    state.update(session, [n for n, _ in session.known])  # type: ignore[arg-type]
    cells = state.cells()
    assert cells.worst[1, 2] == 17.5
    assert cells.kind[1, 2] == MEASURED
    assert cells.kind[1, 1] == OPEN
    assert cells.kind[6, 3] == KEPT
    assert cells.kind[0, 1] == -1
    assert state.limits(cells.worst) == (17.5, 30.0), "an exact copy is off the scale"
    assert state.title() == "Worst: 17.5 dB in blk.1.attn_q.weight · median 30.0 dB · 3 of 21 measured"
    assert [w.name for w in state.worst_first()][:2] == ["blk.1.attn_q.weight", "blk.2.ffn_down.weight"]
    assert state.read_off(1, 2).startswith("blk.1.attn_q.weight → q8_0   SQNR 17.5 dB   Relative MSE 0.01")
    assert state.read_off(1, 1) == "blk.0.attn_q.weight → q8_0: not measured yet"
    q = "blk.0.attn_q.weight"
    refused = ShownError(None, None, None, None, exact=False, why="row 3 holds NaN or Inf")
    session.known[q, session.planned_tensors[q].strategy] = refused
    state.update(session, [q])  # type: ignore[arg-type]
    assert state.read_off(1, 1) == f"{q} → q8_0: cannot be measured: row 3 holds NaN or Inf"
    del session.known[q, session.planned_tensors[q].strategy]
    state.update(session, [q])  # type: ignore[arg-type]
    assert state.read_off(1, 1).endswith("not measured yet")
    assert state.read_off(6, 3) == "blk.2.ffn_up.weight: kept as it is"
    assert state.read_off(0, 1) == "embedding, layer 0: no tensor"
    state.metric = BY_ID["mse"]
    assert state.cells().worst[1, 2] == 0.01
    assert state.limits(state.cells().worst) == (0.001, 0.01)
    assert state.worst_first()[0].name == "blk.1.attn_q.weight"
    del session.known["blk.1.attn_q.weight", Strategy("q8_0")]
    state.update(session, ["blk.1.attn_q.weight"])  # type: ignore[arg-type]
    assert state.cells().kind[1, 2] == OPEN


def test_cells_are_tensors_and_back():
    state = made(Errors(small_outline(3), plan_of(small_outline(3))))
    names = state.in_cells([(1, 1), (7, 3), (0, 1)])
    assert names == ("blk.0.attn_q.weight", "blk.2.ffn_down.weight")
    marked = state.cells_of((*names, "output_norm.weight", "nobody"))
    assert sorted(map(tuple, np.argwhere(marked).tolist())) == [(1, 1), (7, 3)]


def test_experts_share_a_cell_or_have_lines_of_their_own():
    outline = large_outline(2, 3)
    session = Errors(outline, plan_of(outline))
    state = made(session)
    assert state.layout.experts
    session.put("model.layers.1.mlp.experts.2.up_proj.weight", 20.0)
    session.put("model.layers.1.mlp.experts.0.up_proj.weight", 25.0)
    state.update(session, [n for n, _ in session.known])  # type: ignore[arg-type]
    line = state.layout.lines.index("up")
    cells = state.cells()
    assert cells.worst[line, 2] == 20.0
    assert cells.partly[line, 2]
    assert state.read_off(line, 2) == "up, layer 1: 3 tensors, worst 20.0 dB, median 22.5 dB, 2 measured"
    assert len(state.in_cells([(line, 2)])) == 3
    state.apart = True
    assert state.follow(session)  # type: ignore[arg-type]
    state.take(map_task(state.request, SILENT), session)  # type: ignore[arg-type]
    assert [x for x in state.layout.lines if x.startswith("up")] == ["up 0", "up 1", "up 2"]
    assert state.cells().worst[state.layout.lines.index("up 2"), 2] == 20.0


def test_the_csv_holds_every_tensor_of_the_map():
    outline = small_outline(2)
    session = Errors(outline, plan_of(outline))
    session.put("blk.1.attn_q.weight", 17.5)
    rows = list(csv.DictReader(io.StringIO(made(session).csv())))
    assert len(rows) == 15
    assert {r["tensor"]: r["sqnr_db"] for r in rows}["blk.1.attn_q.weight"] == "17.5"


def test_fifty_thousand_tensors():  # benchmarks/window_stall.py says how long it takes
    outline = large_outline()
    session = Errors(outline, plan_of(outline))
    for i, t in enumerate(outline.tensors):
        session.put(t.name, 15 + (i * 7919 % 2000) / 100)
    state = made(session)
    assert len(outline.tensors) > 49_000
    cells, worst, text = state.cells(), state.worst_first(), state.title()
    marked = state.cells_of(session.planned_tensors)
    assert marked[cells.kind >= 0].all()
    assert worst[0].sqnr == 15.0
    assert text.startswith("Worst: 15.0 dB")
    chosen = state.in_cells([(i, j) for i in range(cells.kind.shape[0]) for j in range(cells.kind.shape[1])])
    assert len(chosen) == len(outline.tensors)


# --- the panel ------------------------------------------------------------------------------------------------------


@pytest.fixture
def panel(opened, qtbot):
    """The panel of the real window, on the demo, every tensor measured."""
    panel = opened.panel("errormap")
    assert panel.state.layout is None, "hidden, it made nothing"
    opened.show_panel("errormap")
    qtbot.waitUntil(lambda: panel.state.ready and panel.state.complete, timeout=60_000)
    panel.show_state()
    panel.window_ = opened
    return panel


def click(panel, qtbot, line: int, column: int, modifier=Qt.KeyboardModifier.NoModifier) -> None:
    place = panel.canvas.cell_rect(line, column).center().toPoint()
    qtbot.mouseClick(panel.canvas, Qt.MouseButton.LeftButton, modifier, place)


def test_opens_empty(qtbot):
    session, jobs = Session(), JobService()
    empty = ErrorMapPanel(session, jobs)
    qtbot.addWidget(empty)
    empty.show()
    assert empty.empty.text() == EMPTY
    assert empty._stack.currentIndex() == 0
    empty.open_picker()
    assert jobs.shutdown() == ()


def test_clicks_rectangles_and_keys_select(panel, qtbot):
    session = panel.window_.session
    lines = panel.state.layout.lines
    down = lines.index("down")
    click(panel, qtbot, down, 1)
    assert session.selection == ("blk.0.ffn_down.weight",)
    click(panel, qtbot, down, 2, Qt.KeyboardModifier.ControlModifier)
    assert session.selection == ("blk.0.ffn_down.weight", "blk.1.ffn_down.weight")
    start = panel.canvas.cell_rect(down - 1, 1).center().toPoint()
    end = panel.canvas.cell_rect(down, 3).center().toPoint()
    qtbot.mousePress(panel.canvas, Qt.MouseButton.LeftButton, pos=start)
    qtbot.mouseMove(panel.canvas, start + QPoint(20, 5))
    qtbot.mouseMove(panel.canvas, end)
    panel.grab()
    qtbot.mouseRelease(panel.canvas, Qt.MouseButton.LeftButton, pos=end)
    assert len(session.selection) == 6
    assert {n.split(".")[1] for n in session.selection} == {"0", "1", "2"}
    assert panel.canvas._selected.sum() == 6
    click(panel, qtbot, down, 1)
    qtbot.keyClick(panel.canvas, Qt.Key.Key_Up)
    assert session.selection == ("blk.0.ffn_up.weight",)


def test_a_rectangle_gets_a_strategy_and_undo_takes_it_back(panel, qtbot, settled):
    window = panel.window_
    session = window.session
    down = panel.state.layout.lines.index("down")
    before = session.recipe
    for column in (1, 2):
        click(panel, qtbot, down, column, Qt.KeyboardModifier.ControlModifier)
    panel.assign.click()
    assert panel.picker is not None
    panel.picker.chosen.emit(Strategy("q6_k"))
    panel.picker.close()
    settled()
    names = ("blk.0.ffn_down.weight", "blk.1.ffn_down.weight")
    assert {session.tensor(n).format.name for n in names} == {"q6_k"}
    qtbot.waitUntil(lambda: panel.state.values.strategies[panel.state.layout.index[names[0]]] == "q6_k")
    session.undo()
    assert session.recipe == before


def test_the_list_selects_and_every_metric_draws(panel, qtbot):
    session = panel.window_.session
    assert panel.model.rowCount() == 30
    assert panel.scale.labels[0].endswith("dB")
    panel.list.selectRow(0)
    assert session.selection == (panel.model.lines[0].name,)
    for i in range(panel.metric_box.count()):
        panel.metric_box.setCurrentIndex(i)
        panel.grab()
        qtbot.waitUntil(lambda: not panel.busy)
        worst = panel.model.lines[0]
        values = (worst.sqnr, worst.mse, worst.largest, worst.cosine)
        others = [(w.sqnr, w.mse, w.largest, w.cosine)[i] for w in panel.model.lines]
        assert values[i] == (max(others) if METRICS[i].worse_is_more else min(others))
    panel.canvas.hovered.emit(panel.state.layout.lines.index("q"), 1)
    assert "SQNR" in panel.read_off.text()
    panel.canvas.hovered.emit(-1, -1)
    assert panel.read_off.text() == ""


def test_names_of_the_worst_can_be_read_at_any_size(panel, qtbot):
    window, table, header = panel.window_, panel.list, panel.list.horizontalHeader()

    def shown() -> list[int]:
        return [s for s in range(6) if not table.isColumnHidden(s)]

    def fits() -> bool:
        words = [header.model().headerData(s, Qt.Orientation.Horizontal) for s in shown()]
        room = [header.sectionSize(s) for s in shown()]
        wide = all(
            header.fontMetrics().horizontalAdvance(word) < width for word, width in zip(words, room, strict=True)
        )
        names = room[0] >= table.fontMetrics().horizontalAdvance("blk.0.ffn_gate.weight") // 2
        return wide and names and not table.horizontalScrollBar().maximum()

    for size in ((960, 600), (1280, 800), (2560, 1440)):
        window.resize(*size)
        qtbot.waitUntil(fits, timeout=5000)
    assert shown() == [0, 1, 2, 3, 4, 5]
    window.resize(1280, 800)
    window.theme.set_font_percent(160)
    qtbot.waitUntil(fits, timeout=5000)
    assert 2 in shown(), "SQNR is what the list is sorted by"
    window.theme.set_font_percent(100)
    qtbot.waitUntil(fits, timeout=5000)
    assert len(shown()) > 4


def test_copies_and_exports(panel, qtbot, tmp_path: Path, monkeypatch):
    assert panel.menu(QPoint(0, 0)).actions()[0].text() == "Assign strategy …"
    for name in ("map.png", "map.svg"):
        monkeypatch.setattr(panel.exports, "ask_path", lambda *_, n=name: str(tmp_path / n))
        panel.exports.export_picture()
    assert (tmp_path / "map.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (tmp_path / "map.svg").read_text()
    monkeypatch.setattr(panel.exports, "ask_path", lambda *_: str(tmp_path / "map.csv"))
    panel.exports.export_values()
    assert len((tmp_path / "map.csv").read_text().splitlines()) == 31
    said = []
    panel.window_.session.noticed.connect(said.append)
    monkeypatch.setattr(panel.exports, "ask_path", lambda *_: str(tmp_path / "nowhere" / "map.csv"))
    panel.exports.export_values()
    assert "cannot be written" in said[0].text


def test_closing_the_checkpoint_empties_the_map(panel, qtbot):
    panel.window_.session.close()
    assert panel._stack.currentIndex() == 0
    assert panel.state.layout is None


def test_a_closed_panel_is_collected(qtbot):
    session, jobs = Session(), JobService()
    panel = ErrorMapPanel(session, jobs)
    panel.show()
    gone = weakref.ref(panel)
    panel.close()
    panel.deleteLater()
    del panel
    assert jobs.shutdown() == ()
    qtbot.waitUntil(lambda: gc.collect() >= 0 and gone() is None, timeout=20_000)


def test_a_lasso_holds_the_cells_whose_middle_it_runs_around(panel, qtbot):
    canvas, session = panel.canvas, panel.window_.session
    lines = panel.state.layout.lines
    gate, down = lines.index("gate"), lines.index("down")
    first, last = canvas.cell_rect(gate, 2), canvas.cell_rect(down, 3)
    middle = canvas.cell_rect(down - 1, 2).center().toPoint()
    # Around layers 1 and 2 of three roles, with a dent that leaves one cell out.
    corners = [
        first.topLeft().toPoint() + QPoint(2, 1),
        last.topRight().toPoint() * 1 + QPoint(-2, 0),
        last.bottomRight().toPoint() - QPoint(2, 1),
        canvas.cell_rect(down, 2).bottomLeft().toPoint() + QPoint(2, -1),
        middle + QPoint(-4, 6),
        middle + QPoint(6, 0),
        middle + QPoint(-4, -6),
    ]
    corners[1].setY(corners[0].y())
    panel.lasso.setChecked(True)
    qtbot.mousePress(canvas, Qt.MouseButton.LeftButton, pos=corners[0])
    for corner in corners[1:]:
        qtbot.mouseMove(canvas, corner)
    panel.grab()
    qtbot.mouseRelease(canvas, Qt.MouseButton.LeftButton, pos=corners[-1])
    roles = sorted(n.removesuffix(".weight") for n in session.selection)
    assert roles == [
        "blk.1.ffn_down",
        "blk.1.ffn_gate",
        "blk.2.ffn_down",
        "blk.2.ffn_gate",
        "blk.2.ffn_up",
    ]
    # Around the corner of a cell there is no middle: nothing is held, whatever lies under the last point.
    corner = canvas.cell_rect(gate, 1).topLeft().toPoint()
    qtbot.mousePress(canvas, Qt.MouseButton.LeftButton, pos=corner + QPoint(2, 2))
    for step in (QPoint(9, 2), QPoint(9, 5), QPoint(2, 5)):
        qtbot.mouseMove(canvas, corner + step)
    qtbot.mouseRelease(canvas, Qt.MouseButton.LeftButton, pos=corner + QPoint(2, 5))
    assert session.selection == ()
    # A click is a click, lasso or not; with Alt it is the rectangle again.
    click(panel, qtbot, down, 1)
    assert session.selection == ("blk.0.ffn_down.weight",)
    start, end = canvas.cell_rect(gate, 1).center().toPoint(), canvas.cell_rect(down, 1).center().toPoint()
    qtbot.mousePress(canvas, Qt.MouseButton.LeftButton, Qt.KeyboardModifier.AltModifier, start)
    qtbot.mouseMove(canvas, end)
    qtbot.mouseRelease(canvas, Qt.MouseButton.LeftButton, Qt.KeyboardModifier.AltModifier, end)
    assert len(session.selection) == 3


def test_every_role_has_its_name_and_every_cell_its_number(panel):
    canvas = panel.canvas
    _, height = canvas._step()
    assert height >= canvas._small().height() - 2  # else labels would be left out
    assert [panel.state.metric.number(v) for v in (23.04, float("inf"))] == ["23.0", "exact"]


def test_the_even_odd_rule():
    x, y = np.meshgrid(np.arange(6.0), np.arange(4.0))
    square = [(0.5, 0.5), (4.5, 0.5), (4.5, 2.5), (0.5, 2.5)]
    held = inside(square, x, y)
    assert held.sum() == 8
    assert held[1:3, 1:5].all()
    bow = [(0.5, 0.5), (4.5, 2.5), (4.5, 0.5), (0.5, 2.5)]  # crosses itself: two triangles
    assert 0 < inside(bow, x, y).sum() < 8
    assert not inside([], x, y).any()
    assert not inside([(1.0, 1.0)] * 3, x, y).any()
