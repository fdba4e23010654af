"""The histogram panel: its texts and arrays without Qt, then the real thing on the demo checkpoint."""

from __future__ import annotations

import csv
import gc
import io
import math
import weakref
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from app.job_service import JobService
from app.jobs import Failed
from app.panels.histogram.picture import percent, short, tick_places
from app.panels.histogram.state import EMPTY, UNSELECTED, HistogramState
from app.panels.histogram.view import HistogramPanel
from app.session import Session
from core.analysis.error import ErrorSums
from core.analysis.histogram import GroupRequest, HistogramRequest, group_view, histogram
from core.checkpoints import open_checkpoint
from core.engine.model import Fate, PlannedTensor
from core.formats import get_format
from core.recipes.model import Strategy
from core.roles import role_of
from core.targets.base import Outline, OutputTensor, Plain
from tests.core.analysis.test_histogram import Memory, gaussian

DOWN = "model.layers.1.mlp.down_proj.weight"
NORM = "model.norm.weight"


def planned(checkpoint, name: str, strategy: str, **params) -> PlannedTensor:
    info = checkpoint.tensors[name]
    tensor = OutputTensor(name, Plain(name), info.shape, info.dtype, role_of(name))
    kept = strategy == "keep"
    stored = get_format(info.dtype.lower() if kept else strategy.partition("+")[0])
    chosen = Strategy(
        stored.name if not kept else "keep", strategy.partition("+")[2] or "nearest", tuple(params.items())
    )
    return PlannedTensor(tensor, Fate(chosen, stored, kept, 0, "all", "", False, stored.nbytes(info.shape)))


class Plans:
    """As much of a session as the state asks for."""

    plan = None

    def __init__(self, checkpoint, *tensors: PlannedTensor, outline: Outline | None = None) -> None:
        self.checkpoint = checkpoint
        self.by_name = {t.tensor.name: t for t in tensors}
        self.selection = tuple(self.by_name)
        self.outline = outline

    def tensor(self, name: str) -> PlannedTensor | None:
        return self.by_name.get(name)


def shown(w: torch.Tensor, strategy: str = "int4-g128", dtype: str = "F32", **params) -> HistogramState:
    checkpoint = Memory(w, dtype)
    state = HistogramState()
    assert state.follow(Plans(checkpoint, planned(checkpoint, "w", strategy, **params)))  # type: ignore[arg-type]
    state.take(histogram(state.request))
    return state


W = gaussian(64, 512)


# --- texts ----------------------------------------------------------------------------------------------------------


PERCENT = {
    0: "0 %",
    0.3: "0.3 %",
    0.615: "0.61 %",
    12.34: "12 %",
    99.99: "100 %",
    100: "100 %",
    0.00123: "0.0012 %",
    1e-7: "< 0.0001 %",
    3.0: "3 %",
    10.0: "10 %",
}
SHORT = {0.0: "0", -0.02134: "−0.0213", 1.2e-7: "1.2e-7", -3e-9: "−3e-9", math.inf: "∞", -math.inf: "−∞"}


def test_numbers_in_words():
    assert {value: percent(value) for value in PERCENT} == PERCENT
    assert {value: short(value) for value in SHORT} == SHORT
    assert short(math.nan) == "NaN"
    assert [short(value, True, 2) for value in (2.29e-05, 0.0068, 1.0)] == ["2.3e-5", "0.0068", "1.0"]
    assert [percent(value, column=True) for value in (0.3, 3.0, 0.0, 12.0)] == ["0.30 %", "3.0 %", "0 %", "12 %"]
    assert [short(value, column=True) for value in (0.1, -1.9, 462.0, 0.0)] == ["0.100", "−1.90", "462", "0"]


def test_ticks_nearer_than_two_pixels_are_a_bar():
    levels = np.array([0.0, 1.0, 2.0, 9.0])
    assert tick_places(levels, 0.5) == levels.tolist()
    assert sorted(tick_places(levels, 0.6)) == [0.0, 0.5, 1.0, 1.5, 2.0, 9.0]
    assert tick_places(None, 1.0) == []


