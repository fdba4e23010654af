"""What the window remembers of itself between two starts (itself, its tabs, and of every panel the columns, their
order, the splitters and how it looks at things), and what is dropped onto it."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from PySide6.QtCore import QByteArray, QMimeData
from PySide6.QtWidgets import QAbstractButton, QComboBox, QSplitter, QTableView, QWidget

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
    # Panels that were not looked at this time stay as they were.
    made = {r.id: p for r in PANELS if r.area != "main" and (p := window.made_panel(r.id)) is not None}
    put("window/panels", json.dumps({**stored_panels(window), **{name: panel_state(p) for name, p in made.items()}}))
    put("tensors/header", window.commands.tensors.save_state())
    put("tensors/grouped", window.commands.grouped)
    window.settings.sync()


def panel_state(panel: QWidget) -> dict[str, list[Any]]:
    """Columns (with their number) and splitters of a panel, and its `choices` (switches and boxes), as JSON can hold
    them."""
    tables = [t.horizontalHeader() for t in panel.findChildren(QTableView)]
    return {
        "columns": [[h.count(), base64.b64encode(h.saveState().data()).decode()] for h in tables],
        "splits": [base64.b64encode(s.saveState().data()).decode() for s in panel.findChildren(QSplitter)],
        "choices": [c.isChecked() if isinstance(c, QAbstractButton) else c.currentIndex() for c in _choices(panel)],
    }


def restore_panel(panel: QWidget, state: Any) -> None:
    """What panel_state gave. What does not fit any more (another version, a file edited by hand) is left alone."""
    if not isinstance(state, dict):
        return
    try:
        splits = [base64.b64decode(text) for text in state["splits"]]
        columns = [(count, base64.b64decode(text)) for count, text in state["columns"]]
        chosen = [int(value) for value in state.get("choices", ())]
    except (KeyError, TypeError, ValueError):
        return
    found = panel.findChildren(QSplitter)
    if len(splits) == len(found):
        for splitter, data in zip(found, splits, strict=True):
            splitter.restoreState(QByteArray(data))
    headers = [t.horizontalHeader() for t in panel.findChildren(QTableView)]
    if len(columns) == len(headers):
        for header, (count, data) in zip(headers, columns, strict=True):
            if header.count() == count:
                header.restoreState(QByteArray(data))
    choices = _choices(panel)
    if len(chosen) == len(choices):
        for choice, value in zip(choices, chosen, strict=True):
            if isinstance(choice, QAbstractButton):
                choice.setChecked(bool(value))
            elif 0 <= value < choice.count():
                choice.setCurrentIndex(value)


def _choices(panel: QWidget) -> Sequence[QAbstractButton | QComboBox]:
    """How a panel looks at things, where it has a say in that."""
    return getattr(panel, "choices", ())


def stored_panels(window: MainWindow) -> dict[str, Any]:
    """By panel's id, as it was written down."""
    try:
        known = json.loads(window.settings.get("window/panels") or "{}")
    except ValueError:
        return {}
    return known if isinstance(known, dict) else {}


def local_paths(data: QMimeData) -> list[str]:
    """Files and folders of this machine in what is being dragged."""
    return [url.toLocalFile() for url in data.urls() if url.isLocalFile()]


def _tabs(window: MainWindow) -> list[tuple[str, QTabWidget, list[str]]]:
    return [
        (f"window/{area}", tabs, [r.id for r in PANELS if r.area == area])
        for area, tabs in (("inspector", window.inspector), ("bottom", window.bottom))
    ]
