"""The bench panel: a table of strategies and a chart of size against error for the selected tensors; a field to type
more strategies; a double click applies one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from PySide6.QtCore import QAbstractTableModel, QEvent, QModelIndex, QObject, QSize, Qt, QTimer, Slot
from PySide6.QtGui import QColor, QGuiApplication, QKeySequence, QResizeEvent, QShortcut
from PySide6.QtWidgets import (
    QBoxLayout,
    QCompleter,
    QHBoxLayout,
    QHeaderView,
    QLineEdit,
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
from app.jobs import JobId
from app.labels import ElidedLabel, Heading, empty_label, hairline
from app.panels.bench.chart import BenchChart
from app.panels.bench.state import BenchState, measurable
from app.panels.bench.widths import Widths
from app.panels.preview import Asked, PreviewPanel
from app.plotting.turns import Turns
from app.plotting.words import short
from app.session import Notice, Session
from app.sizes import size_text, unit_of
from app.theme import current
from core.analysis.bench import BenchRow, bench
from core.analysis.error import decibel
from core.errors import WorkbenchError

# From this width on the chart stands beside the table.
BESIDE = 900
SOON_MS = 60
HEADS = ("strategy", "size", "bpw", "SQNR, dB", "relative MSE", "weighted", "time, ms")
HELP = {1: "Exact, of these tensors in the target's container", 6: "About, on one core"}


class _Rows(QAbstractTableModel):
    def __init__(self, state: BenchState, parent: QObject) -> None:
        super().__init__(parent)
        self._state = state
        self.rows: list[BenchRow] = []
        self._front: set[str] = set()
        self._current = ""
        self._unit = unit_of(0)  # of sizes, by the largest

    def refresh(self) -> bool:
        """Says what changed: cells only, as long as the same strategies stand in the same lines. Whether anything
        did."""
        rows, front = self._state.listed(), self._state.front()
        if (rows, front) == (self.rows, self._front) and self._current == self._state.current:
            return False
        same = [row.label for row in rows] == [row.label for row in self.rows]
        if not same:
            self.beginResetModel()
        self.rows, self._front, self._current = rows, front, self._state.current
        unit, self._unit = self._unit, unit_of(max((row.nbytes for row in rows if row.sums is not None), default=0))
        if not same:
            self.endResetModel()
        elif rows:
            self.dataChanged.emit(self.index(0, 0), self.index(len(rows) - 1, len(HEADS) - 1))
        if self._unit != unit:
            self.headerDataChanged.emit(Qt.Orientation.Horizontal, 1, 1)
        return True

    def words(self, section: int) -> list[str]:
        """All that stands in a column."""
        return [str(self.data(self.index(i, section)) or "") for i in range(len(self.rows))]

    def rowCount(self, parent=QModelIndex()) -> int:  # noqa: B008
        return 0 if parent.isValid() else len(self.rows)

    def columnCount(self, parent=QModelIndex()) -> int:  # noqa: B008
        return 0 if parent.isValid() else len(HEADS)

    def headerData(self, section: int, orientation: Qt.Orientation, role: int = Qt.ItemDataRole.DisplayRole):
        if orientation != Qt.Orientation.Horizontal:
            return None
        if role == Qt.ItemDataRole.DisplayRole:
            return f"size, {self._unit[0]}" if section == 1 else HEADS[section]
        if role == Qt.ItemDataRole.ToolTipRole:
            return about(HEADS[section], HELP.get(section, ""))
        return _aligned(section) if role == Qt.ItemDataRole.TextAlignmentRole else None

    def data(self, index, role: int = Qt.ItemDataRole.DisplayRole):
        if not index.isValid():
            return None
        row, column = self.rows[index.row()], index.column()
        if role == Qt.ItemDataRole.TextAlignmentRole:
            return _aligned(column)
        if role == Qt.ItemDataRole.DecorationRole and column == 0:
            return QColor(current().color_for(row.label)) if row.sums is not None else None
        if role == Qt.ItemDataRole.FontRole and row.label == self._state.current:
            font = QGuiApplication.font()
            font.setBold(True)
            return font
        if role == Qt.ItemDataRole.ForegroundRole and row.sums is None:
            return current().colors.muted
        if role == Qt.ItemDataRole.ToolTipRole:
            where = "On the front: nothing here is smaller and as good. " if row.label in self._front else ""
            return f"{where}{row.note}".strip() or None
        if role != Qt.ItemDataRole.DisplayRole:
            return None
        if column == 0:
            return f"{row.label} ●" if row.label in self._front else row.label
        if row.sums is None:
            return row.note if column == 1 else ""
        return _cell(row, column, self._unit[1])


def _cell(row: BenchRow, column: int, unit: int) -> str:
    if column == 1:
        return size_text(row.nbytes, unit)
    milliseconds = None if row.seconds is None else 1e3 * row.seconds
    value = (None, None, row.bpw, row.sqnr_db, row.relative_mse, row.weighted, milliseconds)[column]
    if value is None:
        return "–"
    if column == 3:
        return decibel(value)
    if column == 6:
        return f"{value:,.{2 if value < 1 else 1 if value < 100 else 0}f}"
    return f"{value:.2f}" if column == 2 else short(value, True, 2)


def _aligned(section: int) -> Qt.AlignmentFlag:
    side = Qt.AlignmentFlag.AlignLeft if section == 0 else Qt.AlignmentFlag.AlignRight
    return side | Qt.AlignmentFlag.AlignVCenter


class BenchPanel(PreviewPanel):
    """The selected tensors under several strategies."""

    key = "bench"

    def __init__(self, session: Session, jobs: JobService) -> None:
        super().__init__(session, jobs)
        self._theme = current()
        self.state = BenchState()
        self._chosen = ""
        self._searched: object = None  # the outline whose tensors are looked through
        self._turns = Turns(self)
        self._soon = QTimer(self)  # rows come in one by one: those of a moment are drawn together
        self._soon.setSingleShot(True)
        self._soon.setInterval(SOON_MS)
        self._soon.timeout.connect(self.show_state)
        self._build()
        self.watch()

    def _build(self) -> None:
        self.empty = empty_label(self.state.empty)
        self.heading = Heading()
        self.chart = BenchChart(self.state.csv)
        self.chart.exports.failed.connect(self._tell)
        self.chart.pointed.connect(self._point_at)
        self.chart.applied.connect(self.apply)
        self.table = QTableView()
        self.model = _Rows(self.state, self.table)
        self.table.setModel(self.model)
        self.table.setWordWrap(False)
        self.table.setSelectionMode(QTableView.SelectionMode.SingleSelection)
        dress(self.table)
        self.table.setIconSize(QSize(10, 10))  # the strategy's colour
        header = self.table.horizontalHeader()
        header.setSectionResizeMode(QHeaderView.ResizeMode.Fixed)
        header.setSectionResizeMode(0, QHeaderView.ResizeMode.Stretch)
        self.widths = Widths(self.table, self.model, len(HEADS))
        self.widths.fit(weighted=False)
        self.table.viewport().installEventFilter(self)
        self.table.setAccessibleName("Strategies")
        self.table.doubleClicked.connect(lambda index: self.apply(self.model.rows[index.row()].label))
        self.table.selectionModel().currentRowChanged.connect(self._row_chosen)
        remove = QShortcut(QKeySequence("Delete"), self.table)
        remove.setContext(Qt.ShortcutContext.WidgetShortcut)
        remove.activated.connect(self.remove_chosen)
        enter = QShortcut(QKeySequence("Return"), self.table)
        enter.setContext(Qt.ShortcutContext.WidgetShortcut)
        enter.activated.connect(lambda: self.apply(self._chosen))
        self.both = QBoxLayout(QBoxLayout.Direction.TopToBottom)
        self.both.setSpacing(8)
        self.both.addWidget(self.chart, 5)
        self.both.addWidget(self.table, 6)
        self.note = ElidedLabel("failure")
        self.note.hide()
        full = QWidget()
        column = QVBoxLayout(full)
        column.setContentsMargins(12, 8, 12, 8)
        column.setSpacing(4)
        column.addWidget(self.heading)
        column.addLayout(self.both, 1)
        column.addWidget(self.note)
        column.addWidget(hairline())
        column.addLayout(self._controls())
        self._stack = QStackedLayout(self)
        self._stack.addWidget(self.empty)
        self._stack.addWidget(full)

    def _controls(self) -> QHBoxLayout:
        from core.formats import FORMATS

        self.edit = QLineEdit()
        self.edit.setPlaceholderText("Add a strategy: q5_k, int4-g64-asym+hqq …")
        self.edit.setAccessibleName("Add a strategy")
        self.edit.setToolTip("Type a format, with a method behind a plus; Enter puts it on the bench")
        completer = QCompleter([f.name for f in FORMATS if f.encodable], self.edit)
        completer.setCaseSensitivity(Qt.CaseSensitivity.CaseInsensitive)
        self.edit.setCompleter(completer)
        self.edit.returnPressed.connect(self._typed)
        self.remove = flat_button(self._theme, "minus", "Take the chosen strategy off the bench (Delete)")
        self.remove.clicked.connect(self.remove_chosen)
        self.use = flat_button(self._theme, "check", "Give the selected tensors this strategy (double-click)", "Apply")
        self.use.clicked.connect(lambda: self.apply(self._chosen))
        self.copy = flat_button(self._theme, "copy", "Copy the table as comma-separated values")
        self.copy.clicked.connect(lambda: QGuiApplication.clipboard().setText(self.state.csv()))
        line = QHBoxLayout()
        line.setSpacing(8)
        line.addWidget(self.edit, 1)
        for button in (self.remove, self.copy, self.use):
            line.addWidget(button)
        return line

    def resizeEvent(self, event: QResizeEvent) -> None:
        super().resizeEvent(event)
        beside = self.width() >= BESIDE
        self.both.setDirection(QBoxLayout.Direction.LeftToRight if beside else QBoxLayout.Direction.TopToBottom)

    def eventFilter(self, watched: QObject, event: QEvent) -> bool:
        if event.type() == QEvent.Type.Resize:
            self.widths.show()
        return False

    # --- following ----------------------------------------------------------------------------------------------------

    def refresh(self) -> None:
        super().refresh()
        outline = self.state.open
        if outline is not None and not self._behind and (self._searched is not outline or not self.searching):
            self._searched = outline
            self.submit_side("search", Asked(measurable, outline, "Tensors to measure"), self._take_measurable)

    @property
    def searching(self) -> bool:
        """Whether the tensors that can be measured are still looked for."""
        return "search" in self._side_jobs

    @property
    def busy(self) -> bool:
        return super().busy or self.searching or self._turns.busy or self._soon.isActive()

    def _take_measurable(self, found: Any) -> None:
        self.state.take_measurable(found)
        self.refresh()

    def _partial(self, job: JobId, value: object) -> None:
        if job == self._job:
            self.take(value, False)
            if not self._soon.isActive():
                self._soon.start()

    def follow(self) -> bool:
        return self.state.follow(self._session)

    def asked(self) -> Asked | None:
        request = self.state.request
        if request is None:
            return None
        what = request.tensors[0].name if len(request.tensors) == 1 else f"{len(request.tensors)} tensors"
        return Asked(bench, request, f"Bench of {what}")

    def take(self, value: Any, final: bool) -> None:
        self.state.take(value)

    def fail(self, line: str) -> None:
        self.state.fail(line)

    @Slot()
    def blank(self) -> None:
        """Rows of other tensors are gone already: the state drops them when it follows."""
        self.show_state()

    # --- showing ------------------------------------------------------------------------------------------------------

    @Slot()
    def show_state(self) -> None:
        self._soon.stop()
        self._turns.begin(self._picture_steps())

    def _picture_steps(self) -> Iterator[None]:
        """Texts and table, then the chart: each is painted by itself."""
        state = self.state
        self.empty.setText(state.empty)
        if state.request is None:
            self._stack.setCurrentIndex(0)
            return
        self._stack.setCurrentIndex(1)
        self.heading.title.setText(state.title())
        self.heading.subtitle.setText(state.failure or state.subtitle())
        if self.model.refresh():
            self.widths.fit(state.weighted)
        self._choose_line()
        yield
        self._mark()

    def _mark(self) -> None:
        """The chosen strategy, in the table and in the chart."""
        at = self._choose_line()
        known = at >= 0 and self.model.rows[at].sums is not None
        self.use.setEnabled(known and self._chosen != self.state.current)
        self.remove.setEnabled(at >= 0 and self._chosen != self.state.current)
        self.chart.show_points(self.state.points(), self._chosen if at >= 0 else "")

    def _choose_line(self) -> int:
        """Selects the line of the chosen strategy. Which one it is, or −1."""
        at = next((i for i, row in enumerate(self.model.rows) if row.label == self._chosen), -1)
        if at >= 0 and self.table.currentIndex().row() != at:
            self.table.selectionModel().blockSignals(True)
            self.table.selectRow(at)
            self.table.selectionModel().blockSignals(False)
            self.table.viewport().update()
        return at

    # --- acting -------------------------------------------------------------------------------------------------------

    @Slot(QModelIndex)
    def _row_chosen(self, index: QModelIndex) -> None:
        if index.isValid():
            self._chosen = self.model.rows[index.row()].label
            self._mark()

    @Slot(str)
    def _point_at(self, label: str) -> None:
        self._chosen = label
        self._mark()

    @Slot()
    def _typed(self) -> None:
        wrong = self.state.add(self.edit.text())
        self.note.setText(wrong)
        self.note.setVisible(bool(wrong))
        if not wrong:
            self.edit.clear()
            self.refresh()

    @Slot()
    def remove_chosen(self) -> None:
        if self._chosen and self._chosen != self.state.current:
            self.state.remove(self._chosen)
            self._chosen = ""
            self.refresh()

    @Slot(str)
    def _tell(self, line: str) -> None:
        self._session.notify(Notice("error", line))

    @Slot(str)
    def apply(self, label: str) -> None:
        """Gives all selected tensors a strategy of the bench."""
        strategy, names = self.state.strategies.get(label), self._session.selection
        row = self.state.rows.get(label)
        if strategy is None or not names or row is None or row.sums is None:
            return
        try:
            self._session.apply(AssignStrategy(names, strategy), self)
        except WorkbenchError as error:
            self._session.notify(Notice("error", str(error)))
