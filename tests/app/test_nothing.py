"""What lists say while nothing stands in them."""

from __future__ import annotations

from pathlib import Path

import pytest
from PySide6.QtCore import QStringListModel
from PySide6.QtWidgets import QListView

from app.nothing import Nothing


def test_it_comes_and_goes_with_the_lines_and_fills_the_view(qtbot) -> None:
    view, model, words = QListView(), QStringListModel(), ["nothing here"]
    view.setModel(model)
    said = Nothing(view, lambda: words[0])
    qtbot.addWidget(view)
    view.show()
    assert not said.isVisible(), "nobody looked for anything yet"
    model.setStringList(["a"])
    assert not said.isVisible()
    model.setStringList([])
    assert said.isVisible()
    assert said.text() == "nothing here"
    view.resize(400, 300)
    qtbot.waitUntil(lambda: said.size() == view.viewport().size())
    model.insertRow(0)
    assert not said.isVisible()
    words[0] = ""
    model.setStringList([])
    assert not said.isVisible()


def seen(view) -> str:
    return next((s.text() for s in view.viewport().findChildren(Nothing) if s.isVisible()), "")


def test_filters_that_leave_nothing_say_so(opened, settled, qtbot) -> None:
    tensors, log = opened.commands.tensors, opened.panel("log")
    assert seen(tensors.table) == ""
    tensors.bar.edit.setText("zzzz")
    settled()
    assert "No tensor matches" in seen(tensors.table)
    tensors.bar.clear()
    settled()
    assert seen(tensors.table) == ""
    opened.show_panel("log")
    log.filter.words.setText("zzzz")
    assert seen(log.table) == "No line holds these words"
    log.filter.words.clear()
    assert seen(log.table) == ""
    palette = opened.open_palette()
    qtbot.keyClicks(palette.edit, "zzzzqq")
    assert seen(palette.list) == "No command of this name"
    palette.close()


@pytest.mark.parametrize(
    ("view", "words"),
    [("tensors", ""), ("metadata", "No difference in metadata"), ("lonely", "Both files have the same tensors")],
)
def test_a_comparison_without_differences_says_so(opened, qtbot, demo: Path, view: str, words: str) -> None:
    opened.show_panel("compare")
    panel = opened.panel("compare")
    for side in ("a", "b"):
        panel.choose(side, str(demo))
    panel.start.click()
    qtbot.waitUntil(lambda: panel.state.result is not None and not panel.state.running, timeout=60_000)
    panel.views[view].click()
    table = panel.table if view == "tensors" else panel.other
    assert seen(table) == words
    panel.words.setText("zzzz")
    assert seen(table) == "No line holds these words"
    panel.words.clear()
    assert seen(table) == words
