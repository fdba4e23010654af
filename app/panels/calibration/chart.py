"""The loss of a calibrated run: a dot for every tensor, layers along the bottom, a mark and a colour for each role."""

from __future__ import annotations

import math
from collections.abc import Sequence

from PySide6.QtCore import QEvent, QPointF, QRectF, QSize, Qt
from PySide6.QtGui import QColor, QContextMenuEvent, QHelpEvent, QPainter, QPaintEvent, QPen, QPolygonF
from PySide6.QtWidgets import QMenu, QSizePolicy, QToolTip, QWidget

from app.panels.calibration.state import LossState, Point, ticks
from app.plotting.colors import oklch
from app.plotting.exporting import Exporter
from app.theme import Theme

LEFT, BOTTOM, TOP, RIGHT = 84, 40, 22, 12
MARK = 6.0
EMPTY = "While a calibrated run goes on, the output error of each tensor appears here, layer by layer."
# Hues of the roles in OKLCH: those of Okabe and Ito. Every fourth has the same mark: these are as far apart as they go.
_HUES = (250.0, 65.0, 165.0, 20.0, 100.0, 285.0, 330.0, 200.0)


class LossChart(QWidget):
    """Draws a LossState; call `update` after it changed."""

    def __init__(self, theme: Theme, state: LossState, parent: QWidget) -> None:
        super().__init__(parent)
        self._theme = theme
        self._state = state
        self._places: list[tuple[QPointF, Point]] = []
        self.exports = Exporter(self, self.paint, state.values, lambda: "calibration-loss")
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Expanding)
        theme.changed.connect(self.update)

    def minimumSizeHint(self) -> QSize:
        return QSize(240, 96)

    def paintEvent(self, event: QPaintEvent) -> None:
        painter = QPainter(self)
        self.paint(painter)
        painter.end()

    def paint(self, painter: QPainter) -> None:
        """Also for pictures that are exported."""
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        colors = self._theme.colors
        painter.fillRect(self.rect(), colors.base)
        self._places = []
        series = self._state.series
        if not series:
            painter.setPen(colors.muted)
            words = self.rect().adjusted(24, 8, -24, -8)
            painter.drawText(words, int(Qt.AlignmentFlag.AlignCenter | Qt.TextFlag.TextWordWrap), EMPTY)
            return
        area = QRectF(self.rect().adjusted(LEFT, TOP, -RIGHT, -BOTTOM))
        points = [p for each in series.values() for p in each]
        positive = [p.value for p in points if p.value > 0] or [1e-6]
        marks = ticks(min(positive), max(positive))
        low, high = math.log10(marks[0]), math.log10(marks[-1])
        layers = max(p.layer for p in points)

        def place(point: Point) -> QPointF:
            share = (math.log10(max(point.value, marks[0])) - low) / (high - low)
            x = area.left() + area.width() * ((point.layer + 0.5) / (layers + 1))
            return QPointF(x, area.bottom() - area.height() * share)

        self._axes(painter, area, marks, layers)
        self._legend(painter, list(series))
        for number, each in enumerate(series.values()):
            color = self._color(number)
            placed = [place(p) for p in each]
            painter.setPen(QPen(color, 1.0))
            painter.drawPolyline(QPolygonF(placed))
            for at, point in zip(placed, each, strict=True):
                self._mark(painter, at, number, color)
                self._places.append((at, point))

    def _axes(self, painter: QPainter, area: QRectF, marks: Sequence[float], layers: int) -> None:
        colors, metrics = self._theme.colors, self.fontMetrics()
        for i, mark in enumerate(marks):
            y = area.bottom() - area.height() * i / max(1, len(marks) - 1)
            painter.setPen(colors.grid)
            painter.drawLine(QPointF(area.left(), y), QPointF(area.right(), y))
            painter.setPen(colors.muted)
            words = QRectF(0, y - 8, LEFT - 8, 16)
            painter.drawText(words, int(Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter), _percent(mark))
        step = max(1, math.ceil((layers + 1) * (metrics.horizontalAdvance("00") + 12) / max(1.0, area.width())))
        for layer in range(0, layers + 1, step):
            x = area.left() + area.width() * ((layer + 0.5) / (layers + 1))
            painter.drawText(QRectF(x - 24, area.bottom() + 4, 48, 16), int(Qt.AlignmentFlag.AlignHCenter), str(layer))
        painter.setPen(colors.hairline)
        painter.drawLine(area.bottomLeft(), area.bottomRight())
        painter.setPen(colors.muted)
        words = QRectF(area.left(), area.bottom() + 20, area.width(), 16)
        painter.drawText(words, int(Qt.AlignmentFlag.AlignHCenter), "layer")
        painter.save()
        painter.translate(metrics.height() / 2 + 2, area.center().y())
        painter.rotate(-90)
        words = QRectF(-80, -metrics.height() / 2, 160, metrics.height())
        painter.drawText(words, int(Qt.AlignmentFlag.AlignCenter), "output error")
        painter.restore()

    def _legend(self, painter: QPainter, roles: list[str]) -> None:
        metrics, x = self.fontMetrics(), float(LEFT)
        for number, role in enumerate(roles):
            self._mark(painter, QPointF(x + MARK, 10), number, self._color(number))
            painter.setPen(self._theme.colors.muted)
            painter.drawText(QPointF(x + 2.5 * MARK, 10 + metrics.ascent() / 2 - 1), role)
            x += 2.5 * MARK + metrics.horizontalAdvance(role) + 12

    def _color(self, number: int) -> QColor:
        return QColor(oklch(0.72 if self._theme.dark else 0.55, 0.12, _HUES[number % len(_HUES)]))

    @staticmethod
    def _mark(painter: QPainter, at: QPointF, number: int, color: QColor) -> None:
        """Round, square, diamond or triangle: never colour alone."""
        half = MARK / 2
        painter.setBrush(color)
        painter.setPen(Qt.PenStyle.NoPen)
        shape = number % 4
        if shape == 0:
            painter.drawEllipse(at, half, half)
        elif shape == 1:
            painter.drawRect(QRectF(at.x() - half, at.y() - half, MARK, MARK))
        else:
            tall = half * 1.3
            corners = [QPointF(0, -tall), QPointF(tall, 0), QPointF(0, tall), QPointF(-tall, 0)]
            if shape == 3:
                corners = [QPointF(0, -tall), QPointF(tall, half), QPointF(-tall, half)]
            painter.drawPolygon(QPolygonF([at + corner for corner in corners]))
        painter.setBrush(Qt.BrushStyle.NoBrush)

    def event(self, event: QEvent) -> bool:
        if event.type() == QEvent.Type.ToolTip and isinstance(event, QHelpEvent):
            near = self.nearest(QPointF(event.pos()))
            text = f"{near.name}\nrelative output error {near.value:.3g}" if near is not None else ""
            QToolTip.showText(event.globalPos(), text, self)
            return True
        return super().event(event)

    def nearest(self, at: QPointF) -> Point | None:
        """The tensor whose mark is under the mouse."""
        found = [((p - at).manhattanLength(), point) for p, point in self._places]
        distance, point = min(found, key=lambda f: f[0], default=(math.inf, None))
        return point if distance < 12 else None

    def contextMenuEvent(self, event: QContextMenuEvent) -> None:
        menu = QMenu(self)
        menu.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        self.exports.add_to(menu)
        menu.popup(event.globalPos())


def _percent(value: float) -> str:
    return f"{100 * value:g} %"
