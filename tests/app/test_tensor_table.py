"""The table as a Qt model and widget: Qt's own model checks, folding, selecting, in-place editing."""

from __future__ import annotations

import numpy as np
import pytest
from PySide6.QtCore import QEvent, QModelIndex, QObject, QPersistentModelIndex, QPoint, Qt
from PySide6.QtWidgets import QApplication, QWidget

from app.frame.memory import remember, restore
from app.panels.tensors.columns import COLUMNS, PLACE
from app.panels.tensors.loading import TableRequest, table_task
from app.panels.tensors.model import TensorModel
from app.panels.tensors.state import MODEL, Filter, Order, Rows, arrange, make_rows, matching, ordering
from app.session import ShownError
from core.context import SILENT
from core.recipes.model import Strategy
from tests.app.outlines import small_outline


@pytest.fixture
def rows() -> Rows:
    return make_rows(small_outline())


@pytest.fixture
def model(qapp, rows: Rows) -> TensorModel:
    made = TensorModel()
    made.show(table_task(TableRequest(rows.outline, None, rows, {}, Filter()), SILENT))
    return made


def test_qt_finds_no_fault(model: TensorModel, qtmodeltester, rows: Rows) -> None:
    qtmodeltester.check(model)
    model.set_grouped(False)
    qtmodeltester.check(model)
    model.set_filter(Filter("nothing"), matching(rows, Filter("nothing")))
    qtmodeltester.check(model)
    model.clear()
    qtmodeltester.check(model)
    assert model.rowCount() == 0


def test_every_cell_answers_every_role(model: TensorModel) -> None:
    roles = [Qt.ItemDataRole(r) for r in range(14)]
    for line in range(model.rowCount()):
        for column in range(len(COLUMNS)):
            for role in roles:
                model.data(model.index(line, column), role)
    assert model.data(QModelIndex()) is None


def test_lines_have_depth_and_folds(model: TensorModel, rows: Rows) -> None:
    assert [model.depth(n) for n in range(5)] == [0, 1, 2, 2, 1]
    assert [model.is_folded(n) for n in range(3)] == [False, False, None]
    before = model.rowCount()
    model.fold([1], True)
    assert model.rowCount() == before - len(rows.members[0])
    assert model.is_folded(1) is True
    model.fold([0], True)
    assert model.lines == [MODEL]
    model.fold([0], False)
    model.fold_all(True)
    assert model.rowCount() == 1 + len(rows.blocks)
    model.fold_all(False)
    assert model.rowCount() == before


def test_a_filter_opens_what_it_finds(model: TensorModel, rows: Rows) -> None:
    model.fold_all(True)
    wanted = Filter("blk.5.attn_q")
    model.set_filter(wanted, matching(rows, wanted))
    assert [model.text(n, "name") for n in range(3)] == ["model", "blk.5", "attn_q.weight"]
    model.set_filter(Filter(), None)
    assert model.rowCount() == 1 + len(rows.blocks)


def test_flat_shows_full_names(model: TensorModel) -> None:
    model.set_grouped(False)
    model.set_order(Order("name", True))
    assert model.text(0, "name") == "token_embd.weight"
    assert model.depth(0) == 0


def test_errors_arrive_in_place(model: TensorModel, rows: Rows, qtbot) -> None:
    row = rows.index["blk.2.attn_q.weight"]
    line = model.lines.index(row)
    assert model.text(line, "sqnr") == ""
    with qtbot.waitSignal(model.dataChanged):
        model.set_errors({row: ShownError(21.94, 0.006, 0.1, 0.99, exact=False)})
    assert model.text(line, "sqnr") == "≈ 21.9"
    model.set_errors({row: ShownError(22.06, 0.006, 0.1, 0.99, exact=True, written=True)})
    assert model.text(line, "sqnr") == "22.1"
    block = model.lines.index(-2 - rows.block[row])
    assert model.text(block, "sqnr") == "≥ 22.1"
    assert model.text(0, "sqnr") == "≥ 22.1"
    model.set_errors({row: ShownError(float("inf"), 0.0, 0.0, 1.0, exact=True)})
    assert model.text(line, "sqnr") == "exact"
    model.set_errors({row: ShownError(None, None, None, None, exact=False, why="row 3 holds NaN or Inf")})
    assert model.text(line, "sqnr") == "–"


