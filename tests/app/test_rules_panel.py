"""The rules panel: counts, editing, moving, and Qt's own checks of its model."""

from __future__ import annotations

import pytest
from PySide6.QtCore import Qt

from app.edits import AddRule
from app.panels.rules.model import MIME, PATTERN, STRATEGY, RulesModel
from app.panels.rules.state import lines_of
from app.theme import current
from core.recipes.model import Match, Recipe, Rule, Strategy


@pytest.fixture
def rules(opened, settled, qtbot):
    """The panel on the demo with three rules, counted."""
    session = opened.session
    session.apply(AddRule(0, Rule(Match(role=("v",)), Strategy("q8_0"))))
    session.apply(AddRule(0, Rule(Match(name="*attn*"), Strategy("q6_k"))))
    settled()
    panel = opened.panel("rules")
    qtbot.waitUntil(lambda: panel.model.lines[0].matched is not None, timeout=10_000)
    return panel


def counted(panel, qtbot) -> None:
    qtbot.waitUntil(lambda: panel._job is None and panel.model.lines[0].matched is not None, timeout=10_000)


def test_qt_finds_no_fault(qapp, qtmodeltester) -> None:
    model = RulesModel(current())
    qtmodeltester.check(model)
    recipe = Recipe("r", (Rule(Match(name="*"), Strategy("q4_k")), Rule(Match(), preset="Q4_K_M")))
    model.show(lines_of(recipe, [(3, 3), (5, 0)]))
    qtmodeltester.check(model)


def test_counts_are_live_and_shadowed_rules_are_marked(rules, opened, qtbot) -> None:
    layers = opened.session.outline.layers
    attention = sum("attn" in t.name for t in opened.session.outline.tensors)
    lines = rules.model.lines
    assert (lines[0].matched, lines[0].won) == (attention, attention)
    assert (lines[1].matched, lines[1].won) == (layers, 0)
    assert lines[1].shadowed
    assert rules.model.index(1, 5).data() == "rule · shadowed"
    assert lines[2].kind == "preset"
    rules.table.selectRow(1)
    rules.move_by(-1)
    counted(rules, qtbot)
    lines = rules.model.lines
    assert (lines[0].matched, lines[0].won) == (layers, layers)
    assert (lines[1].matched, lines[1].won) == (attention, attention - layers)
    assert rules.row == 0


def test_editing_inline(rules, opened, settled) -> None:
    session = opened.session
    assert rules.model.setData(rules.model.index(0, PATTERN), "role:q layers:0")
    assert session.recipe.rules[0].match == Match(role=("q",), layers=(0, 0))
    assert rules.model.setData(rules.model.index(0, STRATEGY), "keep")
    assert session.recipe.rules[0].strategy == Strategy("keep")
    settled()
    assert not next(t for t in session.plan.tensors if t.tensor.role.kind == "q" and t.tensor.role.layer == 0).quantized
    assert session.undo_label.startswith("Change rule 1")


def test_what_makes_no_sense_is_said_and_changes_nothing(rules, opened) -> None:
    before = opened.session.recipe
    rules.model.setData(rules.model.index(0, STRATEGY), "q9_x")
    assert opened.session.recipe == before
    assert opened.notices.notice.severity == "error"
    rules.model.setData(rules.model.index(0, PATTERN), "re:(")
    assert opened.session.recipe == before


def test_counts_follow_typing_before_it_is_an_edit(rules, opened, qtbot) -> None:
    before = opened.session.recipe
    rules._try_out(0, PATTERN, "*.attn_q.weight")
    qtbot.waitUntil(lambda: rules.model.lines[0].matched == opened.session.outline.layers, timeout=10_000)
    assert opened.session.recipe == before
    rules._delegate.closed.emit()
    counted(rules, qtbot)
    attention = sum("attn" in t.name for t in opened.session.outline.tensors)
    qtbot.waitUntil(lambda: rules.model.lines[0].matched == attention, timeout=10_000)


def test_adding_looks_like_the_selected_tensor(rules, opened, qtbot) -> None:
    name = next(t.tensor.name for t in opened.session.plan.tensors if t.tensor.role.kind == "down")
    opened.session.select((name,))
    rules.table.clearSelection()
    rules.table.setCurrentIndex(rules.model.index(-1, 0))
    rules.add()
    rule = opened.session.recipe.rules[0]
    assert rule.match.name == "blk.*.ffn_down.weight"
    assert rule.strategy == opened.session.tensor(name).strategy
    counted(rules, qtbot)
    rules.table.selectRow(0)
    rules.remove()
    assert len(opened.session.recipe.rules) == 3


@pytest.mark.parametrize(
    ("origin", "row", "order"), [(0, 3, [1, 2, 0]), (2, 0, [2, 0, 1]), (0, 1, [0, 1, 2]), (1, 2, [0, 1, 2])]
)
def test_dropping_a_row(qapp, origin: int, row: int, order: list[int]) -> None:
    from PySide6.QtCore import QModelIndex, Qt

    model = RulesModel(current())
    recipe = Recipe("r", tuple(Rule(Match(name=n), Strategy("q4_k")) for n in "abc"))
    model.show(lines_of(recipe, None))
    moves = []
    model.moved.connect(lambda a, b: moves.append((a, b)))
    data = model.mimeData([model.index(origin, 0)])
    assert data.hasFormat(MIME)
    assert model.dropMimeData(data, Qt.DropAction.MoveAction, row, 0, QModelIndex()) is False
    rows = [0, 1, 2]
    for a, b in moves:
        rows.insert(b, rows.pop(a))
    assert rows == order


def test_columns_follow_the_size_of_the_text(opened) -> None:
    panel, theme = opened.panel("rules"), opened.theme
    header = panel.table.horizontalHeader()
    theme.set_font_percent(140)
    try:
        for section in range(panel.model.columnCount()):
            title = panel.model.headerData(section, Qt.Orientation.Horizontal) or ""
            assert header.fontMetrics().horizontalAdvance(title) + 16 <= header.sectionSize(section), title
    finally:
        theme.set_font_percent(100)
