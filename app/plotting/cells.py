"""Numbers written into the cells of a map, where these are large enough to hold them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyqtgraph as pg
from PySide6.QtCore import QRectF, Qt
from PySide6.QtGui import QColor, QPainter

from app.plotting.words import short

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PySide6.QtWidgets import QStyleOptionGraphicsItem, QWidget

# Pixels that a number needs.
WIDTH, HEIGHT = 50, 13


class CellTexts(pg.GraphicsObject):
    """Values [h, w] over a rectangle; nothing is written where a cell is too small. bright [h, w]: where the ground is
    bright, and the number dark."""

    def __init__(self) -> None:
        super().__init__()
        self._values: NDArray[np.float32] | None = None
        self._bright: NDArray[np.bool_] | None = None
        self._box = QRectF()
        self.written = 0

    def show_values(
        self, values: NDArray[np.float32] | None, bright: NDArray[np.bool_] | None = None, box: QRectF | None = None
    ) -> None:
        self.prepareGeometryChange()
        self._values, self._bright, self._box = values, bright, box if box is not None else QRectF()
        self.update()

    def boundingRect(self) -> QRectF:
        return self._box

    def paint(self, painter: QPainter, option: QStyleOptionGraphicsItem, widget: QWidget | None = None) -> None:
        self.written = 0
        if self._values is None or self._bright is None or not self._values.size:
            return
        rows, columns = self._values.shape
        width, height = self._box.width() / columns, self._box.height() / rows
        transform = painter.transform()
        cell = transform.mapRect(QRectF(0, 0, width, height))
        if cell.width() < WIDTH or cell.height() < HEIGHT:
            return
        painter.save()
        painter.resetTransform()
        font = painter.font()
        font.setPixelSize(10)
        painter.setFont(font)
        for i in range(rows):
            for j in range(columns):
                place = QRectF(self._box.left() + j * width, self._box.top() + i * height, width, height)
                painter.setPen(QColor("#101010") if self._bright[i, j] else QColor("#f4f4f4"))
                painter.drawText(
                    transform.mapRect(place), Qt.AlignmentFlag.AlignCenter, short(float(self._values[i, j]))
                )
                self.written += 1
        painter.restore()
