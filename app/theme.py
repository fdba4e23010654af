"""How the window looks: style, palette, the one style sheet, fonts, sizes and icons. Light or dark as the system says,
or as the user chose; so are the size of text and the height of rows. Colours themselves are in app/plotting/colors.py.

Widgets ask `current()` and redraw on its `changed`. Icons need no such care: they take their colour when painted.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from difflib import get_close_matches
from functools import cache
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar, Literal

from PySide6.QtCore import QObject, QPoint, QRect, QSize, Qt, Signal, Slot
from PySide6.QtGui import QColor, QFont, QFontDatabase, QFontMetrics, QIcon, QIconEngine, QPainter, QPalette, QPixmap
from PySide6.QtWidgets import QApplication

from app.plotting.colors import DARK, LIGHT, ColorTable, strategy_color

Mode = Literal["system", "light", "dark"]
MODES: tuple[Mode, ...] = ("system", "light", "dark")
Density = Literal["compact", "comfortable"]
DENSITIES: tuple[Density, ...] = ("compact", "comfortable")
# Text in percent of the system's size: least, most, and a step.
FONT_LEAST, FONT_MOST, FONT_STEP = 80, 160, 10
# Everything is placed on this grid.
GRID = 4
ICON = 16
# Pixels of a compact row with text of the usual size, and what comfort adds to rows and to buttons, at each side.
ROW, AIR, PADDING = 24, 3, 2
_SYSTEM_SIZE = "quantbench system font size"


@dataclass(frozen=True, slots=True)
class Colors:
    """The colours in force, by role; what each is for stands at app.plotting.colors.ColorTable."""

    window: QColor
    base: QColor
    alternate: QColor
    text: QColor
    muted: QColor
    disabled: QColor
    hairline: QColor
    grid: QColor
    hover: QColor
    selection: QColor
    accent: QColor
    accent_text: QColor
    original: QColor
    dequantized: QColor
    residual: QColor
    done: QColor
    caution: QColor
    failure: QColor
    done_text: QColor
    caution_text: QColor
    failure_text: QColor

    @classmethod
    def of(cls, table: ColorTable) -> Colors:
        return cls(**{f.name: QColor(getattr(table, f.name)) for f in fields(cls)})


class Theme(QObject):
    """One per application, owned by it. changed() follows every switch between light and dark, resized() every other
    size of text and rows."""

    changed = Signal()
    resized = Signal()
    _tables: ClassVar[dict[bool, ColorTable]] = {False: LIGHT, True: DARK}

    def __init__(self, app: QApplication) -> None:
        super().__init__(app)
        for older in app.findChildren(Theme, options=Qt.FindChildOption.FindDirectChildrenOnly):
            if older is not self:
                older._retire()
        self._app = app
        self._mode: Mode = "system"
        self._dark: bool | None = None
        self._density: Density = "compact"
        self._percent = 100
        self.colors = Colors.of(LIGHT)
        self._icons: dict[tuple[str, str], QIcon] = {}
        app.setStyle("Fusion")
        if app.property(_SYSTEM_SIZE) is None:
            app.setProperty(_SYSTEM_SIZE, app.font().pointSizeF())
        self._set_font()
        app.styleHints().colorSchemeChanged.connect(self._follow)
        self._follow()

    @property
    def mode(self) -> Mode:
        """What was asked for: "system", "light" or "dark"."""
        return self._mode

    @property
    def dark(self) -> bool:
        """What it came to."""
        return bool(self._dark)

    def set_mode(self, mode: Mode) -> None:
        """Follows the system, or stays light or dark. Raises ValueError for any other word."""
        if mode not in MODES:
            raise ValueError(f"mode {mode!r} is not one of {', '.join(MODES)}")
        self._mode = mode
        # So that title bars and native dialogs go along.
        hints = self._app.styleHints()
        if mode == "system":
            hints.unsetColorScheme()
        else:
            hints.setColorScheme(Qt.ColorScheme.Dark if mode == "dark" else Qt.ColorScheme.Light)
        self._follow()

    @property
    def density(self) -> Density:
        return self._density

    @property
    def font_percent(self) -> int:
        """Of the text, compared with the system's."""
        return self._percent

    @property
    def row(self) -> int:
        """Height of a table's row in pixels."""
        least = max(self.px(ROW), QFontMetrics(self._app.font()).height() + 8)
        return least + (2 * AIR if self._density == "comfortable" else 0)

    def px(self, pixels: int) -> int:
        """A width or height that was measured with text of the usual size, for text of the present one."""
        return round(pixels * self._percent / 100)

    def set_density(self, density: Density) -> None:
        """How much air rows and buttons have. Raises ValueError for any other word."""
        if density not in DENSITIES:
            raise ValueError(f"density {density!r} is not one of {', '.join(DENSITIES)}")
        if density != self._density:
            self._density = density
            self._dress()
            self.resized.emit()

    def set_font_percent(self, percent: int) -> None:
        """The size of all text, FONT_LEAST … FONT_MOST percent of the system's; beyond, the nearest of both."""
        percent = min(max(percent, FONT_LEAST), FONT_MOST)
        if percent != self._percent:
            self._percent = percent
            self._set_font()
            self._dress()
            self.resized.emit()

    @property
    def _padding(self) -> int:
        return GRID + (PADDING if self._density == "comfortable" else 0)

    def _dress(self) -> None:
        """The style sheet anew; widgets take over another font of the application only then."""
        self._app.setStyleSheet(style_sheet(self._tables[self.dark], self._padding))

    def _set_font(self) -> None:
        font = figures(self._app.font())
        font.setPointSizeF(float(self._app.property(_SYSTEM_SIZE)) * self._percent / 100)
        self._app.setFont(font)

    def icon(self, name: str, role: str = "text") -> QIcon:
        """A Phosphor icon ("folder-open", "ph.folder-open") in the colour of a role. Same name, same object.

        Raises KeyError for an icon or a role that does not exist.
        """
        key = (name.removeprefix("ph."), role)
        if key not in self._icons:
            if role not in Colors.__slots__:
                raise KeyError(f"no colour has the role {role!r}")
            if key[0] not in icon_names():
                close = get_close_matches(key[0], icon_names(), n=3)
                raise KeyError(f"no icon is called {name!r}; close: {', '.join(close)}")
            self._icons[key] = QIcon(_Glyph(self, *key))
        return self._icons[key]

    def color_for(self, format_name: str) -> QColor:
        """The colour of a format or strategy: hue by family, lightness by bits."""
        return QColor(strategy_color(format_name, self.dark))

    @Slot()
    def _follow(self) -> None:
        if self._mode == "system":
            dark = self._app.styleHints().colorScheme() == Qt.ColorScheme.Dark
        else:
            dark = self._mode == "dark"
        if dark == self._dark:
            return
        self._dark = dark
        table = self._tables[dark]
        self.colors = Colors.of(table)
        self._app.setPalette(_palette(self.colors))
        self._dress()
        self.changed.emit()

    def _retire(self) -> None:
        self._app.styleHints().colorSchemeChanged.disconnect(self._follow)
        self.setParent(None)
        self.deleteLater()


