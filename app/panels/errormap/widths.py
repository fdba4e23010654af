"""How wide the columns of the worst-first list are, by the size of text, and which are left out where there is no room:
a list without names is of no use."""

from __future__ import annotations

from PySide6.QtCore import QEvent, QObject, Qt
from PySide6.QtWidgets import QTableView

from app.columns import fitting, show_only

# Widest that usually stands in a column, by section; names take the rest.
USUAL = {1: "int4-g128-asym", 2: "−10.0", 3: "0.00012", 4: "0.00012", 5: "0.999999"}
# A name is read from so many digits' width on.
NAME = 20
# What is given up first: the relative MSE says what SQNR says, and so does nearly the cosine.
SPARE = (3, 5, 4)
# Pixels beside a text, on both sides together.
BESIDE = 18


class Widths(QObject):
    """Follows the table's width and font from its making on."""

    def __init__(self, table: QTableView) -> None:
        super().__init__(table)
        self._table = table
        self._needed: dict[int, int] = {}
        self.fit()
        for watched in (table, table.horizontalHeader(), table.viewport()):
            watched.installEventFilter(self)

    def fit(self) -> None:
        """For another size of text."""
        header, metrics, model = self._table.horizontalHeader(), self._table.fontMetrics(), self._table.model()
        for section, usual in USUAL.items():
            title = model.headerData(section, Qt.Orientation.Horizontal)
            widest = max(header.fontMetrics().horizontalAdvance(title), metrics.horizontalAdvance(usual))
            self._needed[section] = widest + BESIDE
            header.resizeSection(section, self._needed[section])
        self.show()

    def show(self) -> None:
        """Those columns that leave room for names."""
        table, header = self._table, self._table.horizontalHeader()
        # Columns may have been dragged to another width.
        self._needed |= {s: header.sectionSize(s) for s in USUAL if not table.isColumnHidden(s)}
        room = table.viewport().width() - table.fontMetrics().horizontalAdvance("0" * NAME)
        show_only(table, fitting(self._needed, room, SPARE), USUAL)

    def eventFilter(self, watched: QObject, event: QEvent) -> bool:
        # The kind first: of what is being taken apart nothing must be asked.
        if event.type() == QEvent.Type.FontChange:
            self.fit()  # the header's font comes after the table's
        elif event.type() == QEvent.Type.Resize and watched is self._table.viewport():
            self.show()
        return super().eventFilter(watched, event)
