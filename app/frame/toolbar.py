"""The bar across the top: what is open, the recipe, the container, the device, what it will come to, and the button
that does it. It shows the session and offers actions; it changes nothing itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from PySide6.QtCore import Qt, Signal
from PySide6.QtGui import QAction
from PySide6.QtWidgets import QFrame, QHBoxLayout, QLabel, QMenu, QPushButton, QSizePolicy, QToolButton, QWidget

from app.frame.method import method_text
from app.frame.problems import counts_text
from app.glossary import about
from app.labels import BESIDE, ElidedLabel, beside
from app.session import Session
from app.theme import Theme
from core.engine.progress import bytes_text


@dataclass(frozen=True, slots=True)
class Offer:
    """One line of a drop-down: value is what choosing it means; group titles begin a section; why: not now."""

    value: str
    text: str
    help: str = ""
    group: str = ""
    why: str = ""


class DropDown(QToolButton):
    """A word with a menu behind it. chosen(value). offers() is asked when the menu opens."""

    chosen = Signal(str)

    def __init__(self, name: str, offers: Callable[[], Sequence[Offer]], parent: QWidget) -> None:
        super().__init__(parent)
        self._offers = offers
        self.setProperty("kind", "drop")
        self.setAccessibleName(name)
        self.setPopupMode(QToolButton.ToolButtonPopupMode.InstantPopup)
        self.setToolButtonStyle(Qt.ToolButtonStyle.ToolButtonTextOnly)
        self.setSizePolicy(QSizePolicy.Policy.Preferred, QSizePolicy.Policy.Fixed)
        self._menu = QMenu(self)
        self._menu.setToolTipsVisible(True)
        self._menu.aboutToShow.connect(self._fill)
        self.setMenu(self._menu)
        self.extra: list[QAction] = []

    def _fill(self) -> None:
        self._menu.clear()
        groups: dict[str, QMenu] = {}
        offers = list(self._offers())
        titles = {o.group for o in offers if o.group}
        for offer in offers:
            menu = self._menu
            if len(titles) > 1 and offer.group:
                if offer.group not in groups:
                    groups[offer.group] = self._menu.addMenu(offer.group)
                    groups[offer.group].setToolTipsVisible(True)
                menu = groups[offer.group]
            action = menu.addAction(offer.text)
            action.setToolTip(offer.why or offer.help)
            action.setEnabled(not offer.why)
            action.setCheckable(True)
            action.setChecked(offer.value == self.property("value"))
            action.triggered.connect(lambda _=False, v=offer.value: self.chosen.emit(v))
        if self.extra:
            self._menu.addSeparator()
            self._menu.addActions(self.extra)

    def show_value(self, value: str, text: str = "") -> None:
        self.setProperty("value", value)
        self.setText(text or value)


class Toolbar(QFrame):
    """preset_chosen, target_chosen, device_chosen: values of the drop-downs."""

    preset_chosen = Signal(str)
    target_chosen = Signal(str)
    device_chosen = Signal(str)

    def __init__(
        self,
        theme: Theme,
        session: Session,
        actions: Mapping[str, QAction],
        recent: QMenu,
        devices: Callable[[], Sequence[Offer]],
        parent: QWidget,
    ) -> None:
        super().__init__(parent)
        self._theme = theme
        self._session = session
        self._problems: tuple[str, str] | None = None  # what the preflight button says, and its severity
        self.setProperty("kind", "toolbar")
        self.open_button = QToolButton(self)
        self.open_button.setDefaultAction(actions["open-file"])
        self.open_button.setText("Open")
        beside(self.open_button)
        self.open_button.setPopupMode(QToolButton.ToolButtonPopupMode.MenuButtonPopup)
        self.open_button.setMenu(recent)
        self.open_button.setProperty("kind", "drop")
        self.preset = DropDown("Preset", preset_offers, self)
        self.preset.setToolTip(about("preset", "The recipe's base; or one format for everything that fits"))
        self.preset.extra = [actions["open-recipe"], actions["save-recipe"]]
        self.method = QToolButton(self)
        self.method.setDefaultAction(actions["choose-method"])
        self.method.setToolButtonStyle(Qt.ToolButtonStyle.ToolButtonTextOnly)
        self.method.setProperty("kind", "outline")
        self.method.setAccessibleName("Method")
        self.target = DropDown("Target", target_offers, self)
        self.target.setToolTip(about("target"))
        self.device = DropDown("Device", devices, self)
        self.device.setToolTip(about("device"))
        self.size_label = ElidedLabel(parent=self, apart=" · ", tip=False)
        self.size_label.setAlignment(Qt.AlignmentFlag.AlignCenter)
        self.preflight = QToolButton(self)
        self.preflight.setDefaultAction(actions["preflight"])
        beside(self.preflight)
        self.preflight.setProperty("kind", "flat")
        self.quantize = QPushButton("Quantize", self)
        self.quantize.setProperty("kind", "primary")
        self.quantize.setIcon(theme.icon("play", "accent_text"))
        self.quantize.setIconSize(BESIDE)
        self.quantize.clicked.connect(actions["quantize"].trigger)
        actions["quantize"].enabledChanged.connect(self.quantize.setEnabled)
        self.quantize.setEnabled(actions["quantize"].isEnabled())
        self.quantize.setToolTip(actions["quantize"].toolTip())
        layout = QHBoxLayout(self)
        layout.setContentsMargins(8, 6, 8, 6)
        layout.setSpacing(4)
        layout.addWidget(self.open_button)
        self.captions: list[QLabel] = []  # of the choices
        for label, drop in (("Preset", self.preset), ("Target", self.target), ("Device", self.device)):
            layout.addSpacing(8)
            word = QLabel(label, self)
            word.setProperty("kind", "muted")
            word.setBuddy(drop)
            word.setToolTip(about(label))
            layout.addWidget(word)
            self.captions.append(word)
            layout.addWidget(drop)
            if drop is self.preset:
                layout.addWidget(self.method)
        layout.addSpacing(8)
        layout.addWidget(self.size_label, 1)
        layout.addSpacing(8)
        layout.addWidget(self.preflight)
        layout.addSpacing(4)
        layout.addWidget(self.quantize)
        self.preset.chosen.connect(self.preset_chosen)
        self.target.chosen.connect(self.target_chosen)
        self.device.chosen.connect(self.device_chosen)

    def show_choices(self) -> None:
        """Preset, target and device as the session has them."""
        session = self._session
        recipe = session.recipe
        edited = len(recipe.rules) - 1
        name = recipe.name or "no name"
        self.preset.show_value(
            recipe.name, name if edited < 1 else f"{name} + {edited} rule{'' if edited == 1 else 's'}"
        )
        self.method.setText(f"+ {method_text(recipe.rules[-1] if recipe.rules else None)}")
        self.target.show_value(session.target, _target_title(session.target))
        self.device.show_value(session.device, session.device.upper() if session.device == "cpu" else session.device)

    def show_size(self, free: int | None, busy: bool) -> None:
        """Before and after, and whether it fits the disk."""
        session = self._session
        plan, totals, planned = session.plan, session.totals, session.plan_totals
        if session.checkpoint is None or totals is None:
            self.size_label.clear()
            self.size_label.setToolTip("")
            return
        before = bytes_text(totals.source_bytes)
        if plan is None or planned is None:
            self.size_label.setText(before if not session.plan_error else f"{before} → no plan")
            self.size_label.setToolTip(session.plan_error)
            return
        text = f"{before} → {bytes_text(plan.nbytes)} · {planned.bpw:.2f} bpw"
        tip = f"{totals.source_bytes:,} bytes → {plan.nbytes:,} bytes, exact, all files of the output"
        if free is not None:
            text += " · fits" if free >= plan.nbytes else " · does not fit"
            tip += f"\n{bytes_text(free)} free on the disk of the output"
        self.size_label.setText(text)
        self.size_label.setToolTip(tip)

    def show_problems(self) -> None:
        """Counts of what preflight found."""
        session = self._session
        if session.plan is None:
            text, severity = ("No plan", "error") if session.plan_error else ("Preflight", "")
        else:
            text, severity = counts_text(session.problems)
        if (text, severity) == self._problems:
            return  # a button with another icon is painted anew, even if it looks the same
        self._problems = text, severity
        self.preflight.setText(text)
        name, role = {
            "": ("shield-check", "muted"),
            "done": ("check-circle", "done_text"),
            "warning": ("warning", "caution_text"),
            "error": ("x-circle", "failure_text"),
        }[severity]
        self.preflight.setIcon(self._theme.icon(name, role))


def preset_offers() -> list[Offer]:
    """Presets by family, then one format for everything."""
    from core.formats import FORMATS
    from core.recipes import PRESETS

    offers = [Offer(p.name, f"{p.name}    {p.title}", p.help, p.family, p.unavailable) for p in PRESETS]
    names = {"dense": "Plain floats", "uniform": "Integers", "ggml": "GGML blocks"}
    offers += [
        Offer(f.name, f"{f.name}    {f.title}", "Every tensor that fits", f"Pure: {names.get(f.family, f.family)}")
        for f in FORMATS
        if f.encodable
    ]
    return offers


def target_offers() -> list[Offer]:
    from core.targets import TARGETS

    return [Offer(t.name, t.title, t.help) for t in TARGETS]


def _target_title(name: str) -> str:
    from core.targets import TARGETS

    return next((t.title for t in TARGETS if t.name == name), name)
