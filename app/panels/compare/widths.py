"""How wide the columns of compared tensors are: as wide as what stands in them, and the names get the rest. Names are
shortened in their middle down to a minimum. Where there is no room for all columns, those that have room are seen
whole, none is cut, and the others are reached by scrolling sideways.
"""

from __future__ import annotations

from collections.abc import Sequence

from PySide6.QtCore import QEvent, QObject, Slot
from PySide6.QtWidgets import QTableView

from app.cells import PAD, WordsDelegate
from app.panels.compare.model import ComparedModel
from app.panels.compare.state import COLUMNS, PLACE, cell
from app.theme import current

# Pixels that names have at least where they are that long, and those beside a word of the header. Lines that are looked
# at to see how wide a column must be.
NAMES, BESIDE, LOOKED_AT = 176, 8, 100
# Of the texts of a column, so many with the most characters are measured.
MEASURED = 4


class Widths(QObject):
    """fit() after other tensors or other columns; a width that was set by hand stays until then."""

    def __init__(self, table: QTableView, model: ComparedModel) -> None:
        super().__init__(table)
        self._table, self._model = table, model
        self._fitting = self._by_hand = False
        self._names = 0
        table.horizontalHeader().sectionResized.connect(self._resized)
        table.viewport().installEventFilter(self)
        current().resized.connect(self.fit)

    @Slot()
    def fit(self) -> None:
        header, metrics = self._table.horizontalHeader(), self._table.fontMetrics()
        # A little more than it measures: an arrow from another font is a fraction of a pixel wider when painted.
        room = 2 * (PAD + WordsDelegate.margin()) + 4
        self._by_hand, self._fitting = False, True
        for section in range(self._model.columnCount()):
            column = COLUMNS[PLACE[self._model.column_id(section)]]
            longest = sorted(self._texts(column.id), key=len)[-MEASURED:]
            words = max(metrics.horizontalAdvance(text) for text in (column.widest, *longest))
            title = header.fontMetrics().horizontalAdvance(column.title.format(unit=self._model.unit[0]))
            width = max(title + 2 * BESIDE, words + room)
            if section:
                header.resizeSection(section, width)
            else:
                # Before the first tensors came nobody knows how long names are.
                self._names = min(current().px(NAMES), width) if self._model.rowCount() else current().px(NAMES)
        self._fitting = False
        self._fit_names()

    def _texts(self, column: str) -> set[str]:
        count = self._model.rowCount()
        step = max(1, count // LOOKED_AT)
        unit = self._model.unit[1]
        return {cell(self._model.tensor(row), column, unit) for row in range(0, count, step)}

    def _fit_names(self) -> None:
        """The names' column takes what is left by the columns that have room beside it."""
        header, width = self._table.horizontalHeader(), self._table.viewport().width()
        sizes = [header.sectionSize(section) for section in range(1, self._model.columnCount())]
        tied = [COLUMNS[PLACE[self._model.column_id(section)]].tied for section in range(1, self._model.columnCount())]
        self._fitting = True
        header.resizeSection(0, max(self._names, width - beside(sizes, tied, width - self._names)))
        self._fitting = False

    @Slot(int, int, int)
    def _resized(self, section: int, before: int, now: int) -> None:
        self._by_hand = self._by_hand or not self._fitting

    def eventFilter(self, watched: QObject, event: QEvent) -> bool:
        if event.type() == QEvent.Type.Resize and not self._by_hand:
            self._fit_names()
        return False


def beside(sizes: Sequence[int], tied: Sequence[bool], room: int) -> int:
    """How much of the room the first columns take, as many as fit whole. tied: a column that is not shown without the
    next one."""
    taken = best = 0
    for size, held in zip(sizes, tied, strict=True):
        taken += size
        if taken > room:
            break
        if not held:
            best = taken
    return best
