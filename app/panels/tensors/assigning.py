"""How a selection of tensors becomes an assignment: the picker over a cell or beside the selection, and the edits that
come of it."""

from __future__ import annotations

from collections.abc import Callable

from PySide6.QtCore import QModelIndex, QObject, QRect, QTimer, Slot

from app.edits import AddRule, AssignStrategy
from app.panels.tensors.columns import PLACE
from app.panels.tensors.model import TensorModel
from app.panels.tensors.table import TensorTable
from app.session import Notice, Session
from app.strategies.choices import strategy_choices
from app.strategies.picker import StrategyPicker, picker_title
from app.theme import Theme
from core.errors import WorkbenchError
from core.recipes.model import KEEP, Match, Rule, Strategy


class Assigner(QObject):
    """settle() is called before an edit: the session must know what was selected last. picker: the last one opened."""

    def __init__(self, session: Session, theme: Theme, table: TensorTable, settle: Callable[[], None]) -> None:
        super().__init__(table)
        self._session = session
        self._theme = theme
        self._table = table
        self._settle = settle
        self.picker: StrategyPicker | None = None

    @property
    def _model(self) -> TensorModel:
        return self._table.tensors

    def open_picker(self) -> None:
        """The popover, for the selection."""
        lines = self._table.selected_lines()
        names = self._model.names_at(lines)
        if not names:
            self._session.notify(Notice("note", "Select one or more tensors first, then assign a strategy"))
            return
        current = self._table.currentIndex()
        if not current.isValid():
            current = self._model.index(lines[0], PLACE["strategy"])
        self._table.scrollTo(current)
        self._pick(names, current.siblingAtColumn(PLACE["strategy"]))

    @Slot(QModelIndex)
    def edit(self, index: QModelIndex) -> None:
        """In place: the edited line, or the whole selection when it is part of it."""
        lines = self._table.selected_lines()
        names = self._model.names_at(lines if index.row() in lines else [index.row()])
        # Qt is still inside the key or mouse event that asked for an editor.
        QTimer.singleShot(0, self, lambda: self._pick(names, index))

    def assign(self, names: tuple[str, ...], strategy: Strategy | None) -> None:
        """Gives tensors a strategy; None lets the rules decide."""
        if names:
            self._settle()
            self._try(lambda: self._session.apply(AssignStrategy(names, strategy), self.parent()))

    def assign_text(self, rows: list[int], text: str) -> None:
        """What was set through the model."""
        from core.recipes import parse_strategy

        if self._model.rows is None:
            return
        names = tuple(self._model.rows.names[i] for i in rows)
        self._try(lambda: self._session.apply(AssignStrategy(names, parse_strategy(text)), self.parent()))

    def add_rule_for_roles(self, names: tuple[str, ...]) -> None:
        """A rule for all tensors of these roles, with the first one's format, in front of the other rules."""
        rows = self._model.rows
        if rows is None or not names:
            return
        roles = tuple(dict.fromkeys(rows.roles[rows.index[n]] for n in names))
        planned = self._session.tensor(names[0])
        format_name = planned.strategy.format if planned is not None else KEEP
        rule = Rule(Match(role=roles), Strategy(format_name))
        self._try(lambda: self._session.apply(AddRule(0, rule), self.parent()))

    def _pick(self, names: tuple[str, ...], index: QModelIndex) -> None:
        session, rows, cells = self._session, self._model.rows, self._model.cells
        if rows is None or not names or session.outline is not rows.outline or cells is None:
            return
        tensors = [rows.outline.tensors[rows.index[n]] for n in names]
        choices = strategy_choices(rows.outline, session.target, tensors)
        strategies = {cells.strategy[rows.index[n]] for n in names}
        picker = StrategyPicker(
            self._theme,
            picker_title(names, self._table.fontMetrics()),
            strategies.pop() if len(strategies) == 1 else "",
            choices,
            len(names),
            self._table.window(),
            by_hand=bool(session.recipe.rules),
        )
        picker.chosen.connect(lambda strategy: self.assign(names, strategy))
        cell = self._table.visualRect(index)
        corner = self._table.viewport().mapToGlobal(cell.topLeft())
        self.picker = picker
        picker.open_at(QRect(corner, cell.size()))

    def _try(self, change: Callable[[], object]) -> None:
        try:
            change()
        except WorkbenchError as error:
            self._session.notify(Notice("error", str(error)))
