"""Theme: contrast in light and dark, following the system, icons, the style sheet, colours of strategies."""

from __future__ import annotations

import re
from dataclasses import fields
from importlib.resources import files
from pathlib import Path

import pytest
from PySide6.QtCore import QSize, Qt
from PySide6.QtGui import QColor, QFont, QIcon, QImage, QPalette

from app.plotting.colors import DARK, LIGHT, ColorTable, contrast, oklch, strategy_color
from app.theme import Colors, Theme, current, figures, icon_names, style_sheet

TABLES = [pytest.param(LIGHT, id="light"), pytest.param(DARK, id="dark")]
GROUNDS = ("window", "base", "alternate", "hover", "selection")
STRATEGIES = (
    *("f32", "bf16", "int2-g128", "int4", "int4-g32-asym", "int8", "q2_k", "q4_k", "q6_k", "q4_0", "q8_0"),
    *("iq2_xs", "iq4_nl", "tq1_0", "mxfp4", "int3", "keep", "q4_k+gptq", "nobody-knows"),
)


@pytest.fixture
def theme(qapp):
    theme = current()
    theme.set_mode("light")
    yield theme
    theme.set_mode("system")


def test_contrast_of_known_pairs():
    # WebAIM's figures: black on white 21, #777777 on white 4.48, a colour on itself 1.
    assert contrast("#000000", "#ffffff") == pytest.approx(21.0)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)
    assert contrast("#123456", "#123456") == 1.0


@pytest.mark.parametrize("table", TABLES)
def test_text_stands_out_from_every_ground(table: ColorTable):
    for role in ("text", "muted", "done_text", "caution_text", "failure_text"):
        for ground in GROUNDS:
            assert contrast(getattr(table, role), getattr(table, ground)) >= 4.5, f"{role} on {ground}"


@pytest.mark.parametrize("table", TABLES)
def test_text_on_the_accent(table: ColorTable):
    assert contrast(table.accent_text, table.accent) >= 4.5


@pytest.mark.parametrize("table", TABLES)
def test_lines_stand_out_from_a_plot(table: ColorTable):
    for role in ("original", "dequantized", "residual", "done", "caution", "failure", "accent"):
        assert contrast(getattr(table, role), table.base) >= 3.0, role


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_strategies_stand_out_from_a_plot(dark: bool):
    table = DARK if dark else LIGHT
    for name in STRATEGIES:
        assert contrast(strategy_color(name, dark), table.base) >= 3.0, name


def hue(color: str) -> float:
    return QColor(color).hslHueF() * 360


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_hue_by_family_and_lightness_by_bits(dark: bool):
    ground = (DARK if dark else LIGHT).base
    for few, many in (("q2_k", "q6_k"), ("int2", "int8"), ("q4_0", "q8_0"), ("iq2_xs", "iq4_nl")):
        a, b = strategy_color(few, dark), strategy_color(many, dark)
        assert contrast(a, ground) < contrast(b, ground)
        assert abs((hue(a) - hue(b) + 180) % 360 - 180) < 25
    families = [hue(strategy_color(name, dark)) for name in ("q4_k", "int4", "q4_0", "iq4_nl")]
    for i, one in enumerate(families):
        for other in families[i + 1 :]:
            assert abs((one - other + 180) % 360 - 180) > 25


def test_a_method_and_capitals_change_no_colour():
    assert strategy_color("q4_k+gptq") == strategy_color("q4_k") == strategy_color("Q4_K")


def test_oklch_against_published_corners():
    # Ottosson's own example values for sRGB white and red.
    assert oklch(1.0, 0.0, 0.0) == "#ffffff"
    red = oklch(0.62796, 0.25768, 29.234)
    assert all(abs(int(red[i : i + 2], 16) - v) <= 1 for i, v in ((1, 255), (3, 0), (5, 0)))


def test_every_colour_of_the_table_is_a_role():
    assert {f.name for f in fields(ColorTable)} == {f.name for f in fields(Colors)}


@pytest.mark.parametrize("table", TABLES)
def test_style_sheet_leaves_no_placeholder(table: ColorTable):
    text = style_sheet(table)
    assert "@" not in text
    assert set(re.findall(r"#[0-9a-fA-F]{6}\b", text)) <= {value for _, value in table.items()}


