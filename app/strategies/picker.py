"""The popover in which a strategy is chosen for one tensor or for many: type to narrow, Enter to assign. It opens over
the strategy cell, or beside the selection."""

from __future__ import annotations

from collections.abc import Sequence

from PySide6.QtCore import QEvent, QModelIndex, QObject, QPoint, QRect, QSize, Qt, QTimer, Signal
from PySide6.QtGui import QFontMetrics, QKeyEvent, QPainter
from PySide6.QtWidgets import (
    QFrame,
    QHBoxLayout,
    QLabel,
    QLineEdit,
    QListView,
    QStyle,
    QStyledItemDelegate,
    QStyleOptionViewItem,
    QVBoxLayout,
    QWidget,
)

from app.forms import MethodForm
from app.lists import RECORD, RecordList
from app.sizes import size_text, unit_of
from app.strategies.choices import StrategyChoice, narrowed
from app.theme import Theme, figures
from core.errors import RecipeError
from core.recipes.model import KEEP, Strategy

WIDTH = 520
VISIBLE_ROWS = 10
# Pixels that stay free at the right of figures, for the scroll bar, and the widths of both columns.
ASIDE, SIZES, BITS = 20, 78, 44


class _Delegate(QStyledItemDelegate):
    def __init__(self, theme: Theme, total: int, unit: int, parent: QWidget) -> None:
        """unit: bytes of what sizes are told in."""
        super().__init__(parent)
        self._theme, self._unit = theme, unit
        self._total = total
        self._numbers = figures(parent.font())

    def sizeHint(self, option, index) -> QSize:
        return QSize(self._theme.px(WIDTH) - 20, self._theme.row)

    def paint(self, painter: QPainter, option: QStyleOptionViewItem, index) -> None:
        choice: StrategyChoice = index.data(RECORD)
        style = option.widget.style()
        style.drawPrimitive(QStyle.PrimitiveElement.PE_PanelItemViewItem, option, painter, option.widget)
        selected = bool(option.state & QStyle.StateFlag.State_Selected)
        color = option.palette.highlightedText().color() if selected else option.palette.text().color()
        muted = color if selected else self._theme.colors.muted
        none = choice.misfits >= self._total
        rect = option.rect.adjusted(8, 0, 0, 0)
        rect.setRight(option.widget.width() - ASIDE)
        middle = int(Qt.AlignmentFlag.AlignVCenter)
        painter.save()
        if choice.family:
            painter.fillRect(QRect(rect.left(), rect.center().y() - 3, 8, 8), self._theme.color_for(choice.text))
        painter.setPen(muted if none else color)
        painter.drawText(rect.adjusted(14, 0, 0, 0), middle, choice.text)
        painter.setPen(muted)
        if none:
            about = choice.why
        elif choice.misfits:
            about = f"{choice.title} · not for {choice.misfits:,}: {choice.why}"
        else:
            about = choice.title
        room = QRect(rect.left() + 124, rect.top(), rect.width() - 124 - (0 if none else 128), rect.height())
        about = painter.fontMetrics().elidedText(about, Qt.TextElideMode.ElideRight, room.width())
        painter.drawText(room, middle, about)
        if not none:
            painter.setFont(self._numbers)
            right = int(Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter)
            bits = QRect(rect.right() - SIZES - BITS, rect.top(), BITS, rect.height())
            painter.drawText(bits, right, f"{choice.bpw:.2f}")
            painter.drawText(rect, right, size_text(choice.nbytes, self._unit))
        painter.restore()


