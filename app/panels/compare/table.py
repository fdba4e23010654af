"""The two tables of the Compare panel: how they look, what is selected in them, and copying lines."""

from __future__ import annotations

from typing import cast

from PySide6.QtCore import QEvent, QItemSelectionModel, QModelIndex, Qt
from PySide6.QtGui import QAction, QGuiApplication, QKeySequence, QPainter, QPaintEvent, QPalette
from PySide6.QtWidgets import QAbstractItemView, QHeaderView, QTableView, QWidget

from app.cells import PAD, WordsDelegate, dress
from app.nothing import Nothing
from app.panels.compare.model import ComparedModel, PairsModel
from app.theme import Theme, current

# Texts whose shortened form is remembered.
KEPT = 20_000


class LinesTable(QTableView):
    """Paints whole lines at once. Through a delegate every cell is asked for by itself, and beside a job each of these
    questions may have to wait for its turn: a screen of 300 cells took 200 ms."""

    def __init__(self, parent: QWidget) -> None:
        super().__init__(parent)
        self._fitted: dict[tuple[str, int], str] = {}  # what is shown of a text in so many pixels

    def paintEvent(self, event: QPaintEvent) -> None:
        if len(self._fitted) > KEPT:
            self._fitted.clear()
        model = cast(ComparedModel | PairsModel, self.model())
        count = model.rowCount()
        first, last = self.rowAt(event.rect().top()), self.rowAt(event.rect().bottom())
        if not count or first < 0:
            return
        painter = QPainter(self.viewport())
        columns, chosen = self._columns(model), self.selectionModel()
        metrics, palette, mode = self.fontMetrics(), self.palette(), self.textElideMode()
        plain, bright = palette.color(QPalette.ColorRole.Text), palette.color(QPalette.ColorRole.HighlightedText)
        highlight, width = palette.highlight(), self.viewport().width()
        height, y = self.rowHeight(first), self.rowViewportPosition(first)
        painter.setPen(plain)
        for row in range(first, (last if last >= 0 else count - 1) + 1):
            selected = chosen.isRowSelected(row, QModelIndex())
            if selected:
                painter.fillRect(0, y, width, height, highlight)
                painter.setPen(bright)
            words = model.words(row)
            for section, left, room, flags in columns:
                text = words[section]
                shown = self._fitted.get((text, room))
                if shown is None:
                    shown = self._fitted[text, room] = metrics.elidedText(text, mode, room)
                painter.drawText(left, y, room, height, flags, shown)
            if selected:
                painter.setPen(plain)
            y += height
        at = self.currentIndex()
        if self.hasFocus() and at.isValid():
            painter.setPen(current().colors.accent)
            painter.setBrush(Qt.BrushStyle.NoBrush)
            painter.drawRect(self.visualRect(at).adjusted(0, 0, -1, -1))
        painter.end()

    def _columns(self, model: ComparedModel | PairsModel) -> list[tuple[int, int, int, int]]:
        """Where the text of each column that is shown goes: section, left, width, flags."""
        margin, single = PAD + WordsDelegate.margin(), Qt.TextFlag.TextSingleLine.value
        return [
            (i, self.columnViewportPosition(i) + margin, self.columnWidth(i) - 2 * margin, model.side(i) | single)
            for i in range(model.columnCount())
            if not self.isColumnHidden(i)
        ]

    def changeEvent(self, event: QEvent) -> None:
        super().changeEvent(event)
        if event.type() in (QEvent.Type.FontChange, QEvent.Type.StyleChange):
            self._fitted.clear()


def listing_table(theme: Theme, model: ComparedModel | PairsModel, parent: QWidget) -> LinesTable:
    """A table of whole lines, which Ctrl+C and the menu copy."""
    table = LinesTable(parent)
    table.setModel(model)
    dress(table, words=True)
    Nothing(table, model.nothing)
    table.setShowGrid(False)
    table.setWordWrap(False)
    table.setTabKeyNavigation(False)
    table.setTextElideMode(Qt.TextElideMode.ElideMiddle)
    table.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
    table.setHorizontalScrollMode(QAbstractItemView.ScrollMode.ScrollPerPixel)
    table.setVerticalScrollMode(QAbstractItemView.ScrollMode.ScrollPerPixel)
    table.verticalHeader().hide()
    table.verticalHeader().setSectionResizeMode(QHeaderView.ResizeMode.Fixed)
    table.horizontalHeader().setHighlightSections(False)
    # Headers ask whether whole columns are selected, line by line: they get a selection of their own, always empty.
    table.horizontalHeader().setSelectionModel(QItemSelectionModel(model, table))
    table.verticalHeader().setSelectionModel(QItemSelectionModel(model, table))
    copy = QAction("Copy lines", table)
    copy.setShortcut(QKeySequence(QKeySequence.StandardKey.Copy))
    copy.setShortcutContext(Qt.ShortcutContext.WidgetShortcut)
    copy.setIcon(theme.icon("copy"))
    copy.triggered.connect(lambda: copy_lines(table))
    table.addAction(copy)
    table.setContextMenuPolicy(Qt.ContextMenuPolicy.ActionsContextMenu)
    return table


def copy_lines(table: QTableView) -> None:
    """The selected lines, tab by tab; all that are listed when none is."""
    model = table.model()
    rows = selected_lines(table) or range(model.rowCount())
    columns = range(model.columnCount())
    lines = [
        "\t".join(str(model.data(model.index(row, c), Qt.ItemDataRole.DisplayRole)) for c in columns) for row in rows
    ]
    QGuiApplication.clipboard().setText("\n".join(lines))


def selected_lines(table: QTableView) -> list[int]:
    """The selected lines, ascending, from ranges: asking for every cell takes seconds for 50,000 of them."""
    parts = table.selectionModel().selection()
    runs = {range(part.top(), part.bottom() + 1) for part in parts}  # type: ignore[attr-defined]
    if len(runs) == 1:
        return list(*runs)
    return sorted({row for run in runs for row in run})
