"""What the window remembers of itself between two starts, and what is dropped onto it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from PySide6.QtCore import QByteArray, QMimeData

from app.panels import PANELS

if TYPE_CHECKING:
    from PySide6.QtWidgets import QTabWidget

    from app.main_window import MainWindow


def restore(window: MainWindow) -> None:
    """Puts the window back as it was left."""
    get = window.settings.get
    for key, put_back in (
        ("window/geometry", window.restoreGeometry),
        ("window/columns", window.columns.restoreState),
        ("window/rows", window.rows.restoreState),
    ):
        state = get(key)
        if state:
            put_back(QByteArray(state))
    for key, tabs, ids in _tabs(window):
        if get(key) in ids:
            tabs.setCurrentIndex(ids.index(get(key)))
    window.commands.tensors.restore_state(get("tensors/header"))
    window.commands.tensors.bar.group_button.setChecked(get("tensors/grouped"))


def remember(window: MainWindow) -> None:
    """Writes down how the window is now."""
    put = window.settings.set
    put("window/geometry", window.saveGeometry().data())
    put("window/columns", window.columns.saveState().data())
    put("window/rows", window.rows.saveState().data())
    for key, tabs, ids in _tabs(window):
        put(key, ids[tabs.currentIndex()])
    put("tensors/header", window.commands.tensors.save_state())
    put("tensors/grouped", window.commands.grouped)
    window.settings.sync()


def local_paths(data: QMimeData) -> list[str]:
    """Files and folders of this machine in what is being dragged."""
    return [url.toLocalFile() for url in data.urls() if url.isLocalFile()]


def _tabs(window: MainWindow) -> list[tuple[str, QTabWidget, list[str]]]:
    return [
        (f"window/{area}", tabs, [r.id for r in PANELS if r.area == area])
        for area, tabs in (("inspector", window.inspector), ("bottom", window.bottom))
    ]
