"""The info panel: facts as two columns of text that can be copied."""

from __future__ import annotations

from collections.abc import Iterator

from PySide6.QtCore import Qt, QTimer, Slot
from PySide6.QtGui import QShowEvent
from PySide6.QtWidgets import QFrame, QGridLayout, QLabel, QScrollArea, QVBoxLayout, QWidget

from app.glossary import about
from app.job_service import JobService
from app.jobs import Done, JobId, Outcome
from app.labels import embolden
from app.panels.info.state import INLINE, Fact, Kept, facts, request_of
from app.plotting.making import Making
from app.session import Changes, Session

EMPTY = "Open a checkpoint and select a tensor: its shape, strategy, size and error are listed here."
SETTLE_MS, SUMS_MS = 60, 1500
# A checkpoint that was just opened gets a plan, and then a tensor is selected: with some 50 labels to lay out and
# paint, facts that are in view for a moment cost more than they tell.
OPENED_MS = 400
KEY = "facts"
# Facts about one tensor, about.
LINES = 30


class InfoPanel(QScrollArea):
    """Follows the selection."""

    def __init__(self, session: Session, jobs: JobService) -> None:
        super().__init__()
        self._session = session
        self._jobs = jobs
        self._job: JobId | None = None
        self._shown: tuple[str, list[Fact]] = ("", [])
        self._lines: list[_Line] = []  # as many as were ever needed
        self._values: list[QLabel] = []  # one per line shown
        self._opened = False  # another checkpoint, and nothing chosen in it yet
        self._stale = False  # something changed while the panel was hidden
        self._of: tuple[object, object] = ((), None)  # the selection and the plan that the job is about
        self._kept = Kept()
        self._again = False  # something changed while it ran
        self.setWidgetResizable(True)
        self.setFrameShape(QFrame.Shape.NoFrame)
        self._timer = QTimer(self)
        self._timer.setSingleShot(True)
        self._timer.setInterval(SETTLE_MS)
        self._timer.timeout.connect(self._look)
        session.changed.connect(self._changed)
        session.selection_changed.connect(self._later)
        jobs.finished.connect(self._finished)
        self._build()
        self.making = Making(self._line_steps)
        self._arrange("", [])
        self._look()

    def _changed(self, changes: Changes, initiator: object) -> None:
        if changes.plan or changes.checkpoint:
            # Nothing here keeps a plan that is gone: who drops it last takes it apart.
            self._kept, self._of = Kept(), ((), None)
            if changes.checkpoint and self._session.checkpoint is not None:
                self._opened = True
                self._page.hide()  # what is in there is of another file
                self._shown = "", []
                self._timer.start(OPENED_MS)
            elif self._opened and not changes.checkpoint:
                self._timer.start(OPENED_MS)
            else:
                self._later()
        elif changes.errors and not self._timer.isActive():
            # Beside a run there are new ones all the time, and of many tensors only sums are shown.
            self._timer.start(SUMS_MS if len(self._session.selection) > INLINE else SETTLE_MS)

    @Slot()
    def _later(self) -> None:
        self._opened = False
        if not self._timer.isActive() or self._timer.remainingTime() > SETTLE_MS:
            self._timer.start(SETTLE_MS)

    def showEvent(self, event: QShowEvent) -> None:
        super().showEvent(event)
        if self._stale:
            self._later()

    @Slot()
    def _look(self) -> None:
        self._opened = self._opened and self._session.plan is None
        self._stale = not self.isVisible() and self._session.checkpoint is not None
        if self._stale:
            return  # hidden behind another tab: nobody waits for the facts
        of = self._session.selection, self._session.plan
        if self._job is not None and self._of[0] is of[0] and self._of[1] is of[1]:
            self._again = True  # one answer about many tensors after the other
            return
        if self._of[0] is not of[0] or self._of[1] is not of[1]:
            self._kept = Kept()
            self._of = of
        request = request_of(self._session, self._kept)
        self._job, self._again = None, False
        if request is not None and len(request.names) > INLINE:
            self._job = self._jobs.submit(facts, request, title="Facts", lane="preview", key=KEY)
        else:
            self._show(*facts(request))

    def _finished(self, job: JobId, outcome: Outcome) -> None:
        if job == self._job:
            self._job = None
            if isinstance(outcome, Done):
                self._show(*outcome.result)
            if self._again:
                self._again = False
                self._timer.start(SUMS_MS)

    def _show(self, title: str, lines: list[Fact]) -> None:
        if (title, lines) == self._shown and not self._page.isHidden():
            return
        same = self._shown[0] == title and [_place(f) for f in self._shown[1]] == [_place(f) for f in lines]
        self._shown = (title, lines)
        if not same or len(self._values) != len(lines) or self._page.isHidden():
            self._arrange(title, lines)
            return
        for label, fact in zip(self._values, lines, strict=True):
            if label.text() != fact.value:
                label.setText(fact.value)

    def _build(self) -> None:
        page = self._page = QWidget(self)
        page.setBackgroundRole(self.backgroundRole())
        outer = QVBoxLayout(page)
        outer.setContentsMargins(12, 12, 12, 12)
        outer.setSpacing(8)
        self._empty = _text(EMPTY, "muted", page)
        self._title = _text("", "", page)
        embolden(self._title)
        self._grid = QGridLayout()
        self._grid.setContentsMargins(0, 0, 0, 0)
        self._grid.setSpacing(0)
        self._grid.setColumnStretch(1, 1)
        outer.addWidget(self._empty)
        outer.addWidget(self._title)
        outer.addLayout(self._grid)
        outer.addStretch(1)
        self.setWidget(page)

    def _line_steps(self) -> Iterator[None]:
        """Labels for as many lines as a tensor has, before anyone looks at one."""
        while len(self._lines) < LINES:
            self._add_line()
            if not len(self._lines) % 6:
                yield

    def _add_line(self) -> None:
        line = _Line(self._page, self._grid, len(self._lines))
        line.hide()
        self._lines.append(line)

    def _arrange(self, title: str, lines: list[Fact]) -> None:
        """Other facts than before, in the labels that are there: making some fifty of them at every click takes longer
        than all else."""
        self._page.setUpdatesEnabled(False)
        self._empty.setVisible(not lines)
        self._title.setVisible(bool(lines))
        self._title.setText(title)
        while len(self._lines) < len(lines):
            self._add_line()
        self._values = [line.show_fact(fact) for line, fact in zip(self._lines, lines, strict=False)]
        for line in self._lines[len(lines) :]:
            line.hide()
        self._page.setUpdatesEnabled(True)
        self._page.show()


