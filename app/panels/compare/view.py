"""The Compare panel: which files, the finding, and the table of tensors with their error, sorted and filtered."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, cast

from PySide6.QtCore import QModelIndex, Qt, QTimer, Signal, Slot
from PySide6.QtWidgets import (
    QButtonGroup,
    QGridLayout,
    QHBoxLayout,
    QLabel,
    QLineEdit,
    QProgressBar,
    QPushButton,
    QStackedLayout,
    QToolButton,
    QVBoxLayout,
    QWidget,
)

from app.buttons import flat_button
from app.job_service import JobService
from app.jobs import Done, Failed, JobId, Outcome, Progress
from app.labels import embolden
from app.panels.compare.files import FileButton
from app.panels.compare.listing import Listed
from app.panels.compare.model import ComparedModel, PairsModel
from app.panels.compare.state import SLOTS, CompareState, compare_task, name_of
from app.panels.compare.state import Slot as Side
from app.panels.compare.table import listing_table, selected_lines
from app.panels.compare.widths import Widths
from app.plotting.turns import Turns
from app.session import Changes, Notice, Session
from app.theme import current
from core.analysis.compare import Comparison

if TYPE_CHECKING:
    import numpy as np

# Tensors come in by the hundred; each time the table grows, Qt goes over all its lines.
FLUSH_MS = 400
# Selecting by dragging comes in many steps: the other panels follow this long after the last one.
CHOOSE_MS = 20
# Chosen tensors that are looked up in one go.
AT_ONCE = 10_000
_TITLES: dict[Side, tuple[str, str, str]] = {
    "a": ("A", "Choose the first checkpoint", "The first checkpoint; errors are those of B against it"),
    "b": ("B", "Choose what to compare with", "The second checkpoint"),
    "source": ("Source", "None", "What both were made from: the error of each against it is shown too"),
}


class ComparePanel(QWidget):
    """path_asked(side, folder): the window has the dialogs, and answers with `choose`. save_asked(): a place for CSV,
    answered with `export`. listed_changed(): there is something, or nothing, to export now."""

    path_asked = Signal(str, bool)
    save_asked = Signal()
    listed_changed = Signal()

    def __init__(self, session: Session, jobs: JobService) -> None:
        super().__init__()
        self._session, self._jobs = session, jobs
        self._theme = current()
        self.state = CompareState()
        self._job: JobId | None = None
        self._waiting: list[Listed] = []
        self._turns = Turns(self)
        self._by_hand: set[Side] = set()
        self._last_out = ""
        self.model = ComparedModel(self.state, self)
        self.pairs = PairsModel(self.state, self)
        self._flush = QTimer(self, singleShot=True, interval=FLUSH_MS)
        self._flush.timeout.connect(self._take)
        self._choosing = QTimer(self, singleShot=True, interval=CHOOSE_MS)
        self._choosing.timeout.connect(self._choose)
        self._build()
        session.changed.connect(self._changed)
        jobs.partial.connect(self._partial)
        jobs.progressed.connect(self._progressed)
        jobs.finished.connect(self._finished)
        self._follow_session()

    # Building

    def _build(self) -> None:
        outer = QVBoxLayout(self)
        outer.setContentsMargins(0, 0, 0, 0)
        outer.setSpacing(0)
        outer.addLayout(self._choices())
        self.progress = QProgressBar(self)
        self.progress.setProperty("kind", "thin")
        self.progress.setTextVisible(False)
        self.progress.setRange(0, 1000)
        self.progress.setFixedHeight(4)
        keep = self.progress.sizePolicy()
        keep.setRetainSizeWhenHidden(True)
        self.progress.setSizePolicy(keep)
        self.progress.hide()
        outer.addWidget(self.progress)
        self.empty = QLabel(self)
        self.empty.setProperty("kind", "muted")
        self.empty.setWordWrap(True)
        self.empty.setAlignment(Qt.AlignmentFlag.AlignTop | Qt.AlignmentFlag.AlignLeft)
        self.empty.setContentsMargins(12, 8, 12, 8)
        self._stack = QStackedLayout()
        self._stack.addWidget(self.empty)
        self._stack.addWidget(self._results())
        outer.addLayout(self._stack, 1)

    def _choices(self) -> QGridLayout:
        grid = QGridLayout()
        grid.setContentsMargins(12, 12, 12, 8)
        grid.setHorizontalSpacing(8)
        grid.setVerticalSpacing(4)
        grid.setColumnStretch(1, 1)
        self.files: dict[Side, FileButton] = {}
        for row, side in enumerate(SLOTS):
            title, empty, text = _TITLES[side]
            label = QLabel(title, self)
            label.setProperty("kind", "muted")
            label.setToolTip(text)
            button = FileButton(self._theme, title, empty, self)
            button.chosen.connect(lambda path, s=side: self.choose(s, path))
            button.asked.connect(lambda folder, s=side: self.path_asked.emit(s, folder))
            label.setBuddy(button)
            grid.addWidget(label, row, 0)
            grid.addWidget(button, row, 1)
            self.files[side] = button
        self.swap = flat_button(self._theme, "arrows-down-up", "Swap A and B", handler=self._swap)
        grid.addWidget(self.swap, 0, 2)
        self.start = QPushButton("Compare", self)
        self.start.setProperty("kind", "outline")
        self.start.clicked.connect(self._start_or_stop)
        grid.addWidget(self.start, 1, 2)
        return grid

    def _results(self) -> QWidget:
        page = QWidget(self)
        column = QVBoxLayout(page)
        column.setContentsMargins(0, 4, 0, 0)
        column.setSpacing(4)
        self.title, self.subtitle = QLabel(page), QLabel(page)
        embolden(self.title)
        self.subtitle.setProperty("kind", "muted")
        for label in (self.title, self.subtitle):
            label.setTextFormat(Qt.TextFormat.PlainText)
            label.setWordWrap(True)
            label.setContentsMargins(12, 0, 12, 0)
            label.setTextInteractionFlags(
                Qt.TextInteractionFlag.TextSelectableByMouse | Qt.TextInteractionFlag.TextSelectableByKeyboard
            )
            column.addWidget(label)
        column.addLayout(self._bar())
        self.table = listing_table(self._theme, self.model, self)
        self.table.horizontalHeader().setSortIndicatorShown(True)
        self.table.horizontalHeader().setSectionsClickable(True)
        self.table.horizontalHeader().setSortIndicator(0, Qt.SortOrder.AscendingOrder)
        self.table.horizontalHeader().sortIndicatorChanged.connect(self._sorted)
        self.table.selectionModel().selectionChanged.connect(self._selected)
        self.widths = Widths(self.table, self.model)
        self.widths.fit()
        self.other = listing_table(self._theme, self.pairs, self)
        self.other.horizontalHeader().setStretchLastSection(True)
        self._tables = QStackedLayout()
        self._tables.addWidget(self.table)
        self._tables.addWidget(self.other)
        column.addLayout(self._tables, 1)
        return page

    def _bar(self) -> QHBoxLayout:
        bar = QHBoxLayout()
        bar.setContentsMargins(12, 4, 12, 4)
        bar.setSpacing(4)
        self.words = QLineEdit(self)
        self.words.setToolTip("Only tensors whose name, type or role holds all of these words")
        self.words.setPlaceholderText("Filter: name, type, role")
        self.words.setAccessibleName("Filter compared tensors")
        self.words.setClearButtonEnabled(True)
        self.words.textChanged.connect(self._filter)
        bar.addWidget(self.words, 1)
        self.views: dict[str, QToolButton] = {}
        group = QButtonGroup(self)
        for view, text in (
            ("tensors", "Tensors that both files have"),
            ("metadata", "Metadata that differ"),
            ("lonely", "Tensors that only one of the files has"),
        ):
            button = QToolButton(self)
            button.setProperty("kind", "flat")
            button.setCheckable(True)
            button.setChecked(view == "tensors")
            button.setToolTip(text)
            button.clicked.connect(lambda _=False, v=view: self.show_view(v))
            group.addButton(button)
            bar.addWidget(button)
            self.views[view] = button
        self.save = flat_button(
            self._theme, "file-arrow-down", "Export the listed tensors as CSV", handler=lambda: self.save_asked.emit()
        )
        bar.addWidget(self.save)
        return bar

    # Choosing

    def choose(self, side: Side, path: str) -> None:
        """Puts a checkpoint on one side; "" takes it away."""
        self._by_hand.add(side)
        self._put(side, path)

    def compare_with(self, path: str) -> None:
        """Puts a checkpoint on B and compares at once."""
        self.choose("b", path)
        if self.state.ready and not self.state.running:
            self._start()

    def _put(self, side: Side, path: str) -> None:
        self.state.paths[side] = path
        self._show()

    def _swap(self) -> None:
        paths = self.state.paths
        paths["a"], paths["b"] = paths["b"], paths["a"]
        self._by_hand |= {"a", "b"}
        self._show()

    def _changed(self, changes: Changes, initiator: object) -> None:
        if changes.checkpoint:
            self._follow_session()
        if changes.report and self._session.report is not None:
            self._last_out = str(self._session.report.out)
            if "b" not in self._by_hand or not self.state.paths["b"]:
                self._put("b", self._last_out)

    def _follow_session(self) -> None:
        """The open checkpoint stands on A, until somebody says otherwise."""
        checkpoint = self._session.checkpoint
        path = str(checkpoint.path) if checkpoint is not None else ""
        if "a" not in self._by_hand and path and path != self.state.paths["b"]:
            self.state.paths["a"] = path
        self._show()

    # Comparing

    @Slot()
    def _start_or_stop(self) -> None:
        if self.state.running and self._job is not None:
            self._jobs.cancel(self._job)
        elif self.state.ready:
            self._start()

    def _start(self) -> None:
        self._waiting.clear()
        request = self.state.begin()
        self.model.anew()
        self.widths.fit()
        title = f"Compare {name_of(request.a)} with {name_of(request.b)}"
        self._job = self._jobs.submit(compare_task, request, title=title, together=True)
        self._show()

    def _partial(self, job: JobId, value: object) -> None:
        if job == self._job:
            self._waiting += cast(tuple[Listed, ...], value)
            if not self._flush.isActive():
                self._flush.start()

    @Slot()
    def _take(self) -> None:
        self._flush.stop()
        if self._waiting:
            self.state.take(self._waiting)
            self._waiting.clear()
            self.model.grow()
            self.title.setText(self.state.title())
            self._stack.setCurrentIndex(1)
            self._count()

    def _progressed(self, progress: Progress) -> None:
        if progress.id == self._job:
            self.progress.setValue(progress.permille)

    def _finished(self, job: JobId, outcome: Outcome) -> None:
        if job != self._job:
            return
        self._take()
        self._job = None
        if isinstance(outcome, Done):
            self.state.finish(cast(Comparison, outcome.result))
            names = f"{name_of(self.state.result.a)} and {name_of(self.state.result.b)}" if self.state.result else ""
            self._session.notify(Notice("note", f"{names}: {self.state.title()}"))
        elif isinstance(outcome, Failed):
            self.state.fail(outcome.line)
            self._session.notify(Notice("error", f"Cannot compare: {outcome.line}", outcome.details))
        else:
            self.state.stop()
        self.model.anew()
        self.pairs.anew()
        self.widths.fit()
        self._show()

    # Showing

    def _show(self) -> None:
        state = self.state
        checkpoint = self._session.checkpoint
        offers = [
            ("The open checkpoint", str(checkpoint.path) if checkpoint is not None else ""),
            ("What was written last", self._last_out),
        ]
        for side, button in self.files.items():
            button.show_path(state.paths[side])
            button.offer(offers)
            button.setEnabled(not state.running)
        self.swap.setEnabled(not state.running and any(state.paths[s] for s in ("a", "b")))
        self.start.setText("Stop" if state.running else "Compare")
        self.start.setEnabled(state.running or state.ready)
        self.start.setToolTip("Stops after the tensor in hand" if state.running else "Reads both files to their end")
        self.progress.setVisible(state.running)
        if not state.running:
            self.progress.setValue(0)
        shown = state.result is not None or bool(state.rows) or bool(state.failure)
        self.empty.setText("Opening both files …" if state.running else state.empty())
        self._stack.setCurrentIndex(1 if shown else 0)
        self.title.setText(state.title())
        self.subtitle.setText(state.subtitle())
        self.subtitle.setVisible(bool(state.subtitle()))
        self._count()

    def _count(self) -> None:
        state, result = self.state, self.state.result
        self.views["tensors"].setText(f"{len(state.order):,} tensors")
        self.views["metadata"].setText(f"{len(result.metadata) if result else 0:,} metadata")
        self.views["lonely"].setText(f"{len(result.only_a) + len(result.only_b) if result else 0:,} in one only")
        if self.save.isEnabled() != bool(len(state.order)):
            self.save.setEnabled(bool(len(state.order)))
            self.listed_changed.emit()

    def show_view(self, view: str) -> None:
        """Tensors, metadata that differ, or tensors without a counterpart ("lonely")."""
        self.state.view = view  # type: ignore[assignment]
        self.views[view].setChecked(True)
        self.pairs.anew()
        self.other.setColumnWidth(0, 220)
        self.other.setColumnWidth(1, 140)
        self._tables.setCurrentIndex(0 if view == "tensors" else 1)

    @Slot()
    def _filter(self) -> None:
        self.state.words = self.words.text()
        self.state.arrange()
        self.model.anew()
        self.pairs.anew()
        self._count()

    @Slot(int, Qt.SortOrder)
    def _sorted(self, section: int, order: Qt.SortOrder) -> None:
        if not 0 <= section < self.model.columnCount():
            return
        self.state.sort = self.model.column_id(section)
        self.state.descending = order == Qt.SortOrder.DescendingOrder
        self.state.arrange()
        self.model.anew()

    @Slot()
    def _selected(self) -> None:
        """A tensor of the plan that is chosen here is in view everywhere, a little later where many are chosen."""
        self._choosing.start()

    @Slot()
    def _choose(self) -> None:
        self._turns.begin(self._choice_steps(self.state.listing.names, self.state.order, selected_lines(self.table)))

    def _choice_steps(self, names: list[str], order: np.ndarray, lines: list[int]) -> Iterator[None]:
        """Looks for those of the plan, so many at a time, and hands them on."""
        planned = self._session.planned_tensors
        chosen: set[str] = set()
        for start in range(0, len(lines), AT_ONCE):
            places = order[lines[start : start + AT_ONCE]].tolist()
            chosen.update(filter(planned.__contains__, map(names.__getitem__, places)))
            yield
        if chosen:
            self._session.select(planned if len(chosen) == len(planned) else filter(chosen.__contains__, planned), self)

    # Taking away

    def export(self, path: Path) -> None:
        """Writes the listed tensors as CSV. Raises OutputError."""
        from core.analysis.comparison import comparison_csv
        from core.atomic import write_whole

        write_whole(path, comparison_csv(self.state.shown))
        self._session.notify(Notice("note", f"{len(self.state.order):,} tensors written to {path}"))

    def index_of(self, name: str) -> QModelIndex:
        """The cell of a tensor's name, invalid when it is not listed."""
        row = next((i for i, t in enumerate(self.state.shown) if t.name == name), -1)
        return self.model.index(row, 0) if row >= 0 else QModelIndex()
