"""bitsandbytes' 4-bit formats: NF4 and FP4, absmax per 64 weights, optionally with the absmax quantized in turn.

    ŵ = absmax · level[code]

A block is 64 weights of the matrix read as one run, so where columns are not a multiple of 64 blocks cross from one row
into the next, and row slices must begin on a block. With nested statistics ("-dq") an absmax is stored as 8 bits,
relative to the mean of them all: then no slice stands for itself.

`quantize` yields bitsandbytes' codes and absmax, bit for bit. With nested statistics it chooses codes with the exact
absmax, as bitsandbytes does, and `encode` with the stored one: encode's codes are the closer ones. Nested codes are
nearest levels; bitsandbytes' CPU path looks them up in a table of 65536 entries and a few of its codes are one off.
Importance is ignored.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import gcd, prod
from typing import TYPE_CHECKING, ClassVar

from core.formats.base import EXACT, Format, Grid, Parts, Quantized
from core.formats.checks import require_finite
from core.formats.codebook import (
    Codebook,
    by_midpoints,
    dequantize_runs,
    largest_of_runs,
    pack_pairs,
    quantize_runs,
    ranged_runs,
    unpack_pairs,
)

if TYPE_CHECKING:
    import torch

BLOCK = 64
# Blocks that share one nested absmax.
NESTED = 256
# bitsandbytes' guard: smaller absmax count as this.
SMALLEST = 1e-38

NF4 = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)
_TWELFTHS = (0.0, 0.0625, 8.0, 12.0, 4.0, 6.0, 2.0, 3.0)
FP4 = (*(v / 12 for v in _TWELFTHS), 0.0, *(-v / 12 for v in _TWELFTHS[1:]))


@lru_cache(maxsize=2)
def codebook(kind: str) -> Codebook:
    """The levels of "nf4" or "fp4"."""
    if kind == "nf4":
        return by_midpoints(NF4, tuple(range(16)))
    # FP4 has two zeros: 0 takes code 0, the smallest positive weights code 8.
    return by_midpoints(FP4, (11, 10, 13, 12, 15, 14, 9, 0, 8, 1, 6, 7, 4, 5, 2, 3))


@dataclass(frozen=True)
class Bnb4(Format):
    """parts: {"codes": uint8 [⌈weights/2⌉], first weight of a pair in the high nibble; "absmax": float32 [blocks]}, or
    nested {"codes", "absmax": uint8 [blocks], "nested_absmax": float32 [⌈blocks/256⌉], "nested_offset": float32 [1]}.

    A grid holds, for every row, the absmax of the blocks that the row touches [rows, touched], and how far into its
    first block the row begins ("phase", int32 [rows, 1]).
    """

    kind: str
    nested: bool = False

    family: ClassVar[str] = "bitsandbytes"
    row_local: ClassVar[bool] = False  # only where columns are a multiple of 64: see row_multiple

    @property
    def title(self) -> str:
        name = {"nf4": "4-bit normal float", "fp4": "4-bit float"}[self.kind]
        return f"{name}, blocks of {BLOCK}{', scales in 8 bits' if self.nested else ''}"

    @property
    def bits(self) -> float:
        return 4

    @property
    def book(self) -> Codebook:
        return codebook(self.kind)

    def row_multiple(self, shape: tuple[int, ...]) -> int:
        return 0 if self.nested else BLOCK // gcd(shape[-1] if shape else 1, BLOCK)

    def nbytes(self, shape: tuple[int, ...]) -> int:
        count = prod(shape)
        blocks = -(-count // BLOCK)
        return (count + 1) // 2 + (blocks + 4 * -(-blocks // NESTED) + 4 if self.nested else 4 * blocks)

    def fit(self, w: torch.Tensor, importance: torch.Tensor | None = None, effort: str = EXACT) -> Grid:
        self.require_effort(effort)
        return self._grid(self._stored(self._absmax(w)), (w.shape[0], w.shape[1]))

    def quantize(self, w: torch.Tensor, importance: torch.Tensor | None = None, effort: str = EXACT) -> Quantized:
        import torch

        from core.formats.fitting import on_lanes

        self.require_effort(effort)
        count = w.numel()
        whole = count // BLOCK * BLOCK
        flat = w.detach().reshape(-1)
        if on_lanes(w) and whole:
            found = ranged_runs(self.book, flat[:whole], BLOCK, SMALLEST)
            if found is None:
                require_finite(w)
            assert found is not None
            codes, absmax = found
            if whole < count:
                last = largest_of_runs(flat[whole:], BLOCK)
                if not last.isfinite():
                    require_finite(w)
                absmax = torch.cat((absmax, last.clamp(min=SMALLEST)))
        else:
            absmax = self._absmax(w)
            inverse = 1 / absmax.clamp(min=SMALLEST)
            codes = quantize_runs(self.book, flat[:whole], inverse, BLOCK, high_first=True, multiply=True)
        if whole < count:
            # bitsandbytes divides in an incomplete last block, where elsewhere it multiplies by the reciprocal.
            last = self.book.search(flat[whole:].to(torch.float32) / absmax[-1])
            codes = torch.cat((codes, pack_pairs(last, True, self._zero)))
        parts = {"codes": codes, **self._stored(absmax)}
        return Quantized(self, (w.shape[0], w.shape[1]), parts=parts)

    @property
    def _zero(self) -> int:
        """The code of 0, which fills the nibble beside the last of an odd number of weights."""
        return 7 if self.kind == "nf4" else 0

    def _absmax(self, w: torch.Tensor) -> torch.Tensor:
        """float32 [blocks]."""
        absmax = largest_of_runs(w, BLOCK)
        if not absmax.isfinite().all():
            require_finite(w)
        if w.numel() % BLOCK:
            absmax[-1:].clamp_(min=SMALLEST)  # as bitsandbytes has it, in the incomplete block alone
        return absmax

    def _stored(self, absmax: torch.Tensor) -> dict[str, torch.Tensor]:
        """The parts that hold the absmax of all blocks."""
        import torch

        if not self.nested:
            return {"absmax": absmax}
        # In float64 the mean does not depend on the number of threads that add it up.
        mean = absmax.double().mean() if absmax.numel() else absmax.new_zeros(())
        offset = mean.to(torch.float32).reshape(1)
        centred = absmax - offset
        largest = largest_of_runs(centred, NESTED)
        scaled = centred / largest.clamp(min=SMALLEST).repeat_interleave(NESTED)[: centred.numel()]
        levels = dynamic_map(absmax.device)
        codes = torch.bucketize(scaled, (levels[:-1] + levels[1:]) / 2, out_int32=True).to(torch.uint8)
        return {"absmax": codes, "nested_absmax": largest, "nested_offset": offset}

    def block_absmax(self, parts: Parts) -> torch.Tensor:
        """float32 [blocks]: what a reader of the stored parts takes for every block's absmax."""
        if not self.nested:
            return parts["absmax"].reshape(-1)
        import numpy as np
        import torch

        from core.formats.fitting import on_lanes

        codes = parts["absmax"].reshape(-1)
        if on_lanes(codes):
            from core.formats.fitting.lanes_codebook import decode_nested

            out = torch.empty(codes.numel())
            nested, offset = parts["nested_absmax"].reshape(-1).contiguous(), np.float32(parts["nested_offset"].item())
            table = dynamic_map(codes.device).numpy()
            decode_nested(codes.contiguous().numpy(), table, nested.numpy(), NESTED, offset, out.numpy())
            return out
        levels = dynamic_map(codes.device)[codes.int()]
        nested = parts["nested_absmax"].reshape(-1).repeat_interleave(NESTED)[: codes.numel()]
        return levels * nested + parts["nested_offset"].reshape(())

    def _grid(self, parts: Parts, shape: tuple[int, int]) -> Grid:
        import torch

        rows, columns = shape
        absmax = self.block_absmax(parts)
        begins = torch.arange(rows, device=absmax.device) * columns
        touched = (BLOCK - gcd(columns, BLOCK) + columns - 1) // BLOCK + 1 if columns else 0
        index = begins[:, None] // BLOCK + torch.arange(touched, device=absmax.device)
        index = index.clamp(max=max(0, absmax.numel() - 1))
        grid = {"absmax": absmax[index], "phase": (begins % BLOCK).to(torch.int32)[:, None]}
        if self.nested:
            grid["statistics"] = parts["absmax"].reshape(-1)[index]
            grid["nested_absmax"] = parts["nested_absmax"].reshape(1, -1)
            grid["nested_offset"] = parts["nested_offset"].reshape(1, 1)
        return Grid(grid)

    def _scales(self, grid: Grid, rows: slice, start: int, columns: int) -> torch.Tensor:
        """float32 [rows, columns]: the absmax of every weight in columns start … start + columns."""
        import torch

        phase = grid["phase"][rows]
        places = torch.arange(start, start + columns, device=phase.device)
        return grid["absmax"][rows].gather(1, (phase + places) // BLOCK)

    def encode(self, w: torch.Tensor, grid: Grid, start: int = 0) -> torch.Tensor:
        import torch

        out = torch.empty(w.shape, dtype=torch.uint8, device=w.device)
        for rows in _row_pieces(*w.shape):
            scale = self._scales(grid, rows, start, w.shape[1])
            # A nested absmax may come out negative for blocks far below the mean: then levels are mirrored.
            scale = torch.where(scale.abs() < SMALLEST, torch.full_like(scale, SMALLEST), scale)
            out[rows] = self.book.search(w[rows].to(torch.float32) * (1 / scale))
        return out

    def decode(self, codes: torch.Tensor, grid: Grid, start: int = 0) -> torch.Tensor:
        import torch

        out = torch.empty(codes.shape, dtype=torch.float32, device=codes.device)
        for rows in _row_pieces(*codes.shape):
            torch.mul(self.book.look_up(codes[rows]), self._scales(grid, rows, start, codes.shape[1]), out=out[rows])
        return out

    def pack(self, codes: torch.Tensor, grid: Grid) -> Parts:
        import torch

        rows, columns = codes.shape
        first = torch.arange(-(-rows * columns // BLOCK), device=codes.device) * BLOCK
        row = first // max(1, columns)
        at = first // BLOCK - row * columns // BLOCK
        parts = {"codes": pack_pairs(codes, True, self._zero)}
        if not self.nested:
            return {**parts, "absmax": grid["absmax"][row, at]}
        return {
            **parts,
            "absmax": grid["statistics"][row, at],
            "nested_absmax": grid["nested_absmax"].reshape(-1),
            "nested_offset": grid["nested_offset"].reshape(1),
        }

    def unpack(self, parts: Parts, shape: tuple[int, int]) -> tuple[torch.Tensor, Grid]:
        codes = unpack_pairs(parts["codes"], prod(shape), True).view(shape)
        return codes, self._grid(parts, shape)

    def dequantize(self, parts: Parts, shape: tuple[int, int]) -> torch.Tensor:
        absmax = self.block_absmax(parts)
        return dequantize_runs(self.book, parts["codes"], absmax, BLOCK, prod(shape), high_first=True).view(shape)

    def levels(self, grid: Grid, row: int, column: int) -> torch.Tensor | None:
        import torch

        absmax = grid["absmax"][row, (int(grid["phase"][row, 0]) + column) // BLOCK]
        return torch.unique(torch.tensor(self.book.ascending, device=absmax.device) * absmax)


def _row_pieces(rows: int, columns: int) -> list[slice]:
    step = max(1, (1 << 18) // max(1, columns))
    return [slice(a, min(rows, a + step)) for a in range(0, rows, step)]


@lru_cache(maxsize=8)
def dynamic_map(device: torch.device) -> torch.Tensor:
    """float32 [256], ascending: bitsandbytes' signed 8-bit map for statistics. Shared: never write to it.

    Seven decades end at 1. The k-th from below, k = 0 … 6, is cut into 2^k equal steps between a tenth and the whole of
    its end, and the middle of each step is a level, with both signs. 0 and 1 complete the map.
    """
    import torch

    levels = [0.0, 1.0]
    for k in range(7):
        edges = torch.linspace(0.1, 1, 2**k + 1, dtype=torch.float32)
        middles = 10.0 ** (k - 6) * ((edges[:-1] + edges[1:]) / 2)
        levels += middles.tolist() + (-middles).tolist()
    return torch.tensor(sorted(levels), dtype=torch.float32).to(device)


BNB4 = tuple(
    Bnb4(f"{kind}{'-dq' if nested else ''}", kind, nested) for kind in ("nf4", "fp4") for nested in (False, True)
)
