"""The info panel: facts as two columns of text that can be copied."""

from __future__ import annotations

from PySide6.QtCore import Qt, QTimer, Slot
from PySide6.QtWidgets import QFrame, QGridLayout, QLabel, QScrollArea, QVBoxLayout, QWidget

from app.glossary import about
from app.job_service import JobService
from app.jobs import Done, JobId, Outcome
from app.labels import embolden
from app.panels.info.state import INLINE, Fact, facts, request_of
from app.session import Changes, Session

EMPTY = "Open a checkpoint and select a tensor: its shape, strategy, size and error are listed here."
SETTLE_MS = 60
KEY = "facts"


class InfoPanel(QScrollArea):
    """Follows the selection."""

    def __init__(self, session: Session, jobs: JobService) -> None:
        super().__init__()
        self._session = session
        self._jobs = jobs
        self._job: JobId | None = None
        self._shown: object = None
        self.setWidgetResizable(True)
        self.setFrameShape(QFrame.Shape.NoFrame)
        self._timer = QTimer(self)
        self._timer.setSingleShot(True)
        self._timer.setInterval(SETTLE_MS)
        self._timer.timeout.connect(self._look)
        session.changed.connect(self._changed)
        session.selection_changed.connect(self._later)
        jobs.finished.connect(self._finished)
        self._look()

    def _changed(self, changes: Changes, initiator: object) -> None:
        if changes.plan or changes.checkpoint or changes.errors:
            self._later()

    @Slot()
    def _later(self) -> None:
        if not self._timer.isActive():
            self._timer.start()

    @Slot()
    def _look(self) -> None:
        request = request_of(self._session)
        self._job = None
        if request is not None and len(request.names) > INLINE:
            self._job = self._jobs.submit(facts, request, title="Facts", lane="preview", key=KEY)
        else:
            self._show(*facts(request))

    def _finished(self, job: JobId, outcome: Outcome) -> None:
        if job == self._job:
            self._job = None
            if isinstance(outcome, Done):
                self._show(*outcome.result)

    def _show(self, title: str, lines: list[Fact]) -> None:
        if (title, lines) == self._shown:
            return
        self._shown = (title, lines)
        page = QWidget(self)
        page.setBackgroundRole(self.backgroundRole())
        outer = QVBoxLayout(page)
        outer.setContentsMargins(16, 12, 16, 12)
        outer.setSpacing(8)
        if not lines:
            outer.addWidget(_text(EMPTY, "muted", page))
        else:
            heading = _text(title, "", page)
            embolden(heading)
            outer.addWidget(heading)
            grid = QGridLayout()
            grid.setContentsMargins(0, 0, 0, 0)
            grid.setHorizontalSpacing(16)
            grid.setVerticalSpacing(4)
            grid.setColumnStretch(1, 1)
            for row, fact in enumerate(lines):
                if fact.heading:
                    label = _text(fact.value, "", page)
                    label.setContentsMargins(0, 8, 0, 0)
                    embolden(label)
                    grid.addWidget(label, row, 0, 1, 2)
                    continue
                label = _text(fact.label, "muted", page)
                label.setToolTip(about(fact.label))
                grid.addWidget(label, row, 0, Qt.AlignmentFlag.AlignTop)
                grid.addWidget(_text(fact.value, "", page), row, 1)
            outer.addLayout(grid)
        outer.addStretch(1)
        self.setWidget(page)


def _text(text: str, kind: str, parent: QWidget) -> QLabel:
    label = QLabel(text, parent)
    label.setTextFormat(Qt.TextFormat.PlainText)
    label.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
    label.setWordWrap(True)
    if kind:
        label.setProperty("kind", kind)
    return label
