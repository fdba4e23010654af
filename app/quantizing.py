"""The run itself, as the window sees it: submit, follow tensor by tensor, say how it ended, keep or remove the rest of
a stopped run, go on with one that an earlier window left.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

from PySide6.QtCore import QObject, QTimer, Signal, Slot

from app.calibration import (
    NOTHING,
    CalibrationChoice,
    CalibrationData,
    CalibrationRequest,
    load_task,
    plan_options,
    walks_along,
)
from app.job_service import JobService
from app.jobs import Done, Failed, JobId, Outcome, Stopped, Task
from app.kept_runs import KeptRun, discard_rest, forget, keep, kept_runs
from app.reports import describe
from app.session import Notice, Session, ShownError
from app.totals import Totals
from core.collector import without_collections
from core.context import JobContext
from core.engine.progress import duration_text
from core.errors import Cancelled

if TYPE_CHECKING:
    from core.checkpoints.base import Checkpoint
    from core.engine.model import Plan, PlannedTensor, Problem, Report, TensorReport
    from core.recipes.model import Strategy

FLUSH_MS = 200
SHOWN_FIRST_SECONDS = 0.1


@dataclass(frozen=True)
class RunRequest:
    """One run. by_name: plan.tensors by output name; calibration: what the plan was made with."""

    plan: Plan
    checkpoint: Checkpoint
    out: Path
    device: str
    resume: bool
    force: bool
    by_name: dict[str, PlannedTensor]
    calibration: CalibrationData | None = None

    @property
    def kept(self) -> KeptRun:
        """What it takes to go on with this run in another window."""
        choice = self.calibration.choice if self.calibration is not None else CalibrationChoice()
        return KeptRun(
            self.out,
            Path(self.checkpoint.path),
            self.plan.recipe,
            self.plan.target.name,
            self.device,
            choice,
            self.force,
        )


@dataclass(frozen=True)
class Reopened:
    """A run of an earlier window, opened and planned again."""

    request: RunRequest
    totals: Totals


class _Noting:
    """A job's context that remembers how far the job is."""

    def __init__(self, ctx: JobContext) -> None:
        self._ctx = ctx
        self.permille = 0
        self.partial = ctx.partial
        self.check = ctx.check

    def progress(self, done: int, total: int, note: str = "") -> None:
        self.permille = min(1000, 1000 * done // total) if total else 0
        self._ctx.progress(done, total, note)


def run_task(request: RunRequest, ctx: JobContext) -> Report:
    """The whole run, written down while it lasts. A stopped one leaves its rest for `resume`."""
    from core.engine.pipeline import can_resume

    noting = _Noting(ctx)
    unkept = keep(request.kept)
    try:
        report = _run(request, noting)
    except Cancelled:
        keep(replace(request.kept, permille=noting.permille))
        raise
    except BaseException:
        if not can_resume(request.out):
            forget(request.out)
        raise
    forget(request.out)
    if unkept:
        report = replace(report, notes={**report.notes, "kept": f"a later start could not have gone on: {unkept}"})
        describe(report)
    return report


def resume_task(run: KeptRun, ctx: JobContext) -> Report:
    """Goes on with a run that an earlier window left. Hands over Reopened once it is planned."""
    reopened = _reopen(run, ctx)
    ctx.partial(reopened)
    return run_task(reopened.request, ctx)


@without_collections
def _reopen(run: KeptRun, ctx: JobContext) -> Reopened:
    from core.checkpoints import open_checkpoint
    from core.engine.plan import make_plan
    from core.targets import get_target

    checkpoint = open_checkpoint(run.checkpoint)
    ctx.check()
    data: CalibrationData = NOTHING
    if run.calibration.source:
        data = load_task(CalibrationRequest(checkpoint, run.calibration, run.device), ctx)
    plan = make_plan(checkpoint, run.recipe, get_target(run.target), ctx, **plan_options(data, run.recipe))
    by_name = {t.tensor.name: t for t in plan.tensors}
    request = RunRequest(plan, checkpoint, run.out, run.device, True, run.force, by_name, data)
    return Reopened(request, Totals.of(checkpoint))


def kept_task(request: None, ctx: JobContext) -> list[KeptRun]:
    """Runs of earlier windows that can go on."""
    return kept_runs()


def _run(request: RunRequest, ctx: JobContext) -> Report:
    """The run. Hands over calibration data that it had to gather."""
    from core.engine.devices import usable_cores
    from core.engine.pipeline import run
    from core.evaluation.experiments import Log, of_quantization

    # The window draws the job's row first; both at once would make it stumble at the very moment of the click.
    time.sleep(SHOWN_FIRST_SECONDS)
    ctx.check()
    plan = gathered_first(request, ctx)
    report = run(
        plan,
        request.checkpoint,
        request.out,
        device=request.device,
        # One core is the window's: a table that stutters makes a run feel longer than it is.
        workers=max(1, usable_cores() - 1) if request.device == "cpu" else None,
        ctx=ctx,
        resume=request.resume,
        force=request.force,
        keep_partial=True,
    )
    unlogged = Log().add(of_quantization(plan, report))
    if unlogged:
        report = replace(report, notes={**report.notes, "log": unlogged})
    describe(report)
    return report


def gathered_first(request: RunRequest, ctx: JobContext) -> Plan:
    """The plan with statistics of the model as it is, where the recipe asks for no more; what the command line does."""
    plan, data = request.plan, request.calibration
    if plan.calibration is None or data is None or walks_along(plan.recipe):
        return plan
    from app.calibration import gather_task
    from core.engine.plan import make_plan

    found = gather_task(CalibrationRequest(request.checkpoint, data.choice, request.device), ctx)
    ctx.partial(found)
    return make_plan(request.checkpoint, plan.recipe, plan.target, ctx, gathered=found.gathered)


class Quantizer(QObject):
    """Starts runs of the session's plan.

    stopped(KeptRun)    one was cancelled and left a rest
    failed(KeptRun)     one failed and left a rest
    finished(Report)    one is complete
    found(list of KeptRun)  the answer to `look_for_kept`, when there are any
    reopened(Reopened)  a run of an earlier window goes on
    """

    stopped = Signal(object)
    failed = Signal(object)
    finished = Signal(object)
    found = Signal(object)
    reopened = Signal(object)

    def __init__(self, session: Session, jobs: JobService) -> None:
        super().__init__(session)
        self._session = session
        self._jobs = jobs
        self._runs: dict[JobId, KeptRun] = {}
        self._requests: dict[JobId, RunRequest] = {}  # of those that are planned
        self._stopped: dict[Path, RunRequest] = {}  # planned already, should they go on
        self._discard: set[JobId] = set()
        self._keep: set[JobId] = set()
        self._look: JobId | None = None
        self.last: tuple[Plan, Report] | None = None  # the last finished run
        self._errors: dict[tuple[str, Strategy], ShownError] = {}
        self._flush = QTimer(self)
        self._flush.setSingleShot(True)
        self._flush.setInterval(FLUSH_MS)
        self._flush.timeout.connect(self._hand_over)
        jobs.partial.connect(self._partial)
        jobs.finished.connect(self._finished)

    def start(self, out: Path, *, resume: bool = False, force: bool = False) -> JobId | None:
        """Submits the session's plan. None when there is no plan for what the recipe says now."""
        session = self._session
        plan, checkpoint = session.plan, session.checkpoint
        if plan is None or checkpoint is None or not session.planned:
            return None
        planned = dict(session.planned_tensors)
        data = session.calibration_data
        return self._submit(RunRequest(plan, checkpoint, out, session.device, resume, force, planned, data))

    def again(self, run: KeptRun) -> JobId:
        """Continues a stopped run."""
        request = self._stopped.pop(run.out, None)
        if request is not None:
            return self._submit(replace(request, resume=True))
        return self._started(resume_task, run, run)

    def look_for_kept(self) -> None:
        """Asks for runs of earlier windows that can go on."""
        self._look = self._jobs.submit(kept_task, None, title="Look for stopped runs", lane="preview", key="kept runs")

    def is_run(self, job: JobId) -> bool:
        """Whether a job is a run, which can go on after it was stopped."""
        return job in self._runs

    def stop(self, job: JobId, *, discard: bool, keep_waiting: bool = False) -> None:
        """Cancels a job; what is left of a run is removed, or kept for `again`.

        keep_waiting  one that has not begun is kept too
        """
        if discard:
            self._discard.add(job)
        elif keep_waiting:
            self._keep.add(job)
        self._jobs.cancel(job)

    def note_unwanted(self) -> None:
        """For runs that were to be discarded and would not stop: what they leave is removed at the next start."""
        for job in self._discard & self._runs.keys():
            keep(replace(self._runs[job], discard=True))

    def _submit(self, request: RunRequest) -> JobId:
        job = self._started(run_task, request, request.kept)
        self._requests[job] = request
        return job

    def _started(self, task: Task, request: object, run: KeptRun) -> JobId:
        self._stopped.pop(run.out, None)
        title = f"Quantize {run.out.name}"
        job = self._jobs.submit(task, request, title=title, device=run.device, out=run.out, together=True)
        self._runs[job] = run
        return job

    def _partial(self, job: JobId, values: object) -> None:
        if job in self._runs:
            for value in cast(tuple[object, ...], values):
                self._take(job, value)

    def _take(self, job: JobId, value: object) -> None:
        if isinstance(value, Reopened):
            self._requests[job] = value.request
            self.reopened.emit(value)
            return
        request = self._requests.get(job)
        if request is None:
            return
        if isinstance(value, CalibrationData):
            session = self._session
            if request.checkpoint is session.checkpoint and value.choice == session.calibration:
                session.set_calibration_data(value)
            return
        report: TensorReport = value  # type: ignore[assignment]
        planned = request.by_name.get(report.name)
        if planned is None or (report.sqnr_db is None and report.relative_mse is None):
            return
        if request.checkpoint is not self._session.checkpoint or request.plan.target.name != self._session.target:
            return
        self._errors[report.name, planned.strategy] = ShownError(
            report.sqnr_db, report.relative_mse, report.max_abs, report.cosine, exact=True, written=True
        )
        if not self._flush.isActive():
            self._flush.start()

    @Slot()
    def _hand_over(self) -> None:
        self._flush.stop()
        errors, self._errors = self._errors, {}
        if errors:
            self._session.add_errors(errors)

    def _finished(self, job: JobId, outcome: Outcome) -> None:
        if job == self._look:
            self._look = None
            if isinstance(outcome, Done) and outcome.result:
                self.found.emit(outcome.result)
            return
        run = self._runs.pop(job, None)
        request = self._requests.pop(job, None)
        if run is None:
            return
        self._hand_over()
        if isinstance(outcome, Done) and request is not None:
            report: Report = outcome.result
            self._session.let_go(*(self.last or ()))
            self.last = (request.plan, report)
            if request.checkpoint is self._session.checkpoint:
                self._session.set_report(report)
            text = describe(report)
            line = f"{report.out.name}: {text.line}, in {duration_text(report.seconds)}"
            self._session.notify(Notice("done", line, text.details, ("open-result", "compare-result", "save-report")))
            self.finished.emit(report)
        elif isinstance(outcome, Failed):
            self._took_failure(run, request, outcome)
        elif isinstance(outcome, Stopped):
            self._took_stop(job, run, request)
        self._discard.discard(job)
        self._keep.discard(job)

    def _took_failure(self, run: KeptRun, request: RunRequest | None, outcome: Failed) -> None:
        """A full disk or a lost device leaves a rest that can go on."""
        from core.engine.pipeline import can_resume

        actions: tuple[str, ...] = ()
        if can_resume(run.out):
            if request is not None:
                self._stopped[run.out] = request
            self.failed.emit(run)
            actions = ("resume-run", "discard-run")
        self._session.notify(Notice("error", f"{run.out.name}: {outcome.line}", outcome.details, actions))

    def _took_stop(self, job: JobId, run: KeptRun, request: RunRequest | None) -> None:
        from core.engine.pipeline import can_resume

        begun = can_resume(run.out)
        if job in self._discard or not (begun or job in self._keep):
            discard_rest(run.out)
            self._session.notify(Notice("note", f"{run.out.name} was stopped; nothing is left of it"))
            return
        if not begun:
            keep(replace(run, permille=0))
        if request is not None:
            self._stopped[run.out] = request
        self.stopped.emit(run)


def errors_of(problems: tuple[Problem, ...]) -> tuple[Problem, ...]:
    """Those that stop a run."""
    return tuple(p for p in problems if p.severity == "error")