class _Line:
    """One line of the page: a heading across, or a word and what is known."""

    def __init__(self, page: QWidget, grid: QGridLayout, row: int) -> None:
        self.word, self.value, self.heading = _text("", "muted", page), _text("", "", page), _text("", "", page)
        # A grid leaves out the space between lines of which a part is hidden.
        self.word.setContentsMargins(0, 0, 16, 4)
        self.value.setContentsMargins(0, 0, 0, 4)
        self.heading.setContentsMargins(0, 8, 0, 4)
        embolden(self.heading)
        grid.addWidget(self.word, row, 0, Qt.AlignmentFlag.AlignTop)
        grid.addWidget(self.value, row, 1)
        grid.addWidget(self.heading, row, 0, 1, 2)
        for label in (self.word, self.value, self.heading):
            label.ensurePolished()

    def show_fact(self, fact: Fact) -> QLabel:
        """Returns the label that holds the value."""
        if fact.heading:
            shown, hidden = (self.heading,), (self.word, self.value)
        else:
            shown, hidden = (self.word, self.value), (self.heading,)  # type: ignore[assignment]
            if self.word.text() != fact.label:
                self.word.setText(fact.label)
                self.word.setToolTip(about(fact.label))
        for label in hidden:
            label.hide()
        if shown[-1].text() != fact.value:
            shown[-1].setText(fact.value)
        for label in shown:
            label.show()
        return shown[-1]

    def hide(self) -> None:
        for label in (self.word, self.value, self.heading):
            label.hide()


def _place(fact: Fact) -> tuple[str, bool]:
    """What a line is about: facts of the same places differ in their values only."""
    return fact.label, fact.heading


def _text(text: str, kind: str, parent: QWidget) -> QLabel:
    label = QLabel(text, parent)
    label.setTextFormat(Qt.TextFormat.PlainText)
    label.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
    label.setWordWrap(True)
    if kind:
        label.setProperty("kind", kind)
    return label
