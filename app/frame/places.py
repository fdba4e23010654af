"""Where panels stand: one in the middle, the others as tabs beside and below it, each made when it is first needed."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from PySide6.QtCore import QEvent, QObject, Qt, QTimer, Slot
from PySide6.QtGui import QResizeEvent
from PySide6.QtWidgets import QTabWidget, QWidget

from app.frame.memory import restore_panel, stored_panels
from app.panels import PANELS, PanelRecord

if TYPE_CHECKING:
    from app.main_window import MainWindow

# Plots and lists come after the window is on screen.
FILL_MS = 20


class Place(QWidget):
    """Where one panel stands: it gets all of the room, and what changes in it ends here, unless it needs more room than
    ever before. Qt passes every new word in a label on, asks all panels for their heights and lays the whole window out
    anew, 5 to 10 ms each time."""

    def __init__(self, parent: QWidget) -> None:
        super().__init__(parent)
        self.panel: QWidget | None = None

    def fill(self, panel: QWidget) -> None:
        """Puts the panel here, once."""
        self.panel = panel
        panel.setParent(self)
        panel.setGeometry(self.rect())
        panel.show()
        self._keep()

    def event(self, event: QEvent) -> bool:
        if event.type() == QEvent.Type.LayoutRequest:
            self._keep()
        return super().event(event)

    def resizeEvent(self, event: QResizeEvent) -> None:
        super().resizeEvent(event)
        if self.panel is not None:
            self.panel.setGeometry(self.rect())

    def measure(self) -> None:
        """Text has another size: what the panel needs is found out anew."""
        self.setMinimumSize(0, 0)
        self._keep()

    def _keep(self) -> None:
        if self.panel is not None:
            self.setMinimumSize(self.panel.minimumSizeHint().expandedTo(self.minimumSize()))


class PanelPlaces(QObject):
    """made: the panels that are there, by id; tell(id, panel): one was put into a tab."""

    def __init__(self, window: MainWindow, tell: Callable[[str, QWidget], None]) -> None:
        super().__init__(window)
        self._window = window
        self._tell = tell
        self.made: dict[str, QWidget] = {}
        self.inspector, self.bottom = self._tabs(), self._tabs()
        self.main = Place(window)
        self._places = {record.id: self._place(record) for record in PANELS}
        self.panel("tensors")
        window.theme.resized.connect(self._measure, Qt.ConnectionType.QueuedConnection)

    def panel(self, id: str) -> QWidget:
        """A panel by its record's id, made now if it was not yet."""
        if id not in self.made:
            self._make(next(r for r in PANELS if r.id == id))
        return self.made[id]

    def show(self, id: str) -> None:
        """Brings a panel to the front."""
        self.panel(id)
        for tabs in (self.inspector, self.bottom):
            if tabs.indexOf(self._places[id]) >= 0:
                tabs.setCurrentWidget(self._places[id])

    def load(self) -> None:
        """Makes every panel that is not there yet."""
        for record in PANELS:
            self.panel(record.id)

    def fill_soon(self) -> None:
        """Makes the panels in front, once the window is drawn."""
        for tabs in (self.inspector, self.bottom):
            QTimer.singleShot(FILL_MS, self, lambda t=tabs: self._fill(t))

    @Slot()
    def _measure(self) -> None:
        for place in self._places.values():
            place.measure()

    def _tabs(self) -> QTabWidget:
        tabs = QTabWidget(self._window)
        tabs.setDocumentMode(True)
        tabs.currentChanged.connect(lambda _: self._fill(tabs))
        return tabs

    def _tabs_of(self, record: PanelRecord) -> QTabWidget:
        return self.inspector if record.area == "inspector" else self.bottom

    def _place(self, record: PanelRecord) -> Place:
        if record.area == "main":
            return self.main
        tabs = self._tabs_of(record)
        place = Place(tabs)
        tabs.addTab(place, self._window.theme.icon(record.icon), record.title)
        tabs.setTabToolTip(tabs.count() - 1, record.help)
        return place

    def _make(self, record: PanelRecord) -> None:
        panel = record.factory(self._window.session, self._window.jobs)
        panel.setObjectName(f"panel-{record.id}")
        panel.setAccessibleName(record.title)
        self.made[record.id] = panel
        if record.area != "main":
            restore_panel(panel, stored_panels(self._window).get(record.id))
        self._places[record.id].fill(panel)
        self._tell(record.id, panel)

    def _fill(self, tabs: QTabWidget) -> None:
        records = [r for r in PANELS if r.area == ("inspector" if tabs is self.inspector else "bottom")]
        index = tabs.currentIndex()
        if self._window.isVisible() and 0 <= index < len(records):
            self.panel(records[index].id)
