"""The menu of checkpoints that were opened before."""

from __future__ import annotations

from typing import TYPE_CHECKING

from PySide6.QtCore import Slot
from PySide6.QtWidgets import QMenu

if TYPE_CHECKING:
    from app.main_window import MainWindow


class RecentMenu(QMenu):
    """Filled when it is about to be shown."""

    def __init__(self, window: MainWindow) -> None:
        super().__init__("Open recent", window)
        self._window = window
        self.aboutToShow.connect(self._fill)

    @Slot()
    def _fill(self) -> None:
        self.clear()
        paths = self._window.settings.get("files/recent")
        for path in paths:
            action = self.addAction(path.replace("&", "&&"))
            action.triggered.connect(lambda _=False, p=path: self._window.commands.open_path(p))
        if not paths:
            self.addAction("Nothing opened yet").setEnabled(False)
            return
        self.addSeparator()
        self.addAction("Forget these", self._forget)

    @Slot()
    def _forget(self) -> None:
        self._window.settings.forget_recent()
        self._window.empty.show_recent(())
