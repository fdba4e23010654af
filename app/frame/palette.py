"""The command palette: type a few letters of any action, Enter runs it."""

from __future__ import annotations

from collections.abc import Sequence

from PySide6.QtCore import QEvent, QObject, QPoint, QSize, Qt, Signal
from PySide6.QtGui import QAction, QKeyEvent, QKeySequence, QPainter
from PySide6.QtWidgets import (
    QFrame,
    QLineEdit,
    QListView,
    QStyle,
    QStyledItemDelegate,
    QStyleOptionViewItem,
    QVBoxLayout,
    QWidget,
)

from app.lists import RECORD, RecordList
from app.nothing import Nothing
from app.theme import Theme

WIDTH, ROWS = 520, 12


def score(text: str, typed: str) -> int | None:
    """How well typed letters fit, smaller is better; None when they do not. All letters must occur in order."""
    low, want = text.lower(), "".join(typed.lower().split())
    if not want:
        return 0
    if typed.lower().strip() in low:
        return low.index(typed.lower().strip())
    at, gaps = -1, 0
    for letter in want:
        found = low.find(letter, at + 1)
        if found < 0:
            return None
        gaps += found - at - 1
        at = found
    return 100 + gaps


class _Delegate(QStyledItemDelegate):
    def __init__(self, theme: Theme, parent: QWidget) -> None:
        super().__init__(parent)
        self._theme = theme

    def sizeHint(self, option, index) -> QSize:
        return QSize(self._theme.px(WIDTH) - 20, self._theme.row + 4)

    def paint(self, painter: QPainter, option: QStyleOptionViewItem, index) -> None:
        action: QAction = index.data(RECORD)
        option.widget.style().drawPrimitive(
            QStyle.PrimitiveElement.PE_PanelItemViewItem, option, painter, option.widget
        )
        rect = option.rect.adjusted(8, 0, -8, 0)
        painter.save()
        action.icon().paint(painter, rect.left(), rect.center().y() - 7, 16, 16)
        painter.drawText(rect.adjusted(24, 0, 0, 0), int(Qt.AlignmentFlag.AlignVCenter), plain(action.text()))
        painter.setPen(self._theme.colors.muted)
        keys = action.shortcut().toString(QKeySequence.SequenceFormat.NativeText)
        painter.drawText(rect, int(Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter), keys)
        painter.restore()


class CommandPalette(QFrame):
    """chosen(QAction), after it closed."""

    chosen = Signal(object)

    def __init__(self, theme: Theme, actions: Sequence[QAction], parent: QWidget) -> None:
        super().__init__(parent, Qt.WindowType.Popup)
        self.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        self.setProperty("kind", "popover")
        self.setFixedWidth(theme.px(WIDTH))
        self._all = [a for a in actions if a.isEnabled() and a.text()]
        self.edit = QLineEdit(self)
        self.edit.setPlaceholderText("Type a command")
        self.edit.textChanged.connect(self._narrow)
        self.edit.installEventFilter(self)
        self.list = QListView(self)
        self.list.setUniformItemSizes(True)
        self.list.setFrameShape(QFrame.Shape.NoFrame)
        self.list.setFocusPolicy(Qt.FocusPolicy.NoFocus)
        self.list.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.list.setItemDelegate(_Delegate(theme, self.list))
        self.list.setFixedHeight((theme.row + 4) * ROWS)
        self._model = RecordList(self, lambda a: plain(a.text()), lambda a: a.statusTip())
        self.list.setModel(self._model)
        Nothing(self.list, lambda: "No command of this name")
        self.list.clicked.connect(lambda index: self._run(index.row()))
        layout = QVBoxLayout(self)
        layout.setContentsMargins(8, 8, 8, 8)
        layout.setSpacing(8)
        layout.addWidget(self.edit)
        layout.addWidget(self.list)
        self._narrow("")

    @property
    def texts(self) -> list[str]:
        """What is listed now."""
        return [plain(a.text()) for a in self._model.records]

    def open(self) -> None:
        """Over the upper middle of its window."""
        parent = self.parentWidget()
        assert parent is not None
        self.adjustSize()
        corner = parent.mapToGlobal(QPoint((parent.width() - WIDTH) // 2, 56))
        self.move(corner)
        self.show()
        self.edit.setFocus(Qt.FocusReason.PopupFocusReason)

    def eventFilter(self, watched: QObject, event: QEvent) -> bool:
        if watched is self.edit and event.type() == QEvent.Type.KeyPress and isinstance(event, QKeyEvent):
            steps = {Qt.Key.Key_Up: -1, Qt.Key.Key_Down: 1, Qt.Key.Key_PageUp: -ROWS, Qt.Key.Key_PageDown: ROWS}
            key = Qt.Key(event.key())
            if key in steps:
                row = min(max(0, self.list.currentIndex().row() + steps[key]), self._model.rowCount() - 1)
                self.list.setCurrentIndex(self._model.index(row))
                return True
            if key in (Qt.Key.Key_Return, Qt.Key.Key_Enter):
                self._run(self.list.currentIndex().row())
                return True
        return super().eventFilter(watched, event)

    def _narrow(self, typed: str) -> None:
        ranked = [(s, i) for i, a in enumerate(self._all) if (s := score(plain(a.text()), typed)) is not None]
        ranked.sort()
        self._model.show([self._all[i] for _, i in ranked])
        if ranked:
            self.list.setCurrentIndex(self._model.index(0))

    def _run(self, row: int) -> None:
        if not 0 <= row < self._model.rowCount():
            return
        action = self._model.records[row]
        self.close()
        self.chosen.emit(action)
        action.trigger()


def plain(text: str) -> str:
    """A menu text without its mnemonic mark and dots."""
    return text.replace("&&", "\0").replace("&", "").replace("\0", "&").removesuffix(" …")
