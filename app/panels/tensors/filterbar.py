"""The line above the tensor table: text filter, roles, dtype, grouping, and how many tensors are left."""

from __future__ import annotations

from collections.abc import Sequence

from PySide6.QtCore import QEvent, QObject, Qt, Signal, Slot
from PySide6.QtGui import QAction, QKeyEvent
from PySide6.QtWidgets import QHBoxLayout, QLabel, QLineEdit, QMenu, QToolButton, QWidget

from app.panels.tensors.state import Filter
from app.theme import Theme

_TIP = "All words must occur in the name; re: searches a regular expression (Ctrl+F)"


class FilterBar(QWidget):
    """changed: another filter; grouped(bool); left: the user is done typing and goes back to the table."""

    changed = Signal()
    grouped = Signal(bool)
    left = Signal()

    def __init__(self, theme: Theme, parent: QWidget) -> None:
        super().__init__(parent)
        self.edit = QLineEdit(self)
        self.edit.setPlaceholderText("Filter: words, or re:…")
        self.edit.setAccessibleName("Filter tensors")
        self.edit.setClearButtonEnabled(True)
        self.edit.setToolTip(_TIP)
        self.edit.addAction(theme.icon("magnifying-glass", "muted"), QLineEdit.ActionPosition.LeadingPosition)
        self.edit.textChanged.connect(self._changed)
        self.edit.installEventFilter(self)
        self.role_button = self._menu_button("Role", "Show only tensors of these roles")
        self.dtype_button = self._menu_button("Dtype", "Show only tensors of this type")
        self.group_button = self._button("tree-structure", theme)
        self.group_button.setCheckable(True)
        self.group_button.setChecked(True)
        self.group_button.setToolTip("Group tensors by block, or show one flat list")
        self.group_button.setAccessibleName("Group by block")
        self.group_button.toggled.connect(self.grouped)
        self.count = QLabel(self)
        self.count.setProperty("kind", "muted")
        self.count.setAlignment(Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter)
        self.count.setMinimumWidth(self.fontMetrics().horizontalAdvance("000 of 000"))
        layout = QHBoxLayout(self)
        layout.setContentsMargins(8, 4, 12, 4)
        layout.setSpacing(4)
        layout.addWidget(self.edit, 1)
        for widget in (self.role_button, self.dtype_button, self.group_button):
            layout.addWidget(widget)
        layout.addSpacing(8)
        layout.addWidget(self.count)

    def _button(self, icon: str, theme: Theme) -> QToolButton:
        button = QToolButton(self)
        button.setProperty("kind", "flat")
        if icon:
            button.setIcon(theme.icon(icon))
        return button

    def _menu_button(self, text: str, tip: str) -> QToolButton:
        button = QToolButton(self)
        button.setProperty("kind", "menu")
        button.setText(text)
        button.setToolTip(tip)
        button.setPopupMode(QToolButton.ToolButtonPopupMode.InstantPopup)
        button.setMenu(QMenu(button))
        button.setEnabled(False)
        return button

    def filter(self) -> Filter:
        """What is asked for now."""
        roles = frozenset(a.text() for a in self.role_button.menu().actions() if a.isChecked())
        dtypes = [a.text() for a in self.dtype_button.menu().actions() if a.isChecked()]
        return Filter(self.edit.text(), roles, dtypes[0] if dtypes else "")

    def offer(self, roles: Sequence[str], dtypes: Sequence[str]) -> None:
        """The roles and types that occur. What was chosen and still occurs stays chosen."""
        for button, words in ((self.role_button, roles), (self.dtype_button, dtypes)):
            menu = button.menu()
            checked = {a.text() for a in menu.actions() if a.isChecked()}
            menu.clear()
            for word in words:
                action = QAction(word, menu)
                action.setCheckable(True)
                action.setChecked(word in checked)
                action.triggered.connect(self._changed if button is self.role_button else self._one_dtype)
                menu.addAction(action)
            button.setEnabled(len(words) > 1)

    def show_count(self, shown: int, total: int) -> None:
        if not total:
            self.count.clear()
        elif shown == total:
            self.count.setText(f"{total:,} tensor{'' if total == 1 else 's'}")
        else:
            self.count.setText(f"{shown:,} of {total:,}")

    def show_wrong(self, line: str) -> None:
        """Marks the text as no filter, with why; "" takes the mark away."""
        self.edit.setToolTip(line or _TIP)
        wrong = bool(line)
        if bool(self.edit.property("wrong")) != wrong:
            self.edit.setProperty("wrong", wrong)
            self.edit.style().unpolish(self.edit)
            self.edit.style().polish(self.edit)
        if wrong:
            self.count.setText("no such pattern")

    def focus(self) -> None:
        self.edit.setFocus(Qt.FocusReason.ShortcutFocusReason)
        self.edit.selectAll()

    def type_on(self, text: str) -> None:
        """A key that was pressed elsewhere."""
        self.edit.setFocus(Qt.FocusReason.OtherFocusReason)
        self.edit.setText(self.edit.text() + text)

    def clear(self) -> None:
        """Shows everything again."""
        for button in (self.role_button, self.dtype_button):
            for action in button.menu().actions():
                action.setChecked(False)
        self.edit.clear()
        self._changed()

    def eventFilter(self, watched: QObject, event: QEvent) -> bool:
        if watched is self.edit and event.type() == QEvent.Type.KeyPress and isinstance(event, QKeyEvent):
            if event.key() == Qt.Key.Key_Escape:
                self.clear()
                self.left.emit()
                return True
            if event.key() in (Qt.Key.Key_Down, Qt.Key.Key_Return, Qt.Key.Key_Enter):
                self.left.emit()
                return True
        return super().eventFilter(watched, event)

    @Slot()
    def _changed(self) -> None:
        wanted = self.filter()
        self.role_button.setText(f"Role: {len(wanted.roles)}" if wanted.roles else "Role")
        self.dtype_button.setText(wanted.dtype or "Dtype")
        self.changed.emit()

    @Slot()
    def _one_dtype(self) -> None:
        chosen = self.sender()
        for action in self.dtype_button.menu().actions():
            if action is not chosen:
                action.setChecked(False)
        self._changed()
