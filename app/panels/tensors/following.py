"""A table sorted by error follows the errors that come in: once a second, put in order in the preview lane, and moving
nothing that the user has in hand."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from PySide6.QtCore import QEvent, QObject, Qt, QTimer, Signal, Slot
from PySide6.QtGui import QCursor
from PySide6.QtWidgets import QAbstractItemView, QApplication

from app.job_service import JobService
from app.jobs import Done, JobId, Outcome
from app.panels.tensors.errors import UNKNOWN
from app.panels.tensors.state import Arrangement, Cells, Look, Rows, arrange, ordering
from app.panels.tensors.table import TensorTable
from core.context import JobContext

if TYPE_CHECKING:
    import numpy as np

KEY = "tensor order"
# Errors come in five times a second; lines move at most this often, and not sooner after a key or the wheel.
EVERY_MS, REST_SECONDS = 1000, 1.5


@dataclass(frozen=True, eq=False)
class OrderRequest:
    """sqnr: float64 [rows], a copy; passing: bool [rows] or None, as the table is filtered now."""

    rows: Rows
    cells: Cells | None
    sqnr: np.ndarray
    passing: np.ndarray | None
    look: Look


@dataclass(frozen=True, eq=False)
class Ordered:
    """ordered: int64 [rows], as `ordering` gives it."""

    request: OrderRequest
    ordered: np.ndarray
    arrangement: Arrangement


def order_task(request: OrderRequest, ctx: JobContext) -> Ordered:
    """The lines as these errors order them."""
    rows, look = request.rows, request.look
    ordered = ordering(rows, request.cells, request.sqnr, look.order)
    ctx.check()
    return Ordered(request, ordered, arrange(rows, ordered, request.passing, look.grouped, look.folded, look.backwards))


class OrderFollower(QObject):
    """Call `look` after errors came. uncovered: tensors whose error is not known are on screen now."""

    uncovered = Signal()

    def __init__(self, table: TensorTable, jobs: JobService) -> None:
        super().__init__(table)
        self._table, self._jobs = table, jobs
        self._job: JobId | None = None
        self._more = False  # errors came while lines were being put in order
        self._scattered = False  # what is selected lies in too many places
        self._touched = 0.0
        self._timer = QTimer(self, singleShot=True, interval=EVERY_MS)
        self._timer.timeout.connect(self._submit)
        jobs.finished.connect(self._finished)
        table.installEventFilter(self)
        table.viewport().installEventFilter(self)
        table.verticalScrollBar().sliderMoved.connect(self._touch)
        table.selectionModel().selectionChanged.connect(self._chosen)

    @property
    def busy(self) -> bool:
        """Whether lines are going to move."""
        return self._timer.isActive() or self._job is not None

    @Slot()
    def look(self) -> None:
        if self._table.tensors.order.column != "sqnr":
            return
        if self._job is not None:
            self._more = True
        elif not self._timer.isActive():
            self._timer.start()

    @Slot()
    def _submit(self) -> None:
        model = self._table.tensors
        if model.rows is None or model.errors is None or model.order.column != "sqnr":
            return
        if self._in_hand():
            self._timer.start()
            return
        self._more = False
        request = OrderRequest(model.rows, model.cells, model.errors.sqnr.copy(), model.passing, model.look)
        self._job = self._jobs.submit(
            order_task, request, title="Order of tensors", lane="preview", key=KEY, waited_for=False
        )

    def _finished(self, job: JobId, outcome: Outcome) -> None:
        if job != self._job:
            return
        self._job = None
        if isinstance(outcome, Done) and not self._apply(cast(Ordered, outcome.result)):
            self._more = True
        if self._more:
            self._timer.start()

    def _apply(self, made: Ordered) -> bool:
        """Moves the lines. False when the user has one in hand meanwhile."""
        table, model, of = self._table, self._table.tensors, made.request
        asked = of.rows is model.rows and of.cells is model.cells and of.passing is model.passing
        if not asked or of.look != model.look:
            return True  # it was put in order anew, with the errors of then
        if self._in_hand():
            return False
        self._scattered = not table.reorder(made.ordered, made.arrangement, self._pointed())
        if self._scattered:
            return True
        marks = model.errors.mark if model.errors is not None else ()
        entries = [model.entry(line) for line in table.visible_lines()]
        if any(entry >= 0 and marks[entry] == UNKNOWN for entry in entries):
            self.uncovered.emit()
        return True

    @Slot()
    def _chosen(self) -> None:
        if self._scattered:
            self._scattered = False
            self.look()

    def _pointed(self) -> int:
        """The line under the mouse, or −1."""
        viewport = self._table.viewport()
        if not viewport.underMouse():
            return -1
        return self._table.rowAt(viewport.mapFromGlobal(QCursor.pos()).y())

    def _in_hand(self) -> bool:
        """Whether the user is choosing, typing, scrolling, or looks at a menu."""
        if QApplication.mouseButtons() != Qt.MouseButton.NoButton or QApplication.activePopupWidget() is not None:
            return True
        if self._table.state() != QAbstractItemView.State.NoState:
            return True
        return time.monotonic() - self._touched < REST_SECONDS

    @Slot()
    def _touch(self) -> None:
        self._touched = time.monotonic()

    def eventFilter(self, watched: QObject, event: QEvent) -> bool:
        if event.type() in (QEvent.Type.KeyPress, QEvent.Type.Wheel):
            self._touch()
        return False