def test_the_title_says_the_finding():
    state = shown(W)
    beyond = state.result.reach.share_beyond * 100
    assert 0.3 < beyond < 1.0
    assert state.title() == f"{percent(beyond)} of weights beyond the grid · SQNR {state.result.error.sqnr_db:.1f} dB"
    assert shown(W, "q8_0").title().startswith("No weight beyond the grid · SQNR 46.")
    assert shown(W, "q8_0", effort="exact").title().startswith("No weight beyond the grid · SQNR 45.")
    assert shown(W, "f16").title().startswith("SQNR ")
    assert shown(W, "f32").title().startswith("Farthest weight ")
    assert shown(W.bfloat16().float(), "bf16").title() == "Exact: no weight changes"
    assert shown(torch.zeros(4, 512), "q8_0").title() == "Exact: no weight changes"
    assert shown(torch.zeros(0, 512), "q8_0").title() == "The tensor is empty"
    broken = W.clone()
    broken[0, 0] = torch.nan
    assert shown(broken).title() == "1 weight is NaN or infinite"
    assert shown(torch.full((2, 256), 0.5), "keep").title() == "All weights are 0.5"


def test_the_subtitle_says_what_and_how_much():
    state = shown(W)
    assert state.subtitle() == "w  64×512 F32 → int4-g128"
    parts: list = []
    ctx = SimpleNamespace(progress=lambda *a: None, check=lambda: None, partial=parts.append)
    large = gaussian(640, 512)
    checkpoint = Memory(large)
    state.follow(Plans(checkpoint, planned(checkpoint, "w", "q8_0")))  # type: ignore[arg-type]
    histogram(state.request, ctx)
    state.take(parts[-1])
    assert "sample of 131,072 weights" in state.subtitle()
    assert shown(W, "keep").subtitle() == "w  64×512 F32 → kept as F32"


def test_statistics_and_percentiles():
    state = shown(W)
    *inner, spread = state.percentiles().split("  ")
    assert inner[0].startswith("0.1 % −0.06")
    assert spread == f"σ {short(float(W.std(correction=0)), True)}"
    low, high, zeros, largest = state.statistics().split("  ")
    assert low == f"min {short(float(W.min()), True)}"
    assert high == f"max {short(float(W.max()), True)}"
    assert zeros.startswith("zeros 0 % → ")
    assert largest.startswith("max error ")


def test_legend_names_the_group():
    state = shown(W)
    group = state.shown_group
    assert state.legend_levels() == f"16 levels (typical: row {group.row}, columns {group.start}–{group.stop - 1})"
    assert state.legend_limits() == "widest limits"
    assert state.limits() == (state.result.reach.lowest, state.result.reach.highest)
    assert "median span" in state.legend_help()
    one = shown(W, "int8-tensor")
    assert one.legend_levels() == "256 levels"
    assert one.legend_limits() == "limits"
    assert shown(W, "f16").legend_levels() == shown(W, "f16").legend_limits() == shown(W, "f16").legend_help() == ""


def test_one_group_by_hand():
    state = shown(W)
    assert state.groups == 4
    assert state.group_request() is None
    state.place = (63, 3)
    request = state.group_request()
    assert (request.row, request.column) == (63, 384)
    assert state.limits() == ()
    state.group = group_view(request)
    assert state.limits() == (state.group.group.low, state.group.group.high)
    assert state.legend_levels() == "16 levels (row 63, columns 384–511)"
    assert isinstance(request, GroupRequest)


def test_reading_off_agrees_with_the_weights():
    state = shown(W)
    state.picture(*state.home())
    text = state.read_off(0.0)
    assert text.startswith("at 0   original ")
    assert "dequantized" in text
    below = float(text.rsplit("   ", 1)[1].removesuffix(" % of all below"))
    assert below == pytest.approx(float((W < 0).float().mean() * 100), abs=0.6)
    plain = text
    state.logarithmic = True
    state.picture(*state.home())
    assert state.read_off(0.0) == plain


def test_reading_off_the_residual():
    state = shown(W)
    state.picture(*state.home())
    text = state.read_off(0.0, on_residual=True)
    assert text.startswith("at 0   residual ")
    assert "original" not in text
    kept = shown(W, "keep")
    kept.picture(*kept.home())
    assert "original" in kept.read_off(0.0, on_residual=True), "there is no other"


