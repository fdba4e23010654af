"""The Compare panel: what it knows without Qt, and the panel in the window."""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PySide6.QtCore import QItemSelectionModel, QMimeData, QPoint, QPointF, Qt, QUrl
from PySide6.QtGui import QDropEvent
from PySide6.QtWidgets import QApplication

from app.cells import PAD, WordsDelegate
from app.panels.compare.listing import listed
from app.panels.compare.model import ComparedModel
from app.panels.compare.state import COLUMNS, PLACE, CompareState, cell, compare_task
from app.panels.compare.table import copy_lines
from app.panels.compare.widths import NAMES, beside
from tests.core.engine.build import checkpoint_file, weights


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two files of one model: one layer noisier than the other, one tensor on one side only, other metadata."""
    folder = tmp_path_factory.mktemp("pair")
    plain = weights(12, 16, 32)
    noisy = {n: (w.float() * (1 + (0.01 * i))).to(w.dtype) for i, (n, w) in enumerate(plain.items())}
    noisy["model.extra.weight"] = torch.ones(3)
    return checkpoint_file(folder / "plain.safetensors", plain), checkpoint_file(folder / "noisy.safetensors", noisy)


class Listener:
    """A context that feeds a state as the view does."""

    def __init__(self, state: CompareState) -> None:
        self.state = state

    def progress(self, done: int, total: int, note: str = "") -> None:
        pass

    def partial(self, value) -> None:
        self.state.take([value])

    def check(self) -> None:
        pass


def compared(*paths: Path) -> CompareState:
    state = CompareState()
    state.paths.update(zip(("a", "b", "source"), map(str, paths), strict=False))
    state.finish(compare_task(state.begin(), Listener(state)))
    return state


def names(state: CompareState) -> list[str]:
    return [t.name for t in state.shown]


def test_sorting_and_filtering(pair) -> None:
    state = compared(*pair)
    natural = names(state)
    assert natural.index("model.layers.2.mlp.down_proj.weight") < natural.index("model.layers.10.mlp.down_proj.weight")
    state.sort = "sqnr"
    state.arrange()
    errors = [t.sqnr_db for t in state.shown]
    assert errors == sorted(errors)
    assert names(state)[-1] == "model.layers.0.mlp.down_proj.weight", "the exact copy is the best"
    state.descending = True
    state.arrange()
    assert [t.sqnr_db for t in state.shown] == errors[::-1]
    state.words = "layers.1 DOWN"
    state.arrange()
    assert {n.split(".")[2] for n in names(state)} == {"1", "10", "11"}
    state.words, state.sort, state.descending = "", "name", True
    state.arrange()
    assert names(state) == natural[::-1]


def test_what_is_unknown_stands_last_either_way(tmp_path: Path) -> None:
    a = {"x": torch.ones(4, 4), "y": torch.ones(4, 4), "z": torch.ones(4, 4)}
    b = {"x": torch.ones(4, 4) * 1.5, "y": torch.ones(4, 5), "z": torch.ones(4, 4)}
    state = compared(*(checkpoint_file(tmp_path / f"{i}.safetensors", t) for i, t in enumerate((a, b))))
    for state.descending in (False, True):
        state.sort = "sqnr"
        state.arrange()
        assert names(state)[-1] == "y"
    assert "note" in {COLUMNS[i].id for i in state.columns}
    assert cell(state.rows[1], "note") == "shape 4×4 against 4×5"
    assert cell(state.rows[1], "sqnr") == "–"
    assert cell(state.rows[0], "max") == "0.500", "zeros at the end stay, so that figures stand in columns"
    state.listing.add([listed(replace(state.rows[0], max_abs=float(value))) for value in (500, 4e-5, 0)])
    assert [cell(t, "max") for t in state.rows[3:]] == ["500", "4.00e-5", "0"]


def test_weights_that_are_no_numbers(tmp_path: Path) -> None:
    w = torch.randn(4, 8)
    broken = w.clone()
    broken[1, 1] = float("nan")
    a = {"both": broken * 1, "one": w, "x": w * 1, "y": w * 1}
    b = {"both": broken * 1, "one": broken, "x": w + 0.01, "y": torch.ones(5)}
    first, second = (checkpoint_file(tmp_path / f"{i}.safetensors", t) for i, t in enumerate((a, b)))
    same = compared(first, first)
    assert same.title() == "No weight differs in 4 tensors · 1 weight is NaN or infinite in both"
    assert [cell(t, "sqnr") for t in same.shown] == ["exact"] * 4
    state = compared(first, second)
    assert state.title() == "1 weight is NaN or infinite in B only"
    rows = {t.name: t for t in state.rows}
    assert [cell(rows["one"], c) for c in ("sqnr", "mse", "max", "cosine")] == ["NaN"] * 4
    assert cell(rows["one"], "note") == "1 weight is NaN or infinite in B only"
    assert cell(rows["both"], "note") == "1 weight is NaN or infinite in both"
    for state.sort, state.descending in (("sqnr", False), ("max", True), ("mse", True), ("cosine", False)):
        state.arrange()
        assert names(state)[0] == "one", "the worst comes first"
        assert names(state)[-1] == "y", "what is not known comes last"
    state.words = "nan"
    state.arrange()
    assert sorted(names(state)) == ["both", "one"]


def test_words(pair) -> None:
    state = CompareState()
    assert "Choose two" in state.empty()
    state.paths["a"] = "x"
    assert "drop it on B" in state.empty()
    state = compared(*pair)
    assert "dB between A and B" in state.title()
    assert "weakest model.norm.weight" in state.subtitle()
    assert compared(pair[0], pair[0]).title() == "No weight differs in 13 tensors"
    assert "to the source: A exact, B exact" in compared(pair[0], pair[0], pair[0]).subtitle()
    state.view = "lonely"
    assert state.pairs() == [("model.extra.weight", "only in B", "")]
    sourced = compared(pair[1], pair[1], pair[0])
    assert {"source_a", "source_b"} <= {COLUMNS[i].id for i in sourced.columns}
    assert "to the source: A " in sourced.subtitle()


def test_the_panel_streams_sorts_and_exports(window, qtbot, dialogs, pair, tmp_path: Path, qtmodeltester) -> None:
    panel = window.panel("compare")
    window.show_panel("compare")
    assert not panel.start.isEnabled()
    assert panel.empty.text().startswith("Choose two")
    dialogs.file = pair[0]
    panel.files["a"].asked.emit(False)
    data = QMimeData()
    data.setUrls([QUrl.fromLocalFile(str(pair[1]))])
    panel.files["b"].dropEvent(
        QDropEvent(QPointF(2, 2), Qt.DropAction.CopyAction, data, Qt.MouseButton.LeftButton, Qt.KeyboardModifier(0))
    )
    assert window.session.checkpoint is None, "it was dropped on the button, not on the window"
    panel.start.click()
    qtbot.waitUntil(lambda: panel.state.result is not None, timeout=20_000)
    assert panel.model.rowCount() == 13
    qtmodeltester.check(panel.model)
    qtmodeltester.check(panel.pairs)
    assert panel.views["lonely"].text() == "1 in one only"
    panel.views["lonely"].click()
    assert panel.pairs.rowCount() == 1
    panel.show_view("tensors")
    panel.words.setText("layers.1")
    assert panel.model.rowCount() == 3
    dialogs.saved_file = tmp_path / "c.csv"
    panel.save.click()
    lines = list(csv.DictReader(io.StringIO(dialogs.saved_file.read_text(encoding="utf-8"))))
    assert [line["name"].split(".")[2] for line in lines] == ["1", "10", "11"]
    panel.table.selectAll()
    copy_lines(panel.table)
    assert len(QApplication.clipboard().text().splitlines()) == 3
    for section in range(panel.model.columnCount()):
        tip = panel.model.headerData(section, Qt.Orientation.Horizontal, Qt.ItemDataRole.ToolTipRole)
        assert tip.endswith("."), "every header explains its term"


def test_a_file_that_is_none_is_said_and_forgotten(window, qtbot, pair, tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF" + b"\xff" * 40)
    panel = window.panel("compare")
    panel.choose("a", str(pair[0]))
    panel.compare_with(str(broken))
    qtbot.waitUntil(lambda: not panel.state.running, timeout=20_000)
    assert "broken.gguf" in panel.title.text()
    assert window.notices.notice.severity == "error"
    panel.compare_with(str(pair[1]))
    qtbot.waitUntil(lambda: panel.state.result is not None, timeout=20_000)
    assert panel.state.failure == ""


def test_it_can_be_stopped(window, qtbot, pair, monkeypatch) -> None:
    import threading

    import core.analysis.compare as compare

    reached = threading.Event()
    inner = compare._compare_one

    def slow(name, left, right, origin, ctx):
        reached.set()
        for _ in range(2000):
            ctx.check()
            threading.Event().wait(0.005)
        return inner(name, left, right, origin, ctx)

    monkeypatch.setattr(compare, "_compare_one", slow)
    panel = window.panel("compare")
    panel.choose("a", str(pair[0]))
    panel.compare_with(str(pair[1]))
    assert reached.wait(20)
    assert panel.start.text() == "Stop"
    assert not panel.files["a"].isEnabled()
    panel.start.click()
    qtbot.waitUntil(lambda: not panel.state.running, timeout=10_000)
    assert panel.state.stopped
    assert panel.title.text().startswith("Stopped after")
    assert panel.start.text() == "Compare"


def test_what_both_were_made_from_is_told_in_short_columns_with_long_tooltips(opened, qtbot, pair) -> None:
    opened.resize(1280, 800)
    panel = opened.panel("compare")
    opened.show_panel("compare")
    panel.choose("source", str(pair[0]))
    panel.choose("a", str(pair[1]))
    panel.compare_with(str(pair[0]))
    assert panel.table.columnWidth(0) >= panel._theme.px(NAMES), "before the first names came"
    qtbot.waitUntil(lambda: panel.state.result is not None, timeout=20_000)
    table, model, across = panel.table, panel.model, Qt.Orientation.Horizontal
    section = model.section_of("source_b")
    assert model.headerData(section, across) == "B, dB"
    assert model.headerData(section, across, Qt.ItemDataRole.ToolTipRole).startswith("SQNR of B against the source.\n")
    # All that matters is seen whole, and nothing scrolls.
    hidden = {COLUMNS[i].id for s, i in enumerate(panel.state.columns) if table.isColumnHidden(s)}
    assert hidden == {"sqnr", "mse", "max", "cosine"}
    assert table.horizontalScrollBar().maximum() == 0
    assert table.columnWidth(0) >= panel._theme.px(NAMES)
    tip = model.data(model.index(1, 0), Qt.ItemDataRole.ToolTipRole)
    for words in ("B: ", "exact to the source", "A to B: ", " dB · rel. MSE ", "max |a−b| ", "cosine 0.99"):
        assert words in tip, "what has no column is in the tooltip"
    # What the list is sorted by is never given up.
    opened.resize(2560, 1440)
    qtbot.waitUntil(lambda: not table.isColumnHidden(model.section_of("cosine")))
    table.horizontalHeader().setSortIndicator(model.section_of("sqnr"), Qt.SortOrder.AscendingOrder)
    opened.resize(1280, 800)
    qtbot.waitUntil(lambda: table.isColumnHidden(model.section_of("cosine")))
    assert not table.isColumnHidden(model.section_of("sqnr"))
    assert table.isColumnHidden(model.section_of("dtype"))
    # All of them on request, by the header's menu.
    header = table.horizontalHeader()
    header.customContextMenuRequested.emit(QPoint(5, 5))
    menu = QApplication.activePopupWidget()
    menu.actions()[0].trigger()
    menu.close()
    assert not any(table.isColumnHidden(section) for section in range(model.columnCount()))
    assert header.length() > table.viewport().width()
    copy_lines(table)
    assert len(QApplication.clipboard().text().splitlines()[0].split("\t")) == model.columnCount()
    panel.widths.show_all(False)
    assert table.isColumnHidden(model.section_of("dtype"))


def test_columns_take_the_room_they_fit_in_whole() -> None:
    plain = [False] * 3
    assert beside([50, 60, 70], plain, 180) == 180
    assert beside([50, 60, 70], plain, 179) == 110
    assert beside([50, 60, 70], plain, 40) == 0
    assert beside([50, 60, 70], [False, True, False], 179) == 50, "half of a pair is of no use"


def test_sizes_have_the_unit_of_the_largest_tensor(tmp_path: Path) -> None:
    def sized(rows: int) -> CompareState:
        tensors = {"big": torch.ones(rows, 1024), "small": torch.ones(3)}
        path = checkpoint_file(tmp_path / f"{rows}.safetensors", tensors)
        return compared(path, path)

    state = sized(4)
    assert state.unit == ("KiB", 1 << 10)
    assert [cell(t, "bytes_a", state.unit[1]) for t in state.shown] == ["16.0", "< 0.1"]
    model = ComparedModel(sized(4096), QApplication.instance())
    model.anew()
    section = model.section_of("bytes_b")
    assert model.headerData(section, Qt.Orientation.Horizontal) == "B, MiB"
    assert [model.data(model.index(row, section)) for row in range(2)] == ["16.0", "< 0.1"]


def test_columns_hold_their_words_and_names_take_the_rest(opened, qtbot, pair) -> None:
    panel = opened.panel("compare")
    opened.show_panel("compare")
    panel.choose("a", str(pair[0]))
    panel.compare_with(str(pair[1]))
    qtbot.waitUntil(lambda: panel.state.result is not None, timeout=20_000)
    header, table, model = panel.table.horizontalHeader(), panel.table, panel.model
    metrics, room = table.fontMetrics(), 2 * (PAD + WordsDelegate.margin())
    panel.widths.show_all(True)
    for section in range(1, model.columnCount()):
        texts = [model.data(model.index(row, section)) for row in range(model.rowCount())]
        widest = COLUMNS[PLACE[model.column_id(section)]].widest
        for text in {widest, *texts}:
            assert metrics.elidedText(text, table.textElideMode(), header.sectionSize(section) - room) == text
        title = model.headerData(section, Qt.Orientation.Horizontal)
        assert header.fontMetrics().horizontalAdvance(title) < header.sectionSize(section)
    # All are shown, without room for all: those that fit are seen whole, and the names get what they leave.
    opened.resize(1280, 800)
    qtbot.waitUntil(lambda: header.length() > table.viewport().width())
    edges = [header.sectionViewportPosition(section) for section in range(model.columnCount())]
    assert edges.index(table.viewport().width()) > model.section_of("bytes_b")
    # Left to itself, the table gives up what has no room.
    panel.widths.show_all(False)
    assert header.length() == table.viewport().width()
    assert [table.isColumnHidden(model.section_of(c)) for c in ("bytes_b", "cosine")] == [False, True]
    # With room for all, nothing is left over and nothing scrolls.
    opened.resize(2560, 1440)
    qtbot.waitUntil(lambda: header.length() == table.viewport().width())
    qtbot.waitUntil(lambda: not table.horizontalScrollBar().isVisible())
    # A width set by hand stays until there are other tensors.
    header.resizeSection(0, 150)
    opened.resize(2400, 1440)
    qtbot.waitUntil(lambda: header.length() != table.viewport().width())
    assert header.sectionSize(0) == 150


def test_all_chosen_are_selected_in_the_order_of_the_plan(opened, settled, qtbot, tmp_path: Path) -> None:
    panel, session = opened.panel("compare"), opened.session
    opened.commands.set_preset("Q8_0")
    settled()
    opened.commands.quantize_to(tmp_path / "result.gguf")
    qtbot.waitUntil(lambda: session.report is not None, timeout=120_000)
    panel.compare_with(str(tmp_path / "result.gguf"))
    qtbot.waitUntil(lambda: panel.state.result is not None, timeout=60_000)
    planned = tuple(t.tensor.name for t in session.plan.tensors)
    panel.table.horizontalHeader().setSortIndicator(0, Qt.SortOrder.DescendingOrder)
    panel.table.selectAll()
    qtbot.waitUntil(lambda: len(session.selection) > 1, timeout=10_000)
    assert session.selection == planned
    panel.table.clearSelection()
    for row in (5, 3, 1):
        panel.table.selectionModel().select(
            panel.model.index(row, 0), QItemSelectionModel.SelectionFlag.Select | QItemSelectionModel.SelectionFlag.Rows
        )
    qtbot.waitUntil(lambda: len(session.selection) == 3, timeout=10_000)
    assert list(session.selection) == sorted(session.selection, key=planned.index)
