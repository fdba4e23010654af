"""Every term that the window shows has a sentence, and every field says what it is for."""

from __future__ import annotations

import pytest
from PySide6.QtCore import Qt
from PySide6.QtWidgets import (
    QAbstractButton,
    QAbstractSpinBox,
    QComboBox,
    QLabel,
    QLineEdit,
    QTableView,
    QToolButton,
    QWidget,
)

from app.glossary import TERMS, about, explain, term
from app.panels import PANELS


@pytest.mark.parametrize("entry", TERMS, ids=lambda t: t.id)
def test_a_term_is_one_sentence(entry) -> None:
    assert entry.text[0].isupper()
    assert entry.text.endswith(".")
    assert ". " not in entry.text
    assert len(entry.text) < 130
    assert about(entry.title) == entry.text == explain(entry.id)
    assert term(entry.id) is entry


def test_words_mean_one_thing_each() -> None:
    words = [w.lower() for t in TERMS for w in (*t.words, t.title)]
    assert len(words) == len(set(words))
    assert about("SQNR, dB").startswith("Signal to quantization noise")
    assert about("no such word") == ""
    assert about("SQNR", "here").endswith("\nhere")


def _explained(widget: QWidget) -> bool:
    """By itself, or by what it is a part of."""
    while widget is not None and not widget.isWindow():
        if widget.toolTip():
            return True
        if widget.objectName().startswith("panel-"):
            return False
        widget = widget.parentWidget()
    return False


def _bare_columns(panel: QWidget) -> list[str]:
    """Columns with a title and no sentence."""
    found = []
    for table in panel.findChildren(QTableView):
        model = table.model()
        for section in range(0 if table.horizontalHeader().isHidden() else model.columnCount()):
            title = model.headerData(section, Qt.Orientation.Horizontal)
            if title and not model.headerData(section, Qt.Orientation.Horizontal, Qt.ItemDataRole.ToolTipRole):
                found.append(title)
    return found


def _bare_fields(panel: QWidget) -> list[str]:
    """Buttons and fields without a tooltip."""
    kinds = (QAbstractButton, QComboBox, QAbstractSpinBox, QLineEdit)
    return [
        f"{type(w).__name__} {w.accessibleName() or getattr(w, 'text', str)()!r}"
        for kind in kinds
        for w in panel.findChildren(kind)
        if not _explained(w) and not isinstance(w.parentWidget(), QLineEdit) and type(w) is not QAbstractButton
    ]


def test_every_column_field_and_button_of_every_panel_is_explained(opened) -> None:
    columns = {r.id: found for r in PANELS if (found := _bare_columns(opened.panel(r.id)))}
    fields = {r.id: found for r in PANELS if (found := _bare_fields(opened.panel(r.id)))}
    assert (columns, fields) == ({}, {})
    bar = opened.toolbar
    words = [w for w in bar.findChildren(QLabel) if w.buddy() is not None]
    assert {w.text() for w in words} == {"Preset", "Target", "Device"}
    assert all(w.toolTip() for w in (*words, *bar.findChildren(QToolButton), bar.size_label))
    info = opened.panel("info")
    opened.show_panel("info")
    opened.session.select((opened.session.plan.tensors[5].tensor.name,))
    info._look()
    for word in ("shape", "dtype", "role", "strategy", "rule", "size", "bits per weight"):
        label = next(w for w in info.findChildren(QLabel) if w.text() == word)
        assert label.toolTip() == about(word) != ""
