"""GGML's block types as formats: codes and grids instead of bytes, so that any method can work inside their grids.

parts are {"blocks": uint8 [rows, bytes of a row]}; a grid holds the stored fields of every block (d, scales, mins, …),
exactly as stored, each [rows, blocks · fields per block]. Bit layouts are in the family modules, searches in
core/formats/fitting.

`quantize` yields llama.cpp's bytes, or with effort "best" blocks of the same type that are closer to the weights.
`encode` chooses the nearest level of the *stored* grid; where llama.cpp chose a
code with its scale before rounding to 16 bit (Q4_0 and the other simple types) the two differ in a few codes, and
encode's are the closer ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from core.formats.base import BEST, EXACT, Format, Grid, Parts, Quantized
from core.formats.checks import needs_importance
from core.formats.ggml.types import GGML_TYPES, GgmlType

if TYPE_CHECKING:
    from torch import Tensor

    from core.formats.ggml.layout import Layout

# Decoded and encoded in pieces of about this many weights.
PIECE = 1 << 20


@dataclass(frozen=True)
class GgmlFormat(Format):
    """One GGML type that we write.

    type_name  upper case, a key of GGML_TYPES
    """

    type_name: str

    family: ClassVar[str] = "ggml"

    @property
    def type(self) -> GgmlType:
        return GGML_TYPES[self.type_name]

    @property
    def layout(self) -> Layout:
        from core.formats.ggml.layout import layout

        return layout(self.type_name)

    @property
    def title(self) -> str:
        return self.type.title

    @property
    def bits(self) -> float:
        return self.type.bits

    @property
    def columns_per_grid(self) -> int:
        return self.type.block

    @property
    def columns_per_code(self) -> int:
        return self.layout.run

    @property
    def needs_importance(self) -> bool:
        return self.type_name in NEED_IMPORTANCE

    @property
    def efforts(self) -> tuple[str, ...]:
        """exact: llama.cpp's bytes. best: a search that goes on from there; no block gets worse under llama.cpp's own
        weights. Signs alone (Q1_0) leave nothing to search."""
        from core.formats.fitting import refinable

        return (EXACT, BEST) if refinable(self.type_name) else (EXACT,)

    @property
    def default_effort(self) -> str:
        return EXACT if self.type_name in CLOSER_EXACT else self.efforts[-1]

    def nbytes(self, shape: tuple[int, ...]) -> int:
        return self.type.nbytes(shape)

    def fit(self, w: Tensor, importance: Tensor | None = None, effort: str = EXACT) -> Grid:
        return self.quantize(w, importance, effort).grid

    def quantize(self, w: Tensor, importance: Tensor | None = None, effort: str = EXACT) -> Quantized:
        """The blocks of these rows. importance below 1e-10 of its mean is raised to that (checks.py)."""
        from core.formats.fitting import quantize_blocks

        self.require_effort(effort)
        if importance is None and self.needs_importance:
            raise needs_importance(self.name)
        blocks = quantize_blocks(self.type_name, w, importance, effort == BEST)
        return Quantized(self, (w.shape[0], w.shape[1]), parts={"blocks": blocks})

    def _across(self, grid: Grid) -> int:
        """Blocks in a row."""
        key, count = self.layout.counter
        return grid[key].shape[1] // count

    def _fields(self, grid: Grid, rows: slice, blocks: slice) -> dict[str, Tensor]:
        """The grid's fields of a rectangle of blocks, each [blocks in all, k]."""
        across = self._across(grid)
        cut = {k: v[rows].unflatten(1, (across, -1))[:, blocks] for k, v in grid.parts.items()}
        return {k: v.flatten(0, 1) for k, v in cut.items()}

    def _blocks(self, start: int, columns: int) -> tuple[slice, int]:
        """The blocks that columns start … start + columns touch, and where the first column lies inside them."""
        block = self.type.block
        first = start // block
        return slice(first, (start + columns - 1) // block + 1), start - first * block

    def encode(self, w: Tensor, grid: Grid, start: int = 0) -> Tensor:
        import torch

        layout, block = self.layout, self.type.block
        rows, columns = w.shape
        assert start % layout.run == 0
        assert columns % layout.run == 0
        blocks, at = self._blocks(start, columns)
        out = torch.empty(rows, columns, dtype=torch.int8 if layout.qmin < 0 else torch.uint8, device=w.device)
        for piece in _row_pieces(rows, columns):
            steps = layout.steps(self._fields(grid, piece, blocks))
            wide = torch.zeros(w[piece].shape[0], (blocks.stop - blocks.start) * block, device=w.device)
            wide[:, at : at + columns] = w[piece]
            out[piece] = layout.encode(wide.view(-1, block), steps).view(wide.shape)[:, at : at + columns]
        return out

    def decode(self, codes: Tensor, grid: Grid, start: int = 0) -> Tensor:
        import torch

        layout, block = self.layout, self.type.block
        rows, columns = codes.shape
        blocks, at = self._blocks(start, columns)
        out = torch.empty(rows, columns, dtype=torch.float32, device=codes.device)
        for piece in _row_pieces(rows, columns):
            steps = layout.steps(self._fields(grid, piece, blocks))
            wide = codes.new_zeros(codes[piece].shape[0], (blocks.stop - blocks.start) * block)
            wide[:, at : at + columns] = codes[piece]
            out[piece] = layout.values(wide.view(-1, block), steps).view(wide.shape)[:, at : at + columns]
        return out

    def pack(self, codes: Tensor, grid: Grid) -> Parts:
        block = self.type.block
        rows, columns = codes.shape
        count = rows * (columns // block)
        fields = {k: v.reshape(count, -1) for k, v in grid.parts.items()}
        return {"blocks": self.layout.pack({**fields, "codes": codes.reshape(count, block)}).view(rows, -1)}

    def unpack(self, parts: Parts, shape: tuple[int, int]) -> tuple[Tensor, Grid]:
        rows, columns = shape
        fields = self.layout.unpack(parts["blocks"].reshape(-1, self.type.type_size))
        codes = fields.pop("codes").reshape(rows, columns)
        return codes, Grid({k: v.reshape(rows, -1).contiguous() for k, v in fields.items()})

    def dequantize(self, parts: Parts, shape: tuple[int, int]) -> Tensor:
        from core.formats.fitting import dequantize_blocks

        return dequantize_blocks(self.type_name, parts["blocks"], shape[1])

    def levels(self, grid: Grid, row: int, column: int) -> Tensor | None:
        import torch

        layout = self.layout
        blocks, inside = self._blocks(column, 1)
        steps = layout.steps(self._fields(grid, slice(row, row + 1), blocks))

        def pick(x: Tensor) -> Tensor:
            return x[0, inside // (self.type.block // x.shape[1])]

        values = torch.tensor(layout.level_values(), device=steps.step.device)
        if steps.offset is not None:
            values = values + pick(steps.offset)
        values = pick(steps.step) * values
        if steps.shift is not None:
            values = values + pick(steps.shift)
        return values.sort().values


@dataclass(frozen=True)
class GgmlReadOnly(GgmlFormat):
    """A GGML type that we read and do not write."""

    encodable: ClassVar[bool] = False

    def quantize(self, w: Tensor, importance: Tensor | None = None, effort: str = EXACT) -> Quantized:
        from core.errors import UnsupportedFormat

        raise UnsupportedFormat(f"{self.name} can be read, not written", "choose another format")


def _row_pieces(rows: int, columns: int) -> list[slice]:
    step = max(1, PIECE // max(1, columns))
    return [slice(a, min(rows, a + step)) for a in range(0, rows, step)]


# Types with a search in core/formats/fitting.
WRITTEN = (
    *("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS"),
    *("TQ1_0", "TQ2_0", "MXFP4", "Q1_0", "Q2_0"),
    *("IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S"),
    *("IQ1_S", "IQ1_M"),
)
# Of these, the types whose bytes do not depend on importance.
UNWEIGHTED = ("Q8_0", "TQ1_0", "TQ2_0", "MXFP4", "Q1_0", "Q2_0")
# Of all types, those that llama.cpp's own search refuses without importance.
NEED_IMPORTANCE = ("IQ2_XXS", "IQ2_XS", "IQ1_S")
# Of the types with a finer search, those whose models do not come closer with it, or stray further (KLD,
# docs/benchmarks.md): it lowers the error of the weights, weighted by their squares, which is not the same.
CLOSER_EXACT = (
    *("IQ4_NL", "IQ4_XS"),
    *("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S"),
)
_IN_MEMORY = ("Q8_1", "Q8_K")

GGML = tuple(
    (GgmlFormat if t.name in WRITTEN else GgmlReadOnly)(t.name.lower(), t.name)
    for t in GGML_TYPES.values()
    if t.quantized and t.name not in _IN_MEMORY
)
