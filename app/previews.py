"""Fills in the error of tensors before anything is written: what is on screen first, the rest as far as time allows.

Runs in the preview lane and stands back while a run is under way, which measures the same thing exactly.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from PySide6.QtCore import QObject, QTimer, Slot

from app.calibration import statistics_of
from app.job_service import JobService
from app.jobs import Failed, JobId, Outcome
from app.session import Changes, Notice, Session, ShownError
from core.context import JobContext
from core.errors import RowError, WorkbenchError

if TYPE_CHECKING:
    from core.checkpoints.base import Checkpoint
    from core.engine.model import Plan, PlannedTensor
    from core.recipes.model import Strategy

    Errors = dict[tuple[str, Strategy], ShownError]

KEY = "errors"
# After a change or a scroll, this long until the next look: typing and scrolling come in bursts.
SETTLE_MS = 150
# Beyond the rows on screen, previews of one plan take about this long at most.
BACKGROUND_SECONDS = 30.0
DELIVER_SECONDS = 0.2


@dataclass(frozen=True)
class ErrorRequest:
    """first: names that are computed whatever it takes; known: pairs whose error is there already."""

    checkpoint: Checkpoint
    plan: Plan
    by_name: Mapping[str, PlannedTensor]
    first: tuple[str, ...]
    known: Mapping[tuple[str, Strategy], ShownError]


def errors_task(request: ErrorRequest, ctx: JobContext) -> int:
    """Hands over {(name, strategy): ShownError} as partial results; returns how many tensors were looked at."""
    from core.analysis.error import preview_error
    from core.methods import get_method

    found: Errors = {}
    urgent, rest = wanted(request)
    began = sent = time.monotonic()
    count = 0
    for planned in (*urgent, *rest):
        ctx.check()
        if count >= len(urgent) and time.monotonic() - began > BACKGROUND_SECONDS:
            break
        method = get_method(planned.strategy.method)
        try:
            error = preview_error(
                request.checkpoint,
                planned.tensor,
                planned.format,
                method,
                dict(planned.strategy.params),
                ctx,
                stats=statistics_of(request.plan, planned),
            )
        except WorkbenchError as refused:
            stops = isinstance(refused, RowError)
            found[planned.tensor.name, planned.strategy] = ShownError(
                None, None, None, None, exact=False, why=str(refused), stops=stops
            )
        else:
            sums = error.sums
            found[planned.tensor.name, planned.strategy] = ShownError(
                sums.sqnr_db, sums.relative_mse, sums.max_abs, sums.cosine, exact=not error.sampled
            )
        count += 1
        if time.monotonic() - sent > DELIVER_SECONDS:
            ctx.partial(found)
            found, sent = {}, time.monotonic()
    if found:
        ctx.partial(found)
    return count


def wanted(request: ErrorRequest) -> tuple[list[PlannedTensor], list[PlannedTensor]]:
    """The tensors to look at: those on screen, and all others, the largest first."""
    from core.methods import METHODS

    ready = {m.name for m in METHODS if m.needs <= request.plan.known.kinds}

    def open_question(t: PlannedTensor) -> bool:
        if not t.quantized or t.copy or t.strategy.method not in ready:
            return False
        return (t.tensor.name, t.strategy) not in request.known

    seen = set(request.first)
    urgent = [t for t in map(request.by_name.get, request.first) if t is not None and open_question(t)]
    rest = [t for t in request.plan.tensors if t.tensor.name not in seen and open_question(t)]
    rest.sort(key=lambda t: -t.nbytes)
    return urgent, rest


class ErrorPreviews(QObject):
    """visible() gives the names of the tensors on screen; call `look` when that changed. waits() says whether the table
    is still being made: it comes first, and tells then what is on screen."""

    def __init__(
        self,
        session: Session,
        jobs: JobService,
        visible: Callable[[], Sequence[str]],
        waits: Callable[[], bool] = lambda: False,
    ) -> None:
        super().__init__(session)
        self._session = session
        self._jobs = jobs
        self._visible = visible
        self._waits = waits
        self._job: JobId | None = None
        self._told = False
        self._settle = QTimer(self)
        self._settle.setSingleShot(True)
        self._settle.setInterval(SETTLE_MS)
        self._settle.timeout.connect(self._submit)
        session.changed.connect(self._changed)
        jobs.partial.connect(self._partial)
        jobs.finished.connect(self._finished)
        jobs.started.connect(self._started)

    @Slot()
    def look(self) -> None:
        """Something else may be on screen now."""
        self._settle.start()

    @property
    def busy(self) -> bool:
        return self._job is not None or self._settle.isActive()

    def _changed(self, changes: Changes, initiator: object) -> None:
        if changes.checkpoint:
            self._told = False
        if changes.checkpoint or changes.recipe or changes.target or changes.calibration:
            self._stop()
        if changes.plan:
            self._settle.start()

    def _stop(self) -> None:
        self._settle.stop()
        if self._job is not None:
            self._jobs.cancel(self._job)
            self._job = None

    @Slot()
    def _submit(self) -> None:
        session = self._session
        plan, checkpoint = session.plan, session.checkpoint
        if plan is None or checkpoint is None or not session.planned or self._jobs.running():
            return
        if self._waits():
            self._settle.start()
            return
        request = ErrorRequest(
            checkpoint, plan, session.planned_tensors, tuple(self._visible()), session.known_errors()
        )
        self._job = self._jobs.submit(
            errors_task, request, title="Preview errors", lane="preview", key=KEY, waited_for=False
        )

    def _partial(self, job: JobId, value: object) -> None:
        if job == self._job:
            self._session.add_errors(value)  # type: ignore[arg-type]

    def _started(self, job: JobId) -> None:
        if any(info.id == job for info in self._jobs.running()):
            self._stop()

    def _finished(self, job: JobId, outcome: Outcome) -> None:
        if job == self._job:
            self._job = None
            if isinstance(outcome, Failed) and not self._told:
                self._told = True
                self._session.notify(Notice("warning", f"No error preview: {outcome.line}", outcome.details))
        elif self._jobs.outcome(job) is not None:
            self._settle.start()
