"""The bars of the outliers panel: one for each column, row or input channel, or for as many as share a pixel; what
reaches the threshold in another colour, ticks for what is dead or broken, and dashed lines to drag the threshold with.

Importing this module imports pyqtgraph.
"""

from __future__ import annotations

import math

import pyqtgraph as pg
from PySide6.QtCore import QObject, Qt, Signal, Slot

from app.panels.outliers.state import OutlierState
from app.plotting.plot import Plot
from app.plotting.strip import pen
from app.theme import Theme

# Fewer bars than this are never drawn, however narrow the strip.
FEWEST = 16


class Bars(QObject):
    """The next strip of a plot. dragged(threshold) while a line is dragged."""

    dragged = Signal(float)

    def __init__(self, plot: Plot) -> None:
        super().__init__(plot)
        self.strip = plot.strip("largest |w|", 5, lanes=1)
        self.high = self.strip.fill("original")
        self.low = self.strip.fill("original")
        self.beyond = self.strip.fill("residual", 1.0)
        self.dead = self.strip.ticks("caution", 0)
        self.bad = self.strip.ticks("failure", 0)
        # The threshold, and where bars reach below zero the same under it.
        self.lines = [pg.InfiniteLine(angle=0, movable=True) for _ in range(2)]
        for line in self.lines:
            line.setZValue(25)
            line.setCursor(Qt.CursorShape.SizeVerCursor)
            line.hide()
            line.sigDragged.connect(self.drag)
            self.strip.item.addItem(line, ignoreBounds=True)

    def show(self, state: OutlierState, low: float, high: float, theme: Theme) -> None:
        """Draws the part of the axis from low to high."""
        strip = self.strip
        profile = state.profile(low, high, max(FEWEST, int(strip.item.vb.width())))
        floor = profile.base if profile.logarithmic else 0.0
        for item, heights in ((self.high, profile.high), (self.low, profile.low), (self.beyond, profile.beyond)):
            item.setFillLevel(floor)
            item.setData(x=profile.edges, y=heights)
        mirrored = state.quantity == "range" and not state.on_inputs
        self.low.setVisible(mirrored)
        strip.axis.setLabel(state.y_label)
        strip.set_heights(profile.base, profile.top, profile.logarithmic)
        self.dead.setXVals(state.dead())
        self.bad.setXVals(state.bad())
        limit = state.threshold
        at = math.log10(limit) if profile.logarithmic and limit > 0 else limit
        for line, sign in zip(self.lines, (1, -1), strict=True):
            visible = state.has_threshold and math.isfinite(limit) and (sign > 0 or mirrored)
            line.setVisible(visible)
            line.setPen(pen(theme, "text", Qt.PenStyle.DashLine))
            line.setHoverPen(pen(theme, "accent", Qt.PenStyle.SolidLine))
            if visible and not line.moving:
                line.setPos(sign * at)
        strip.item.update()

    @Slot(object)
    def drag(self, line: pg.InfiniteLine) -> None:
        at = float(line.value())
        self.dragged.emit(10**at if self.strip.axis.logarithmic else abs(at))
