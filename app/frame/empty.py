"""What the window shows before a checkpoint is open: what to do, and the recent ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PySide6.QtCore import Qt, Signal, Slot
from PySide6.QtGui import QGuiApplication
from PySide6.QtWidgets import QHBoxLayout, QLabel, QPushButton, QVBoxLayout, QWidget

from app.labels import BESIDE
from app.theme import Theme


class EmptyPage(QWidget):
    """open_asked(path, or "" for the dialog)."""

    open_asked = Signal(str)

    def __init__(self, theme: Theme, parent: QWidget) -> None:
        super().__init__(parent)
        self._theme = theme
        title = QLabel("Drop a checkpoint here, or press Ctrl+O", self)
        self._title = title
        about = QLabel(
            "A Hugging Face folder, or a safetensors, GGUF or torch file. Only headers are read at first.",
            self,
        )
        about.setProperty("kind", "muted")
        self.button = QPushButton("Open …", self)
        self.button.setProperty("kind", "outline")
        self.button.setIcon(theme.icon("folder-open"))
        self.button.clicked.connect(lambda: self.open_asked.emit(""))
        self.demo = QPushButton("Open the demo", self)
        self.demo.setProperty("kind", "outline")
        self.demo.setToolTip("A Llama of three million weights that comes with Quantbench")
        self.demo.setIcon(theme.icon("flask"))
        for button in (self.button, self.demo):
            button.setIconSize(BESIDE)
        buttons = QHBoxLayout()
        buttons.setSpacing(8)
        for button in (self.button, self.demo):
            buttons.addWidget(button)
        theme.resized.connect(self._resize_title)
        self._resize_title()
        self._recent = QVBoxLayout()
        self._recent.setSpacing(0)
        layout = QVBoxLayout(self)
        layout.setSpacing(8)
        layout.addStretch(2)
        for widget in (title, about):
            layout.addWidget(widget, 0, Qt.AlignmentFlag.AlignHCenter)
        layout.addSpacing(4)
        line = QHBoxLayout()
        line.addStretch(1)
        line.addLayout(buttons)
        line.addStretch(1)
        layout.addLayout(line)
        layout.addSpacing(16)
        layout.addLayout(self._recent)
        layout.addStretch(3)

    @Slot()
    def _resize_title(self) -> None:
        font = QGuiApplication.font()
        font.setPointSizeF(font.pointSizeF() * 1.4)
        self._title.setFont(font)

    def show_recent(self, paths: Sequence[str]) -> None:
        """Lists the last checkpoints, newest first."""
        while self._recent.count():
            item = self._recent.takeAt(0)
            widget = item.widget() if item is not None else None
            if widget is not None:
                widget.hide()
                widget.deleteLater()
        if not paths:
            return
        head = QLabel("Recent", self)
        head.setProperty("kind", "muted")
        self._recent.addWidget(head, 0, Qt.AlignmentFlag.AlignHCenter)
        for path in paths:
            button = QPushButton(self)
            button.setFlat(True)
            button.setProperty("kind", "link")
            metrics = button.fontMetrics()
            place = metrics.elidedText(str(Path(path).parent), Qt.TextElideMode.ElideMiddle, 420)
            button.setText(f"{Path(path).name}   {place}".replace("&", "&&"))
            button.setToolTip(path)
            button.setCursor(Qt.CursorShape.PointingHandCursor)
            button.clicked.connect(lambda _=False, p=path: self.open_asked.emit(p))
            self._recent.addWidget(button, 0, Qt.AlignmentFlag.AlignHCenter)
