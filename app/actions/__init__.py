"""Every action of the window as one table: the menu bar, the command palette, shortcuts and tooltips come from it.

To add one: a line in the tuple of its menu's module, and its handler on Commands (commands.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from PySide6.QtGui import QAction, QKeySequence

from app.actions.edit import EDIT
from app.actions.file import FILE
from app.actions.help import HELP
from app.actions.record import Action
from app.actions.run import RUN
from app.actions.view import VIEW

if TYPE_CHECKING:
    from PySide6.QtWidgets import QWidget

    from app.commands import Commands
    from app.theme import Theme

MENUS = ("File", "Edit", "View", "Run", "Help")

ACTIONS: tuple[Action, ...] = (*FILE, *EDIT, *VIEW, *RUN, *HELP)
__all__ = ["ACTIONS", "MENUS", "Action", "make_actions", "refresh", "tooltip"]


def make_actions(commands: Commands, theme: Theme, parent: QWidget) -> dict[str, QAction]:
    """A QAction for each record, with its shortcut in the tooltip."""
    made: dict[str, QAction] = {}
    for record in ACTIONS:
        action = QAction(record.text, parent)
        action.setObjectName(record.id)
        if record.icon:
            action.setIcon(theme.icon(record.icon))
        if record.shortcut:
            action.setShortcut(QKeySequence(record.shortcut))
        action.setStatusTip(record.help)
        action.setToolTip(tooltip(record, action))
        action.setCheckable(record.checked is not None)
        action.triggered.connect(lambda _=False, r=record: commands.dispatch(r))
        parent.addAction(action)
        made[record.id] = action
    return made


def tooltip(record: Action, action: QAction) -> str:
    """ "Open checkpoint (Ctrl+O)", and what it does on a second line."""
    keys = action.shortcut().toString(QKeySequence.SequenceFormat.NativeText)
    text = record.text.removesuffix(" …")
    head = f"{text} ({keys})" if keys else text
    return f"{head}\n{record.help}" if record.help else head


def refresh(actions: dict[str, QAction], commands: Commands) -> None:
    """Enables and checks all actions as things are now."""
    for record in ACTIONS:
        action = actions[record.id]
        if record.enabled is not None:
            action.setEnabled(record.enabled(commands))
        if record.checked is not None:
            action.setChecked(record.checked(commands))
