"""The first steps: once at the first start, without stopping anything, and again from the Help menu."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from PySide6.QtCore import QRect, Qt
from PySide6.QtWidgets import QApplication

from app.main_window import MainWindow
from app.theme import Theme


@pytest.fixture
def fresh(qtbot, settings, dialogs):
    """A window at its first start."""
    settings.set("view/tour_seen", False)
    made = MainWindow(Theme(QApplication.instance()), settings, dialogs)
    qtbot.addWidget(made)
    made.show()
    yield made
    made.close()
    qtbot.waitUntil(lambda: not made.isVisible(), timeout=10_000)


def part(window, *widgets) -> QRect:
    """Where widgets stand in the window, together."""
    area = QRect()
    for widget in widgets:
        area = area.united(QRect(widget.mapTo(window, widget.rect().topLeft()), widget.size()))
    return area


def test_shown_once_in_four_steps_with_their_part_outlined(fresh, qtbot, settings) -> None:
    tour, bar = fresh.tour, fresh.toolbar
    assert tour.isVisible()
    assert len(tour._steps) <= 4
    for at, around in enumerate(((bar.open_button,), (), (bar.preset, bar.device), (bar.preflight, bar.quantize))):
        assert tour.count.text() == f"{at + 1} of {len(tour._steps)}"
        assert tour.next.hasFocus()
        if around:
            qtbot.waitUntil(lambda w=around: tour._outline.geometry().contains(part(fresh, *w)))
        else:
            qtbot.waitUntil(tour._outline.isHidden)  # no checkpoint is open: there are no panels to outline
        assert len(tour.text.text()) < 180
        assert not settings.get("view/tour_seen")
        qtbot.keyClick(tour.next, Qt.Key.Key_Space)
    assert not tour.isVisible()
    assert tour._outline.isHidden()
    assert settings.get("view/tour_seen")
    fresh.actions_by_id["tour"].trigger()
    assert tour.isVisible()
    qtbot.keyClick(tour.next, Qt.Key.Key_Escape)
    assert not tour.isVisible()
    fresh.hide()
    fresh.show()  # as the next start does
    assert not tour.isVisible()


def test_it_opens_the_demo_and_follows_the_window(fresh, qtbot) -> None:
    opened: Callable[[], bool] = lambda: fresh.session.checkpoint is not None and fresh.session.planned  # noqa: E731
    fresh.tour.next.click()
    fresh.empty.demo.click()
    qtbot.waitUntil(opened, timeout=30_000)
    qtbot.waitUntil(lambda: fresh.tour._outline.geometry().contains(part(fresh, fresh.columns, fresh.bottom)))
    fresh.resize(fresh.width() - 60, fresh.height() - 40)
    qtbot.waitUntil(lambda: fresh.tour._outline.geometry().contains(part(fresh, fresh.columns, fresh.bottom)))
    fresh.tour.back.click()
    assert fresh.tour.at == 0