@pytest.mark.parametrize("w", [torch.full((4, 8), math.nan), torch.zeros(0, 8), torch.zeros(4, 0)], ids=str)
def test_nothing_finite_is_nothing_to_read_off(w: torch.Tensor):
    state = shown(w, "keep")
    state.picture(*state.home())
    assert state.read_off(0.5) == state.percentiles() == state.statistics() == ""


def test_percentiles_beside_a_weight_that_is_far_too_large():
    """A flipped bit: the bins are as wide as it is large, and say nothing of the others."""
    for rows in (64, 1024):
        w = gaussian(rows, 512)
        true = np.quantile(w.numpy(), (0.001, 0.01, 0.99, 0.999))
        w[5, 200] = 1e9
        words = shown(w, "keep").percentiles().replace("about ", "").replace("−", "-").split("  ")
        assert [float(word.rpartition(" ")[2]) for word in words[:4]] == pytest.approx(true, rel=0.25)
        assert ("about" in shown(w, "keep").percentiles()) == (rows == 1024)
    assert "about" not in shown(gaussian(1024, 512), "keep").percentiles()


def test_levels_beyond_float32_are_no_ticks_and_infinite_weights_are_said():
    largest = torch.finfo(torch.float32).max
    state = shown(torch.full((64, 256), largest), "mxfp4")
    assert math.isfinite(state.result.error.max_abs)
    assert "infinite" not in state.title()
    # What no format here makes of weights any more, a file of somebody else's may hold.
    state.result = replace(state.result, error=ErrorSums(1, 1.0, math.inf, math.inf, math.inf, math.inf))
    assert state.title() == "Weights become infinite"
    ticks = tick_places(np.array([-math.inf, -largest, 0.0, largest, math.inf]), 1e36)
    assert ticks
    assert np.isfinite(ticks).all()


def test_all_equal_leaves_nothing_outside():
    for value in (0.0, 0.3):
        state = shown(torch.full((64, 256), value), "keep")
        assert state.far_out() == ""
        told = state.percentiles().split("  ")[:4]
        assert {word.rpartition(" ")[2] for word in told} == {short(value, True)}


@pytest.mark.parametrize(("strategy", "exact"), [("int4-g128", True), ("q3_k", True), ("nf4", True), ("q4_k", False)])
def test_what_a_weight_of_zero_becomes(strategy: str, exact: bool):
    state = shown(W, strategy)
    zero = state.zero()
    levels = state.shown_group.levels
    assert zero in levels
    assert abs(zero) == np.abs(levels).min()
    assert (zero == 0) == exact
    assert state.legend_zero() == ("zero" if exact else f"nearest to zero: {short(zero)}")
    assert shown(W, "keep").zero() is None
    assert shown(W, "keep").legend_zero() == ""


def test_codes_of_several_weights_have_no_levels_and_the_legend_says_so():
    state = shown(W, "iq3_s")
    assert state.result.dequantized is not None
    assert state.legend_levels() == f"a code stands for {state.request.format.columns_per_code} weights: no levels"


# --- arrays ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("logarithmic", [False, True])
def test_curves_are_shares(logarithmic: bool):
    state = shown(W)
    state.logarithmic = logarithmic
    picture = state.picture(*state.bounds())
    for curve in (picture.original, picture.dequantized, picture.residual):
        assert curve.edges.size == curve.heights.size + 1
        assert np.isfinite(curve.heights).all()
        assert sum(picture.shares(curve)) == pytest.approx(100.0, rel=1e-9)
    assert picture.original.heights.max() < picture.top
    assert picture.residual.heights.max() < picture.residual_top
    assert (picture.bottom < 0) == logarithmic


def test_zooming_in_shows_more():
    state = shown(gaussian(512, 512))
    wide, close = state.picture(*state.bounds()).original, state.picture(-0.002, 0.002).original
    assert close.edges[1] - close.edges[0] < (wide.edges[1] - wide.edges[0]) / 8


def test_an_outlier_is_left_out_of_the_first_view_and_counted():
    w = W.clone()
    w[3, 7] = 5.0
    state = shown(w, "q8_0")
    low, high = state.home()
    assert -0.3 < low < high < 0.3
    assert state.bounds()[1] > 5.0
    assert state.far_out().endswith("outside this view")
    assert state.far_out() in state.statistics()
    assert shown(W).far_out() == ""