def test_lines_in_another_order_are_told_to_qt(model: TensorModel, rows: Rows, qtmodeltester) -> None:
    model.set_grouped(False)
    model.set_order(Order("sqnr"))
    qtmodeltester.check(model)
    held = [QPersistentModelIndex(model.index(line, 1)) for line in (0, 3, model.rowCount() - 1)]
    before = list(model.lines)
    sqnr = np.arange(len(rows), 0, -1.0)
    sqnr[2] = np.nan
    ordered = ordering(rows, None, sqnr, model.order)
    arrangement = arrange(rows, ordered, None, False, frozenset())
    moved = model.moves(arrangement)
    model.reorder(ordered, arrangement, moved)
    assert model.moves(arrangement) is None
    assert model.lines == arrangement.entries != before
    assert [model.lines[line] for line in moved] == before
    assert [model.lines[i.row()] for i in held] == [before[0], before[3], before[-1]]
    assert model.rows_at([0]) == [arrangement.entries[0]]


def test_names_to_lines_and_back(model: TensorModel, rows: Rows) -> None:
    names = ("blk.3.attn_q.weight", "blk.1.ffn_up.weight")
    lines = model.lines_of(names)
    assert lines == sorted(lines)
    assert set(model.names_at(lines)) == set(names)
    assert model.lines_of(["not there"]) == []


def tensor_line(panel, name: str) -> int:
    return panel.model.lines_of([name])[0]


def select(panel, *names: str) -> None:
    panel.table.select_lines(panel.model.lines_of(names))


def test_the_demo_is_shown_whole(opened) -> None:
    panel = opened.commands.tensors
    assert panel.model.shown == len(opened.session.plan.tensors)
    name = next(t.tensor.name for t in opened.session.plan.tensors if t.quantized)
    line = tensor_line(panel, name)
    planned = opened.session.tensor(name)
    assert panel.model.text(line, "strategy") == str(planned.strategy)
    assert panel.model.text(line, "bpw") == f"{planned.bpw:.2f}"
    assert f"{planned.nbytes:,} bytes" in panel.model.tooltip(line, "size")
    assert planned.rule_text in panel.model.tooltip(line, "strategy")


def test_selection_reaches_the_session_and_comes_back(opened, qtbot) -> None:
    panel = opened.commands.tensors
    names = tuple(t.tensor.name for t in opened.session.plan.tensors if t.quantized)[:3]
    with qtbot.waitSignal(opened.session.selection_changed):
        select(panel, *names)
    assert set(opened.session.selection) == set(names)
    opened.session.select(names[:1], "elsewhere")
    assert panel.selected_names() == names[:1]
    assert not panel.table.nothing_found
    panel.bar.edit.setText("no such tensor")
    assert panel.table.nothing_found
    assert panel.model.shown == 0
    panel.bar.clear()
    assert panel.selected_names() == names[:1]


def test_many_selected_elsewhere_are_followed_a_turn_later(opened, qtbot, monkeypatch) -> None:
    monkeypatch.setattr("app.panels.tensors.view.MANY", 3)
    panel, session = opened.commands.tensors, opened.session
    names = tuple(t.tensor.name for t in session.plan.tensors)
    before = panel.table.selected_lines()
    session.select(names)
    assert panel.busy
    assert panel.table.selected_lines() == before
    qtbot.waitUntil(lambda: not panel.busy)
    assert panel.selected_names() == names
    session.select(names[:4])
    assert panel.selected_names() == names[:4], "whoever asks is not told of the selection before"
    session.select(names[:1])
    assert panel.selected_names() == names[:1]


def test_a_block_stands_for_its_tensors(opened, qtbot) -> None:
    panel = opened.commands.tensors
    blocks = [n for n, e in enumerate(panel.model.lines) if e < MODEL]
    panel.table.select_lines(blocks[1:2])
    inside = panel.selected_names()
    assert len(inside) > 3
    assert len({n.split(".")[1] for n in inside}) == 1


