"""The experiments panel: a table of all runs, and size against KLD as a plot. What is shown is in state.py; rows are
read from the log by a preview job whenever a job ended."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from PySide6.QtCore import (
    QAbstractTableModel,
    QModelIndex,
    QPersistentModelIndex,
    QSize,
    Qt,
    QUrl,
    Signal,
    Slot,
)
from PySide6.QtGui import QAction, QDesktopServices, QGuiApplication, QKeySequence, QShowEvent
from PySide6.QtWidgets import (
    QAbstractItemView,
    QFileDialog,
    QHeaderView,
    QLabel,
    QSplitter,
    QStackedLayout,
    QTableView,
    QVBoxLayout,
    QWidget,
)

from app.buttons import flat_button
from app.cells import dress
from app.filterline import FilterLine
from app.job_service import JobService
from app.jobs import Done, Failed, JobId, JobInfo, Outcome
from app.labels import embolden, empty_label, hairline
from app.panels.experiments.state import COLUMNS, ICONS, KINDS, ExperimentsState, tooltip
from app.session import Notice, Session
from app.theme import ICON, Theme, current
from core.atomic import write_whole
from core.context import JobContext
from core.errors import OutputError
from core.evaluation.experiments import Experiment

EMPTY = (
    "Every quantization, evaluation and generation leaves a row here, from this window and from the command line. "
    "Press Evaluate recipe in the Run menu to see what the present recipe would cost."
)
Index = QModelIndex | QPersistentModelIndex


def read_task(request: None, ctx: JobContext) -> tuple[Experiment, ...]:
    """All rows of the log."""
    from core.evaluation.experiments import Log

    return Log().rows()


class ExperimentsModel(QAbstractTableModel):
    def __init__(self, state: ExperimentsState, theme: Theme, parent: QWidget) -> None:
        super().__init__(parent)
        self._state, self._theme = state, theme

    def rowCount(self, parent: Index | None = None) -> int:
        return 0 if parent is not None and parent.isValid() else len(self._state.shown)

    def columnCount(self, parent: Index | None = None) -> int:
        return 0 if parent is not None and parent.isValid() else len(COLUMNS)

    def headerData(self, section: int, orientation: Qt.Orientation, role: int = Qt.ItemDataRole.DisplayRole) -> Any:
        if orientation != Qt.Orientation.Horizontal or not 0 <= section < len(COLUMNS):
            return None
        column = COLUMNS[section]
        if role == Qt.ItemDataRole.DisplayRole:
            return column.title
        if role == Qt.ItemDataRole.ToolTipRole:
            return column.help
        if role == Qt.ItemDataRole.TextAlignmentRole:
            return _side(column.right)
        return None

    def data(self, index: Index, role: int = Qt.ItemDataRole.DisplayRole) -> Any:
        if not index.isValid() or index.row() >= len(self._state.shown):
            return None
        row, column = self._state.shown[index.row()], COLUMNS[index.column()]
        roles = Qt.ItemDataRole
        if role == roles.DisplayRole:
            return column.text(row)
        if role == roles.ToolTipRole:
            return tooltip(row)
        if role == roles.TextAlignmentRole:
            return _side(column.right)
        if role == roles.ForegroundRole and index.column() == 0:
            return self._theme.colors.muted
        if role == roles.DecorationRole and column.title == "what":
            return self._theme.icon(ICONS.get(row.kind, "flask"), "muted")
        if role == roles.AccessibleTextRole and column.title == "what":
            return f"{row.kind}: {column.text(row)}"
        return None

    def sort(self, column: int, order: Qt.SortOrder = Qt.SortOrder.AscendingOrder) -> None:
        self.layoutAboutToBeChanged.emit()
        kept = {i: self._state.shown[i.row()].id for i in self.persistentIndexList()}
        self._state.sort(column, order == Qt.SortOrder.DescendingOrder)
        places = {row.id: n for n, row in enumerate(self._state.shown)}
        for old, number in kept.items():
            self.changePersistentIndex(
                old, self.index(places[number], old.column()) if number in places else QModelIndex()
            )
        self.layoutChanged.emit()

    def reset(self, change: Callable[[], None]) -> None:
        """Other rows."""
        self.beginResetModel()
        change()
        self.endResetModel()


def _side(right: bool) -> Qt.AlignmentFlag:
    return (Qt.AlignmentFlag.AlignRight if right else Qt.AlignmentFlag.AlignLeft) | Qt.AlignmentFlag.AlignVCenter


class ExperimentsPanel(QWidget):
    """Follows the log. open_url shows a folder, ask_path a file to write; tests put their own there.

    changed  the rows were read again
    """

    changed = Signal()

    def __init__(self, session: Session, jobs: JobService) -> None:
        super().__init__()
        self._session, self._jobs, self._theme = session, jobs, current()
        self.state = ExperimentsState()
        self.model = ExperimentsModel(self.state, self._theme, self)
        self.open_url: Callable[[QUrl], object] = QDesktopServices.openUrl
        self.ask_path: Callable[[str, str], str] = lambda name, kinds: QFileDialog.getSaveFileName(
            self, "Export", name, kinds
        )[0]
        self._reading: JobId | None = None
        self._heavy: set[JobId] = {info.id for info in jobs.jobs() if info.lane == "heavy"}
        self._build()
        jobs.queued.connect(self._queued)
        jobs.finished.connect(self._finished)
        self._theme.changed.connect(self._restyle)
        self.refresh()

    # Building

    def _build(self) -> None:
        self.empty = empty_label(EMPTY, 48, 8)
        self.empty.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
        self._build_table()
        left = QWidget()
        column = QVBoxLayout(left)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(0)
        self.filter = self._bar()
        column.addWidget(self.filter)
        column.addWidget(hairline())
        column.addWidget(self.table, 1)
        self.split = QSplitter(Qt.Orientation.Horizontal)
        self.split.setChildrenCollapsible(False)
        self.split.addWidget(left)
        self.split.addWidget(self._plot())
        self.split.setStretchFactor(0, 3)
        self.split.setStretchFactor(1, 2)
        self.split.setSizes([820, 420])
        self._stack = QStackedLayout(self)
        self._stack.addWidget(self.empty)
        self._stack.addWidget(self.split)

    def _build_table(self) -> None:
        self.table = QTableView()
        self.table.setModel(self.model)
        self.table.setIconSize(QSize(ICON, ICON))
        self.table.setVerticalScrollMode(QAbstractItemView.ScrollMode.ScrollPerPixel)
        self.table.setHorizontalScrollMode(QAbstractItemView.ScrollMode.ScrollPerPixel)
        self.table.setWordWrap(False)
        self.table.setTabKeyNavigation(False)
        dress(self.table)
        header = self.table.horizontalHeader()
        for n, column in enumerate(COLUMNS):
            extra = 28 + (ICON + 4 if column.title == "what" else 0)
            self.table.setColumnWidth(n, self.fontMetrics().horizontalAdvance(column.widest) + extra)
        header.setSectionResizeMode(QHeaderView.ResizeMode.Interactive)
        header.setStretchLastSection(False)
        self.table.setSortingEnabled(True)
        self.table.horizontalHeader().setSectionsClickable(True)
        self.table.sortByColumn(0, Qt.SortOrder.DescendingOrder)
        self.table.selectionModel().selectionChanged.connect(lambda *_: self._mark())
        for text, icon, handler, key in (
            ("Copy rows", "copy", self.copy, QKeySequence(QKeySequence.StandardKey.Copy)),
            ("Reveal output", "folder", self.reveal, QKeySequence()),
        ):
            action = QAction(text, self.table)
            action.setIcon(self._theme.icon(icon))
            action.setShortcut(key)
            action.setShortcutContext(Qt.ShortcutContext.WidgetShortcut)
            action.triggered.connect(handler)
            self.table.addAction(action)
        self.table.setContextMenuPolicy(Qt.ContextMenuPolicy.ActionsContextMenu)
        self.table.doubleClicked.connect(lambda _: self.reveal())

    def _bar(self) -> FilterLine:
        bar = FilterLine("Filter runs", "Only runs that hold all of these words: model, recipe, device")
        bar.offer([title for title, _ in KINDS], "Kind of run", "Only runs of this kind")
        bar.changed.connect(self._filter)
        for icon, hint, handler in (
            ("arrow-clockwise", "Read the log again", self.refresh),
            ("copy", "Copy the selected rows, or all that are shown", self.copy),
            ("folder", "Reveal the selected run's output in its folder", self.reveal),
            ("file-arrow-down", "Export the rows shown as CSV", self.export),
        ):
            bar.add(flat_button(self._theme, icon, hint, handler=handler))
        return bar

    def _plot(self) -> QWidget:
        from app.panels.experiments.plot import FrontPlot

        self.title = QLabel()
        self.title.setContentsMargins(12, 6, 12, 2)
        embolden(self.title)
        self.plot = FrontPlot(self.state)
        self.plot.picked.connect(self._pick)
        self.plot.exports.failed.connect(self._tell)
        side = QWidget()
        column = QVBoxLayout(side)
        column.setContentsMargins(0, 0, 0, 4)
        column.setSpacing(0)
        column.addWidget(self.title)
        column.addWidget(self.plot, 1)
        return side

    # Following the log

    @Slot()
    def refresh(self) -> None:
        """Reads the log in the background."""
        self._reading = self._jobs.submit(read_task, None, title="Experiments", lane="preview", key="experiments")

    def showEvent(self, event: QShowEvent) -> None:
        super().showEvent(event)
        self.refresh()  # another program may have written

    def _queued(self, info: JobInfo) -> None:
        if info.lane == "heavy":
            self._heavy.add(info.id)

    def _finished(self, job: JobId, outcome: Outcome) -> None:
        if job in self._heavy:
            self._heavy.discard(job)
            self.refresh()
        elif job == self._reading:
            self._reading = None
            if isinstance(outcome, Done):
                self._take(outcome.result, "")
            elif isinstance(outcome, Failed):
                self._take((), outcome.line)

    def _take(self, rows: tuple[Experiment, ...], error: str) -> None:
        if rows != self.state.rows or error != self.state.error:
            chosen = {row.id for row in self.chosen()}
            self.model.reset(lambda: self.state.take(rows, error))
            self._select(chosen)
            self._show()
        self.changed.emit()

    def _show(self) -> None:
        self.empty.setText(self.state.error or EMPTY)
        self._stack.setCurrentIndex(1 if self.state.rows else 0)
        self.title.setText(self.state.finding or "Evaluations appear here: size against KLD")
        self.plot.refresh(self.chosen())

    @Slot()
    def _filter(self) -> None:
        kind = KINDS[self.filter.choice.currentIndex()][1]
        self.model.reset(lambda: self.state.filter(self.filter.words.text(), kind))
        self._show()

    # Selected rows

    def chosen(self) -> tuple[Experiment, ...]:
        """The selected rows, in order."""
        rows = sorted({index.row() for index in self.table.selectionModel().selectedRows()})
        return tuple(self.state.shown[row] for row in rows if row < len(self.state.shown))

    def _select(self, ids: set[int]) -> None:
        from PySide6.QtCore import QItemSelectionModel

        flags = QItemSelectionModel.SelectionFlag
        selection = self.table.selectionModel()
        selection.clearSelection()
        for n, row in enumerate(self.state.shown):
            if row.id in ids:
                selection.select(self.model.index(n, 0), flags.Select | flags.Rows)

    def _pick(self, id: object) -> None:
        """A point was clicked."""
        self._select({int(id)})  # type: ignore[call-overload]
        for n, row in enumerate(self.state.shown):
            if row.id == id:
                self.table.scrollTo(self.model.index(n, 0))

    def _mark(self) -> None:
        self.plot.mark(self.chosen())

    @Slot()
    def copy(self) -> None:
        """The selected rows, or all that are shown, to the clipboard, for a spreadsheet."""
        QGuiApplication.clipboard().setText(self.state.csv(self.chosen() or None))

    @Slot()
    def reveal(self) -> None:
        """Opens the folder of the first selected run's output, or of its model where nothing was written."""
        for row in self.chosen()[:1]:
            path = Path(row.out or row.model)
            folder = path if path.is_dir() else path.parent
            if folder.is_dir():
                self.open_url(QUrl.fromLocalFile(str(folder)))
            else:
                self._session.notify(Notice("warning", f"{path} is not there any more"))

    @Slot(str)
    def _tell(self, line: str) -> None:
        self._session.notify(Notice("error", line))

    @Slot()
    def export(self) -> None:
        """Asks for a path and writes the rows shown."""
        chosen = self.ask_path("experiments.csv", "Comma-separated values (*.csv)")
        if not chosen:
            return
        path = chosen if chosen.lower().endswith(".csv") else f"{chosen}.csv"
        try:
            write_whole(path, self.state.csv())
        except OutputError as error:
            self._session.notify(Notice("error", str(error)))
        else:
            self._session.notify(Notice("note", f"Experiments saved as {path}"))

    @Slot()
    def _restyle(self) -> None:
        self.plot.refresh(self.chosen())
