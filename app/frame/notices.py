"""The bar under the toolbar that says what happened: one line, selectable, with details behind a disclosure and the
actions that help. Never modal; the newest line replaces the one before, errors stay until they are closed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from PySide6.QtCore import Qt, QTimer, Signal, Slot
from PySide6.QtGui import QAction
from PySide6.QtWidgets import (
    QFrame,
    QHBoxLayout,
    QLabel,
    QPlainTextEdit,
    QSizePolicy,
    QToolButton,
    QVBoxLayout,
    QWidget,
)

from app.session import Notice
from app.theme import Theme

_ICONS = {
    "error": ("x-circle", "failure_text"),
    "warning": ("warning", "caution_text"),
    "note": ("info", "muted"),
    "done": ("check-circle", "done_text"),
}
# Notes go by themselves; what went wrong and what was made stay.
NOTE_MS = 8000
_DETAIL_LINES = 8


class NoticeBar(QFrame):
    """closed: the bar went away. actions: id → QAction, for the buttons that a notice asks for."""

    closed = Signal()

    def __init__(self, theme: Theme, actions: Mapping[str, QAction], parent: QWidget) -> None:
        super().__init__(parent)
        self._theme = theme
        self._actions = actions
        self.notice: Notice | None = None
        self.setProperty("kind", "notice")
        self.icon = QLabel(self)
        self.text = QLabel(self)
        self.text.setTextFormat(Qt.TextFormat.PlainText)
        self.text.setTextInteractionFlags(
            Qt.TextInteractionFlag.TextSelectableByMouse | Qt.TextInteractionFlag.TextSelectableByKeyboard
        )
        self.text.setWordWrap(True)
        self.text.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Preferred)
        self.details_button = self._button("Details", self._toggle)
        self.details_button.setCheckable(True)
        self.close_button = self._button("", self.dismiss)
        self.close_button.setIcon(theme.icon("x"))
        self.close_button.setToolTip("Close (Esc)")
        self.close_button.setAccessibleName("Close the notice")
        self.details = QPlainTextEdit(self)
        self.details.setReadOnly(True)
        self.details.setLineWrapMode(QPlainTextEdit.LineWrapMode.NoWrap)
        self.details.hide()
        self._extra: list[QToolButton] = []
        self._line = QHBoxLayout()
        self._line.setSpacing(8)
        self._line.addWidget(self.icon, 0)
        self._line.addWidget(self.text, 1)
        self._line.addWidget(self.details_button)
        self._line.addWidget(self.close_button)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(12, 4, 8, 4)
        layout.setSpacing(4)
        layout.addLayout(self._line)
        layout.addWidget(self.details)
        self._timer = QTimer(self)
        self._timer.setSingleShot(True)
        self._timer.setInterval(NOTE_MS)
        self._timer.timeout.connect(self.dismiss)
        # The bar pushes all else down, and the whole window is painted anew: after what else the notice comes with.
        self._appear = QTimer(self)
        self._appear.setSingleShot(True)
        self._appear.setInterval(0)
        self._appear.timeout.connect(self.show)
        theme.changed.connect(self._retint)
        self.hide()

    def _button(self, text: str, handler: Callable[[], None]) -> QToolButton:
        button = QToolButton(self)
        button.setText(text)
        button.setProperty("kind", "flat")
        button.clicked.connect(handler)
        return button

    @Slot(object)
    def show_notice(self, notice: Notice) -> None:
        """Replaces what is shown; a note never hides an error."""
        current = self.notice
        if notice.severity == "note" and current is not None and current.severity in ("error", "done"):
            return
        self.notice = notice
        self.text.setText(notice.text)
        self.text.setAccessibleName(f"{notice.severity}: {notice.text}")
        self.details.setPlainText(notice.details)
        self.details_button.setVisible(bool(notice.details))
        self.details_button.setChecked(False)
        self._toggle()
        for button in self._extra:
            self._line.removeWidget(button)
            button.hide()
            button.deleteLater()
        self._extra = [self._offer(self._actions[a]) for a in notice.actions if a in self._actions]
        self._retint()
        self._appear.start()
        self._timer.start() if notice.severity == "note" else self._timer.stop()

    @Slot()
    def dismiss(self) -> None:
        self._timer.stop()
        self._appear.stop()
        self.notice = None
        self.hide()
        self.closed.emit()

    def withdraw(self, text: str) -> None:
        """Closes it where this is what it says: it is no longer so."""
        if self.notice is not None and self.notice.text.endswith(text):
            self.dismiss()

    def _offer(self, action: QAction) -> QToolButton:
        button = QToolButton(self)
        button.setDefaultAction(action)
        button.setToolButtonStyle(Qt.ToolButtonStyle.ToolButtonTextOnly)
        button.setProperty("kind", "outline")
        self._line.insertWidget(self._line.count() - 2, button)
        return button

    @Slot()
    def _toggle(self) -> None:
        shown = self.details_button.isChecked()
        self.details.setVisible(shown)
        if shown:
            lines = min(_DETAIL_LINES, self.details.document().blockCount())
            self.details.setFixedHeight(self.details.fontMetrics().lineSpacing() * lines + 12)

    @Slot()
    def _retint(self) -> None:
        if self.notice is not None:
            name, role = _ICONS[self.notice.severity]
            self.icon.setPixmap(self._theme.icon(name, role).pixmap(16, 16))