def test_limits_a_little_beyond_the_weights_are_in_the_first_view_and_far_ones_are_not():
    state = shown(W)
    result = state.result
    low, high = result.original.low, result.original.high
    for beyond, seen in ((0.1, True), (10.0, False)):
        reach = replace(result.reach, lowest=low - beyond * (high - low), highest=high + beyond * (high - low))
        state.result = replace(result, reach=reach)
        assert (state.home()[0] < reach.lowest and reach.highest < state.home()[1]) is seen
        assert (state.bounds()[0] < reach.lowest and reach.highest < state.bounds()[1]) is seen


def test_csv_holds_what_is_drawn():
    state = shown(W)
    assert state.csv() == ""
    picture = state.picture(*state.bounds())
    rows = list(csv.DictReader(io.StringIO(state.csv())))
    original = [r for r in rows if r["curve"] == "original"]
    assert len(original) == picture.original.heights.size
    assert sum(float(r["percent"]) for r in original) == pytest.approx(100, abs=0.01)
    assert {r["curve"] for r in rows} == {"original", "dequantized", "residual"}
    assert float(original[0]["from"]) == picture.original.edges[0]


def test_two_humps_are_said():
    rng = np.random.default_rng(3)
    centers = np.where(rng.random((256, 512)) < 0.4, 0.05, -0.04)
    w = torch.from_numpy((centers + rng.standard_normal((256, 512)) * 0.01).astype(np.float32))
    words = shown(w, "keep").title()
    assert words.startswith("Two humps, around ")
    low, high = (float(x.replace("−", "-")) for x in words.removeprefix("Two humps, around ").split(" and "))
    assert low == pytest.approx(-0.04, abs=0.004)
    assert high == pytest.approx(0.05, abs=0.004)
    assert shown(w, "int4-g128").title().startswith("Two humps, around")
    for one in (W, W.abs(), gaussian(512, 512), torch.rand(256, 512), torch.sign(W), (W * 30).round() / 30):
        assert "humps" not in shown(one, "keep").title()


def test_bins_by_freedman_and_diaconis():
    w = gaussian(512, 512)
    state = shown(w, "keep")
    x = w.numpy().ravel()
    wanted = float(np.histogram_bin_edges(x, bins="fd")[1] - np.histogram_bin_edges(x, bins="fd")[0])
    assert state.result.original.freedman_diaconis == pytest.approx(wanted, rel=0.02)
    state.by_spread = True
    curve = state.picture(*state.bounds()).original
    assert curve.edges[1] - curve.edges[0] == pytest.approx(wanted, rel=0.05)
    assert sum(curve.heights) == pytest.approx(100)
    assert math.isnan(shown(torch.zeros(4, 512), "keep").result.original.freedman_diaconis)
    few = shown(torch.zeros(4, 512), "keep")
    few.by_spread = True
    assert few.picture(*few.bounds()).original.heights.size <= 256, "no spread, no rule: 256 bins"


def one_weight_far_out(far: float) -> torch.Tensor:
    w = gaussian(512, 512)
    w[5, 200] = far
    return w


INSTEAD = "at most 256 bins in view instead"
NO_RULE = {
    "equal": (torch.full((4, 512), 0.3), f"No FD bins: all weights are equal · {INSTEAD}"),
    "one": (torch.full((1, 1), 0.3), f"No FD bins: there is only one weight · {INSTEAD}"),
    "zeros": (W * (torch.arange(512) % 4 == 0), f"No FD bins: 75 % of the weights are 0 · {INSTEAD}"),
    "far": (
        one_weight_far_out(1e6),
        f"No FD bins: the middle half of the weights lies in one counted bin, 61 wide · {INSTEAD}",
    ),
    "fine": (
        one_weight_far_out(25),
        "No FD bins: 0.000843 wide is finer than weights are counted · 0.00153 wide instead, 16,384 bins in all",
    ),
}


@pytest.mark.parametrize(("w", "words"), NO_RULE.values(), ids=NO_RULE)
def test_bins_that_the_rule_does_not_give_are_said(w: torch.Tensor, words: str):
    state = shown(w, "keep")
    assert words not in state.notes(), "nobody asked for them"
    state.by_spread = True
    assert state.notes().splitlines()[-1] == words
    step = np.diff(state.picture(*state.bounds()).original.edges[:2])[0]
    if "in all" in words:
        assert short(float(step)) in words
    else:
        assert state.picture(*state.home()).original.heights.size <= 256


