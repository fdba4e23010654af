"""The line above a table of the lower panels: words to filter by, a choice beside them, buttons at its end."""

from __future__ import annotations

from collections.abc import Sequence

from PySide6.QtCore import Signal
from PySide6.QtWidgets import QComboBox, QHBoxLayout, QLineEdit, QToolButton, QWidget

# The words take no more room than this.
WIDEST = 280


class FilterLine(QWidget):
    """changed() after every change of the words or of the choice."""

    changed = Signal()

    def __init__(self, name: str, help: str) -> None:
        """name: what the words do, in the empty line; help: what they are looked for in."""
        super().__init__()
        self.words = QLineEdit()
        self.words.setPlaceholderText(name)
        self.words.setAccessibleName(name)
        self.words.setToolTip(help)
        self.words.setClearButtonEnabled(True)
        self.words.setMaximumWidth(WIDEST)
        self.words.textChanged.connect(self.changed)
        self.choice = QComboBox()
        self.choice.currentIndexChanged.connect(self.changed)
        self._line = QHBoxLayout(self)
        self._line.setContentsMargins(12, 4, 12, 4)
        self._line.setSpacing(8)
        self._line.addWidget(self.words, 1)
        self._line.addWidget(self.choice)
        self._line.addStretch(1)

    def offer(self, titles: Sequence[str], name: str, help: str) -> None:
        """What can be chosen, the first of it to begin with."""
        self.choice.setAccessibleName(name)
        self.choice.setToolTip(help)
        self.choice.addItems(list(titles))

    def add(self, button: QToolButton) -> None:
        """One more, at the end."""
        self._line.addWidget(button)
