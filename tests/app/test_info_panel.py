"""The info panel looks only while it is seen, and keeps its labels where only values change."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from PySide6.QtWidgets import QLabel

from app.pictures.oddities import write_oddities
from core.recipes.model import Strategy
from tests.core.engine.build import checkpoint_file


def test_it_looks_when_it_is_seen(opened, qtbot) -> None:
    panel, session = opened.panel("info"), opened.session
    opened.show_panel("histogram")
    name = session.plan.tensors[5].tensor.name
    session.select((name,))
    qtbot.waitUntil(lambda: panel._stale, timeout=5000)
    assert panel._shown[0] != name
    opened.show_panel("info")
    qtbot.waitUntil(lambda: panel._shown[0] == name, timeout=5000)
    assert not panel._stale


def test_a_tensor_without_a_plan_is_told_of(window, qtbot, tmp_path: Path) -> None:
    """A lone weights file does not say its architecture, which GGUF needs."""
    path = checkpoint_file(tmp_path / "lone.safetensors", {"a": torch.ones(3, 4), "b": torch.ones(2).bfloat16()})
    panel, session = window.panel("info"), window.session
    window.show_panel("info")
    window.commands.open_path(path)
    qtbot.waitUntil(lambda: bool(session.plan_error), timeout=20_000)
    session.select(("a",))
    qtbot.waitUntil(lambda: panel._shown[0] == "a", timeout=5000)
    facts = {fact.label: fact.value for fact in panel._shown[1]}
    assert (facts["shape"], facts["weights"], facts["dtype"], facts["role"]) == ("3×4", "12", "F32", "other")
    assert facts["size"] == "48 bytes (48 B) in the checkpoint"
    assert facts["why"] == session.plan_error
    session.select(("a", "b"))
    qtbot.waitUntil(lambda: panel._shown[0] == "2 tensors", timeout=5000)
    facts = {fact.label: fact.value for fact in panel._shown[1]}
    assert (facts["weights"], facts["dtype"]) == ("14", "1 × BF16, 1 × F32")


def test_labels_stay_where_only_values_change(opened, qtbot, settled) -> None:
    panel, session = opened.panel("info"), opened.session
    opened.show_panel("info")
    tensor = next(t for t in session.plan.tensors if t.quantized)
    session.select((tensor.tensor.name,))
    qtbot.waitUntil(lambda: panel._shown[0] == tensor.tensor.name, timeout=5000)

    def shown(label: str) -> str:
        words = [fact.label for fact in panel._shown[1]]
        return panel._values[words.index(label)].text()

    page, values = panel.widget(), list(panel._values)
    lines = [replace(f, value="q8_0 for now") if f.label == "strategy" else f for f in panel._shown[1]]
    panel._show(panel._shown[0], lines)
    assert shown("strategy") == "q8_0 for now"
    assert panel.widget() is page
    assert panel._values == values
    panel._show(panel._shown[0], lines[:-1])
    assert panel._values == values[:-1]
    assert values[-1].isHidden()
    assert not any(value.isHidden() for value in panel._values)
    assert [value.text() for value in panel._values] == [fact.value for fact in lines[:-1]]
    opened.commands.tensors.assigner.assign((tensor.tensor.name,), Strategy("q8_0"))
    settled()
    qtbot.waitUntil(lambda: shown("strategy") == "q8_0", timeout=5000)
    assert {w.text() for w in panel.widget().findChildren(QLabel) if not w.isHidden()} >= {"strategy", "q8_0"}


def test_opening_shows_the_facts_once(opened, qtbot, settled, monkeypatch) -> None:
    panel, session = opened.panel("info"), opened.session
    opened.show_panel("info")
    qtbot.waitUntil(lambda: bool(session.selection) and panel._shown[0] == session.selection[0], timeout=10_000)
    shown: list[str] = []
    arrange = panel._arrange
    monkeypatch.setattr(panel, "_arrange", lambda title, lines: shown.append(title) or arrange(title, lines))
    # Longer than any plan takes here: facts of the checkpoint alone come only where it takes its time.
    monkeypatch.setattr("app.panels.info.view.OPENED_MS", 60_000)
    opened.commands.open_path(session.checkpoint.path)
    before = session.checkpoint
    qtbot.waitUntil(lambda: session.checkpoint is not before, timeout=20_000)
    assert not panel._page.isVisible(), "the facts of another file"
    settled()
    qtbot.waitUntil(panel._page.isVisible, timeout=10_000)
    assert set(shown) == {session.selection[0]}


def test_a_plan_that_takes_its_time_leaves_the_facts_of_the_checkpoint(opened, qtbot, monkeypatch) -> None:
    panel, session = opened.panel("info"), opened.session
    opened.show_panel("info")
    monkeypatch.setattr("app.panels.info.view.OPENED_MS", 1)
    monkeypatch.setattr(opened.planner, "refresh", lambda: None)
    session.open(session.checkpoint)
    assert not panel._page.isVisible()
    qtbot.waitUntil(panel._page.isVisible, timeout=10_000)
    assert panel._shown[0] == session.checkpoint.path.name
    session.close()
    assert session.checkpoint is None
    qtbot.waitUntil(lambda: panel._shown == ("", []), timeout=10_000)
    assert not panel._page.isHidden(), "what to do is said again"


def test_why_an_error_cannot_be_measured(window, qtbot, settled, tmp_path: Path) -> None:
    window.commands.open_path(write_oddities(tmp_path))
    settled()
    window.show_panel("info")
    window.session.select(("blk.0.ffn_up.weight",))
    qtbot.waitUntil(lambda: window.session.error("blk.0.ffn_up.weight") is not None, timeout=60_000)
    facts = window.panel("info")

    def said() -> list[str]:
        return [label.text() for label in facts.findChildren(QLabel) if label.isVisible()]

    qtbot.waitUntil(lambda: "Weight error cannot be measured" in said(), timeout=20_000)
    assert any("NaN" in text for text in said())


def test_a_plan_that_is_gone_is_not_kept_by_a_hidden_panel(opened, qtbot, settled) -> None:
    panel, session = opened.panel("info"), opened.session
    opened.show_panel("info")
    qtbot.waitUntil(lambda: panel._of[1] is session.plan, timeout=5000)
    opened.show_panel("histogram")
    opened.commands.set_preset("Q8_0")
    settled()
    assert panel._of[1] is None
