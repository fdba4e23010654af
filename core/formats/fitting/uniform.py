"""Uniform formats on lanes. Where scales are those of whole ranges one pass does it all; others are fitted piece by
piece of rows, while those lie in cache."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from core.formats.base import Grid, Parts
from core.formats.checks import require_finite
from core.formats.fitting import PIECE, raw_weights, whole_weights, widened
from core.formats.fitting.lanes_uniform import (
    BRAIN,
    FRACTIONAL,
    GIVEN,
    HALF,
    SINGLE,
    SYMMETRIC,
    WHOLE,
    decode,
    encode,
    extremes,
    ranges,
)
from core.tensors import DTYPES

if TYPE_CHECKING:
    from core.formats.uniform import Uniform

_STORAGE = {"F32": SINGLE, "F16": HALF, "BF16": BRAIN}


def _group(format: Uniform, columns: int) -> int:
    """Columns that share a scale; 0 where every column has its own."""
    return 0 if format.granularity == "column" else format.group or columns


def _wide(part: Tensor | None, format: Uniform, rows: int) -> np.ndarray:
    """Scales or zero points as float32 [rows, groups] ([1, columns] per column); [0, 0] for None."""
    if part is None:
        return np.zeros((0, 0), np.float32)
    wide = part.to(torch.float32)
    if format.granularity == "tensor":
        wide = wide.expand(rows, 1)
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


def _bytes(words: Tensor) -> np.ndarray:
    return words.view(torch.uint8).view(-1).numpy()


def quantize(format: Uniform, w: Tensor, words: Tensor, importance: Tensor | None = None) -> Grid:
    """Fills words, int32 [rows, words of a row], and returns the grid. w: floating [rows, columns] on the CPU."""
    if format.ranged_by_ends and format.row_local:
        return _in_one_pass(format, w, words)
    rows, columns = w.shape
    whole = None if format.row_local else _whole(format, w, importance)
    if whole is not None:
        for start, piece in whole_weights(w):
            _code(format, piece, whole, words[start : start + piece.shape[0]])
        return whole
    grids = []
    step = max(1, PIECE // columns)
    room = torch.empty(min(step, rows), columns)
    for start in range(0, rows, step):
        stop = min(rows, start + step)
        x = widened(w.detach(), start, stop, room)
        grid = _ranged(format, x, importance, start)
        _code(format, x, grid, words[start:stop])
        grids.append(grid)
    return Grid({key: torch.cat([g[key] for g in grids]) for key in grids[0].parts})


def _whole(format: Uniform, w: Tensor, importance: Tensor | None) -> Grid:
    """The grid of all rows together."""
    if not (format.ranged_by_ends and format.granularity == "tensor"):
        return format.fit(w, importance)
    ends = torch.zeros(2, 1, 1)
    for _, piece in whole_weights(w):
        found = torch.empty(2, 1, 1)
        extremes(*raw_weights(piece), found.view(-1).numpy().view(np.uint32))
        if not found.isfinite().all():
            require_finite(w)
        ends[0], ends[1] = torch.minimum(ends[0], found[0]), torch.maximum(ends[1], found[1])
    return format.grid_of_range(ends[0], ends[1])


def _code(format: Uniform, x: Tensor, grid: Grid, words: Tensor) -> None:
    """Codes on a grid that is known; x as raw_weights takes it."""
    rows, columns = x.shape
    scale, zero = _wide(grid["scale"], format, rows), _wide(format.zero_of(grid), format, rows)
    floats, brains = raw_weights(x)
    encode(floats, brains, columns, _group(format, columns), format.width, GIVEN, SINGLE, scale, zero, _bytes(words))


def _in_one_pass(format: Uniform, w: Tensor, words: Tensor) -> Grid:
    rows, columns = w.shape
    scale = torch.empty(format.scales_shape((rows, columns)))
    kind = SYMMETRIC if format.symmetric else FRACTIONAL if format.zero_key == "shift" else WHOLE
    zero = torch.empty(0, 0) if format.symmetric else torch.empty_like(scale)
    for start, piece in whole_weights(w):
        stop = start + piece.shape[0]
        x, brains = raw_weights(piece)
        bad = encode(
            x, brains, columns, _group(format, columns), format.width, kind, _STORAGE[format.scale_dtype],
            scale[start:stop].numpy(), zero[start:stop].numpy(), _bytes(words[start:stop]),
        )  # fmt: skip
        if bad >= 0:
            format.fit(w)  # says what is wrong
            raise AssertionError(f"row {start + bad} could not be coded")
    dtype = DTYPES[format.scale_dtype].torch
    if format.symmetric:
        return Grid({"scale": scale.to(dtype)})
    of_zero = torch.int8 if kind == WHOLE else dtype
    return Grid({"scale": scale.to(dtype), format.zero_key: zero.to(of_zero)})


def dequantize(format: Uniform, parts: Parts, shape: tuple[int, int]) -> Tensor:
    """float32 [rows, columns]."""
    rows, columns = shape
    out = torch.empty(rows, columns)
    if out.numel():
        scale, zero = _wide(parts["scale"], format, rows), _wide(format.zero_of(Grid(parts)), format, rows)
        words = _bytes(parts["codes"].contiguous())
        decode(words, columns, _group(format, columns), format.width, scale, zero, out.view(-1).numpy())
    return out
