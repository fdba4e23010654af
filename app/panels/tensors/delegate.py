"""Sends Qt's wish for an editor on to the panel: the strategy picker is a popover, not a widget inside the cell. Cells
are painted by painting.py."""

from __future__ import annotations

from PySide6.QtCore import QModelIndex, QPersistentModelIndex, Signal
from PySide6.QtWidgets import QStyledItemDelegate, QStyleOptionViewItem, QWidget


class TensorDelegate(QStyledItemDelegate):
    """edit_requested(index) instead of an editor of Qt's own."""

    edit_requested = Signal(QModelIndex)

    def createEditor(
        self, parent: QWidget, option: QStyleOptionViewItem, index: QModelIndex | QPersistentModelIndex
    ) -> QWidget:
        self.edit_requested.emit(index.model().index(index.row(), index.column()))
        return None  # type: ignore[return-value]  # Qt: no editor
