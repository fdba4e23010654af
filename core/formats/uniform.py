"""Evenly spaced levels, 2 to 8 bits: one scale per tensor, row, column or group of columns; symmetric or with a zero
point.

    ŵ = scale · (q − zero_point),   q in [−2^(b−1), 2^(b−1) − 1]

Symmetric scales are absmax / ((2^b − 1) / 2), the convention of compressed-tensors and GPTQ: the grid spans the range
evenly, and +absmax itself falls half a step beyond the last level. Asymmetric ranges always include 0. A scale is first
rounded to the type it is stored in, and codes are chosen for the rounded value.

Groups of zeros get scale 1 and decode to exactly 0; a scale that would round to 0 becomes the smallest positive number
of its stored type.

How far the levels reach is a matter of fitting, not of storing, so it is no part of the name:

    minmax      from the smallest weight to the largest; what the conventions above say
    percentile  `percentile` % of the weights, half of the others cut off at either end
    rmse        where a search finds the lowest squared error, weighted by importance; never worse than minmax

Only "rmse" looks at importance. Two ways are in fitting/ranges.py.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, ClassVar

from core.errors import RecipeError
from core.formats.base import EXACT, Format, Grid, Parts, Quantized
from core.formats.checks import computable, out_of_range, require_finite
from core.tensors import DTYPES

if TYPE_CHECKING:
    import torch

# Half precision is widened in pieces of about this many weights.
PIECE = 1 << 20
SCALE_DTYPES = ("F32", "F16", "BF16")
MINMAX = "minmax"
RANGES = (MINMAX, "percentile", "rmse")


@dataclass(frozen=True)
class Uniform(Format):
    """parts: {"codes": int32 [rows, ⌈columns·b/32⌉] (q + 2^(b−1), see bitstream.py),
    "scale": scale_dtype [rows, groups] ([1, 1] per tensor, [1, columns] per column),
    "zero_point": int8 like scale, asymmetric only}.

    width        bits of a code
    granularity  "tensor", "row", "column" or "group"
    group        columns of a group; 0 for the others
    scale_dtype  one of SCALE_DTYPES; a target may ask for its own
    range        one of RANGES
    percentile   of "percentile", above 0 and at most 100
    """

    width: int
    granularity: str = "row"
    group: int = 0
    symmetric: bool = True
    scale_dtype: str = "F16"
    range: str = MINMAX
    percentile: float = 99.9

    family: ClassVar[str] = "uniform"
    zero_key: ClassVar[str] = "zero_point"  # the part that holds the code of 0.0

    def __post_init__(self) -> None:
        if self.scale_dtype not in SCALE_DTYPES:
            raise RecipeError(
                f"scale dtype {self.scale_dtype!r} is not one of {', '.join(SCALE_DTYPES)}", where=self.name
            )
        if self.range not in self.ranges:
            raise RecipeError(f"range {self.range!r} is not one of {', '.join(self.ranges)}", where=self.name)
        if not 0 < self.percentile <= 100:
            raise RecipeError(f"percentile is {self.percentile:g}, must be above 0 and at most 100", where=self.name)

    @property
    def title(self) -> str:
        runs = f"groups of {self.group}" if self.granularity == "group" else f"one scale per {self.granularity}"
        return f"{self.width}-bit integer, {runs}{'' if self.symmetric else ', zero point'}"

    @property
    def bits(self) -> float:
        return self.width

    @property
    def ranges(self) -> tuple[str, ...]:
        """What `range` may be."""
        return RANGES

    @property
    def ranged_by_ends(self) -> bool:
        """Whether the smallest and the largest weight say all about a scale."""
        return self.range == MINMAX

    @property
    def row_local(self) -> bool:  # type: ignore[override]  # a class constant elsewhere; here it depends on the record
        return self.granularity in ("row", "group")

    @property
    def columns_per_grid(self) -> int:
        return self.group or 1

    @property
    def qmin(self) -> int:
        return -(1 << self.width - 1)

    @property
    def qmax(self) -> int:
        return (1 << self.width - 1) - 1

    def scales_shape(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """[rows, groups] of the scales of a matrix."""
        rows, columns = prod(shape[:-1]), shape[-1] if shape else 1
        if self.granularity == "tensor":
            return 1, 1
        if self.granularity == "column":
            return 1, columns
        return rows, columns // self.group if self.granularity == "group" else 1

    def nbytes(self, shape: tuple[int, ...]) -> int:
        rows, columns = prod(shape[:-1]), shape[-1] if shape else 1
        scales = prod(self.scales_shape(shape))
        per_scale = DTYPES[self.scale_dtype].bits // 8 + (0 if self.symmetric else 1)
        return rows * ((columns * self.width + 31) // 32) * 4 + scales * per_scale

    def fit(self, w: torch.Tensor, importance: torch.Tensor | None = None, effort: str = EXACT) -> Grid:
        import torch

        self.require_effort(effort)
        shape = self.scales_shape((w.shape[0], w.shape[1]))
        if w.numel() == 0:
            low = high = torch.zeros(shape, device=w.device)
        else:
            low, high = (t.float().view(shape) for t in torch.aminmax(computable(self.runs_of(w)), dim=1))
        if not (low.isfinite().all() and high.isfinite().all()):
            require_finite(w)
        return self.grid_of(w, low, high, importance)

    def grid_of(
        self, w: torch.Tensor, low: torch.Tensor, high: torch.Tensor, importance: torch.Tensor | None, first: int = 0
    ) -> Grid:
        """The grid of w, whose runs have these smallest and largest weights, float32 shaped like the scales, in the
        format's own way of choosing the range. Raises OutOfRange (rows count from `first`)."""
        if self.range == MINMAX or w.numel() == 0:
            return self.grid_of_range(low, high, first)
        from core.formats.fitting.ranges import lowest_error, percentile_ends

        if self.range == "rmse":
            return lowest_error(self, w, self.grid_of_range(low, high, first), low, high, importance)
        inner = percentile_ends(self.runs_of(w), self.percentile)
        return self.grid_of_range(inner[0].view(low.shape), inner[1].view(low.shape), first)

    def runs_of(self, w: torch.Tensor) -> torch.Tensor:
        """[scales, weights that share one]: w by scale, a view where possible."""
        if self.granularity == "column":
            return w.t()
        rows, columns = self.scales_shape((w.shape[0], w.shape[1]))
        return w.reshape(rows * columns, -1)

    def grid_of_range(self, low: torch.Tensor, high: torch.Tensor, first: int = 0) -> Grid:
        """The grid for given ranges, float32 [rows, groups]. Raises OutOfRange (rows count from `first`)."""
        import torch

        dtype = DTYPES[self.scale_dtype].torch
        steps = float((1 << self.width) - 1)
        low, high = low.clamp(max=0), high.clamp(min=0)
        if self.symmetric:
            spread = torch.maximum(-low, high)
            raw = spread / torch.full((), steps / 2, device=low.device)  # a plain number: multiplied by 1/x on a GPU
        else:
            # Halved first: the difference of two large numbers of opposite sign may overflow.
            spread = torch.maximum(-low, high)
            raw = (high / 2 - low / 2) / torch.full((), steps / 2, device=low.device)
        info = torch.finfo(dtype)
        tiny = info.smallest_normal * info.eps  # the smallest subnormal
        scale = raw.to(dtype)
        scale = torch.where(scale > 0, scale, torch.tensor(tiny, dtype=dtype, device=scale.device))
        scale = torch.where(spread == 0, torch.ones_like(scale), scale)
        if self.symmetric:
            zero, reach = None, scale.float() * (1 << self.width - 1)
        else:
            zero = torch.round(self.qmin - low / scale.float()).clamp(self.qmin, self.qmax)
            reach = scale.float() * torch.maximum(zero - self.qmin, self.qmax - zero)
        if not reach.isfinite().all():
            bad = (~reach.isfinite()).any(1).nonzero()[0, 0].item()
            limit = (
                f"{info.max:g}, the largest of {self.scale_dtype}" if self.scale_dtype == "F16" else "float32's range"
            )
            raise out_of_range(first + int(bad), limit)
        return Grid({"scale": scale} if zero is None else {"scale": scale, "zero_point": zero.to(torch.int8)})

    def _columns(self, part: torch.Tensor, start: int, count: int) -> torch.Tensor:
        """A [rows, groups] part spread over columns start … start + count, float32, broadcastable."""
        import torch

        wide = part.to(torch.float32)
        if self.granularity == "column":
            return wide[:, start : start + count]
        if self.granularity != "group":
            return wide
        first, last = start // self.group, (start + count - 1) // self.group + 1
        spread = wide[:, first:last].repeat_interleave(self.group, 1)
        return spread[:, start - first * self.group :][:, :count]

    def encode(self, w: torch.Tensor, grid: Grid, start: int = 0) -> torch.Tensor:
        import torch

        rows, columns = w.shape
        out = torch.empty(rows, columns, dtype=torch.int8, device=w.device)
        zero = self.zero_of(grid)
        for a, b in _row_pieces(rows, columns):
            q = w[a:b].to(torch.float32) / self._columns(self._rows(grid["scale"], a, b), start, columns)
            if zero is not None:
                q += self._columns(self._rows(zero, a, b), start, columns)
            out[a:b] = q.round_().clamp_(self.qmin, self.qmax)
        return out

    def zero_of(self, grid: Grid) -> torch.Tensor | None:
        """The code of 0.0, laid out like the scales; None in symmetric formats."""
        return grid.get(self.zero_key)

    def _rows(self, part: torch.Tensor, start: int, stop: int) -> torch.Tensor:
        return part if part.shape[0] == 1 else part[start:stop]

    def decode(self, codes: torch.Tensor, grid: Grid, start: int = 0) -> torch.Tensor:
        import torch

        rows, columns = codes.shape
        out = torch.empty(rows, columns, dtype=torch.float32, device=codes.device)
        zero = self.zero_of(grid)
        for a, b in _row_pieces(rows, columns):
            level = codes[a:b].to(torch.float32)
            if zero is not None:
                level -= self._columns(self._rows(zero, a, b), start, columns)
            out[a:b] = level * self._columns(self._rows(grid["scale"], a, b), start, columns)
        return out

    def pack(self, codes: torch.Tensor, grid: Grid) -> Parts:
        import torch

        from core.formats.bitstream import pack_rows

        words = pack_rows(codes.to(torch.int16) - self.qmin, self.width)
        return {"codes": words, **grid.parts}

    def unpack(self, parts: Parts, shape: tuple[int, int]) -> tuple[torch.Tensor, Grid]:
        import torch

        from core.formats.bitstream import unpack_rows

        codes = unpack_rows(parts["codes"], self.width, shape[1])
        signed = (codes.to(torch.int16) + self.qmin).to(torch.int8)
        return signed, Grid({k: v for k, v in parts.items() if k != "codes"})

    def quantize(self, w: torch.Tensor, importance: torch.Tensor | None = None, effort: str = EXACT) -> Quantized:
        import torch

        from core.formats.fitting import on_lanes
        from core.formats.fitting.uniform import quantize

        self.require_effort(effort)
        if not on_lanes(w) or w.numel() == 0:
            return super().quantize(w, importance, effort)
        words = torch.empty(w.shape[0], (w.shape[1] * self.width + 31) // 32, dtype=torch.int32)
        grid = quantize(self, w.detach(), words, importance)
        return Quantized(self, (w.shape[0], w.shape[1]), parts={"codes": words, **grid.parts})

    def dequantize(self, parts: Parts, shape: tuple[int, int]) -> torch.Tensor:
        from core.formats.fitting import on_lanes
        from core.formats.fitting.uniform import dequantize

        if not on_lanes(parts["codes"]):
            return super().dequantize(parts, shape)
        return dequantize(self, parts, shape)

    def levels(self, grid: Grid, row: int, column: int) -> torch.Tensor | None:
        import torch

        at = {"tensor": (0, 0), "column": (0, column), "row": (row, 0)}.get(
            self.granularity, (row, column // max(1, self.group))
        )
        zero = self.zero_of(grid)
        codes = torch.arange(self.qmin, self.qmax + 1, dtype=torch.float32, device=grid["scale"].device)
        return (codes - (zero[at].float() if zero is not None else 0)) * grid["scale"][at].float()


def _row_pieces(rows: int, columns: int) -> list[tuple[int, int]]:
    step = max(1, PIECE // max(1, columns))
    return [(a, min(rows, a + step)) for a in range(0, rows, step)]


_NAME = re.compile(r"int([2-8])(?:-(tensor|row|col|g([1-9]\d{0,5})))?(-asym)?")


def uniform(name: str) -> Uniform | None:
    """The format of a name like "int4-g128-asym"; None when it is not such a name. "-row" may be left out."""
    found = _NAME.fullmatch(name)
    if not found:
        return None
    width, runs, group, asym = found.groups()
    if group:
        granularity = "group"
    else:
        granularity = {"col": "column"}.get(runs, runs) or "row"
    plain = f"int{width}{f'-{runs}' if runs not in (None, 'row') else ''}{asym or ''}"
    return Uniform(plain, int(width), granularity, int(group or 0), not asym)


def _listed(*names: str) -> tuple[Uniform, ...]:
    return tuple(f for f in map(uniform, names) if f is not None)


UNIFORM = _listed(
    "int8",
    "int8-tensor",
    "int8-col",
    "int8-asym",
    "int4",
    "int4-g32",
    "int4-g64",
    *(f"int{bits}-g128{end}" for bits in range(2, 9) for end in ("", "-asym")),
)
