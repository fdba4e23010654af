"""How wide the columns of the list beyond the threshold are: as their words need, and what is over is shared out. Where
there is no room for all, some are given up."""

from __future__ import annotations

from PySide6.QtCore import QEvent, QObject, Qt, Slot
from PySide6.QtWidgets import QHeaderView, QTableView

from app.cells import PAD, WordsDelegate
from app.columns import fitting, show_only

# What is given up first: kurtosis, then the multiple of the RMS.
SPARE = (3, 2)
# Pixels beside a word of the header, and lines whose words are measured: the largest come first.
BESIDE, MEASURED = 8, 50


class Widths(QObject):
    """Follows the table's lines, width and font from its making on."""

    def __init__(self, table: QTableView) -> None:
        super().__init__(table)
        self._table = table
        self._needed: dict[int, int] = {}
        table.horizontalHeader().setSectionResizeMode(QHeaderView.ResizeMode.Fixed)
        table.horizontalHeader().setMinimumSectionSize(1)
        table.model().modelReset.connect(self.fit)
        for watched in (table, table.horizontalHeader(), table.viewport()):
            watched.installEventFilter(self)
        self.fit()

    @Slot()
    def fit(self) -> None:
        """For other lines, or another size of text."""
        table, model, metrics = self._table, self._table.model(), self._table.fontMetrics()
        heads, across = table.horizontalHeader().fontMetrics(), Qt.Orientation.Horizontal
        room = 2 * (PAD + WordsDelegate.margin()) + 4
        lines = range(min(model.rowCount(), MEASURED))
        self._needed = {}
        for section in range(model.columnCount()):
            words = (metrics.horizontalAdvance(model.index(line, section).data()) for line in lines)
            title = heads.horizontalAdvance(model.headerData(section, across)) + 2 * BESIDE
            self._needed[section] = max(title, max(words, default=0) + room)
        self.show()

    def show(self) -> None:
        """Those columns that have room."""
        table, width = self._table, self._table.viewport().width()
        shown = sorted(fitting(self._needed, width, SPARE))
        over = max(0, width - sum(self._needed[s] for s in shown))
        for place, section in enumerate(shown):
            # The last pixels go where the first columns left them.
            part = over * (place + 1) // len(shown) - over * place // len(shown)
            table.setColumnWidth(section, self._needed[section] + part)
        show_only(table, shown, self._needed)

    def eventFilter(self, watched: QObject, event: QEvent) -> bool:
        # The kind first: of what is being taken apart nothing must be asked.
        if event.type() == QEvent.Type.FontChange:
            self.fit()  # the header's font comes after the table's
        elif event.type() == QEvent.Type.Resize and watched is self._table.viewport():
            self.show()
        return super().eventFilter(watched, event)
