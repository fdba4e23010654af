"""The map itself, drawn with a painter: cells in colour, with their numbers where there is room, those not measured
hatched, kept ones with a dash, labels at the left and below, the selection outlined, a rectangle or a lasso to drag.
What the cells hold is the business of state.py."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from PySide6.QtCore import QEvent, QLineF, QPoint, QPointF, QRect, QRectF, QSize, Qt, Signal
from PySide6.QtGui import (
    QBrush,
    QColor,
    QContextMenuEvent,
    QFont,
    QFontMetrics,
    QImage,
    QKeyEvent,
    QMouseEvent,
    QPainter,
    QPaintEvent,
    QPen,
    QPolygonF,
)
from PySide6.QtWidgets import QSizePolicy, QWidget

from app.panels.errormap.lasso import inside
from app.panels.errormap.layout import KEPT, MEASURED
from app.panels.errormap.state import Cells
from app.plotting.maps import Scale, shaded
from app.theme import current

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

# Pixels: the lowest a line may get where there are many; the narrowest a column; how far both grow.
THIN, COLUMN, TALL, WIDE = 3, 4, 28, 96
# Up to so many lines each has room for its name; beyond, every so many.
MANY = 40
GAP = 8
# Labels and numbers, as a share of the window's font.
SMALL = 0.9


class MapCanvas(QWidget):
    """chosen(cells, add): a click, a rectangle or a lasso, as (line, column); add: to what is selected already
    hovered(line, column): −1, −1 when the mouse left; menu_asked(global position)

    lasso  dragging draws a line around cells instead of a rectangle over them; Alt does the other of both
    """

    chosen = Signal(object, bool)
    hovered = Signal(int, int)
    menu_asked = Signal(QPoint)

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._cells: Cells | None = None
        self._lines: Sequence[str] = ()
        self._columns: Sequence[str] = ()
        self._numbers: list[int] = []  # of the columns that have a label
        self._scale = Scale(0.0, 1.0)
        self._words: Callable[[float], str] = str
        self._selected: NDArray[np.bool_] | None = None
        self._press: QPoint | None = None
        self._at: QPoint | None = None
        self.lasso = False
        self._line: list[QPoint] = []  # of the lasso, while it is drawn
        self._current = (0, 0)  # of the keyboard
        self._left, self._label = 8, 8  # pixels: left of the field, and that a column's label takes
        self.setMouseTracking(True)
        self.setFocusPolicy(Qt.FocusPolicy.StrongFocus)
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Expanding)
        self.setAccessibleName("Error map")
        current().changed.connect(self.update)

    def show_cells(
        self,
        cells: Cells,
        lines: Sequence[str],
        columns: Sequence[str],
        scale: Scale,
        words: Callable[[float], str] = str,
    ) -> None:
        """words: a value as it is written into its cell."""
        known = lines is self._lines and columns is self._columns
        self._cells, self._lines, self._columns, self._scale = cells, lines, columns, scale
        self._words = words
        self._current = min(self._current[0], len(lines) - 1), min(self._current[1], len(columns) - 1)
        if not known:
            self._numbers = [j for j, label in enumerate(columns) if label]
            self._fit()
        self.update()

    def _fit(self) -> None:
        """The least room: what does not fit is scrolled to."""
        self._measure()
        low = self._small().height() if len(self._lines) <= MANY else THIN
        self.setMinimumSize(self._left + COLUMN * len(self._columns) + GAP, low * len(self._lines) + self._bottom)

    def _small(self) -> QFontMetrics:
        """Of the labels, which are a little smaller than the window's font."""
        font = QFont(self.font())
        font.setPointSizeF(max(6.0, font.pointSizeF() * SMALL))
        return QFontMetrics(font)

    def changeEvent(self, event: QEvent) -> None:
        super().changeEvent(event)
        if event.type() == QEvent.Type.FontChange:
            self._fit()

    def show_selection(self, selected: NDArray[np.bool_] | None) -> None:
        """bool [lines, columns]: cells with a selected tensor."""
        self._selected = selected
        self.update()

    # --- geometry -----------------------------------------------------------------------------------------------------

    def _measure(self) -> None:
        """Widths of labels: thousands of layers are not measured again at every paint."""
        metrics = self._small()
        self._left = 8 + GAP + max((metrics.horizontalAdvance(line) for line in self._lines), default=0)
        self._label = 8 + metrics.horizontalAdvance("8" * max(map(len, self._columns), default=0))

    @property
    def _bottom(self) -> int:
        return self._small().height() + 4

    def sizeHint(self) -> QSize:
        return QSize(640, 20 * max(1, len(self._lines)) + self._bottom)

    def field(self) -> QRectF:
        """Where the cells are."""
        width = self.width() - self._left - GAP
        height = self.height() - self._bottom
        return QRectF(
            self._left,
            0,
            max(1.0, min(width, WIDE * len(self._columns))),
            max(1.0, min(height, TALL * len(self._lines))),
        )

    def _step(self) -> tuple[float, float]:
        field = self.field()
        return field.width() / max(1, len(self._columns)), field.height() / max(1, len(self._lines))

    def cell_rect(self, line: int, column: int) -> QRectF:
        field, (width, height) = self.field(), self._step()
        return QRectF(field.left() + column * width, field.top() + line * height, width, height)

    def cell_at(self, place: QPoint) -> tuple[int, int] | None:
        field, (width, height) = self.field(), self._step()
        if not field.contains(place) or not self._lines or not self._columns:
            return None
        line, column = int((place.y() - field.top()) / height), int((place.x() - field.left()) / width)
        return min(line, len(self._lines) - 1), min(column, len(self._columns) - 1)

    def _cells_in(self, rect: QRect) -> list[tuple[int, int]]:
        field, (width, height) = self.field(), self._step()
        inside = QRectF(rect).intersected(field)
        if inside.isEmpty() or self._cells is None:
            return []
        lines = range(int((inside.top() - field.top()) / height), math.ceil((inside.bottom() - field.top()) / height))
        columns = range(int((inside.left() - field.left()) / width), math.ceil((inside.right() - field.left()) / width))
        kind = self._cells.kind
        return [(i, j) for i in lines for j in columns if i < kind.shape[0] and j < kind.shape[1] and kind[i, j] >= 0]

    def _cells_around(self, line: Sequence[QPoint]) -> list[tuple[int, int]]:
        """Cells whose middle is inside a closed line."""
        field, (width, height) = self.field(), self._step()
        if self._cells is None:
            return []
        lines, columns = self._cells.kind.shape
        x = field.left() + (np.arange(columns) + 0.5) * width
        y = field.top() + (np.arange(lines) + 0.5) * height
        held = inside([(p.x(), p.y()) for p in line], *np.meshgrid(x, y)) & (self._cells.kind >= 0)
        return [(int(i), int(j)) for i, j in np.argwhere(held)]

    # --- painting -----------------------------------------------------------------------------------------------------

    def paintEvent(self, event: QPaintEvent) -> None:
        painter = QPainter(self)
        self.paint(painter, event.rect())
        if self.hasFocus() and self._cells is not None and self._cells.kind.size:
            painter.setPen(QPen(current().colors.accent, 1, Qt.PenStyle.DotLine))
            painter.setBrush(Qt.BrushStyle.NoBrush)
            painter.drawRect(self.cell_rect(*self._current).adjusted(1, 1, -2, -2))
        if self._press is not None and self._at is not None:
            accent = QColor(current().colors.accent)
            painter.setPen(QPen(accent, 1))
            accent.setAlpha(40)
            painter.setBrush(accent)
            if self._line:
                painter.setRenderHint(QPainter.RenderHint.Antialiasing)
                painter.drawPolygon(QPolygonF([QPointF(p) for p in self._line]))
            else:
                painter.drawRect(QRect(self._press, self._at).normalized())
        painter.end()

    def paint(self, painter: QPainter, part: QRect | None = None) -> None:
        """Everything but the rectangle under the mouse; also for pictures that are exported.

        part  what of the widget is seen: a map of thousands of layers is far wider than that; None: all of it
        """
        cells = self._cells
        if cells is None or not cells.kind.size:
            return
        colors = current().colors
        field, (width, height) = self.field(), self._step()
        part = self.rect() if part is None else part
        # One column more on either side: outlines are wider than their cells' edges.
        first = max(0, int((part.left() - field.left()) / width) - 1)
        last = min(len(self._columns), math.ceil((part.right() + 1 - field.left()) / width) + 1)
        first = min(first, last)
        painter.fillRect(part, colors.base)
        # Hatched is what shows through: cells in colour, without a tensor, or kept, are opaque.
        painter.fillRect(field, QBrush(colors.disabled, Qt.BrushStyle.BDiagPattern))
        kinds = cells.kind[:, first:last]
        pixels = np.ascontiguousarray(shaded(cells.worst[:, first:last], self._scale))
        for kind, color in ((-1, colors.base), (KEPT, colors.hover)):
            pixels[kinds == kind] = color.red(), color.green(), color.blue(), 255
        high, wide = kinds.shape
        image = QImage(pixels.data, wide, high, 4 * wide, QImage.Format.Format_RGBA8888)
        painter.drawImage(QRectF(field.left() + first * width, field.top(), wide * width, field.height()), image)
        if width >= 10 and height >= 8:
            painter.setPen(QPen(colors.disabled, 2))
            half = QPointF(min(5.0, width / 4), 0)
            for line, column in np.argwhere(kinds == KEPT):
                middle = self.cell_rect(int(line), first + int(column)).center()
                painter.drawLine(middle - half, middle + half)
        if width >= 6 and height >= 6:
            painter.setPen(QPen(colors.base, 1))
            for column in range(first, last + 1):
                x = field.left() + column * width
                painter.drawLine(int(x), int(field.top()), int(x), int(field.bottom()))
            for line in range(len(self._lines) + 1):
                y = field.top() + line * height
                painter.drawLine(int(field.left()), int(y), int(field.right()), int(y))
        font = QFont(painter.font())
        font.setPointSizeF(max(6.0, self.font().pointSizeF() * SMALL))
        painter.setFont(font)
        self._paint_values(painter, cells, first, last)
        self._paint_selection(painter, first, last)
        self._paint_labels(painter, first, last)

    def _paint_values(self, painter: QPainter, cells: Cells, first: int, last: int) -> None:
        """The numbers of some columns: whoever cannot tell the colours apart reads them."""
        metrics, (width, height) = self._small(), self._step()
        if height < metrics.height() - 2 or width < metrics.horizontalAdvance("0.0000"):
            return
        worst = cells.worst[:, first:last]
        bright = self._scale.place(worst) > 0.5
        for i, j in np.argwhere(cells.kind[:, first:last] == MEASURED):
            painter.setPen(QColor("#101010") if bright[i, j] else QColor("#f4f4f4"))
            rect = self.cell_rect(int(i), first + int(j))
            painter.drawText(rect, Qt.AlignmentFlag.AlignCenter, self._words(float(worst[i, j])))

    def _paint_selection(self, painter: QPainter, first: int, last: int) -> None:
        """An outline around what is selected of some columns: two lines, so that it shows on dark cells and on bright
        ones."""
        chosen = self._selected
        if chosen is None or self._cells is None or chosen.shape != self._cells.kind.shape or not chosen.any():
            return
        colors, field, (width, height) = current().colors, self.field(), self._step()
        padded = np.pad(chosen, 1)[:, first : last + 2]
        left, top = field.left() + first * width, field.top()
        edges = [
            QLineF(left + a * width, top + line * height, left + b * width, top + line * height)
            for line, a, b in _runs(padded[1:, 1:-1] != padded[:-1, 1:-1])
        ]
        edges += [
            QLineF(left + column * width, top + a * height, left + column * width, top + b * height)
            for column, a, b in _runs((padded[1:-1, 1:] != padded[1:-1, :-1]).T)
        ]
        for color, size in ((colors.base, 4), (colors.accent, 2)):
            painter.setPen(QPen(color, size, Qt.PenStyle.SolidLine, Qt.PenCapStyle.SquareCap))
            painter.drawLines(edges)

    def _paint_labels(self, painter: QPainter, first: int, last: int) -> None:
        metrics, field, (width, height) = self._small(), self.field(), self._step()
        painter.setPen(current().colors.muted)
        every = max(1, math.ceil((metrics.height() - 2) / height))
        right = int(Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter)
        for line in range(0, len(self._lines), every):
            rect = QRectF(0, field.top() + (line + every / 2) * height - 10, self._left - 8, 20)
            if every == 1 or line + every <= len(self._lines):
                rect.moveTop(field.top() + (line + 0.5) * height - 10)
                painter.drawText(rect, right, self._lines[line])
        every = max(1, math.ceil(self._label / width))
        numbers = self._numbers[::every]
        for j in numbers[bisect_left(numbers, first - every) : bisect_right(numbers, last + every)]:
            rect = QRectF(field.left() + (j + 0.5) * width - 40, field.bottom() + 2, 80, metrics.height())
            painter.drawText(rect, int(Qt.AlignmentFlag.AlignHCenter), self._columns[j])
        room = QRectF(0, field.bottom() + 2, self._left - 8, metrics.height())
        painter.drawText(room, int(Qt.AlignmentFlag.AlignRight), "layer")

    # --- acting -------------------------------------------------------------------------------------------------------

    def mousePressEvent(self, event: QMouseEvent) -> None:
        if event.button() == Qt.MouseButton.LeftButton:
            self._press = self._at = event.position().toPoint()
            other = bool(event.modifiers() & Qt.KeyboardModifier.AltModifier)
            self._line = [self._press] if self.lasso != other else []

    def mouseMoveEvent(self, event: QMouseEvent) -> None:
        place = event.position().toPoint()
        if self._press is not None:
            self._at = place
            if self._line:
                self._line.append(place)
            self.update()
        cell = self.cell_at(place)
        self.hovered.emit(*(cell if cell is not None else (-1, -1)))

    def mouseReleaseEvent(self, event: QMouseEvent) -> None:
        if self._press is None or event.button() != Qt.MouseButton.LeftButton:
            return
        place = event.position().toPoint()
        rect = QRect(self._press, place).normalized()
        line, self._line = self._line, []
        self._press = self._at = None
        add = bool(event.modifiers() & (Qt.KeyboardModifier.ControlModifier | Qt.KeyboardModifier.ShiftModifier))
        drawn = QPolygonF([QPointF(p) for p in line]).boundingRect()
        if max(drawn.width(), drawn.height()) >= 4:  # else a click
            self.chosen.emit(self._cells_around(line), add)
            self.update()
            return
        if line or (rect.width() < 4 and rect.height() < 4):
            rect = QRect(place, QSize(1, 1))
            cell = self.cell_at(place)
            if cell is not None:
                self._current = cell
        self.chosen.emit(self._cells_in(rect), add)
        self.update()

    def leaveEvent(self, event: QEvent) -> None:
        super().leaveEvent(event)
        self.hovered.emit(-1, -1)

    def contextMenuEvent(self, event: QContextMenuEvent) -> None:
        self.menu_asked.emit(event.globalPos())

    def keyPressEvent(self, event: QKeyEvent) -> None:
        """Arrows move from cell to cell and select; with Shift they add."""
        by = {
            Qt.Key.Key_Left: (0, -1),
            Qt.Key.Key_Right: (0, 1),
            Qt.Key.Key_Up: (-1, 0),
            Qt.Key.Key_Down: (1, 0),
        }.get(Qt.Key(event.key()))
        if by is None or not self._lines or not self._columns:
            super().keyPressEvent(event)
            return
        line = min(max(0, self._current[0] + by[0]), len(self._lines) - 1)
        column = min(max(0, self._current[1] + by[1]), len(self._columns) - 1)
        self._current = line, column
        self.hovered.emit(line, column)
        if self._cells is not None and self._cells.kind[line, column] >= 0:
            self.chosen.emit([(line, column)], bool(event.modifiers() & Qt.KeyboardModifier.ShiftModifier))


def _runs(mask: NDArray[np.bool_]) -> list[tuple[int, int, int]]:
    """(line, first, end) of every run of True in a line."""
    steps = np.diff(np.pad(mask, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    lines, firsts = np.nonzero(steps == 1)
    ends = np.nonzero(steps == -1)[1]
    return list(zip(lines.tolist(), firsts.tolist(), ends.tolist(), strict=True))
