"""The table widget itself: selection by ranges, keys, fold marks. Knows the model, nothing of the session."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import TYPE_CHECKING

from PySide6.QtCore import (
    QByteArray,
    QEvent,
    QItemSelection,
    QItemSelectionModel,
    QModelIndex,
    QPoint,
    QRect,
    QSignalBlocker,
    Qt,
    QTimer,
    Signal,
    Slot,
)
from PySide6.QtGui import QKeyEvent, QMouseEvent, QPainter, QPaintEvent, QResizeEvent
from PySide6.QtWidgets import QAbstractItemView, QApplication, QHeaderView, QTableView, QWidget

from app.panels.tensors.columns import COLUMNS, PLACE
from app.panels.tensors.model import TensorModel
from app.panels.tensors.painting import FOLD, INDENT, PAD, LinePainter
from app.panels.tensors.state import Arrangement, runs
from app.theme import Theme

if TYPE_CHECKING:
    import numpy as np

# Of the room that is over: which part a column takes, and how many pixels at most.
SHARES = {"name": (0.5, 280), "strategy": (0.1, 80), "size": (0.15, 80), "sqnr": (0.15, 80)}
# Lines do not move by themselves while what is selected would lie in more places than this.
MOST_PARTS = 400
# How often one looks whether a column is still being dragged.
RELEASED_MS = 100


class TensorTable(QTableView):
    """A table whose first column folds. typed(text): a printable key that belongs to the filter."""

    typed = Signal(str)
    fold_asked = Signal(list, bool)
    viewport_changed = Signal()

    def __init__(self, model: TensorModel, theme: Theme, parent: QWidget) -> None:
        super().__init__(parent)
        self.tensors = model
        self._theme = theme
        self._lines = LinePainter(theme, self)
        theme.changed.connect(self.viewport().update)
        self.setModel(model)
        self._chosen: np.ndarray | None = None  # bool [lines], made when it is asked for
        self.selectionModel().selectionChanged.connect(self._selection_changed)
        model.modelReset.connect(self._lines_changed)
        self.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
        self.setSelectionMode(QAbstractItemView.SelectionMode.ExtendedSelection)
        self.setEditTriggers(QAbstractItemView.EditTrigger.DoubleClicked | QAbstractItemView.EditTrigger.EditKeyPressed)
        self.setShowGrid(False)
        self.setWordWrap(False)
        self.setCornerButtonEnabled(False)
        self.setHorizontalScrollMode(QAbstractItemView.ScrollMode.ScrollPerPixel)
        self.setVerticalScrollMode(QAbstractItemView.ScrollMode.ScrollPerPixel)
        self.setFrameShape(QTableView.Shape.NoFrame)
        self.setTabKeyNavigation(False)
        self.setContextMenuPolicy(Qt.ContextMenuPolicy.CustomContextMenu)
        rows = self.verticalHeader()
        rows.hide()
        rows.setSectionResizeMode(QHeaderView.ResizeMode.Fixed)
        header = self.horizontalHeader()
        header.setHighlightSections(False)
        # Headers ask whether whole columns are selected, which asks the model about every row. They get a selection
        # of their own that stays empty.
        header.setSelectionModel(QItemSelectionModel(model, self))
        rows.setSelectionModel(QItemSelectionModel(model, self))
        header.setSectionsMovable(True)
        header.setSortIndicator(0, Qt.SortOrder.AscendingOrder)
        header.setSortIndicatorShown(True)
        header.setSectionsClickable(True)
        header.setMinimumSectionSize(40)
        for i, column in enumerate(COLUMNS):
            self.setColumnWidth(i, column.width)
        self._fitting = False
        self._fitted = True  # until the user drags a column: then widths are theirs
        self._released = QTimer(self)
        self._released.setSingleShot(True)
        self._released.setInterval(RELEASED_MS)
        self._released.timeout.connect(self._fill_up)
        theme.resized.connect(self._resize_lines)
        self._resize_lines()
        header.sectionResized.connect(self._resized)
        self.verticalScrollBar().valueChanged.connect(self.viewport_changed)

    def paintEvent(self, event: QPaintEvent) -> None:
        """All lines that the event touches."""
        painter = QPainter(self.viewport())
        try:
            painter.fillRect(event.rect(), self._theme.colors.base)
            painter.setFont(self._lines.font)
            self._paint_lines(painter, event.rect())
            if self.nothing_found:
                painter.setPen(self._theme.colors.muted)
                painter.drawText(self.viewport().rect(), Qt.AlignmentFlag.AlignCenter, "No tensor passes the filter")
            if self.hasFocus() and self.currentIndex().isValid():
                painter.setPen(self._theme.colors.accent)
                painter.drawRect(self.visualRect(self.currentIndex()).adjusted(0, 0, -1, -1))
        finally:
            painter.end()

    @property
    def nothing_found(self) -> bool:
        """Whether there are tensors, and the filter leaves none of them."""
        return self.tensors.rows is not None and len(self.tensors.rows) > 0 and not self.tensors.shown

    def _paint_lines(self, painter: QPainter, dirty: QRect) -> None:
        header = self.horizontalHeader()
        columns = []
        for visual in range(header.count()):
            section = header.logicalIndex(visual)
            left, width = header.sectionViewportPosition(section), header.sectionSize(section)
            if width and left <= dirty.right() and left + width > dirty.left():
                columns.append((COLUMNS[section].id, left, width))
        count = self.tensors.rowCount()
        first, last = self.rowAt(dirty.top()), self.rowAt(dirty.bottom())
        if not columns or not count or first < 0:
            return
        chosen = self._marks()
        for line in range(first, count if last < 0 else min(count, last + 1)):
            top = self.rowViewportPosition(line)
            self._lines.paint(painter, self.tensors, line, top, columns, bool(chosen[line]))

    def changeEvent(self, event: QEvent) -> None:
        super().changeEvent(event)
        if event.type() in (QEvent.Type.FontChange, QEvent.Type.DevicePixelRatioChange):
            self._lines = LinePainter(self._theme, self)

    def fold_rect(self, line: int) -> QRect:
        """Where the fold mark of a line is."""
        cell = self.visualRect(self.tensors.index(line, PLACE["name"]))
        return QRect(cell.left() + PAD + self.tensors.depth(line) * INDENT, cell.top(), FOLD, cell.height())

    def fit(self) -> None:
        """Shares the room out: names take half of what is over, bars some, the last column the rest. Room for the
        scroll bar is kept free: when it comes, no column changes, or Qt would paint everything once more."""
        if not self._fitted:
            return
        header, px = self.horizontalHeader(), self._theme.px
        shown = [c for i, c in enumerate(COLUMNS) if not self.isColumnHidden(i)]
        shown.sort(key=lambda c: header.visualIndex(PLACE[c.id]))
        room = self.contentsRect().width() - self.verticalScrollBar().sizeHint().width()
        over = max(0, room - sum(px(c.width) for c in shown))
        self._fitting = True
        for column in shown:
            share, most = SHARES.get(column.id, (0.0, 0))
            width = px(column.width) + min(int(over * share), most)
            if column is shown[-1]:
                width = max(header.minimumSectionSize(), room)
            room -= width
            self.setColumnWidth(PLACE[column.id], width)
        self._fitting = False

    def show_column(self, column: int, shown: bool) -> None:
        self.setColumnHidden(column, not shown)
        self.fit()

    def save_widths(self) -> bytes:
        """Columns as they are, and whether the user sized them."""
        return (b"f" if self._fitted else b"u") + bytes(self.horizontalHeader().saveState().data())

    def restore_widths(self, state: bytes) -> None:
        """What save_widths gave."""
        if self.horizontalHeader().restoreState(QByteArray(state[1:])):
            self._fitted = state[:1] == b"f"
            self._fill_up()
        self.fit()

    def _resized(self, section: int, before: int, after: int) -> None:
        if self._fitted and not self._fitting and QApplication.mouseButtons() & Qt.MouseButton.LeftButton:
            self._fitted = False
            self._released.start()

    @Slot()
    def _fill_up(self) -> None:
        """Where widths are the user's, the last column fills what they leave free. Not while one is dragged: Qt would
        not hear of it."""
        if QApplication.mouseButtons() & Qt.MouseButton.LeftButton:
            self._released.start()
        else:
            self.horizontalHeader().setStretchLastSection(not self._fitted)

    @Slot()
    def _resize_lines(self) -> None:
        """The theme has another size of text, or more air."""
        self._lines = LinePainter(self._theme, self)
        rows = self.verticalHeader()
        rows.setMinimumSectionSize(self._theme.row)
        rows.setDefaultSectionSize(self._theme.row)
        self.horizontalHeader().setFixedHeight(self._theme.row + 2)
        self.fit()

    def visible_lines(self) -> range:
        """Lines on screen."""
        count = self.tensors.rowCount()
        first = max(0, self.rowAt(0))
        last = self.rowAt(self.viewport().height() - 1)
        return range(first, count if last < 0 else last + 1)

    def selected_lines(self) -> list[int]:
        """Ascending."""
        import numpy as np

        return np.flatnonzero(self._marks()).tolist()

    def reorder(self, ordered: np.ndarray, arrangement: Arrangement, held: int = -1) -> bool:
        """The same lines in another order. What is selected and what is current stay so; the view stays at its height,
        or moves along with the line `held`, if that is ≥ 0. False, and nothing moves, where what is selected would lie
        in so many places that Qt takes long to be told."""
        import numpy as np

        moves = self.tensors.moves(arrangement)
        if moves is None:
            return True
        parts = runs(np.sort(moves[self._marks()]))
        if len(parts) > MOST_PARTS:
            return False
        bar, chosen, current = self.verticalScrollBar(), self.selectionModel(), self.currentIndex()
        row, column, height = current.row(), current.column(), bar.value()
        # Nothing is chosen, and nothing is scrolled to: nobody is told.
        with QSignalBlocker(chosen):
            chosen.reset()  # or Qt would note every single line of the selection
            self.tensors.reorder(ordered, arrangement, moves)
            if row >= 0:
                at = self.tensors.index(int(moves[row]), column)
                chosen.setCurrentIndex(at, QItemSelectionModel.SelectionFlag.NoUpdate)
            selection = QItemSelection()
            for first, end in parts:
                selection.append(self.tensors.lines_between(first, end))
            chosen.select(selection, QItemSelectionModel.SelectionFlag.Select)
        self._chosen = None
        self.executeDelayedItemsLayout()
        if held >= 0:
            height += (int(moves[held]) - held) * self.verticalHeader().defaultSectionSize()
        bar.setValue(height)
        return True

    def select_lines(self, lines: Sequence[int]) -> None:
        """These lines (ascending) and no others; the current one stays where it is one of them."""
        selection = QItemSelection()
        for first, end in runs(lines):
            selection.append(self.tensors.lines_between(first, end))
        chosen, current = self.selectionModel(), self.currentIndex()
        if chosen.hasSelection():
            # Qt holds every range of the new selection against every one of the old: seconds for thousands of them.
            chosen.reset()
            self._chosen = None
            self.viewport().update()
            if current.isValid():
                chosen.setCurrentIndex(current, QItemSelectionModel.SelectionFlag.NoUpdate)
        chosen.select(selection, QItemSelectionModel.SelectionFlag.Select)
        row = self.currentIndex().row()
        at = bisect_left(lines, row)
        if lines and (at == len(lines) or lines[at] != row):
            # The keyboard goes on from what is selected, not from where it was.
            start = self.tensors.index(lines[0], max(0, self.currentIndex().column()))
            chosen.setCurrentIndex(start, QItemSelectionModel.SelectionFlag.NoUpdate)

    def _marks(self) -> np.ndarray:
        """bool [lines]: which are selected. From ranges: asking for every index would take a second."""
        import numpy as np

        if self._chosen is None:
            self._chosen = np.zeros(self.tensors.rowCount(), bool)
            for part in self.selectionModel().selection():  # type: ignore[attr-defined]  # it iterates
                self._chosen[part.top() : part.bottom() + 1] = True
        return self._chosen

    def _selection_changed(self, *_: object) -> None:
        self._chosen = None

    @Slot()
    def _lines_changed(self) -> None:
        self._chosen = None
        # Now and not some time later: the scroll bar comes before the first painting instead of after it.
        self.executeDelayedItemsLayout()

    def resizeEvent(self, event: QResizeEvent) -> None:
        super().resizeEvent(event)
        self.fit()
        self.viewport_changed.emit()

    def mousePressEvent(self, event: QMouseEvent) -> None:
        index = self.indexAt(event.position().toPoint())
        if self._on_fold_mark(index, event.position().toPoint()):
            line = index.row()
            self.fold_asked.emit([line], not self.tensors.is_folded(line))
            return
        super().mousePressEvent(event)

    def mouseDoubleClickEvent(self, event: QMouseEvent) -> None:
        index = self.indexAt(event.position().toPoint())
        if index.isValid() and index.column() == PLACE["name"] and self.tensors.is_folded(index.row()) is not None:
            if not self._on_fold_mark(index, event.position().toPoint()):
                self.fold_asked.emit([index.row()], not self.tensors.is_folded(index.row()))
            return
        super().mouseDoubleClickEvent(event)

    def keyPressEvent(self, event: QKeyEvent) -> None:
        key, text = event.key(), event.text()
        plain = not event.modifiers() & ~(Qt.KeyboardModifier.ShiftModifier | Qt.KeyboardModifier.KeypadModifier)
        index = self.currentIndex()
        if key in (Qt.Key.Key_Left, Qt.Key.Key_Right) and plain and index.isValid():
            if self._fold_by_key(index, key == Qt.Key.Key_Left):
                return
        elif index.isValid() and (key == Qt.Key.Key_F2 or (plain and key in (Qt.Key.Key_Return, Qt.Key.Key_Enter))):
            self.edit(index.siblingAtColumn(PLACE["strategy"]))
            return
        elif plain and text.strip() and text.isprintable():
            self.typed.emit(text)
            return
        super().keyPressEvent(event)

    def _fold_by_key(self, index: QModelIndex, left: bool) -> bool:
        """Left closes a block or goes to its line, right opens it."""
        line = index.row()
        folded = self.tensors.is_folded(line)
        if folded is None:
            if not left or not self.tensors.grouped:
                return False
            while line > 0 and self.tensors.is_folded(line) is None:
                line -= 1
            self.setCurrentIndex(self.tensors.index(line, index.column()))
            return True
        if folded != left:
            self.fold_asked.emit([line], left)
        return True

    def _on_fold_mark(self, index: QModelIndex, point: QPoint) -> bool:
        if not index.isValid() or index.column() != PLACE["name"] or self.tensors.is_folded(index.row()) is None:
            return False
        return self.fold_rect(index.row()).contains(point)
