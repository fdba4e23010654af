"""The error map panel: layers along x, roles down y, the worst tensors beside it. A click selects, a dragged rectangle
selects what it touches, a lasso what it holds, and a selection gets a strategy from the same picker as in the table."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

from PySide6.QtCore import QAbstractTableModel, QModelIndex, QObject, QPoint, QRect, Qt, QTimer, Slot
from PySide6.QtGui import QShowEvent
from PySide6.QtWidgets import (
    QComboBox,
    QFrame,
    QHBoxLayout,
    QHeaderView,
    QMenu,
    QScrollArea,
    QSplitter,
    QStackedLayout,
    QTableView,
    QVBoxLayout,
    QWidget,
)

from app.buttons import flat_button
from app.cells import dress
from app.edits import AssignStrategy
from app.glossary import about
from app.job_service import JobService
from app.labels import ElidedLabel, embolden, empty_label
from app.panels.errormap.canvas import MapCanvas
from app.panels.errormap.layout import METRICS, Metric, map_task
from app.panels.errormap.state import ErrorMapState, Worst
from app.panels.errormap.widths import Widths
from app.panels.preview import Asked, PreviewPanel
from app.plotting.exporting import Exporter
from app.plotting.maps import ColorScale, Scale
from app.plotting.turns import Turns
from app.session import Changes, Notice, Session
from app.strategies.choices import strategy_choices
from app.strategies.picker import StrategyPicker, picker_title
from app.theme import current
from core.errors import WorkbenchError
from core.recipes.model import Strategy

# Errors come in at some ten batches a second; the map follows less often.
REDRAW_MS = 500


class _WorstModel(QAbstractTableModel):
    HEADS = ("tensor", "strategy", "SQNR, dB", "relative MSE", "largest error", "cosine")

    def __init__(self, parent: QObject) -> None:
        super().__init__(parent)
        self.lines: list[Worst] = []

    def show(self, lines: list[Worst]) -> None:
        if lines == self.lines:
            return
        self.beginResetModel()
        self.lines = lines
        self.endResetModel()

    def rowCount(self, parent=QModelIndex()) -> int:  # noqa: B008
        return 0 if parent.isValid() else len(self.lines)

    def columnCount(self, parent=QModelIndex()) -> int:  # noqa: B008
        return 0 if parent.isValid() else len(self.HEADS)

    def headerData(self, section: int, orientation: Qt.Orientation, role: int = Qt.ItemDataRole.DisplayRole):
        if orientation != Qt.Orientation.Horizontal:
            return None
        if role == Qt.ItemDataRole.DisplayRole:
            return self.HEADS[section]
        if role == Qt.ItemDataRole.TextAlignmentRole:
            return _aligned(section)
        if role == Qt.ItemDataRole.ToolTipRole:
            return about(self.HEADS[section])
        return None

    def data(self, index, role: int = Qt.ItemDataRole.DisplayRole):
        if not index.isValid():
            return None
        line = self.lines[index.row()]
        if role == Qt.ItemDataRole.TextAlignmentRole:
            return _aligned(index.column())
        if role == Qt.ItemDataRole.ToolTipRole:
            return f"{line.name}{', from a sample of rows' if line.sampled else ''}"
        if role != Qt.ItemDataRole.DisplayRole:
            return None
        errors = (line.sqnr, line.mse, line.largest, line.cosine)
        if index.column() < 2:
            return (line.name, line.strategy)[index.column()]
        return METRICS[index.column() - 2].text(errors[index.column() - 2]).removesuffix(" dB")


def _aligned(section: int) -> Qt.AlignmentFlag:
    side = Qt.AlignmentFlag.AlignLeft if section < 2 else Qt.AlignmentFlag.AlignRight
    return side | Qt.AlignmentFlag.AlignVCenter


class ErrorMapPanel(PreviewPanel):
    """Errors of all tensors, by layer and role."""

    key = "errormap"

    def __init__(self, session: Session, jobs: JobService) -> None:
        super().__init__(session, jobs)
        self._theme = current()
        self.state = ErrorMapState()
        self._drawn: tuple[int, Metric] | None = None
        self._unmarked = False  # another selection since the panel was last seen
        self.picker: StrategyPicker | None = None
        self._redraw = QTimer(self)
        self._redraw.setSingleShot(True)
        self._redraw.setInterval(REDRAW_MS)
        self._redraw.timeout.connect(self.show_state)
        self._turns = Turns(self)
        self._build()
        session.changed.connect(self._errors_came)
        self.watch()

    def _build(self) -> None:
        self.empty = empty_label(self.state.empty)
        self.title = ElidedLabel("", Qt.TextElideMode.ElideMiddle)
        embolden(self.title)
        self.read_off = ElidedLabel("muted", apart="   ")
        self.scale = ColorScale()
        self.metric_box = QComboBox()
        self.metric_box.setAccessibleName("Metric")
        for metric in METRICS:
            self.metric_box.addItem(metric.title, metric.id)
            self.metric_box.setItemData(self.metric_box.count() - 1, metric.help, Qt.ItemDataRole.ToolTipRole)
        self.metric_box.setToolTip("What the colours show")
        self.metric_box.currentIndexChanged.connect(self._metric_chosen)
        self.apart = flat_button(
            self._theme, "rows", "A line for every expert, or one for all of a layer", "Experts apart"
        )
        self.apart.setCheckable(True)
        self.apart.toggled.connect(self._toggle_apart)
        self.choices = self.metric_box, self.apart  # the next window has them as they were left
        self.assign = flat_button(self._theme, "tag", "A strategy for the selected tensors", "Assign …")
        self.assign.clicked.connect(lambda: self.open_picker())
        head = QHBoxLayout()
        head.setSpacing(8)
        head.addWidget(self.title, 1)
        self.lasso = flat_button(
            self._theme, "scribble-loop", "Draw a line around cells instead of a rectangle (or hold Alt)", "Lasso"
        )
        self.lasso.setCheckable(True)
        self.lasso.toggled.connect(self._toggle_lasso)
        for widget in (self.apart, self.lasso, self.assign, self.metric_box):
            head.addWidget(widget)
        self.canvas = MapCanvas()
        self.exports = Exporter(self.canvas, self.canvas.paint, lambda: self.state.csv(), lambda: "error-map")
        self.exports.failed.connect(self._tell)
        self.canvas.chosen.connect(self._cells_chosen)
        self.canvas.hovered.connect(self._hovered)
        self.canvas.menu_asked.connect(self._open_menu)
        self.scroller = QScrollArea()
        self.scroller.setWidgetResizable(True)
        self.scroller.setFrameShape(QFrame.Shape.NoFrame)
        self.scroller.setWidget(self.canvas)
        self.scroller.setFocusPolicy(Qt.FocusPolicy.NoFocus)  # the map in it takes the keys
        under = QHBoxLayout()
        under.setSpacing(16)
        under.addWidget(self.read_off, 1)
        under.addWidget(self.scale)
        left = QWidget()
        column = QVBoxLayout(left)
        column.setContentsMargins(0, 0, 8, 0)
        column.setSpacing(4)
        column.addWidget(self.scroller, 1)
        column.addLayout(under)
        self.list = QTableView()
        self.model = _WorstModel(self.list)
        self.list.setModel(self.model)
        self.list.setWordWrap(False)
        self.list.setTextElideMode(Qt.TextElideMode.ElideMiddle)
        dress(self.list, words=True)
        header = self.list.horizontalHeader()
        header.setSectionResizeMode(0, QHeaderView.ResizeMode.Stretch)
        self.widths = Widths(self.list)
        self.list.setAccessibleName("Worst tensors first")
        self.list.selectionModel().selectionChanged.connect(self._lines_chosen)
        self.split = QSplitter(Qt.Orientation.Horizontal)
        self.split.setChildrenCollapsible(False)
        self.split.addWidget(left)
        self.split.addWidget(self.list)
        self.split.setStretchFactor(0, 1)
        self.split.setStretchFactor(1, 1)
        self.split.setSizes([640, 600])
        full = QWidget()
        box = QVBoxLayout(full)
        box.setContentsMargins(12, 4, 12, 4)
        box.setSpacing(4)
        box.addLayout(head)
        box.addWidget(self.split, 1)
        self._stack = QStackedLayout(self)
        self._stack.addWidget(self.empty)
        self._stack.addWidget(full)

    @property
    def busy(self) -> bool:
        """Whether the map is being made, or its list written."""
        return self._job is not None or self._turns.busy

    # --- following ----------------------------------------------------------------------------------------------------

    def follow(self) -> bool:
        return self.state.follow(self._session)

    def asked(self) -> Asked | None:
        request = self.state.request
        return Asked(map_task, request, "Error map") if request is not None else None

    def take(self, value: Any, final: bool) -> None:
        if final:
            self.state.take(cast(Any, value), self._session)

    def fail(self, line: str) -> None:
        self.state.fail(line)

    @Slot()
    def blank(self) -> None:
        """The map of the plan before stays until the new one is there: its tensors are the same."""

    def _selected(self, names: object) -> None:
        if self.isVisible():
            self._mark()
        else:
            self._unmarked = True

    def _errors_came(self, changes: Changes, initiator: object) -> None:
        # Other calibration data, another plan: a map that is made anew has it all.
        if not changes.errors or changes.plan or changes.checkpoint or changes.calibration:
            return
        if self._job is not None:
            self.state.note(changes.errors)
        if self.state.values is not None:
            self.state.update(self._session, changes.errors)
            if self.isVisible() and not self._redraw.isActive():
                self._redraw.start()

    # --- showing ------------------------------------------------------------------------------------------------------

    @Slot()
    def show_state(self) -> None:
        """Draws what changed since it was drawn last: most changes of the session change nothing here."""
        state = self.state
        if self._drawn == (state.revision, state.metric):
            return
        self._drawn = state.revision, state.metric
        self.empty.setText(state.empty)
        if state.failure:
            self._stack.setCurrentIndex(1)
            self.title.setText(state.title())
            self.read_off.setText(state.failure)
            return
        if not state.ready or state.layout is None:
            self._stack.setCurrentIndex(0)
            return
        self._stack.setCurrentIndex(1)
        self.title.setText(state.title())
        cells = state.cells()
        low, high = state.limits(cells.worst)
        metric = state.metric
        scale = Scale(low, high, metric.logarithmic, flipped=not metric.worse_is_more)
        self.canvas.show_cells(cells, state.layout.lines, state.layout.columns, scale, metric.number)
        # The worst is bright, and stands at the right.
        ends = (low, high) if metric.worse_is_more else (high, low)
        known = bool((cells.kind == 1).any())
        texts = [metric.text(v) for v in ends] if known else ["", ""]
        self.scale.show_scale(texts[0], texts[1])
        self.scale.setToolTip(f"{metric.title}, best to worst; hatched: not measured yet; a dash: kept as it is")
        self.apart.setVisible(state.layout.experts)
        self._mark()
        self._turns.begin(self._list_steps())

    def _list_steps(self) -> Iterator[None]:
        """The list, after the map."""
        yield
        if self.state.ready:
            self.model.show(self.state.worst_first())

    def showEvent(self, event: QShowEvent) -> None:
        super().showEvent(event)
        if self._unmarked:
            self._mark()

    def _mark(self) -> None:
        self._unmarked = False
        names = self._session.selection
        self.assign.setEnabled(bool(names))
        if self.state.ready:
            self.canvas.show_selection(self.state.cells_of(names))

    # --- acting -------------------------------------------------------------------------------------------------------

    @Slot(int)
    def _metric_chosen(self, index: int) -> None:
        self.state.metric = METRICS[index]
        self.show_state()

    @Slot(bool)
    def _toggle_apart(self, on: bool) -> None:
        self.state.apart = on
        self.refresh()

    @Slot(bool)
    def _toggle_lasso(self, on: bool) -> None:
        self.canvas.lasso = on

    @Slot(int, int)
    def _hovered(self, line: int, column: int) -> None:
        self.read_off.setText(self.state.read_off(line, column) if line >= 0 and self.state.ready else "")

    @Slot(object, bool)
    def _cells_chosen(self, cells: object, add: bool) -> None:
        if not self.state.ready:
            return
        names = self.state.in_cells(cast(Any, cells))
        if add:
            before = self._session.selection
            seen = set(before)
            names = (*before, *(n for n in names if n not in seen))
        self._session.select(names, self)

    def _lines_chosen(self, *_: object) -> None:
        rows = sorted({index.row() for index in self.list.selectionModel().selectedRows()})
        if rows:
            self._session.select(tuple(self.model.lines[i].name for i in rows), self)

    def open_picker(self, at: QPoint | None = None) -> None:
        """The picker for the selection, beside the mouse or under the button."""
        session, layout = self._session, self.state.layout
        names = session.selection
        outline = session.outline
        if outline is None or layout is None or not names:
            session.notify(Notice("note", "Select tensors in the map first, then assign a strategy"))
            return
        tensors = [outline.tensors[layout.index[n]] for n in names if n in layout.index]
        planned = {str(p.strategy) for p in map(session.tensor, names) if p is not None}
        picker = StrategyPicker(
            self._theme,
            picker_title(names, self.fontMetrics()),
            planned.pop() if len(planned) == 1 else "",
            strategy_choices(outline, session.target, tensors),
            len(names),
            self.window(),
            by_hand=bool(session.recipe.rules),
        )
        picker.chosen.connect(lambda strategy: self._assign(names, strategy))
        corner = at if at is not None else self.assign.mapToGlobal(QPoint(0, self.assign.height()))
        self.picker = picker
        picker.open_at(QRect(corner, self.assign.size()))

    def _assign(self, names: tuple[str, ...], strategy: Strategy | None) -> None:
        try:
            self._session.apply(AssignStrategy(names, strategy), self)
        except WorkbenchError as error:
            self._session.notify(Notice("error", str(error)))

    @Slot(str)
    def _tell(self, line: str) -> None:
        self._session.notify(Notice("error", line))

    @Slot(QPoint)
    def _open_menu(self, at: QPoint) -> None:
        menu = self.menu(at)
        menu.popup(at)

    def menu(self, at: QPoint) -> QMenu:
        """Assigning, copying, exporting."""
        menu = QMenu(self)
        menu.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        icon = self._theme.icon
        assign = menu.addAction(icon("tag"), "Assign strategy …", lambda: self.open_picker(at))
        assign.setEnabled(bool(self._session.selection))
        menu.addSeparator()
        self.exports.add_to(menu)
        return menu
