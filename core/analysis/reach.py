"""How far a strategy's grids reach: the outermost levels of every weight's group, their envelope over the tensor, the
share of weights beyond them, and one typical group to draw.

All of it through the contract of formats: the level nearest to a huge number is the highest there is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import reduce
from typing import TYPE_CHECKING

import numpy as np

from core.errors import UnsupportedFormat

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from core.formats.base import Format, Grid

# Lowest and highest level of every weight, float32 [rows, columns] each.
Ends = tuple["NDArray[np.float32]", "NDArray[np.float32]"]

# A weight counts as beyond its grid when it is out by more than this share of the grid's span. Less than that is the
# rounding of a stored 16-bit scale, which puts half of all largest weights a hair outside.
TOLERANCE = 1 / 1024


@dataclass(frozen=True, eq=False)
class Group:
    """Columns start … stop of a row, which share their levels.

    levels     float32, ascending; None when there are too many to draw
    low, high  the outermost levels; NaN where the format cannot say
    """

    row: int
    start: int
    stop: int
    low: float
    high: float
    levels: NDArray[np.float32] | None


@dataclass(frozen=True, eq=False)
class Reach:
    """lowest, highest  outermost levels of any group; groups of nothing but zeros are left out
    tight_low, tight_high  the outermost levels of the groups that reach least far
    beyond   weights farther out than their own group's outermost level (see TOLERANCE)
    seen     weights looked at
    width    columns of a group
    typical  the group of the median span
    """

    lowest: float
    highest: float
    tight_low: float
    tight_high: float
    beyond: int
    seen: int
    width: int
    typical: Group

    @property
    def share_beyond(self) -> float:
        return self.beyond / self.seen if self.seen else 0.0


def ends_of(format: Format, grid: Grid, w: Tensor) -> Ends | None:
    """The outermost levels around every weight of w [rows, columns]; None where a format has no limits of that kind.

    grid  that of w's rows, or one row for all
    """
    codes = outermost_codes(format, grid, w)
    return None if codes is None else _decoded(format, grid, *codes)


def outermost_codes(format: Format, grid: Grid, w: Tensor) -> tuple[Tensor, Tensor] | None:
    """Codes [rows, columns] of the levels farthest up and farthest down, or None as in `ends_of`."""
    import torch

    if format.family == "dense" or format.columns_per_code > 1 or not w.numel():
        return None
    # Levels reach little farther than the weights they were fitted to; four times as far is beyond all of them.
    bound = min(4 * float(w.abs().max()), 1e38) or 1.0
    far = torch.full(w.shape, bound, dtype=torch.float32)
    try:
        return format.encode(far, grid), format.encode(-far, grid)
    except UnsupportedFormat:
        return None


def _decoded(format: Format, grid: Grid, up: Tensor, down: Tensor) -> Ends | None:
    import torch

    high, low = format.decode(up, grid), format.decode(down, grid)
    # A negative scale turns the order of levels, not of weights; a scale too small for its type has none.
    if not (low.isfinite().all() and high.isfinite().all()):
        return None
    return torch.minimum(low, high).numpy(), torch.maximum(low, high).numpy()


def group_width(ends: Ends) -> int:
    """Columns that share their levels: what divides all places where those change along a row."""
    low, high = ends
    changes = ((low[:, 1:] != low[:, :-1]) | (high[:, 1:] != high[:, :-1])).any(0)
    return reduce(math.gcd, (int(c) + 1 for c in np.flatnonzero(changes)), low.shape[1])


def group_at(format: Format, grid: Grid, ends: Ends, row: int, column: int, width: int, place: int) -> Group:
    """The group around one weight. row, column: in grid and ends; place: the row's number in the tensor."""
    levels = format.levels(grid, row, column)
    start = column // width * width
    low, high = ends
    return Group(
        place,
        start,
        min(start + width, low.shape[1]),
        float(low[row, column]),
        float(high[row, column]),
        None if levels is None else levels.to("cpu").numpy(),
    )


class ReachTally:
    """Adds up slices. sample: what a sample of the same rows' grids came to; its typical group is kept.

    lowest, highest  outermost levels so far: +inf and −inf while there are none
    """

    def __init__(self, sample: Reach | None = None) -> None:
        self.lowest, self.highest = math.inf, -math.inf
        self._tight_low, self._tight_high = -math.inf, math.inf
        self._beyond = self._seen = self._width = 0
        self._typical: Group | None = None
        # The two codes that every group has at its ends, once that is known.
        self._end_codes: tuple[Tensor, ...] = ()
        if sample is not None:
            self.lowest, self.highest = sample.lowest, sample.highest
            self._width, self._typical = sample.width, sample.typical

    def look(self, format: Format, grid: Grid, w: Tensor) -> None:
        """Only takes note of where the levels end."""
        ends = ends_of(format, grid, w)
        if ends is not None:
            self.lowest = min(self.lowest, float(ends[0].min()))
            self.highest = max(self.highest, float(ends[1].max()))

    def add(self, format: Format, grid: Grid, w: Tensor, x: NDArray[np.float32], places: NDArray[np.int64]) -> None:
        """w [rows, columns], the same as float32, and the rows' numbers in the tensor."""
        ends = self._ends(format, grid, w)
        if ends is None:
            return
        low, high = ends
        if not self._width:
            self._width = group_width(ends)
        slack = (high - low) * np.float32(TOLERANCE)
        self._beyond += int(np.count_nonzero((x > high + slack) | (x < low - slack)))
        self._seen += x.size
        lows, highs = low[:, :: self._width], high[:, :: self._width]
        alive = x.reshape(x.shape[0], -1, self._width).any(2)
        if not alive.any():
            return
        self.lowest, self.highest = (
            min(self.lowest, float(lows[alive].min())),
            max(self.highest, float(highs[alive].max())),
        )
        self._tight_low = max(self._tight_low, float(lows[alive].max()))
        self._tight_high = min(self._tight_high, float(highs[alive].min()))
        if self._typical is None:
            spans = np.where(alive, highs - lows, np.inf)
            order = np.argsort(spans, axis=None, kind="stable")
            row, group = divmod(int(order[(int(alive.sum()) - 1) // 2]), spans.shape[1])
            at = 0 if is_shared(grid) else row
            self._typical = group_at(format, grid, ends, at, group * self._width, self._width, int(places[row]))

    def _ends(self, format: Format, grid: Grid, w: Tensor) -> Ends | None:
        """As `ends_of`, without a search where all groups of a slice before had the same two codes at their ends."""
        if len(self._end_codes) == 2:
            up, down = (code.expand(w.shape).contiguous() for code in self._end_codes)
            return _decoded(format, grid, up, down)
        codes = outermost_codes(format, grid, w)
        if codes is None:
            return None
        up, down = codes[0][:1, :1], codes[1][:1, :1]
        if all(((c == up) | (c == down)).all() for c in codes):
            self._end_codes = up.clone(), down.clone()
        return _decoded(format, grid, *codes)

    def result(self) -> Reach | None:
        """None where no grid with an end was seen."""
        if self._typical is None:
            return None
        return Reach(
            self.lowest,
            self.highest,
            self._tight_low,
            self._tight_high,
            self._beyond,
            self._seen,
            self._width,
            self._typical,
        )


def is_shared(grid: Grid) -> bool:
    """Whether one row of parameters serves all rows of the matrix."""
    return bool(grid.parts) and all(part.shape[0] == 1 for part in grid.parts.values())
