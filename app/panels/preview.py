"""What panels have in common that show one thing at a time, made by a preview job: they follow the session while they
are seen, ask behind, take coarse results and exact ones, and drop what came too late. What is asked and shown is their
business.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from PySide6.QtCore import Slot
from PySide6.QtGui import QShowEvent
from PySide6.QtWidgets import QWidget

from app.job_service import JobService
from app.jobs import Done, Failed, JobId, Outcome, Progress
from app.session import Changes, Notice, Session


@dataclass(frozen=True)
class Asked:
    """A task and its request, with a title for the log."""

    task: Callable[[Any, Any], Any]
    request: Any
    title: str


class PreviewPanel(QWidget):
    """Subclasses give `key` and the calls below, call `watch` when they are built, and draw when `show_state` asks.

    follow()        takes over what the session says; True when there is something else to compute
    asked()         what is to be computed now, or None
    take(v, final)  a result, coarse or final
    fail(line)      there is none
    show_state()    draw what there is
    blank()         something else is asked for: take the old picture away, nobody shall read it as the new one's
    """

    key = ""

    def __init__(self, session: Session, jobs: JobService) -> None:
        super().__init__()
        self._session, self._jobs = session, jobs
        self._job: JobId | None = None
        self._side_jobs: dict[str, tuple[JobId, Callable[[Any], None]]] = {}
        self._behind = True  # something changed while the panel was hidden

    def watch(self) -> None:
        """From now on the panel follows the session."""
        self._session.selection_changed.connect(self._selected)
        self._session.changed.connect(self._changed)
        self._jobs.partial.connect(self._partial)
        self._jobs.finished.connect(self._finished)
        self._jobs.progressed.connect(self._progressed)
        self.refresh()

    # What a panel is made of

    def follow(self) -> bool:
        raise NotImplementedError

    def asked(self) -> Asked | None:
        raise NotImplementedError

    def take(self, value: Any, final: bool) -> None:
        raise NotImplementedError

    def fail(self, line: str) -> None:
        raise NotImplementedError

    def show_state(self) -> None:
        raise NotImplementedError

    @Slot()
    def blank(self) -> None:
        raise NotImplementedError

    def show_progress(self, permille: int) -> None:
        """Called while a job runs for more than a second."""

    def concerns(self, changes: Changes) -> bool:
        """Whether a change of the session means looking again."""
        return changes.checkpoint or changes.plan or changes.outline

    # What they share

    @property
    def busy(self) -> bool:
        return self._job is not None

    def refresh(self) -> None:
        """Looks at the session again, or remembers to when the panel is seen."""
        if not self.isVisible() and self._session.checkpoint is not None:
            self._behind = True
            return
        self._behind = False
        if self.follow():
            self.blank()
            self.submit()
        elif self.asked() is None:
            self._drop()
        self.show_state()

    def submit(self) -> None:
        """Asks for what `asked` says; what was asked before is dropped."""
        asked = self.asked()
        if asked is None:
            self._drop()
            return
        self._job = self._jobs.submit(asked.task, asked.request, title=asked.title, lane="preview", key=self.key)

    def submit_side(self, name: str, asked: Asked, take: Callable[[Any], None]) -> None:
        """A smaller question beside the main one; the latest by name wins."""
        job = self._jobs.submit(asked.task, asked.request, title=asked.title, lane="preview", key=f"{self.key} {name}")
        self._side_jobs[name] = (job, take)

    def drop_side(self, name: str) -> None:
        known = self._side_jobs.pop(name, None)
        if known is not None:
            self._jobs.cancel(known[0])

    def _drop(self) -> None:
        for name in list(self._side_jobs):
            self.drop_side(name)
        if self._job is not None:
            self._jobs.cancel(self._job)
            self._job = None

    def showEvent(self, event: QShowEvent) -> None:
        super().showEvent(event)
        if self._behind:
            self.refresh()

    def _selected(self, names: object) -> None:
        self.refresh()

    def _changed(self, changes: Changes, initiator: object) -> None:
        if self.concerns(changes):
            self.refresh()

    def _partial(self, job: JobId, value: object) -> None:
        if job == self._job:
            self.take(value, False)
            self.show_state()

    def _progressed(self, progress: Progress) -> None:
        if progress.id == self._job and progress.total and progress.elapsed > 1:
            self.show_progress(progress.permille)

    def _finished(self, job: JobId, outcome: Outcome) -> None:
        if job == self._job:
            self._job = None
            if isinstance(outcome, Done):
                self.take(outcome.result, True)
            elif isinstance(outcome, Failed):
                self.fail(outcome.line)
                self._session.notify(Notice("warning", outcome.line, outcome.details))
            self.show_state()
            return
        for name, (side, take) in list(self._side_jobs.items()):
            if side == job:
                del self._side_jobs[name]
                if isinstance(outcome, Done):
                    take(outcome.result)
