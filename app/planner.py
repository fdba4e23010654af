"""Keeps the session's plan up to date: opening a checkpoint, planning after every change, and the preflight of the
place the output would go to. All of it runs in the preview lane, the latest wins.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PySide6.QtCore import QObject, QTimer, Signal, Slot

from app.calibration import NOTHING, CalibrationData, plan_options
from app.job_service import JobService
from app.jobs import Done, Failed, JobId, Outcome
from app.session import Changes, Notice, Session
from app.totals import PlanTotals, Totals
from core.collector import without_collections
from core.context import JobContext
from core.errors import CalibrationError, RecipeError, TargetError

if TYPE_CHECKING:
    from core.checkpoints.base import Checkpoint
    from core.engine.model import Plan, PlannedTensor, Problem
    from core.recipes.model import Recipe
    from core.targets.base import Outline

OPEN, PLAN = "open", "plan"


@dataclass(frozen=True)
class PlanRequest:
    """outline: the target's for this checkpoint where it is known; out: where the output would go; calibration: None
    while the choice is being read."""

    checkpoint: Checkpoint
    recipe: Recipe
    target: str
    device: str
    out: Path
    outline: Outline | None
    calibration: CalibrationData | None = NOTHING


@dataclass(frozen=True)
class PlanResult:
    """plan is None when the checkpoint cannot be written so, with the reason in `error`. free_bytes: of the disk of the
    suggested output, None when unknown."""

    plan: Plan | None
    by_name: dict[str, PlannedTensor]
    problems: tuple[Problem, ...]
    error: str
    totals: PlanTotals | None = None
    free_bytes: int | None = None


@dataclass(frozen=True)
class CheckRequest:
    """A plan that stays as it is, and where its output would go now."""

    plan: Plan
    checkpoint: Checkpoint
    out: Path
    device: str


@dataclass(frozen=True)
class CheckResult:
    """problems and free_bytes as in PlanResult."""

    problems: tuple[Problem, ...]
    free_bytes: int | None


@without_collections
def open_task(path: str, ctx: JobContext) -> tuple[Checkpoint, Totals]:
    """The opened checkpoint and its sums. Reads headers only."""
    from core.checkpoints import open_checkpoint

    checkpoint = open_checkpoint(path)
    return checkpoint, Totals.of(checkpoint)


@without_collections
def plan_task(request: PlanRequest, ctx: JobContext) -> PlanResult:
    """Plans and looks ahead. Hands over the outline as a partial result as soon as it is known."""
    from core.engine.plan import make_plan
    from core.targets import get_target

    target = get_target(request.target)
    outline = request.outline
    if outline is None:
        try:
            outline = target.outline(request.checkpoint)
        except TargetError as error:
            ctx.partial(plain_outline(request.checkpoint))
            return PlanResult(None, {}, (), str(error))
        ctx.check()
        ctx.partial(outline)
    try:
        options = plan_options(request.calibration, request.recipe)
        plan = make_plan(request.checkpoint, request.recipe, target, ctx, outline=outline, **options)
    except (TargetError, RecipeError, CalibrationError) as error:
        return PlanResult(None, {}, (), str(error))
    ctx.check()
    ahead = check_task(CheckRequest(plan, request.checkpoint, request.out, request.device), ctx)
    by_name = {t.tensor.name: t for t in plan.tensors}
    return PlanResult(plan, by_name, ahead.problems, "", PlanTotals.of(plan), ahead.free_bytes)


def check_task(request: CheckRequest, ctx: JobContext) -> CheckResult:
    """Looks ahead, at a plan and the place of its output."""
    from core.engine.preflight import preflight

    problems = preflight(request.plan, request.checkpoint, request.out, device=request.device)
    try:
        free = shutil.disk_usage(request.out.parent).free
    except OSError:
        free = None
    return CheckResult(problems, free)


def plain_outline(checkpoint: Checkpoint) -> Outline:
    """The checkpoint's own tensors, for looking at what no target can take."""
    from core.roles import role_of
    from core.targets.base import Outline, OutputTensor, Plain

    return Outline(
        tuple(
            OutputTensor(t.name, Plain(t.name), t.shape, t.dtype, role_of(t.name), linear=False)
            for t in checkpoint.tensors.values()
        )
    )


