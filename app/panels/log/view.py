"""The log panel: lines with time and level, a filter, copying. What is logged is decided in state.py."""

from __future__ import annotations

from typing import Any

from PySide6.QtCore import QAbstractTableModel, QItemSelection, QModelIndex, QPersistentModelIndex, QSize, Qt, Slot
from PySide6.QtGui import QAction, QGuiApplication, QKeySequence
from PySide6.QtWidgets import (
    QAbstractItemView,
    QHeaderView,
    QPlainTextEdit,
    QStackedLayout,
    QTableView,
    QVBoxLayout,
    QWidget,
)

from app.buttons import flat_button
from app.cells import dress
from app.filterline import FilterLine
from app.job_service import JobService
from app.jobs import Done, Failed, JobId, JobInfo, Outcome, Stopped
from app.labels import empty_label, hairline
from app.nothing import Nothing
from app.panels.log.state import LEVELS, Entry, Level, LogState
from app.session import Changes, Notice, Session
from app.theme import ICON, Theme, current

EMPTY = "What happens appears here: checkpoints opened, plans, preflight's findings, how jobs ended."
_LEAST = (("All lines", 0), ("Warnings and errors", 1), ("Errors", 2))
Index = QModelIndex | QPersistentModelIndex


class LogModel(QAbstractTableModel):
    """Time and text of the shown lines; the level is the icon before the text."""

    def __init__(self, state: LogState, theme: Theme, parent: QWidget) -> None:
        super().__init__(parent)
        self._state, self._theme = state, theme
        self._lines: list[Entry] = []

    def sync(self) -> None:
        """Takes over what the state shows. New lines at the end leave the selection as it is."""
        shown, before = self._state.shown, len(self._lines)
        grown = len(shown) >= before and all(shown[i] is self._lines[i] for i in (0, before - 1) if before)
        if not grown:
            self.beginResetModel()
            self._lines = list(shown)
            self.endResetModel()
        elif len(shown) > before:
            self.beginInsertRows(QModelIndex(), before, len(shown) - 1)
            self._lines += shown[before:]
            self.endInsertRows()

    def rowCount(self, parent: Index | None = None) -> int:
        return 0 if parent is not None and parent.isValid() else len(self._lines)

    def columnCount(self, parent: Index | None = None) -> int:
        return 0 if parent is not None and parent.isValid() else 2

    def data(self, index: Index, role: int = Qt.ItemDataRole.DisplayRole) -> Any:
        if not index.isValid() or index.row() >= len(self._lines):
            return None
        entry = self._lines[index.row()]
        icon, colour, word = LEVELS[entry.level]
        roles = Qt.ItemDataRole
        if role == roles.DisplayRole:
            return entry.clock if index.column() == 0 else entry.text
        if role == roles.ToolTipRole:
            return entry.text
        if role == roles.ForegroundRole and index.column() == 0:
            return self._theme.colors.muted
        if role == roles.DecorationRole and index.column() == 1:
            return self._theme.icon(icon, colour)
        if role == roles.TextAlignmentRole and index.column() == 0:
            return Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter
        if role == roles.AccessibleTextRole and index.column() == 1:
            return f"{word}: {entry.text}"
        return None

    def entry(self, row: int) -> Entry:
        return self._lines[row]


