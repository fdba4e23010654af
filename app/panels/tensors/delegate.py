"""Paints the tensor table's cells: fold marks, names elided in the middle, role chips, strategy swatches and badges,
inline bars. No widgets per row; everything comes from the model's columns.
"""

from __future__ import annotations

import math

from PySide6.QtCore import QModelIndex, QPersistentModelIndex, QPointF, QRect, QRectF, QSize, Qt, Signal
from PySide6.QtGui import QColor, QFont, QPainter, QPalette, QPen, QPolygonF
from PySide6.QtWidgets import QStyle, QStyledItemDelegate, QStyleOptionViewItem, QWidget

from app.panels.tensors.model import COLUMNS, SAMPLED, TensorModel
from app.theme import Theme, figures

ROW_HEIGHT = 24
INDENT = 14
PAD = 6
FOLD = 14
# Bars of SQNR run from 0 to this: beyond it nobody hears a difference.
SQNR_FULL_DB = 60.0


class TensorDelegate(QStyledItemDelegate):
    """edit_requested(index) instead of an editor of Qt's own: the picker is a popover."""

    edit_requested = Signal(QModelIndex)

    def __init__(self, theme: Theme, parent: QWidget) -> None:
        super().__init__(parent)
        self._theme = theme
        self._numbers = figures(parent.font())
        self._small = QFont(parent.font())
        self._small.setPointSizeF(max(6.0, parent.font().pointSizeF() * 0.86))
        self._bold = QFont(parent.font())
        self._bold.setWeight(QFont.Weight.DemiBold)

    def sizeHint(self, option: QStyleOptionViewItem, index: QModelIndex | QPersistentModelIndex) -> QSize:
        return QSize(60, ROW_HEIGHT)

    def createEditor(
        self, parent: QWidget, option: QStyleOptionViewItem, index: QModelIndex | QPersistentModelIndex
    ) -> QWidget:
        self.edit_requested.emit(index.model().index(index.row(), index.column()))
        return None  # type: ignore[return-value]  # Qt: no editor

    def paint(
        self, painter: QPainter, option: QStyleOptionViewItem, index: QModelIndex | QPersistentModelIndex
    ) -> None:
        model = index.model()
        assert isinstance(model, TensorModel)
        style = option.widget.style()
        style.drawPrimitive(QStyle.PrimitiveElement.PE_PanelItemViewItem, option, painter, option.widget)
        column = COLUMNS[index.column()]
        line = index.row()
        entry = model.entry(line)
        text_color = option.palette.color(QPalette.ColorRole.Text)
        rect = option.rect.adjusted(PAD, 0, -PAD, 0)
        painter.save()
        painter.setPen(text_color)
        muted = self._theme.colors.muted
        if column.id == "name":
            self._name(painter, rect, model, line, entry)
        elif column.id == "role":
            if entry >= 0:
                self._chip(painter, rect, model.text(line, "role"), muted)
        elif column.id == "strategy":
            self._strategy(painter, rect, model, line, entry, muted)
        elif column.id in ("size", "sqnr"):
            self._bar(painter, rect, model, line, entry, column.id, muted)
        else:
            painter.setFont(self._numbers if column.number else option.font)
            if entry < 0 or column.id in ("shape", "dtype", "rule"):
                painter.setPen(muted)
            side = Qt.AlignmentFlag.AlignRight if column.number else Qt.AlignmentFlag.AlignLeft
            text = model.text(line, column.id)
            if column.id == "shape" and entry < 0:
                text += " tensor" if text == "1" else " tensors"
            text = painter.fontMetrics().elidedText(text, Qt.TextElideMode.ElideRight, rect.width())
            painter.drawText(rect, int(side | Qt.AlignmentFlag.AlignVCenter), text)
        painter.restore()

    def fold_rect(self, rect: QRect, depth: int) -> QRect:
        """Where the fold mark of a line is, in the name column's cell."""
        return QRect(rect.left() + PAD + depth * INDENT, rect.top(), FOLD, rect.height())

    def _name(self, painter: QPainter, rect: QRect, model: TensorModel, line: int, entry: int) -> None:
        depth = model.depth(line)
        left = rect.left() + depth * INDENT
        folded = model.is_folded(line)
        if folded is not None:
            self._chevron(painter, QRect(left, rect.top(), FOLD, rect.height()), folded)
            left += FOLD
            painter.setFont(self._bold)
        elif model.grouped:
            left += FOLD - INDENT
        room = QRect(left, rect.top(), rect.right() - left, rect.height())
        text = painter.fontMetrics().elidedText(model.text(line, "name"), Qt.TextElideMode.ElideMiddle, room.width())
        painter.drawText(room, int(Qt.AlignmentFlag.AlignLeft | Qt.AlignmentFlag.AlignVCenter), text)

    def _chevron(self, painter: QPainter, rect: QRect, folded: bool) -> None:
        painter.save()
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        pen = QPen(painter.pen().color(), 1.4)
        pen.setCapStyle(Qt.PenCapStyle.RoundCap)
        painter.setPen(pen)
        x, y = rect.left() + 4.5, rect.center().y() + 0.5
        if folded:
            points = [QPointF(x - 1, y - 3.5), QPointF(x + 2.5, y), QPointF(x - 1, y + 3.5)]
        else:
            points = [QPointF(x - 3, y - 1.8), QPointF(x + 0.5, y + 1.7), QPointF(x + 4, y - 1.8)]
        painter.drawPolyline(QPolygonF(points))
        painter.restore()

    def _chip(self, painter: QPainter, rect: QRect, text: str, color: QColor) -> None:
        painter.setFont(self._small)
        metrics = painter.fontMetrics()
        width = min(rect.width(), metrics.horizontalAdvance(text) + 12)
        box = QRectF(rect.left() - 1, rect.center().y() - 7.5, width, 16)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        edge = QColor(color)
        edge.setAlpha(110)
        painter.setPen(QPen(edge, 1))
        painter.setBrush(Qt.BrushStyle.NoBrush)
        painter.drawRoundedRect(box.adjusted(0.5, 0.5, -0.5, -0.5), 4, 4)
        painter.setPen(color)
        painter.drawText(box, int(Qt.AlignmentFlag.AlignCenter), text)

    def _strategy(
        self, painter: QPainter, rect: QRect, model: TensorModel, line: int, entry: int, muted: QColor
    ) -> None:
        text = model.text(line, "strategy")
        if not text:
            return
        left = rect.left()
        cells = model.cells
        assert cells is not None
        if entry < 0:
            painter.setPen(muted)
        else:
            badge = cells.badge[entry]
            mark = QRectF(left, rect.center().y() - 3.5, 8, 8)
            if badge == "kept":
                painter.setPen(muted)
                painter.drawRect(QRectF(left + 0.5, rect.center().y() - 2.5, 7, 7))
                text = f"keep · {cells.stored[entry]}"
            else:
                painter.fillRect(mark, self._theme.color_for(cells.stored[entry]))
            left += 14
            if badge == "fallback":
                self._warning(painter, QRect(rect.right() - 12, rect.top(), 14, rect.height()))
                rect = rect.adjusted(0, 0, -16, 0)
        room = QRect(left, rect.top(), rect.right() - left, rect.height())
        text = painter.fontMetrics().elidedText(text, Qt.TextElideMode.ElideRight, room.width())
        painter.drawText(room, int(Qt.AlignmentFlag.AlignLeft | Qt.AlignmentFlag.AlignVCenter), text)

    def _warning(self, painter: QPainter, rect: QRect) -> None:
        """A triangle with an exclamation mark: form and colour say the same."""
        painter.save()
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        x, y = rect.left() + 6.0, rect.center().y() + 0.5
        painter.setPen(QPen(self._theme.colors.caution, 1.3))
        painter.drawPolygon(QPolygonF([QPointF(x, y - 5.5), QPointF(x + 6, y + 5), QPointF(x - 6, y + 5)]))
        painter.drawLine(QPointF(x, y - 1.5), QPointF(x, y + 1.2))
        painter.drawPoint(QPointF(x, y + 3.2))
        painter.restore()

    def _bar(
        self,
        painter: QPainter,
        rect: QRect,
        model: TensorModel,
        line: int,
        entry: int,
        column: str,
        muted: QColor,
    ) -> None:
        painter.setFont(self._numbers)
        text = model.text(line, column)
        if entry < 0:
            painter.setPen(muted)
        number = QRect(rect.right() - 46, rect.top(), 47, rect.height())
        painter.drawText(number, int(Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter), text)
        if entry < 0:
            return
        share, hollow = self._share(model, entry, column)
        room = number.left() - rect.left() - 2
        width = round(room * share)
        if width < 1:
            return
        colors = self._theme.colors
        color = colors.disabled if column == "size" else colors.original
        bar = QRectF(rect.left(), rect.center().y() - 3.0, width, 7)
        if hollow:
            painter.setPen(QPen(color, 1))
            painter.drawRect(bar.adjusted(0.5, 0.5, -0.5, -0.5))
        else:
            painter.fillRect(bar, color)

    @staticmethod
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
