"""The model of the window: which checkpoint is open, what the recipe says, what the plan came to, what is selected.
Only the GUI thread changes it. Work happens elsewhere (planner.py, previews.py and quantizing.py hand tasks to the job
service).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Literal

from PySide6.QtCore import QObject, Signal

from app.calibration import NOTHING, CalibrationChoice, CalibrationData
from app.edits import Document, Edit
from app.history import History
from app.totals import PlanTotals, Totals
from core.engine.model import Problem
from core.recipes.model import Match, Recipe, Rule, Strategy

if TYPE_CHECKING:
    from core.checkpoints.base import Checkpoint
    from core.engine.model import Plan, PlannedTensor, Report
    from core.targets.base import Outline

START_RECIPE = Recipe("Q4_K_M", (Rule(Match(), preset="Q4_K_M"),))
START_TARGET = "gguf"


@dataclass(frozen=True, slots=True)
class Changes:
    """What is different now. calibration: the choice, or what it came to; errors: output tensors whose error became
    known or unknown."""

    checkpoint: bool = False
    recipe: bool = False
    target: bool = False
    outline: bool = False
    plan: bool = False
    problems: bool = False
    report: bool = False
    device: bool = False
    calibration: bool = False
    history: bool = False
    errors: frozenset[str] = frozenset()

    def __bool__(self) -> bool:
        return any(getattr(self, f.name) for f in fields(self))


@dataclass(frozen=True, slots=True)
class ShownError:
    """A tensor's weight error. exact: over the whole tensor; written: measured by a finished run, not previewed; why:
    it cannot be measured, "" where it was; stops: a run would stop at it for that reason."""

    sqnr_db: float | None
    relative_mse: float | None
    max_abs: float | None
    cosine: float | None
    exact: bool
    written: bool = False
    why: str = ""
    stops: bool = False


@dataclass(frozen=True, slots=True)
class Notice:
    """One line for the bar under the toolbar. details: shown on demand; action: id of an action to offer, or ""."""

    severity: Literal["error", "warning", "note", "done"]
    text: str
    details: str = ""
    actions: tuple[str, ...] = ()


class Session(QObject):
    """changed(Changes, initiator) follows every change; initiator is what was passed to the call, so that a view can
    leave out what it did itself. selection holds names of output tensors, in the container's order. left(thing): a
    large record or container that is no longer used, before it is dropped (leftovers.py)."""

    changed = Signal(object, object)
    left = Signal(object)
    selection_changed = Signal(object)  # tuple[str, ...]
    noticed = Signal(object)  # Notice

    def __init__(self, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._checkpoint: Checkpoint | None = None
        self._document = Document(START_RECIPE, START_TARGET)
        self._device = "cpu"
        self._calibration: CalibrationData | None = NOTHING
        self._planned_with: CalibrationData | None = NOTHING
        self._outline: Outline | None = None
        self._plan: Plan | None = None
        self._planned: Mapping[str, PlannedTensor] = {}
        self._plan_error = ""
        self._totals: Totals | None = None
        self._plan_totals: PlanTotals | None = None
        self._problems: tuple[Problem, ...] = ()
        self._stopping: dict[tuple[str, Strategy], Problem] = {}  # of errors that would stop a run
        self._found: tuple[Problem, ...] = ()
        self._report: Report | None = None
        self._selection: tuple[str, ...] = ()
        self._errors: dict[tuple[str, Strategy], ShownError] = {}
        self._history = History()

    @property
    def checkpoint(self) -> Checkpoint | None:
        return self._checkpoint

    @property
    def document(self) -> Document:
        return self._document

    @property
    def recipe(self) -> Recipe:
        return self._document.recipe

    @property
    def target(self) -> str:
        return self._document.target

    @property
    def device(self) -> str:
        return self._device

    @property
    def calibration(self) -> CalibrationChoice:
        """What the user chose to calibrate with."""
        return self._document.calibration

    @property
    def calibration_data(self) -> CalibrationData | None:
        """What the choice came to; None while it is being read, or when that failed."""
        return self._calibration

    @property
    def outline(self) -> Outline | None:
        """The output tensors: of the target, or the checkpoint's own where the target cannot take it."""
        return self._outline

    @property
    def plan(self) -> Plan | None:
        """The latest plan; it may be that of an older recipe while `planned` is False."""
        return self._plan

    @property
    def planned(self) -> bool:
        """Whether `plan` is that of the present recipe, target and calibration."""
        plan = self._plan
        return (
            plan is not None
            and plan.recipe == self.recipe
            and plan.target.name == self.target
            and self._calibration is not None
            and self._planned_with is self._calibration
        )

    @property
    def totals(self) -> Totals | None:
        """Sums over the checkpoint, None without one."""
        return self._totals

    @property
    def plan_totals(self) -> PlanTotals | None:
        """Sums over `plan`, None without one."""
        return self._plan_totals

    @property
    def plan_error(self) -> str:
        """Why there is no plan, one line, or ""."""
        return self._plan_error

    @property
    def problems(self) -> tuple[Problem, ...]:
        """What preflight found, latest, and what previews of errors met."""
        return self._problems + self._found

    @property
    def found(self) -> tuple[Problem, ...]:
        """Weights that a run of the latest plan would stop at, as far as previews of errors have met them."""
        return self._found

    @property
    def report(self) -> Report | None:
        """The last finished run of this checkpoint."""
        return self._report

    @property
    def selection(self) -> tuple[str, ...]:
        return self._selection

    def tensor(self, name: str) -> PlannedTensor | None:
        """The plan for an output tensor, or None."""
        return self._planned.get(name)

    def error(self, name: str) -> ShownError | None:
        """The error of a tensor under the strategy that the latest plan gives it, or None while unknown."""
        planned = self._planned.get(name)
        return self._errors.get((name, planned.strategy)) if planned is not None else None

    @property
    def planned_tensors(self) -> Mapping[str, PlannedTensor]:
        """The latest plan by output name."""
        return self._planned

    def known_errors(self) -> Mapping[tuple[str, Strategy], ShownError]:
        """A copy of all errors known for this checkpoint and target, for a task."""
        return dict(self._errors)

    def open(self, checkpoint: Checkpoint, initiator: Any = None, totals: Totals | None = None) -> Changes:
        """Another checkpoint. The preset, target and device stay; assignments by hand and undo history go.

        totals  its sums, made here if not given
        """
        from app.edits import is_by_hand

        self.let_go(self._outline)
        self._checkpoint = checkpoint
        rules = tuple(rule for rule in self.recipe.rules if not is_by_hand(rule))
        recipe = Recipe(self.recipe.name, rules, self.recipe.comment)
        # A text goes for any model; an importance matrix is that of one.
        kept = self.calibration if self.calibration.source == "text" else CalibrationChoice()
        self._document = Document(recipe, self.target, kept)
        self._forget()
        self._totals = totals if totals is not None else Totals.of(checkpoint)
        self._history.clear()
        self.select(())
        return self._tell(
            Changes(
                checkpoint=True,
                recipe=True,
                calibration=True,
                outline=True,
                plan=True,
                problems=True,
                report=True,
                history=True,
            ),
            initiator,
        )

    def begin(self, document: Document) -> Changes:
        """Recipe and target to start with; not an edit, so nothing to undo."""
        before, self._document = self._document, document
        self._calibration = None if document.calibration.source else NOTHING
        self._history.clear()
        calibration = before.calibration != document.calibration
        return self._tell(
            Changes(recipe=True, target=before.target != document.target, calibration=calibration, history=True), None
        )

    def close(self) -> Changes:
        """Back to the empty window."""
        self.let_go(self._outline)
        self._checkpoint = None
        self._forget()
        self._history.clear()
        self.select(())
        return self._tell(
            Changes(checkpoint=True, outline=True, plan=True, problems=True, report=True, history=True), None
        )

    def set_device(self, device: str, initiator: Any = None) -> Changes:
        if device == self._device:
            return Changes()
        self._device = device
        return self._tell(Changes(device=True), initiator)

    def apply(self, edit: Edit, initiator: Any = None) -> Changes:
        """Does an edit and remembers how to undo it. Raises RecipeError, with nothing changed."""
        before = self._document
        after = edit.apply(before)
        if after == before:
            return Changes()
        current = self._plan.nbytes if self._plan is not None and self.planned else None
        self._history.add(edit, before, current)
        return self._become(after, initiator)

    @property
    def undo_label(self) -> str:
        """What undo would take back, with its change in bytes once planned; "" when there is nothing."""
        return self._history.undo_label

    @property
    def redo_label(self) -> str:
        return self._history.redo_label

    def undo(self, initiator: Any = None) -> Changes:
        edit = self._history.back()
        return self._become(edit.apply(self._document), initiator) if edit is not None else Changes()

    def redo(self, initiator: Any = None) -> Changes:
        edit = self._history.forth()
        return self._become(edit.apply(self._document), initiator) if edit is not None else Changes()

    def select(self, names: Iterable[str], initiator: Any = None) -> None:
        """Other tensors are in view everywhere."""
        chosen = tuple(names)
        if chosen != self._selection:
            self._selection = chosen
            self.selection_changed.emit(chosen)

    def set_outline(self, outline: Outline) -> Changes:
        """The output tensors, before their plan is known."""
        if outline is self._outline:
            return Changes()
        self._outline = outline
        return self._tell(Changes(outline=True), None)

    def set_plan(
        self,
        plan: Plan | None,
        by_name: Mapping[str, PlannedTensor],
        error: str = "",
        totals: PlanTotals | None = None,
        calibration: CalibrationData | None = NOTHING,
    ) -> Changes:
        """The outcome of planning: a plan with its sums (made here if not given), or None with the reason.

        calibration  what it was planned with
        """
        outline = plan is not None and (self._outline is None or plan.outline.tensors is not self._outline.tensors)
        if plan is not None and outline:
            # Where the statistics come from is the plan's word; the tensors are the same with and without.
            self._outline = plan.outline if plan.outline.statistics is None else replace(plan.outline, statistics=None)
        self.let_go(self._plan, self._planned)
        self._plan, self._planned, self._plan_error = plan, by_name, error
        self._planned_with = calibration
        self._plan_totals = PlanTotals.of(plan) if plan is not None and totals is None else totals
        if plan is not None and self.planned:
            self._history.planned(plan.nbytes)
        problems = self._meet()
        return self._tell(Changes(plan=True, outline=outline, problems=problems, history=True), None)

    def set_calibration_data(self, data: CalibrationData | None) -> Changes:
        """What the present choice came to; None: nothing (yet). Errors previewed with other data are forgotten."""
        if data is self._calibration:
            return Changes()
        self._calibration = data
        gone = {key: e for key, e in self._errors.items() if not e.written}
        for key in gone:
            del self._errors[key]
            self._stopping.pop(key, None)
        return self._tell(Changes(calibration=True, errors=frozenset(name for name, _ in gone)), None)

    def set_problems(self, problems: tuple[Problem, ...]) -> Changes:
        if problems == self._problems:
            return Changes()
        self._problems = problems
        return self._tell(Changes(problems=True), None)

    def add_errors(self, errors: Mapping[tuple[str, Strategy], ShownError]) -> Changes:
        """Errors that became known. A preview never takes the place of a measured one."""
        names, met = set(), False
        for key, error in errors.items():
            known = self._errors.get(key)
            if known is not None and (known.written or known.exact) and not error.written:
                continue
            self._errors[key] = error
            names.add(key[0])
            if error.stops:
                self._stopping[key] = Problem("error", error.why, key[0])
                met = True
            elif self._stopping.pop(key, None):
                met = True
        if not names:
            return Changes()
        return self._tell(Changes(errors=frozenset(names), problems=met and self._meet()), None)

    def _meet(self) -> bool:
        """Which of the weights that stop runs the latest plan has. Whether that changed."""
        before = self._found
        self._found = tuple(
            problem
            for (name, strategy), problem in self._stopping.items()
            if (planned := self._planned.get(name)) is not None and planned.strategy == strategy
        )
        return self._found != before

    def set_report(self, report: Report | None) -> Changes:
        self._report = report
        return self._tell(Changes(report=True), None)

    def notify(self, notice: Notice) -> None:
        """A line for the notice bar and the log."""
        self.noticed.emit(notice)

    def _become(self, document: Document, initiator: Any) -> Changes:
        before, self._document = self._document, document
        target = before.target != document.target
        if target:
            self._errors.clear()
            self._stopping.clear()
        calibration = before.calibration != document.calibration
        if calibration:
            self._calibration = None if document.calibration.source else NOTHING
        return self._tell(
            Changes(recipe=before.recipe != document.recipe, target=target, calibration=calibration, history=True),
            initiator,
        )

    def let_go(self, *things: object) -> None:
        """Large things that nobody here needs any more."""
        for thing in things:
            if thing:
                self.left.emit(thing)

    def _forget(self) -> None:
        self.let_go(self._plan, self._planned)
        self._outline, self._plan, self._planned, self._plan_error = None, None, {}, ""
        self._problems, self._report, self._plan_totals = (), None, None
        self._totals = None
        self._calibration = None if self.calibration.source else NOTHING
        self._planned_with = NOTHING
        self._errors.clear()
        self._stopping.clear()
        self._found = ()

    def _tell(self, changes: Changes, initiator: Any) -> Changes:
        self.changed.emit(changes, initiator)
        return changes
