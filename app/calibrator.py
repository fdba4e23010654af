"""Keeps the session's calibration up to date: reading what was chosen in the preview lane, sending samples through the
model as a job of its own. What the data are used for is the planner's and the run's business.
"""

from __future__ import annotations

from PySide6.QtCore import QObject, Signal

from app.calibration import CalibrationData, CalibrationRequest, gather_task, load_task
from app.job_service import JobService
from app.jobs import Done, Failed, JobId, Outcome
from app.session import Changes, Notice, Session

KEY = "calibration"


class Calibrator(QObject):
    """busy_changed(): whether the choice is being read, or samples are on their way, may have changed."""

    busy_changed = Signal()

    def __init__(self, session: Session, jobs: JobService) -> None:
        super().__init__(session)
        self._session = session
        self._jobs = jobs
        self._loading: tuple[JobId, CalibrationRequest] | None = None
        self._gathering: tuple[JobId, CalibrationRequest] | None = None
        session.changed.connect(self._changed)
        jobs.finished.connect(self._finished)

    @property
    def loading(self) -> bool:
        return self._loading is not None

    @property
    def gathering(self) -> JobId | None:
        """The job that sends samples through the model, or None."""
        return self._gathering[0] if self._gathering is not None else None

    @property
    def can_gather(self) -> bool:
        """Whether a text is chosen whose statistics are not known yet."""
        data = self._session.calibration_data
        return data is not None and data.samples is not None and data.gathered is None and self._gathering is None

    def gather(self) -> JobId | None:
        """Starts the walk through the model; None when there is nothing to gather."""
        request = self._request()
        if request is None or not self.can_gather:
            return None
        title = f"Calibrate on {request.choice.label}"
        job = self._jobs.submit(gather_task, request, title=title, device=request.device)
        self._gathering = (job, request)
        self.busy_changed.emit()
        return job

    def _request(self) -> CalibrationRequest | None:
        session = self._session
        if session.checkpoint is None or not session.calibration.source:
            return None
        return CalibrationRequest(session.checkpoint, session.calibration, session.device)

    def _changed(self, changes: Changes, initiator: object) -> None:
        if not (changes.calibration or changes.checkpoint):
            return
        request = self._request()
        if self._loading is not None and (request is None or not _same(request, self._loading[1])):
            self._jobs.cancel(self._loading[0])
            self._loading = None
        if request is not None and self._loading is None and self._session.calibration_data is None:
            job = self._jobs.submit(load_task, request, title="Read calibration", lane="preview", key=KEY)
            self._loading = (job, request)
        self.busy_changed.emit()

    def _finished(self, job: JobId, outcome: Outcome) -> None:
        if self._loading is not None and job == self._loading[0]:
            request, self._loading = self._loading[1], None
        elif self._gathering is not None and job == self._gathering[0]:
            request, self._gathering = self._gathering[1], None
        else:
            return
        now = self._request()
        if now is not None and _same(now, request):
            self._take(request, outcome)
        self.busy_changed.emit()

    def _take(self, request: CalibrationRequest, outcome: Outcome) -> None:
        session = self._session
        if isinstance(outcome, Done):
            session.set_calibration_data(outcome.result)
        elif isinstance(outcome, Failed):
            session.notify(Notice("error", f"Calibration: {outcome.line}", outcome.details))
            if session.calibration_data is None:
                session.set_calibration_data(CalibrationData(request.choice, error=outcome.line))


def _same(a: CalibrationRequest, b: CalibrationRequest) -> bool:
    return a.checkpoint is b.checkpoint and a.choice == b.choice
