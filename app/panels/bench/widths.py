"""How wide the columns of the bench's table are, and which are left out where there is no room: names come first."""

from __future__ import annotations

from typing import Protocol

from PySide6.QtCore import Qt
from PySide6.QtGui import QFont, QFontMetrics
from PySide6.QtWidgets import QStyle, QTableView

from app.cells import PAD
from app.columns import fitting, show_only

NAMES, MSE, WEIGHTED, TIME = 0, 4, 5, 6
# What is given up first: the relative MSE says what SQNR says.
SPARE = (MSE, TIME)
# The square of colour before a name, and its gap.
SQUARE = 24
# Pixels beside a word of the header.
BESIDE = 8


class Words(Protocol):
    """words(section): all that stands in a column."""

    def words(self, section: int) -> list[str]: ...


class Widths:
    """fit() after other rows, show() after another width of the table."""

    def __init__(self, table: QTableView, model: Words, sections: int) -> None:
        self._table, self._model, self._sections = table, model, sections
        self._needed: dict[int, int] = {}

    def fit(self, weighted: bool) -> None:
        """Columns as wide as what stands in them. Left to the table, it asks for every cell several times over."""
        table = self._table
        header, metrics = table.horizontalHeader(), table.fontMetrics()
        # A little more than it measures: what is painted may be a fraction of a pixel wider.
        room = 2 * (table.style().pixelMetric(QStyle.PixelMetric.PM_FocusFrameHMargin) + 1 + PAD) + 4
        bold = QFont(table.font())
        bold.setBold(True)
        self._needed = {}  # by section; without those that are not known
        for section in range(self._sections):
            if section == WEIGHTED and not weighted:
                continue
            # The strategy of the tensors themselves stands in bold.
            measured = QFontMetrics(bold) if section == NAMES else metrics
            words = max((measured.horizontalAdvance(text) for text in self._model.words(section)), default=0)
            # Not the header's own hint: there is none for a column that is hidden.
            title = self._table.model().headerData(section, Qt.Orientation.Horizontal)
            self._needed[section] = max(header.fontMetrics().horizontalAdvance(title) + 2 * BESIDE, words + room)
            if section != NAMES:
                header.resizeSection(section, self._needed[section])
        self._needed[NAMES] += SQUARE
        self.show()

    def show(self) -> None:
        """Those columns that have room."""
        table = self._table
        if self._needed:
            shown = fitting(self._needed, table.viewport().width(), SPARE)
            show_only(table, shown, range(self._sections))
