"""What the keyboard reaches in a window: where it goes in a panel, and which plot an export is about."""

from __future__ import annotations

from typing import TYPE_CHECKING

from PySide6.QtCore import Qt
from PySide6.QtWidgets import QAbstractItemView, QWidget

from app.plotting.exporting import Exporter

if TYPE_CHECKING:
    from app.main_window import MainWindow


def focus_panel(panel: QWidget) -> None:
    """Gives a panel the keyboard: its list, else the first thing in it that takes keys."""
    found = [w for w in panel.findChildren(QWidget) if w.isVisible() and w.isEnabled() and _takes_keys(w)]
    found.sort(key=lambda w: not isinstance(w, QAbstractItemView))
    (found[0] if found else panel).setFocus(Qt.FocusReason.ShortcutFocusReason)


def plot_in_front(window: MainWindow) -> Exporter | None:
    """What exports the plot that the keyboard is in, else the one in the inspector, else the one below."""
    focus = window.focusWidget()
    panels = [p for p in window.made_panels() if focus is not None and p.isAncestorOf(focus)]
    panels += [p for p in (window.inspector.currentWidget(), window.bottom.currentWidget()) if p is not None]
    for panel in panels:
        for exports in panel.findChildren(Exporter):
            plot = exports.parent()
            if isinstance(plot, QWidget) and plot.isVisible():
                return exports
    return None


def _takes_keys(widget: QWidget) -> bool:
    return bool(widget.focusPolicy() & Qt.FocusPolicy.TabFocus) and widget.focusProxy() is None