def test_typing_filters_and_escape_ends_it(opened, qtbot) -> None:
    panel = opened.commands.tensors
    total = panel.model.shown
    panel.table.setFocus()
    qtbot.keyClicks(panel.table, "norm")
    # The first key moved the keyboard to the filter; the rest was typed there in a real window.
    panel.bar.edit.setText("norm")
    assert 0 < panel.model.shown < total
    assert panel.bar.count.text() == f"{panel.model.shown} of {total}"
    qtbot.keyClick(panel.bar.edit, Qt.Key.Key_Escape)
    assert panel.model.shown == total


def test_a_bad_expression_is_marked_and_hides_nothing(opened) -> None:
    panel = opened.commands.tensors
    total = panel.model.shown
    panel.bar.edit.setText("re:(")
    assert panel.model.shown == total
    assert panel.bar.edit.property("wrong") is True
    assert "not a regular expression" in panel.bar.edit.toolTip()
    panel.bar.edit.setText("re:(norm)")
    assert panel.bar.edit.property("wrong") is False
    assert panel.model.shown < total


def test_roles_filter_by_menu(opened) -> None:
    panel = opened.commands.tensors
    action = next(a for a in panel.bar.role_button.menu().actions() if a.text() == "q")
    action.trigger()
    assert panel.model.shown == opened.session.plan.outline.layers
    assert panel.bar.role_button.text() == "Role: 1"
    action.trigger()
    assert panel.bar.role_button.text() == "Role"


def test_fold_by_keyboard(opened, qtbot) -> None:
    panel = opened.commands.tensors
    panel.table.setCurrentIndex(panel.model.index(0, 0))
    before = panel.model.rowCount()
    qtbot.keyClick(panel.table, Qt.Key.Key_Left)
    assert panel.model.rowCount() == 1
    qtbot.keyClick(panel.table, Qt.Key.Key_Right)
    assert panel.model.rowCount() == before


def test_strategy_is_edited_in_place_with_type_ahead(opened, settled, qtbot) -> None:
    panel = opened.commands.tensors
    name = next(t.tensor.name for t in opened.session.plan.tensors if t.tensor.role.kind == "q")
    select(panel, name)
    index = panel.model.index(tensor_line(panel, name), PLACE["strategy"])
    panel.table.setCurrentIndex(index)
    panel.assigner.picker = None
    qtbot.keyClick(panel.table, Qt.Key.Key_F2)
    qtbot.waitUntil(lambda: panel.assigner.picker is not None)
    picker = panel.assigner.picker
    picker.edit.clear()
    qtbot.keyClicks(picker.edit, "q8")
    assert picker._model.records[0].text == "q8_0"
    qtbot.keyClick(picker.edit, Qt.Key.Key_Return)
    settled()
    assert opened.session.tensor(name).strategy == Strategy("q8_0")
    assert panel.model.text(tensor_line(panel, name), "strategy") == "q8_0"
    assert opened.session.undo_label.startswith(f"Assign q8_0 to {name} (+")


def test_a_typed_strategy_that_is_none_is_refused_in_the_picker(opened, qtbot) -> None:
    panel = opened.commands.tensors
    name = next(t.tensor.name for t in opened.session.plan.tensors if t.tensor.role.kind == "q")
    select(panel, name)
    panel.open_picker()
    picker = panel.assigner.picker
    picker.edit.clear()
    qtbot.keyClicks(picker.edit, "q4_k+magic")
    qtbot.keyClick(picker.edit, Qt.Key.Key_Return)
    assert picker.isVisible()
    assert "magic" in picker.note.text()
    picker.close()


def test_the_picker_knows_sizes_and_misfits(opened) -> None:
    from app.strategies.choices import narrowed, strategy_choices

    session = opened.session
    linear = next(t for t in session.plan.tensors if t.tensor.role.kind == "q").tensor
    norm = next(t for t in session.plan.tensors if t.tensor.role.kind == "norm").tensor
    choices = {c.text: c for c in strategy_choices(session.outline, session.target, [linear, norm])}
    assert choices["q8_0"].bpw == 8.5
    assert choices["q8_0"].misfits == 1
    assert choices["keep"].misfits == 0
    both = linear.numel * 34 // 32 + norm.numel * 4
    assert choices["q8_0"].nbytes == both
    assert narrowed(choices.values(), "q8_0")[0].text == "q8_0"
    assert all("iq4" in c.text for c in narrowed(choices.values(), "iq4"))