class LogPanel(QWidget):
    """Follows session and jobs."""

    def __init__(self, session: Session, jobs: JobService) -> None:
        super().__init__()
        self._session, self._theme = session, current()
        self.state = LogState()
        self._titles: dict[JobId, str] = {info.id: info.title for info in jobs.jobs()}
        self.model = LogModel(self.state, self._theme, self)
        self._build()
        session.changed.connect(self._changed)
        session.noticed.connect(self._noticed)
        jobs.queued.connect(self._queued)
        jobs.started.connect(self._started)
        jobs.finished.connect(self._finished)
        if session.checkpoint is not None:
            self._changed(Changes(checkpoint=True, plan=True, problems=True), None)

    def _build(self) -> None:
        empty = empty_label(EMPTY, 0, 0)
        self.table = QTableView()
        self.table.setAccessibleName("Log lines")
        self.table.setModel(self.model)
        self.table.setIconSize(QSize(ICON, ICON))
        self.table.setVerticalScrollMode(QAbstractItemView.ScrollMode.ScrollPerPixel)
        self.table.setWordWrap(False)
        self._at_end = True  # the last line is in view, and stays so when lines or the panel's height change
        bar = self.table.verticalScrollBar()
        bar.rangeChanged.connect(self._follow)
        bar.valueChanged.connect(self._scrolled)
        self.table.setTabKeyNavigation(False)
        self.table.horizontalHeader().hide()
        dress(self.table)
        self.table.setColumnWidth(0, self.fontMetrics().horizontalAdvance("00:00:00") + 24)
        self.table.horizontalHeader().setSectionResizeMode(1, QHeaderView.ResizeMode.Stretch)
        self.table.selectionModel().selectionChanged.connect(self._selected)
        copy = QAction("Copy lines", self.table)
        copy.setShortcut(QKeySequence(QKeySequence.StandardKey.Copy))
        copy.setShortcutContext(Qt.ShortcutContext.WidgetShortcut)
        copy.setIcon(self._theme.icon("copy"))
        copy.triggered.connect(self.copy)
        self.table.addAction(copy)
        self.table.setContextMenuPolicy(Qt.ContextMenuPolicy.ActionsContextMenu)
        self.details = QPlainTextEdit()
        self.details.setReadOnly(True)
        self.details.setLineWrapMode(QPlainTextEdit.LineWrapMode.NoWrap)
        self.details.setMaximumHeight(self.fontMetrics().lineSpacing() * 8)
        self.details.hide()
        full = QWidget()
        column = QVBoxLayout(full)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(0)
        self.filter = self._bar()
        Nothing(self.table, lambda: "No line holds these words" if len(self.state) else "")
        column.addWidget(self.filter)
        column.addWidget(hairline())
        column.addWidget(self.table, 1)
        column.addWidget(self.details)
        self._stack = QStackedLayout(self)
        self._stack.addWidget(empty)
        self._stack.addWidget(full)

    def _bar(self) -> FilterLine:
        bar = FilterLine("Filter lines", "Only lines that hold all of these words")
        bar.offer([title for title, _ in _LEAST], "Least weight", "Only lines of at least this weight")
        bar.changed.connect(self._filter)
        for icon, hint, handler in (
            ("copy", "Copy the selected lines, or all that are shown", self.copy),
            ("trash", "Clear the log", self.clear),
        ):
            bar.add(flat_button(self._theme, icon, hint, handler=handler))
        return bar

    def log(self, level: Level, text: str, details: str = "") -> None:
        """One more line."""
        self.state.add(level, text, details)
        self._refresh()

    def _changed(self, changes: Changes, initiator: object) -> None:
        session = self._session
        if changes.checkpoint:
            self.state.opened(session.checkpoint, session.totals)
        if changes.plan and session.plan is not None and session.planned:
            self.state.planned(session.plan, session.plan_totals)
        if changes.problems:
            self.state.found(session.problems)
        if changes.report and session.report is not None:
            self.state.reported(session.report)
        if changes.checkpoint or changes.plan or changes.problems or changes.report:
            self._refresh()

    def _noticed(self, notice: Notice) -> None:
        self.log(notice.severity, notice.text, notice.details)

    def _queued(self, info: JobInfo) -> None:
        if info.lane == "heavy":
            self._titles[info.id] = info.title

    def _started(self, job: JobId) -> None:
        if job in self._titles:
            self.log("note", f"Started: {self._titles[job]}")

    def _finished(self, job: JobId, outcome: Outcome) -> None:
        title = self._titles.pop(job, None)
        if title is None:
            return
        if isinstance(outcome, Done):
            self.log("done", f"Finished: {title}")
        elif isinstance(outcome, Failed):
            self.log("error", outcome.line, outcome.details)
        elif isinstance(outcome, Stopped):
            self.log("note", f"Stopped: {title}")

    def _refresh(self) -> None:
        self.model.sync()
        self._stack.setCurrentIndex(1 if len(self.state) else 0)

    @Slot(int)
    def _scrolled(self, value: int) -> None:
        self._at_end = value >= self.table.verticalScrollBar().maximum() - self._theme.row

    @Slot(int, int)
    def _follow(self, low: int, high: int) -> None:
        if self._at_end:
            self.table.verticalScrollBar().setValue(high)

    @Slot()
    def _filter(self) -> None:
        self.state.filter(self.filter.words.text(), _LEAST[self.filter.choice.currentIndex()][1])
        self._refresh()

    @Slot()
    def clear(self) -> None:
        self.state.clear()
        self.details.hide()
        self._refresh()

    @Slot()
    def copy(self) -> None:
        """The selected lines, or all that are shown, to the clipboard."""
        rows = sorted({index.row() for index in self.table.selectionModel().selectedRows()})
        chosen = [self.model.entry(row) for row in rows] or None
        QGuiApplication.clipboard().setText(self.state.text(chosen))

    def _selected(self, chosen: QItemSelection, left: QItemSelection) -> None:
        rows = self.table.selectionModel().selectedRows()
        details = self.model.entry(rows[-1].row()).details if rows else ""
        self.details.setPlainText(details)
        self.details.setVisible(bool(details))
