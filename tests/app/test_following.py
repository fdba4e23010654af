"""The tensor table, sorted by error, while errors come in: it follows, and moves nothing that the user has in hand."""

from __future__ import annotations

from itertools import pairwise

import pytest
from PySide6.QtCore import QPoint, Qt
from PySide6.QtGui import QCursor
from PySide6.QtTest import QTest
from PySide6.QtWidgets import QApplication

from app.panels.tensors import following
from app.panels.tensors.columns import PLACE
from app.session import ShownError

SECTION = PLACE["sqnr"]


@pytest.fixture
def panel(opened, qtbot, monkeypatch):
    """The tensors of the demo in one flat list sorted by error, all of them measured, and nobody touching it."""
    monkeypatch.setattr(following, "REST_SECONDS", 0.0)
    monkeypatch.setattr(opened.previews, "look", lambda: None)
    qtbot.waitUntil(lambda: not opened.previews.busy, timeout=60_000)
    panel = opened.commands.tensors
    panel.bar.group_button.click()
    panel.table.horizontalHeader().setSortIndicator(SECTION, Qt.SortOrder.AscendingOrder)
    panel.follower._timer.setInterval(10)
    opened.resize(1100, 620)
    qtbot.waitUntil(lambda: not panel.busy and not panel.follower.busy)
    assert panel.table.verticalScrollBar().maximum() > 200
    return panel


def measured(panel) -> list[str]:
    """Names of the measured tensors, top to bottom."""
    model = panel.model
    return [model.rows.names[e] for e in model.lines if model.errors.sqnr[e] == model.errors.sqnr[e]]


def turn_round(panel) -> None:
    """Errors that put what was first last."""
    session = panel._session
    errors = {}
    for i, name in enumerate(measured(panel)):
        planned = session.tensor(name)
        errors[name, planned.strategy] = ShownError(100.0 - i, 0.001, 0.1, 0.99, exact=True, written=True)
    assert len(errors) > 15
    session.add_errors(errors)


def followed(panel, qtbot) -> None:
    qtbot.waitUntil(lambda: not panel.follower.busy, timeout=10_000)


def unmeasured(panel) -> list[bool]:
    """Of the lines on screen."""
    return [bool(panel.model.errors.mark[panel.model.entry(n)] == 0) for n in panel.table.visible_lines()]


def test_the_order_follows_the_errors(panel, qtbot) -> None:
    before = measured(panel)
    turn_round(panel)
    qtbot.waitUntil(lambda: measured(panel) == before[::-1], timeout=5_000)
    found = [panel.model.errors.sqnr[panel.model.rows.index[name]] for name in measured(panel)]
    assert all(a <= b for a, b in pairwise(found))
    # Painted anew, too: the first line is the weakest.
    assert panel.model.text(0, "sqnr") == f"{found[0]:.1f}"


def test_blocks_stay_where_they_are_and_their_tensors_are_in_order(panel, qtbot) -> None:
    panel.bar.group_button.click()
    blocks = [(n, e) for n, e in enumerate(panel.model.lines) if e < 0]
    turn_round(panel)
    followed(panel, qtbot)
    assert [(n, e) for n, e in enumerate(panel.model.lines) if e < 0] == blocks
    sqnr = panel.model.errors.sqnr
    for (first, _), (end, _) in pairwise(blocks):
        inside = [sqnr[e] for e in panel.model.lines[first + 1 : end] if sqnr[e] == sqnr[e]]
        assert inside == sorted(inside)


