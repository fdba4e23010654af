"""The table of actions: unique, reachable, explained."""

from __future__ import annotations

from collections import Counter

import pytest
from PySide6.QtCore import Qt
from PySide6.QtGui import QKeySequence

from app.actions import ACTIONS, MENUS
from app.frame.palette import plain, score
from app.panels import PANELS


def test_ids_and_shortcuts_are_unique() -> None:
    assert not [k for k, n in Counter(a.id for a in ACTIONS).items() if n > 1]
    assert not [k for k, n in Counter(a.shortcut for a in ACTIONS if a.shortcut).items() if n > 1]
    assert not [k for k, n in Counter(a.text for a in ACTIONS).items() if n > 1]


@pytest.mark.parametrize("action", ACTIONS, ids=lambda a: a.id)
def test_every_action_is_in_a_menu_or_offered_by_a_notice(action) -> None:
    assert action.menu in MENUS or action.id in ("resume-run", "discard-run")
    if action.shortcut:
        assert not QKeySequence(action.shortcut).isEmpty()
    assert action.text[0].isupper()


def test_every_panel_has_an_action() -> None:
    ids = {a.id for a in ACTIONS}
    assert {f"show-{p.id}" for p in PANELS} <= ids
    assert len({p.id for p in PANELS}) == len(PANELS)


def test_menus_palette_and_tooltips_hold_all_of_them(window) -> None:
    in_menus = {a.objectName() for m in window.menuBar().actions() for a in m.menu().actions()}
    assert {a.id for a in ACTIONS if a.menu} <= in_menus
    palette = window.open_palette()
    enabled = {
        plain(window.actions_by_id[a.id].text())
        for a in ACTIONS
        if a.id != "palette" and window.actions_by_id[a.id].isEnabled()
    }
    assert set(palette.texts) == enabled
    palette.close()
    for record in ACTIONS:
        tip = window.actions_by_id[record.id].toolTip()
        if record.shortcut:
            keys = QKeySequence(record.shortcut).toString(QKeySequence.SequenceFormat.NativeText)
            assert f"({keys})" in tip.splitlines()[0]


def test_what_makes_no_sense_yet_is_disabled(window) -> None:
    for name in ("quantize", "assign", "keep", "undo", "redo", "pause", "cancel", "open-result", "close-checkpoint"):
        assert not window.actions_by_id[name].isEnabled(), name
    for name in ("open-file", "open-folder", "palette", "quit", "open-recipe"):
        assert window.actions_by_id[name].isEnabled(), name


def test_the_palette_finds_and_runs(window, qtbot) -> None:
    palette = window.open_palette()
    qtbot.keyClicks(palette.edit, "dark")
    assert palette.texts[0] == "Dark colours"
    qtbot.keyClick(palette.edit, Qt.Key.Key_Return)
    assert window.theme.mode == "dark"
    assert window.settings.get("theme/mode") == "dark"
    window.commands.set_theme("system")


@pytest.mark.parametrize(
    ("text", "typed", "hit"),
    [
        ("Open checkpoint", "chk", True),
        ("Open checkpoint", "open", True),
        ("Quit", "quantize", False),
        ("Quit", "", True),
    ],
)
def test_scores(text: str, typed: str, hit: bool) -> None:
    assert (score(text, typed) is not None) is hit


def test_words_in_one_piece_come_first() -> None:
    assert score("Go to rules", "rules") < score("Let the rules decide", "rules") < score("Use larger modules", "rules")


def test_a_broken_handler_ends_in_the_notice_bar(window, monkeypatch) -> None:
    def broken(commands) -> None:
        raise ValueError("of all things")

    from dataclasses import replace

    window.commands.dispatch(replace(ACTIONS[0], handler=broken))
    assert "ValueError: of all things" in window.notices.text.text()
    assert "in broken" in window.notices.details.toPlainText()
