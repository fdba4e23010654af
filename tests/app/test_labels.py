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


def test_parts_that_do_not_fit_are_left_out_whole(qtbot):
    label = ElidedLabel(apart="   ")
    qtbot.addWidget(label)
    label.setText("RMS 0.0228   kurtosis 141.3   22 % of energy")
    wide = label.fontMetrics().horizontalAdvance
    label.resize(wide(label.text()) + 4, 20)
    assert label.shown == label.text()
    label.resize(wide(label.text()) - 1, 20)
    assert label.shown == "RMS 0.0228   kurtosis 141.3 …"
    label.resize(wide("RMS 0.0228 … "), 20)
    assert label.shown == "RMS 0.0228 …"
    label.resize(wide("RMS 0.0"), 20)
    assert label.shown.startswith("RM")
    assert label.shown.endswith("…")


def test_hairline_is_one_pixel(qtbot):
    line = hairline()
    qtbot.addWidget(line)
    assert line.property("kind") == "hairline"


def test_a_tooltip_of_its_own_is_left_alone(qtbot):
    label = ElidedLabel(apart=" · ", tip=False)
    qtbot.addWidget(label)
    label.setText("6.5 MiB → 2.1 MiB · 5.03 bpw · fits")
    label.setToolTip("in bytes")
    label.resize(label.fontMetrics().horizontalAdvance("6.5 MiB → 2.1 MiB … "), 20)
    label.show()
    label.grab()
    assert label.shown == "6.5 MiB → 2.1 MiB …"
    assert label.toolTip() == "in bytes"
