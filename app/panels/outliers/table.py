"""The list of rows or columns that reach the threshold, as a table."""

from __future__ import annotations

import math

from PySide6.QtCore import QAbstractTableModel, QModelIndex, QObject, Qt

from app.glossary import about
from app.panels.outliers.state import Line
from app.plotting.words import percent, short


class LineModel(QAbstractTableModel):
    """show(lines, word): word is what a line is, "column"."""

    def __init__(self, parent: QObject) -> None:
        super().__init__(parent)
        self.lines: list[Line] = []
        self._heads: list[str] = []

    def show(self, lines: list[Line], word: str) -> None:
        self.beginResetModel()
        self.lines = lines
        self._heads = [word, "largest |w|", "× RMS", "kurtosis", "energy"]
        if any(not math.isnan(line.x) for line in lines):
            self._heads.append("largest |x|")
        self.endResetModel()

    def rowCount(self, parent=QModelIndex()) -> int:  # noqa: B008
        return 0 if parent.isValid() else len(self.lines)

    def columnCount(self, parent=QModelIndex()) -> int:  # noqa: B008
        return 0 if parent.isValid() else len(self._heads)

    def headerData(self, section: int, orientation: Qt.Orientation, role: int = Qt.ItemDataRole.DisplayRole):
        if orientation != Qt.Orientation.Horizontal or section >= len(self._heads):
            return None
        if role == Qt.ItemDataRole.DisplayRole:
            return self._heads[section]
        if role == Qt.ItemDataRole.ToolTipRole:
            return about(self._heads[section])
        if role == Qt.ItemDataRole.TextAlignmentRole:
            return Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter
        return None

    def data(self, index, role: int = Qt.ItemDataRole.DisplayRole):
        if not index.isValid():
            return None
        if role == Qt.ItemDataRole.TextAlignmentRole:
            return Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter
        if role != Qt.ItemDataRole.DisplayRole:
            return None
        line = self.lines[index.row()]
        return (
            f"{line.index:,}",
            _number(line.peak),
            f"{line.times_rms:,.1f}" if math.isfinite(line.times_rms) else "–",
            f"{line.kurtosis:,.1f}" if math.isfinite(line.kurtosis) else "–",
            percent(100 * line.energy, True),
            _number(line.x),
        )[index.column()]


def _number(value: float) -> str:
    return short(value, True) if math.isfinite(value) else "–"
