"""The outliers panel: its texts and arrays without Qt, then the real thing: what is planted is found."""

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
from PySide6.QtCore import Qt
from PySide6.QtWidgets import QTableView
from safetensors.torch import save_file

from app.job_service import JobService
from app.panels.outliers import findings
from app.panels.outliers.heat import Heat
from app.panels.outliers.state import EMPTY, UNSELECTED, Line, OutlierState
from app.panels.outliers.table import LineModel
from app.panels.outliers.view import OutliersPanel
from app.panels.outliers.widths import Widths
from app.pictures.oddities import SPIKE, write_oddities
from app.session import Session
from core.analysis.outliers import outliers, region
from core.calibration.statistics import Statistic, TensorStatistics
from core.checkpoints import open_checkpoint
from tests.app.test_histogram_panel import Plans, planned
from tests.core.analysis.test_histogram import Memory, gaussian

DOWN = "model.layers.1.mlp.down_proj.weight"
W = gaussian(400, 300)


def shown(w: torch.Tensor, known: TensorStatistics | None = None) -> OutlierState:
    checkpoint = Memory(w)
    session = Plans(checkpoint, planned(checkpoint, "w", "keep"))
    tensors = {} if known is None else {"w": known}
    session.plan = SimpleNamespace(known=SimpleNamespace(tensors=tensors))
    state = OutlierState()
    assert state.follow(session)  # type: ignore[arg-type]
    state.take(outliers(state.request))
    return state


# --- what is planted is found ---------------------------------------------------------------------------------------


def test_a_spike_is_named_listed_marked_and_drawn():
    w = W.clone()
    w[123, 45] = -2.5
    state = shown(w)
    assert state.title().startswith("One weight of ")
    assert "row 123, column 45" in state.title()
    assert [(s.row, s.column) for s in state.spots()] == [(123, 45)]
    assert [line.index for line in state.listed()] == [45]
    profile = state.profile(*state.home(), 1000)
    assert int(np.argmax(profile.high)) == 45
    assert np.flatnonzero(profile.beyond).tolist() == [45]
    few = state.profile(*state.home(), 20)
    assert few.high.max() == profile.high.max(), "a spike is seen however narrow the plot"
    picture = Heat().picture(state.result, (-0.5, 299.5, -0.5, 399.5), (40, 30))
    at = np.unravel_index(int(picture.values.argmax()), picture.values.shape)
    assert picture.values.max() == 2.5
    assert (at[1] + 0.5) / picture.values.shape[1] * 300 == pytest.approx(45, abs=10)
    assert (at[0] + 0.5) / picture.values.shape[0] * 400 == pytest.approx(123, abs=15)
    state.axis = "rows"
    assert [line.index for line in state.listed()] == [123]


def test_dead_columns_and_broken_weights_are_said_first():
    w = W.clone()
    w[:, 7] = 0
    state = shown(w)
    assert state.title().startswith("Column 7 is all zeros · No weight beyond 6 × RMS")
    assert state.dead() == [7.0]
    w[3] = 0
    w[4] = 0
    assert shown(w).title().startswith("Column 7 is all zeros, 2 rows are all zeros")
    w[9, 10] = torch.nan
    broken = shown(w)
    assert broken.title() == "1 weight is NaN or infinite: row 9, column 10"
    assert broken.bad() == [10.0]
    w[9, 11] = torch.inf
    assert shown(w).title() == "2 weights are NaN or infinite: row 9, column 10 first"
    assert shown(torch.zeros(4, 8)).title() == "All weights are zero"
    assert shown(torch.zeros(0, 8)).title() == "The tensor is empty"


def test_nothing_beyond_says_how_far_the_farthest_is():
    state = shown(W)
    farthest = float(W.abs().max() / W.square().mean().sqrt())
    assert state.title() == f"No weight beyond 6 × RMS; the farthest is {farthest:.1f} × RMS"
    assert len(state.listed()) == 10, "the largest, for want of outliers"


# --- the threshold --------------------------------------------------------------------------------------------------


