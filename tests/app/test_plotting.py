"""Plots: axes' numbers, zoom, home, reading off, menu, export, theme, and that nothing is left behind."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PySide6.QtCore import QPointF, Qt
from PySide6.QtGui import QColor, QGuiApplication, QImage
from PySide6.QtWidgets import QWidget

from app.plotting.axes import ShareAxis, number
from app.plotting.colors import DARK, LIGHT
from app.plotting.plot import COMPACT, Plot
from app.plotting.strip import LANE, place
from app.theme import current


@pytest.fixture
def plot(qtbot):
    current().set_mode("light")
    made = Plot("weight", lambda: "a,b\n1,2\n", "test")
    made.upper = made.strip("% of weights", 2, lanes=2)
    made.lower = made.strip("residual, %", 1)
    made.curve = made.upper.fill("original")
    made.curve.setData(x=np.array([-1.0, 0.0, 1.0]), y=np.array([2.0, 4.0]))
    made.upper.set_heights(0.0, 5.0, False)
    made.lower.set_heights(0.0, 1.0, False)
    qtbot.addWidget(made)
    made.resize(500, 400)
    made.show()
    qtbot.waitExposed(made)
    made.set_home(-1.0, 1.0, (-2.0, 2.0), go=True)
    yield made
    made.close()
    current().set_mode("system")


@pytest.mark.parametrize(
    ("value", "step", "text"),
    [
        (0.05, 0.05, "0.05"),
        (-0.1, 0.1, "−0.1"),
        (0.30000000000000004, 0.1, "0.3"),
        (1e-17, 0.1, "0"),
        (3.0, 1.0, "3"),
        (20.0, 10.0, "20"),
        (2e-6, 1e-6, "2e-6"),
        (-1.5e-6, 5e-7, "−1.5e-6"),
    ],
)
def test_numbers_of_ticks(value: float, step: float, text: str):
    assert number(value, step) == text


def test_logarithmic_axis_has_decades_above_its_base(qapp):
    axis = ShareAxis()
    axis.logarithmic, axis.base = True, -2.3
    [(step, ticks)] = axis.tickValues(-2.6, 1.2, 300)
    assert step == 1.0
    assert ticks == [-2.0, -1.0, 0.0, 1.0]
    assert axis.tickStrings(ticks, 1.0, 1.0) == ["0.01", "0.1", "1", "10"]
    # Too little room for every decade.
    assert len(axis.tickValues(-8.0, 2.0, 60)[0][1]) <= 3


def test_plain_axis_has_no_ticks_in_the_band(qapp):
    axis = ShareAxis()
    values = [v for _, ticks in axis.tickValues(-0.5, 4.0, 300) for v in ticks]
    assert values
    assert min(values) >= 0


def test_zoom_is_told_once_and_a_double_click_goes_home(plot: Plot, qtbot):
    with qtbot.waitSignal(plot.range_changed) as told:
        for k in range(10):
            plot.show_range(-0.5, 0.5 + k * 1e-3)
    assert told.args == pytest.approx([-0.5, 0.509])
    assert not plot.at_home
    center = plot.upper.item.vb.sceneBoundingRect().center()
    qtbot.mouseDClick(plot.viewport(), Qt.MouseButton.LeftButton, pos=plot.mapFromScene(center))
    qtbot.mouseRelease(
        plot.viewport(), Qt.MouseButton.LeftButton, pos=plot.mapFromScene(center)
    )  # which the click leaves out
    assert plot.at_home
    assert plot.x_range == pytest.approx((-1.0, 1.0))


def test_strips_share_x_and_zoom_has_limits(plot: Plot):
    plot.show_range(-0.25, 0.25)
    (low, high), _ = plot.lower.item.viewRange()
    assert (low, high) == pytest.approx((-0.25, 0.25), rel=0.05)
    plot.show_range(-50.0, 50.0)
    low, high = plot.x_range
    assert low >= -2.0
    assert high <= 2.0


def test_reading_off(plot: Plot, qtbot):
    view = plot.upper.item.vb
    with qtbot.waitSignal(plot.hovered) as told:
        plot._moved(view.mapViewToScene(QPointF(0.5, 1.0)))
    assert told.args[0] == pytest.approx(0.5, abs=1e-6)
    with qtbot.waitSignal(plot.hovered) as told:
        plot._moved(QPointF(-10.0, -10.0))
    assert told.args == [None]


def test_keys_read_off_zoom_and_go_home(plot: Plot, qtbot):
    told: list[float | None] = []
    plot.hovered.connect(told.append)
    assert plot.accessibleName() == "Test"
    assert "Arrows" in plot.accessibleDescription()
    qtbot.keyClick(plot, Qt.Key.Key_Right)
    middle = told[-1]
    assert 0.0 < middle < 0.1
    assert plot.cursor()[0] in (0, 1)
    for _ in range(40):
        qtbot.keyClick(plot, Qt.Key.Key_Up)
    assert plot.cursor()[0] == 0, "at the upper end of the upper strip"
    for _ in range(40):
        qtbot.keyClick(plot, Qt.Key.Key_Down)
    assert plot.cursor()[0] == 1
    qtbot.keyClick(plot, Qt.Key.Key_Plus)
    low, high = plot.x_range
    assert high - low == pytest.approx(2 / 1.5)
    assert plot.cursor()[1] == pytest.approx(middle, abs=0.02), "the place that is read stays"
    qtbot.keyClick(plot, Qt.Key.Key_Right, Qt.KeyboardModifier.ControlModifier)
    assert plot.x_range[0] == pytest.approx(low + (high - low) / 4)
    for _ in range(20):
        qtbot.keyClick(plot, Qt.Key.Key_Right, Qt.KeyboardModifier.ControlModifier)
    assert plot.x_range == pytest.approx((2 - (high - low), 2.0), rel=0.01), "no farther than the limits"
    qtbot.keyClick(plot, Qt.Key.Key_Home)
    assert plot.at_home
    qtbot.keyClick(plot, Qt.Key.Key_Minus)
    assert plot.x_range[1] - plot.x_range[0] == pytest.approx(3.0, rel=0.01)


def test_files_get_names_that_file_systems_take(plot: Plot, tmp_path: Path):
    asked = []
    plot.name = 'encoder/layer:0 "a"-histogram'
    plot.exports.ask_path = lambda name, kinds: asked.append(name) or ""
    plot.exports.export_picture()
    plot.exports.export_values()
    assert asked == ["encoder_layer_0 _a_-histogram.png", "encoder_layer_0 _a_-histogram.csv"]


@pytest.mark.parametrize("height", [300, 900])
def test_ticks_stand_in_a_band_of_their_own_pixels(plot: Plot, qtbot, height: int):
    ticks = [plot.upper.ticks("text", lane) for lane in (0, 1)]
    plot.resize(500, height)
    qtbot.waitUntil(lambda: plot.height() == height)
    plot.grab()
    pixels = plot.upper.item.vb.height()
    base = plot.upper.item.vb.mapViewToScene(QPointF(0, 0)).y()
    bottom = plot.upper.item.vb.sceneBoundingRect().bottom()
    assert bottom - base == pytest.approx(2 * (LANE + 2) + 2, abs=1.0)
    (low0, high0), (low1, high1) = (t.yRange() for t in ticks)
    assert (high0 - low0) * pixels == pytest.approx(LANE, abs=0.5)
    assert 0 <= low1 < high1 < low0 < high0 <= (bottom - base) / pixels


def test_dashes_hide_what_has_no_place(plot: Plot):
    lines = plot.upper.dashes("text", 2)
    place(lines, (0.25, float("nan")))
    assert [line.isVisible() for line in lines] == [True, False]
    assert lines[0].value() == 0.25
    place(lines, ())
    assert not lines[0].isVisible()


def test_follows_the_theme(plot: Plot):
    assert background(plot) == QColor(LIGHT.base)
    assert plot.curve.opts["brush"].color().name() == LIGHT.original
    current().set_mode("dark")
    assert background(plot) == QColor(DARK.base)
    assert plot.curve.opts["brush"].color().name() == DARK.original


def background(plot: Plot) -> QColor:
    image = plot.exports.picture(1.0)
    return image.pixelColor(image.width() - 2, 2)


def test_axes_lose_their_words_when_low(plot: Plot, qtbot):
    assert plot.upper.axis.label.isVisible()
    plot.resize(400, 2 * COMPACT - 20)
    qtbot.waitUntil(lambda: not plot.upper.axis.label.isVisible())
    plot.resize(400, 2 * COMPACT + 60)
    qtbot.waitUntil(lambda: plot.upper.axis.label.isVisible())


def test_the_menu_offers_copying_and_exporting(plot: Plot):
    menu = plot.menu()
    texts = [a.text() for a in menu.actions() if a.text()]
    assert texts == ["Reset zoom", "Copy picture", "Copy values", "Export picture…", "Export values…"]
    menu.deleteLater()


def test_copying(plot: Plot):
    plot.exports.copy_values()
    assert QGuiApplication.clipboard().text() == "a,b\n1,2\n"
    plot.exports.copy_picture()
    image = QGuiApplication.clipboard().image()
    assert (image.width(), image.height()) == (1000, 800)


def test_exporting(plot: Plot, tmp_path: Path):
    asked = []

    def answer(path: str):
        def ask(name: str, kinds: str) -> str:
            asked.append(name)
            return path

        return ask

    plot.exports.ask_path = answer(str(tmp_path / "a.png"))
    plot.exports.export_picture()
    assert QImage(str(tmp_path / "a.png")).width() == 1000
    plot.exports.ask_path = answer(str(tmp_path / "b"))
    plot.exports.export_picture()
    assert (tmp_path / "b.png").is_file()
    plot.exports.ask_path = answer(str(tmp_path / "c.svg"))
    plot.exports.export_picture()
    tree = ElementTree.parse(tmp_path / "c.svg")
    assert tree.getroot().tag == "{http://www.w3.org/2000/svg}svg"
    drawing = (tmp_path / "c.svg").read_text(encoding="utf-8")
    assert LIGHT.original in drawing
    assert "% of weights" in "".join(tree.getroot().itertext())
    plot.exports.ask_path = answer(str(tmp_path / "d"))
    plot.exports.export_values()
    assert (tmp_path / "d.csv").read_text(encoding="utf-8") == "a,b\n1,2\n"
    assert asked == ["test.png", "test.png", "test.png", "test.csv"]
    plot.exports.ask_path = answer("")
    plot.exports.export_picture()
    assert len(list(tmp_path.iterdir())) == 4
    said = []
    plot.exports.failed.connect(said.append)
    for suffix in ("png", "svg"):
        plot.exports.ask_path = answer(str(tmp_path / "missing" / f"e.{suffix}"))
        plot.exports.export_picture()
    plot.exports.export_values()
    assert len(said) == 3
    assert all("missing" in line and "cannot be written" in line for line in said)


def test_nothing_half_written_is_left(plot: Plot, tmp_path: Path, monkeypatch):
    there, said = tmp_path / "a.svg", []
    there.mkdir()  # cannot be replaced by a file
    plot.exports.failed.connect(said.append)
    plot.exports.ask_path = lambda name, kinds: str(there)
    plot.exports.export_picture()
    assert "cannot be written" in said[0]
    assert list(tmp_path.iterdir()) == [there]
    monkeypatch.setattr(plot.exports, "_paint", lambda painter: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        plot.exports.export_picture()
    assert list(tmp_path.iterdir()) == [there]


def test_a_closed_plot_is_collected(qtbot):
    holder = QWidget()
    plot = Plot("weight", str, "test")
    strip = plot.strip("%", 1)
    strip.fill("original")
    strip.line("dequantized")
    strip.dashes("text", 2)
    strip.ticks("text", 0)
    plot.setParent(holder)
    gone = weakref.ref(plot)
    del plot, strip
    holder.close()
    holder.deleteLater()
    del holder
    qtbot.waitUntil(lambda: gc.collect() >= 0 and gone() is None, timeout=20_000)
