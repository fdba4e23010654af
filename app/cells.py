"""How the cells of plain tables are painted: text in line with the words of the header above it."""

from __future__ import annotations

from PySide6.QtCore import QModelIndex, QPersistentModelIndex
from PySide6.QtGui import QPainter
from PySide6.QtWidgets import QStyle, QStyledItemDelegate, QStyleOptionViewItem

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
        super().paint(painter, inner, index)
