"""Uniform formats on lanes: pieces of rows are widened, ranged, coded and packed while they lie in cache."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from core.formats.base import Grid, Parts
from core.formats.checks import require_finite
from core.formats.fitting import PIECE, widened
from core.formats.fitting.lanes_uniform import decode, encode, ranges

if TYPE_CHECKING:
    from core.formats.uniform import Uniform


def _group(format: Uniform, columns: int) -> int:
    """Columns that share a scale; 0 where every column has its own."""
    return 0 if format.granularity == "column" else format.group or columns


def _wide(part: Tensor | None, rows: slice, format: Uniform, count: int) -> np.ndarray:
    """Scales or zero points of some rows as float32 [rows, groups] ([1, columns] per column); [0, 0] for None."""
    if part is None:
        return np.zeros((0, 0), np.float32)
    wide = part.to(torch.float32)
    if format.granularity == "tensor":
        wide = wide.expand(count, 1)
    elif format.granularity != "column":
        wide = wide[rows]
    return wide.contiguous().numpy()


def _ranged(format: Uniform, x: Tensor, importance: Tensor | None, start: int) -> Grid:
    """The grid of some rows, float32. Raises NonFinite, OutOfRange with rows counted from `start`."""
    rows, columns = x.shape
    group = _group(format, columns)
    low, high = torch.empty(rows, columns // group), torch.empty(rows, columns // group)
    ranges(x.view(torch.int32).numpy(), group, low.numpy(), high.numpy())
    if not (low.isfinite().all() and high.isfinite().all()):
        require_finite(x, start)
    return format.grid_of(x, low, high, importance, start)


def quantize(format: Uniform, w: Tensor, words: Tensor, importance: Tensor | None = None) -> Grid:
    """Fills words, int32 [rows, words of a row], and returns the grid. w: floating [rows, columns] on the CPU."""
    rows, columns = w.shape
    step = max(1, PIECE // columns)
    room = torch.empty(min(step, rows), columns)
    whole = None if format.row_local else format.fit(w, importance)
    grids = []
    for start in range(0, rows, step):
        stop = min(rows, start + step)
        x = widened(w, start, stop, room)
        grid = whole or _ranged(format, x, importance, start)
        here = slice(0, stop - start)
        scale = _wide(grid["scale"], here, format, stop - start)
        zero = _wide(format.zero_of(grid), here, format, stop - start)
        encode(x.numpy(), scale, zero, _group(format, columns), format.width, words[start:stop].numpy())
        grids.append(grid)
    if whole is not None:
        return whole
    return Grid({key: torch.cat([g[key] for g in grids]) for key in grids[0].parts})


def dequantize(format: Uniform, parts: Parts, shape: tuple[int, int]) -> Tensor:
    """float32 [rows, columns]."""
    rows, columns = shape
    out = torch.empty(rows, columns)
    everything = slice(0, rows)
    scale = _wide(parts["scale"], everything, format, rows)
    zero = _wide(format.zero_of(Grid(parts)), everything, format, rows)
    words = parts["codes"].contiguous().numpy()
    decode(words, scale, zero, _group(format, columns), format.width, out.numpy())
    return out
