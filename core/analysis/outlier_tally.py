"""Rows, columns, sizes and places of large weights: the records that the outliers panel receives, and the tally that
fills them slice by slice. Which tensor is read, and when a picture is handed over, is the business of outliers.py."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from core.formats.checks import FLOAT32_LARGEST

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from core.targets.base import OutputTensor

# Weights of the first picture; more than these at once are worth the compiled pass.
SAMPLE_WEIGHTS = 1 << 19
# Cells of the map in either direction, at most.
CELLS = 512
# Largest weights whose places are told, and the first places of weights that are not finite.
SPOTS = 16
# |w| is counted by the upper bits of its float: 64 steps to the octave.
SHIFT = 17
MAGNITUDES = 1 << (31 - SHIFT)


@dataclass(frozen=True, eq=False)
class Lines:
    """Every row, or every column. Lines that were not looked at, or hold nothing finite, are NaN throughout.

    low, high   float32 [n]
    energy      float64 [n]: Σw²
    kurtosis    float64 [n]: of the values around their mean, 3 for a Gaussian; NaN where all are equal
    bad         int64 [n]: NaN and infinities
    """

    low: NDArray[np.float32]
    high: NDArray[np.float32]
    energy: NDArray[np.float64]
    kurtosis: NDArray[np.float64]
    bad: NDArray[np.int64]

    @cached_property
    def peak(self) -> NDArray[np.float32]:
        """Largest |w|, float32 [n]."""
        return np.maximum(np.abs(self.low), np.abs(self.high))

    @cached_property
    def dead(self) -> NDArray[np.int64]:
        """Lines of nothing but zeros."""
        return np.flatnonzero((self.peak == 0) & (self.bad == 0))


@dataclass(frozen=True, slots=True)
class Spot:
    row: int
    column: int
    value: float


@dataclass(frozen=True, eq=False)
class Magnitudes:
    """Weights and Σw² by size; thresholds are edges of 64 steps to the octave, and counts are exact at them."""

    counts: NDArray[np.int64]
    energy: NDArray[np.float64]

    def snapped(self, threshold: float) -> float:
        """The nearest edge above 0, infinity for what float32 does not reach: no weight is beyond that."""
        if threshold > FLOAT32_LARGEST:
            return math.inf
        return edge(max(1, _bin(threshold) + (_fraction(threshold) >= 0.5)))

    def beyond(self, threshold: float) -> tuple[int, float]:
        """Weights with |w| ≥ an edge, and their share of all energy; 0 when there is none."""
        first = _bin(threshold)
        total = float(self.energy.sum())
        return int(self.counts[first:].sum()), float(self.energy[first:].sum()) / total if total else 0.0


def edge(index: int) -> float:
    """The lowest |w| of a step."""
    return float(np.int32(index << SHIFT).view(np.float32))


def _bin(value: float) -> int:
    return int(np.float32(abs(value)).view(np.int32)) >> SHIFT


def _fraction(value: float) -> float:
    return (int(np.float32(abs(value)).view(np.int32)) & ((1 << SHIFT) - 1)) / (1 << SHIFT)


@dataclass(frozen=True, eq=False)
class OutlierResult:
    """What the panel draws, and no tensors.

    exact       over the whole tensor; else over `seen` rows
    row, column  every row and every column
    count       weights seen; nan, infinite: of those
    rms, kurtosis  of all finite weights
    heat        float32 [h, w]: the largest |w| of cells of row_step × column_step weights; cells that were not
                seen take the value of the nearest row that was
    spots       the largest weights, largest first; of all rows seen
    bad         the first weights that are not finite
    """

    name: str
    rows: int
    columns: int
    exact: bool
    seen: int
    row: Lines
    column: Lines
    count: int
    nan: int
    infinite: int
    rms: float
    kurtosis: float
    magnitudes: Magnitudes
    heat: NDArray[np.float32]
    row_step: int
    column_step: int
    spots: tuple[Spot, ...]
    bad: tuple[Spot, ...]


class Tally:
    """Adds up slices of rows, each row once, in any order."""

    def __init__(self, tensor: OutputTensor) -> None:
        self._rows, self._columns = rows, columns = tensor.rows, tensor.columns
        self.count = self.seen_rows = self.nan = 0
        self._ends = np.empty((2, columns), np.float32)
        self._row_ends = np.empty((rows, 2), np.float32)
        for low, high in (self._ends, self._row_ends.T):
            low.fill(np.inf)
            high.fill(-np.inf)
        self._sums = np.zeros((4, columns))
        self._row_sums = np.zeros((rows, 4))
        self._column_bad, self._row_bad = np.zeros(columns, np.int64), np.zeros(rows, np.int64)
        self._counts, self._energy = np.zeros(MAGNITUDES, np.int64), np.zeros(MAGNITUDES)
        self._steps = np.array([max(1, -(-rows // CELLS)), max(1, -(-columns // CELLS))], np.int64)
        # −1: not seen yet.
        self._heat = np.full((-(-rows // int(self._steps[0])), -(-columns // int(self._steps[1]))), -1, np.int32)
        self._seen = np.zeros(rows, bool)
        self._spots: list[Spot] = []
        self._bad: list[Spot] = []

    def add(self, start: int, w: Tensor) -> None:
        """Rows from start on, floating [n, columns]."""
        from core.formats.fitting.compiled import available

        x = float32(w)
        if not x.size:
            return
        stop = start + x.shape[0]
        parts = (
            x,
            x.view(np.int32),
            self._ends,
            self._sums,
            self._row_ends[start:stop],
            self._row_sums[start:stop],
            self._column_bad,
            self._row_bad[start:stop],
            self._counts,
            self._energy,
            self._heat,
            start,
            self._steps,
            SHIFT,
        )
        if x.size > SAMPLE_WEIGHTS and available():
            from core.analysis.outlier_kernel import survey_rows

            survey_rows(*parts)
        else:
            survey_rows_numpy(*parts)
        self.count += x.size
        self.seen_rows += x.shape[0]
        self._seen[start:stop] = True
        self._find(x, start, stop)

    def _find(self, x: NDArray[np.float32], start: int, stop: int) -> None:
        """The places of the largest weights, and of those that are not finite."""
        bad_rows = np.flatnonzero(self._row_bad[start:stop])
        for row in bad_rows:
            self.nan += int(np.count_nonzero(np.isnan(x[row])))
            for column in np.flatnonzero(~np.isfinite(x[row])):
                if len(self._bad) < SPOTS:
                    self._bad.append(Spot(start + int(row), int(column), float(x[row, column])))
        with np.errstate(invalid="ignore"):
            ends = np.abs(self._row_ends[start:stop]).max(1, initial=0, where=np.isfinite(self._row_ends[start:stop]))
        least = abs(self._spots[-1].value) if len(self._spots) == SPOTS else 0.0
        rows = np.flatnonzero(ends > least)
        # Each of the largest weights lies in one of the rows with the largest ends.
        for row in rows[np.argsort(-ends[rows], kind="stable")[:SPOTS]]:
            size = np.where(np.isfinite(x[row]), np.abs(x[row]), 0)
            take = min(SPOTS, size.size)
            for column in np.argpartition(-size, take - 1)[:take]:
                if size[column] > least:
                    self._spots.append(Spot(start + int(row), int(column), float(x[row, column])))
        self._spots = sorted(self._spots, key=lambda s: (-abs(s.value), s.row, s.column))[:SPOTS]

    def result(self, name: str, before: Tally | None = None) -> OutlierResult:
        """before: a sample, which fills in for the rows that are still to come."""
        finite = self._counts.sum()
        whole = self._sums.sum(1)
        kurtosis = kurtosis_of(whole[:, None], np.array([finite]))[0]
        bad = int(self._row_bad.sum())
        row = _lines(self._row_ends.T, self._row_sums.T, self._columns - self._row_bad, self._row_bad, self._seen)
        heat = self._heat
        if before is not None:
            heat = np.maximum(heat, before._heat)
            row = _joined(row, before.result(name).row, self._seen)
        seen = np.full(self._columns, self.seen_rows > 0)
        return OutlierResult(
            name,
            self._rows,
            self._columns,
            self.seen_rows == self._rows,
            self.seen_rows,
            row,
            _lines(self._ends, self._sums, self.seen_rows - self._column_bad, self._column_bad, seen),
            self.count,
            self.nan,
            bad - self.nan,
            math.sqrt(whole[1] / finite) if finite else math.nan,
            float(kurtosis),
            Magnitudes(self._counts.copy(), self._energy.copy()),
            _filled(heat),
            int(self._steps[0]),
            int(self._steps[1]),
            tuple(self._spots),
            tuple(self._bad),
        )


def _lines(
    ends: NDArray[np.float32],
    sums: NDArray[np.float64],
    finite: NDArray[np.int64],
    bad: NDArray[np.int64],
    seen: NDArray[np.bool_],
) -> Lines:
    known = seen & (finite > 0)
    low, high = (np.where(known, end, np.nan).astype(np.float32) for end in ends)
    energy = np.where(known, sums[1], np.nan)
    return Lines(low, high, energy, np.where(known, kurtosis_of(sums, finite), np.nan), bad.copy())


def _joined(a: Lines, b: Lines, first: NDArray[np.bool_]) -> Lines:
    return Lines(*(np.where(first, getattr(a, f), getattr(b, f)) for f in ("low", "high", "energy", "kurtosis", "bad")))


def kurtosis_of(sums: NDArray[np.float64], count: NDArray[np.int64]) -> NDArray[np.float64]:
    """E(w−μ)⁴ / (E(w−μ)²)² from Σw … Σw⁴ [4, n]; NaN where all values are equal, or there are none."""
    with np.errstate(invalid="ignore", divide="ignore"):
        mean, second, third, fourth = sums / count
        variance = second - mean * mean
        central = fourth - 4 * mean * third + 6 * mean**2 * second - 3 * mean**4
        # What is left of equal values after rounding is no spread.
        return np.where(variance > 1e-12 * second, central / variance**2, np.nan)


def _filled(heat: NDArray[np.int32]) -> NDArray[np.float32]:
    """|w| of all cells; those of rows that were not seen as in the nearest row that was."""
    seen = np.flatnonzero((heat >= 0).any(1))
    if not seen.size:
        return np.full(heat.shape, np.nan, np.float32)
    at = np.arange(heat.shape[0])
    right = np.minimum(np.searchsorted(seen, at), seen.size - 1)
    left = np.maximum(right - 1, 0)
    nearest = np.where(abs(seen[right] - at) <= abs(seen[left] - at), seen[right], seen[left])
    filled = heat[nearest]
    return np.where(filled >= 0, filled.view(np.float32), np.float32(np.nan))


def survey_rows_numpy(
    x: NDArray[np.float32],
    bits: NDArray[np.int32],
    ends: NDArray[np.float32],
    sums: NDArray[np.float64],
    row_ends: NDArray[np.float32],
    row_sums: NDArray[np.float64],
    column_bad: NDArray[np.int64],
    row_bad: NDArray[np.int64],
    counts: NDArray[np.int64],
    energy: NDArray[np.float64],
    heat: NDArray[np.int32],
    first: int,
    steps: NDArray[np.int64],
    shift: int,
) -> None:
    """outlier_kernel.survey_rows without a compiler."""
    finite = np.isfinite(x)
    all_finite = bool(finite.all())
    if not all_finite:
        column_bad += (~finite).sum(0)
        row_bad += (~finite).sum(1)
    for axis, low, high in ((0, ends[0], ends[1]), (1, row_ends[:, 0], row_ends[:, 1])):
        where: NDArray[np.bool_] | bool = True if all_finite else finite
        np.minimum(low, x.min(axis, initial=np.inf, where=where), out=low)
        np.maximum(high, x.max(axis, initial=-np.inf, where=where), out=high)
    d = (x if all_finite else np.where(finite, x, np.float32(0))).astype(np.float64)
    power = d
    for p in range(4):
        sums[p] += power.sum(0)
        row_sums[:, p] += power.sum(1)
        power = power * d
    size = (bits & 0x7FFFFFFF)[finite]
    index = size >> shift
    counts += np.bincount(index, minlength=counts.size)
    energy += np.bincount(index, (d * d)[finite], minlength=energy.size)
    cells = np.where(finite, bits & 0x7FFFFFFF, -1)
    rows = np.arange(first, first + x.shape[0]) // steps[0]
    begins = np.flatnonzero(np.diff(rows, prepend=-1))
    most = np.maximum.reduceat(np.maximum.reduceat(cells, begins, 0), np.arange(0, x.shape[1], steps[1]), 1)
    part = heat[rows[0] : rows[-1] + 1]
    np.maximum(part, most, out=part)


def float32(w: Tensor) -> NDArray[np.float32]:
    import torch

    return w.detach().to("cpu", torch.float32).contiguous().numpy()
