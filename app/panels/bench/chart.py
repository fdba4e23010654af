"""Size against error, one mark per strategy, the Pareto front as a line. Drawn with a painter; what the points are is
the business of state.py."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from PySide6.QtCore import QEvent, QPoint, QPointF, QRectF, QSize, Qt, Signal
from PySide6.QtGui import QColor, QContextMenuEvent, QMouseEvent, QPainter, QPainterPath, QPaintEvent, QPen, QPolygonF
from PySide6.QtWidgets import QMenu, QSizePolicy, QWidget

from app.panels.bench.state import Point
from app.plotting.exporting import Exporter
from app.theme import current

RADIUS = 5.0
NEAR = 14.0


class BenchChart(QWidget):
    """pointed(label): a click on a mark; applied(label): a double click."""

    pointed = Signal(str)
    applied = Signal(str)

    def __init__(self, values: Callable[[], str], parent: QWidget | None = None) -> None:
        """values: what is exported as CSV."""
        super().__init__(parent)
        self.exports = Exporter(self, self.paint, values, lambda: "bench")
        self._points: list[Point] = []
        self._chosen = ""
        self.setMouseTracking(True)
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Expanding)
        self.setMinimumSize(220, 140)
        self.setAccessibleName("Size against error")
        current().changed.connect(self.update)

    def show_points(self, points: Sequence[Point], chosen: str) -> None:
        self._points, self._chosen = list(points), chosen
        self.update()

    def sizeHint(self) -> QSize:
        return QSize(420, 260)

    # --- geometry -----------------------------------------------------------------------------------------------------

    def field(self) -> QRectF:
        """Where marks are; labels of the axes stand outside."""
        metrics = self.fontMetrics()
        left, bottom = metrics.horizontalAdvance("100") + 28, 2 * metrics.height() + 8
        return QRectF(left, 10, max(40, self.width() - left - 16), max(40, self.height() - bottom - 14))

    def _ranges(self) -> tuple[float, float, float, float]:
        xs, ys = [p.bpw for p in self._points], [p.sqnr for p in self._points]
        x0, x1, y0, y1 = min(xs), max(xs), min(ys), max(ys)
        dx, dy = max(0.5, 0.08 * (x1 - x0)), max(1.0, 0.1 * (y1 - y0))
        # Under the lowest mark there is room for its label, in a low chart too.
        label, height = self.fontMetrics().height() + 2, self.field().height()
        under = max(dy, (y1 + dy - y0) * label / (height - label)) if height > 2 * label else dy
        return max(0.0, x0 - dx), x1 + dx, y0 - under, y1 + dy

    def place(self, point: Point) -> QPointF:
        field, (x0, x1, y0, y1) = self.field(), self._ranges()
        return QPointF(
            field.left() + (point.bpw - x0) / (x1 - x0) * field.width(),
            field.bottom() - (point.sqnr - y0) / (y1 - y0) * field.height(),
        )

    def label_at(self, place: QPoint) -> str:
        """The strategy whose mark is nearest, or ""."""
        best, least = "", NEAR
        for point in self._points:
            away = math.hypot(*(self.place(point) - QPointF(place)).toTuple())
            if away < least:
                best, least = point.label, away
        return best

    # --- painting -----------------------------------------------------------------------------------------------------

    def paintEvent(self, event: QPaintEvent) -> None:
        painter = QPainter(self)
        self.paint(painter)
        painter.end()

    def paint(self, painter: QPainter) -> None:
        """Also for pictures that are exported."""
        colors = current().colors
        painter.fillRect(self.rect(), colors.base)
        if not self._points:
            return
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        self._paint_axes(painter)
        front = sorted((p for p in self._points if p.front), key=lambda p: p.bpw)
        painter.setPen(QPen(colors.muted, 1.5, Qt.PenStyle.DashLine))
        line = [self.place(p) for p in front]
        painter.drawPolyline(line)
        taken: list[QRectF] = []
        marks = sorted(self._points, key=lambda p: (p.label != self._chosen, not p.current, not p.front, -p.sqnr))
        for point in reversed(marks):
            self._paint_mark(painter, point)
        for point in self._points:
            at = self.place(point)
            taken.append(QRectF(at.x() - RADIUS, at.y() - RADIUS, 2 * RADIUS, 2 * RADIUS))
        for point in marks:
            self._paint_label(painter, point, taken, line)

    def _paint_mark(self, painter: QPainter, point: Point) -> None:
        """A disc on the front, a ring off it; paler while coarse; a square around the one in force."""
        theme = current()
        at, color = self.place(point), QColor(theme.color_for(point.label))
        color.setAlphaF(0.55 if point.coarse else 1.0)
        painter.setPen(QPen(color, 2))
        painter.setBrush(color if point.front else theme.colors.base)
        painter.drawEllipse(at, RADIUS, RADIUS)
        painter.setBrush(Qt.BrushStyle.NoBrush)
        if point.current:
            painter.setPen(QPen(theme.colors.text, 1))
            painter.drawRect(QRectF(at.x() - 9, at.y() - 9, 18, 18))
        if point.label == self._chosen:
            painter.setPen(QPen(theme.colors.accent, 2))
            painter.drawEllipse(at, RADIUS + 4, RADIUS + 4)

    def _paint_label(self, painter: QPainter, point: Point, taken: list[QRectF], line: list[QPointF]) -> None:
        """Where there is room, rather beside the front's line than over it, and nearer to its own mark than to others:
        left above, right below, right, left; else nowhere, the tooltip has it."""
        metrics, at = self.fontMetrics(), self.place(point)
        width, height = metrics.horizontalAdvance(point.label) + 2, metrics.height()
        away = 10.0
        above = (
            QRectF(at.x() - away - width, at.y() - height, width, height),
            QRectF(at.x() - width / 2, at.y() - away - height, width, height),
        )
        places: tuple[QRectF, ...] = (
            *above[:1],
            QRectF(at.x() + away, at.y(), width, height),
            QRectF(at.x() + away, at.y() - height / 2, width, height),
            QRectF(at.x() - away - width, at.y() - height / 2, width, height),
            *above[1:],
            QRectF(at.x() - width / 2, at.y() + away, width, height),
        )
        if not point.front:
            places = tuple(p for p in places if p not in above)  # there, it would seem to name one that is better
        inside = QRectF(self.field()).adjusted(2, -8, 14, 0)
        others = [self.place(p) for p in self._points if p is not point]
        for rect in sorted(places, key=lambda r: (_crosses(line, r), seems_another(r, at, others))):
            if inside.contains(rect) and not any(rect.intersects(other) for other in taken):
                painter.setPen(current().colors.text if point.front or point.current else current().colors.muted)
                painter.drawText(rect, Qt.AlignmentFlag.AlignCenter, point.label)
                taken.append(rect)
                return

    def _paint_axes(self, painter: QPainter) -> None:
        colors, field, metrics = current().colors, self.field(), self.fontMetrics()
        x0, x1, y0, y1 = self._ranges()
        for value in _ticks(x0, x1, max(2, int(field.width() / 60))):
            x = field.left() + (value - x0) / (x1 - x0) * field.width()
            painter.setPen(QPen(colors.grid, 1))
            painter.drawLine(QPointF(x, field.top()), QPointF(x, field.bottom()))
            painter.setPen(colors.muted)
            rect = QRectF(x - 30, field.bottom() + 3, 60, metrics.height())
            painter.drawText(rect, Qt.AlignmentFlag.AlignCenter, f"{value:g}")
        for value in _ticks(y0, y1, max(2, int(field.height() / 40))):
            y = field.bottom() - (value - y0) / (y1 - y0) * field.height()
            painter.setPen(QPen(colors.grid, 1))
            painter.drawLine(QPointF(field.left(), y), QPointF(field.right(), y))
            painter.setPen(colors.muted)
            rect = QRectF(field.left() - 46, y - metrics.height() / 2, 40, metrics.height())
            painter.drawText(rect, int(Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter), f"{value:g}")
        rect = QRectF(field.left(), field.bottom() + metrics.height() + 4, field.width(), metrics.height())
        painter.drawText(rect, Qt.AlignmentFlag.AlignCenter, "size, bits per weight")
        painter.save()
        painter.translate(metrics.height() / 2 + 2, field.center().y())
        painter.rotate(-90)
        painter.drawText(
            QRectF(-80, -metrics.height() / 2, 160, metrics.height()), Qt.AlignmentFlag.AlignCenter, "SQNR, dB"
        )
        painter.restore()

    # --- acting -------------------------------------------------------------------------------------------------------

    def mousePressEvent(self, event: QMouseEvent) -> None:
        label = self.label_at(event.position().toPoint())
        if label and event.button() == Qt.MouseButton.LeftButton:
            self.pointed.emit(label)

    def mouseDoubleClickEvent(self, event: QMouseEvent) -> None:
        label = self.label_at(event.position().toPoint())
        if label:
            self.applied.emit(label)

    def mouseMoveEvent(self, event: QMouseEvent) -> None:
        label = self.label_at(event.position().toPoint())
        point = next((p for p in self._points if p.label == label), None)
        self.setToolTip(f"{label}: {point.bpw:.2f} bpw, {point.sqnr:.1f} dB" if point is not None else "")

    def contextMenuEvent(self, event: QContextMenuEvent) -> None:
        menu = QMenu(self)
        menu.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        self.exports.add_to(menu)
        menu.popup(event.globalPos())

    def leaveEvent(self, event: QEvent) -> None:
        super().leaveEvent(event)
        self.setToolTip("")


def seems_another(rect: QRectF, own: QPointF, others: Sequence[QPointF]) -> bool:
    """Whether a label would seem to name another mark: one that is nearer to it, or hardly farther."""
    near = rect.adjusted(-12, -12, 12, 12)
    away = math.hypot(*(rect.center() - own).toTuple())
    return any(near.contains(o) and math.hypot(*(rect.center() - o).toTuple()) < away for o in others)


def _crosses(line: Sequence[QPointF], rect: QRectF) -> bool:
    """Whether a polyline runs through a rectangle."""
    path = QPainterPath()
    # There and back: a closed shape without a surface.
    path.addPolygon(QPolygonF([*line, *reversed(line)]))
    return path.intersects(rect)


def _ticks(low: float, high: float, most: int) -> list[float]:
    """Round numbers between low and high."""
    step = 10.0 ** math.floor(math.log10((high - low) / most))
    step = next(step * k for k in (1, 2, 5, 10) if (high - low) / (step * k) <= most)
    return [round(i * step, 10) for i in range(math.ceil(low / step), math.floor(high / step) + 1)]
