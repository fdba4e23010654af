"""Everything the window remembers between two starts, as one table. Nobody else touches QSettings.

To add one: a line in SETTINGS. Values come back in the setting's own type, and as the default when what is stored is
not of that type (a file from another version, or edited by hand).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from PySide6.QtCore import QByteArray, QSettings

RECENT_LIMIT = 10


@dataclass(frozen=True, slots=True)
class Setting:
    """One remembered value. type: str, int, bool, bytes or list (of str); choices: the allowed words, or empty."""

    key: str
    type: type
    default: Any
    label: str
    help: str
    choices: tuple[str, ...] = ()


SETTINGS = (
    Setting("window/geometry", bytes, b"", "Window geometry", "Where the window was and how large"),
    Setting("window/state", bytes, b"", "Window state", "Where the toolbar was"),
    Setting("window/columns", bytes, b"", "Split of left and right", "Widths of the table and the inspector"),
    Setting("window/rows", bytes, b"", "Split of top and bottom", "Heights of the upper and the lower half"),
    Setting("window/inspector", str, "", "Inspector tab", "The tab that was open on the right"),
    Setting("window/bottom", str, "", "Lower tab", "The tab that was open below"),
    Setting("window/panels", str, "", "Columns and splits of panels", "As they were left, panel by panel"),
    Setting("tensors/header", bytes, b"", "Columns of the tensor table", "Their order, widths and which are hidden"),
    Setting("tensors/grouped", bool, True, "Group by block", "Show tensors under their block, or as one flat list"),
    Setting(
        "theme/mode",
        str,
        "system",
        "Colours",
        "Light, dark, or as the system says",
        ("system", "light", "dark"),
    ),
    Setting(
        "view/density",
        str,
        "compact",
        "Density",
        "Rows close together, or with more air",
        ("compact", "comfortable"),
    ),
    Setting("view/font_percent", int, 100, "Size of text", "In percent of the system's"),
    Setting("view/tour_seen", bool, False, "Tour seen", "Whether the first steps were shown already"),
    Setting("files/recent", list, (), "Recent checkpoints", "The last checkpoints that were opened"),
    Setting("files/open_folder", str, "", "Folder of checkpoints", "Where the last checkpoint was opened"),
    Setting("files/output_folder", str, "", "Folder of outputs", "Where the last output was written"),
    Setting("files/calibration_folder", str, "", "Folder of texts", "Where the last calibration text was"),
    Setting(
        "files/evaluation_text", str, "", "Text for evaluation", "What evaluations predict; empty: the standard library"
    ),
    Setting("files/recipe_folder", str, "", "Folder of recipes", "Where the last recipe file was"),
    Setting("work/recipe", str, "Q4_K_M", "Recipe", "The preset that a new checkpoint starts with"),
    Setting("work/target", str, "gguf", "Target", "The container that a new checkpoint starts with"),
    Setting("work/device", str, "cpu", "Device", "What computes"),
)

_BY_KEY = {s.key: s for s in SETTINGS}


class Settings:
    """Typed access to the table. store: where values are kept; None for the user's own."""

    def __init__(self, store: QSettings | None = None) -> None:
        self._store = store if store is not None else QSettings("quantbench", "quantbench")

    def get(self, key: str) -> Any:
        """The stored value, or the default. KeyError for a key that is not in the table."""
        setting = _BY_KEY[key]
        raw = self._store.value(key)
        value = _read(raw, setting.type)
        if value is None or (setting.choices and value not in setting.choices):
            return setting.default
        return value

    def set(self, key: str, value: Any) -> None:
        setting = _BY_KEY[key]
        if setting.type is bytes:
            self._store.setValue(key, QByteArray(bytes(value)))
        elif setting.type is list:
            self._store.setValue(key, [str(v) for v in value])
        else:
            self._store.setValue(key, setting.type(value))

    def add_recent(self, path: str) -> None:
        """Puts a checkpoint in front of the recent ones."""
        rest = [p for p in self.get("files/recent") if p != path]
        self.set("files/recent", [path, *rest][:RECENT_LIMIT])

    def forget_recent(self) -> None:
        self.set("files/recent", [])

    def sync(self) -> None:
        self._store.sync()


def _read(raw: Any, kind: type) -> Any:
    """A stored value in its own type, None when it is not one. INI files hand everything back as text."""
    if raw is None:
        return None
    if kind is bytes:
        return bytes(raw.data()) if isinstance(raw, QByteArray) else None
    if kind is list:
        # A list of one comes back as a plain string.
        items = [raw] if isinstance(raw, str) else raw
        return tuple(str(v) for v in items) if isinstance(items, list) else None
    if kind is bool:
        return {"true": True, "false": False}.get(str(raw).lower())
    if kind is int:
        try:
            return int(raw)
        except (TypeError, ValueError):
            return None
    return raw if isinstance(raw, str) else None