class StrategyPicker(QFrame):
    """chosen(Strategy, or None for "let the rules decide")."""

    chosen = Signal(object)

    def __init__(
        self,
        theme: Theme,
        what: str,
        current: str,
        choices: Sequence[StrategyChoice],
        count: int,
        parent: QWidget,
        by_hand: bool = False,
    ) -> None:
        super().__init__(parent, Qt.WindowType.Popup)
        self.setProperty("kind", "popover")
        self.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        self.setFixedWidth(theme.px(WIDTH))
        self._all = list(choices)
        self._by_hand = by_hand
        self._current = current.strip()
        layout = QVBoxLayout(self)
        layout.setContentsMargins(8, 8, 8, 8)
        layout.setSpacing(6)
        title = QLabel(what, self)
        title.setProperty("kind", "muted")
        self.edit = QLineEdit(self)
        self.edit.setPlaceholderText("Type a format, or format+method(parameter=value)")
        self.edit.setText(current)
        self.edit.selectAll()
        self.list = QListView(self)
        self.list.setUniformItemSizes(True)
        self.list.setFrameShape(QFrame.Shape.NoFrame)
        self.list.setFocusPolicy(Qt.FocusPolicy.NoFocus)
        self.list.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        word, unit = unit_of(max((c.nbytes for c in self._all), default=0))
        self.list.setItemDelegate(_Delegate(theme, count, unit, self.list))
        self._model = RecordList(self, lambda c: c.text, lambda c: c.why)
        self.list.setModel(self._model)
        self.list.setFixedHeight(theme.row * VISIBLE_ROWS)
        self.form = MethodForm(self)
        line = QFrame(self)
        line.setProperty("kind", "hairline")
        self.note = QLabel(self)
        self.note.setProperty("kind", "muted")
        self.note.setWordWrap(True)
        self.note.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
        head = QHBoxLayout()
        head.setContentsMargins(0, 0, ASIDE, 0)
        head.setSpacing(0)
        head.addWidget(title, 1)
        for text, width in (("bpw", BITS), (f"size, {word}", SIZES)):
            label = QLabel(text, self)
            label.setProperty("kind", "muted")
            label.setAlignment(Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter)
            label.setFixedWidth(width)
            head.addWidget(label)
        layout.addLayout(head)
        for widget in (self.edit, self.list, line, self.form, self.note):
            layout.addWidget(widget)
        self.edit.textEdited.connect(self._narrow)
        self.edit.installEventFilter(self)
        self.list.clicked.connect(self._take)
        self._show(self._all)
        self._point_at(current)
        self._show_method(current)
        self.list.selectionModel().currentChanged.connect(self._pointed)
        self.form.changed.connect(lambda: QTimer.singleShot(0, self, self._fit))
        hint = "Enter assigns, Esc leaves it as it is"
        self.note.setText(f"{hint}, Ctrl+Backspace lets the rules decide" if by_hand else hint)

    def open_at(self, place: QRect) -> None:
        """Shows itself under a rectangle in global coordinates, or above it where there is no room."""
        self.adjustSize()
        screen = self.screen().availableGeometry()
        x = min(place.left() - 9, screen.right() - self.width())
        y = place.top() - 4
        if y + self.height() > screen.bottom():
            y = place.bottom() - self.height()
        self.move(QPoint(max(screen.left(), x), max(screen.top(), y)))
        self.show()
        self.edit.setFocus(Qt.FocusReason.PopupFocusReason)

    def eventFilter(self, watched: QObject, event: QEvent) -> bool:
        if watched is self.edit and isinstance(event, QKeyEvent) and event.type() == QEvent.Type.KeyPress:
            key = event.key()
            if key in (Qt.Key.Key_Return, Qt.Key.Key_Enter):
                self._enter()
                return True
            if key in (Qt.Key.Key_Up, Qt.Key.Key_Down, Qt.Key.Key_PageUp, Qt.Key.Key_PageDown):
                self._step({Qt.Key.Key_Up: -1, Qt.Key.Key_Down: 1, Qt.Key.Key_PageUp: -10}.get(Qt.Key(key), 10))
                return True
            control = bool(event.modifiers() & Qt.KeyboardModifier.ControlModifier)
            if control and key == Qt.Key.Key_Backspace and self._by_hand:
                self._finish(None)
                return True
        return super().eventFilter(watched, event)

    def _narrow(self, typed: str) -> None:
        self._show(narrowed(self._all, typed))

    def _show(self, choices: list[StrategyChoice]) -> None:
        self._model.show(choices)
        if choices:
            self.list.setCurrentIndex(self._model.index(0))

    def _show_method(self, current: str) -> None:
        """The method of what is assigned now."""
        from core.recipes import parse_strategy

        try:
            strategy = parse_strategy(current)
        except RecipeError:
            strategy = Strategy(KEEP)
        self.form.show_choice(strategy.method, dict(strategy.params))
        self._pointed(self.list.currentIndex())

    def _fit(self) -> None:
        layout = self.layout()
        if layout is not None:
            layout.activate()
        self.adjustSize()

    def _pointed(self, index: QModelIndex) -> None:
        """Methods that make no sense on the format in view cannot be chosen."""
        from core.formats import get_format

        name = self._model.records[index.row()].text if index.isValid() else KEEP
        self.form.setEnabled(name != KEEP)
        if name != KEEP:
            self.form.allow((get_format(name),))

    def _point_at(self, text: str) -> None:
        word = text.partition("+")[0].partition("(")[0]
        for i, choice in enumerate(self._model.records):
            if choice.text == word:
                self.list.setCurrentIndex(self._model.index(i))
                self.list.scrollTo(self._model.index(i), QListView.ScrollHint.PositionAtCenter)

    def _step(self, by: int) -> None:
        row = min(max(0, self.list.currentIndex().row() + by), self._model.rowCount() - 1)
        self.list.setCurrentIndex(self._model.index(row))

    def _take(self, index: QModelIndex) -> None:
        self._assign(self._model.records[index.row()].text)

    def _enter(self) -> None:
        """What is pointed at, with the method that was typed behind it, else with the form's; or exactly what was
        typed."""
        typed = self.edit.text().strip()
        index = self.list.currentIndex()
        base, rest = without_method(typed)
        exact = any(c.text == base.lower() for c in self._all)
        if typed == self._current or (index.isValid() and not (exact and rest)):
            # What stands in the field from the start is no word on the method: the form is.
            rest = "" if typed == self._current else rest
            base = self._model.records[index.row()].text if index.isValid() else base
        self._assign(base, rest)

    def _assign(self, base: str, rest: str = "") -> None:
        """Ends with this format; rest: "+method(…)" as typed, else the form says."""
        from core.recipes import parse_strategy
        from core.recipes.checking import make_strategy

        try:
            if rest or base == KEEP:
                strategy = parse_strategy(base + rest)
            else:
                strategy = make_strategy(base, self.form.method.name, dict(self.form.params))
        except RecipeError as error:
            self.note.setText(str(error))
            self.adjustSize()
            return
        self._finish(strategy)

    def _finish(self, strategy: Strategy | None) -> None:
        self.close()
        self.chosen.emit(strategy)


def without_method(typed: str) -> tuple[str, str]:
    """ "q4_k+gptq(damp=0.1)" → ("q4_k", "+gptq(damp=0.1)"); "q4_k(effort=exact)" → ("q4_k", "(effort=exact)")."""
    cut = min((i for i in (typed.find("+"), typed.find("(")) if i >= 0), default=len(typed))
    return typed[:cut].strip(), typed[cut:].strip()


def picker_title(names: Sequence[str], metrics: QFontMetrics) -> str:
    """ "blk.0.attn_q.weight" or "12 tensors"."""
    if len(names) == 1:
        return metrics.elidedText(names[0], Qt.TextElideMode.ElideMiddle, WIDTH - 24)
    return f"{len(names):,} tensors"
