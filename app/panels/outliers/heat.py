"""The map of |W| in the present view: which cells, on which scale, and what is asked for when the view goes closer than
the overview reaches. No Qt."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from app.plotting.words import short
from core.analysis.outliers import OutlierRequest, OutlierResult, Region, RegionRequest, reduced

if TYPE_CHECKING:
    from numpy.typing import NDArray

# A range of sizes wider than this is drawn on a logarithmic scale.
WIDE = 20.0
# Cells of an exact picture at most, and weights that may be read for one.
MOST_CELLS = 1024


@dataclass(frozen=True, eq=False)
class HeatView:
    """What is drawn: values float32 [h, w] over the rectangle left, top, width, height in places of the axes.

    low, high    of the scale; logarithmic tells which
    weights      each cell is a single weight, in `values` without its sign and in `signed` with it
    """

    values: NDArray[np.float32]
    left: float
    top: float
    width: float
    height: float
    low: float
    high: float
    logarithmic: bool
    signed: NDArray[np.float32] | None = None


class Heat:
    """The overview, and the closest part that was read so far. turned: rows run along x."""

    def __init__(self) -> None:
        self.turned = False
        self.region: Region | None = None
        self._asked: RegionRequest | None = None

    def forget(self) -> None:
        self.region = self._asked = None

    def closer(
        self,
        request: OutlierRequest,
        result: OutlierResult,
        view: tuple[float, float, float, float],
        cells: tuple[int, int],
    ) -> RegionRequest | None:
        """What to read for a view (x from, x to, y from, y to) drawn on cells (along x, along y); None when what is
        there shows as much, or was asked for already."""
        (top, bottom), (left, right) = self._rows_columns(result, view)
        if bottom <= top or right <= left:
            return None
        along = cells if not self.turned else cells[::-1]
        wide, high = min(MOST_CELLS, max(1, along[0])), min(MOST_CELLS, max(1, along[1]))
        finer_rows = -(-(bottom - top) // high) < result.row_step
        finer_columns = -(-(right - left) // wide) < result.column_step
        whole = bottom - top >= result.rows and right - left >= result.columns
        if whole or not (finer_rows or finer_columns):
            return None
        if self.region is not None and self.region.exact and _covers(self.region, (top, bottom), (left, right)):
            return None
        asked = RegionRequest(request.checkpoint, request.tensor, (top, bottom), (left, right), (high, wide))
        if self._asked is not None and _alike(self._asked, asked):
            return None
        self._asked = asked
        return asked

    def _rows_columns(
        self, result: OutlierResult, view: tuple[float, float, float, float]
    ) -> tuple[tuple[int, int], tuple[int, int]]:
        x, y = view[:2], view[2:]
        rows, columns = (x, y) if self.turned else (y, x)

        def whole(part: tuple[float, float], count: int) -> tuple[int, int]:
            return max(0, math.floor(part[0] + 0.5)), min(count, math.ceil(part[1] + 0.5))

        return whole(rows, result.rows), whole(columns, result.columns)

    def picture(
        self, result: OutlierResult, view: tuple[float, float, float, float], cells: tuple[int, int]
    ) -> HeatView | None:
        """The view's cells: of what was read closely where it covers the view, else of the overview."""
        (top, bottom), (left, right) = self._rows_columns(result, view)
        if bottom <= top or right <= left or not result.heat.size:
            return None
        near = self.region
        signed = None
        if near is not None and _covers(near, (top, bottom), (left, right)):
            first, second = near.rows[0], near.columns[0]
            row_step, column_step, source = near.row_step, near.column_step, np.abs(near.values)
            if near.exact:
                signed = near.values
        else:
            first, second, row_step, column_step, source = 0, 0, result.row_step, result.column_step, result.heat
        a, b = (top - first) // row_step, -(-(bottom - first) // row_step)
        c, d = (left - second) // column_step, -(-(right - second) // column_step)
        part = source[a:b, c:d]
        along = cells if not self.turned else cells[::-1]
        join = max(1, -(-part.shape[0] // max(1, along[1]))), max(1, -(-part.shape[1] // max(1, along[0])))
        if join != (1, 1):
            part, signed = reduced(part, *join), None
        elif signed is not None:
            signed = signed[a:b, c:d]
        box = (
            second + c * column_step - 0.5,
            first + a * row_step - 0.5,
            min((d - c) * column_step, result.columns - second - c * column_step),
            min((b - a) * row_step, result.rows - first - a * row_step),
        )
        low, high, logarithmic = self._scale(part if signed is not None else result.heat, exact=signed is not None)
        if self.turned:
            part, box = part.T, (box[1], box[0], box[3], box[2])
            signed = signed.T if signed is not None else None
        return HeatView(part, *box, low, high, logarithmic, signed)

    def _scale(self, values: NDArray[np.float32], exact: bool) -> tuple[float, float, bool]:
        known = values[np.isfinite(values) & (values > 0)]
        if not known.size:
            return 0.0, 1.0, False
        high = float(known.max())
        # A part that is looked at closely shows its zeros as such.
        low = 0.0 if exact else float(np.quantile(known, 0.01))
        if low and high / low > WIDE:
            return low, high, True
        return 0.0 if not exact and high / max(low, 1e-45) > 4 else low, high, False

    def read_off(self, result: OutlierResult, shown: HeatView | None, x: float, y: float) -> str:
        """What lies at a place of the map."""
        if shown is None or not shown.values.size:
            return ""
        across = math.floor((x - shown.left) / shown.width * shown.values.shape[1])
        down = math.floor((y - shown.top) / shown.height * shown.values.shape[0])
        if not (0 <= across < shown.values.shape[1] and 0 <= down < shown.values.shape[0]):
            return ""
        row, column = (round(x), round(y)) if self.turned else (round(y), round(x))
        row, column = min(row, result.rows - 1), min(column, result.columns - 1)
        if shown.signed is not None:
            return f"row {row:,}, column {column:,}   {short(float(shown.signed[down, across]))}"
        value = float(shown.values[down, across])
        size = f"|w| ≤ {short(value)} around" if math.isfinite(value) else "not seen yet around"
        return f"{size} row {row:,}, column {column:,}"


def _covers(region: Region, rows: tuple[int, int], columns: tuple[int, int]) -> bool:
    return (
        region.rows[0] <= rows[0]
        and rows[1] <= region.rows[1]
        and region.columns[0] <= columns[0]
        and columns[1] <= region.columns[1]
    )


def _alike(a: RegionRequest, b: RegionRequest) -> bool:
    return a.checkpoint is b.checkpoint and (a.tensor, a.rows, a.columns, a.cells) == (
        b.tensor,
        b.rows,
        b.columns,
        b.cells,
    )
