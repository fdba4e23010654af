"""The tensor panel: filter bar and table together, following the session, and how a selection becomes an assignment.
What is shown is in model.py, texts.py and state.py, how it is painted in painting.py."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from PySide6.QtCore import QItemSelectionModel, QPoint, Qt, QTimer, Signal, Slot
from PySide6.QtWidgets import QVBoxLayout, QWidget

from app.job_service import JobService
from app.jobs import Done, Failed, JobId, Outcome
from app.nothing import Nothing
from app.panels.tensors.assigning import Assigner
from app.panels.tensors.columns import COLUMNS, PLACE
from app.panels.tensors.delegate import TensorDelegate
from app.panels.tensors.filterbar import FilterBar
from app.panels.tensors.following import OrderFollower
from app.panels.tensors.loading import FILTER, TABLE, FilterRequest, TableData, TableRequest, filter_task, table_task
from app.panels.tensors.menus import column_menu, tensor_menu
from app.panels.tensors.model import TensorModel
from app.panels.tensors.state import Look, Order
from app.panels.tensors.table import TensorTable
from app.session import Changes, Notice, Session, ShownError
from app.theme import current
from core.context import SILENT
from core.errors import WorkbenchError
from core.recipes.model import Strategy

if TYPE_CHECKING:
    import numpy as np

# A regular expression over more names than this is answered behind.
INLINE_REGEX = 4000
NO_MATCH = "No tensor matches: Esc in the filter empties it, Role and Dtype narrow the list, too."
# While many rows are selected, the other panels follow this long after the last change.
SELECT_MS = 40
# More than this selected elsewhere is taken over a turn of the event loop later.
MANY = 1000


class TensorsPanel(QWidget):
    """viewport_changed: other tensors may be on screen."""

    viewport_changed = Signal()

    def __init__(self, session: Session, jobs: JobService) -> None:
        super().__init__()
        self._session = session
        self._jobs = jobs
        self._theme = current()
        self.model = TensorModel(self)
        self._job: JobId | None = None
        self._filter_job: JobId | None = None
        self._late: set[str] = set()  # tensors whose error came while a table was being built
        self._opening = False  # other tensors, and none of them selected yet
        self._following = False  # the selection is being restored, nobody chose anything
        self._handing = False  # the session is being told what was selected here
        self._build()
        session.changed.connect(self._changed)
        session.selection_changed.connect(self._follow_selection)
        jobs.finished.connect(self._finished)
        if session.outline is not None:
            self._load()

    def _build(self) -> None:
        self.bar = FilterBar(self._theme, self)
        self.table = TensorTable(self.model, self._theme, self)
        self.table.setAccessibleName("Tensors")
        Nothing(self.table, lambda: NO_MATCH if self.bar.filter() else "", lambda: self.model.shown)
        self.follower = OrderFollower(self.table, self._jobs)
        self.follower.uncovered.connect(self.viewport_changed)
        self.delegate = TensorDelegate(self.table)
        self.table.setItemDelegate(self.delegate)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(0)
        layout.addWidget(self.bar)
        layout.addWidget(self.table, 1)
        self._select_timer = QTimer(self, singleShot=True, interval=SELECT_MS)
        self._select_timer.timeout.connect(self._hand_on_selection)
        # Where much was selected elsewhere, the other panels have a turn of their own.
        self._follow_timer = QTimer(self, singleShot=True, interval=0)
        self._follow_timer.timeout.connect(self._follow)
        self.bar.changed.connect(self._refilter)
        self.bar.grouped.connect(self._regroup)
        self.bar.left.connect(self._enter_table)
        self.table.typed.connect(self.bar.type_on)
        self.table.fold_asked.connect(self._fold)
        self.table.viewport_changed.connect(self.viewport_changed)
        self.table.customContextMenuRequested.connect(self._menu)
        self.table.selectionModel().selectionChanged.connect(self._selected)
        self.assigner = Assigner(self._session, self._theme, self.table, self._settle_selection)
        self.delegate.edit_requested.connect(self.assigner.edit)
        self.model.assigned.connect(self.assigner.assign_text)
        header = self.table.horizontalHeader()
        header.sortIndicatorChanged.connect(self._sort)
        header.setContextMenuPolicy(Qt.ContextMenuPolicy.CustomContextMenu)
        header.customContextMenuRequested.connect(self._header_menu)

    # Called by the window

    @property
    def busy(self) -> bool:
        """Whether the table is about to change."""
        if self._select_timer.isActive() or self._follow_timer.isActive():
            return True
        return self._job is not None or self._filter_job is not None

    def visible_names(self) -> list[str]:
        """Output names of the tensors on screen."""
        rows = self.model.rows
        if rows is None:
            return []
        entries = (self.model.entry(line) for line in self.table.visible_lines())
        return [rows.names[e] for e in entries if e >= 0]

    def focus_filter(self) -> None:
        self.bar.focus()

    def save_state(self) -> bytes:
        """Columns as they are, for restore_state."""
        return self.table.save_widths()

    def restore_state(self, state: bytes) -> None:
        if state:
            self.table.restore_widths(state)
            header = self.table.horizontalHeader()
            self._sort(header.sortIndicatorSection(), header.sortIndicatorOrder())

    def selected_names(self) -> tuple[str, ...]:
        """What an assignment would go to: the selected tensors, a block standing for its own."""
        if self._follow_timer.isActive():
            self._follow_timer.stop()
            self._follow()
        return self.model.names_at(self.table.selected_lines())

    def open_picker(self) -> None:
        """The popover, for the selection."""
        self.assigner.open_picker()

    def assign(self, strategy: Strategy | None) -> None:
        """Gives the selection a strategy; None lets the rules decide."""
        self.assigner.assign(self.selected_names(), strategy)

    def add_rule_like_selection(self) -> None:
        """A rule for all tensors of the selected roles, in front of the other rules."""
        self.assigner.add_rule_for_roles(self.selected_names())

    def select_alike(self) -> None:
        """All tensors of the selected roles, in all blocks."""
        rows = self.model.rows
        if rows is None:
            return
        roles = {rows.roles[rows.index[n]] for n in self.selected_names()}
        self.fold_all(False)
        self.table.select_lines([i for i, e in enumerate(self.model.lines) if e >= 0 and rows.roles[e] in roles])

    # Following the session

    def _changed(self, changes: Changes, initiator: object) -> None:
        if changes.checkpoint:
            checkpoint = self._session.checkpoint
            self.model.folded = frozenset()
            self.model.title = checkpoint.path.name if checkpoint is not None else ""
            if self._session.outline is None:
                self._clear()
        if (changes.outline or changes.plan) and self._session.outline is not None:
            self._load()
        if changes.errors:
            if self._job is not None:
                self._late |= changes.errors
            self._show_errors(changes.errors)

    def _clear(self) -> None:
        self._job = None
        self._following = True
        self._let_go()
        self.model.clear()
        self._following = False
        self._fill_menus()
        self._count()

    def _load(self) -> None:
        session, model = self._session, self.model
        outline = session.outline
        assert outline is not None
        plan = session.plan if session.plan is not None and session.plan.outline.tensors is outline.tensors else None
        rows = model.rows if model.rows is not None and model.rows.outline is outline else None
        self._late.clear()
        request = TableRequest(outline, plan, rows, session.known_errors(), self.bar.filter(), self._look())
        self._job = self._jobs.submit(table_task, request, title="Tensor table", lane="preview", key=TABLE)

    def _look(self) -> Look:
        """How the table will be laid out: with a filter, nothing is folded."""
        return replace(self.model.look, folded=frozenset() if self.bar.filter() else self.model.folded)

    def _let_go(self, rows_too: bool = True) -> None:
        """Before the table shows something else: what it showed is large."""
        model = self.model
        self._session.let_go(model.cells, model.errors, model.rows if rows_too else None)

    def _finished(self, job: JobId, outcome: Outcome) -> None:
        if job == self._job:
            self._job = None
            if isinstance(outcome, Done):
                self._show(outcome.result)
            elif isinstance(outcome, Failed):
                self._session.notify(Notice("error", f"Cannot show the tensors: {outcome.line}", outcome.details))
        elif job == self._filter_job:
            self._filter_job = None
            if isinstance(outcome, Done):
                self._filtered(outcome.result)
            elif isinstance(outcome, Failed):
                self.bar.show_wrong(outcome.line)

    def _show(self, data: TableData) -> None:
        self._settle_selection()
        new = data.rows is not self.model.rows
        selected = () if new else self._session.selection
        scroll = self.table.verticalScrollBar().value()
        title = self.model.headerData(PLACE["size"], Qt.Orientation.Horizontal)
        self._following = True
        self._let_go(new)
        others = self.model.show(data)
        if self.model.headerData(PLACE["size"], Qt.Orientation.Horizontal) != title:
            self.model.headerDataChanged.emit(Qt.Orientation.Horizontal, PLACE["size"], PLACE["size"])
        self._following = False
        if new:
            self._fill_menus()
        if data.filter != self.bar.filter():
            self._refilter()
        self._late, late = set(), self._late
        self._show_errors(late)
        if others:
            self._restore_selection(selected)
        if not new:
            self.table.verticalScrollBar().setValue(scroll)
        self._opening = self._opening or new
        # Which tensor is quantized, the plan says; a picture without it would be drawn twice.
        if self._opening and (data.cells is not None or self._session.plan_error):
            self._opening = False
            if not self._session.selection:
                self._select_first()
        self._count()
        self.viewport_changed.emit()

    def _select_first(self) -> None:
        """The first quantized tensor, so that no panel is empty without need."""
        cells = self.model.cells
        for line in self.table.visible_lines():
            entry = self.model.entry(line)
            if entry >= 0 and (cells is None or not cells.badge[entry]):
                self.table.setCurrentIndex(self.model.index(line, 0))
                return

    def _show_errors(self, names: frozenset[str] | set[str]) -> None:
        rows = self.model.rows
        if rows is None or not names:
            return
        self.model.on_screen = self.table.visible_lines()
        changed: dict[int, ShownError] = {}
        for name in names:
            error = self._session.error(name)
            if error is not None and name in rows.index:
                changed[rows.index[name]] = error
        if changed:
            self.model.set_errors(changed)
            self.follower.look()

    # Filter, order, folds

    @Slot()
    def _refilter(self) -> None:
        rows, wanted = self.model.rows, self.bar.filter()
        if rows is None:
            return
        if wanted.text.strip().startswith("re:") and len(rows) > INLINE_REGEX:
            request = FilterRequest(rows, wanted)
            self._filter_job = self._jobs.submit(filter_task, request, title="Filter", lane="preview", key=FILTER)
            return
        self._filter_job = None
        try:
            self._filtered(filter_task(FilterRequest(rows, wanted), SILENT))
        except WorkbenchError as error:
            self.bar.show_wrong(str(error))

    def _filtered(self, passing: np.ndarray | None) -> None:
        self.bar.show_wrong("")
        self._keeping_selection(lambda: self.model.set_filter(self.bar.filter(), passing))
        self._count()
        self.viewport_changed.emit()

    @Slot()
    def _enter_table(self) -> None:
        self.table.setFocus()
        if not self.table.currentIndex().isValid() and self.model.rowCount():
            self.table.setCurrentIndex(self.model.index(0, 0))

    @Slot(int, Qt.SortOrder)
    def _sort(self, section: int, direction: Qt.SortOrder) -> None:
        column = COLUMNS[section].id if 0 <= section < len(COLUMNS) else "name"
        order = Order(column, direction == Qt.SortOrder.DescendingOrder)
        self._keeping_selection(lambda: self.model.set_order(order))
        self.viewport_changed.emit()

    @Slot(bool)
    def _regroup(self, grouped: bool) -> None:
        self._keeping_selection(lambda: self.model.set_grouped(grouped))
        self.viewport_changed.emit()

    @Slot(list, bool)
    def _fold(self, lines: list[int], folded: bool) -> None:
        current = self.table.currentIndex()
        entry = self.model.entry(current.row()) if current.isValid() else None
        self._keeping_selection(lambda: self.model.fold(lines, folded))
        if entry is not None and entry in self.model.lines:
            index = self.model.index(self.model.lines.index(entry), current.column())
            self.table.selectionModel().setCurrentIndex(index, QItemSelectionModel.SelectionFlag.NoUpdate)
        self.viewport_changed.emit()

    def fold_all(self, folded: bool) -> None:
        self._keeping_selection(lambda: self.model.fold_all(folded))
        self.viewport_changed.emit()

    def _keeping_selection(self, change: Callable[[], None]) -> None:
        """Does something that resets the model, then selects again what is still there."""
        self._settle_selection()
        self._following = True
        try:
            change()
        finally:
            self._following = False
        self._restore_selection(self._session.selection)

    def _restore_selection(self, names: Sequence[str]) -> None:
        if not names:
            return
        lines = self.model.lines_of(names)
        self._following = True
        self.table.select_lines(lines)
        self._following = False

    def _fill_menus(self) -> None:
        rows = self.model.rows
        self.bar.offer(rows.role_names if rows is not None else (), rows.dtype_names if rows is not None else ())

    def _count(self) -> None:
        self.bar.show_count(self.model.shown, len(self.model.rows) if self.model.rows is not None else 0)

    # Selection

    @Slot()
    def _selected(self) -> None:
        if not self._following:
            self._select_timer.start()

    def _settle_selection(self) -> None:
        """Before lines change: the session must know what was selected last."""
        if self._select_timer.isActive():
            self._select_timer.stop()
            self._hand_on_selection()

    @Slot()
    def _hand_on_selection(self) -> None:
        self._handing = True
        try:
            self._session.select(self.selected_names(), self)
        finally:
            self._handing = False

    @Slot(object)
    def _follow_selection(self, names: tuple[str, ...]) -> None:
        self._follow_timer.stop()
        if self._handing:
            return
        if len(names) > MANY:
            self._follow_timer.start()
        else:
            self._follow()

    @Slot()
    def _follow(self) -> None:
        names = self._session.selection
        if self.model.rows is not None and names != self.selected_names():
            self._restore_selection(names)
            lines = self.model.lines_of(names[:1])
            if lines:
                self.table.scrollTo(self.model.index(lines[0], 0))

    # Menus

    def _menu(self, point: QPoint) -> None:
        tensor_menu(self).popup(self.table.viewport().mapToGlobal(point))

    def _header_menu(self, point: QPoint) -> None:
        column_menu(self.table).popup(self.table.horizontalHeader().mapToGlobal(point))
