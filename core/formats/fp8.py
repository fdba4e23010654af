"""8-bit floats with a float32 scale: one per tensor, per row, or per block of 128 × 128.

    ŵ = scale · value,   value an E4M3 number (±448, no infinity) or an E5M2 number (±57344)

The scale is absmax / 448 (or / 57344) in float32, rounded to nearest and to nothing coarser, from weights widened to
float32 first: what compressed-tensors and torchao compute for float32 weights. (Given half-precision weights those two
compute the scale in half precision.) Values are divided by the scale, clamped, then cast, so no cast ever overflows.
The scale is a multiplier, also where a file calls it `weight_scale_inv`.

Runs of zeros get scale 1 and decode to 0. Importance is ignored: the range is that of all weights.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from math import prod
from typing import TYPE_CHECKING, ClassVar

from core.formats.base import EXACT, Format, Grid, Parts, Quantized
from core.formats.checks import computable, require_finite
from core.tensors import DTYPES

if TYPE_CHECKING:
    import torch

# Rows and columns of a block.
BLOCK = 128
# Half precision is widened in pieces of about this many weights.
PIECE = 1 << 18


@dataclass(frozen=True)
class Fp8(Format):
    """parts: {"values": `dtype` [rows, columns],
    "scale": float32 [rows, 1] per row, [1, 1] per tensor, [⌈rows/128⌉, ⌈columns/128⌉] per block}.

    A code is a value's byte, uint8. Blocks at the right and bottom edges are smaller. In a grid, the scales of blocks
    are repeated for every row: [rows, ⌈columns/128⌉].

    dtype        "F8_E4M3" or "F8_E5M2", a key of DTYPES
    granularity  "tensor", "row" or "block"
    absmax       the largest magnitude that a tensor's one scale is made for; 0: the tensor's own
    """

    dtype: str
    granularity: str = "row"
    absmax: float = 0.0

    family: ClassVar[str] = "fp8"

    @property
    def title(self) -> str:
        kind = self.dtype.removeprefix("F8_")
        runs = f"{BLOCK} × {BLOCK} block" if self.granularity == "block" else self.granularity
        return f"8-bit float {kind}, one scale per {runs}"

    @property
    def bits(self) -> float:
        return 8

    @property
    def row_local(self) -> bool:  # type: ignore[override]  # a class constant elsewhere; here it depends on the record
        return self.granularity == "row"

    def row_multiple(self, shape: tuple[int, ...]) -> int:
        return {"tensor": 0, "row": 1, "block": BLOCK}[self.granularity]

    @property
    def largest(self) -> float:
        import torch

        return torch.finfo(DTYPES[self.dtype].torch).max

    def scales_shape(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """Shape of the stored scales of a matrix."""
        rows, columns = prod(shape[:-1]), shape[-1] if shape else 1
        if self.granularity == "tensor":
            return 1, 1
        return (rows, 1) if self.granularity == "row" else (-(-rows // BLOCK), -(-columns // BLOCK))

    def nbytes(self, shape: tuple[int, ...]) -> int:
        return prod(shape) + 4 * prod(self.scales_shape(shape))

    def fit(self, w: torch.Tensor, importance: torch.Tensor | None = None, effort: str = EXACT) -> Grid:
        import torch

        self.require_effort(effort)
        rows, columns = w.shape
        if w.numel() == 0:
            size = torch.zeros(self.scales_shape((rows, columns)), device=w.device)
        elif self.granularity == "block":
            size = self._block_sizes(w)
        else:
            size = _largest(w, -1).view(rows, 1)
            size = size.amax().view(1, 1) if self.granularity == "tensor" else size
            size = torch.full_like(size, self.absmax) if self.absmax and size.isfinite().all() else size
        if not size.isfinite().all():
            require_finite(w)
        scale = self.scale_of(size)
        return Grid({"scale": scale.repeat_interleave(BLOCK, 0)[:rows] if self.granularity == "block" else scale})

    def quantize(self, w: torch.Tensor, importance: torch.Tensor | None = None, effort: str = EXACT) -> Quantized:
        import torch

        from core.formats.fitting import on_lanes

        self.require_effort(effort)
        if not on_lanes(w) or w.numel() == 0:
            return super().quantize(w, importance, effort)
        from core.formats.fitting.small import largest, quantize_fp8

        rows, columns = w.shape
        scale = torch.empty(self.scales_shape((rows, columns)))
        fits = self.granularity != "tensor"
        if not fits:
            size = largest(w)
            if not size.isfinite():
                require_finite(w)
            scale = self.scale_of(torch.full_like(size, self.absmax) if self.absmax else size).view(1, 1)
        values = quantize_fp8(w, self.dtype, *self._span(rows, columns), scale, fits)
        if values is None:
            require_finite(w)
        assert values is not None
        return Quantized(self, (rows, columns), parts={"values": values, "scale": scale})

    def dequantize(self, parts: Parts, shape: tuple[int, int]) -> torch.Tensor:
        from core.formats.fitting import on_lanes

        values = parts["values"].reshape(shape)
        if not on_lanes(values) or values.numel() == 0:
            return super().dequantize(parts, shape)
        from core.formats.fitting.small import dequantize_values

        scale = parts["scale"].reshape(self.scales_shape(shape))
        return dequantize_values(values, self.dtype, *self._span(*shape), scale)

    def _span(self, rows: int, columns: int) -> tuple[int, int]:
        """Columns and rows that share a scale."""
        return {"tensor": (columns, rows), "row": (columns, 1), "block": (BLOCK, BLOCK)}[self.granularity]

    def sharing(self, absmax: float) -> Fp8:
        return replace(self, absmax=absmax) if self.granularity == "tensor" else self

    def _block_sizes(self, w: torch.Tensor) -> torch.Tensor:
        """float32 [⌈rows/128⌉, ⌈columns/128⌉]: the largest magnitude of every block."""
        import torch

        strips = []
        for start in range(0, w.shape[0], BLOCK):
            columns = _largest(w[start : start + BLOCK], 0)
            padded = torch.nn.functional.pad(columns, (0, -w.shape[1] % BLOCK))
            strips.append(padded.view(-1, BLOCK).amax(1))
        return torch.stack(strips)

    def scale_of(self, size: torch.Tensor) -> torch.Tensor:
        """Scales for largest magnitudes, float32, any shape; never 0, and no level of theirs is infinite."""
        import torch

        scale = size / torch.full_like(size, self.largest)
        top = (scale * self.largest).isinf()
        scale = torch.where(top, torch.nextafter(scale, torch.zeros_like(scale)), scale)
        # The smallest positive float32, where a quotient of tiny weights became 0.
        scale = torch.where(scale > 0, scale, torch.full_like(scale, 2.0**-149))
        return torch.where(size == 0, torch.ones_like(scale), scale)

    def _scales(self, grid: Grid, rows: slice, start: int, columns: int) -> torch.Tensor:
        """Scales of some rows and of columns start … start + columns, broadcastable."""
        scale = grid["scale"]
        if self.granularity == "tensor":
            return scale
        if self.granularity == "row":
            return scale[rows]
        first, last = start // BLOCK, (start + columns - 1) // BLOCK + 1
        return scale[rows, first:last].repeat_interleave(BLOCK, 1)[:, start - first * BLOCK :][:, :columns]

    def encode(self, w: torch.Tensor, grid: Grid, start: int = 0) -> torch.Tensor:
        import torch

        dtype, largest = DTYPES[self.dtype].torch, self.largest
        rows, columns = w.shape
        out = torch.empty(rows, columns, dtype=torch.uint8, device=w.device)
        for piece in row_pieces(rows, columns):
            scaled = w[piece].to(torch.float32) / self._scales(grid, piece, start, columns)
            out[piece] = scaled.clamp_(-largest, largest).to(dtype).view(torch.uint8)
        return out

    def decode(self, codes: torch.Tensor, grid: Grid, start: int = 0) -> torch.Tensor:
        import torch

        rows, columns = codes.shape
        table = byte_values(self.dtype, codes.device)
        out = torch.empty(rows, columns, dtype=torch.float32, device=codes.device)
        for piece in row_pieces(rows, columns):
            values = table[codes[piece].to(torch.int32)]
            torch.mul(values, self._scales(grid, piece, start, columns), out=out[piece])
        return out

    def pack(self, codes: torch.Tensor, grid: Grid) -> Parts:
        scale = grid["scale"]
        if self.granularity == "block":
            scale = scale[::BLOCK].contiguous()
        return {"values": codes.contiguous().view(DTYPES[self.dtype].torch), "scale": scale}

    def unpack(self, parts: Parts, shape: tuple[int, int]) -> tuple[torch.Tensor, Grid]:
        import torch

        scale = parts["scale"].reshape(self.scales_shape(shape))
        if self.granularity == "block":
            scale = scale.repeat_interleave(BLOCK, 0)[: shape[0]]
        return parts["values"].reshape(shape).view(torch.uint8), Grid({"scale": scale})

    def levels(self, grid: Grid, row: int, column: int) -> torch.Tensor | None:
        scale = grid["scale"]
        at = {"tensor": (0, 0), "row": (row, 0), "block": (row, column // BLOCK)}[self.granularity]
        return finite_values(self.dtype, scale.device) * scale[at]


def _largest(w: torch.Tensor, dim: int) -> torch.Tensor:
    """float32: the largest magnitude along a dimension; NaN stays NaN."""
    import torch

    low, high = torch.aminmax(computable(w), dim=dim)
    return torch.maximum(-low.float(), high.float())


def row_pieces(rows: int, columns: int) -> list[slice]:
    step = max(1, PIECE // max(1, columns))
    return [slice(a, min(rows, a + step)) for a in range(0, rows, step)]


@lru_cache(maxsize=16)
def byte_values(dtype: str, device: torch.device) -> torch.Tensor:
    """float32 [256]: the number every byte of an 8-bit float type stands for. Shared: never write to it."""
    import torch

    return torch.arange(256, dtype=torch.uint8).view(DTYPES[dtype].torch).to(torch.float32).to(device)


def finite_values(dtype: str, device: torch.device) -> torch.Tensor:
    """float32, ascending: every finite number of an 8-bit float type, zero once."""
    import torch

    values = byte_values(dtype, device)
    return torch.unique(values[values.isfinite()], sorted=True)


def _family(kind: str, dtype: str) -> tuple[Fp8, ...]:
    return (
        Fp8(f"fp8-{kind}", dtype),
        Fp8(f"fp8-{kind}-tensor", dtype, "tensor"),
        Fp8(f"fp8-{kind}-b128", dtype, "block"),
    )


FP8 = (*_family("e4m3", "F8_E4M3"), *_family("e5m2", "F8_E5M2"))
