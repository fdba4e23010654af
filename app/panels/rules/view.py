"""The rules panel: the list with its buttons, and how what is typed becomes an edit of the session."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from PySide6.QtCore import QModelIndex, QPersistentModelIndex, QStringListModel, Qt, Signal, Slot
from PySide6.QtGui import QKeySequence, QShortcut
from PySide6.QtWidgets import (
    QAbstractItemView,
    QCompleter,
    QHBoxLayout,
    QHeaderView,
    QLabel,
    QLineEdit,
    QStyleOptionViewItem,
    QTableView,
    QVBoxLayout,
    QWidget,
)

from app.buttons import flat_button
from app.cells import PaddedDelegate, follow_rows
from app.edits import AddRule, MoveRule, RemoveRule, ReplaceRule
from app.job_service import JobService
from app.jobs import Done, JobId, Outcome
from app.panels.rules.model import MATCHED, NOTE, NUMBER, PATTERN, STRATEGY, WON, RulesModel
from app.panels.rules.state import lines_of, retyped
from app.session import Changes, Notice, Session
from app.theme import current
from core.context import JobContext
from core.errors import RecipeError, WorkbenchError
from core.recipes.model import Match, Recipe, Rule, Strategy

if TYPE_CHECKING:
    from core.targets.base import Outline

COUNTS = "rule counts"
# Pixels of the columns but that of patterns, for text of the usual size.
WIDTHS = {NUMBER: 36, STRATEGY: 160, MATCHED: 76, WON: 64, NOTE: 150}


@dataclass(frozen=True)
class CountRequest:
    recipe: Recipe
    outline: Outline


def count_task(request: CountRequest, ctx: JobContext) -> list[tuple[int, int]]:
    """(matched, won) per rule."""
    from core.recipes import match_counts

    return match_counts(request.recipe, request.outline)


class _Delegate(PaddedDelegate):
    """Line edits; strategies complete. typing(row, column, text) on every key."""

    typing = Signal(int, int, str)
    closed = Signal()

    def createEditor(
        self, parent: QWidget, option: QStyleOptionViewItem, index: QModelIndex | QPersistentModelIndex
    ) -> QWidget:
        edit = QLineEdit(parent)
        edit.setFrame(False)
        if index.column() == STRATEGY:
            completer = QCompleter(edit)
            completer.setModel(QStringListModel(_strategy_names(), completer))
            completer.setCaseSensitivity(Qt.CaseSensitivity.CaseInsensitive)
            completer.setFilterMode(Qt.MatchFlag.MatchContains)
            completer.setMaxVisibleItems(12)
            edit.setCompleter(completer)
        row, column = index.row(), index.column()
        edit.textEdited.connect(lambda text: self.typing.emit(row, column, text))
        return edit

    def destroyEditor(self, editor: QWidget, index: QModelIndex | QPersistentModelIndex) -> None:
        super().destroyEditor(editor, index)
        self.closed.emit()


def _strategy_names() -> list[str]:
    from core.formats import FORMATS
    from core.recipes import PRESETS

    presets = [p.name for p in PRESETS if p.available]
    return ["keep", *presets, *(f.name for f in FORMATS if f.encodable)]


class RulesPanel(QWidget):
    """files_asked("open" | "save"): the window has the dialogs."""

    files_asked = Signal(str)

    def __init__(self, session: Session, jobs: JobService) -> None:
        super().__init__()
        self._session = session
        self._jobs = jobs
        self._theme = current()
        self._counts: list[tuple[int, int]] | None = None
        self._counted: Recipe | None = None
        self._job: JobId | None = None
        self.model = RulesModel(self._theme, self)
        self.table = QTableView(self)
        self.table.setAccessibleName("Rules")
        self._delegate = _Delegate(self.table)
        self._build()
        session.changed.connect(self._changed)
        jobs.finished.connect(self._finished)
        self._show()
        self._count()

    def _build(self) -> None:
        bar = QHBoxLayout()
        bar.setContentsMargins(8, 4, 8, 4)
        bar.setSpacing(4)
        self.add_button = flat_button(self._theme, "plus", "Add a rule in front of the selected one", handler=self.add)
        self.remove_button = flat_button(self._theme, "trash", "Remove the selected rule (Del)", handler=self.remove)
        self.up_button = flat_button(
            self._theme, "arrow-up", "Move the rule up (Alt+Up)", handler=lambda: self.move_by(-1)
        )
        self.down_button = flat_button(
            self._theme, "arrow-down", "Move the rule down (Alt+Down)", handler=lambda: self.move_by(1)
        )
        load = flat_button(
            self._theme, "folder-open", "Open a recipe file", handler=lambda: self.files_asked.emit("open")
        )
        save = flat_button(
            self._theme, "floppy-disk", "Save the recipe as a file", handler=lambda: self.files_asked.emit("save")
        )
        self.title = QLabel(self)
        self.title.setProperty("kind", "muted")
        for button in (self.add_button, self.remove_button, self.up_button, self.down_button):
            bar.addWidget(button)
        bar.addSpacing(8)
        bar.addWidget(load)
        bar.addWidget(save)
        bar.addSpacing(8)
        bar.addWidget(self.title, 1)
        table = self.table
        for keys, handler in (
            ("Del", self.remove),
            ("Alt+Up", lambda: self.move_by(-1)),
            ("Alt+Down", lambda: self.move_by(1)),
        ):
            shortcut = QShortcut(QKeySequence(keys), table)
            shortcut.setContext(Qt.ShortcutContext.WidgetShortcut)
            shortcut.activated.connect(handler)
        table.setModel(self.model)
        table.setItemDelegate(self._delegate)
        table.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
        table.setSelectionMode(QAbstractItemView.SelectionMode.SingleSelection)
        table.setEditTriggers(
            QAbstractItemView.EditTrigger.DoubleClicked | QAbstractItemView.EditTrigger.EditKeyPressed
        )
        table.setShowGrid(False)
        table.setWordWrap(False)
        table.setTabKeyNavigation(False)
        table.setDragDropMode(QAbstractItemView.DragDropMode.InternalMove)
        table.setDragDropOverwriteMode(False)
        table.setDropIndicatorShown(True)
        table.verticalHeader().hide()
        follow_rows(table)
        header = table.horizontalHeader()
        header.setSectionsClickable(False)
        header.setHighlightSections(False)
        header.setSectionResizeMode(PATTERN, QHeaderView.ResizeMode.Stretch)
        header.setMinimumSectionSize(28)
        self._fit_columns()
        self._theme.resized.connect(self._fit_columns)
        table.selectionModel().selectionChanged.connect(self._enable)
        self.model.pattern_typed.connect(lambda row, text: self._retype(row, pattern=text))
        self.model.strategy_typed.connect(lambda row, text: self._retype(row, strategy=text))
        self.model.moved.connect(self._move)
        self._delegate.typing.connect(self._try_out)
        self._delegate.closed.connect(self._count)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(0)
        layout.addLayout(bar)
        layout.addWidget(table, 1)

    @Slot()
    def _fit_columns(self) -> None:
        """For text of the present size; patterns take the rest."""
        for column, width in WIDTHS.items():
            self.table.setColumnWidth(column, self._theme.px(width))

    # Called by buttons and the window

    @property
    def row(self) -> int:
        """The selected rule, or −1."""
        index = self.table.currentIndex()
        return index.row() if index.isValid() and self.table.selectionModel().hasSelection() else -1

    def add(self) -> None:
        """A new rule in front of the selected one (of all, without one), open for typing. It looks like the selected
        tensor's name with every number free, and gives what that tensor has now."""
        row = max(0, self.row)
        planned = self._session.tensor(self._session.selection[0]) if self._session.selection else None
        name = _any_number(planned.tensor.name) if planned is not None else "*.weight"
        strategy = planned.strategy if planned is not None else Strategy("keep")
        if self._try(lambda: self._session.apply(AddRule(row, Rule(Match(name=name), strategy)), self)):
            self._select(row)
            self.table.edit(self.model.index(row, PATTERN))

    def remove(self) -> None:
        row = self.row
        if row >= 0 and self._try(lambda: self._session.apply(RemoveRule(row), self)):
            self._select(min(row, self.model.rowCount() - 1))

    def move_by(self, step: int) -> None:
        row = self.row
        if row >= 0 and 0 <= row + step < self.model.rowCount():
            self._move(row, row + step)

    @Slot(int, int)
    def _move(self, row: int, to: int) -> None:
        if self._try(lambda: self._session.apply(MoveRule(row, to), self)):
            self._select(to)

    def _retype(self, row: int, pattern: str | None = None, strategy: str | None = None) -> None:
        def change() -> None:
            rule = retyped(self._session.recipe.rules[row], pattern, strategy)
            self._session.apply(ReplaceRule(row, rule), self)

        self._try(change)

    def _try(self, change: Callable[[], object]) -> bool:
        try:
            change()
        except WorkbenchError as error:
            self._session.notify(Notice("error", str(error)))
            return False
        return True

    # Following the session

    def _changed(self, changes: Changes, initiator: object) -> None:
        if changes.recipe or changes.outline or changes.checkpoint:
            self._counts = None
            self._show()
            self._count()

    def _show(self) -> None:
        recipe = self._session.recipe
        row = self.row
        self.model.show(lines_of(recipe, self._counts))
        if row >= 0 and self.row < 0:
            self._select(min(row, self.model.rowCount() - 1))
        self.title.setText(f"{recipe.name or 'Recipe without a name'} · the first rule that matches wins")
        self._enable()

    @Slot()
    def _count(self) -> None:
        self._submit(self._session.recipe)

    def _submit(self, recipe: Recipe) -> None:
        outline = self._session.outline
        if outline is None:
            return
        self._counted = recipe
        self._job = self._jobs.submit(
            count_task, CountRequest(recipe, outline), title="Count matches", lane="preview", key=COUNTS
        )

    @Slot(int, int, str)
    def _try_out(self, row: int, column: int, text: str) -> None:
        """Counts for what is being typed, before it is an edit. What makes no sense yet is left alone."""
        if column != PATTERN:
            return
        rules = list(self._session.recipe.rules)
        try:
            rules[row] = retyped(rules[row], pattern=text)
        except (RecipeError, IndexError):
            return
        self._submit(replace(self._session.recipe, rules=tuple(rules)))

    def _finished(self, job: JobId, outcome: Outcome) -> None:
        if job != self._job:
            return
        self._job = None
        # A wrong rule is the plan's to report.
        counted = self._counted
        recipe = self._session.recipe
        if isinstance(outcome, Done) and counted is not None and len(counted.rules) == len(recipe.rules):
            self._counts = outcome.result
            self.model.show(lines_of(recipe, self._counts))

    def _select(self, row: int) -> None:
        if row >= 0:
            self.table.selectRow(row)

    @Slot()
    def _enable(self) -> None:
        row, count = self.row, self.model.rowCount()
        self.remove_button.setEnabled(row >= 0)
        self.up_button.setEnabled(row > 0)
        self.down_button.setEnabled(0 <= row < count - 1)


def _any_number(name: str) -> str:
    """ "blk.3.attn_q.weight" → "blk.*.attn_q.weight"."""
    return ".".join("*" if part.isdecimal() else part for part in name.split("."))