def test_moving_the_threshold_counts_anew():
    state = shown(W)
    sizes = W.abs().numpy()
    for wanted in (0.05, 0.06, 0.07):
        state.set_threshold(wanted)
        limit = np.float32(state.threshold)
        assert state.threshold == pytest.approx(wanted, rel=0.01)
        weights, columns = int((sizes >= limit).sum()), int((sizes.max(0) >= limit).sum())
        rows = int((sizes.max(1) >= limit).sum())
        share = float((sizes.astype(float) ** 2)[sizes >= limit].sum() / (sizes.astype(float) ** 2).sum())
        text = findings.statistics(state)
        assert f"{weights:,} weight" in text
        assert f"{columns:,} column" in text
        assert f"{rows:,} row" in text
        assert f"{100 * share:.2g}"[:3] in text
        assert len(state.beyond()) == columns == len(state.listed())
        assert [line.peak for line in state.listed()] == sorted((line.peak for line in state.listed()), reverse=True)
    state.set_threshold(-1)
    state.set_threshold(math.nan)
    assert state.threshold == pytest.approx(0.07, rel=0.01)
    state.reset_threshold()
    assert state.threshold == pytest.approx(6 * state.result.rms, rel=1 / 64)


def test_every_quantity_agrees_with_the_weights():
    x = W.numpy().astype(np.float64)
    state = shown(W)
    for axis, along in (("columns", 0), ("rows", 1)):
        state.axis = axis
        for quantity, tops in (
            ("peak", np.abs(x).max(along)),
            ("range", x.max(along)),
            ("rms", np.sqrt((x**2).mean(along))),
        ):
            state.quantity = quantity
            profile = state.profile(*state.home(), 10_000)
            np.testing.assert_allclose(profile.high, tops, rtol=1e-6)
            assert profile.base <= profile.low.min() <= 0
            assert profile.high.max() < profile.top
        np.testing.assert_allclose(profile.low, 0)
        state.quantity = "kurtosis"
        assert state.profile(*state.home(), 10_000).high.mean() == pytest.approx(3, abs=0.3)
        assert not state.has_threshold
    state.quantity, state.logarithmic = "peak", True
    profile = state.profile(*state.home(), 10_000)
    np.testing.assert_allclose(10**profile.high, np.abs(x).max(1), rtol=1e-6)


def test_the_csv_holds_every_line():
    state = shown(W)
    rows = list(csv.DictReader(io.StringIO(state.csv())))
    assert len(rows) == 300
    assert float(rows[5]["highest"]) == pytest.approx(float(W[:, 5].max()), rel=1e-5)


# --- inputs ---------------------------------------------------------------------------------------------------------


def known(peak: bool) -> TensorStatistics:
    values = {Statistic.IMPORTANCE: np.full(300, 0.25, np.float32)}
    values[Statistic.IMPORTANCE][[20, 30]] = 25.0
    if peak:
        values[Statistic.ABSMAX] = np.full(300, 2.0, np.float32)
        values[Statistic.ABSMAX][[20, 30]] = [8.0, 6.0]
    return TensorStatistics(values, (100,))


def test_inputs_beyond_the_line_of_llm_int8():
    state = shown(W, known(peak=True))
    state.axis = "inputs"
    assert state.threshold == 6.0
    assert state.beyond().tolist() == [20, 30]
    assert state.title() == "2 input channels reach 6.0: 40 % of the inputs' energy"
    assert [line.index for line in state.listed()] == [20, 30]
    assert [line.x for line in state.listed()] == [8.0, 6.0]
    state.set_threshold(7.0)
    assert state.title().startswith("1 input channel reaches 7.0: ")
    state.set_threshold(9.0)
    assert state.title() == "No input channel reaches 9; the largest is 8"
    profile = state.profile(*state.home(), 10_000)
    assert profile.high[20] == 8


def test_an_importance_matrix_alone_gives_rms():
    state = shown(W, known(peak=False))
    state.axis = "inputs"
    assert state.y_label == "RMS of x"
    assert state.threshold == 3.0
    assert state.title() == "2 input channels beyond an RMS of 3: 40 % of the inputs' energy"
    assert "mean squares" in findings.notes(state)


def test_without_statistics_it_says_how_to_get_them():
    state = shown(W)
    state.axis = "inputs"
    assert state.title() == "Nothing is known of this tensor's inputs"
    assert "calibration text" in findings.notes(state)
    assert state.listed() == []
    assert state.profile(*state.home(), 100).high.max() == 0


# --- the map --------------------------------------------------------------------------------------------------------


