"""Outliers against numpy and scipy-like arithmetic written here: what is planted is found, compiled or not."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from core.analysis import outliers as module
from core.analysis.outlier_tally import CELLS, SAMPLE_WEIGHTS, SHIFT, Tally, survey_rows_numpy
from core.analysis.outliers import (
    Inputs,
    OutlierRequest,
    OutlierResult,
    RegionRequest,
    edge,
    outliers,
    reduced,
    region,
)
from core.calibration.statistics import Statistic, TensorStatistics
from core.errors import Cancelled, UnsupportedFormat
from core.roles import role_of
from core.targets.base import OutputTensor, Plain
from tests.core.analysis.test_histogram import Memory, Watcher, gaussian


def request_of(w: torch.Tensor, dtype: str = "F32") -> OutlierRequest:
    return OutlierRequest(Memory(w, dtype), OutputTensor("w", Plain("w"), tuple(w.shape), dtype, role_of("w")))


def ask(w: torch.Tensor, ctx=None) -> OutlierResult:
    return outliers(request_of(w), *([ctx] if ctx is not None else []))


def kurtosis(x: np.ndarray) -> float:
    d = x.astype(np.float64) - x.astype(np.float64).mean()
    return float((d**4).mean() / (d**2).mean() ** 2)


LARGE = gaussian(1100, 1000)  # beyond the sample, in slices of an odd number of rows


@pytest.mark.parametrize("w", [gaussian(64, 96), LARGE, gaussian(3, 5), gaussian(1, 2000), gaussian(2000, 1)])
def test_rows_and_columns_agree_with_numpy(w: torch.Tensor):
    found, x = ask(w), w.numpy()
    assert found.exact
    assert (found.rows, found.columns, found.seen, found.count) == (*x.shape, x.shape[0], x.size)
    for lines, axis in ((found.column, 0), (found.row, 1)):
        assert (lines.low == x.min(axis)).all()
        assert (lines.high == x.max(axis)).all()
        assert (lines.peak == np.abs(x).max(axis)).all()
        np.testing.assert_allclose(lines.energy, (x.astype(np.float64) ** 2).sum(axis), rtol=1e-9)
        assert not lines.bad.any()
        for i in (0, lines.low.size - 1):
            along = x[:, i] if axis == 0 else x[i]
            if along.size > 1:
                assert lines.kurtosis[i] == pytest.approx(kurtosis(along), rel=1e-7)
            else:
                assert math.isnan(lines.kurtosis[i])
    assert found.rms == pytest.approx(math.sqrt((x.astype(np.float64) ** 2).mean()), rel=1e-9)
    assert found.kurtosis == pytest.approx(kurtosis(x), rel=1e-7)
    largest = np.sort(np.abs(x).ravel())[::-1][: len(found.spots)]
    assert [abs(s.value) for s in found.spots] == largest.tolist()
    assert all(x[s.row, s.column] == np.float32(s.value) for s in found.spots)


def test_one_spike_among_many_is_found_and_placed():
    w = LARGE.clone()
    w[777, 123] = -9.0
    found = ask(w)
    assert (found.spots[0].row, found.spots[0].column, found.spots[0].value) == (777, 123, -9.0)
    assert int(np.argmax(found.column.peak)) == 123
    assert int(np.argmax(found.row.peak)) == 777
    at = np.unravel_index(int(np.nanargmax(found.heat)), found.heat.shape)
    assert (at[0], at[1]) == (777 // found.row_step, 123 // found.column_step)
    assert found.heat.max() == 9.0
    assert max(found.heat.shape) <= CELLS
    assert found.column.kurtosis[123] > 100
    assert found.magnitudes.beyond(edge(0))[0] == w.numel()
    count, share = found.magnitudes.beyond(found.magnitudes.snapped(5.0))
    assert count == 1
    assert share == pytest.approx(81 / float((w.double() ** 2).sum()), rel=1e-9)


def test_dead_lines_and_weights_that_are_not_finite():
    w = LARGE.clone()
    w[:, 17] = 0
    w[5] = 0
    w[300, 40], w[301, 41] = torch.nan, -torch.inf
    found = ask(w)
    assert found.column.dead.tolist() == [17]
    assert found.row.dead.tolist() == [5]
    assert (found.nan, found.infinite) == (1, 1)
    assert [(s.row, s.column) for s in found.bad] == [(300, 40), (301, 41)]
    assert np.flatnonzero(found.row.bad).tolist() == [300, 301]
    assert np.flatnonzero(found.column.bad).tolist() == [40, 41]
    finite = w[:, 40][torch.isfinite(w[:, 40])]
    assert found.column.high[40] == float(finite.max())
    assert np.isfinite(found.heat).all()
    assert math.isfinite(found.rms)
    everything = ask(torch.full((4, 8), torch.nan))
    assert everything.nan == 32
    assert np.isnan(everything.row.peak).all()
    assert math.isnan(everything.rms)


def test_first_a_sample_then_everything():
    w = LARGE.clone()
    w[777, 123] = 9.0
    watcher = Watcher()
    final = ask(w, watcher)
    first = watcher.partials[0]
    assert not first.exact
    assert first.count <= SAMPLE_WEIGHTS
    assert 0 < first.seen < 1100
    assert np.isnan(first.row.peak).sum() == 1100 - first.seen
    assert np.isfinite(first.heat).all(), "rows to come look like their neighbours"
    assert (first.column.peak <= final.column.peak).all()
    assert final.exact
    assert watcher.progressed[-1] == (w.numel(), w.numel())
    with pytest.raises(Cancelled):
        ask(w, Watcher(cancel_at=watcher.checks))


def test_what_is_known_so_far_is_filled_up_with_the_sample(monkeypatch):
    monkeypatch.setattr(module, "PARTIAL_SECONDS", 0.0)
    monkeypatch.setattr(module, "SLICE_WEIGHTS", 1 << 17)
    watcher = Watcher()
    final = ask(LARGE, watcher)
    first, later = watcher.partials[0], watcher.partials[-1]
    assert later.seen > first.seen
    both = np.isfinite(first.row.peak)
    assert np.isfinite(later.row.peak[both]).all()
    assert (later.row.peak[np.isfinite(later.row.peak)] == final.row.peak[np.isfinite(later.row.peak)]).all()


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 40),
    st.integers(1, 80),
    st.integers(0, 2**31),
    st.sampled_from([0.0, 0.1, 1.0]),
    st.booleans(),
)
def test_compiled_and_plain_agree(rows: int, columns: int, seed: int, holes: float, tiny: bool):
    from core.analysis.outlier_kernel import survey_rows

    rng = np.random.default_rng(seed)
    x = (rng.standard_normal((rows, columns)) * (1e-40 if tiny else 1.0)).astype(np.float32)
    x[rng.random(x.shape) < holes / 2] = np.nan
    x[rng.random(x.shape) < holes / 4] = -np.inf
    found = []
    for survey in (survey_rows, survey_rows_numpy):
        tally = Tally(OutputTensor("w", Plain("w"), (rows + 3, columns), "F32", role_of("w")))
        tally._steps[:] = 2, 3
        tally._heat = np.full((-(-(rows + 3) // 2), -(-columns // 3)), -1, np.int32)
        parts = [tally._ends, tally._sums, tally._row_ends[3:], tally._row_sums[3:], tally._column_bad]
        parts += [tally._row_bad[3:], tally._counts, tally._energy, tally._heat]
        survey(x, x.view(np.int32), *parts, 3, tally._steps, SHIFT)
        found.append(parts)
    for a, b in zip(*found, strict=True):
        if a.dtype == np.float64:
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-300)
        else:
            assert (a == b).all()


def test_thresholds_are_edges():
    found = ask(gaussian(64, 64))
    x = np.abs(gaussian(64, 64).numpy())
    for wanted in (0.01, 0.02, 0.05):
        limit = found.magnitudes.snapped(wanted)
        assert limit == pytest.approx(wanted, rel=1 / 64)
        assert found.magnitudes.beyond(limit)[0] == int((x >= np.float32(limit)).sum())
        assert found.magnitudes.snapped(limit) == limit


def test_a_region_shows_the_weights_themselves():
    w = LARGE
    base = request_of(w)
    close = region(RegionRequest(base.checkpoint, base.tensor, (10, 20), (30, 45), (100, 100)))
    assert close.exact
    assert (close.values == w[10:20, 30:45].numpy()).all()
    wide = region(RegionRequest(base.checkpoint, base.tensor, (0, 1100), (0, 1000), (100, 64)))
    assert (wide.row_step, wide.column_step) == (11, 16)
    assert (wide.values == reduced(w.abs().numpy(), 11, 16)).all()
    assert wide.values[3, 4] == float(w[33:44, 64:80].abs().max())


def test_inputs_are_the_widest_of_experts():
    assert Inputs.of(None) is None
    peak, mean = np.array([1, 7, 2], np.float32), np.array([1, 4, 0.25], np.float32)
    one = Inputs.of(TensorStatistics({Statistic.ABSMAX: peak, Statistic.IMPORTANCE: mean}, (9,)))
    assert one.peak.tolist() == [1, 7, 2]
    assert one.rms.tolist() == [1, 2, 0.5]
    stacked = {Statistic.IMPORTANCE: np.stack([mean, 4 * mean])}
    two = Inputs.of(TensorStatistics(stacked, (9, 9), stacked=True))
    assert two.peak is None
    assert two.rms.tolist() == [2, 4, 1]
    assert two.experts == 2


def test_refuses_complex_numbers():
    with pytest.raises(UnsupportedFormat, match="complex"):
        outliers(request_of(torch.zeros(2, 2), "C64"))


def test_empty_and_zero_tensors():
    empty = ask(torch.zeros(0, 8))
    assert empty.exact
    assert empty.count == 0
    assert empty.spots == ()
    zero = ask(torch.zeros(4, 8))
    assert zero.rms == 0
    assert zero.column.dead.size == 8
