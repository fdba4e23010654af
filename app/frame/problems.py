"""The popover that lists what preflight found: worst first, a click selects the tensor it is about."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from PySide6.QtCore import QPoint, QSize, Qt, Signal
from PySide6.QtGui import QIcon
from PySide6.QtWidgets import QFrame, QLabel, QListWidget, QListWidgetItem, QVBoxLayout, QWidget

from app.theme import Theme

if TYPE_CHECKING:
    from core.engine.model import Problem

WIDTH = 560
_ICONS = {
    "error": ("x-circle", "failure_text"),
    "warning": ("warning", "caution_text"),
    "note": ("info", "muted"),
}


def problem_icon(theme: Theme, severity: str) -> QIcon:
    name, role = _ICONS.get(severity, _ICONS["note"])
    return theme.icon(name, role)


def counts_text(problems: Sequence[Problem]) -> tuple[str, str]:
    """A few words for the toolbar, and the worst severity: ("2 warnings", "warning")."""
    words = []
    worst = ""
    for severity, one, many in (("error", "error", "errors"), ("warning", "warning", "warnings")):
        count = sum(p.severity == severity for p in problems)
        if count:
            words.append(f"{count} {one if count == 1 else many}")
            worst = worst or severity
    if words:
        return ", ".join(words), worst
    notes = sum(p.severity == "note" for p in problems)
    if notes:
        return f"Preflight OK, {notes} note{'' if notes == 1 else 's'}", "done"
    return "Preflight OK", "done"


class ProblemsPopover(QFrame):
    """tensor_chosen(name of an output tensor)."""

    tensor_chosen = Signal(str)

    def __init__(self, theme: Theme, problems: Sequence[Problem], parent: QWidget) -> None:
        super().__init__(parent, Qt.WindowType.Popup)
        self.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        self.setProperty("kind", "popover")
        self.setFixedWidth(WIDTH)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(8, 8, 8, 8)
        layout.setSpacing(8)
        title = QLabel("Preflight: what is known before the first byte is written", self)
        title.setProperty("kind", "muted")
        layout.addWidget(title)
        if not problems:
            layout.addWidget(QLabel("Everything fits: formats, container, disk, memory.", self))
            return
        self.list = QListWidget(self)
        self.list.setFrameShape(QFrame.Shape.NoFrame)
        self.list.setWordWrap(True)
        self.list.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.list.setIconSize(QSize(16, 16))
        height = 0
        for problem in problems:
            item = QListWidgetItem(problem_icon(theme, problem.severity), str(problem))
            item.setData(Qt.ItemDataRole.UserRole, problem.tensor)
            item.setToolTip(f"{problem.severity}: {problem}")
            self.list.addItem(item)
            text = self.fontMetrics().boundingRect(0, 0, WIDTH - 72, 2000, int(Qt.TextFlag.TextWordWrap), str(problem))
            item.setSizeHint(QSize(WIDTH - 32, text.height() + 10))
            height += text.height() + 10
        self.list.setFixedHeight(min(360, height + 4))
        self.list.itemClicked.connect(self._choose)
        layout.addWidget(self.list)

    def open_under(self, widget: QWidget) -> None:
        """Right edges aligned."""
        self.adjustSize()
        corner = widget.mapToGlobal(QPoint(widget.width() - self.width(), widget.height() + 4))
        self.move(corner)
        self.show()

    def _choose(self, item: QListWidgetItem) -> None:
        name = item.data(Qt.ItemDataRole.UserRole)
        if name:
            self.close()
            self.tensor_chosen.emit(name)