def test_the_map_goes_closer_until_weights_are_exact():
    w = gaussian(2000, 1500)
    state, heat = shown(w), Heat()
    everything = (-0.5, 1499.5, -0.5, 1999.5)
    assert heat.closer(state.request, state.result, everything, (400, 150)) is None
    near = (99.5, 109.5, 199.5, 205.5)
    before = heat.picture(state.result, near, (400, 150))
    assert before.signed is None
    asked = heat.closer(state.request, state.result, near, (400, 150))
    assert (asked.rows, asked.columns) == ((200, 206), (100, 110))
    assert heat.closer(state.request, state.result, near, (400, 150)) is None, "asked already"
    heat.region = region(asked)
    picture = heat.picture(state.result, near, (400, 150))
    assert (picture.signed == w[200:206, 100:110].numpy()).all()
    assert (picture.left, picture.top, picture.width, picture.height) == (99.5, 199.5, 10, 6)
    text = heat.read_off(state.result, picture, 103.2, 201.9)
    assert text.startswith("row 202, column 103   ")
    heat.turned = True
    turned = heat.picture(state.result, (199.5, 205.5, 99.5, 109.5), (400, 150))
    assert (turned.signed == w[200:206, 100:110].numpy().T).all()
    heat.turned = False
    assert heat.picture(state.result, everything, (400, 150)).values.max() == float(w.abs().max())


def test_a_wide_range_is_drawn_on_a_logarithmic_scale():
    w = W.clone()
    w[1, 1] = 50.0
    picture = Heat().picture(shown(w).result, (-0.5, 299.5, -0.5, 399.5), (300, 400))
    assert picture.logarithmic
    assert picture.high == 50.0
    # Every cell holds a single weight, so sizes reach from next to nothing.
    even = Heat().picture(shown(W.abs() + 0.1).result, (-0.5, 299.5, -0.5, 399.5), (300, 400))
    assert not even.logarithmic


# --- following ------------------------------------------------------------------------------------------------------


def test_follows_the_selection_and_keeps_its_threshold_through_plans():
    checkpoint = Memory(W)
    state = OutlierState()
    session = Plans(None)
    session.plan = None
    assert not state.follow(session)  # type: ignore[arg-type]
    assert state.empty == EMPTY
    session.checkpoint = checkpoint
    state.follow(session)  # type: ignore[arg-type]
    assert state.empty == UNSELECTED
    session = Plans(checkpoint, planned(checkpoint, "w", "keep"))
    session.plan = None
    assert state.follow(session)  # type: ignore[arg-type]
    state.take(outliers(state.request))
    state.set_threshold(0.05)
    kept = state.threshold
    session.by_name["w"] = planned(checkpoint, "w", "int4-g100")
    assert not state.follow(session), "the weights are the same"  # type: ignore[arg-type]
    assert state.threshold == kept
    other = Plans(Memory(W), planned(checkpoint, "w", "keep"))
    other.plan = None
    assert state.follow(other)  # type: ignore[arg-type]
    assert state.result is None


@pytest.mark.parametrize("shape", [(0, 256), (64, 0), (0, 0)])
def test_an_empty_tensor_is_said_to_be_empty(shape: tuple[int, int]):
    state = shown(torch.zeros(shape))
    assert state.title() == "The tensor is empty"
    for state.axis in ("columns", "rows", "inputs"):
        for state.quantity in ("peak", "range", "rms", "kurtosis"):
            for state.logarithmic in (False, True):
                profile = state.profile(*state.home(), 16)
                assert np.isfinite(profile.high).all()
                assert profile.edges.size == profile.high.size + 1
                assert profile.top > profile.base


def test_thresholds_at_the_ends_of_float32():
    largest = float(np.finfo(np.float32).max)
    state = shown(torch.full((64, 256), largest))
    assert state.threshold == math.inf
    assert state.beyond().size == 0
    assert "No weight beyond 6 × RMS" in state.title()
    assert "beyond" not in findings.statistics(state)
    state.set_threshold(1e60)  # what no weight can reach is no threshold
    assert state.chosen is None
    state.set_threshold(1e38)
    assert state.beyond().size == 256
    tiny = shown(gaussian(64, 256) * 1e-42)
    assert tiny.threshold > 0
    assert tiny.beyond().size == 0


# --- the panel ------------------------------------------------------------------------------------------------------


@pytest.fixture
def bench(qtbot, tmp_path: Path):
    """A session with the odd checkpoint at hand, a job service, and the panel, shown."""
    session, jobs = Session(), JobService()
    panel = OutliersPanel(session, jobs)
    qtbot.addWidget(panel)
    panel.resize(640, 560)
    panel.show()
    checkpoint = open_checkpoint(write_oddities(tmp_path))
    bench = SimpleNamespace(session=session, jobs=jobs, panel=panel, checkpoint=checkpoint)
    yield bench
    assert jobs.shutdown() == ()
    panel.close()


