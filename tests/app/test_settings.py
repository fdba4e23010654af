"""The table of settings: types, defaults, broken files."""

from __future__ import annotations

from pathlib import Path

import pytest
from PySide6.QtCore import QSettings

from app.settings import RECENT_LIMIT, SETTINGS, Settings

VALUES = {str: "dark", int: 7, bool: False, bytes: b"\x00\xff\x01", list: ("a", "b")}


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda s: s.key)
def test_round_trip_through_the_file(setting, tmp_path: Path) -> None:
    path = str(tmp_path / "s.ini")
    settings = Settings(QSettings(path, QSettings.Format.IniFormat))
    assert settings.get(setting.key) == setting.default
    value = setting.choices[-1] if setting.choices else VALUES[setting.type]
    settings.set(setting.key, value)
    settings.sync()
    again = Settings(QSettings(path, QSettings.Format.IniFormat))
    assert again.get(setting.key) == value
    assert type(again.get(setting.key)) is type(setting.default)


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda s: s.key)
def test_nonsense_in_the_file_gives_the_default(setting, tmp_path: Path) -> None:
    path = tmp_path / "s.ini"
    store = QSettings(str(path), QSettings.Format.IniFormat)
    store.setValue(setting.key, {"a": 1} if setting.type is not bool else "perhaps")
    assert Settings(store).get(setting.key) == setting.default


def test_keys_are_unique_and_explained() -> None:
    keys = [s.key for s in SETTINGS]
    assert len(set(keys)) == len(keys)
    assert all(s.label and s.help for s in SETTINGS)


def test_recent_files_are_unique_newest_first_and_few(settings: Settings) -> None:
    for n in range(RECENT_LIMIT + 3):
        settings.add_recent(f"/m/{n}")
    settings.add_recent("/m/5")
    recent = settings.get("files/recent")
    assert recent[:2] == ("/m/5", f"/m/{RECENT_LIMIT + 2}")
    assert len(recent) == RECENT_LIMIT
    assert len(set(recent)) == len(recent)
    settings.forget_recent()
    assert settings.get("files/recent") == ()


def test_one_recent_file_comes_back_as_a_list(settings: Settings) -> None:
    settings.add_recent("/m/only")
    settings.sync()
    assert settings.get("files/recent") == ("/m/only",)


def test_a_key_that_is_not_in_the_table_is_our_mistake(settings: Settings) -> None:
    with pytest.raises(KeyError):
        settings.get("window/colour")
