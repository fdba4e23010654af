"""What a list says while nothing stands in it, so that an empty one is not taken for one that is late."""

from __future__ import annotations

from collections.abc import Callable

from PySide6.QtCore import QEvent, QObject, Qt, Slot
from PySide6.QtWidgets import QAbstractItemView, QLabel

# Pixels that stay free around the words: room for a heading above.
ASIDE = 48


class Nothing(QLabel):
    """Lies over a view without lines. words(): why there are none, "" for no word; asked whenever the model changed.
    lines(): how many there are, where not every one counts (a heading alone is nothing)."""

    def __init__(
        self, view: QAbstractItemView, words: Callable[[], str], lines: Callable[[], int] | None = None
    ) -> None:
        super().__init__(view.viewport())
        self._view, self._words = view, words
        self._lines = lines if lines is not None else view.model().rowCount
        self.setProperty("kind", "muted")
        self.setTextFormat(Qt.TextFormat.PlainText)
        self.setWordWrap(True)
        self.setAlignment(Qt.AlignmentFlag.AlignHCenter | Qt.AlignmentFlag.AlignTop)
        self.setMargin(ASIDE)
        self.setAttribute(Qt.WidgetAttribute.WA_TransparentForMouseEvents)
        self.hide()
        view.viewport().installEventFilter(self)
        model = view.model()
        for changed in (model.modelReset, model.rowsInserted, model.rowsRemoved, model.layoutChanged):
            changed.connect(self.look)

    @Slot()
    def look(self) -> None:
        """Shows or hides itself."""
        text = "" if self._lines() else self._words()
        if text:
            self.setText(text)
            self.setGeometry(self._view.viewport().rect())
        if self.isHidden() == bool(text):
            self.setVisible(bool(text))

    def eventFilter(self, watched: QObject, event: QEvent) -> bool:
        if event.type() == QEvent.Type.Resize and not self.isHidden():
            self.setGeometry(self._view.viewport().rect())
        return super().eventFilter(watched, event)
