"""Evenly spaced levels with an offset of their own: ŵ = scale · (q + 2^(b−1)) + bias, q in [−2^(b−1), 2^(b−1) − 1].
MLX's affine form; the integer formats and everything they share are in uniform.py.

The end of a group's range that is farther from zero is a level, and so is zero, by its place if not by its code: with
edge that end and k the whole number nearest to edge / ((max − min) / (2^b − 1)), the scale is edge / k and the bias is
edge. So scales are negative where the edge is the largest weight. For float32 these are MLX's scales and biases bit for
bit, but for groups narrower than 1e-5 or so, which MLX rounds to nothing. In half precision MLX chooses codes before it
rounds the scale; here as everywhere they are chosen for the rounded one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

from core.formats.base import EXACT, Format, Grid, Parts, Quantized
from core.formats.checks import out_of_range
from core.formats.fp8 import row_pieces
from core.formats.uniform import RANGES, Uniform, uniform
from core.tensors import DTYPES

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Biased(Uniform):
    """parts: {"codes", "scale"} as in Uniform, and "bias": scale_dtype, shaped like scale."""

    @property
    def ranges(self) -> tuple[str, ...]:
        """The search for the lowest error knows whole zero points only; the method hqq moves biases."""
        return tuple(r for r in RANGES if r != "rmse")

    @property
    def title(self) -> str:
        return super().title.replace("zero point", "bias")

    def nbytes(self, shape: tuple[int, ...]) -> int:
        return super().nbytes(shape) + prod(self.scales_shape(shape)) * (DTYPES[self.scale_dtype].bits // 8 - 1)

    def grid_of_range(self, low: torch.Tensor, high: torch.Tensor, first: int = 0) -> Grid:
        import torch

        dtype = DTYPES[self.scale_dtype].torch
        info = torch.finfo(dtype)
        upwards = low.abs() > high.abs()
        edge = torch.where(upwards, low, high)
        # Halved first: the difference of two large numbers of opposite sign may overflow.
        step = (high / 2 - low / 2) / torch.full((), ((1 << self.width) - 1) / 2, device=low.device)
        step = torch.where(upwards, step, -step)
        whole = torch.where(step == 0, 0, edge / step).round()
        # Ranges too narrow for a whole number to count the steps to zero have no exact zero, and need none.
        counted = (whole != 0) & whole.isfinite()
        scale = torch.where(counted, edge / torch.where(counted, whole, 1), step).to(dtype)
        tiny = torch.full_like(scale, info.smallest_normal * info.eps)  # the smallest subnormal
        scale = torch.where(scale == 0, torch.where(upwards, tiny, -tiny), scale)
        scale = torch.where(low == high, torch.ones_like(scale), scale)
        bias = edge.to(dtype)
        reach = scale.float().abs() * ((1 << self.width) - 1) + bias.float().abs()
        if not reach.isfinite().all():
            bad = int((~reach.isfinite()).any(1).nonzero()[0, 0])
            half = f"{info.max:g}, the largest of {self.scale_dtype}"
            raise out_of_range(first + bad, half if self.scale_dtype == "F16" else "float32's range")
        return Grid({"scale": scale, "bias": bias})

    def zero_of(self, grid: Grid) -> torch.Tensor | None:
        return None

    def encode(self, w: torch.Tensor, grid: Grid, start: int = 0) -> torch.Tensor:
        import torch

        out = torch.empty(w.shape, dtype=torch.int8, device=w.device)
        for rows in row_pieces(*w.shape):
            scale, bias = self._lines(grid, rows, start, w.shape[1])
            q = ((w[rows].to(torch.float32) - bias) / scale).round_()
            out[rows] = q.clamp_(0, (1 << self.width) - 1).add_(self.qmin)
        return out

    def decode(self, codes: torch.Tensor, grid: Grid, start: int = 0) -> torch.Tensor:
        import torch

        out = torch.empty(codes.shape, dtype=torch.float32, device=codes.device)
        for rows in row_pieces(*codes.shape):
            scale, bias = self._lines(grid, rows, start, codes.shape[1])
            out[rows] = (codes[rows].to(torch.float32) - self.qmin) * scale + bias
        return out

    def _lines(self, grid: Grid, rows: slice, start: int, columns: int) -> tuple[torch.Tensor, torch.Tensor]:
        scale, bias = (self._columns(grid[key][rows], start, columns) for key in ("scale", "bias"))
        return scale, bias

    def quantize(self, w: torch.Tensor, importance: torch.Tensor | None = None, effort: str = EXACT) -> Quantized:
        return Format.quantize(self, w, importance, effort)

    def dequantize(self, parts: Parts, shape: tuple[int, int]) -> torch.Tensor:
        return Format.dequantize(self, parts, shape)

    def levels(self, grid: Grid, row: int, column: int) -> torch.Tensor | None:
        import torch

        group = column // self.group
        scale, bias = (grid[key][row, group].float() for key in ("scale", "bias"))
        codes = torch.arange(1 << self.width, dtype=torch.float32, device=scale.device)
        return (codes * scale + bias).sort().values


_NAME = re.compile(r"(int[2-8]-g\d+)-bias")


def biased(name: str) -> Biased | None:
    """The format of a name like "int4-g64-bias"; None when it is not such a name."""
    found = _NAME.fullmatch(name)
    base = uniform(found.group(1)) if found else None
    if base is None:
        return None
    return Biased(f"{base.name}-bias", base.width, base.granularity, base.group, False, base.scale_dtype)


BIASED = tuple(f for f in map(biased, (f"int{bits}-g64-bias" for bits in (2, 3, 4, 6, 8))) if f is not None)
