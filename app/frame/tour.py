"""The first steps: four sentences under the toolbar, each with the part of the window that it speaks of outlined. Shown
at the first start, and from the Help menu; never in the way of anything.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from PySide6.QtCore import QEvent, QObject, QPoint, QRect, Qt, QTimer, Signal, Slot
from PySide6.QtGui import QAction, QKeySequence, QPainter, QPaintEvent, QPen
from PySide6.QtWidgets import QFrame, QHBoxLayout, QLabel, QPushButton, QSizePolicy, QWidget

from app.theme import Theme

if TYPE_CHECKING:
    from app.main_window import MainWindow


@dataclass(frozen=True)
class Step:
    """title: two or three words; text: one or two sentences; parts: what is outlined, as far as it is on screen."""

    title: str
    text: str
    parts: tuple[QWidget, ...]


class Tour(QFrame):
    """finished(): the last step was read, or the tour was closed."""

    finished = Signal()

    def __init__(self, theme: Theme, steps: Sequence[Step], parent: QWidget) -> None:
        super().__init__(parent)
        self._theme, self._steps = theme, tuple(steps)
        self.at = -1
        self.setProperty("kind", "notice")
        self.setAccessibleName("First steps")
        self.count = QLabel(self)
        self.count.setProperty("kind", "muted")
        self.text = QLabel(self)
        self.text.setWordWrap(True)
        self.text.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
        self.text.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Preferred)
        self.back = self._button("Back", "The step before", self._go_back)
        self.next = self._button("Next", "The next step", self._go_on)
        self.close_button = self._button("Close", "Not now; Help › First steps shows it again (Esc)", self.end)
        line = QHBoxLayout(self)
        line.setContentsMargins(12, 6, 8, 6)
        line.setSpacing(8)
        line.addWidget(self.count)
        line.addWidget(self.text, 1)
        for button in (self.back, self.next, self.close_button):
            line.addWidget(button)
        escape = QAction(self)
        escape.setShortcut(QKeySequence("Esc"))
        escape.setShortcutContext(Qt.ShortcutContext.WidgetWithChildrenShortcut)
        escape.triggered.connect(self.end)
        self.addAction(escape)
        self._outline = _Outline(theme, parent)
        self._settle = QTimer(self)
        self._settle.setSingleShot(True)
        self._settle.setInterval(0)
        self._settle.timeout.connect(self._place)
        self.hide()

    def _button(self, text: str, help: str, handler: Callable[[], None]) -> QPushButton:
        button = QPushButton(text, self)
        button.setProperty("kind", "outline")
        button.setToolTip(help)
        button.clicked.connect(handler)
        return button

    @Slot()
    def begin(self) -> None:
        """From the first step."""
        self.show()
        self.window().installEventFilter(self)
        self._show(0)

    @Slot()
    def end(self) -> None:
        self.window().removeEventFilter(self)
        self.at = -1
        self.hide()
        self._outline.hide()
        self.finished.emit()

    def look_again(self) -> None:
        """The window shows something else now: the outline goes where its part is."""
        if self.at >= 0:
            self._settle.start()

    def eventFilter(self, watched: QObject, event: QEvent) -> bool:
        if event.type() in (QEvent.Type.Resize, QEvent.Type.LayoutRequest):
            self.look_again()
        return super().eventFilter(watched, event)

    @Slot()
    def _go_back(self) -> None:
        self._show(max(0, self.at - 1))

    @Slot()
    def _go_on(self) -> None:
        if self.at + 1 < len(self._steps):
            self._show(self.at + 1)
        else:
            self.end()

    def _show(self, at: int) -> None:
        self.at = at
        step = self._steps[at]
        self.count.setText(f"{at + 1} of {len(self._steps)}")
        self.text.setText(f"<b>{step.title}.</b> {step.text}")
        self.back.setEnabled(at > 0)
        last = at + 1 == len(self._steps)
        self.next.setText("Done" if last else "Next")
        self.next.setToolTip("Close the first steps" if last else "The next step")
        self.next.setFocus(Qt.FocusReason.OtherFocusReason)
        self._settle.start()

    @Slot()
    def _place(self) -> None:
        """Around everything that the step speaks of and that is seen."""
        if self.at < 0:
            return
        window = self.window()
        area = QRect()
        for part in self._steps[self.at].parts:
            if part.isVisible():
                area = area.united(QRect(part.mapTo(window, QPoint(0, 0)), part.size()))
        self._outline.frame(area)


class _Outline(QWidget):
    """A frame in the accent over a part of the window; the mouse does not notice it."""

    def __init__(self, theme: Theme, parent: QWidget) -> None:
        super().__init__(parent)
        self._theme = theme
        self.setAttribute(Qt.WidgetAttribute.WA_TransparentForMouseEvents)
        self.hide()

    def frame(self, area: QRect) -> None:
        """An empty area hides it."""
        self.setVisible(not area.isEmpty())
        if not area.isEmpty():
            self.setGeometry(area.adjusted(-4, -4, 4, 4).intersected(self.window().rect()))
            self.raise_()

    def paintEvent(self, event: QPaintEvent) -> None:
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        painter.setPen(QPen(self._theme.colors.accent, 2))
        painter.drawRoundedRect(self.rect().adjusted(1, 1, -1, -1), 4, 4)
        painter.end()


def tour_of(window: MainWindow) -> Tour:
    """The four steps of the window, made when its parts are there."""
    bar = window.toolbar
    steps = (
        Step(
            "Open",
            "Drop a checkpoint anywhere onto the window, or open one. None at hand? The demo is a small Llama.",
            (bar.open_button,),
        ),
        Step(
            "Look",
            "Select tensors in the table: the panels beside and below show their weights, outliers and error.",
            (window.columns, window.bottom),
        ),
        Step(
            "Choose",
            "A preset and a target for all, Ctrl+E for what is selected. The size is exact before anything is written.",
            (*bar.captions, bar.preset, bar.method, bar.target, bar.device),
        ),
        Step(
            "Write",
            "Preflight says what stands in the way, Quantize writes the file. Every action is behind Ctrl+Shift+P.",
            (bar.preflight, bar.quantize),
        ),
    )
    return Tour(window.theme, steps, window)