def test_where_the_rule_holds_or_nothing_is_counted_there_is_nothing_to_say():
    for w in (W, gaussian(1, 3), torch.full((4, 8), math.nan), torch.zeros(0, 8), torch.sign(W)):
        state = shown(w, "keep")
        before, state.by_spread = state.notes(), True
        assert state.notes() == before


def test_other_tensors_are_laid_over_as_shares_of_equal_bins():
    wide = gaussian(256, 512) * 4
    checkpoint = Memory(W)
    other = Memory(wide)
    state = HistogramState()
    session = Plans(checkpoint, planned(checkpoint, "w", "keep"))
    second = replace(planned(other, "w", "keep"), tensor=replace(planned(other, "w", "keep").tensor, name="v"))
    session.by_name["v"] = second
    session.selection = ("w", "v")
    assert state.follow(session)  # type: ignore[arg-type]
    state.take(histogram(state.request))
    assert [r.tensor.name for r in state.overlay_request().tensors] == ["v"]
    taken = histogram(HistogramRequest(other, second.tensor))
    assert state.take_overlay(taken)
    assert state.overlay_request() is None
    assert "1 more laid over" in state.subtitle()
    picture = state.picture(-1.0, 1.0)
    first, over = picture.original, picture.others[0]
    step = first.edges[1] - first.edges[0]
    assert over.heights.sum() * (over.edges[1] - over.edges[0]) / step == pytest.approx(100, rel=0.01)
    # Four times as wide, so a quarter as high.
    assert first.heights.max() / over.heights.max() == pytest.approx(4, rel=0.15)
    rows = list(csv.DictReader(io.StringIO(state.csv())))
    assert {r["curve"] for r in rows} == {"original", "v"}
    assert sum(r["curve"] == "v" for r in rows) == over.heights.size
    read = state.read_off(0.0).split("   ")
    assert [word.split(" ")[0] for word in read[1:]][::2] == ["original", "v"]
    session.selection = ("w",)
    state.follow(session)  # type: ignore[arg-type]
    assert state.laid_over == []
    assert not state.take_overlay(taken)


# --- following ------------------------------------------------------------------------------------------------------


def test_follows_selection_and_strategy():
    checkpoint = Memory(W)
    session = Plans(None)
    state = HistogramState()
    assert not state.follow(session)  # type: ignore[arg-type]
    assert state.empty == EMPTY
    session.checkpoint = checkpoint
    assert not state.follow(session)  # type: ignore[arg-type]
    assert state.empty == UNSELECTED
    session = Plans(checkpoint, planned(checkpoint, "w", "q4_k"))
    assert state.follow(session)  # type: ignore[arg-type]
    state.take(histogram(state.request))
    state.place = (1, 1)
    assert not state.follow(session), "nothing changed"  # type: ignore[arg-type]
    session.by_name["w"] = planned(checkpoint, "w", "q2_k")
    assert state.follow(session)  # type: ignore[arg-type]
    # The old picture stays until the new one is there, and so does the chosen group.
    assert state.result.label == "q4_k"
    assert state.place == (1, 1)
    other = Memory(W)
    assert state.follow(Plans(other, planned(other, "w", "q2_k")))  # type: ignore[arg-type]
    assert state.result is None
    assert state.place is None


def test_bare_weights_never_replace_a_full_picture_of_the_same_tensor():
    state = shown(W)
    bare = replace(state.result, pending=True, dequantized=None)
    assert not state.take(bare)
    assert state.result.dequantized is not None
    assert state.take(replace(bare, name="another"))


def test_without_a_plan_only_the_weights():
    checkpoint = Memory(W)
    tensor = planned(checkpoint, "w", "q8_0").tensor
    session = Plans(checkpoint, outline=Outline((tensor,)))
    session.selection = ("w",)
    state = HistogramState()
    assert state.follow(session)  # type: ignore[arg-type]
    assert state.request.format is None


# --- the panel ------------------------------------------------------------------------------------------------------


