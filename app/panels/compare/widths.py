"""How wide the columns of compared tensors are: as wide as what stands in them, and the names get the rest. Names are
shortened in their middle down to a minimum. Where there is no room for all columns, some are given up: what they say is
in the tooltip of the line. The header's menu shows all of them: those that have room are seen whole, none is cut, and
the others are reached by scrolling sideways.
"""

from __future__ import annotations

from collections.abc import Sequence

from PySide6.QtCore import QEvent, QObject, QPoint, Qt, Slot
from PySide6.QtWidgets import QMenu, QTableView

from app.cells import PAD, WordsDelegate
from app.columns import fitting, show_only
from app.panels.compare.model import ComparedModel
from app.panels.compare.state import COLUMNS, PLACE, cell
from app.theme import current

# Pixels that names have at least where they are that long, and those beside a word of the header. Lines that are looked
# at to see how wide a column must be.
NAMES, BESIDE, LOOKED_AT = 160, 8, 100
# What is given up first. Beside the distances to a common source, that between the two files says the least.
SPARE = ("cosine", "mse", "max", "note")
SOURCED = (*SPARE, "sqnr", "dtype")
# Of the texts of a column, so many with the most characters are measured.
MEASURED = 4


class Widths(QObject):
    """fit() after other tensors or other columns; a width that was set by hand stays until then."""

    def __init__(self, table: QTableView, model: ComparedModel) -> None:
        super().__init__(table)
        self._table, self._model = table, model
        self._fitting = self._by_hand = False
        self._names = 0
        self.all_columns = False
        header = table.horizontalHeader()
        header.sectionResized.connect(self._resized)
        header.sortIndicatorChanged.connect(self._look)
        header.setContextMenuPolicy(Qt.ContextMenuPolicy.CustomContextMenu)
        header.customContextMenuRequested.connect(self._menu)
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
        self._show()

    @Slot()
    def _look(self) -> None:
        """Another width of the table, or another column that it is sorted by."""
        if not self._by_hand:
            self._show()

    def _show(self) -> None:
        """Hides what has no room, and gives the names the rest."""
        model, table = self._model, self._table
        header, width = table.horizontalHeader(), table.viewport().width()
        sections = range(model.columnCount())
        self._fitting = True
        show_only(table, sections, sections)  # the size of what is hidden is 0
        needed = {section: header.sectionSize(section) for section in sections} | {0: self._names}
        by_id = {model.column_id(section): section for section in sections}
        kept = {0, header.sortIndicatorSection()}
        spare = [by_id[c] for c in (SOURCED if "source_a" in by_id else SPARE) if c in by_id and by_id[c] not in kept]
        shown = set(sections) if self.all_columns else fitting(needed, width, spare)
        sizes = [needed[section] for section in sections if section and section in shown]
        tied = [COLUMNS[PLACE[model.column_id(section)]].tied for section in sections if section and section in shown]
        header.resizeSection(0, max(self._names, width - beside(sizes, tied, width - self._names)))
        show_only(table, shown, sections)
        self._fitting = False

    @Slot(QPoint)
    def _menu(self, point: QPoint) -> None:
        menu = QMenu(self._table)
        menu.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        action = menu.addAction("All columns, scrolling sideways")
        action.setCheckable(True)
        action.setChecked(self.all_columns)
        action.toggled.connect(self.show_all)
        menu.popup(self._table.horizontalHeader().mapToGlobal(point))

    @Slot(bool)
    def show_all(self, wanted: bool) -> None:
        """Whether columns that have no room are shown, too."""
        self.all_columns, self._by_hand = wanted, False
        self._show()

    def _texts(self, column: str) -> set[str]:
        count = self._model.rowCount()
        step = max(1, count // LOOKED_AT)
        unit = self._model.unit[1]
        return {cell(self._model.tensor(row), column, unit) for row in range(0, count, step)}

    @Slot(int, int, int)
    def _resized(self, section: int, before: int, now: int) -> None:
        self._by_hand = self._by_hand or not self._fitting

    def eventFilter(self, watched: QObject, event: QEvent) -> bool:
        if event.type() == QEvent.Type.Resize:
            self._look()
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
