"""How one weight's levels look to a method that goes column by column: a ladder of levels, the same for all weights of
a format, and the lines that scale it, which are the grid's.

    ŵ = step · (level − zero) + shift

Every format whose weights have codes of their own comes down to this; the others (`columns_per_code` above 1, weights
in 16 bits between them) have no ladder, and methods go through their `encode` and `decode`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from core.formats.base import Format, Grid
from core.formats.biased import Biased
from core.formats.bnb import BLOCK as BNB_BLOCK
from core.formats.bnb import Bnb4
from core.formats.fp8 import BLOCK as FP8_BLOCK
from core.formats.fp8 import Fp8
from core.formats.ggml.format import GgmlFormat
from core.formats.llm_int8 import STEP, LlmInt8
from core.formats.mx import MxFp8, NvFp4
from core.formats.uniform import Uniform

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, eq=False)
class Ladder:
    """values  float32 [levels], ascending; whole numbers one apart where `whole`
    codes   the code of every value, of the dtype that the format's codes have
    """

    values: Tensor
    codes: Tensor
    whole: bool


@dataclass(frozen=True, eq=False)
class Lines:
    """step   float32 [rows, runs], the other two alike or None
    width  columns of a run; 0: there is one
    """

    step: Tensor
    width: int
    zero: Tensor | None = None
    shift: Tensor | None = None


def fitted_columns(format: Format, columns: int) -> int:
    """Columns whose grid can be fitted apart from all others; 0 where only the whole matrix can."""
    if isinstance(format, Uniform):
        return format.group if format.granularity == "group" else 0
    if isinstance(format, GgmlFormat):
        return format.type.block
    if isinstance(format, Bnb4):
        return BNB_BLOCK if not format.nested and columns % BNB_BLOCK == 0 else 0
    if isinstance(format, Fp8):
        return FP8_BLOCK if format.granularity == "block" and columns % FP8_BLOCK == 0 else 0
    return 32 if isinstance(format, MxFp8) else 0


def joined(format: Format, grids: list[Grid]) -> Grid:
    """The grid of a matrix from those of its runs of `fitted_columns`, from left to right."""
    import torch

    if len(grids) == 1:
        return grids[0]
    # A phase says where a row begins in its first block, and every run begins with one.
    return Grid(
        {k: grids[0][k] if k == "phase" else torch.cat([g[k] for g in grids], 1) for k in grids[0].parts},
    )


@lru_cache(maxsize=64)
def ladder_of(format: Format, columns: int) -> Ladder | None:
    """The levels of a format, on the CPU; None where weights have none of their own."""
    import torch

    if format.columns_per_code > 1 or format.family == "dense":
        return None
    if isinstance(format, Uniform):
        return _whole(format.qmin, format.qmax, 0, torch.int8)
    if isinstance(format, GgmlFormat):
        layout = format.layout
        dtype = torch.int8 if layout.qmin < 0 else torch.uint8
        if layout.odd:
            return None
        if not layout.table:
            return _whole(layout.qmin - layout.zero, layout.qmax - layout.zero, layout.zero, dtype)
        return _listed(layout.level_values(), layout.table, dtype)
    if isinstance(format, Bnb4):
        return _listed(format.book.ascending, format.book.values, torch.uint8) if columns % BNB_BLOCK == 0 else None
    if isinstance(format, Fp8 | MxFp8):
        from core.formats.fp8 import byte_values, finite_values

        kind = format.dtype if isinstance(format, Fp8) else "F8_E4M3"
        values = finite_values(kind, torch.device("cpu"))
        return _listed(tuple(values.tolist()), tuple(byte_values(kind, torch.device("cpu")).tolist()), torch.uint8)
    if isinstance(format, NvFp4):
        from core.formats.codebook import e2m1

        return _listed(e2m1().ascending, e2m1().values, torch.uint8)
    if isinstance(format, LlmInt8) and not format.outliers:
        return _whole(-127, 127, 0, torch.int8)
    return None


def _whole(low: int, high: int, add: int, dtype: object) -> Ladder:
    import torch

    values = torch.arange(low, high + 1)
    return Ladder(values.to(torch.float32), (values + add).to(dtype), True)  # type: ignore[call-overload]


def _listed(ascending: tuple[float, ...], table: tuple[float, ...], dtype: object) -> Ladder:
    """table: the level of every code; of two codes with one level, the first."""
    import torch

    codes = torch.tensor([table.index(v) for v in ascending])
    return Ladder(torch.tensor(ascending), codes.to(dtype), False)  # type: ignore[call-overload]


def lines_of(format: Format, grid: Grid) -> Lines:
    """The lines of a whole grid, or of one run of `fitted_columns`. For formats with a ladder."""
    import torch

    if isinstance(format, Biased):
        scale = grid["scale"].float()
        return Lines(scale, format.group, torch.full_like(scale, format.qmin), grid["bias"].float())
    if isinstance(format, Uniform):
        zero = format.zero_of(grid)
        width = {"group": format.group, "column": 1}.get(format.granularity, 0)
        return Lines(grid["scale"].float(), width, None if zero is None else zero.float())
    if isinstance(format, GgmlFormat):
        return _ggml_lines(format, grid)
    if isinstance(format, Bnb4):
        return Lines(grid["absmax"], BNB_BLOCK)
    if isinstance(format, Fp8):
        return Lines(grid["scale"], FP8_BLOCK if format.granularity == "block" else 0)
    if isinstance(format, MxFp8):
        from core.formats.mx import powers

        return Lines(powers(grid["scale"]), 32)
    if isinstance(format, NvFp4):
        return Lines(format.steps(grid), 16)
    assert isinstance(format, LlmInt8)
    return Lines(grid["absmax"] * torch.full_like(grid["absmax"], STEP), 0)


def _ggml_lines(format: GgmlFormat, grid: Grid) -> Lines:
    key, count = format.layout.counter
    rows, across = grid[key].shape[0], grid[key].shape[1] // count
    fields = {k: v.reshape(rows * across, -1) for k, v in grid.parts.items()}
    steps = format.layout.steps(fields)
    assert steps.offset is None
    width = format.type.block // steps.step.shape[1]
    shift = None if steps.shift is None else steps.shift.reshape(rows, -1)
    return Lines(steps.step.reshape(rows, -1), width, shift=shift)
