"""The form that a method's parameter records make: one field each, with its bounds and its help. What is chosen becomes
a strategy or an edit elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from PySide6.QtCore import QSignalBlocker, Qt, Signal
from PySide6.QtWidgets import (
    QCheckBox,
    QComboBox,
    QDoubleSpinBox,
    QGridLayout,
    QLabel,
    QSpinBox,
    QVBoxLayout,
    QWidget,
)

from app.theme import current

if TYPE_CHECKING:
    from core.formats.base import Format
    from core.methods.base import Method
    from core.parameters import Parameter

Params = tuple[tuple[str, Any], ...]
# An open bound of a number, as spin boxes want one.
_FAR = 2_000_000_000
FIELD_WIDTH = 96


class _Decimal(QDoubleSpinBox):
    """Shows no more digits than the value has."""

    def textFromValue(self, value: float) -> str:
        return f"{value:.6g}"


class MethodForm(QWidget):
    """A method and its parameters. changed() after every change by the user."""

    changed = Signal()

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        from core.methods import METHODS

        self._methods = METHODS
        self._fields: dict[str, QWidget] = {}
        self.combo = QComboBox(self)
        self.combo.setAccessibleName("Method")
        for place, method in enumerate(METHODS):
            self.combo.addItem(method.title, method.name)
            self.combo.setItemData(place, method.help, Qt.ItemDataRole.ToolTipRole)
        self.help = QLabel(self)
        self.help.setProperty("kind", "muted")
        self.help.setWordWrap(True)
        self._page: QWidget | None = None
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(4)
        head = QGridLayout()
        head.setColumnStretch(1, 1)
        head.setHorizontalSpacing(8)
        label = QLabel("Method", self)
        label.setBuddy(self.combo)
        head.addWidget(label, 0, 0)
        head.addWidget(self.combo, 0, 1)
        layout.addLayout(head)
        layout.addWidget(self.help)
        self._layout = layout
        self.combo.currentIndexChanged.connect(self._switched)
        self._fill({})

    @property
    def method(self) -> Method:
        return self._methods[max(0, self.combo.currentIndex())]

    @property
    def params(self) -> Params:
        """Those that differ from the method's defaults, in its order."""
        given = {p.key: _value(self._fields[p.key]) for p in self.method.all_parameters}
        return tuple((p.key, given[p.key]) for p in self.method.all_parameters if given[p.key] != p.default)

    def show_choice(self, method: str, params: Mapping[str, Any]) -> None:
        """Sets method and parameters; what is not named stands at its default. Emits nothing."""
        with QSignalBlocker(self), QSignalBlocker(self.combo):
            self.combo.setCurrentIndex(max(0, self.combo.findData(method)))
            self._fill(params)

    def allow(self, formats: Sequence[Format]) -> None:
        """Only methods that make sense on one of these formats can be chosen; the others say why not."""
        model = self.combo.model()
        for place, method in enumerate(self._methods):
            reasons = [method.misfit(f) for f in formats]
            why = reasons[0] if reasons and all(reasons) else ""
            item = model.item(place)  # type: ignore[attr-defined]
            item.setEnabled(not why)
            item.setToolTip(why or method.help)

    def _switched(self) -> None:
        self._fill({})
        self.changed.emit()

    def _fill(self, params: Mapping[str, Any]) -> None:
        if self._page is not None:
            self._layout.removeWidget(self._page)
            self._page.hide()
            self._page.deleteLater()
        self.help.setText(self.method.help)
        page = QWidget(self)
        grid = QGridLayout(page)
        grid.setContentsMargins(0, 0, 0, 0)
        grid.setHorizontalSpacing(8)
        grid.setVerticalSpacing(4)
        grid.setColumnStretch(0, 1)
        grid.setColumnStretch(2, 1)
        self._fields = {}
        for place, parameter in enumerate(self.method.all_parameters):
            field = _field(parameter, params.get(parameter.key, parameter.default), page)
            label = QLabel(parameter.label, page)
            label.setBuddy(field)
            for widget in (label, field):
                widget.setToolTip(_help(parameter))
            row, column = divmod(place, 2)
            grid.addWidget(label, row, 2 * column)
            grid.addWidget(field, row, 2 * column + 1)
            self._fields[parameter.key] = field
            _on_change(field, self.changed.emit)
        self._page = page
        self._layout.addWidget(page)
        self._layout.activate()
        self.updateGeometry()

    def field(self, key: str) -> QWidget:
        """The field of a parameter of the present method."""
        return self._fields[key]


def _help(parameter: Parameter) -> str:
    bounds = [
        f"{word} {bound:g}"
        for word, bound in (("at least", parameter.minimum), ("at most", parameter.maximum))
        if bound is not None
    ]
    return f"{parameter.help}\n{', '.join(bounds)}".strip()


def _field(parameter: Parameter, value: Any, parent: QWidget) -> QWidget:
    low = -_FAR if parameter.minimum is None else parameter.minimum
    high = _FAR if parameter.maximum is None else parameter.maximum
    field: QWidget
    if parameter.kind == "bool":
        field = QCheckBox(parent)
        field.setChecked(bool(value))
    elif parameter.kind == "choice":
        field = QComboBox(parent)
        field.addItems(list(parameter.choices))
        field.setCurrentText(str(value))
    elif parameter.kind == "int":
        field = QSpinBox(parent)
        field.setRange(int(low), int(high))
        field.setValue(int(value))
    else:
        field = _Decimal(parent)
        field.setDecimals(9)
        field.setRange(float(low), float(high))
        field.setStepType(QDoubleSpinBox.StepType.AdaptiveDecimalStepType)
        field.setValue(float(value))
    field.setAccessibleName(parameter.label)
    if isinstance(field, QSpinBox | QDoubleSpinBox):
        field.lineEdit().setTextMargins(2, 0, 0, 0)  # in line with the words of choices
    if not isinstance(field, QCheckBox):
        field.setFixedWidth(current().px(FIELD_WIDTH))
    return field


def _value(field: QWidget) -> Any:
    if isinstance(field, QCheckBox):
        return field.isChecked()
    if isinstance(field, QComboBox):
        return field.currentText()
    assert isinstance(field, QSpinBox | QDoubleSpinBox)
    return field.value()


def _on_change(field: QWidget, call: Any) -> None:
    if isinstance(field, QCheckBox):
        field.toggled.connect(lambda _: call())
    elif isinstance(field, QComboBox):
        field.currentIndexChanged.connect(lambda _: call())
    else:
        assert isinstance(field, QSpinBox | QDoubleSpinBox)
        field.valueChanged.connect(lambda _: call())
