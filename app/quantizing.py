"""The run itself, as the window sees it: submit, follow tensor by tensor, say how it ended, keep or remove the rest of
a stopped run.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from PySide6.QtCore import QObject, QTimer, Signal, Slot

from app.calibration import CalibrationData, walks_along
from app.job_service import JobService
from app.jobs import Done, Failed, JobId, Outcome, Stopped
from app.reports import describe
from app.session import Notice, Session, ShownError
from core.context import JobContext
from core.engine.progress import duration_text

if TYPE_CHECKING:
    from core.checkpoints.base import Checkpoint
    from core.engine.model import Plan, PlannedTensor, Problem, Report, TensorReport
    from core.recipes.model import Strategy

FLUSH_MS = 100
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


def run_task(request: RunRequest, ctx: JobContext) -> Report:
    """The whole run. A stopped one leaves its rest for `resume`. Hands over calibration data that it had to gather."""
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
    from app.calibration import CalibrationRequest, gather_task
    from core.engine.plan import make_plan

    found = gather_task(CalibrationRequest(request.checkpoint, data.choice, request.device), ctx)
    ctx.partial(found)
    return make_plan(request.checkpoint, plan.recipe, plan.target, ctx, gathered=found.gathered)


@dataclass(frozen=True)
class PageRequest:
    """A report to write: of which run, where to."""

    plan: Plan
    report: Report
    path: Path


def page_task(request: PageRequest, ctx: JobContext) -> Path:
    """Writes the report of a finished run as a page; returns where it is."""
    from core.report import write_report

    write_report(request.path, request.plan, request.report)
    return request.path


def discard_rest(out: Path) -> None:
    """Removes what a stopped run left beside `out`."""
    import shutil

    from core.engine.journal import journal_path
    from core.engine.writer import partial_path

    path = Path(out).absolute()
    partial = partial_path(path)
    if partial.is_dir():
        shutil.rmtree(partial, ignore_errors=True)
    else:
        partial.unlink(missing_ok=True)
    journal_path(path).unlink(missing_ok=True)


class Quantizer(QObject):
    """Starts runs of the session's plan. stopped(RunRequest) when one was cancelled and left a rest."""

    stopped = Signal(object)
    finished = Signal(object)  # Report

    def __init__(self, session: Session, jobs: JobService) -> None:
        super().__init__(session)
        self._session = session
        self._jobs = jobs
        self._requests: dict[JobId, RunRequest] = {}
        self._discard: set[JobId] = set()
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
        return self._submit(
            RunRequest(
                plan,
                checkpoint,
                out,
                session.device,
                resume,
                force,
                dict(session.planned_tensors),
                session.calibration_data,
            )
        )

    def again(self, request: RunRequest) -> JobId:
        """Continues a stopped run."""

        return self._submit(replace(request, resume=True))

    def stop(self, job: JobId, *, discard: bool) -> None:
        """Cancels a run; its rest is removed, or kept for `resume`."""
        if discard:
            self._discard.add(job)
        self._jobs.cancel(job)

    def _submit(self, request: RunRequest) -> JobId:
        job = self._jobs.submit(
            run_task,
            request,
            title=f"Quantize {request.out.name}",
            device=request.device,
            out=request.out,
        )
        self._requests[job] = request
        return job

    def _partial(self, job: JobId, value: object) -> None:
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
        request = self._requests.pop(job, None)
        if request is None:
            return
        self._hand_over()
        if isinstance(outcome, Done):
            report: Report = outcome.result
            self.last = (request.plan, report)
            if request.checkpoint is self._session.checkpoint:
                self._session.set_report(report)
            text = describe(report)
            line = f"{report.out.name}: {text.line}, in {duration_text(report.seconds)}"
            self._session.notify(Notice("done", line, text.details, ("open-result", "compare-result", "save-report")))
            self.finished.emit(report)
        elif isinstance(outcome, Failed):
            self._session.notify(Notice("error", f"{request.out.name}: {outcome.line}", outcome.details))
        elif isinstance(outcome, Stopped):
            self._took_stop(job, request)

    def _took_stop(self, job: JobId, request: RunRequest) -> None:
        from core.engine.pipeline import can_resume

        if job in self._discard or not can_resume(request.out):
            self._discard.discard(job)
            discard_rest(request.out)
            self._session.notify(Notice("note", f"{request.out.name} was stopped; nothing is left of it"))
            return
        self.stopped.emit(request)
        self._session.notify(
            Notice(
                "warning",
                f"{request.out.name} was stopped; what is done is kept",
                actions=("resume-run", "discard-run"),
            )
        )


def errors_of(problems: tuple[Problem, ...]) -> tuple[Problem, ...]:
    """Those that stop a run."""
    return tuple(p for p in problems if p.severity == "error")