@pytest.fixture
def bench(qtbot, demo: Path):
    """A session with the demo open, a job service, and the panel, shown."""
    session, jobs = Session(), JobService()
    panel = HistogramPanel(session, jobs)
    qtbot.addWidget(panel)
    panel.resize(640, 480)
    panel.show()
    bench = SimpleNamespace(session=session, jobs=jobs, panel=panel, checkpoint=open_checkpoint(demo))
    yield bench
    assert jobs.shutdown() == ()
    panel.close()


def select(bench, qtbot, name: str, strategy: str) -> None:
    if bench.session.checkpoint is None:
        bench.session.open(bench.checkpoint)
    bench.session.set_plan(None, {name: planned(bench.checkpoint, name, strategy)})
    bench.session.select((name,))
    qtbot.waitUntil(lambda: drawn(bench, strategy), timeout=20_000)


def drawn(bench, strategy: str) -> bool:
    result = bench.panel.state.result
    return (
        not bench.panel.busy
        and result is not None
        and result.exact
        and not result.pending
        and strategy in (result.label, "keep")
    )


def test_empty_panel_says_what_to_do(bench, qtbot):
    assert bench.panel.empty.text() == EMPTY
    assert bench.panel.plot is None, "an empty panel draws nothing"
    bench.session.open(bench.checkpoint)
    assert bench.panel.empty.text() == UNSELECTED


def test_draws_the_demo(bench, qtbot):
    select(bench, qtbot, DOWN, "q4_k")
    panel = bench.panel
    assert "SQNR 23." in panel.heading.title.text()
    assert DOWN in panel.heading.subtitle.text()
    weights = bench.checkpoint.read(DOWN).float()
    assert panel.numbers.text().startswith(f"min {short(float(weights.min()), True)}")
    edges, heights = panel._original.getData()
    assert len(edges) == len(heights) + 1
    assert heights.sum() == pytest.approx(100, abs=0.5)
    assert panel._dequantized.isVisible()
    assert panel._residual.isVisible()
    assert len(panel._levels.xvals) == 16
    assert all(line.isVisible() for line in panel._limits)
    assert panel._zero[0].isVisible()
    assert panel._zero[0].value() == panel.state.zero()
    image = panel.grab().toImage()
    colors = {image.pixelColor(x, y).name() for x in range(0, image.width(), 2) for y in range(0, image.height(), 2)}
    assert panel._theme.colors.dequantized.name() in colors
    assert "#000000" not in colors or panel._theme.dark


def test_a_change_of_strategy_redraws_and_keeps_the_zoom(bench, qtbot):
    select(bench, qtbot, DOWN, "q4_k")
    panel = bench.panel
    panel.plot.show_range(-0.05, 0.05)
    first = panel._dequantized.getData()[1].copy()
    select(bench, qtbot, DOWN, "int4-g128")
    assert panel.plot.x_range == pytest.approx((-0.05, 0.05))
    qtbot.waitUntil(
        lambda: (
            len(first) != len(panel._dequantized.getData()[1]) or bool((first != panel._dequantized.getData()[1]).any())
        )
    )
    assert "SQNR 18." in panel.heading.title.text()


def test_another_tensor_goes_home(bench, qtbot):
    select(bench, qtbot, DOWN, "q4_k")
    bench.panel.plot.show_range(-0.01, 0.01)
    select(bench, qtbot, "model.layers.0.mlp.up_proj.weight", "q4_k")
    assert bench.panel.plot.at_home


def test_a_picture_that_fails_does_not_leave_the_plot_held_back(bench, qtbot, monkeypatch):
    select(bench, qtbot, DOWN, "q4_k")
    panel = bench.panel
    with monkeypatch.context() as patch:
        patch.setattr(panel.state, "picture", lambda low, high: 1 / 0)
        with qtbot.captureExceptions() as failed:
            bench.session.select(("model.layers.0.mlp.up_proj.weight",))
            bench.session.set_plan(None, {NORM: planned(bench.checkpoint, NORM, "keep")})
            bench.session.select((NORM,))
            qtbot.waitUntil(lambda: bool(failed) and not panel.busy, timeout=20_000)
        assert failed[0][0] is ZeroDivisionError
        assert panel.plot.viewport().updatesEnabled()
    select(bench, qtbot, DOWN, "q4_k")
    assert panel._dequantized.isVisible()


