"""Evenly spaced levels whose zero is not a whole code: ŵ = scale · (q − shift), shift a float. HQQ's form; the integer
formats and everything they share are in uniform.py.

The fit is the asymmetric one of uniform.py without rounding the zero: the range is that of the weights, with 0 inside
it, so a shift stays within the codes and its 16 bits suffice.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, ClassVar

from core.formats.base import Grid
from core.formats.uniform import RANGES, Uniform, uniform
from core.tensors import DTYPES

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Shifted(Uniform):
    """parts: {"codes", "scale"} as in Uniform, and "shift": scale_dtype, shaped like scale."""

    zero_key: ClassVar[str] = "shift"

    @property
    def ranges(self) -> tuple[str, ...]:
        """The search for the lowest error knows whole zero points only; the method hqq moves fractional ones."""
        return tuple(r for r in RANGES if r != "rmse")

    @property
    def title(self) -> str:
        return super().title.replace("zero point", "fractional zero point")

    def nbytes(self, shape: tuple[int, ...]) -> int:
        scales = prod(self.scales_shape(shape))
        return super().nbytes(shape) + scales * (DTYPES[self.scale_dtype].bits // 8 - 1)

    def grid_of_range(self, low: torch.Tensor, high: torch.Tensor, first: int = 0) -> Grid:
        scale = super().grid_of_range(low, high, first)["scale"]
        shift = self.qmin - low.clamp(max=0) / scale.float()
        return Grid({"scale": scale, "shift": shift.clamp(self.qmin, self.qmax).to(scale.dtype)})


_NAME = re.compile(r"(int[2-8](?:-tensor|-row|-g\d+)?)-shift")


def shifted(name: str) -> Shifted | None:
    """The format of a name like "int4-g64-shift"; None when it is not such a name."""
    found = _NAME.fullmatch(name)
    base = uniform(found.group(1)) if found else None
    if base is None:
        return None
    return Shifted(f"{base.name}-shift", base.width, base.granularity, base.group, False, base.scale_dtype)


SHIFTED = tuple(f for f in map(shifted, ("int2-g64-shift", "int3-g64-shift", "int4-g64-shift")) if f is not None)
