"""The label that shortens its text."""

from __future__ import annotations

from PySide6.QtCore import Qt

from app.labels import ElidedLabel, hairline


def test_elides_and_keeps_the_whole(qtbot):
    label = ElidedLabel("muted", Qt.TextElideMode.ElideMiddle)
    qtbot.addWidget(label)
    label.setText("model.layers.17.mlp.down_proj.weight")
    label.resize(2000, 20)
    label.show()
    label.repaint()
    assert label.shown == label.text()
    assert label.toolTip() == ""
    label.resize(80, 20)
    label.grab()
    assert "…" in label.shown
    assert label.shown[0] == "m"
    assert label.toolTip() == label.text() == "model.layers.17.mlp.down_proj.weight"
    assert label.minimumSizeHint().width() == 0
    label.close()


def test_hairline_is_one_pixel(qtbot):
    line = hairline()
    qtbot.addWidget(line)
    assert line.property("kind") == "hairline"