def test_tab_comes_to_the_plot_before_what_stands_under_it(bench, qtbot):
    select(bench, qtbot, DOWN, "q4_k")
    panel = bench.panel
    panel.home.setFocus()
    seen = []
    for _ in range(12):
        panel.focusNextChild()
        seen.append(panel.window().focusWidget())
        if seen[-1] is panel.plot:
            break
    assert seen[-1] is panel.plot
    panel.focusNextChild()
    assert panel.window().focusWidget() is panel.scope


def test_logarithmic_axis(bench, qtbot):
    select(bench, qtbot, DOWN, "q4_k")
    bench.panel.log.click()
    assert bench.panel._weights.axis.logarithmic
    assert bench.panel._original.getData()[1].min() < 0
    bench.panel.log.click()
    assert bench.panel._original.getData()[1].min() == 0


def test_choosing_a_group(bench, qtbot):
    select(bench, qtbot, DOWN, "int4-g128")
    panel = bench.panel
    assert not panel.row.isVisible()
    panel.scope.setCurrentIndex(1)
    assert panel.row.isVisible()
    assert panel.row.maximum() == 255
    assert panel.group.maximum() == 3
    panel.row.setValue(200)
    panel.group.setValue(2)
    qtbot.waitUntil(
        lambda: (
            panel.state.group is not None
            and panel.state.group.group.row == 200
            and panel.state.group.group.start == 256
            and not panel.busy
        )
    )
    assert len(panel._rug.xvals) == 128
    assert "row 200, columns 256–383" in panel.state.legend_levels()
    # A strategy with other groups: the number stays inside.
    select(bench, qtbot, DOWN, "int4")
    qtbot.waitUntil(lambda: panel.state.group is not None and panel.state.group.group.stop == 512)
    panel.scope.setCurrentIndex(0)
    assert not panel.row.isVisible()
    qtbot.waitUntil(lambda: not panel.busy)
    assert panel._rug.xvals == []


def test_the_chosen_group_keeps_its_weights_under_another_strategy(bench, qtbot):
    select(bench, qtbot, DOWN, "int4-g128")
    panel = bench.panel
    panel.scope.setCurrentIndex(1)
    panel.row.setValue(200)
    panel.group.setValue(2)
    for strategy, group, columns in (("q4_k", 8, "256–287"), ("q6_k", 16, "256–271"), ("int4", 0, "0–511")):
        select(bench, qtbot, DOWN, strategy)
        words = f"(row 200, columns {columns})"
        qtbot.waitUntil(lambda told=words: panel.state.legend_levels().endswith(told), timeout=20_000)
        assert panel.state.place == (200, group)
        assert (panel.row.value(), panel.group.value()) == (200, group)
        assert len(panel._rug.xvals) == panel.state.width
    # No groups at all: nothing to choose, nothing chosen.
    select(bench, qtbot, DOWN, "keep")
    assert panel.state.place is None
    assert panel.scope.currentIndex() == 0
    assert not panel.row.isVisible()
    assert panel._rug.xvals == []


def test_hovering_reads_off(bench, qtbot):
    select(bench, qtbot, DOWN, "q4_k")
    bench.panel._hovered(0.01)
    assert bench.panel.numbers.text().startswith("at 0.01   original")
    bench.panel._hovered(None)
    assert bench.panel.numbers.text().startswith("min ")


def test_a_low_panel_keeps_room_for_the_plot(bench, qtbot):
    select(bench, qtbot, DOWN, "q4_k")
    panel = bench.panel
    assert panel.legend.isVisible()
    panel.resize(340, 280)
    qtbot.waitUntil(lambda: not panel.legend.isVisible() and not panel.percentiles.isVisible())
    qtbot.waitUntil(lambda: panel.plot.height() >= 130)


def test_several_selected_are_laid_over(bench, qtbot):
    select(bench, qtbot, DOWN, "q4_k")
    panel = bench.panel
    names = (DOWN, "model.layers.0.mlp.down_proj.weight", "model.layers.2.mlp.down_proj.weight")
    bench.session.set_plan(None, {n: planned(bench.checkpoint, n, "q4_k") for n in names})
    bench.session.select(names)
    qtbot.waitUntil(lambda: len(panel.state.laid_over) == 2 and not panel.busy, timeout=20_000)
    assert [item.isVisible() for item in panel._overlays] == [True, True, False, False]
    assert "2 more laid over" in panel.heading.subtitle.text()
    assert "layers.2.mlp" in panel.legend.text().replace("&nbsp;", " ")
    before = panel._original.getData()[1].size
    panel.spread.click()
    assert panel._original.getData()[1].size < before
    bench.session.select(names[:1])
    qtbot.waitUntil(lambda: not panel.busy)
    assert not any(item.isVisible() for item in panel._overlays)


