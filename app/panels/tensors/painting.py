"""Paints the tensor table line by line: fold marks, names elided in the middle, role chips, strategy swatches and
badges, inline bars.

The table paints itself instead of asking a delegate for each cell: with a Python task at work in another thread, every
call counts, and a delegate's are four times as many. What is drawn often and changes seldom is kept as pixmaps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from PySide6.QtCore import QPointF, QRectF, Qt
from PySide6.QtGui import QColor, QFont, QFontMetrics, QPainter, QPen, QPixmap, QPolygonF
from PySide6.QtWidgets import QWidget

from app.panels.tensors.columns import COLUMNS
from app.panels.tensors.errors import SAMPLED
from app.panels.tensors.model import TensorModel
from app.theme import Theme, figures

INDENT = 14
PAD = 6
FOLD = 14
# The longest number beside a bar, and what is left free between them; the bar takes the rest.
_LONGEST = {"size": "0,000.0", "sqnr": "000.0"}
GAP = 6
# In less room than this, in pixels, bars would tell nothing.
SHORTEST = 16
# Bars of SQNR run from 0 to this: beyond it nobody sees a difference.
SQNR_FULL_DB = 60.0
_LEFT = int(Qt.AlignmentFlag.AlignLeft | Qt.AlignmentFlag.AlignVCenter)
_RIGHT = int(Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter)
_MIDDLE, _END = Qt.TextElideMode.ElideMiddle, Qt.TextElideMode.ElideRight
Draw = Callable[[QPainter, tuple[object, ...], int], None]
_KEPT = 20_000  # elided texts and swatches remembered


class LinePainter:
    """Draws lines of a model. One per table; forgets its pixmaps when the colours change."""

    def __init__(self, theme: Theme, table: QWidget) -> None:
        self._theme = theme
        self._table = table
        self.font = figures(table.font())
        self._small = QFont(self.font)
        self._small.setPointSizeF(max(6.0, self.font.pointSizeF() * 0.86))
        self._bold = QFont(self.font)
        self.row = theme.row
        self._bold.setWeight(QFont.Weight.DemiBold)
        self._metrics = QFontMetrics(self.font)
        self._bold_metrics = QFontMetrics(self._bold)
        self._small_metrics = QFontMetrics(self._small)
        self._numbers = {column: self._metrics.horizontalAdvance(text) + GAP for column, text in _LONGEST.items()}
        self._texts: dict[tuple[str, int, bool], str] = {}
        self._short: dict[tuple[str, int, bool], str] = {}
        self._pixmaps: dict[object, QPixmap] = {}
        self._swatches: dict[str, QColor] = {}
        theme.changed.connect(self.forget)

    def forget(self) -> None:
        """Colours, fonts or the screen changed."""
        self._pixmaps.clear()
        self._swatches.clear()
        self._texts.clear()
        self._short.clear()

    def paint(
        self,
        painter: QPainter,
        model: TensorModel,
        line: int,
        top: int,
        columns: Sequence[tuple[str, int, int]],
        selected: bool,
    ) -> None:
        """One line. columns: (id, left edge, width) of those on screen."""
        entry = model.entry(line)
        colors = self._theme.colors
        if selected:
            first, last = columns[0], columns[-1]
            painter.fillRect(first[1], top, last[1] + last[2] - first[1], self.row, colors.selection)
        role = 0  # the room of a role right before
        for name, left, width in columns:
            x, room = left + PAD, width - 2 * PAD
            before, role = role, width if name == "role" else 0
            if room <= 0:
                continue
            if name == "name":
                self._name(painter, model, line, entry, x, top, room)
            elif name == "role":
                if entry >= 0:
                    self._chip(painter, model.text(line, "role"), x, top, room)
            elif name == "strategy":
                self._strategy(painter, model, line, entry, x, top, room)
            elif name in ("size", "sqnr"):
                self._bar(painter, model, line, entry, name, x, top, room)
            else:
                painter.setPen(colors.muted if entry < 0 or name != "bpw" else colors.text)
                if entry < 0 and name == "shape":
                    x, room = x - before, room + before  # "49,997 tensors" have no role: that room is theirs
                text = self._elided(model.text(line, name), room, _END)
                flags = _RIGHT if name in _NUMBERS else _LEFT
                painter.drawText(x, top, room, self.row, flags, text)

    def _elided(self, text: str, room: int, mode: Qt.TextElideMode, bold: bool = False) -> str:
        key = (text, room, bold)
        found = self._texts.get(key)
        if found is None:
            if len(self._texts) > _KEPT:
                self._texts.clear()
            metrics = self._bold_metrics if bold else self._metrics
            found = self._texts[key] = metrics.elidedText(text, mode, room)
        return found

    def _name(self, painter: QPainter, model: TensorModel, line: int, entry: int, x: int, top: int, room: int) -> None:
        offset = model.depth(line) * INDENT
        folded = model.is_folded(line)
        painter.setPen(self._theme.colors.text)
        if folded is not None:
            painter.drawPixmap(x + offset, top, self._pixmap(("fold", folded), FOLD, self._draw_fold))
            offset += FOLD
            painter.setFont(self._bold)
        text = self._shortened(model.text(line, "name"), room - offset, folded is not None)
        painter.drawText(x + offset, top, room - offset, self.row, _LEFT, text)
        if folded is not None:
            painter.setFont(self.font)

    def _shortened(self, name: str, room: int, bold: bool) -> str:
        """A name in its room. Nearly all end in ".weight": where that is too long, the end goes before the middle, so
        that q_proj and k_proj stay apart."""
        stem = name.removesuffix(".weight")
        if stem == name or self._elided(name, room, _MIDDLE, bold) == name:
            return self._elided(name, room, _MIDDLE, bold)
        metrics = self._bold_metrics if bold else self._metrics
        key = (name, room, bold)
        if key not in self._short:
            if len(self._short) > _KEPT:
                self._short.clear()
            fits = metrics.horizontalAdvance(stem + "…") <= room
            self._short[key] = stem + "…" if fits else metrics.elidedText(stem, _MIDDLE, room)
        return self._short[key]

    def _chip(self, painter: QPainter, text: str, x: int, top: int, room: int) -> None:
        width = min(room, self._small_metrics.horizontalAdvance(text) + 12)
        painter.drawPixmap(x - 1, top, self._pixmap(("chip", text, width), width, self._draw_chip))

    def _strategy(
        self, painter: QPainter, model: TensorModel, line: int, entry: int, x: int, top: int, room: int
    ) -> None:
        text = model.text(line, "strategy")
        cells = model.cells
        if not text or cells is None:
            return
        colors = self._theme.colors
        if entry < 0:
            painter.setPen(colors.muted)
        else:
            badge = cells.badge[entry]
            if badge == "kept" or text == "keep":
                painter.setPen(colors.muted)
                painter.drawRect(x, top + self.row // 2 - 4, 7, 7)
                text = f"keep · {cells.stored[entry]}"
            else:
                painter.setPen(colors.text)
                painter.fillRect(x, top + self.row // 2 - 4, 8, 8, self._swatch(cells.stored[entry]))
            x, room = x + 14, room - 14
            if badge == "fallback":
                painter.drawPixmap(x + room - 13, top, self._pixmap(("fallback",), 14, self._draw_warning))
                room -= 16
        painter.drawText(x, top, room, self.row, _LEFT, self._elided(text, room, _END))

    def _swatch(self, format_name: str) -> QColor:
        if format_name not in self._swatches:
            self._swatches[format_name] = self._theme.color_for(format_name)
        return self._swatches[format_name]

    def _bar(
        self, painter: QPainter, model: TensorModel, line: int, entry: int, column: str, x: int, top: int, room: int
    ) -> None:
        colors = self._theme.colors
        painter.setPen(colors.muted if entry < 0 else colors.text)
        text = model.text(line, column)
        if text:
            painter.drawText(x, top, room, self.row, _RIGHT, text)
        if entry < 0:
            return
        longest = room - self._numbers[column]
        if longest < SHORTEST:
            return
        share, hollow = _share(model, entry, column)
        width = round(longest * share)
        if width < 1:
            return
        color = colors.disabled if column == "size" else colors.original
        if hollow:
            painter.setPen(color)
            painter.drawRect(x, top + self.row // 2 - 3, width, 6)
        else:
            painter.fillRect(x, top + self.row // 2 - 3, width, 7, color)

    # Pixmaps

    def _pixmap(self, key: tuple[object, ...], width: int, draw: Draw) -> QPixmap:
        ratio = self._table.devicePixelRatioF()
        known = self._pixmaps.get((key, ratio))
        if known is None:
            known = QPixmap(max(1, math.ceil(width * ratio)), math.ceil(self.row * ratio))
            known.setDevicePixelRatio(ratio)
            known.fill(Qt.GlobalColor.transparent)
            painter = QPainter(known)
            painter.setRenderHint(QPainter.RenderHint.Antialiasing)
            draw(painter, key, width)
            painter.end()
            self._pixmaps[key, ratio] = known
        return known

    def _draw_fold(self, painter: QPainter, key: tuple[object, ...], width: int) -> None:
        pen = QPen(self._theme.colors.text, 1.4)
        pen.setCapStyle(Qt.PenCapStyle.RoundCap)
        painter.setPen(pen)
        x, y = 4.5, self.row / 2
        if key[1]:
            points = [QPointF(x - 1, y - 3.5), QPointF(x + 2.5, y), QPointF(x - 1, y + 3.5)]
        else:
            points = [QPointF(x - 3, y - 1.8), QPointF(x + 0.5, y + 1.7), QPointF(x + 4, y - 1.8)]
        painter.drawPolyline(QPolygonF(points))

    def _draw_chip(self, painter: QPainter, key: tuple[object, ...], width: int) -> None:
        colors = self._theme.colors
        edge = QColor(colors.muted)
        edge.setAlpha(110)
        painter.setPen(QPen(edge, 1))
        height = self._small_metrics.height() + 2
        top = (self.row - height) // 2
        painter.drawRoundedRect(QRectF(0.5, top + 0.5, width - 1, height - 1), 4, 4)
        painter.setFont(self._small)
        painter.setPen(colors.muted)
        painter.drawText(QRectF(0, top, width, height), Qt.AlignmentFlag.AlignCenter, str(key[1]))

    def _draw_warning(self, painter: QPainter, key: tuple[object, ...], width: int) -> None:
        """A triangle with an exclamation mark: form and colour say the same."""
        x, y = 7.0, self.row / 2 + 0.5
        painter.setPen(QPen(self._theme.colors.caution_text, 1.3))
        painter.drawPolygon(QPolygonF([QPointF(x, y - 6), QPointF(x + 6, y + 5), QPointF(x - 6, y + 5)]))
        painter.drawLine(QPointF(x, y - 2), QPointF(x, y + 1.2))
        painter.drawPoint(QPointF(x, y + 3.2))


_NUMBERS = frozenset(c.id for c in COLUMNS if c.number)


def _share(model: TensorModel, row: int, column: str) -> tuple[float, bool]:
    """Length of a bar, 0 … 1, and whether it is drawn hollow (an estimate)."""
    if column == "size":
        cells = model.cells
        return (cells.nbytes[row] / cells.largest if cells is not None and cells.largest else 0.0), False
    if model.errors is None:
        return 0.0, False
    value, mark = float(model.errors.sqnr[row]), int(model.errors.mark[row])
    if not math.isfinite(value):
        return 0.0, False
    return min(1.0, max(0.0, value / SQNR_FULL_DB)), mark == SAMPLED
