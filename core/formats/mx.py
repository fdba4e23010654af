"""Microscaling formats: MXFP8 (E4M3 values, a power of two per 32) and NVFP4 (E2M1 values, an E4M3 scale per 16 and one
float32 scale for the tensor). MXFP4 is in formats/ggml: its levels and scales are the same ones, its bytes GGML's.

Libraries agree on how MX scales are read, not on how they are chosen; with a = 2^e · m, 1 ≤ m < 2, the largest
magnitude of a group, E4M3's largest power of two being 2^8:

    floor  e − 8                      the OCP document, torchao FLOOR; magnitudes above 448 · 2^(e−8) are clipped
    even   e − 8, + 1 if m ≥ 1.75     compressed-tensors; nothing is clipped
    rceil  e − 8, + 1 if m > 1.75     torchao RCEIL, MLX, cuBLAS; nothing is clipped
    ceil   e − 8, + 1 if m > 1        torchao CEIL

(torchao's EVEN rounds m to three bits first, so it adds 1 from 1.9375 on; it is not here.) "even" is the default: it
clips nothing, and the container that carries the format chooses the same.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING, ClassVar

from core.errors import RecipeError
from core.formats.base import EXACT, Format, Grid, Parts, Quantized
from core.formats.checks import FLOAT32_LARGEST, require_finite
from core.formats.codebook import dequantize_runs, e2m1, largest_of_runs, pack_pairs, quantize_runs, unpack_pairs
from core.formats.fp8 import byte_values, finite_values, row_pieces

if TYPE_CHECKING:
    import torch

RULES = ("floor", "even", "rceil", "ceil")
E4M3 = "F8_E4M3"
E4M3_LARGEST = 448.0
E4M3_SMALLEST = 2.0**-9
E2M1_LARGEST = 6.0
# From this scale byte on, 2^120, the value after 240 would be decoded to infinity.
HUGE = 247


def _spread(part: torch.Tensor, run: int, start: int, columns: int) -> torch.Tensor:
    """A [rows, groups] part repeated for columns start … start + columns."""
    first, last = start // run, (start + columns - 1) // run + 1
    return part[:, first:last].repeat_interleave(run, 1)[:, start - first * run :][:, :columns]


@dataclass(frozen=True)
class MxFp8(Format):
    """parts: {"values": float8_e4m3fn [rows, columns], "scale": uint8 [rows, columns / 32], exponent + 127}.

    A code is a value's byte, uint8. Groups of zeros get scale byte 0.

    rule  one of RULES
    """

    rule: str = "even"

    family: ClassVar[str] = "mx"

    def __post_init__(self) -> None:
        if self.rule not in RULES:
            raise RecipeError(f"scale rule {self.rule!r} is not one of {', '.join(RULES)}", where=self.name)

    @property
    def title(self) -> str:
        return "8-bit float E4M3, power-of-two scale per 32"

    @property
    def bits(self) -> float:
        return 8

    @property
    def columns_per_grid(self) -> int:
        return 32

    def nbytes(self, shape: tuple[int, ...]) -> int:
        return prod(shape) + prod(shape) // 32

    def fit(self, w: torch.Tensor, importance: torch.Tensor | None = None, effort: str = EXACT) -> Grid:
        self.require_effort(effort)
        size = largest_of_runs(w, 32).view(w.shape[0], w.shape[1] // 32)
        if not size.isfinite().all():
            require_finite(w)
        return Grid({"scale": self.scale_of(size)})

    def quantize(self, w: torch.Tensor, importance: torch.Tensor | None = None, effort: str = EXACT) -> Quantized:
        import torch

        from core.formats.fitting import on_lanes

        self.require_effort(effort)
        if not on_lanes(w) or w.numel() == 0:
            return super().quantize(w, importance, effort)
        from core.formats.fitting.small import quantize_mxfp8

        scale = torch.empty(w.shape[0], w.shape[1] // 32, dtype=torch.uint8)
        values = quantize_mxfp8(w, self.rule, scale)
        if values is None:
            require_finite(w)
        assert values is not None
        return Quantized(self, (w.shape[0], w.shape[1]), parts={"values": values, "scale": scale})

    def dequantize(self, parts: Parts, shape: tuple[int, int]) -> torch.Tensor:
        import torch

        from core.formats.fitting import on_lanes

        values = parts["values"].reshape(shape)
        if not on_lanes(values) or values.numel() == 0:
            return super().dequantize(parts, shape)
        from core.formats.fitting.small import dequantize_values

        scale = parts["scale"].reshape(shape[0], shape[1] // 32).view(torch.uint8)
        return dequantize_values(values, E4M3, 32, 1, scale)

    def scale_of(self, size: torch.Tensor) -> torch.Tensor:
        """uint8 scale bytes for largest magnitudes, float32, any shape."""
        import torch

        half, exponent = torch.frexp(size)  # size = half · 2^exponent, half in [0.5, 1)
        power = exponent - 1 - 8
        if self.rule == "even":
            power += half >= 0.875
        elif self.rule == "rceil":
            power += half > 0.875
        elif self.rule == "ceil":
            power += half > 0.5
        scale = (power + 127).clamp(0, 254)
        return torch.where(size == 0, torch.zeros_like(scale), scale).to(torch.uint8)

    def encode(self, w: torch.Tensor, grid: Grid, start: int = 0) -> torch.Tensor:
        import torch

        out = torch.empty(w.shape, dtype=torch.uint8, device=w.device)
        for rows in row_pieces(*w.shape):
            scale = _spread(powers(grid["scale"][rows]), 32, start, w.shape[1])
            scaled = w[rows].to(torch.float32) / scale
            if (grid["scale"][rows] >= HUGE).any():
                scaled = scaled.clamp(-240.0, 240.0).where(scale >= 2.0**120, scaled)
            values = scaled.clamp_(-E4M3_LARGEST, E4M3_LARGEST).to(torch.float8_e4m3fn)
            out[rows] = values.view(torch.uint8)
        return out

    def decode(self, codes: torch.Tensor, grid: Grid, start: int = 0) -> torch.Tensor:
        import torch

        table = byte_values(E4M3, codes.device)
        out = torch.empty(codes.shape, dtype=torch.float32, device=codes.device)
        for rows in row_pieces(*codes.shape):
            scale = _spread(powers(grid["scale"][rows]), 32, start, codes.shape[1])
            torch.mul(table[codes[rows].to(torch.int32)], scale, out=out[rows])
        return out

    def pack(self, codes: torch.Tensor, grid: Grid) -> Parts:
        import torch

        return {"values": codes.contiguous().view(torch.float8_e4m3fn), "scale": grid["scale"]}

    def unpack(self, parts: Parts, shape: tuple[int, int]) -> tuple[torch.Tensor, Grid]:
        import torch

        scale = parts["scale"].reshape(shape[0], shape[1] // 32).view(torch.uint8)
        return parts["values"].reshape(shape).view(torch.uint8), Grid({"scale": scale})

    def levels(self, grid: Grid, row: int, column: int) -> torch.Tensor | None:
        scale = grid["scale"]
        values = finite_values(E4M3, scale.device) * powers(scale[row, column // 32])
        return values[values.isfinite()]


def powers(scale: torch.Tensor) -> torch.Tensor:
    """float32 2^(byte − 127), the smallest a subnormal; scale uint8, any shape."""
    import torch

    wide = scale.to(torch.int32)
    return torch.where(wide == 0, 1 << 22, wide << 23).view(torch.float32)


@dataclass(frozen=True)
class NvFp4(Format):
    """parts: {"codes": uint8 [rows, columns / 2], the first of a pair in the low nibble, "scale": float8_e4m3fn
    [rows, columns / 16], "inv_global_scale": float32 [1, 1]}.

        ŵ = level · (scale / inv_global_scale),   inv_global_scale = 448 · 6 / absmax of the tensor

    the convention of compressed-tensors, equal to it bit for bit for float32 weights (but for the last bit of
    inv_global_scale, which it finds by way of a reciprocal), with two exceptions where it would round every weight to
    zero: a group whose scale underflows E4M3 gets the smallest one, 2^-9 (there: 0.125),
    and an absmax so small that the quotient overflows gets float32's largest number (there: 1).
    Groups of zeros get scale 0.125, a tensor of zeros inv_global_scale 1.

    absmax        the largest magnitude that the tensor's scale is made for; 0: the tensor's own
    power_of_two  inv_global_scale is rounded down to one, for containers that store what to multiply with, not what to
                  divide by
    """

    absmax: float = 0.0
    power_of_two: bool = False

    family: ClassVar[str] = "mx"
    row_local: ClassVar[bool] = False

    @property
    def title(self) -> str:
        return "4-bit float E2M1, 8-bit float scale per 16"

    @property
    def bits(self) -> float:
        return 4

    @property
    def columns_per_grid(self) -> int:
        return 16

    def nbytes(self, shape: tuple[int, ...]) -> int:
        return prod(shape) // 2 + prod(shape) // 16 + 4

    def fit(self, w: torch.Tensor, importance: torch.Tensor | None = None, effort: str = EXACT) -> Grid:
        import torch

        self.require_effort(effort)
        size = largest_of_runs(w, 16).view(w.shape[0], w.shape[1] // 16)
        if not size.isfinite().all():
            require_finite(w)
        if self.absmax:
            largest = torch.tensor(self.absmax, device=size.device)
        else:
            largest = size.amax() if size.numel() else size.new_zeros(())
        return self.grid_of(size, self.inv_global_scale(largest))

    def sharing(self, absmax: float) -> NvFp4:
        return replace(self, absmax=absmax)

    def inv_global_scale(self, absmax: torch.Tensor) -> torch.Tensor:
        """float32 [1, 1] for the largest magnitude of a tensor, or of several that must share it (q, k and v)."""
        import torch

        absmax = absmax.reshape(1, 1).to(torch.float32)
        quotient = torch.full_like(absmax, E4M3_LARGEST * E2M1_LARGEST) / absmax
        quotient = quotient.clamp(max=FLOAT32_LARGEST)
        if self.power_of_two:
            mantissa, exponent = torch.frexp(quotient)
            # Finite on both sides, its inverse too.
            quotient = torch.ldexp(torch.full_like(mantissa, 0.5), exponent.clamp(-124, 126))
        else:
            # Rounding must not push the largest level of all beyond float32.
            beyond = (E2M1_LARGEST * (E4M3_LARGEST / quotient)).isinf()
            quotient = torch.where(beyond, torch.nextafter(quotient, torch.full_like(quotient, 1.0)), quotient)
        return torch.where(absmax == 0, torch.ones_like(quotient), quotient)

    def grid_of(self, size: torch.Tensor, inv_global_scale: torch.Tensor) -> Grid:
        """The grid for largest magnitudes, float32 [rows, groups of 16], and a given scale of the tensor."""
        import torch

        raw = size / torch.full_like(size, E2M1_LARGEST) * inv_global_scale
        scale = raw.clamp(E4M3_SMALLEST, E4M3_LARGEST)
        scale = torch.where(size == 0, torch.full_like(scale, 0.125), scale)
        return Grid({"scale": scale.to(torch.float8_e4m3fn), "inv_global_scale": inv_global_scale})

    @staticmethod
    def steps(grid: Grid) -> torch.Tensor:
        """float32 [rows, groups]: scale / inv_global_scale."""
        import torch

        return grid["scale"].to(torch.float32) / grid["inv_global_scale"]

    def quantize(self, w: torch.Tensor, importance: torch.Tensor | None = None, effort: str = EXACT) -> Quantized:
        from core.formats.fitting import on_lanes

        self.require_effort(effort)
        if on_lanes(w) and w.numel():
            return self._on_lanes(w)
        grid = self.fit(w)
        codes = quantize_runs(e2m1(), w, self.steps(grid).reshape(-1), 16, high_first=False, multiply=False)
        parts = {"codes": codes.view(w.shape[0], w.shape[1] // 2), **grid.parts}
        return Quantized(self, (w.shape[0], w.shape[1]), parts=parts)

    def _on_lanes(self, w: torch.Tensor) -> Quantized:
        import torch

        from core.formats.fitting.small import largest, quantize_nvfp4

        size = torch.tensor(self.absmax) if self.absmax else largest(w)
        if not size.isfinite():
            require_finite(w)
        inverse = self.inv_global_scale(size)
        scale = torch.empty(w.shape[0], w.shape[1] // 16, dtype=torch.uint8)
        codes = quantize_nvfp4(w, inverse, scale)
        if codes is None:
            require_finite(w)
        assert codes is not None
        parts = {"codes": codes, "scale": scale.view(torch.float8_e4m3fn), "inv_global_scale": inverse}
        return Quantized(self, (w.shape[0], w.shape[1]), parts=parts)

    def dequantize(self, parts: Parts, shape: tuple[int, int]) -> torch.Tensor:
        from core.formats.fitting import on_lanes

        if on_lanes(parts["codes"]) and parts["codes"].numel():
            from core.formats.fitting.small import dequantize_nvfp4

            return dequantize_nvfp4(parts["codes"], parts["scale"], parts["inv_global_scale"], shape)
        step = self.steps(Grid(parts)).reshape(-1)
        return dequantize_runs(e2m1(), parts["codes"], step, 16, prod(shape), high_first=False).view(shape)

    def encode(self, w: torch.Tensor, grid: Grid, start: int = 0) -> torch.Tensor:
        import torch

        step = self.steps(grid)
        out = torch.empty(w.shape, dtype=torch.uint8, device=w.device)
        for rows in row_pieces(*w.shape):
            out[rows] = e2m1().search(w[rows].to(torch.float32) / _spread(step[rows], 16, start, w.shape[1]))
        return out

    def decode(self, codes: torch.Tensor, grid: Grid, start: int = 0) -> torch.Tensor:
        import torch

        step = self.steps(grid)
        out = torch.empty(codes.shape, dtype=torch.float32, device=codes.device)
        for rows in row_pieces(*codes.shape):
            torch.mul(e2m1().look_up(codes[rows]), _spread(step[rows], 16, start, codes.shape[1]), out=out[rows])
        return out

    def pack(self, codes: torch.Tensor, grid: Grid) -> Parts:
        return {"codes": pack_pairs(codes, False).view(codes.shape[0], codes.shape[1] // 2), **grid.parts}

    def unpack(self, parts: Parts, shape: tuple[int, int]) -> tuple[torch.Tensor, Grid]:
        codes = unpack_pairs(parts["codes"], prod(shape), False).view(shape)
        return codes, Grid(
            {"scale": parts["scale"].reshape(shape[0], shape[1] // 16), "inv_global_scale": parts["inv_global_scale"]}
        )

    def levels(self, grid: Grid, row: int, column: int) -> torch.Tensor | None:
        import torch

        step = self.steps(grid)[row, column // 16]
        return torch.tensor(e2m1().ascending, device=step.device) * step


MX = (MxFp8("mxfp8"), NvFp4("nvfp4"))
