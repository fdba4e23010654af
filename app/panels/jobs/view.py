"""The jobs panel: a row for every heavy job, with its buttons. What a row says is in state.py."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from PySide6.QtCore import QSize, Qt, QUrl, Slot
from PySide6.QtGui import QDesktopServices, QFontDatabase, QResizeEvent
from PySide6.QtWidgets import (
    QGridLayout,
    QHBoxLayout,
    QLabel,
    QPlainTextEdit,
    QProgressBar,
    QScrollArea,
    QSizePolicy,
    QStackedLayout,
    QToolButton,
    QVBoxLayout,
    QWidget,
)

from app.glossary import about
from app.job_service import JobService
from app.jobs import JobId, JobInfo, Outcome, Progress
from app.labels import ElidedLabel, empty_label, hairline
from app.panels.jobs.state import STAGES, JobRow, JobsState
from app.session import Session
from app.theme import ICON, Theme, current

EMPTY = "Runs appear here, with their progress. Press Quantize to start one."
# Columns of figures: attribute of JobRow, header, the widest text, and the panel width below which it goes.
FIGURES = (
    ("read", "read", "999.9 of 999.9 GiB", 680),
    ("rate", "rate", "999.9 MiB/s", 800),
    ("left", "left", "59 min 59 s", 0),
    ("memory", "memory, GiB", "memory, GiB", 920),
    ("device", "device", "cuda:00", 1000),
    ("elapsed", "time", "59 min 59 s", 560),
)
BAR_WIDTH = 120
DETAIL_LINES = 10


class JobsPanel(QWidget):
    """Follows the job service. open_url shows a folder; tests put their own there."""

    def __init__(self, session: Session, jobs: JobService) -> None:
        super().__init__()
        self._jobs, self._theme = jobs, current()
        self.state = JobsState()
        self.rows: dict[JobId, _Row] = {}
        self.open_url: Callable[[QUrl], object] = QDesktopServices.openUrl
        self._build()
        jobs.queued.connect(self._queued)
        jobs.started.connect(self._started)
        jobs.progressed.connect(self._progressed)
        jobs.paused.connect(self._paused)
        jobs.finished.connect(self._finished)
        self._theme.changed.connect(self._restyle)
        self._theme.resized.connect(self._resize_figures)
        for info in jobs.jobs():
            self._catch_up(info)
        self._show_or_empty()

    def _build(self) -> None:
        empty = empty_label(EMPTY, 0, 0)
        inner = QWidget()
        self._list = QVBoxLayout(inner)
        self._list.setContentsMargins(12, 4, 12, 8)
        self._list.setSpacing(0)
        self._list.addLayout(self._header())
        self._list.addWidget(hairline())
        self._list.addStretch(1)
        scroll = QScrollArea()
        scroll.setWidgetResizable(True)
        scroll.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        scroll.setWidget(inner)
        self._stack = QStackedLayout(self)
        self._stack.addWidget(empty)
        self._stack.addWidget(scroll)

    def _header(self) -> QHBoxLayout:
        self._titles: dict[str, QLabel] = {}
        line = QHBoxLayout()
        line.setSpacing(12)
        line.setContentsMargins(0, 0, 0, 4)
        job = ElidedLabel("muted")
        job.setText("job")
        job.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Preferred)  # in line with the others
        job.setToolTip(about("job"))
        line.addWidget(job, 1)
        progress = QLabel("progress")
        progress.setProperty("kind", "muted")
        progress.setToolTip(about("progress"))
        progress.setFixedWidth(BAR_WIDTH)
        line.addWidget(progress)
        for name, title, widest, _ in FIGURES:
            label = self._titles[name] = QLabel(title)
            label.setToolTip(about(title))
            label.setProperty("kind", "muted")
            label.setAlignment(Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter)
            label.setFixedWidth(_width(self, widest))
            line.addWidget(label)
        self.clear = QToolButton()
        self.clear.setProperty("kind", "flat")
        self.clear.setIcon(self._theme.icon("trash"))
        self.clear.setToolTip("Clear finished jobs from this list; their files stay")
        self.clear.setAccessibleName("Clear finished jobs")
        self.clear.setFixedWidth(ICON + 8)
        self.clear.clicked.connect(self._clear)
        line.addSpacing(2 * (ICON + 8) + 8)  # over the last of a row's three buttons
        line.addWidget(self.clear)
        return line

    @Slot()
    def _resize_figures(self) -> None:
        """The text has another size."""
        for name, _, widest, _ in FIGURES:
            self._titles[name].setFixedWidth(_width(self, widest))
        for row in self.rows.values():
            row.resize_figures()

    def _catch_up(self, info: JobInfo) -> None:
        """A job that was there before the panel."""
        self.state.add(info)
        progress, outcome = self._jobs.progress(info.id), self._jobs.outcome(info.id)
        if progress is not None:
            self.state.advance(progress)
        if self._jobs.is_paused(info.id):
            self.state.hold(info.id, True)
        if outcome is not None:
            self.state.finish(info.id, outcome)
        self._queued(info)

    def _queued(self, info: JobInfo) -> None:
        row = self.state.add(info)
        if row is None:
            return
        if info.id not in self.rows:
            widget = self.rows[info.id] = _Row(self._theme, row, self._jobs, self._reveal)
            self._list.insertWidget(2, widget)
            widget.fit(self.width())
        self._update(row)
        self._show_or_empty()

    def _started(self, job: JobId) -> None:
        self._update(self.state.start(job))

    def _progressed(self, progress: Progress) -> None:
        self._update(self.state.advance(progress))

    def _paused(self, job: JobId, paused: bool) -> None:
        self._update(self.state.hold(job, paused))

    def _finished(self, job: JobId, outcome: Outcome) -> None:
        self._update(self.state.finish(job, outcome))

    def _update(self, row: JobRow | None) -> None:
        if row is not None and row.info.id in self.rows:
            self.rows[row.info.id].show_row(row)
            self.clear.setEnabled(any(r.over for r in self.state))

    def _show_or_empty(self) -> None:
        self._stack.setCurrentIndex(1 if len(self.state) else 0)

    @Slot()
    def _clear(self) -> None:
        for job in self.state.clear():
            widget = self.rows.pop(job)
            self._list.removeWidget(widget)
            widget.hide()
            widget.deleteLater()
        self.clear.setEnabled(False)
        self._show_or_empty()

    @Slot()
    def _restyle(self) -> None:
        for row in self.state:
            if row.info.id in self.rows:
                self.rows[row.info.id].show_row(row, restyle=True)

    def _reveal(self, out: Path) -> None:
        folder = out if out.is_dir() else out.parent
        self.open_url(QUrl.fromLocalFile(str(folder)))

    def resizeEvent(self, event: QResizeEvent) -> None:
        super().resizeEvent(event)
        for name, _, _, least in FIGURES:
            self._titles[name].setVisible(self.width() >= least)
        for row in self.rows.values():
            row.fit(self.width())


class _Row(QWidget):
    """One job. The second line is what it is at, how it ended, or why it failed; details open below."""

    def __init__(self, theme: Theme, row: JobRow, jobs: JobService, reveal: Callable[[Path], None]) -> None:
        super().__init__()
        self._theme, self._jobs, self._id, self._out = theme, jobs, row.info.id, row.info.out
        self._stage = ""  # the one that is shown
        self._reveal = reveal
        self._icon = QLabel()
        self._icon.setFixedSize(ICON, ICON)
        self.title, self.stage = ElidedLabel(), QLabel()
        self.title.setText(row.info.title)
        self.bar = QProgressBar()
        self.bar.setRange(0, 1000)
        self.bar.setTextVisible(False)
        self.bar.setProperty("kind", "thin")
        self.bar.setFixedWidth(BAR_WIDTH)
        self.figures = {name: QLabel() for name, _, _, _ in FIGURES}
        for name, _, widest, _ in FIGURES:
            self.figures[name].setFixedWidth(_width(self, widest))
            self.figures[name].setAlignment(Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter)
        self.pause = self._button("pause", "Pause", self._toggle_pause)
        self.cancel = self._button("x", "Stop; what is done is kept for Resume", self._cancel)
        self.reveal = self._button("folder-open", "Show in folder", self._show_folder)
        self.line = QLabel()
        self.line.setTextFormat(Qt.TextFormat.PlainText)
        self.line.setWordWrap(True)
        self.line.setTextInteractionFlags(
            Qt.TextInteractionFlag.TextSelectableByMouse | Qt.TextInteractionFlag.TextSelectableByKeyboard
        )
        self.note = ElidedLabel("muted", Qt.TextElideMode.ElideMiddle)
        self.disclosure = self._button("caret-right", "Details", self._toggle_details)
        self.disclosure.setCheckable(True)
        self.disclosure.setProperty("kind", "disclosure")
        self.details = QPlainTextEdit()
        self.details.setReadOnly(True)
        self.details.setLineWrapMode(QPlainTextEdit.LineWrapMode.NoWrap)
        self.details.setFont(QFontDatabase.systemFont(QFontDatabase.SystemFont.FixedFont))
        self.details.setFixedHeight(self.details.fontMetrics().lineSpacing() * DETAIL_LINES + 12)
        self.details.hide()
        self._arrange()

    def _arrange(self) -> None:
        line = QHBoxLayout()
        line.setSpacing(12)
        name = QHBoxLayout()
        name.setSpacing(8)
        name.addWidget(self._icon)
        name.addWidget(self.title, 1)
        name.addWidget(self.stage)
        line.addLayout(name, 1)
        line.addWidget(self.bar)
        for figure in self.figures.values():
            line.addWidget(figure)
        buttons = QHBoxLayout()
        buttons.setSpacing(4)
        for button in (self.pause, self.cancel, self.reveal):
            buttons.addWidget(button)
            policy = button.sizePolicy()
            policy.setRetainSizeWhenHidden(True)
            button.setSizePolicy(policy)
        line.addLayout(buttons)
        below = QGridLayout()
        below.setContentsMargins(0, 0, 0, 0)
        below.setHorizontalSpacing(0)
        below.setVerticalSpacing(4)
        below.setColumnMinimumWidth(0, ICON + 8)  # the text stands under the title
        below.addWidget(self.disclosure, 0, 0, Qt.AlignmentFlag.AlignTop)
        below.addWidget(self.line, 0, 1)
        below.addWidget(self.note, 0, 1)
        below.addWidget(self.details, 1, 1)
        below.setColumnStretch(1, 1)
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 4, 0, 0)
        column.setSpacing(0)
        column.addLayout(line)
        column.addLayout(below)
        column.addSpacing(4)
        column.addWidget(hairline())

    def _button(self, icon: str, help: str, handler: Callable[[], None]) -> QToolButton:
        button = QToolButton()
        button.setProperty("kind", "flat")
        button.setIcon(self._theme.icon(icon))
        button.setIconSize(QSize(ICON, ICON))
        button.setFixedSize(ICON + 8, ICON + 8)
        button.setToolTip(help)
        button.setAccessibleName(help)
        button.clicked.connect(handler)
        return button

    def show_row(self, row: JobRow, restyle: bool = False) -> None:
        """restyle: the theme is another one."""
        self.bar.setValue(row.permille)
        for name, label in self.figures.items():
            label.setText(getattr(row, name))
        self.figures["memory"].setToolTip("Peak of the run" if row.report else "Memory of this program now")
        if restyle or row.stage != self._stage:
            # Progress comes 20 times a second: what goes with the stage is not made anew each time.
            self._stage = row.stage
            self._show_stage(row)
        running = not row.over and bool(row.line)
        self.note.setVisible(running)
        self.note.setText(row.line if running else "")
        self.line.setVisible(row.over and bool(row.line))
        self.line.setText(row.line if row.over else "")
        if self.details.toPlainText() != row.details:
            self.details.setPlainText(row.details)
        self.disclosure.setVisible(bool(row.details))

    def _show_stage(self, row: JobRow) -> None:
        icon, role, word = STAGES[row.stage]
        self._icon.setPixmap(self._theme.icon(icon, role).pixmap(QSize(ICON, ICON), self.devicePixelRatioF()))
        self.stage.setText(word)
        # The accent is for the job that runs now.
        self.bar.setProperty("stage", row.stage)
        self.bar.style().polish(self.bar)
        active = not row.over
        self.pause.setVisible(active)
        self.cancel.setVisible(active)
        paused = row.stage == "paused"
        self.pause.setIcon(self._theme.icon("play" if paused else "pause"))
        self.pause.setToolTip("Resume" if paused else "Pause")
        self.pause.setAccessibleName("Resume" if paused else "Pause")
        self.reveal.setVisible(self._out is not None and row.stage == "done")
        self.line.setProperty("kind", "failure" if row.stage == "failed" else "muted")
        self.line.style().polish(self.line)

    def resize_figures(self) -> None:
        for name, _, widest, _ in FIGURES:
            self.figures[name].setFixedWidth(_width(self, widest))

    def fit(self, width: int) -> None:
        """Leaves out figures where there is no room for them."""
        for name, _, _, least in FIGURES:
            self.figures[name].setVisible(width >= least)

    @Slot()
    def _toggle_pause(self) -> None:
        held = self._jobs.is_paused(self._id)
        self._jobs.resume(self._id) if held else self._jobs.pause(self._id)

    @Slot()
    def _cancel(self) -> None:
        self._jobs.cancel(self._id)

    @Slot()
    def _show_folder(self) -> None:
        if self._out is not None:
            self._reveal(self._out)

    @Slot()
    def _toggle_details(self) -> None:
        opened = self.disclosure.isChecked()
        self.disclosure.setIcon(self._theme.icon("caret-down" if opened else "caret-right"))
        self.details.setVisible(opened)


def _width(widget: QWidget, widest: str) -> int:
    return widget.fontMetrics().horizontalAdvance(widest) + 4
