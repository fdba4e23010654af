"""The context menus of the tensor table: of its lines, and of its header."""

from __future__ import annotations

from typing import TYPE_CHECKING

from PySide6.QtCore import Qt
from PySide6.QtGui import QGuiApplication
from PySide6.QtWidgets import QMenu

from app.panels.tensors.columns import COLUMNS
from app.panels.tensors.table import TensorTable
from core.recipes.model import KEEP, Strategy

if TYPE_CHECKING:
    from app.panels.tensors.view import TensorsPanel


def tensor_menu(panel: TensorsPanel) -> QMenu:
    """What can be done with the selection. Goes when it closes."""
    names = panel.selected_names()
    menu = QMenu(panel)
    menu.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
    for text, handler in (
        ("Assign strategy …", panel.open_picker),
        ("Keep unquantized", lambda: panel.assign(Strategy(KEEP))),
        ("Let the rules decide", lambda: panel.assign(None)),
        ("Add rule for these roles", panel.add_rule_like_selection),
        ("Select all of the same role", panel.select_alike),
        ("Copy names", lambda: QGuiApplication.clipboard().setText("\n".join(names))),
    ):
        menu.addAction(text, handler).setEnabled(bool(names))
    menu.addSeparator()
    menu.addAction("Fold all blocks", lambda: panel.fold_all(True))
    menu.addAction("Unfold all blocks", lambda: panel.fold_all(False))
    return menu


def column_menu(table: TensorTable) -> QMenu:
    """Which columns are shown. The name always is."""
    menu = QMenu(table)
    menu.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
    for i, column in enumerate(COLUMNS[1:], 1):
        action = menu.addAction(column.title)
        action.setCheckable(True)
        action.setChecked(not table.isColumnHidden(i))
        action.toggled.connect(lambda shown, i=i: table.show_column(i, shown))
    return menu
