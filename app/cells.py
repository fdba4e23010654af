"""How plain tables look: rows of the theme's height, the text of cells in line with the words of the header above."""

from __future__ import annotations

from PySide6.QtCore import QModelIndex, QObject, QPersistentModelIndex, QSize, Slot
from PySide6.QtGui import QPainter
from PySide6.QtWidgets import QStyle, QStyledItemDelegate, QStyleOptionViewItem, QTableView

from app.theme import current

# Pixels by which the header's words stand further in than a cell's would.
PAD = 5


class PaddedDelegate(QStyledItemDelegate):
    """Cells as Qt paints them, moved in by PAD at both sides."""

    def paint(
        self, painter: QPainter, option: QStyleOptionViewItem, index: QModelIndex | QPersistentModelIndex
    ) -> None:
        if option.state & QStyle.StateFlag.State_Selected:
            painter.fillRect(option.rect, option.palette.highlight())
        inner = QStyleOptionViewItem(option)
        inner.rect = option.rect.adjusted(PAD, 0, -PAD, 0)
        inner.state &= ~QStyle.StateFlag.State_HasFocus
        super().paint(painter, inner, index)
        if option.state & QStyle.StateFlag.State_HasFocus:
            painter.setPen(current().colors.accent)
            painter.drawRect(option.rect.adjusted(0, 0, -1, -1))

    def sizeHint(self, option: QStyleOptionViewItem, index: QModelIndex | QPersistentModelIndex) -> QSize:
        return super().sizeHint(option, index) + QSize(2 * PAD, 0)


def dress(table: QTableView) -> None:
    """Whole rows to select, without grid and numbers; of the theme's height, now and whenever it changes; cells in line
    with their headers, which look the same whatever is selected."""
    table.setShowGrid(False)
    table.setSelectionBehavior(QTableView.SelectionBehavior.SelectRows)
    table.verticalHeader().hide()
    table.horizontalHeader().setHighlightSections(False)
    table.setItemDelegate(PaddedDelegate(table))
    follow_rows(table)


def follow_rows(table: QTableView) -> None:
    """Rows of the theme's height, now and whenever it changes."""
    _Rows(table)


class _Rows(QObject):
    """A child of the table, so that the theme lets go of it together with the table."""

    def __init__(self, table: QTableView) -> None:
        super().__init__(table)
        self._table, self._theme = table, current()
        self._theme.resized.connect(self.fit)
        self.fit()

    @Slot()
    def fit(self) -> None:
        rows = self._table.verticalHeader()
        rows.setMinimumSectionSize(self._theme.row)
        rows.setDefaultSectionSize(self._theme.row)
