"""The popover under the toolbar's method: how codes are chosen for everything that the last rule decides over."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from PySide6.QtCore import QPoint, Qt, QTimer, Signal
from PySide6.QtWidgets import QFrame, QLabel, QVBoxLayout, QWidget

from app.edits import SetMethod
from app.forms import MethodForm
from app.session import Session
from app.theme import current
from core.errors import RecipeError
from core.recipes.model import Rule, Strategy

if TYPE_CHECKING:
    from core.formats.base import Format

WIDTH = 420
# Spin boxes change in bursts.
SETTLE_MS = 200


class MethodPopover(QFrame):
    """Every change is an edit of the session at once; undo takes all of them back together. calibration_asked: the
    user wants to see what the method learns from."""

    calibration_asked = Signal()

    def __init__(self, session: Session, parent: QWidget) -> None:
        super().__init__(parent, Qt.WindowType.Popup)
        self.setProperty("kind", "popover")
        self.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        self.setFixedWidth(current().px(WIDTH))
        self._session = session
        self.form = MethodForm(self)
        self.note = QLabel(self)
        self.note.setWordWrap(True)
        self.note.setProperty("kind", "muted")
        self.note.setTextFormat(Qt.TextFormat.RichText)
        self.note.linkActivated.connect(self._follow)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(12, 12, 12, 12)
        layout.setSpacing(8)
        layout.addWidget(self.form)
        layout.addWidget(self.note)
        rule = session.recipe.rules[-1] if session.recipe.rules else None
        if rule is not None:
            method, params = method_of(rule)
            self.form.show_choice(method, dict(params))
            self.form.allow(formats_of(session))
        self.form.setEnabled(rule is not None)
        self._timer = QTimer(self)
        self._timer.setSingleShot(True)
        self._timer.setInterval(SETTLE_MS)
        self._timer.timeout.connect(self._apply)
        self.form.changed.connect(self._timer.start)
        self.form.changed.connect(self._fit)
        self._explain()

    def open_under(self, widget: QWidget) -> None:
        self.adjustSize()
        corner = widget.mapToGlobal(widget.rect().bottomLeft())
        screen = widget.screen().availableGeometry()
        x = max(screen.left(), min(corner.x(), screen.right() - self.width()))
        self.move(QPoint(x, corner.y() + 4))
        self.show()
        QTimer.singleShot(0, self, self._shrink)  # words that wrap know their height only now
        self.form.combo.setFocus(Qt.FocusReason.PopupFocusReason)

    def hideEvent(self, event: object) -> None:
        if self._timer.isActive():
            self._timer.stop()
            self._apply()
        super().hideEvent(event)  # type: ignore[arg-type]

    def _fit(self) -> None:
        self._explain()
        QTimer.singleShot(0, self, self._shrink)

    def _shrink(self) -> None:
        layout = self.layout()
        if layout is not None:
            layout.activate()
        self.adjustSize()

    def _apply(self) -> None:
        try:
            self._session.apply(SetMethod(self.form.method.name, self.form.params), self)
        except RecipeError as error:
            self.note.setText(str(error).replace("<", "&lt;"))
            return
        self._explain()

    def _explain(self) -> None:
        needs = self.form.method.needs
        chosen = self._session.calibration.source
        if needs and not chosen:
            self.note.setText('It learns from activations: <a href="calibration">choose a text</a> for it.')
        elif needs:
            self.note.setText(f"It learns from {self._session.calibration.label.replace('<', '&lt;')}.")
        else:
            self.note.setText("For everything that the recipe's last rule decides over.")

    def _follow(self, _: str) -> None:
        self.close()
        self.calibration_asked.emit()


def method_of(rule: Rule) -> tuple[str, tuple[tuple[str, object], ...]]:
    """A rule's method and parameters."""
    if rule.strategy is not None:
        return rule.strategy.method, rule.strategy.params
    return rule.method, rule.params


def method_text(rule: Rule | None) -> str:
    """ "gptq", "nearest (effort=exact)"."""
    if rule is None:
        return "–"
    method, params = method_of(rule)
    if not params:
        return method
    words = str(Strategy("f", method, params)).partition("(")[2].removesuffix(")")
    return f"{method} ({words})" if len(words) <= 18 else f"{method} ({len(params)} set)"


def formats_of(session: Session) -> Sequence[Format]:
    """The formats that the last rule gives to tensors now."""
    last = len(session.recipe.rules) - 1
    planned = session.planned_tensors.values()
    found = {t.format.name: t.format for t in planned if t.rule == last and t.quantized}
    return tuple(found.values())
