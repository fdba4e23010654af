"""Labels that the panels share: one that shortens its text to its width, the heading of a picture, what an empty panel
says, and the hairline between things."""

from __future__ import annotations

from PySide6.QtCore import QSize, Qt, Slot
from PySide6.QtGui import QAction, QFont, QGuiApplication, QPainter, QPaintEvent
from PySide6.QtWidgets import QFrame, QLabel, QSizePolicy, QStyle, QToolButton, QVBoxLayout, QWidget

from app.theme import GRID, ICON

# An icon and the gap to the word beside it.
BESIDE = QSize(ICON + GRID, ICON)


class ElidedLabel(QLabel):
    """One line that ends in … where it is too long; the whole is in the tooltip, and `text()` is always the whole.

    kind  the look in the style sheet: "muted", "caution", "failure", "done" or ""
    apart  what stands between the parts of the text, if it has any: of those too much none is cut, they are left out
    tip    False: the tooltip is somebody else's business
    """

    def __init__(
        self,
        kind: str = "",
        mode: Qt.TextElideMode = Qt.TextElideMode.ElideRight,
        parent: QWidget | None = None,
        apart: str = "",
        tip: bool = True,
    ) -> None:
        super().__init__(parent)
        self._mode, self._apart, self._tip = mode, apart, tip
        self.setTextFormat(Qt.TextFormat.PlainText)
        self.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Fixed)
        if kind:
            self.setProperty("kind", kind)
        copy = QAction("Copy", self)
        copy.triggered.connect(self.copy)
        self.addAction(copy)
        self.setContextMenuPolicy(Qt.ContextMenuPolicy.ActionsContextMenu)

    @Slot()
    def copy(self) -> None:
        """The whole text."""
        QGuiApplication.clipboard().setText(self.text())

    @property
    def shown(self) -> str:
        """The text as far as it fits."""
        metrics, room, text = self.fontMetrics(), self.contentsRect().width(), self.text()
        if self._apart and metrics.horizontalAdvance(text) > room:
            parts = text.split(self._apart)
            for count in range(len(parts) - 1, 0, -1):
                text = f"{self._apart.join(parts[:count])} …"
                if metrics.horizontalAdvance(text) <= room:
                    return text
        return metrics.elidedText(self.text(), self._mode, room)

    def minimumSizeHint(self) -> QSize:
        return QSize(0, super().minimumSizeHint().height())

    def paintEvent(self, event: QPaintEvent) -> None:
        text = self.shown
        if self._tip:
            self.setToolTip(self.text() if text != self.text() else "")
        painter = QPainter(self)
        self.style().drawItemText(
            painter,
            self.contentsRect(),
            int(QStyle.visualAlignment(self.layoutDirection(), self.alignment())),
            self.palette(),
            self.isEnabled(),
            text,
            self.foregroundRole(),
        )
        painter.end()


class Heading(QWidget):
    """title: what is found, in bold; subtitle: what it is about, under it."""

    def __init__(self) -> None:
        super().__init__()
        self.title = ElidedLabel()
        embolden(self.title)
        self.subtitle = ElidedLabel("muted", Qt.TextElideMode.ElideMiddle)
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(4)
        column.addWidget(self.title)
        column.addWidget(self.subtitle)


def empty_label(text: str, aside: int = 24, above: int = 24) -> QLabel:
    """What an empty panel says, in its middle; pixels that stay free at its sides, and above and below."""
    label = QLabel(text)
    label.setWordWrap(True)
    label.setProperty("kind", "muted")
    label.setAlignment(Qt.AlignmentFlag.AlignCenter)
    label.setContentsMargins(aside, above, aside, above)
    return label


def embolden(label: QWidget) -> None:
    """Bold, and otherwise as the window's text, whatever its size becomes."""
    font = QFont()
    font.setBold(True)
    label.setFont(font)


def beside(button: QToolButton) -> None:
    """The icon at the left of the word, with a gap between them."""
    button.setToolButtonStyle(Qt.ToolButtonStyle.ToolButtonTextBesideIcon)
    button.setIconSize(BESIDE)


def hairline() -> QFrame:
    """A horizontal line between two parts of a panel."""
    line = QFrame()
    line.setProperty("kind", "hairline")
    return line