def current() -> Theme:
    """The application's theme; made on the spot where there is none yet (a panel on its own, in a test)."""
    app = QApplication.instance()
    assert isinstance(app, QApplication), "a theme needs a QApplication"
    found = app.findChild(Theme, options=Qt.FindChildOption.FindDirectChildrenOnly)
    return found if found is not None else Theme(app)


def color_for(format_name: str) -> QColor:
    """The colour of a format or strategy in the present theme."""
    return current().color_for(format_name)


def figures(font: QFont) -> QFont:
    """The same font with figures of one width, so that numbers stand in columns."""
    tabular = QFont(font)
    tabular.setFeature(QFont.Tag("tnum"), 1)
    return tabular


@cache
def icon_names() -> Mapping[str, int]:
    """Every Phosphor icon by name, with its code point in the font."""
    text = _icon_file("phosphor-charmap-*.json").read_text(encoding="utf-8")
    return {name: int(point, 16) for name, point in json.loads(text).items()}


@cache
def _icon_family() -> str:
    """Loads the font, once."""
    number = QFontDatabase.addApplicationFontFromData(_icon_file("phosphor-[0-9]*.ttf").read_bytes())
    families = QFontDatabase.applicationFontFamilies(number)
    if not families:
        raise RuntimeError("the icon font of QtAwesome cannot be loaded; install QtAwesome again")
    return families[0]