def select(bench, qtbot, name: str) -> None:
    if bench.session.checkpoint is None:
        bench.session.open(bench.checkpoint)
    bench.session.set_plan(None, {name: planned(bench.checkpoint, name, "keep")})
    bench.session.select((name,))
    qtbot.waitUntil(lambda: ready(bench.panel, name), timeout=20_000)


def ready(panel: OutliersPanel, name: str) -> bool:
    result = panel.state.result
    return result is not None and result.exact and result.name == name and not panel.busy


def test_empty_panel_says_what_to_do(bench, qtbot):
    assert bench.panel.empty.text() == EMPTY
    assert bench.panel.plot is None
    bench.session.open(bench.checkpoint)
    assert bench.panel.empty.text() == UNSELECTED


def test_draws_what_is_odd(bench, qtbot):
    select(bench, qtbot, SPIKE)
    panel = bench.panel
    assert "Column 77 is all zeros" in panel.heading.title.text()
    assert panel.model.rowCount() == 4
    assert panel.model.data(panel.model.index(0, 0)) == "1,033"
    assert panel.bars.dead.xvals == [77.0]
    assert len(panel.map.marks.points()) == 4
    assert panel.bars.lines[0].isVisible()
    assert not panel.bars.lines[1].isVisible()
    image = panel.grab().toImage()
    colors = {image.pixelColor(x, y).name() for x in range(image.width()) for y in range(0, image.height(), 3)}
    assert panel._theme.colors.residual.name() in colors
    assert panel.scale.labels[1].startswith("1.9")


def test_an_empty_tensor_is_drawn(bench, qtbot, tmp_path: Path):
    path = tmp_path / "empty.safetensors"
    save_file({"none": torch.zeros(0, 256), "some": torch.ones(4, 256)}, path)
    bench.checkpoint = open_checkpoint(path)
    select(bench, qtbot, "none")
    assert bench.panel.heading.title.text() == "The tensor is empty"
    select(bench, qtbot, "some")
    assert bench.panel.plot.viewport().updatesEnabled()
    assert bench.panel.bars.high.getData()[1].max() == 1.0


def test_nan_is_marked(bench, qtbot):
    select(bench, qtbot, "model.layers.0.mlp.up_proj.weight")
    panel = bench.panel
    assert panel.heading.title.text() == "1 weight is NaN or infinite: row 700, column 40"
    assert panel.bars.bad.xvals == [40.0]
    assert [(p.pos().x(), p.pos().y()) for p in panel.map.marks.points()] == [(40, 700)]


def test_dragging_the_line_moves_the_list(bench, qtbot):
    select(bench, qtbot, SPIKE)
    panel = bench.panel
    panel.bars.lines[0].setPos(1.2)
    panel.bars.drag(panel.bars.lines[0])
    assert panel.model.rowCount() == 1
    assert panel.limit.text() == "1.2"
    panel.log.click()
    panel.bars.lines[0].setPos(math.log10(0.8))
    panel.bars.drag(panel.bars.lines[0])
    assert panel.state.threshold == pytest.approx(0.8, rel=0.01)
    assert panel.model.rowCount() == 3
    panel.limit.setText("0.9")
    panel.limit.editingFinished.emit()
    assert panel.model.rowCount() == 2
    panel.limit.setText("many")
    panel.limit.editingFinished.emit()
    assert panel.limit.text() == "0.898", "the nearest step"
    panel.reset.click()
    assert panel.model.rowCount() == 4


def test_the_list_leads_to_its_line_and_the_map_to_exact_weights(bench, qtbot):
    select(bench, qtbot, SPIKE)
    panel = bench.panel
    panel.list.clicked.emit(panel.model.index(0, 0))
    low, high = panel.plot.x_range
    assert low < 1033 < high
    assert high - low < 100
    panel.plot.show_range(1029.5, 1036.5)
    panel.map.box.setYRange(307.5, 314.5, padding=0)
    qtbot.waitUntil(lambda: panel._shown is not None and panel._shown.signed is not None, timeout=10_000)
    qtbot.waitUntil(lambda: panel.map.texts.written > 0, timeout=5_000)
    assert panel._shown.signed.max() == np.float32(1.9)
    panel.home.click()
    assert panel.plot.at_home
    qtbot.waitUntil(lambda: panel.map.box.viewRange()[1][1] > 500)


