"""Maps of numbers in colour: values to pixels on cividis, which every eye reads alike, and the labelled scale beside
them. Importing this module costs no pyqtgraph; its first use does."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
from PySide6.QtCore import QRect, QSize, Qt
from PySide6.QtGui import QImage, QPainter, QPaintEvent
from PySide6.QtWidgets import QSizePolicy, QWidget

from app.theme import current

if TYPE_CHECKING:
    from numpy.typing import NDArray

STEPS = 256
BAR = 8


@dataclass(frozen=True, slots=True)
class Scale:
    """From which value to which the colours run. flipped: the lowest value is the brightest."""

    low: float
    high: float
    logarithmic: bool = False
    flipped: bool = False

    def place(self, values: NDArray[np.floating]) -> NDArray[np.float64]:
        """Where values lie, 0 … 1; what is outside is at the ends, NaN stays."""
        with np.errstate(divide="ignore", invalid="ignore"):
            if self.logarithmic:
                low, high = math.log(self.low), math.log(self.high)
                at = np.log(np.asarray(values, np.float64))
            else:
                low, high = self.low, self.high
                at = np.asarray(values, np.float64)
            share = np.clip((at - low) / (high - low), 0, 1) if high > low else np.where(np.isnan(at), np.nan, 0.5)
        return 1 - share if self.flipped else share


@cache
def colors() -> NDArray[np.uint8]:
    """uint8 [256, 4]: cividis (Nuñez et al. 2018), dark to bright."""
    import pyqtgraph as pg

    table = pg.colormap.get("cividis").getLookupTable(0.0, 1.0, STEPS, alpha=True)
    return np.ascontiguousarray(table, np.uint8)


def shaded(values: NDArray[np.floating], scale: Scale) -> NDArray[np.uint8]:
    """Pixels uint8 [h, w, 4] of values [h, w]; NaN is transparent."""
    share = scale.place(values)
    unknown = np.isnan(share)
    pixels = colors()[np.where(unknown, 0, share * (STEPS - 1)).astype(np.intp)]
    pixels[unknown] = 0
    return pixels


class ColorScale(QWidget):
    """The bar that says which colour is which value: low label, colours, high label."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._low = self._high = ""
        self._flipped = False
        self.setSizePolicy(QSizePolicy.Policy.Preferred, QSizePolicy.Policy.Fixed)
        current().changed.connect(self.update)

    @property
    def labels(self) -> tuple[str, str]:
        return self._low, self._high

    def show_scale(self, low: str, high: str, flipped: bool = False) -> None:
        """Labels of both ends; nothing is drawn while both are empty."""
        self._low, self._high, self._flipped = low, high, flipped
        self.updateGeometry()
        self.update()

    def sizeHint(self) -> QSize:
        metrics = self.fontMetrics()
        return QSize(
            metrics.horizontalAdvance(self._low) + metrics.horizontalAdvance(self._high) + 80, metrics.height() + 4
        )

    def minimumSizeHint(self) -> QSize:
        metrics = self.fontMetrics()
        return QSize(
            metrics.horizontalAdvance(self._low) + metrics.horizontalAdvance(self._high) + 48, metrics.height()
        )

    def paintEvent(self, event: QPaintEvent) -> None:
        if not (self._low or self._high):
            return
        painter = QPainter(self)
        metrics = self.fontMetrics()
        left, right = metrics.horizontalAdvance(self._low), metrics.horizontalAdvance(self._high)
        painter.setPen(current().colors.muted)
        middle = int(Qt.AlignmentFlag.AlignVCenter)
        rect = self.rect()
        painter.drawText(rect, middle, self._low)
        painter.drawText(rect, middle | int(Qt.AlignmentFlag.AlignRight), self._high)
        table = colors()[::-1] if self._flipped else colors()
        strip = np.ascontiguousarray(table[None])
        image = QImage(strip.data, STEPS, 1, 4 * STEPS, QImage.Format.Format_RGBA8888)
        bar = QRect(left + 8, rect.center().y() - BAR // 2, max(0, rect.width() - left - right - 16), BAR)
        painter.drawImage(bar, image)
        painter.end()