def test_a_slow_tensor_takes_the_old_picture_away(bench, qtbot):
    select(bench, qtbot, DOWN, "q4_k")
    panel = bench.panel
    panel.state.request = replace(panel.state.request, tensor=replace(panel.state.request.tensor, name="another"))
    panel.state.result = None
    panel._blank()
    assert not panel.plot.isVisible()
    assert "another" in panel.heading.subtitle.text()


def test_a_kept_tensor(bench, qtbot):
    select(bench, qtbot, NORM, "keep")
    panel = bench.panel
    assert panel.heading.title.text().startswith("Farthest weight")
    assert panel.heading.subtitle.text().endswith("kept as BF16")
    assert not panel._dequantized.isVisible()
    assert not panel.scope.isEnabled()


def test_a_hidden_panel_waits(bench, qtbot):
    select(bench, qtbot, DOWN, "q4_k")
    bench.panel.hide()
    asked = []
    bench.jobs.queued.connect(asked.append)
    bench.session.set_plan(None, {NORM: planned(bench.checkpoint, NORM, "keep")})
    bench.session.select((NORM,))
    assert bench.panel._job is None
    bench.panel.show()
    qtbot.waitUntil(lambda: drawn(bench, "keep") and bench.panel.state.result.name == NORM)
    assert len(asked) == 1


def test_asking_for_bins_that_the_rule_does_not_give_says_so(bench, qtbot):
    norm = "model.layers.0.input_layernorm.weight"
    select(bench, qtbot, norm, "keep")
    panel, result = bench.panel, bench.panel.state.result
    counts = np.zeros_like(result.original.counts)
    counts[7] = result.moments.count
    panel.state.result = replace(result, original=replace(result.original, counts=counts))
    panel.spread.click()
    assert panel.notes.isVisible()
    assert panel.notes.text().startswith("No FD bins: ")
    panel.spread.click()
    assert not panel.notes.isVisible()


def test_a_failure_is_said_and_the_next_tensor_is_shown(bench, qtbot):
    select(bench, qtbot, DOWN, "q4_k")
    notices = []
    bench.session.noticed.connect(notices.append)
    bench.panel._job = 10**6
    bench.panel._finished(10**6, Failed("model.safetensors: truncated", "Traceback …"))
    assert bench.panel.heading.title.text() == "There is no histogram of this tensor"
    assert "truncated" in bench.panel.notes.text()
    assert not bench.panel.plot.isVisible()
    assert "truncated" in notices[0].text
    select(bench, qtbot, NORM, "keep")
    assert bench.panel.plot.isVisible()
    assert bench.panel.notes.text() == ""


def test_closing_the_checkpoint_empties_the_panel(bench, qtbot):
    select(bench, qtbot, DOWN, "q4_k")
    bench.session.close()
    assert bench.panel._stack.currentIndex() == 0
    assert bench.panel.empty.text() == EMPTY


def test_a_late_result_of_another_job_is_dropped(bench, qtbot):
    select(bench, qtbot, DOWN, "q4_k")
    before = bench.panel.state.result
    bench.panel._partial(10**6, replace(before, name="late"))
    assert bench.panel.state.result is before
    assert math.isfinite(before.error.sqnr_db)


def test_a_closed_panel_is_collected(qtbot, demo: Path):
    session, jobs = Session(), JobService()
    panel = HistogramPanel(session, jobs)
    panel.show()
    bench = SimpleNamespace(session=session, jobs=jobs, panel=panel, checkpoint=open_checkpoint(demo))
    select(bench, qtbot, DOWN, "q4_k")
    assert jobs.shutdown() == ()
    gone = weakref.ref(panel)
    panel.close()
    panel.deleteLater()
    del panel, bench
    qtbot.waitUntil(lambda: gc.collect() >= 0 and gone() is None, timeout=20_000)
