"""Where panels stand: they fill their room, keep the least that they need, and their changes stay their own."""

from __future__ import annotations

from collections import Counter

from PySide6.QtCore import QEvent, QObject
from PySide6.QtWidgets import QApplication, QWidget

from app.panels import PANELS


class Layouts(QObject):
    """How often each of some widgets was asked to lay itself out anew."""

    def __init__(self, *widgets: QWidget) -> None:
        super().__init__(widgets[0])
        self.asked: Counter[QWidget] = Counter()
        for widget in widgets:
            widget.installEventFilter(self)

    def eventFilter(self, watched: QObject, event: QEvent) -> bool:
        if event.type() == QEvent.Type.LayoutRequest:
            self.asked[watched] += 1  # type: ignore[index]
        return False


def lay_out() -> None:
    """All that widgets ask for, without what timers and jobs of the opened checkpoint do meanwhile."""
    for _ in range(10):
        QApplication.sendPostedEvents(None, QEvent.Type.LayoutRequest.value)


def test_a_new_word_in_a_panel_lays_out_the_panel_alone(opened) -> None:
    panel = opened.commands.tensors
    around = (opened.columns, opened.rows, opened.centralWidget(), opened)
    panel.bar.count.setText("as many as there are")
    lay_out()
    layouts = Layouts(panel, *around)
    panel.bar.count.setText("fewer")
    lay_out()
    assert layouts.asked[panel]
    assert not any(layouts.asked[widget] for widget in around)


def test_panels_fill_their_room_and_keep_what_they_need(opened) -> None:
    for record in PANELS:
        opened.show_panel(record.id)
        QApplication.processEvents()
        panel = opened.panel(record.id)
        assert panel.isVisible()
        assert panel.geometry() == panel.parentWidget().rect(), record.id
    opened.columns.setSizes([10_000, 1])
    opened.rows.setSizes([10_000, 1])
    QApplication.processEvents()
    for record in PANELS:
        opened.show_panel(record.id)
        QApplication.processEvents()
        panel = opened.panel(record.id)
        least = panel.minimumSizeHint()
        assert panel.width() >= least.width(), record.id
        assert panel.height() >= least.height(), record.id
        assert panel.geometry() == panel.parentWidget().rect(), record.id


def test_a_panel_that_needs_more_room_is_heard(opened) -> None:
    panel, before = opened.commands.tensors, opened.columns.minimumSizeHint().width()
    panel.bar.count.setMinimumWidth(panel.bar.count.minimumWidth() + 100)
    for _ in range(5):
        QApplication.processEvents()
    assert opened.columns.minimumSizeHint().width() == before + 100
