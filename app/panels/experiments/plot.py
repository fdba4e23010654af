"""Size against KLD: a point for every evaluation, the Pareto front as a line."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyqtgraph as pg
from PySide6.QtCore import QPointF, QRectF, Signal
from PySide6.QtGui import QColor

from app.panels.experiments.state import ExperimentsState, name_of
from app.plotting.plot import Plot
from core.evaluation.experiments import Experiment


class FrontPlot(Plot):
    """picked(id): a point was clicked."""

    picked = Signal(object)

    def __init__(self, state: ExperimentsState) -> None:
        super().__init__("size, MiB", state.csv, "experiments")
        self._state = state
        strip = self.strip("KLD, nats", 1)
        self._front = strip._styled(pg.PlotCurveItem(), lambda theme: None)
        self._points = strip._styled(pg.ScatterPlotItem(hoverable=True, tip=_tip), lambda theme: None)
        self._points.sigClicked.connect(self._clicked)
        self.range_changed.connect(lambda *_: self._name())
        strip.item.vb.sigResized.connect(lambda *_: self._name())
        self._names: list[pg.TextItem] = []
        self._chosen: frozenset[int] = frozenset()

    def refresh(self, chosen: Sequence[Experiment] = ()) -> None:
        """Draws the state's points, those of the chosen rows ringed."""
        self._chosen = frozenset(row.id for row in chosen)
        points = self._state.points
        strip = self.strips[0]
        strip.show_message("" if points else "No evaluation has both a size and a distance yet")
        self._draw()
        if not points:
            return
        sizes = [p.size for p in points]
        span = max(max(sizes) - min(sizes), 0.2 * max(sizes))
        low, high = min(sizes) - 0.08 * span, max(sizes) + 0.22 * span
        self.set_home(low, high, (low - span, high + span), go=True)
        heights = [math.log10(p.kld) for p in points]
        strip.set_heights(math.floor(min(heights) * 2 - 0.2) / 2, math.ceil(max(heights) * 2 + 0.2) / 2, True)

    def mark(self, chosen: Sequence[Experiment]) -> None:
        """Rings the points of these rows."""
        self._chosen = frozenset(row.id for row in chosen)
        self._draw()

    def _draw(self) -> None:
        colors = self.theme.colors
        points = self._state.points
        front = [p for p in points if p.front]
        x = np.array([p.size for p in front])
        y = np.log10([p.kld for p in front]) if front else np.array([])
        # A step: between two points the smaller one is what there is.
        self._front.setData(np.repeat(x, 2)[1:], np.repeat(y, 2)[:-1])
        self._front.setPen(pg.mkPen(colors.accent, width=1.5))
        spots: list[dict[str, Any]] = []
        for p in points:
            ringed = p.row.id in self._chosen
            fill = QColor(colors.accent if p.front else colors.base)
            spots.append(
                {
                    "pos": (p.size, math.log10(p.kld)),
                    "size": 11 if ringed else 8,
                    "symbol": "o" if p.front else "d",
                    "brush": fill,
                    "pen": pg.mkPen(colors.text if ringed else colors.accent if p.front else colors.muted, width=1.5),
                    "data": (p.row.id, name_of(p.row), p.size, p.kld),
                }
            )
        self._points.setData(spots)
        self._name()

    def _name(self) -> None:
        """Names beside the points of the front, the nearest to the original first, as far as they do not touch."""
        strip = self.strips[0]
        for name in self._names:
            strip.item.removeItem(name)
        self._names.clear()
        view = strip.item.vb
        taken: list[QRectF] = []
        words = self.fontMetrics()
        for p in reversed(self._state.points):
            if not p.front and p.row.id not in self._chosen:
                continue
            text, place = name_of(p.row), QPointF(p.size, math.log10(p.kld))
            at = view.mapViewToScene(place)
            width, height = words.horizontalAdvance(text) + 12, words.height() + 2
            # Right above, else left below: there the front's line is not.
            places = (
                (QRectF(at.x(), at.y() - height, width, height), (-0.08, 0.9)),
                (QRectF(at.x() - width, at.y(), width, height), (1.08, 0.1)),
            )
            inside = view.sceneBoundingRect()
            free = [p for p in places if inside.contains(p[0]) and not any(p[0].intersects(other) for other in taken)]
            if not free:
                continue
            room, anchor = free[0]
            taken.append(room)
            label = pg.TextItem(text, color=self.theme.colors.text, anchor=anchor)
            label.setPos(place)
            strip.item.addItem(label, ignoreBounds=True)
            self._names.append(label)

    def restyled(self) -> None:
        if hasattr(self, "_names"):
            self._draw()

    def _clicked(self, item: Any, points: Sequence[Any], *_: Any) -> None:
        if len(points):
            self.picked.emit(points[0].data()[0])


def _tip(x: float, y: float, data: Any) -> str:
    return f"{data[1]}: {data[2]:,.1f} MiB, KLD {data[3]:.5f}"
