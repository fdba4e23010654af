"""Size of text, density, what the keyboard reaches, and what the window remembers of its panels."""

from __future__ import annotations

import json

import pytest
from PySide6.QtCore import Qt
from PySide6.QtGui import QGuiApplication
from PySide6.QtWidgets import QApplication, QLabel, QTableView

from app.frame.memory import panel_state, restore_panel, stored_panels
from app.frame.problems import ProblemsPopover, counts_text, grouped
from app.labels import ElidedLabel
from app.panels import PANELS
from app.plotting.exporting import Exporter
from app.session import Notice
from app.theme import FONT_LEAST, FONT_MOST, Theme
from core.engine.demands import LISTED, listed
from core.engine.model import Problem


@pytest.fixture(autouse=True)
def as_it_was(qtbot):
    yield
    app = QApplication.instance()
    theme = app.findChild(Theme)
    if theme is not None:
        theme.set_font_percent(100)
        theme.set_density("compact")


def test_text_and_rows_grow_at_once_and_are_kept(opened, settings) -> None:
    theme, actions = opened.theme, opened.actions_by_id
    table, label = opened.commands.tensors.table, opened.panel("histogram").heading.title
    before, row, width = QApplication.font().pointSizeF(), table.rowHeight(0), table.columnWidth(1)
    for _ in range(3):
        actions["font-larger"].trigger()
    assert theme.font_percent == 130
    assert QApplication.font().pointSizeF() == pytest.approx(1.3 * before)
    assert label.font().pointSizeF() == pytest.approx(1.3 * before)  # bold ones too
    assert label.font().bold()
    assert table.rowHeight(0) > row
    assert table.columnWidth(1) >= width
    larger = table.rowHeight(0)
    actions["density-comfortable"].trigger()
    assert table.rowHeight(0) == larger + 6
    for name in ("rules", "log", "bench", "errormap", "outliers", "compare", "experiments"):
        for plain in opened.panel(name).findChildren(QTableView):
            assert plain.verticalHeader().defaultSectionSize() == theme.row, name
    assert (settings.get("view/font_percent"), settings.get("view/density")) == (130, "comfortable")
    assert actions["density-comfortable"].isChecked()
    assert not actions["density-compact"].isChecked()
    opened.grab()
    actions["font-usual"].trigger()
    actions["density-compact"].trigger()
    assert QApplication.font().pointSizeF() == before
    assert table.rowHeight(0) == row


def test_the_size_of_text_has_ends_and_survives_another_theme(qtbot) -> None:
    app = QApplication.instance()
    theme = Theme(app)
    usual = app.font().pointSizeF()
    theme.set_font_percent(1000)
    assert theme.font_percent == FONT_MOST
    assert Theme(app).font_percent == 100
    assert app.font().pointSizeF() == usual
    theme = Theme(app)
    theme.set_font_percent(1)
    assert theme.font_percent == FONT_LEAST
    with pytest.raises(ValueError, match="density"):
        theme.set_density("cosy")


def test_ctrl_and_a_digit_give_a_panel_the_keyboard(opened, qtbot) -> None:
    for record in PANELS:
        opened.actions_by_id[f"show-{record.id}"].trigger()
        panel, focus = opened.panel(record.id), opened.focusWidget()
        assert focus is not None, record.id
        assert focus is panel or panel.isAncestorOf(focus), record.id
        assert panel.isVisible(), record.id


def test_every_panel_with_a_plot_exports_it(opened, qtbot, tmp_path) -> None:
    for name in ("histogram", "outliers", "bench", "errormap", "calibration", "experiments"):
        opened.show_panel(name)
    opened.session.select((opened.session.plan.tensors[5].tensor.name,))
    opened.show_panel("histogram")
    # The plot in front is one that is seen: there is a picture in it.
    histogram = opened.panel("histogram")
    qtbot.waitUntil(lambda: histogram.plot is not None and histogram.plot.isVisible(), timeout=120_000)
    qtbot.waitUntil(lambda: not histogram.busy, timeout=120_000)
    exports = histogram.findChild(Exporter)
    asked = []
    exports.ask_path = lambda name, kinds: asked.append(name) or str(tmp_path / "seen.svg")
    opened.actions_by_id["export-plot"].trigger()
    assert (tmp_path / "seen.svg").read_text(encoding="utf-8").startswith("<?xml")
    assert asked[0].endswith("-histogram.png")
    exports.ask_path = lambda name, kinds: str(tmp_path / "nowhere" / "a.csv")
    opened.actions_by_id["export-values"].trigger()
    assert "cannot be written" in opened.notices.text.text()
    for name in ("bench", "errormap", "calibration", "experiments"):
        # Plots are built when there is time, one after the other.
        qtbot.waitUntil(lambda own=name: bool(opened.panel(own).findChildren(Exporter)), timeout=20_000)
        for each in opened.panel(name).findChildren(Exporter):
            each.ask_path = lambda _name, kinds, own=name: str(tmp_path / f"{own}.png")
            each.export_picture()
        assert (tmp_path / f"{name}.png").read_bytes()[:4] == b"\x89PNG", name


