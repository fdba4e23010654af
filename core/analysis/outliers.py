"""Where a tensor's large weights are: ends, energy and kurtosis of every row and column, how much lies beyond any
threshold, the largest weights by place, and a map of |W| in which a cell shows its largest weight, so that one spike
among 268 million is seen.

A picture is wanted at once, so runs of rows come first, as a partial result, then everything. Values are looked at in
float32. What is known of a layer's inputs is of the same kind: see `Inputs`.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from core.analysis.error import sample_runs
from core.analysis.outlier_tally import SAMPLE_WEIGHTS, Lines, Magnitudes, OutlierResult, Spot, Tally, edge, float32
from core.calibration.statistics import Statistic, TensorStatistics
from core.context import SILENT, JobContext
from core.errors import UnsupportedFormat

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from core.checkpoints.base import Checkpoint
    from core.targets.base import OutputTensor

# Weights of one slice of the exact pass.
SLICE_WEIGHTS = 1 << 20
PARTIAL_SECONDS = 0.4
# LLM.int8(): input channels whose activations reach this are outliers.
ACTIVATION_THRESHOLD = 6.0

__all__ = [
    "Inputs",
    "Lines",
    "Magnitudes",
    "OutlierRequest",
    "OutlierResult",
    "Region",
    "RegionRequest",
    "Spot",
    "edge",
    "outliers",
    "reduced",
    "region",
    "worst_first",
]


@dataclass(frozen=True)
class OutlierRequest:
    checkpoint: Checkpoint
    tensor: OutputTensor


@dataclass(frozen=True)
class RegionRequest:
    """A part of the map, rows first … last − 1 and columns alike, in at most cells of it."""

    checkpoint: Checkpoint
    tensor: OutputTensor
    rows: tuple[int, int]
    columns: tuple[int, int]
    cells: tuple[int, int]


@dataclass(frozen=True, eq=False)
class Region:
    """values float32: the weights themselves where a cell is one weight, else the largest |w| of each."""

    rows: tuple[int, int]
    columns: tuple[int, int]
    row_step: int
    column_step: int
    values: NDArray[np.float32]

    @property
    def exact(self) -> bool:
        return self.row_step == self.column_step == 1


@dataclass(frozen=True, eq=False)
class Inputs:
    """What calibration knows of a tensor's inputs, by column.

    peak    float32 [columns]: largest |x|, or None where only an importance matrix is known
    rms     float32 [columns]: √(mean x²), or None
    experts what the columns are the largest of, 0 for none
    """

    peak: NDArray[np.float32] | None
    rms: NDArray[np.float32] | None
    experts: int = 0

    @classmethod
    def of(cls, known: TensorStatistics | None) -> Inputs | None:
        """None where nothing is known."""
        if known is None:
            return None
        peak, mean = known.values.get(Statistic.ABSMAX), known.values.get(Statistic.IMPORTANCE)
        if peak is None and mean is None:
            return None
        experts = len(known.counts) if known.stacked else 0

        def widest(values: NDArray[np.float32] | None) -> NDArray[np.float32] | None:
            return values.max(0) if values is not None and known.stacked else values

        mean = widest(mean)
        return cls(widest(peak), None if mean is None else np.sqrt(np.maximum(mean, 0)).astype(np.float32), experts)


def outliers(request: OutlierRequest, ctx: JobContext = SILENT) -> OutlierResult:
    """Everything about a tensor's large weights. Hands over what a sample of rows says first, and what is known so far
    from time to time.

    progress in weights. Memory: one slice, and 100 bytes for each row and column.
    raises  UnsupportedFormat for complex numbers; what the reader raises; Cancelled
    """
    tensor = request.tensor
    if tensor.dtype in ("C64", "C128"):
        raise UnsupportedFormat(f"{tensor.dtype} holds complex numbers", "there are no outliers of those", tensor.name)
    ctx.check()
    sample = Tally(tensor)
    for start, stop in sample_runs(tensor.rows, tensor.columns, SAMPLE_WEIGHTS):
        sample.add(start, tensor.source.read(request.checkpoint, start, stop))
        ctx.check()
    if sample.seen_rows == tensor.rows:
        return sample.result(tensor.name)
    ctx.partial(sample.result(tensor.name))
    ctx.check()
    tally = Tally(tensor)
    step = max(1, SLICE_WEIGHTS // max(1, tensor.columns))
    told = time.monotonic()
    for start in range(0, tensor.rows, step):
        ctx.check()
        w = tensor.source.read(request.checkpoint, start, min(tensor.rows, start + step))
        tally.add(start, w)
        ctx.progress(tally.count, tensor.numel)
        if time.monotonic() - told > PARTIAL_SECONDS and tally.seen_rows > sample.seen_rows:
            ctx.partial(tally.result(tensor.name, sample))
            told = time.monotonic()
    return tally.result(tensor.name)


def region(request: RegionRequest, ctx: JobContext = SILENT) -> Region:
    """A part of the map, as finely as its cells allow. Reads its rows in slices.

    raises  what the reader raises; Cancelled
    """
    tensor = request.tensor
    (top, bottom), (left, right) = request.rows, request.columns
    assert 0 <= top < bottom <= tensor.rows, f"rows {request.rows} of {tensor.rows}"
    assert 0 <= left < right <= tensor.columns, f"columns {request.columns} of {tensor.columns}"
    row_step = -(-(bottom - top) // max(1, request.cells[0]))
    column_step = -(-(right - left) // max(1, request.cells[1]))
    height, width = -(-(bottom - top) // row_step), -(-(right - left) // column_step)
    values = np.zeros((height, width), np.float32)
    step = max(1, SLICE_WEIGHTS // max(1, tensor.columns) // row_step) * row_step
    for start in range(top, bottom, step):
        ctx.check()
        stop = min(bottom, start + step)
        x = float32(tensor.source.read(request.checkpoint, start, stop))[:, left:right]
        if row_step > 1 or column_step > 1:
            x = reduced(np.abs(x), row_step, column_step)
        at = (start - top) // row_step
        values[at : at + x.shape[0]] = x
    return Region(request.rows, request.columns, row_step, column_step, values)


def reduced(size: NDArray[np.float32], row_step: int, column_step: int) -> NDArray[np.float32]:
    """The largest of each cell; the last ones may be smaller. NaN only where a cell holds nothing else."""
    rows = np.arange(0, size.shape[0], row_step)
    columns = np.arange(0, size.shape[1], column_step)
    return np.asarray(np.fmax.reduceat(np.fmax.reduceat(size, rows, 0), columns, 1), np.float32)


def worst_first(values: NDArray[np.float32], chosen: Iterable[int], most: int) -> list[int]:
    """Of chosen lines those with the largest values, largest first."""
    indices = np.fromiter(chosen, np.int64)
    return indices[np.argsort(-values[indices], kind="stable")[:most]].tolist()
