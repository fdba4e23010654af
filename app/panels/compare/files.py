"""The button that says which checkpoint stands on one side, and takes another: by menu, or dropped onto it."""

from __future__ import annotations

from pathlib import Path

from PySide6.QtCore import QSize, Qt, Signal
from PySide6.QtGui import QDragEnterEvent, QDropEvent, QIcon, QResizeEvent
from PySide6.QtWidgets import QMenu, QSizePolicy, QToolButton, QWidget

from app.labels import BESIDE, beside
from app.theme import Theme


class FileButton(QToolButton):
    """chosen(path): dropped, or picked from what is offered. asked(folder): the user wants the file dialog."""

    chosen = Signal(str)
    asked = Signal(bool)

    def __init__(self, theme: Theme, title: str, empty: str, parent: QWidget) -> None:
        super().__init__(parent)
        self._empty, self._path = empty, ""
        self._offers: list[tuple[str, str]] = []
        self.setProperty("kind", "drop")
        self.setAccessibleName(title)
        self.setPopupMode(QToolButton.ToolButtonPopupMode.InstantPopup)
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        self.setAcceptDrops(True)
        menu = QMenu(self)
        menu.aboutToShow.connect(self._fill)
        self.setMenu(menu)
        self._theme = theme
        # Beside an icon words stand at the left.
        beside(self)
        self.show_path("")

    def show_path(self, path: str) -> None:
        self._path = path
        self.setToolTip(path or self._empty)
        self.setIcon(self._theme.icon("folder-open" if Path(path).is_dir() else "file") if path else QIcon())
        self._elide()

    def offer(self, offers: list[tuple[str, str]]) -> None:
        """Paths to pick without a dialog: (words, path)."""
        self._offers = offers

    def _fill(self) -> None:
        menu = self.menu()
        menu.clear()
        icon = self._theme.icon
        menu.addAction(icon("file"), "File …", lambda: self.asked.emit(False))
        menu.addAction(icon("folder-open"), "Folder …", lambda: self.asked.emit(True))
        offers = [(words, path) for words, path in self._offers if path and path != self._path]
        if offers:
            menu.addSeparator()
        for words, path in offers:
            action = menu.addAction(words.replace("&", "&&"))
            action.setToolTip(path)
            action.triggered.connect(lambda _=False, p=path: self.chosen.emit(p))
        if self._path:
            menu.addSeparator()
            menu.addAction(icon("x"), "None", lambda: self.chosen.emit(""))

    def _elide(self) -> None:
        text = Path(self._path).name or self._path if self._path else self._empty
        room = max(40, self.width() - 36 - (BESIDE.width() if self._path else 0))
        self.setText(self.fontMetrics().elidedText(text, Qt.TextElideMode.ElideMiddle, room).replace("&", "&&"))

    def resizeEvent(self, event: QResizeEvent) -> None:
        super().resizeEvent(event)
        self._elide()

    def sizeHint(self) -> QSize:
        return QSize(200, super().sizeHint().height())

    def minimumSizeHint(self) -> QSize:
        return QSize(80, super().minimumSizeHint().height())

    def dragEnterEvent(self, event: QDragEnterEvent) -> None:
        if any(url.isLocalFile() for url in event.mimeData().urls()):
            event.acceptProposedAction()

    def dropEvent(self, event: QDropEvent) -> None:
        path = next((url.toLocalFile() for url in event.mimeData().urls() if url.isLocalFile()), "")
        if path:
            event.acceptProposedAction()
            self.chosen.emit(str(Path(path).parent) if Path(path).name == "config.json" else path)