def _icon_file(pattern: str) -> Path:
    """A file of QtAwesome's fonts. The package itself stays unimported: it would load a dozen fonts, and pick a Qt."""
    spec = find_spec("qtawesome")
    folders = spec.submodule_search_locations if spec is not None else None
    found = sorted(Path(folders[0], "fonts").glob(pattern)) if folders else []
    if not found:
        raise RuntimeError(f"QtAwesome has no file {pattern}; install QtAwesome again")
    return found[-1]


_PLACEHOLDER = re.compile(r"@(\w+)")


def style_sheet(table: ColorTable, padding: int = GRID) -> str:
    """resources/styles/quantbench.qss with `@role` replaced by colours, `@pad` by pixels, `@styles` by its folder and
    `@shade` by "light" or "dark". Raises KeyError for an unknown role."""
    styles = files("resources").joinpath("styles")
    text = styles.joinpath("quantbench.qss").read_text(encoding="utf-8")
    roles = {**dict(table.items()), "pad": f"{padding}px"}
    roles |= {"styles": Path(str(styles)).as_posix(), "shade": "dark" if table is DARK else "light"}
    return _PLACEHOLDER.sub(lambda m: roles[m.group(1)], text)


def _palette(c: Colors) -> QPalette:
    roles = QPalette.ColorRole
    palette = QPalette()
    for role, color in (
        (roles.Window, c.window),
        (roles.WindowText, c.text),
        (roles.Base, c.base),
        (roles.AlternateBase, c.alternate),
        (roles.Text, c.text),
        (roles.PlaceholderText, c.muted),
        (roles.Button, c.window),
        (roles.ButtonText, c.text),
        (roles.BrightText, c.failure_text),
        (roles.ToolTipBase, c.base),
        (roles.ToolTipText, c.text),
        (roles.Highlight, c.selection),
        (roles.HighlightedText, c.text),
        (roles.Link, c.accent),
        (roles.LinkVisited, c.accent),
        (roles.Accent, c.accent),
        (roles.Light, c.base),
        (roles.Midlight, c.hover),
        (roles.Mid, c.hairline),
        (roles.Dark, c.disabled),
        (roles.Shadow, c.hairline),
    ):
        palette.setColor(role, color)
    for role in (roles.WindowText, roles.Text, roles.ButtonText, roles.HighlightedText):
        palette.setColor(QPalette.ColorGroup.Disabled, role, c.disabled)
    palette.setColor(QPalette.ColorGroup.Disabled, roles.Highlight, c.hover)
    palette.setColor(QPalette.ColorGroup.Disabled, roles.Accent, c.disabled)
    return palette


class _Glyph(QIconEngine):
    """Draws one glyph of the icon font in the theme's colour of the moment."""

    def __init__(self, theme: Theme, name: str, role: str) -> None:
        super().__init__()
        self._theme, self._name, self._role = theme, name, role
        # By width, height and colour: buttons ask at every painting.
        self._pixmaps: dict[tuple[int, int, int], QPixmap] = {}

    def clone(self) -> QIconEngine:
        return _Glyph(self._theme, self._name, self._role)

    def paint(self, painter: QPainter, rect: QRect, mode: QIcon.Mode, state: QIcon.State) -> None:
        painter.save()
        painter.setPen(self._color(mode))
        font = QFont(_icon_family())
        font.setPixelSize(rect.height())
        painter.setFont(font)
        side = Qt.AlignmentFlag.AlignLeft if rect.width() > rect.height() else Qt.AlignmentFlag.AlignHCenter
        painter.drawText(rect, side | Qt.AlignmentFlag.AlignVCenter, chr(icon_names()[self._name]))
        painter.restore()

    def pixmap(self, size: QSize, mode: QIcon.Mode, state: QIcon.State) -> QPixmap:
        key = size.width(), size.height(), self._color(mode).rgba()
        pixmap = self._pixmaps.get(key)
        if pixmap is None:
            pixmap = QPixmap(size)
            pixmap.fill(Qt.GlobalColor.transparent)
            painter = QPainter(pixmap)
            self.paint(painter, QRect(QPoint(0, 0), size), mode, state)
            painter.end()
            self._pixmaps[key] = pixmap
        return pixmap

    def _color(self, mode: QIcon.Mode) -> QColor:
        colors = self._theme.colors
        return colors.disabled if mode == QIcon.Mode.Disabled else getattr(colors, self._role)