@pytest.mark.parametrize("table", TABLES)
def test_pictures_of_the_style_sheet_can_be_drawn(table: ColorTable, qapp):
    paths = set(re.findall(r'url\("([^"]+)"\)', style_sheet(table)))
    assert len(paths) == 3
    assert not any(QImage(path).isNull() for path in paths)


def test_style_sheet_keeps_to_the_grid():
    text = files("resources").joinpath("styles", "quantbench.qss").read_text(encoding="utf-8")
    rules = re.findall(r"(padding|margin|spacing|border-radius):([^;]+);", text)
    sizes = {int(n) for _, value in rules for n in re.findall(r"(\d+)px", value)}
    assert sizes
    sizes.discard(3)  # and a border of 1
    assert all(size % 4 == 0 or size == 2 for size in sizes), sizes


def test_switching_changes_palette_and_tells_once(theme: Theme, qtbot, qapp):
    assert not theme.dark
    assert qapp.palette().color(QPalette.ColorRole.Base).name() == LIGHT.base
    seen = []
    theme.changed.connect(lambda: seen.append(theme.dark))
    theme.set_mode("dark")
    assert theme.dark
    assert seen == [True]
    assert qapp.palette().color(QPalette.ColorRole.Base).name() == DARK.base
    theme.set_mode("dark")
    assert seen == [True]


def test_system_mode_follows_the_style_hints(theme: Theme, qapp):
    theme.set_mode("dark")
    theme.set_mode("system")
    assert theme.mode == "system"
    assert theme.dark == (qapp.styleHints().colorScheme() == Qt.ColorScheme.Dark)
    qapp.styleHints().setColorScheme(Qt.ColorScheme.Dark)
    try:
        assert theme.dark == (qapp.styleHints().colorScheme() == Qt.ColorScheme.Dark)
    finally:
        qapp.styleHints().unsetColorScheme()


def test_unknown_mode_is_refused(theme: Theme):
    with pytest.raises(ValueError, match="not one of system, light, dark"):
        theme.set_mode("sepia")  # type: ignore[arg-type]


def test_a_new_theme_takes_the_place_of_the_old(qapp):
    first = Theme(qapp)
    second = Theme(qapp)
    assert current() is second
    assert first.parent() is None


def test_icons_are_cached_and_take_the_colour_of_the_moment(theme: Theme):
    icon = theme.icon("folder-open")
    assert theme.icon("ph.folder-open") is icon
    assert ink(icon) == QColor(LIGHT.text)
    theme.set_mode("dark")
    assert ink(icon) == QColor(DARK.text)
    assert ink(theme.icon("folder-open", "accent")) == QColor(DARK.accent)
    assert ink(icon, QIcon.Mode.Disabled) == QColor(DARK.disabled)


def ink(icon: QIcon, mode: QIcon.Mode = QIcon.Mode.Normal) -> QColor:
    """The colour of the most opaque pixel."""
    image = icon.pixmap(QSize(64, 64), mode).toImage()
    best = max((image.pixelColor(x, y) for x in range(64) for y in range(64)), key=QColor.alpha)
    assert best.alpha() > 200
    return QColor(best.red(), best.green(), best.blue())


def test_unknown_icons_and_roles_are_errors_with_a_suggestion(theme: Theme):
    with pytest.raises(KeyError, match="folder-open"):
        theme.icon("folder-opne")
    with pytest.raises(KeyError, match="no colour has the role"):
        theme.icon("folder-open", "pink")
    assert len(icon_names()) > 500


def test_figures_are_tabular(qapp):
    font = figures(QFont("Inter"))
    assert [bytes(tag.toString()) for tag in font.featureTags()] == [b"tnum"]
    theme = current()
    assert theme is current()
    assert qapp.font().featureTags()


def test_every_icon_that_is_named_exists(root: Path):
    from app.actions import ACTIONS
    from app.panels import PANELS

    named = {p.icon for p in PANELS} | {a.icon for a in ACTIONS if a.icon}
    for source in (root / "app").rglob("*.py"):
        named |= set(re.findall(r"""icon\(\s*"([a-z0-9-]+)\"""", source.read_text(encoding="utf-8")))
    assert len(named) > 20
    assert sorted(named - set(icon_names())) == []
