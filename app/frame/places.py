"""Where panels stand: one in the middle, the others as tabs beside and below it, each made when it is first needed."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from PySide6.QtCore import QObject, QTimer
from PySide6.QtWidgets import QTabWidget, QWidget

from app.frame.memory import restore_panel, stored_panels
from app.panels import PANELS, PanelRecord

if TYPE_CHECKING:
    from app.main_window import MainWindow

# Plots and lists come after the window is on screen.
FILL_MS = 20


class PanelPlaces(QObject):
    """made: the panels that are there, by id; tell(id, panel): one was put into a tab."""

    def __init__(self, window: MainWindow, tell: Callable[[str, QWidget], None]) -> None:
        super().__init__(window)
        self._window = window
        self._tell = tell
        self.made: dict[str, QWidget] = {}
        self.inspector, self.bottom = self._tabs(), self._tabs()
        for record in PANELS:
            if record.area == "main":
                self.main = self._make(record)
                continue
            tabs = self._tabs_of(record)
            tabs.addTab(QWidget(), window.theme.icon(record.icon), record.title)
            tabs.setTabToolTip(tabs.count() - 1, record.help)

    def panel(self, id: str) -> QWidget:
        """A panel by its record's id, made now if it was not yet."""
        if id not in self.made:
            record = next(r for r in PANELS if r.id == id)
            ids = [r.id for r in PANELS if r.area == record.area]
            self._put(self._tabs_of(record), ids.index(id), record)
        return self.made[id]

    def show(self, id: str) -> None:
        """Brings a panel to the front."""
        panel = self.panel(id)
        for tabs in (self.inspector, self.bottom):
            if tabs.indexOf(panel) >= 0:
                tabs.setCurrentWidget(panel)

    def load(self) -> None:
        """Makes every panel that is not there yet."""
        for record in PANELS:
            self.panel(record.id)

    def fill_soon(self) -> None:
        """Makes the panels in front, once the window is drawn."""
        for tabs in (self.inspector, self.bottom):
            QTimer.singleShot(FILL_MS, self, lambda t=tabs: self._fill(t))

    def _tabs(self) -> QTabWidget:
        tabs = QTabWidget(self._window)
        tabs.setDocumentMode(True)
        tabs.currentChanged.connect(lambda _: self._fill(tabs))
        return tabs

    def _tabs_of(self, record: PanelRecord) -> QTabWidget:
        return self.inspector if record.area == "inspector" else self.bottom

    def _make(self, record: PanelRecord) -> QWidget:
        panel = record.factory(self._window.session, self._window.jobs)
        panel.setObjectName(f"panel-{record.id}")
        panel.setAccessibleName(record.title)
        self.made[record.id] = panel
        if record.area != "main":
            restore_panel(panel, stored_panels(self._window).get(record.id))
        return panel

    def _put(self, tabs: QTabWidget, index: int, record: PanelRecord) -> None:
        """Replaces a tab's placeholder by the panel."""
        current = tabs.currentIndex()
        panel = self._make(record)
        tabs.blockSignals(True)
        placeholder = tabs.widget(index)
        tabs.removeTab(index)
        tabs.insertTab(index, panel, self._window.theme.icon(record.icon), record.title)
        tabs.setTabToolTip(index, record.help)
        tabs.setCurrentIndex(current)
        tabs.blockSignals(False)
        if placeholder is not None:
            placeholder.deleteLater()
        self._tell(record.id, panel)

    def _fill(self, tabs: QTabWidget) -> None:
        records = [r for r in PANELS if r.area == ("inspector" if tabs is self.inspector else "bottom")]
        index = tabs.currentIndex()
        if self._window.isVisible() and 0 <= index < len(records):
            self.panel(records[index].id)
