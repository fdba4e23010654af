"""A list of records under a line to type in, as the command palette and the strategy picker have it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from PySide6.QtCore import QAbstractListModel, QModelIndex, QObject, Qt

# A record itself, for whoever paints its line.
RECORD = Qt.ItemDataRole.UserRole


class RecordList(QAbstractListModel):
    """text and tip say what is shown of a record."""

    def __init__(self, parent: QObject, text: Callable[[Any], str], tip: Callable[[Any], str]) -> None:
        super().__init__(parent)
        self._text, self._tip = text, tip
        self.records: Sequence[Any] = ()

    def show(self, records: Sequence[Any]) -> None:
        self.beginResetModel()
        self.records = records
        self.endResetModel()

    def rowCount(self, parent=QModelIndex()) -> int:  # noqa: B008
        return 0 if parent.isValid() else len(self.records)

    def data(self, index, role: int = Qt.ItemDataRole.DisplayRole):
        if not index.isValid():
            return None
        record = self.records[index.row()]
        if role == Qt.ItemDataRole.DisplayRole:
            return self._text(record)
        if role == Qt.ItemDataRole.ToolTipRole:
            return self._tip(record)
        return record if role == RECORD else None
