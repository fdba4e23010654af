"""The map of |W| in the outliers panel: cells in colours, their values where there is room, marks on the largest
weights and on those that are no number. Which cells these are is decided in heat.py.

Importing this module imports pyqtgraph.
"""

from __future__ import annotations

from collections.abc import Iterable

import pyqtgraph as pg
from PySide6.QtCore import QObject, QRectF, Slot
from PySide6.QtGui import QColor

from app.panels.outliers.heat import HeatView
from app.plotting.cells import CellTexts
from app.plotting.maps import ColorScale, Scale, shaded
from app.plotting.plot import Plot
from app.plotting.words import short
from app.theme import Theme
from core.analysis.outlier_tally import Spot
from core.analysis.outliers import OutlierResult

MARK = 11  # pixels
# Cells brighter than this, as a share of the scale, have dark values.
BRIGHT = 0.55


class WeightMap(QObject):
    """The next strip of a plot, and the scale of colours that is written beside it. One column of the matrix under each
    bar, or one row where it is turned."""

    def __init__(self, plot: Plot, scale: ColorScale) -> None:
        super().__init__(plot)
        self._plot, self._scale = plot, scale
        self._across = 1
        self.turned = False
        self.strip = plot.strip("row", 4)
        self.box = self.strip.item.vb
        self.box.invertY(True)
        self.box.setMouseEnabled(x=True, y=True)
        self._image = pg.ImageItem(axisOrder="row-major")
        self._image.setZValue(1)
        self.texts = CellTexts()
        self.texts.setZValue(2)
        self.marks = pg.ScatterPlotItem(pxMode=True)
        self.marks.setZValue(20)
        for item in (self._image, self.texts, self.marks):
            self.strip.item.addItem(item, ignoreBounds=True)
        self.strip.item.showGrid(x=False, y=False)
        self.box.sigYRangeChanged.connect(self._moved)

    def frame(self, result: OutlierResult, turned: bool, x_label: str) -> None:
        """Limits and names of the axes, for another matrix or another direction."""
        self.turned = turned
        self._across = max(1, result.columns if turned else result.rows)
        self.box.setLimits(yMin=-0.5, yMax=self._across - 0.5, minYRange=2)
        self.strip.axis.setLabel("column" if turned else "row")
        self.strip.item.getAxis("bottom").setLabel(x_label)

    def go_home(self) -> None:
        """All that lies across the axis."""
        self.strip.set_heights(-0.5, self._across - 0.5, False)

    @property
    def view(self) -> tuple[float, float, float, float]:
        """left, right, top, bottom of what is seen, in places of the axes."""
        (x0, x1), (y0, y1) = self.box.viewRange()
        return max(x0, -0.5), x1, max(y0, -0.5), y1

    @property
    def cells(self) -> tuple[int, int]:
        """As many as there are pixels, across and down."""
        return max(1, int(self.box.width())), max(1, int(self.box.height()))

    def show(self, shown: HeatView) -> None:
        scale = Scale(shown.low, shown.high, shown.logarithmic)
        self._image.setImage(shaded(shown.values, scale), autoLevels=False)
        rect = QRectF(shown.left, shown.top, shown.width, shown.height)
        self._image.setRect(rect)
        self.texts.show_values(shown.signed, scale.place(shown.values) > BRIGHT, rect)
        word = "log" if shown.logarithmic else ""
        self._scale.show_scale(short(shown.low), f"{short(shown.high)} {word}".strip())
        self._scale.setToolTip("The largest |w| of each cell of the map")

    def clear(self) -> None:
        self._image.clear()

    def mark(self, largest: Iterable[Spot], bad: Iterable[Spot], theme: Theme) -> None:
        """Rings around the largest weights, crosses on those that are no number."""
        clear = pg.mkBrush(None)
        spots = []
        for places, symbol, color in ((largest, "o", theme.colors.residual), (bad, "x", theme.colors.failure)):
            pen = pg.mkPen(QColor(color), width=2)
            for spot in places:
                at = (spot.row, spot.column) if self.turned else (spot.column, spot.row)
                spots.append({"pos": at, "symbol": symbol, "size": MARK, "pen": pen, "brush": clear})
        self.marks.setData(spots)

    @Slot()
    def _moved(self) -> None:
        low, high = self.box.viewRange()[1]
        self.strip.axis.base = low
        self.strip.keep(low, high)
        self._plot.redraw_soon()