def test_panels_come_back_with_their_columns_and_splits(window, settings, qtbot) -> None:
    panel = window.panel("errormap")
    window.show_panel("errormap")
    header = panel.list.horizontalHeader()
    header.resizeSection(1, 133)
    header.moveSection(1, 4)
    state = json.loads(json.dumps(panel_state(panel)))
    fresh = type(panel)(window.session, window.jobs)
    qtbot.addWidget(fresh)
    restore_panel(fresh, state)
    assert fresh.list.horizontalHeader().sectionSize(1) == 133
    assert fresh.list.horizontalHeader().visualIndex(1) == 4
    for broken in (
        {},
        {"columns": 3},
        {"columns": [], "splits": ["*"]},
        {"columns": [[6, "?"]], "splits": []},
        [],
        None,
    ):
        restore_panel(fresh, broken)
    assert fresh.list.horizontalHeader().sectionSize(1) == 133
    settings.set("window/panels", "{not json")
    assert stored_panels(window) == {}
    window.close()
    assert "errormap" in stored_panels(window)


def test_panels_look_at_things_as_they_did(window, qtbot) -> None:
    for name, changed in (("histogram", "log"), ("outliers", "axis"), ("errormap", "metric_box")):
        panel = window.panel(name)
        choice = getattr(panel, changed)
        choice.setChecked(True) if changed == "log" else choice.setCurrentIndex(1)
        state = json.loads(json.dumps(panel_state(panel)))
        fresh = type(panel)(window.session, window.jobs)
        qtbot.addWidget(fresh)
        restore_panel(fresh, state)
        again = getattr(fresh, changed)
        assert again.isChecked() if changed == "log" else again.currentIndex() == 1, name
        restore_panel(fresh, {**state, "choices": [99] * len(fresh.choices)})
        assert changed == "log" or again.currentIndex() == 1, "no such choice"
        restore_panel(fresh, {**state, "choices": ["?"]})
    assert fresh.state.metric.id == "mse"


def test_what_many_tensors_share_is_one_line_that_can_be_copied(window) -> None:
    problems = [Problem("warning", "kept: no type", f"layer.{i}", "choose another") for i in range(30)]
    problems.insert(0, Problem("error", "no room", hint="free some"))
    assert grouped(problems) == [
        ("error", "no room; free some", ()),
        ("warning", "30 tensors: kept: no type; choose another", tuple(f"layer.{i}" for i in range(30))),
    ]
    popover = ProblemsPopover(window.theme, problems, window)
    chosen = []
    popover.tensors_chosen.connect(chosen.append)
    popover.list.setCurrentRow(1)
    popover.copy()
    assert QGuiApplication.clipboard().text() == "30 tensors: kept: no type; choose another"
    assert "and 10 more" in popover.list.item(1).toolTip()
    popover.list.itemClicked.emit(popover.list.item(1))
    assert len(chosen[0]) == 30


def test_one_finding_of_many_tensors_is_one_line(window) -> None:
    names = tuple(f"layer.{i}" for i in range(100))
    problems = tuple(listed("warning", [(name, "kept: no type") for name in names], "choose another"))
    assert len(problems) == LISTED + 1
    assert grouped(problems) == [("warning", "100 tensors: kept: no type; choose another", names)]
    assert counts_text(problems) == ("1 warning", "warning")
    alone = Problem("note", "looked up", "embed", others=("head",))
    assert grouped([alone]) == [("note", "2 tensors: looked up", ("embed", "head"))]
    assert counts_text([alone]) == ("Preflight OK, 1 note", "done")


def test_what_failed_can_be_copied(window) -> None:
    """Wherever the window says that something failed, the line can be taken along."""
    for label in window.findChildren(QLabel):
        if label.property("kind") == "failure" and not isinstance(label, ElidedLabel):
            assert label.textInteractionFlags() & Qt.TextInteractionFlag.TextSelectableByMouse, label.text()
    label = window.panel("bench").note
    label.setText("no such format")
    label.copy()
    assert QGuiApplication.clipboard().text() == "no such format"


def test_a_notice_pushes_the_window_down_a_turn_after_what_it_comes_with(opened, qtbot) -> None:
    bar, session = opened.notices, opened.session
    bar.dismiss()
    session.notify(Notice("error", "something went wrong"))
    assert bar.text.text() == "something went wrong"
    assert not bar.isVisible()
    qtbot.waitUntil(bar.isVisible)
    bar.dismiss()
    session.notify(Notice("note", "gone before it was seen"))
    bar.dismiss()
    qtbot.wait(20)
    assert not bar.isVisible()


def test_headers_that_can_be_pressed_sort(opened) -> None:
    opened.load_panels()
    heads = [table.horizontalHeader() for table in opened.findChildren(QTableView)]
    heads = [head for head in heads if head.model() is not None and head.model().columnCount() > 1]
    assert len(heads) >= 6
    odd = [h.parent() for h in heads if h.sectionsClickable() != h.isSortIndicatorShown()]
    assert not odd, [(table.accessibleName(), type(table).__name__, type(table.model()).__name__) for table in odd]