class Planner(QObject):
    """opened(path, Checkpoint) after a checkpoint was read and before the session is told."""

    opened = Signal(str, object)
    busy_changed = Signal(bool)

    def __init__(self, session: Session, jobs: JobService, output_folder: str = "") -> None:
        super().__init__(session)
        self._session = session
        self._jobs = jobs
        self.output_folder = output_folder
        self.free_bytes: int | None = None
        self._open: JobId | None = None
        self._opening = ""
        self._plan: JobId | None = None
        self._check: JobId | None = None
        self._again = False  # to look again once the plan is made
        self._outline_of: tuple[Any, str] | None = None  # the checkpoint and target of session.outline
        self._asked: PlanRequest | None = None
        self._soon = QTimer(self)  # the window shows what changed first: beside a job its painting takes twice as long
        self._soon.setSingleShot(True)
        self._soon.setInterval(0)
        self._soon.timeout.connect(self.refresh)
        session.changed.connect(self._changed)
        jobs.partial.connect(self._partial)
        jobs.finished.connect(self._finished)

    @property
    def busy(self) -> bool:
        return self._plan is not None or self._open is not None or self._soon.isActive()

    def open(self, path: str | Path) -> None:
        """Reads a checkpoint's headers in the background; the session changes when they are there."""
        self._opening = str(path)
        self._open = self._jobs.submit(
            open_task, self._opening, title=f"Open {Path(path).name}", lane="preview", key=OPEN
        )
        self.busy_changed.emit(True)

    def suggested_output(self) -> Path:
        """A free name for the output: checkpoint and recipe, in the folder of the last output, or beside the input."""
        checkpoint = self._session.checkpoint
        assert checkpoint is not None
        source = Path(checkpoint.path)
        home = Path(self.output_folder) if self.output_folder else source.absolute().parent
        if not (home.is_dir() and os.access(home, os.W_OK)):
            home = Path.home()
        stem = source.name if source.is_dir() else source.stem
        folder, suffix = _container(self._session.target)
        label = self._session.recipe.name or "recipe"
        base = f"{stem or 'model'}-{_file_word(label)}"
        for n in range(1, 1000):
            path = home / f"{base}{'' if n == 1 else f'-{n}'}{'' if folder else suffix}"
            if not os.path.lexists(path):
                break
        return path

    @Slot()
    def refresh(self) -> None:
        """Plans anew. The result of any planning under way is dropped."""
        self._drop()
        session = self._session
        checkpoint = session.checkpoint
        if checkpoint is None:
            return
        known = self._outline_of == (id(checkpoint), session.target)
        request = PlanRequest(
            checkpoint,
            session.recipe,
            session.target,
            session.device,
            self.suggested_output(),
            session.outline if known else None,
            session.calibration_data,
        )
        self._asked = request
        self._plan = self._jobs.submit(plan_task, request, title="Plan", lane="preview", key=PLAN)
        self.busy_changed.emit(True)

    def look_again(self) -> None:
        """Output was written or removed: the plan is as good as before, the place it would go to may not be."""
        session = self._session
        plan, checkpoint = session.plan, session.checkpoint
        self._again = self.busy
        if self.busy or plan is None or checkpoint is None:
            return
        request = CheckRequest(plan, checkpoint, self.suggested_output(), session.device)
        self._check = self._jobs.submit(check_task, request, title="Check", lane="preview", key=PLAN)

    def _changed(self, changes: Changes, initiator: object) -> None:
        if changes.checkpoint:
            self._outline_of = None
        if changes.checkpoint or changes.recipe or changes.target or changes.device or changes.calibration:
            self._drop()
            self._soon.start()

    def _drop(self) -> None:
        """What is being planned is not asked for any more."""
        self._soon.stop()
        for job in (self._plan, self._check):
            if job is not None:
                self._jobs.cancel(job)
        self._plan = self._check = None

    def _partial(self, job: JobId, value: object) -> None:
        if job == self._plan and self._asked is not None:
            self._session.set_outline(value)  # type: ignore[arg-type]

    def _finished(self, job: JobId, outcome: Outcome) -> None:
        if job == self._open:
            self._open = None
            self._took_open(outcome)
        elif job == self._plan:
            self._plan = None
            self._took_plan(outcome)
        elif job == self._check:
            self._check = None
            if isinstance(outcome, Done):
                self.free_bytes = outcome.result.free_bytes
                self._session.set_problems(outcome.result.problems)
            elif isinstance(outcome, Failed):
                self._session.notify(
                    Notice("error", f"Cannot check the output's place: {outcome.line}", outcome.details)
                )
        else:
            return
        self.busy_changed.emit(self.busy)
        if self._again:
            self.look_again()

    def _took_open(self, outcome: Outcome) -> None:
        if isinstance(outcome, Done):
            checkpoint, totals = outcome.result
            self.opened.emit(self._opening, checkpoint)
            self._session.open(checkpoint, self, totals)
        elif isinstance(outcome, Failed):
            self._session.notify(Notice("error", f"Cannot open: {outcome.line}", outcome.details))

    def _took_plan(self, outcome: Outcome) -> None:
        asked, self._asked = self._asked, None
        if isinstance(outcome, Done):
            result: PlanResult = outcome.result
            if result.plan is not None and asked is not None:
                self._outline_of = (id(asked.checkpoint), asked.target)
            self.free_bytes = result.free_bytes
            data = asked.calibration if asked is not None else NOTHING
            self._session.set_plan(result.plan, result.by_name, result.error, result.totals, data)
            self._session.set_problems(result.problems)
            if result.error:
                self._session.notify(Notice("error", result.error))
        elif isinstance(outcome, Failed):
            self._session.set_plan(None, {}, outcome.line)
            self._session.set_problems(())
            self._session.notify(Notice("error", f"Cannot plan: {outcome.line}", outcome.details))


def _container(target: str) -> tuple[bool, str]:
    """Whether a target writes a folder, and the suffix of its single file."""
    from core.targets import get_target

    known = get_target(target)
    return known.folder, known.suffix


def _file_word(text: str) -> str:
    """A recipe's name as part of a file name on any system."""
    return "".join(c if c.isalnum() or c in "._+-" else "-" for c in text).strip("-. ") or "recipe"
