"""Plots of the workbench: strips one under another with a common x axis, drawn by pyqtgraph in our colours. What is
drawn is the panels' business; here are axes, zoom and reading off; copying and exporting are in
exporting.py.

Importing this module imports pyqtgraph, so panels import it when they draw for the first time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pyqtgraph as pg
from PySide6.QtCore import QEvent, QPointF, QRectF, QSize, Qt, QTimer, Signal, Slot
from PySide6.QtGui import QContextMenuEvent, QFocusEvent, QKeyEvent, QPainter, QResizeEvent
from PySide6.QtWidgets import QGraphicsSceneMouseEvent, QGraphicsView, QMenu, QWidget

from app.plotting.axes import ShareAxis, ValueAxis
from app.plotting.exporting import Exporter
from app.plotting.strip import Strip, pen
from app.theme import current

# Nothing is redrawn more often than this while the mouse moves or a wheel turns.
HOVER_MS = 25
RANGE_MS = 40
# Axes of all strips are this wide, so that their plots stand flush.
AXIS_WIDTH = 58
# Where a strip has less height than this, axes lose their words.
COMPACT = 130
# What a key does, as parts of what is seen: the reading moves, the view moves, it is closer or farther.
STEP_X, STEP_Y, PAN, ZOOM = 1 / 64, 1 / 24, 1 / 4, 1.5
KEYS = (
    "Arrows move the reading, Ctrl and an arrow the view; + and − zoom, Home shows all again, Menu copies and exports"
)
_ARROWS = {
    Qt.Key.Key_Left: (-1, 0),
    Qt.Key.Key_Right: (1, 0),
    Qt.Key.Key_Up: (0, -1),
    Qt.Key.Key_Down: (0, 1),
}


class _View(pg.ViewBox):
    """Wheel and left drag along x; a double click goes home; the right button is for the menu alone."""

    def __init__(self, home: Callable[[], None]) -> None:
        super().__init__(enableMenu=False)
        self._home = home
        self.setMouseEnabled(x=True, y=False)

    def mouseDragEvent(self, ev: Any, axis: int | None = None) -> None:
        if ev.button() == Qt.MouseButton.LeftButton:
            super().mouseDragEvent(ev, axis)
        else:
            ev.ignore()

    def mouseDoubleClickEvent(self, ev: QGraphicsSceneMouseEvent) -> None:
        self._home()
        ev.accept()


class Plot(pg.GraphicsLayoutWidget):
    """Strips with one x axis.

    hovered(x)             where the mouse is, None when it left
    range_changed(a, b)    the part of x that is in view, at most every RANGE_MS
    went_home()            the whole is shown again
    """

    hovered = Signal(object)
    range_changed = Signal(float, float)
    went_home = Signal()

    def __init__(self, x_label: str, values: Callable[[], str], name: str = "plot") -> None:
        """values: what "Copy values" copies, as CSV; name: of exported files."""
        super().__init__()
        self.theme = current()
        self.name = name
        self._x_label = x_label
        self._home = (0.0, 1.0)
        self._strips: list[Strip] = []
        self._begun: tuple[ShareAxis, pg.PlotItem] | None = None
        self._lines: list[pg.InfiniteLine] = []
        self._at: QPointF | None = None
        self.setAccessibleName(name[:1].upper() + name[1:])
        self.setAccessibleDescription(KEYS)
        self.exports = Exporter(self, self._paint, values, lambda: self.name)
        self.setFrameShape(self.Shape.NoFrame)
        self.ci.layout.setSpacing(4)
        self.ci.layout.setContentsMargins(0, 0, 4, 0)
        self._hover = _single_shot(self, HOVER_MS, self._tell_hover)
        self._range = _single_shot(self, RANGE_MS, self._tell_range)
        self.scene().sigMouseMoved.connect(self._moved)
        self.theme.changed.connect(self._restyle)
        self._restyle()
        # Taken away and put back while tensors are looked through: nothing around it shall jump.
        policy = self.sizePolicy()
        policy.setRetainSizeWhenHidden(True)
        self.setSizePolicy(policy)

    def begin_strip(self) -> None:
        """The first half of the next `strip`, for who builds in steps."""
        axis = ShareAxis()
        item = pg.PlotItem(viewBox=_View(self.go_home), axisItems={"left": axis, "bottom": ValueAxis()})
        item.hideButtons()
        item.setMenuEnabled(False)
        self._begun = (axis, item)

    def strip(self, label: str, stretch: int, lanes: int = 0) -> Strip:
        """One more strip, below the others. lanes: see Strip."""
        if self._begun is None:
            self.begin_strip()
        assert self._begun is not None
        (axis, item), self._begun = self._begun, None
        axis.setWidth(self.theme.px(AXIS_WIDTH))
        axis.setLabel(label)
        item.getAxis("bottom").setLabel(self._x_label)
        item.showGrid(x=True, y=True, alpha=0.35)
        for each in (axis, item.getAxis("bottom")):
            each.setZValue(-1)  # the grid lies behind the data
        line = pg.InfiniteLine(angle=90, movable=False)
        line.setZValue(30)
        line.hide()
        item.addItem(line, ignoreBounds=True)
        self._lines.append(line)
        self.addItem(item, row=len(self._strips), col=0)
        self.ci.layout.setRowStretchFactor(len(self._strips), stretch)
        for before in self._strips:
            # Only the lowest axis has words.
            before.item.getAxis("bottom").setLabel(None)
            before.item.getAxis("bottom").setStyle(showValues=False)
            before.item.getAxis("bottom").setHeight(6)
        if self._strips:
            item.setXLink(self._strips[0].item)
        else:
            item.vb.sigXRangeChanged.connect(self._range_moved)
        strip = Strip(self.theme, item, axis, lanes)
        item.vb.sigResized.connect(strip.fit)
        self._strips.append(strip)
        line.setPen(pen(self.theme, "muted", Qt.PenStyle.SolidLine))
        strip.restyle(self.theme)
        return strip

    def hold(self) -> None:
        """Leaves what is on the screen as it is until `release`."""
        self.viewport().setUpdatesEnabled(False)

    def release(self) -> None:
        self.viewport().setUpdatesEnabled(True)

    def put_away(self) -> None:
        """Hides it, and whatever is held back with it."""
        self.release()
        self.hide()

    def prepare(self) -> None:
        """Works out what else happens at the first painting: ticks and words of the axes."""
        self.scene().prepareForPaint()
        for strip in self._strips:
            for axis in (strip.axis, strip.item.getAxis("bottom")):
                axis.prepare()

    @property
    def strips(self) -> Sequence[Strip]:
        return tuple(self._strips)

    @property
    def at_home(self) -> bool:
        """Whether nobody zoomed."""
        (low, high), _ = self._strips[0].item.viewRange()
        slack = (self._home[1] - self._home[0]) * 1e-6
        return abs(low - self._home[0]) <= slack and abs(high - self._home[1]) <= slack

    def set_home(self, low: float, high: float, limits: tuple[float, float], *, go: bool) -> None:
        """The part of x that a double click shows, and how far out one may go. go: shows it now."""
        self._home = (low, high)
        span = limits[1] - limits[0]
        for strip in self._strips:
            strip.item.vb.setLimits(xMin=limits[0], xMax=limits[1], minXRange=span / 16384, maxXRange=span)
        if go:
            self.go_home()

    def show_range(self, low: float, high: float) -> None:
        self._strips[0].item.setXRange(low, high, padding=0)

    @Slot()
    def go_home(self) -> None:
        self.show_range(*self._home)
        self.went_home.emit()

    def cursor(self) -> tuple[int, float, float] | None:
        """Which strip the mouse is over, and the place there; None when it is over none."""
        for i, strip in enumerate(self._strips):
            if self._at is not None and strip.item.vb.sceneBoundingRect().contains(self._at):
                place = strip.item.vb.mapSceneToView(self._at)
                return i, float(place.x()), float(place.y())
        return None

    @property
    def x_range(self) -> tuple[float, float]:
        (low, high), _ = self._strips[0].item.viewRange()
        return float(low), float(high)

    def contextMenuEvent(self, event: QContextMenuEvent) -> None:
        self.menu().popup(event.globalPos())
        event.accept()

    def menu(self) -> QMenu:
        """Copying, exporting, going home."""
        menu = QMenu(self)
        menu.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        icon = self.theme.icon
        menu.addAction(icon("arrows-out-line-horizontal"), "Reset zoom", self.go_home)
        menu.addSeparator()
        self.exports.add_to(menu)
        return menu

    def _paint(self, painter: QPainter) -> None:
        self.scene().render(painter, QRectF(self.rect()), self.viewRect())

    def leaveEvent(self, event: QEvent) -> None:
        super().leaveEvent(event)
        self._at = None
        self._hover.start()

    # --- by keys ------------------------------------------------------------------------------------------------------

    def keyPressEvent(self, event: QKeyEvent) -> None:
        """As KEYS says."""
        key, low, high = Qt.Key(event.key()), *self.x_range
        if key in _ARROWS:
            across, down = _ARROWS[key]
            if event.modifiers() & Qt.KeyboardModifier.ControlModifier:
                self.show_range(*_within(self._strips[0], low, high, across * PAN * (high - low)))
            else:
                self._move_reading(across, down)
        elif key in (Qt.Key.Key_Plus, Qt.Key.Key_Equal, Qt.Key.Key_Minus):
            factor = ZOOM if key == Qt.Key.Key_Minus else 1 / ZOOM
            cursor = self.cursor()
            at = cursor[1] if cursor is not None else (low + high) / 2
            self.show_range(at - (at - low) * factor, at + (high - at) * factor)
        elif key == Qt.Key.Key_Home:
            self.go_home()
        else:
            super().keyPressEvent(event)

    def _move_reading(self, across: int, down: int) -> None:
        field = self._field()
        at = self._at if self._at is not None else field.center()
        at += QPointF(across * STEP_X * field.width(), down * STEP_Y * field.height())
        self._at = QPointF(
            min(max(at.x(), field.left() + 1), field.right() - 1), min(max(at.y(), field.top() + 1), field.bottom() - 1)
        )
        self._tell_hover()

    def _field(self) -> QRectF:
        """Where the strips' data are, in the scene."""
        first, last = (s.item.vb.sceneBoundingRect() for s in (self._strips[0], self._strips[-1]))
        return QRectF(first.topLeft(), last.bottomRight())

    def focusInEvent(self, event: QFocusEvent) -> None:
        super().focusInEvent(event)
        by_keys = event.reason() in (Qt.FocusReason.TabFocusReason, Qt.FocusReason.BacktabFocusReason)
        if by_keys and self._strips and self._at is None:
            self._at = self._strips[0].item.vb.sceneBoundingRect().center()
            self._hover.start()

    def focusOutEvent(self, event: QFocusEvent) -> None:
        super().focusOutEvent(event)
        if not self.underMouse():
            self._at = None
            self._hover.start()

    def stand_before(self, widget: QWidget) -> None:
        """Tab comes to the plot, and then to a widget that was there before the plot was made."""
        before = widget.previousInFocusChain()
        while before is not None and before.focusPolicy() == Qt.FocusPolicy.NoFocus:  # those Qt passes over
            before = before.previousInFocusChain()
        if before is not None:
            QWidget.setTabOrder(before, self)

    # --- by mouse -----------------------------------------------------------------------------------------------------

    def _moved(self, place: QPointF) -> None:
        self._at = place
        if not self._hover.isActive():
            self._hover.start()

    @Slot()
    def _tell_hover(self) -> None:
        inside = self._at is not None and any(s.item.vb.sceneBoundingRect().contains(self._at) for s in self._strips)
        x = float(self._strips[0].item.vb.mapSceneToView(self._at).x()) if inside else None
        for line in self._lines:
            line.setVisible(x is not None)
            if x is not None:
                line.setPos(x)
        self.hovered.emit(x)

    def redraw_soon(self) -> None:
        """Tells the range again, at most every RANGE_MS: something else about the view changed."""
        if not self._range.isActive():
            self._range.start()

    def _range_moved(self, *_: object) -> None:
        self.redraw_soon()

    @Slot()
    def _tell_range(self) -> None:
        self.range_changed.emit(*self.x_range)

    @Slot()
    def _restyle(self) -> None:
        self.setBackground(self.theme.colors.base)
        for line in self._lines:
            line.setPen(pen(self.theme, "muted", Qt.PenStyle.SolidLine))
        for strip in self._strips:
            strip.axis.setWidth(self.theme.px(AXIS_WIDTH))
            strip.restyle(self.theme)
        self.restyled()

    def restyled(self) -> None:
        """For subclasses: the theme changed. A slot that is overridden would be called when Qt has deleted the plot."""

    def close(self) -> bool:
        """As of any widget. pyqtgraph's own takes the scene apart, and crashes the second time."""
        return QGraphicsView.close(self)

    def resizeEvent(self, event: QResizeEvent) -> None:
        super().resizeEvent(event)
        if not hasattr(self, "_strips"):
            return  # the base class resizes itself while it is built
        compact = self.height() < COMPACT * len(self._strips)
        for strip in self._strips:
            strip.set_compact(compact)
        if self._strips:
            self._strips[-1].item.getAxis("bottom").showLabel(not compact)

    def minimumSizeHint(self) -> QSize:
        return QSize(160, 120)


def _within(strip: Strip, low: float, high: float, by: float) -> tuple[float, float]:
    """A part of x moved, as far as its limits allow."""
    least, most = strip.item.vb.state["limits"]["xLimits"]
    by = min(max(by, least - low), most - high) if least is not None and most is not None else by
    return low + by, high + by


def _single_shot(owner: Plot, interval: int, call: Callable[[], None]) -> QTimer:
    timer = QTimer(owner)
    timer.setSingleShot(True)
    timer.setInterval(interval)
    timer.timeout.connect(call)
    return timer