def test_every_axis_and_quantity_draws(bench, qtbot):
    select(bench, qtbot, SPIKE)
    panel = bench.panel
    for axis in range(panel.axis.count()):
        panel.axis.setCurrentIndex(axis)
        for quantity in range(panel.quantity.count()):
            panel.quantity.setCurrentIndex(quantity)
            panel.grab()
    assert "calibration" in panel.notes.text()
    assert panel.quantity.isEnabled() is False


def words_are_whole(table, model) -> list[int]:
    """Which columns are shown; their words fit, and they fill the table."""
    heads = table.horizontalHeader().fontMetrics()
    shown = [s for s in range(model.columnCount()) if not table.isColumnHidden(s)]
    for section in shown:
        title = model.headerData(section, Qt.Orientation.Horizontal)
        assert heads.horizontalAdvance(title) + 16 <= table.columnWidth(section), title
    assert sum(table.columnWidth(s) for s in shown) == table.viewport().width()
    return shown


def test_the_words_over_the_list_are_whole(bench, qtbot):
    select(bench, qtbot, SPIKE)
    table, model = bench.panel.list, bench.panel.model
    lines = [replace(line, x=12345.678) for line in bench.panel.state.listed()]
    assert lines
    bench.panel.resize(508, 480)  # as wide as in a window of 1280 pixels
    model.show(lines, "input channel")
    assert words_are_whole(table, model) == [0, 1, 2, 3, 4, 5]
    bench.panel.resize(640, 480)
    qtbot.waitUntil(lambda: table.viewport().width() > 560)
    assert words_are_whole(table, model) == [0, 1, 2, 3, 4, 5]


def test_where_not_all_words_have_room_some_columns_are_given_up(qtbot):
    table = QTableView()
    qtbot.addWidget(table)
    model = LineModel(table)
    table.setModel(model)
    Widths(table)
    model.show([Line(7, 0.5, 3.0, 9.0, 0.1, 2.0)], "input channel")
    table.show()
    counts = []
    for width in (500, 420, 360):
        table.resize(width, 200)
        counts.append(words_are_whole(table, model))
    assert counts == [[0, 1, 2, 3, 4, 5], [0, 1, 2, 4, 5], [0, 1, 4, 5]]
    table.close()


def test_another_tensor_while_one_is_on_its_way(bench, qtbot):
    session, panel = bench.session, bench.panel
    session.open(bench.checkpoint)
    names = [SPIKE, "model.layers.0.mlp.gate_proj.weight", "model.layers.0.self_attn.q_proj.weight"]
    session.set_plan(None, {n: planned(bench.checkpoint, n, "keep") for n in names})
    for _ in range(5):
        for name in names:
            session.select((name,))
            assert panel.state.result is None or panel.state.result.name == name
            qtbot.wait(5)
    qtbot.waitUntil(lambda: ready(panel, names[-1]), timeout=20_000)
    assert names[-1] in panel.heading.subtitle.text()
    assert panel.plot.isVisible()


def test_a_slow_tensor_takes_the_old_picture_away(bench, qtbot):
    select(bench, qtbot, SPIKE)
    panel = bench.panel
    panel.state.request = replace(panel.state.request, tensor=replace(panel.state.request.tensor, name="another"))
    panel.state.result = None
    panel.blank()
    assert not panel.plot.isVisible()
    assert "another" in panel.heading.subtitle.text()
    assert panel.heading.title.text() == ""


def test_closing_the_checkpoint_empties_the_panel(bench, qtbot):
    select(bench, qtbot, SPIKE)
    bench.session.close()
    assert bench.panel._stack.currentIndex() == 0
    assert bench.panel.state.result is None


def test_closes_and_is_collected(qtbot, tmp_path: Path):
    session, jobs = Session(), JobService()
    panel = OutliersPanel(session, jobs)
    panel.show()
    checkpoint = open_checkpoint(write_oddities(tmp_path))
    bench = SimpleNamespace(session=session, jobs=jobs, panel=panel, checkpoint=checkpoint)
    select(bench, qtbot, SPIKE)
    assert jobs.shutdown() == ()
    gone = weakref.ref(panel)
    panel.close()
    panel.deleteLater()
    del panel, bench
    qtbot.waitUntil(lambda: gc.collect() >= 0 and gone() is None, timeout=20_000)
