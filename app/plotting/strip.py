"""One plot of a stack: curves, ticks and limits that keep their colour by role. The stack itself is in plot.py."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyqtgraph as pg
from PySide6.QtCore import Qt
from PySide6.QtGui import QColor

from app.plotting.axes import ShareAxis
from app.theme import Theme

# Height of a row of ticks, pixels.
LANE = 8


class Strip:
    """One plot of a stack. The items it hands out keep their colour by role, through every change of theme."""

    def __init__(self, theme: Theme, item: pg.PlotItem, axis: ShareAxis, lanes: int) -> None:
        """lanes: rows of ticks that stay free under the data."""
        self._theme = theme
        self._band = lanes * (LANE + 2) + 2 if lanes else 0
        self._ticks: list[tuple[pg.VTickGroup, int]] = []
        self._heights = (0.0, 1.0)
        self.item = item
        self.axis = axis
        self._styles: list[Callable[[Theme], None]] = []
        self._message = pg.LabelItem("")
        self._message.setParentItem(item.vb)
        self._message.anchor((0.5, 0.5), (0.5, 0.5))
        self._text = ""
        self._baseline = pg.InfiniteLine(angle=0, movable=False)
        self._baseline.setZValue(12)
        self._styled(self._baseline, lambda theme: self._baseline.setPen(pen(theme, "muted", Qt.PenStyle.SolidLine)))

    def fill(self, role: str, opacity: float = 0.75) -> pg.PlotCurveItem:
        """A filled step curve. setData(x=edges, y=values)."""
        curve = self._steps()

        def style(theme: Theme) -> None:
            color = QColor(getattr(theme.colors, role))
            color.setAlphaF(opacity)
            curve.setBrush(color)
            curve.setPen(None)

        return self._styled(curve, style)

    def line(self, role: str, width: float = 1.5) -> pg.PlotCurveItem:
        """A step line. setData(x=edges, y=values)."""
        curve = self._steps()

        def style(theme: Theme) -> None:
            curve.setPen(pg.mkPen(getattr(theme.colors, role), width=width))

        return self._styled(curve, style)

    def ticks(self, role: str, lane: int, opacity: float = 1.0) -> pg.VTickGroup:
        """Short lines in a lane under the data, 0 the upper one. setXVals(values)."""
        ticks = pg.VTickGroup()
        self._ticks.append((ticks, lane))
        ticks.setZValue(20)

        def style(theme: Theme) -> None:
            color = QColor(getattr(theme.colors, role))
            color.setAlphaF(opacity)
            ticks.setPen(pg.mkPen(color, width=1))

        return self._styled(ticks, style)

    def dashes(self, role: str, count: int, style: Qt.PenStyle = Qt.PenStyle.DashLine) -> list[pg.InfiniteLine]:
        """Dashed vertical lines, hidden until they have a place: see `place`."""

        def dashed() -> pg.InfiniteLine:
            line = pg.InfiniteLine(angle=90, movable=False)
            line.setZValue(15)
            line.hide()
            return self._styled(line, lambda theme: line.setPen(pen(theme, role, style)))

        return [dashed() for _ in range(count)]

    def set_heights(self, base: float, top: float, logarithmic: bool) -> None:
        """The y range; it does not follow the data by itself. Under the base a band is left free for ticks."""
        self.axis.base, self.axis.logarithmic = base, logarithmic
        self._baseline.setPos(base)
        self._heights = (base, top)
        self.fit()

    def keep(self, low: float, high: float) -> None:
        """Takes note of a y range that was set by hand, for a strip without ticks: it lasts when the size changes."""
        self._heights = (low, high)

    def fit(self) -> None:
        """Gives the band its pixels at the strip's present height."""
        base, top = self._heights
        height = max(4.0 * self._band, self.item.vb.height(), 1.0)
        share = self._band / height
        self.item.setYRange(base - share / (1 - share) * (top - base), top, padding=0)
        for ticks, lane in self._ticks:
            upper = self._band - 2 - lane * (LANE + 2)
            ticks.setYRange([(upper - LANE) / height, upper / height])
            ticks.update()

    def set_compact(self, compact: bool) -> None:
        """Leaves out the axis' words where there is no room for them."""
        self.axis.showLabel(not compact)

    def show_message(self, text: str) -> None:
        """A line in the middle of the strip instead of data, or "" for none."""
        self._text = text
        self._message.setText(text, color=self._theme.colors.muted)
        self.axis.setStyle(showValues=not text)

    def restyle(self, theme: Theme) -> None:
        for axis in (self.axis, self.item.getAxis("bottom")):
            axis.setPen(pg.mkPen(theme.colors.hairline))
            axis.setTextPen(pg.mkPen(theme.colors.muted))
            axis.setTickPen(pg.mkPen(theme.colors.grid))
        self._message.setText(self._text, color=theme.colors.muted)
        for style in self._styles:
            style(theme)

    def _steps(self) -> pg.PlotCurveItem:
        # Steps run along the pixels: nothing to smooth.
        return pg.PlotCurveItem(x=np.array([0.0, 1.0]), y=np.array([0.0]), stepMode="center", fillLevel=0)

    def _styled(self, item: Any, style: Callable[[Theme], None]) -> Any:
        self.item.addItem(item, ignoreBounds=True)
        self._styles.append(style)
        style(self._theme)
        return item


def place(lines: Sequence[pg.InfiniteLine], values: Sequence[float]) -> None:
    """Shows dashed lines at these values; those left over, and those at NaN, are hidden."""
    for i, line in enumerate(lines):
        known = i < len(values) and np.isfinite(values[i])
        line.setVisible(bool(known))
        if known:
            line.setPos(values[i])


def pen(theme: Theme, role: str, style: Qt.PenStyle) -> Any:
    """One pixel wide, in the colour of a role."""
    return pg.mkPen(getattr(theme.colors, role), width=1, style=style)
