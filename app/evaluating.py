"""Judging a recipe or a written file, as the window sees it: a job, a notice with the figures, a row in the log."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from PySide6.QtCore import QObject, Signal

from app.job_service import JobService
from app.jobs import Done, Failed, JobId, Outcome, Stopped
from app.session import Notice, Session
from core.context import JobContext
from core.evaluation.experiments import Experiment
from core.evaluation.text import WindowSettings

if TYPE_CHECKING:
    from core.checkpoints.base import Checkpoint
    from core.engine.model import Plan


@dataclass(frozen=True)
class EvaluationRequest:
    """One evaluation against the open checkpoint.

    plan  of the recipe to judge as what it would write; None: `path` is judged
    """

    checkpoint: Checkpoint
    plan: Plan | None
    path: Path | None
    settings: WindowSettings
    device: str
    name: str


@dataclass(frozen=True)
class Judged:
    """line: the figures in one line; details: all of them; unlogged: why the row is not in the log, or ""."""

    row: Experiment
    line: str
    details: str
    unlogged: str


def evaluate_task(request: EvaluationRequest, ctx: JobContext) -> Judged:
    """Perplexity of both and their distance; progress in tokens. raises as core.evaluation.perplexity.evaluate"""
    from contextlib import ExitStack

    from core.checkpoints import open_checkpoint
    from core.evaluation.experiments import Log, of_evaluation
    from core.evaluation.perplexity import evaluate
    from core.evaluation.subjects import as_model, as_written
    from core.evaluation.text import read_windows
    from core.quality_commands import against_lines

    plan = request.plan
    with ExitStack() as stack:
        model = stack.enter_context(as_model(request.checkpoint))
        windows = read_windows(model.folder(), request.settings)
        if plan is not None:
            other = stack.enter_context(as_written(plan, request.checkpoint, device=request.device, ctx=ctx))
        else:
            assert request.path is not None
            opened = stack.enter_context(open_checkpoint(request.path))
            other = stack.enter_context(as_model(opened, model))
        result = evaluate(model, windows, against=other, device=request.device, ctx=ctx)
        row = of_evaluation(
            result,
            windows,
            request.checkpoint.path,
            recipe="" if plan is None else plan.recipe.name,
            target="" if plan is None else plan.target.name,
            judged=request.path if plan is None else None,
            nbytes=other.nbytes,
            parameters=model.parameters,
        )
    assert result.against is not None
    d, p = result.against.distance, result.perplexity
    line = (
        f"perplexity {p.value:.3f} → {result.against.perplexity.value:.3f}, KLD {d.kld_mean:.5f} ± {d.kld_error:.5f}, "
        f"same top token {100 * d.top1_agreement:.1f} %"
    )
    details = [
        f"{windows.samples.name}: {windows.convention}, {p.tokens:,} in all",
        f"perplexity {p.value:.4f} ± {p.error:.4f}  the original",
        *against_lines(result.against, request.name),
    ]
    return Judged(row, line, "\n".join(details), Log().add(row))


class Evaluator(QObject):
    """Starts evaluations of the session's recipe and of written files. finished(Judged)"""

    finished = Signal(object)

    def __init__(self, session: Session, jobs: JobService) -> None:
        super().__init__(session)
        self._session, self._jobs = session, jobs
        self._requests: dict[JobId, EvaluationRequest] = {}
        jobs.finished.connect(self._finished)

    def recipe(self, settings: WindowSettings) -> JobId | None:
        """What the present recipe would write. None when there is no plan for it."""
        session = self._session
        plan, checkpoint = session.plan, session.checkpoint
        if plan is None or checkpoint is None or not session.planned:
            return None
        name = plan.recipe.name or "recipe"
        return self._submit(EvaluationRequest(checkpoint, plan, None, settings, session.device, name))

    def file(self, path: Path, settings: WindowSettings) -> JobId | None:
        """A written file, against the open checkpoint. None without one."""
        checkpoint = self._session.checkpoint
        if checkpoint is None:
            return None
        return self._submit(EvaluationRequest(checkpoint, None, path, settings, self._session.device, path.name))

    def _submit(self, request: EvaluationRequest) -> JobId:
        title = f"Evaluate {request.name}"
        job = self._jobs.submit(evaluate_task, request, title=title, device=request.device, unit="tokens")
        self._requests[job] = request
        return job

    def _finished(self, job: JobId, outcome: Outcome) -> None:
        request = self._requests.pop(job, None)
        if request is None:
            return
        if isinstance(outcome, Done):
            judged: Judged = outcome.result
            self._session.notify(
                Notice("done", f"{request.name}: {judged.line}", judged.details, ("show-experiments",))
            )
            if judged.unlogged:
                self._session.notify(Notice("warning", judged.unlogged))
            self.finished.emit(judged)
        elif isinstance(outcome, Failed):
            self._session.notify(Notice("error", f"{request.name}: {outcome.line}", outcome.details))
        elif isinstance(outcome, Stopped):
            self._session.notify(Notice("note", f"The evaluation of {request.name} was stopped"))
