"""The info panel looks only while it is seen, and keeps its labels where only values change."""

from __future__ import annotations

from dataclasses import replace

from PySide6.QtWidgets import QLabel

from core.recipes.model import Strategy


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