def test_many_at_once_and_back_to_the_rules(opened, settled, qtbot) -> None:
    panel, session = opened.commands.tensors, opened.session
    names = tuple(t.tensor.name for t in session.plan.tensors if t.tensor.role.kind in ("q", "k"))
    before = {n: session.tensor(n).strategy for n in names}
    select(panel, *names)
    panel.assign(Strategy("q8_0"))
    settled()
    assert {session.tensor(n).strategy for n in names} == {Strategy("q8_0")}
    assert len(session.recipe.rules) == 2
    qtbot.waitUntil(opened.actions_by_id["by-rules"].isEnabled)
    opened.actions_by_id["by-rules"].trigger()
    settled()
    assert {n: session.tensor(n).strategy for n in names} == before


def test_columns_and_grouping_are_remembered(opened, settings) -> None:
    panel = opened.commands.tensors
    panel.table.horizontalHeader().setSectionHidden(PLACE["dtype"], True)
    panel.bar.group_button.setChecked(False)
    remember(opened)
    panel.table.horizontalHeader().setSectionHidden(PLACE["dtype"], False)
    panel.bar.group_button.setChecked(True)
    restore(opened)
    assert panel.table.isColumnHidden(PLACE["dtype"])
    assert not panel.model.grouped


class _Paints(QObject):
    """How often a widget was painted."""

    def __init__(self, widget: QWidget) -> None:
        super().__init__(widget)
        self.count = 0
        widget.installEventFilter(self)

    def eventFilter(self, watched: QObject, event: QEvent) -> bool:
        self.count += event.type() == QEvent.Type.Paint
        return False


def _quiet() -> None:
    for _ in range(10):
        QApplication.processEvents()


def test_columns_stay_where_they_are_and_lines_are_painted_once_when_the_scroll_bar_comes(opened, qtbot) -> None:
    panel, table = opened.commands.tensors, opened.commands.tensors.table
    opened.resize(1280, 800)
    # Lines whose errors become known are painted again.
    qtbot.waitUntil(lambda: not opened.jobs.previews(), timeout=60_000)
    panel.bar.edit.setText("blk.0.attn_q")
    _quiet()
    bar = table.verticalScrollBar()
    assert not bar.isVisible()
    widths = [table.columnWidth(i) for i in range(len(COLUMNS))]
    paints = _Paints(table.viewport())
    panel.bar.edit.clear()
    _quiet()
    assert bar.isVisible()
    assert [table.columnWidth(i) for i in range(len(COLUMNS))] == widths
    assert not table.horizontalScrollBar().isVisible()
    assert sum(widths) == table.viewport().width()
    assert paints.count == 1


def test_a_column_that_was_dragged_leaves_the_rest_to_the_last(opened, qtbot, monkeypatch) -> None:
    table = opened.commands.tensors.table
    header = table.horizontalHeader()
    # Qt asks the application which buttons are down, and a test has none.
    down = [Qt.MouseButton.LeftButton]
    monkeypatch.setattr("app.panels.tensors.table.QApplication.mouseButtons", lambda: down[0])
    place = QPoint(header.sectionViewportPosition(0) + header.sectionSize(0) - 1, header.height() // 2)
    width = header.sectionSize(0)
    qtbot.mousePress(header.viewport(), Qt.MouseButton.LeftButton, pos=place)
    qtbot.mouseMove(header.viewport(), place - QPoint(40, 0))
    qtbot.mouseRelease(header.viewport(), Qt.MouseButton.LeftButton, pos=place - QPoint(40, 0))
    assert header.sectionSize(0) == width - 40
    down[0] = Qt.MouseButton.NoButton
    qtbot.waitUntil(lambda: header.length() == table.viewport().width())
    opened.resize(opened.width() - 40, opened.height())
    qtbot.waitUntil(lambda: header.length() == table.viewport().width())
    assert header.sectionSize(0) == width - 40
