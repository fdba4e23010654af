"""The two tables of the Compare panel: how they look, what is selected in them, and copying lines."""

from __future__ import annotations

from PySide6.QtCore import QAbstractTableModel, QItemSelectionModel, Qt
from PySide6.QtGui import QAction, QGuiApplication, QKeySequence
from PySide6.QtWidgets import QAbstractItemView, QHeaderView, QTableView, QWidget

from app.cells import dress
from app.theme import Theme


def listing_table(theme: Theme, model: QAbstractTableModel, parent: QWidget) -> QTableView:
    """A table of whole lines, which Ctrl+C and the menu copy."""
    table = QTableView(parent)
    table.setModel(model)
    dress(table, words=True)
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
