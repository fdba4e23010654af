"""The rules as a Qt model: one line per rule, pattern and strategy editable, rows that can be dragged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PySide6.QtCore import (
    QAbstractTableModel,
    QByteArray,
    QMimeData,
    QModelIndex,
    QObject,
    QPersistentModelIndex,
    Qt,
    Signal,
)
from PySide6.QtGui import QFont

from app.glossary import about
from app.panels.rules.state import HELP, RuleLine
from app.theme import Theme

Index = QModelIndex | QPersistentModelIndex
NO_PARENT = QModelIndex()
MIME = "application/x-quantbench-rule"
NUMBER, PATTERN, STRATEGY, MATCHED, WON, NOTE = range(6)
_TITLES = ("#", "tensors", "strategy", "matched", "won", "")
_TIPS = (
    about("#"),
    HELP,
    about("strategy", "Or a preset, or keep"),
    about("matched"),
    about("won"),
    "",
)
_LISTED = 20


class RulesModel(QAbstractTableModel):
    """pattern_typed and strategy_typed: (row, text); moved: (from, to)."""

    pattern_typed = Signal(int, str)
    strategy_typed = Signal(int, str)
    moved = Signal(int, int)

    def __init__(self, theme: Theme, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._theme = theme
        self._lines: list[RuleLine] = []

    @property
    def lines(self) -> list[RuleLine]:
        return self._lines

    def show(self, lines: list[RuleLine]) -> None:
        """Other contents; the same rows stay where they are when their number did not change."""
        if lines == self._lines:
            return
        if len(lines) == len(self._lines):
            self._lines = lines
            if lines:
                self.dataChanged.emit(self.index(0, 0), self.index(len(lines) - 1, NOTE))
            return
        self.beginResetModel()
        self._lines = lines
        self.endResetModel()

    def rowCount(self, parent: Index = NO_PARENT) -> int:
        return 0 if parent.isValid() else len(self._lines)

    def columnCount(self, parent: Index = NO_PARENT) -> int:
        return 0 if parent.isValid() else len(_TITLES)

    def headerData(self, section: int, orientation: Qt.Orientation, role: int = Qt.ItemDataRole.DisplayRole) -> Any:
        if orientation != Qt.Orientation.Horizontal or not 0 <= section < len(_TITLES):
            return None
        if role == Qt.ItemDataRole.DisplayRole:
            return _TITLES[section]
        if role == Qt.ItemDataRole.ToolTipRole:
            return _TIPS[section]
        return _alignment(section) if role == Qt.ItemDataRole.TextAlignmentRole else None

    def flags(self, index: Index) -> Qt.ItemFlag:
        if not index.isValid():
            return Qt.ItemFlag.ItemIsDropEnabled
        flags = Qt.ItemFlag.ItemIsEnabled | Qt.ItemFlag.ItemIsSelectable | Qt.ItemFlag.ItemIsDragEnabled
        flags |= Qt.ItemFlag.ItemNeverHasChildren
        if index.column() == STRATEGY or (index.column() == PATTERN and self._lines[index.row()].editable):
            flags |= Qt.ItemFlag.ItemIsEditable
        return flags

    def data(self, index: Index, role: int = Qt.ItemDataRole.DisplayRole) -> Any:
        if not index.isValid() or not 0 <= index.row() < len(self._lines):
            return None
        line, column = self._lines[index.row()], index.column()
        if role in (Qt.ItemDataRole.DisplayRole, Qt.ItemDataRole.EditRole):
            return self._text(index.row(), column)
        if role == Qt.ItemDataRole.ToolTipRole:
            return _tooltip(line, column)
        if role == Qt.ItemDataRole.TextAlignmentRole:
            return _alignment(column)
        if role == Qt.ItemDataRole.ForegroundRole:
            return self._color(line, column)
        if role == Qt.ItemDataRole.FontRole and line.shadowed and column == PATTERN:
            font = QFont()
            font.setStrikeOut(True)
            return font
        return None

    def setData(self, index: Index, value: Any, role: int = Qt.ItemDataRole.EditRole) -> bool:
        if role != Qt.ItemDataRole.EditRole or not index.isValid():
            return False
        text = str(value).strip()
        if text == self._text(index.row(), index.column()):
            return False
        if index.column() == PATTERN:
            self.pattern_typed.emit(index.row(), text)
        elif index.column() == STRATEGY:
            self.strategy_typed.emit(index.row(), text)
        else:
            return False
        return True

    def _text(self, row: int, column: int) -> str:
        line = self._lines[row]
        if column == NUMBER:
            return str(row + 1)
        if column == PATTERN:
            return line.pattern
        if column == STRATEGY:
            return line.strategy
        if column == NOTE:
            if line.shadowed:
                return f"{line.kind} · shadowed"
            return f"{line.kind} · matches nothing" if line.matched == 0 else line.kind
        count = line.matched if column == MATCHED else line.won
        return "…" if count is None else f"{count:,}"

    def _color(self, line: RuleLine, column: int) -> Any:
        colors = self._theme.colors
        if column == NOTE:
            return colors.caution_text if line.shadowed or line.matched == 0 else colors.muted
        if line.shadowed or column in (NUMBER, MATCHED):
            return colors.muted
        return None

    # Dragging

    def supportedDropActions(self) -> Qt.DropAction:
        return Qt.DropAction.MoveAction

    def mimeTypes(self) -> list[str]:
        return [MIME]

    def mimeData(self, indexes: Sequence[QModelIndex]) -> QMimeData:
        data = QMimeData()
        rows = sorted({index.row() for index in indexes})
        data.setData(MIME, QByteArray(str(rows[0]).encode() if rows else b""))
        return data

    def dropMimeData(self, data: QMimeData, action: Qt.DropAction, row: int, column: int, parent: Index) -> bool:
        """Asks for the move and returns False: the view must not remove the row itself."""
        if action != Qt.DropAction.MoveAction or not data.hasFormat(MIME):
            return False
        text = bytes(data.data(MIME).data())
        if not text.isdigit():
            return False
        origin = int(text)
        if row < 0:
            row = parent.row() if parent.isValid() else len(self._lines)
        to = row - 1 if row > origin else row
        if 0 <= origin < len(self._lines) and to != origin:
            self.moved.emit(origin, min(to, len(self._lines) - 1))
        return False


def _alignment(column: int) -> int:
    right = column in (NUMBER, MATCHED, WON)
    side = Qt.AlignmentFlag.AlignRight if right else Qt.AlignmentFlag.AlignLeft
    return int(side | Qt.AlignmentFlag.AlignVCenter)


def _tooltip(line: RuleLine, column: int) -> str:
    if column == PATTERN:
        if line.names:
            more = f"\n… and {len(line.names) - _LISTED:,} more" if len(line.names) > _LISTED else ""
            return "\n".join(line.names[:_LISTED]) + more
        return HELP
    if column == NOTE and line.shadowed:
        return "Rules before it take every tensor it matches; drag it up"
    return _TIPS[column]
