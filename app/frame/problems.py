"""The popover that lists what preflight found: worst first, what many tensors share in one line, a click selects the
tensors it is about."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from PySide6.QtCore import QPoint, QSize, Qt, Signal, Slot
from PySide6.QtGui import QAction, QGuiApplication, QIcon, QKeySequence
from PySide6.QtWidgets import QFrame, QLabel, QListWidget, QListWidgetItem, QVBoxLayout, QWidget

from app.theme import Theme

if TYPE_CHECKING:
    from core.engine.model import Problem

WIDTH = 560
# Names in a tooltip at most.
NAMED = 20
_ICONS = {
    "error": ("x-circle", "failure_text"),
    "warning": ("warning", "caution_text"),
    "note": ("info", "muted"),
}


def problem_icon(theme: Theme, severity: str) -> QIcon:
    name, role = _ICONS.get(severity, _ICONS["note"])
    return theme.icon(name, role)


def counts_text(problems: Sequence[Problem]) -> tuple[str, str]:
    """A few words for the toolbar, and the worst severity: ("2 warnings", "warning"). What is said of many tensors
    counts once, as it is listed."""
    severities = [severity for severity, _, _ in grouped(problems)]
    words = []
    worst = ""
    for severity, one, many in (("error", "error", "errors"), ("warning", "warning", "warnings")):
        count = severities.count(severity)
        if count:
            words.append(f"{count} {one if count == 1 else many}")
            worst = worst or severity
    if words:
        return ", ".join(words), worst
    notes = severities.count("note")
    if notes:
        return f"Preflight OK, {notes} note{'' if notes == 1 else 's'}", "done"
    return "Preflight OK", "done"


def grouped(problems: Sequence[Problem]) -> list[tuple[str, str, tuple[str, ...]]]:
    """(severity, text, tensors it is about) in the order of the problems; the same of several tensors is one line."""
    found: dict[tuple[str, str, str], list[Problem]] = {}
    for problem in problems:
        found.setdefault((problem.severity, problem.message, problem.hint), []).append(problem)
    lines = []
    for (severity, message, hint), same in found.items():
        names = tuple(name for p in same for name in (p.tensor, *p.others) if name)
        text = str(same[0]) if len(names) < 2 else f"{len(names):,} tensors: {message}{f'; {hint}' if hint else ''}"
        lines.append((severity, text, names))
    return lines


class ProblemsPopover(QFrame):
    """tensors_chosen(names of output tensors)."""

    tensors_chosen = Signal(object)

    def __init__(self, theme: Theme, problems: Sequence[Problem], parent: QWidget) -> None:
        super().__init__(parent, Qt.WindowType.Popup)
        self.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        self.setProperty("kind", "popover")
        self.setFixedWidth(theme.px(WIDTH))
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
        width = theme.px(WIDTH)
        for severity, text, names in grouped(problems):
            item = QListWidgetItem(problem_icon(theme, severity), text)
            item.setData(Qt.ItemDataRole.UserRole, names)
            more = f", and {len(names) - NAMED:,} more" if len(names) > NAMED else ""
            item.setToolTip(f"{severity}: {text}" + (f"\n{', '.join(names[:NAMED])}{more}" if len(names) > 1 else ""))
            self.list.addItem(item)
            room = self.fontMetrics().boundingRect(0, 0, width - 72, 2000, int(Qt.TextFlag.TextWordWrap), text)
            item.setSizeHint(QSize(width - 32, room.height() + 10))
            height += room.height() + 10
        self.list.setFixedHeight(min(360, height + 4))
        self.list.itemClicked.connect(self._choose)
        self.list.itemActivated.connect(self._choose)
        copy = QAction("Copy", self.list)
        copy.setShortcut(QKeySequence(QKeySequence.StandardKey.Copy))
        copy.setShortcutContext(Qt.ShortcutContext.WidgetShortcut)
        copy.triggered.connect(self.copy)
        self.list.addAction(copy)
        self.list.setContextMenuPolicy(Qt.ContextMenuPolicy.ActionsContextMenu)
        self.list.setCurrentRow(0)
        layout.addWidget(self.list)

    def open_under(self, widget: QWidget) -> None:
        """Right edges aligned."""
        self.adjustSize()
        corner = widget.mapToGlobal(QPoint(widget.width() - self.width(), widget.height() + 4))
        self.move(corner)
        self.show()

    @Slot()
    def copy(self) -> None:
        """The line that is pointed at, as it is written."""
        item = self.list.currentItem()
        if item is not None:
            QGuiApplication.clipboard().setText(item.text())

    def _choose(self, item: QListWidgetItem) -> None:
        names = tuple(item.data(Qt.ItemDataRole.UserRole))
        if names:
            self.close()
            self.tensors_chosen.emit(names)
