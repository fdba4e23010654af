"""How plain tables look: rows of the theme's height, the text of cells in line with the words of the header above."""

from __future__ import annotations

from PySide6.QtCore import QModelIndex, QObject, QPersistentModelIndex, QSize, Qt, Slot
from PySide6.QtGui import QPainter, QPalette
from PySide6.QtWidgets import QApplication, QStyle, QStyledItemDelegate, QStyleOptionViewItem, QTableView

from app.theme import current

# Pixels by which the header's words stand further in than a cell's would.
PAD = 5
SELECTED, FOCUSED = QStyle.StateFlag.State_Selected.value, QStyle.StateFlag.State_HasFocus.value
ACTIVE = QStyle.StateFlag.State_Active.value
LEFT = Qt.AlignmentFlag.AlignLeft.value | Qt.AlignmentFlag.AlignVCenter.value


class PaddedDelegate(QStyledItemDelegate):
    """Cells as Qt paints them, moved in by PAD at both sides."""

    def paint(
        self, painter: QPainter, option: QStyleOptionViewItem, index: QModelIndex | QPersistentModelIndex
    ) -> None:
        # Called for every cell that is painted: flags as plain numbers, and the option changed in place and put back.
        state, rect = option.state, option.rect
        if state.value & SELECTED:
            painter.fillRect(rect, option.palette.highlight())
        focused = state.value & FOCUSED
        if focused:
            option.state = state & ~QStyle.StateFlag.State_HasFocus
        option.rect = rect.adjusted(PAD, 0, -PAD, 0)
        super().paint(painter, option, index)
        option.rect = rect
        if focused:
            option.state = state
            painter.setPen(current().colors.accent)
            painter.drawRect(rect.adjusted(0, 0, -1, -1))

    def sizeHint(self, option: QStyleOptionViewItem, index: QModelIndex | QPersistentModelIndex) -> QSize:
        return super().sizeHint(option, index) + QSize(2 * PAD, 0)


class WordsDelegate(PaddedDelegate):
    """For tables that hold nothing but words in one colour. Qt asks a model for seven things per cell, icons and fonts
    among them, and a screen of some hundred cells takes three times as long."""

    def paint(
        self, painter: QPainter, option: QStyleOptionViewItem, index: QModelIndex | QPersistentModelIndex
    ) -> None:
        model, rect, palette, state = index.model(), option.rect, option.palette, option.state.value
        text = model.data(index, Qt.ItemDataRole.DisplayRole)
        group = QPalette.ColorGroup.Active if state & ACTIVE else QPalette.ColorGroup.Inactive
        role = QPalette.ColorRole.Text
        if state & SELECTED:
            painter.fillRect(rect, palette.brush(group, QPalette.ColorRole.Highlight))
            role = QPalette.ColorRole.HighlightedText
        if text:
            margin = PAD + self.margin()
            inner = rect.adjusted(margin, 0, -margin, 0)
            side = model.data(index, Qt.ItemDataRole.TextAlignmentRole)
            flags = int(side) if isinstance(side, int) else side.value if side is not None else LEFT
            painter.setPen(palette.color(group, role))
            shown = option.fontMetrics.elidedText(str(text), option.textElideMode, inner.width())
            painter.drawText(inner, flags | Qt.TextFlag.TextSingleLine.value, shown)
        if state & FOCUSED:
            painter.setPen(current().colors.accent)
            painter.drawRect(rect.adjusted(0, 0, -1, -1))

    @staticmethod
    def margin() -> int:
        """Pixels that the style leaves free beside a cell's text."""
        return QApplication.style().pixelMetric(QStyle.PixelMetric.PM_FocusFrameHMargin) + 1


def dress(table: QTableView, words: bool = False) -> None:
    """Whole rows to select, without grid and numbers; of the theme's height, now and whenever it changes; cells in line
    with their headers, which look the same whatever is selected.

    words  the cells hold nothing but words
    """
    table.setShowGrid(False)
    table.setSelectionBehavior(QTableView.SelectionBehavior.SelectRows)
    table.verticalHeader().hide()
    table.horizontalHeader().setHighlightSections(False)
    # Whoever sorts by its columns says so.
    table.horizontalHeader().setSectionsClickable(False)
    table.setItemDelegate(WordsDelegate(table) if words else PaddedDelegate(table))
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
