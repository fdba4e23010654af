"""The compared tensors as a table of text."""

from __future__ import annotations

from typing import Any

from PySide6.QtCore import QAbstractTableModel, QModelIndex, QObject, QPersistentModelIndex, Qt

from app.glossary import explain
from app.panels.compare.state import COLUMNS, CompareState, cell, tooltip
from core.analysis.compare import ComparedTensor

Index = QModelIndex | QPersistentModelIndex
_RIGHT = int(Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter)
_LEFT = int(Qt.AlignmentFlag.AlignLeft | Qt.AlignmentFlag.AlignVCenter)
ALL_COLUMNS = "A right click here shows columns that have no room, too."
_PAIR_TITLES = {"metadata": ("key", "in A", "in B"), "lonely": ("tensor", "where", "")}


class ComparedModel(QAbstractTableModel):
    """Reads the state; call `grow` after tensors came in, `anew` after anything else changed."""

    def __init__(self, state: CompareState, parent: QObject) -> None:
        super().__init__(parent)
        self._state = state
        self._columns = state.columns
        self._count = 0
        self.unit = state.unit

    def anew(self) -> None:
        self.beginResetModel()
        self.unit = self._state.unit
        self._columns = self._state.columns
        self._count = len(self._state.order)
        self.endResetModel()

    def grow(self) -> None:
        count = len(self._state.order)
        if count > self._count:
            self.beginInsertRows(QModelIndex(), self._count, count - 1)
            self._count = count
            self.endInsertRows()
        if self.unit != self._state.unit:
            self.unit = self._state.unit
            self.headerDataChanged.emit(Qt.Orientation.Horizontal, 0, len(self._columns) - 1)
            self.dataChanged.emit(self.index(0, 0), self.index(self._count - 1, len(self._columns) - 1))

    def tensor(self, row: int) -> ComparedTensor:
        return self._state.rows[self._state.order[row]]

    def words(self, row: int) -> list[str]:
        """What stands in a line, by section."""
        tensor = self.tensor(row)
        return [cell(tensor, COLUMNS[i].id, self.unit[1]) for i in self._columns]

    def side(self, section: int) -> int:
        """The alignment of a column's cells."""
        return _RIGHT if COLUMNS[self._columns[section]].number else _LEFT

    def column_id(self, section: int) -> str:
        return COLUMNS[self._columns[section]].id

    def section_of(self, id: str) -> int:
        """Where a column stands, −1 when it is not shown."""
        return next((i for i, c in enumerate(self._columns) if COLUMNS[c].id == id), -1)

    def nothing(self) -> str:
        """What stands there instead of lines."""
        return self._state.nothing("tensors")

    def rowCount(self, parent: Index = QModelIndex()) -> int:  # noqa: B008
        return 0 if parent.isValid() else self._count

    def columnCount(self, parent: Index = QModelIndex()) -> int:  # noqa: B008
        return 0 if parent.isValid() else len(self._columns)

    def data(self, index: Index, role: int = Qt.ItemDataRole.DisplayRole) -> Any:
        if not index.isValid():
            return None
        column = COLUMNS[self._columns[index.column()]]
        if role == Qt.ItemDataRole.DisplayRole:
            return cell(self.tensor(index.row()), column.id, self.unit[1])
        if role == Qt.ItemDataRole.TextAlignmentRole:
            return _RIGHT if column.number else _LEFT
        if role == Qt.ItemDataRole.ToolTipRole:
            return tooltip(self.tensor(index.row()))
        return None

    def headerData(self, section: int, orientation: Qt.Orientation, role: int = Qt.ItemDataRole.DisplayRole) -> Any:
        if orientation != Qt.Orientation.Horizontal or not 0 <= section < len(self._columns):
            return None
        column = COLUMNS[self._columns[section]]
        if role == Qt.ItemDataRole.DisplayRole:
            return column.title.format(unit=self.unit[0])
        if role == Qt.ItemDataRole.TextAlignmentRole:
            return _RIGHT if column.number else _LEFT
        if role == Qt.ItemDataRole.ToolTipRole:
            return "\n".join((*((f"{column.full}.",) if column.full else ()), explain(column.term), ALL_COLUMNS))
        return None


class PairsModel(QAbstractTableModel):
    """Metadata that differ, or tensors without a counterpart."""

    def __init__(self, state: CompareState, parent: QObject) -> None:
        super().__init__(parent)
        self._state = state
        self._lines: list[tuple[str, str, str]] = []

    def anew(self) -> None:
        self.beginResetModel()
        self._lines = self._state.pairs()
        self.endResetModel()

    def words(self, row: int) -> tuple[str, str, str]:
        """What stands in a line, by section."""
        return self._lines[row]

    def side(self, section: int) -> int:
        """The alignment of a column's cells."""
        return _LEFT

    def nothing(self) -> str:
        """What stands there instead of lines."""
        return self._state.nothing(self._state.view)

    def rowCount(self, parent: Index = QModelIndex()) -> int:  # noqa: B008
        return 0 if parent.isValid() else len(self._lines)

    def columnCount(self, parent: Index = QModelIndex()) -> int:  # noqa: B008
        return 0 if parent.isValid() else 3

    def data(self, index: Index, role: int = Qt.ItemDataRole.DisplayRole) -> Any:
        if index.isValid() and role in (Qt.ItemDataRole.DisplayRole, Qt.ItemDataRole.ToolTipRole):
            return self._lines[index.row()][index.column()]
        return None

    def headerData(self, section: int, orientation: Qt.Orientation, role: int = Qt.ItemDataRole.DisplayRole) -> Any:
        if orientation == Qt.Orientation.Horizontal and role == Qt.ItemDataRole.DisplayRole:
            return _PAIR_TITLES.get(self._state.view, ("", "", ""))[section]
        if orientation == Qt.Orientation.Horizontal and role == Qt.ItemDataRole.TextAlignmentRole:
            return _LEFT
        return None