def test_what_is_selected_current_and_scrolled_to_stays(panel, qtbot) -> None:
    table, model, session = panel.table, panel.model, panel._session
    names = measured(panel)
    rows = panel.model.rows
    table.select_lines(sorted(model.lines.index(rows.index[n]) for n in (names[3], names[4], names[11])))
    qtbot.waitUntil(lambda: len(session.selection) == 3)
    table.verticalScrollBar().setValue(96)
    current = model.entry(table.currentIndex().row())
    selections = []
    session.selection_changed.connect(selections.append)
    turn_round(panel)
    followed(panel, qtbot)
    assert measured(panel) == names[::-1]
    assert set(panel.selected_names()) == {names[3], names[4], names[11]}
    assert len(table.selectionModel().selectedRows()) == 3
    assert model.entry(table.currentIndex().row()) == current
    assert table.verticalScrollBar().value() == 96
    QTest.qWait(100)
    assert selections == [], "nobody chose anything"
    # A range by Shift goes on from the current tensor, where it is now.
    row = table.currentIndex().row()
    other = table.visualRect(model.index(5, 0)).center()
    QTest.mouseClick(
        table.viewport(), Qt.MouseButton.LeftButton, Qt.KeyboardModifier.ShiftModifier, QPoint(20, other.y())
    )
    assert panel.table.selected_lines() == list(range(min(row, 5), max(row, 5) + 1))


def test_the_tensor_under_the_mouse_stays_there(panel, qtbot) -> None:
    table, model = panel.table, panel.model
    table.verticalScrollBar().setValue(7 * 24 + 5)
    at = QPoint(60, 3 * 24 + 7)
    QCursor.setPos(table.viewport().mapToGlobal(at))
    qtbot.waitUntil(table.viewport().underMouse)
    pointed = model.entry(table.rowAt(at.y()))
    top = table.rowViewportPosition(table.rowAt(at.y()))
    before = measured(panel)
    turn_round(panel)
    followed(panel, qtbot)
    assert measured(panel) == before[::-1]
    assert model.entry(table.rowAt(at.y())) == pointed
    assert table.rowViewportPosition(table.rowAt(at.y())) == top
    QCursor.setPos(panel.window().mapToGlobal(QPoint(5, 5)))


def test_nothing_moves_under_a_hand(panel, qtbot, monkeypatch) -> None:
    table, before = panel.table, list(panel.model.lines)
    monkeypatch.setattr(following, "REST_SECONDS", 3600.0)
    QTest.keyClick(table, Qt.Key.Key_Down)
    turn_round(panel)
    QTest.qWait(150)
    assert panel.model.lines == before
    monkeypatch.setattr(following, "REST_SECONDS", 0.0)
    followed(panel, qtbot)
    before = list(panel.model.lines)
    # A strategy is being typed.
    panel.assigner.edit(table.currentIndex())
    turn_round(panel)
    QTest.qWait(150)
    assert panel.model.lines == before
    QApplication.activePopupWidget().close()
    followed(panel, qtbot)
    assert panel.model.lines != before


def test_a_selection_in_very_many_places_stays_until_it_is_another(panel, qtbot, monkeypatch) -> None:
    monkeypatch.setattr("app.panels.tensors.table.MOST_PARTS", 3)
    table, before = panel.table, measured(panel)
    table.select_lines(range(0, 12, 2))
    turn_round(panel)
    followed(panel, qtbot)
    assert measured(panel) == before
    table.select_lines([0])
    followed(panel, qtbot)
    assert measured(panel) == before[::-1]


def test_lines_that_were_sorted_otherwise_meanwhile_stay(panel, qtbot, monkeypatch) -> None:
    turn_round(panel)
    panel.table.horizontalHeader().setSortIndicator(PLACE["name"], Qt.SortOrder.AscendingOrder)
    by_name = list(panel.model.lines)
    followed(panel, qtbot)
    assert panel.model.lines == by_name
    turn_round(panel)
    assert not panel.follower.busy, "names do not change with errors"


def test_tensors_that_came_on_screen_unmeasured_are_asked_for(panel, qtbot) -> None:
    asked = []
    panel.follower.uncovered.connect(lambda: asked.append(True))
    turn_round(panel)
    followed(panel, qtbot)
    assert bool(asked) == any(unmeasured(panel))
    bar = panel.table.verticalScrollBar()
    bar.setValue(bar.maximum())
    asked.clear()
    turn_round(panel)
    followed(panel, qtbot)
    assert any(unmeasured(panel))
    assert asked
