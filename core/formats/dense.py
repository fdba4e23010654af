"""Plain floating point: f32, f16, bf16. A code is the stored number's bits read as an integer."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, ClassVar

from core.formats.base import EXACT, Format, Grid, Parts, Quantized
from core.formats.checks import out_of_range, require_finite
from core.tensors import DTYPES

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Dense(Format):
    """One number per weight. parts: {"values": [rows, columns] of `dtype`}.

    dtype  upper case, a key of DTYPES
    """

    dtype: str

    family: ClassVar[str] = "dense"

    @property
    def title(self) -> str:
        return {"F32": "32-bit float", "F16": "16-bit float", "BF16": "16-bit brain float"}[self.dtype]

    @property
    def bits(self) -> float:
        return DTYPES[self.dtype].bits

    def nbytes(self, shape: tuple[int, ...]) -> int:
        return prod(shape) * DTYPES[self.dtype].bits // 8

    def fit(self, w: torch.Tensor, importance: torch.Tensor | None = None, effort: str = EXACT) -> Grid:
        self.require_effort(effort)
        require_finite(w)
        return Grid()

    def encode(self, w: torch.Tensor, grid: Grid, start: int = 0) -> torch.Tensor:
        import torch

        return self._values(w).view(torch.int32 if self.dtype == "F32" else torch.int16)

    def _values(self, w: torch.Tensor) -> torch.Tensor:
        """Rounded to the stored type. Raises OutOfRange where a finite weight became infinite."""
        import torch

        values = w.to(DTYPES[self.dtype].torch)
        # A single row or column counts as contiguous whatever its strides, and yet has no bytes to look at.
        if not values.is_contiguous() or values.stride(-1) != 1:
            values = values.clone(memory_format=torch.contiguous_format)
        if values.dtype != w.dtype and not values.isfinite().all():
            bad = (~values.isfinite()).any(1).nonzero()[0, 0].item()
            raise out_of_range(int(bad), f"the range of {self.name}")
        return values

    def decode(self, codes: torch.Tensor, grid: Grid, start: int = 0) -> torch.Tensor:
        import torch

        return codes.view(DTYPES[self.dtype].torch).to(torch.float32)

    def pack(self, codes: torch.Tensor, grid: Grid) -> Parts:
        return {"values": codes.view(DTYPES[self.dtype].torch)}

    def unpack(self, parts: Parts, shape: tuple[int, int]) -> tuple[torch.Tensor, Grid]:
        import torch

        values = parts["values"].reshape(shape)
        return values.view(torch.int32 if self.dtype == "F32" else torch.int16), Grid()

    def quantize(self, w: torch.Tensor, importance: torch.Tensor | None = None, effort: str = EXACT) -> Quantized:
        self.require_effort(effort)
        require_finite(w)
        return Quantized(self, (w.shape[0], w.shape[1]), parts={"values": self._values(w)})

    def dequantize(self, parts: Parts, shape: tuple[int, int]) -> torch.Tensor:
        import torch

        return parts["values"].reshape(shape).to(torch.float32)


DENSE = (Dense("f32", "F32"), Dense("f16", "F16"), Dense("bf16", "BF16"))
